import sys
import threading

import pytest

from calmctl.errors import BadInput, RunFailed
from calmctl.training.trackers import TensorBoardTracker


def test_tensorboard_gets_the_numbers_of_a_run(tiny_recipe, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    from calmctl.training.train import train

    trained = train(tiny_recipe("optim.epochs=1"), tmp_path, tensorboard=True)
    events = EventAccumulator(str(trained.run.folder / "tensorboard"))
    events.Reload()
    assert [scalar.step for scalar in events.Scalars("rec")] == [1, 2, 3]
    assert events.Scalars("val/t2v_r1")[0].value == pytest.approx(trained.validation[0]["t2v_r1"])


def test_without_the_extra_its_name_is_told(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(BadInput, match=r"pip install 'calmctl\[tensorboard\]'"):
        TensorBoardTracker(tmp_path)


def test_a_run_that_goes_on_has_every_step_once_in_the_event_files(tiny_recipe, tmp_path):
    """Also the steps that were done, and tracked, after the last checkpoint and before the kill."""
    pytest.importorskip("tensorboard")
    from calmctl.runs.run import find_run
    from calmctl.training.train import train
    from calmctl.words import Watcher

    class Killed(BaseException):
        pass

    class Stop(Watcher):
        def step(self, done, total, loss):
            if done == 5:  # one step behind the checkpoint
                raise Killed

    recipe = tiny_recipe("optim.save_every=4")
    with pytest.raises(Killed):
        train(recipe, tmp_path, tensorboard=True, watcher=Stop())
    run = find_run("tiny-001", tmp_path)
    before = scalars(run.tensorboard)
    assert [step for tag, step, _, _ in before if tag == "loss"] == [1, 2, 3, 4, 5]
    train(run.recipe_to_resume(), tmp_path, resume=run)  # resuming takes no --tensorboard
    after = scalars(run.tensorboard)
    for tag in {tag for tag, *_ in after}:
        steps = [step for other, step, _, _ in after if other == tag]
        assert steps == ([3, 6] if tag.startswith("val/") else [1, 2, 3, 4, 5, 6]), tag
    kept = [each for each in before if each[1] <= 4]
    assert kept and set(kept) <= set(after), "with their values and times"


def scalars(folder):
    """(tag, step, value, wall time) of everything that lies in the event files, nothing purged by a reader."""
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    return [
        (value.tag, event.step, value.tensor.float_val[0], event.wall_time)
        for path in sorted(folder.glob("events.out.tfevents.*"))
        for event in EventFileLoader(str(path)).Load()
        for value in event.summary.value
    ]


def test_a_folder_that_cannot_be_written_is_a_sentence(tmp_path, monkeypatch):
    pytest.importorskip("tensorboard")
    (tmp_path / "file").write_text("")
    with pytest.raises(RunFailed, match=r"cannot write .*file"):
        TensorBoardTracker(tmp_path / "file")
    tracker = TensorBoardTracker(tmp_path / "tensorboard")
    tracker.log({"step": 1, "time": 5.0, "loss": 1.0})

    def full():
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tracker._writer, "flush", full)
    with pytest.raises(RunFailed, match="tensorboard: No space left on device"):
        tracker.log({"step": 2, "time": 6.0, "loss": 1.0})


def test_a_full_disk_under_the_writing_thread_is_a_sentence_and_nothing_else(tmp_path, monkeypatch):
    told = []
    monkeypatch.setattr(threading, "excepthook", told.append)
    gfile = pytest.importorskip("tensorboard.compat.tensorflow_stub.io.gfile")
    tracker = TensorBoardTracker(tmp_path / "tensorboard")
    tracker.log({"step": 1, "time": 5.0, "loss": 1.0})

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(gfile.LocalFileSystem, "_write", full)
    with pytest.raises(RunFailed, match="tensorboard: No space left on device"):
        for step in range(2, 9):
            tracker.log({"step": step, "time": 6.0, "loss": 1.0})
    assert not told
    other = threading.Thread(target=full)
    other.start()
    other.join()
    assert [fault.thread for fault in told] == [other], "other threads are told of as before"
