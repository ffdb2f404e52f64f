import json
import struct
import sys
import threading

import pytest

from calmctl.errors import BadInput, RunFailed
from calmctl.training.trackers import NEEDS, TensorBoardTracker


def test_without_the_extra_its_name_is_told_before_data_are_read(tiny_recipe, tmp_path, monkeypatch):
    from calmctl.training import train as training

    monkeypatch.setattr(training, "prepare", lambda recipe: pytest.fail("data were read"))
    for name in NEEDS:
        monkeypatch.setitem(sys.modules, name, None)
        with pytest.raises(BadInput, match=rf"--track {name} needs {name}.*pip install 'calmctl\[tracking\]'"):
            training.train(tiny_recipe(), tmp_path, track=(name,))
    with pytest.raises(BadInput, match="--track visdom: there is no such tracker; there are tensorboard, wandb"):
        training.train(tiny_recipe(), tmp_path, track=("visdom",))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", NEEDS)
@pytest.mark.filterwarnings("default")  # those of the trackers' own packages are not ours
def test_a_run_that_goes_on_has_every_step_once_in_its_tracker(name, tiny_recipe, tmp_path, monkeypatch):
    """Also the steps that were done, and tracked, after the last checkpoint and before the kill."""
    for package in NEEDS[name]:
        pytest.importorskip(package)
    from calmctl.runs.run import find_run
    from calmctl.training.train import train
    from calmctl.words import Watcher

    for variable in ("WANDB_MODE", "MLFLOW_TRACKING_URI", "TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL"):
        monkeypatch.delenv(variable, raising=False)
    if name == "trackio":  # it reads this when it is imported, which another test may have had done
        monkeypatch.setattr("trackio.sqlite_storage.TRACKIO_DIR", tmp_path / "trackio")

    class Killed(BaseException):
        pass

    class Stop(Watcher):
        def step(self, done, total, loss):
            if done == 5:  # one step behind the checkpoint
                raise Killed

    recipe = tiny_recipe("optim.save_every=4")
    with pytest.raises(Killed):
        train(recipe, tmp_path, track=(name,), watcher=Stop())
    run = find_run("tiny-001", tmp_path)
    before = READERS[name](run)
    assert [step for tag, step, *_ in before if tag == "loss"] == [1, 2, 3, 4, 5]
    trained = train(run.recipe_to_resume(), tmp_path, resume=run)  # resuming takes no --track
    after = READERS[name](run)
    for tag in {tag for tag, *_ in after}:
        steps = [step for other, step, *_ in after if other == tag]
        assert steps == ([3, 6] if tag.startswith("val/") else [1, 2, 3, 4, 5, 6]), tag
    kept = [each for each in before if each[1] <= 4]
    assert kept and set(kept) <= set(after), "with their values and times"
    values = {(tag, step): value for tag, step, value, *_ in after}
    assert values["val/t2v_r1", 3] == pytest.approx(trained.validation[0]["t2v_r1"])
    logged = {line["step"]: line["loss"] for line in run.read_log(6, 2) if "loss" in line}
    assert {step: values["loss", step] for step in logged} == pytest.approx(logged)


def in_tensorboard(run):
    """(tag, step, value, wall time) of everything that lies in the event files, nothing purged by a reader."""
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    return [
        (value.tag, event.step, value.tensor.float_val[0], event.wall_time)
        for path in sorted(run.tracked("tensorboard").glob("events.out.tfevents.*"))
        for event in EventFileLoader(str(path)).Load()
        for value in event.summary.value
    ]


def in_wandb(run):
    """(tag, step, value) of the one offline run, as `wandb sync` would send it."""
    from wandb.proto import wandb_internal_pb2

    (file,) = run.tracked("wandb").glob("offline-run-*/*.wandb")
    found = []
    for data in framed(file.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        for item in record.history.item:
            name = item.key or "/".join(item.nested_key)
            if not name.startswith("_"):
                found.append((name, record.history.step.num, json.loads(item.value_json)))
    return found


def framed(content):
    """The records of a file in LevelDB's log format: blocks of 32 KiB, pieces with checksum, length and kind."""
    place, record = 7, b""  # behind W&B's own mark
    while place + 7 <= len(content):
        if 32768 - place % 32768 < 7:  # a piece's head does not fit any more
            place += 32768 - place % 32768
            continue
        _, length, kind = struct.unpack("<IHB", content[place : place + 7])
        record += content[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last piece
            yield record
            record = b""


def in_mlflow(run):
    """(tag, step, value, milliseconds) of the one run in the store beside the runs."""
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{run.folder.parent / 'mlflow.db'}")
    (found,) = client.search_runs([client.get_experiment_by_name("calmctl").experiment_id])
    assert found.info.run_name == run.name and found.data.params["optim.save_every"] == "4"
    histories = [client.get_metric_history(found.info.run_id, key) for key in found.data.metrics]
    return [(each.key, each.step, each.value, each.timestamp) for history in histories for each in history]


def in_trackio(run):
    """(tag, step, value) of the one run in the store beside the runs."""
    from trackio.sqlite_storage import SQLiteStorage

    (found,) = SQLiteStorage.get_run_records("calmctl")
    rows = SQLiteStorage.get_logs("calmctl", run.name, run_id=found["id"])
    return [(tag, row["step"], value) for row in rows for tag, value in row.items() if tag not in ("step", "timestamp")]


READERS = {"tensorboard": in_tensorboard, "wandb": in_wandb, "mlflow": in_mlflow, "trackio": in_trackio}


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
