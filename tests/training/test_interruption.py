"""Ends that a training does not choose: signals, kills, full disks, folders that cannot be written."""

import importlib.util
import itertools
import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from calmctl import files
from calmctl.errors import RunFailed
from calmctl.recipe import Recipe
from calmctl.runs.run import Run, find_run
from calmctl.tensors import load_tensors, read_metadata
from calmctl.training import train as module
from calmctl.training.train import train
from calmctl.words import Watcher
from calmctl.yaml_strict import dump_yaml

ROOT = Path(__file__).parents[2]


TOWER = {"layers": 1, "width": 8}
CONFIG = {
    "embed_dim": 8,
    "vision_cfg": {**TOWER, "image_size": 16, "patch_size": 8, "head_width": 8},
    "text_cfg": {**TOWER, "context_length": 77, "vocab_size": 49408, "heads": 1},
    "preprocess_cfg": {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]},
}


@pytest.fixture(scope="module")
def videos(request, tmp_path_factory):
    """A recipe that trains a minute backbone on the tiny world in six steps, a checkpoint every second one."""
    from calmctl.recipe import recipe_from_dict

    config = tmp_path_factory.mktemp("config") / "minute.json"
    config.write_text(json.dumps(CONFIG))
    values = request.getfixturevalue("tiny_recipe_values")(request.getfixturevalue("tiny_world"))
    return recipe_from_dict(
        values, overrides=["head.kind=t-mass", "optim.save_every=2", f"backbone.model={config}", "alignment.latent=8"]
    )


@pytest.fixture(scope="module")
def recipe(videos, tmp_path_factory):
    """The same on extracted features, which takes no decoding."""
    from calmctl.data.registry import load_dataset
    from calmctl.model.weights import load_backbone
    from calmctl.store.extract import extract

    torch.manual_seed(0)
    backbone = load_backbone(videos.backbone.model, None)
    weights = tmp_path_factory.mktemp("weights") / "minute.safetensors"
    save_file(backbone.clip.state_dict(), weights)
    store = tmp_path_factory.mktemp("features") / "store"
    backbone = load_backbone(videos.backbone.model, str(weights))
    extract(load_dataset("demo", Path(videos.data.root)), backbone, store, n_frames=2, workers=1)
    changes = {
        "data": videos.data.model_copy(update={"features": str(store)}),
        "backbone": videos.backbone.model_copy(update={"weights": str(weights), "adapter": "linear"}),
    }
    return videos.model_copy(update=changes)


@pytest.fixture(scope="module")
def whole(recipe, tmp_path_factory) -> Run:
    """The run that nothing disturbs."""
    return train(recipe, tmp_path_factory.mktemp("whole")).run


def assert_ends_as(whole: Run, recipe: Recipe, folder: Path) -> None:
    """Take up the run in `folder`; it must end with the same files as `whole`."""
    run = find_run("tiny-001", folder)
    train(run.recipe_to_resume(), folder, resume=run)
    for which in ("best", "last", "slim"):
        assert run.weights(which).read_bytes() == whole.weights(which).read_bytes(), which
    assert run.state.read_bytes() == whole.state.read_bytes()
    assert run.results.read_bytes() == whole.results.read_bytes()
    assert logged(run) == logged(whole)
    assert not list(run.folder.glob("*.tmp")) and not list(run.folder.glob(".*.tmp"))


def logged(run: Run) -> list[dict]:
    lines = [json.loads(line) for line in run.log.read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "time"} for line in lines]


class Signal(Watcher):
    """Sends this process a signal after a step, or after an epoch's validation."""

    def __init__(self, number: int, *, step: int = 0, epoch: int = 0) -> None:
        self.number, self.at_step, self.at_epoch = number, step, epoch

    def step(self, done: int, total: int, loss: float) -> None:
        if done == self.at_step:
            os.kill(os.getpid(), self.number)

    def epoch(self, epoch: int, validation: dict[str, float]) -> None:
        if epoch == self.at_epoch:
            os.kill(os.getpid(), self.number)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize(
    ("moment", "saved"), [({"step": 1}, 1), ({"step": 3}, 3), ({"epoch": 1}, 3), ({"epoch": 2}, 6)]
)
def test_a_signal_saves_and_says_how_to_go_on(recipe, whole, tmp_path, number, moment, saved):
    with pytest.raises(RunFailed, match=r"^interrupted.*everything is saved.*calmctl train --resume .*tiny-001"):
        train(recipe, tmp_path, watcher=Signal(number, **moment))
    assert read_metadata(tmp_path / "tiny-001" / "state.safetensors", what="test")["step"] == saved
    assert_ends_as(whole, recipe, tmp_path)


def test_a_run_that_was_moved_goes_on_whatever_clocks_and_dates_say(recipe, whole, tmp_path, monkeypatch):
    with pytest.raises(RunFailed):
        train(recipe, tmp_path / "runs", watcher=Signal(signal.SIGTERM, step=3))
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "runs" / "tiny-001").rename(tmp_path / "elsewhere" / "tiny-001")
    hour = itertools.count()
    monkeypatch.setattr(time, "time", lambda: 2e9 - 3600.0 * next(hour))  # a clock that goes backwards
    for path in tmp_path.rglob("*"):
        os.utime(path, (4e9, 4e9))
    monkeypatch.chdir(tmp_path)
    assert_ends_as(whole, recipe, Path("elsewhere"))


def test_a_signal_in_the_final_test_repeats_only_that(recipe, whole, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(module, "_test", lambda *arguments, **keys: os.kill(os.getpid(), signal.SIGTERM))
        with pytest.raises(RunFailed, match="calmctl train --resume"):
            train(recipe, tmp_path)
    last = (tmp_path / "tiny-001" / "last.safetensors").stat().st_mtime_ns
    assert_ends_as(whole, recipe, tmp_path)
    assert (tmp_path / "tiny-001" / "last.safetensors").stat().st_mtime_ns == last


def test_clips_that_do_not_decode_are_still_listed_after_an_interruption(videos, tiny_world, tmp_path):
    import shutil

    from calmctl.data.registry import load_dataset

    world = Path(shutil.copytree(tiny_world, tmp_path / "world"))
    for split in load_dataset("demo", world).splits.values():
        split.clips[0].path.write_bytes(b"no video")
    broken = videos.model_copy(update={"data": videos.data.model_copy(update={"root": str(world)})})
    expected = train(broken, tmp_path / "a").left_out
    assert len(expected["train"]) == len(expected["val"]) == len(expected["test"]) == 1
    with pytest.raises(RunFailed):
        train(broken, tmp_path / "b", watcher=Signal(signal.SIGTERM, epoch=2))
    run = find_run("tiny-001", tmp_path / "b")
    assert train(run.recipe_to_resume(), tmp_path / "b", resume=run).left_out == expected


def test_the_command_ends_with_one_sentence(recipe, tmp_path):
    """The process itself, stopped in the middle of its work."""
    (tmp_path / "tiny.yaml").write_text(dump_yaml(recipe.model_dump(mode="json")))
    command = ["train", "tiny.yaml", "optim.epochs=100000", "--runs", "runs"]
    process = subprocess.Popen(
        [sys.executable, "-m", "calmctl", *command], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    while process.poll() is None and not (tmp_path / "runs" / "tiny-001" / "log.jsonl").exists():
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    shown, errors = process.communicate(timeout=60)
    assert process.returncode == 1, errors.decode()
    *notes, last = errors.decode().splitlines()
    told = [line for line in notes if not line.startswith("warning: ")]  # of one-hot anchors, as a CLIP of 16 has them
    assert last.startswith("error: interrupted") and told == ["loading the model library ...", "run runs/tiny-001"]
    assert "calmctl train --resume runs/tiny-001" in errors.decode() and shown == b""


def test_sigterm_to_the_process_group_of_the_command_costs_no_clip(videos, tmp_path, warm_python):
    """Slurm, systemd and `timeout` signal decoding workers too: none of their clips may count as broken."""
    data = videos.data.model_copy(update={"cache": "none", "workers": 2})
    recipe = videos.model_copy(update={"data": data})
    (tmp_path / "tiny.yaml").write_text(dump_yaml(recipe.model_dump(mode="json")))
    process = subprocess.Popen(
        [*warm_python(), "-m", "calmctl", "train", "tiny.yaml", "--runs", "stopped"],
        cwd=tmp_path,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    while process.poll() is None and not (tmp_path / "stopped" / "tiny-001" / "log.jsonl").exists():
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGTERM)
    errors = process.communicate(timeout=120)[1].decode()
    assert process.returncode == 1 and "calmctl train --resume stopped/tiny-001" in errors, errors
    run = find_run("tiny-001", tmp_path / "stopped")
    stopped, unbroken = train(run.recipe_to_resume(), tmp_path, resume=run), train(recipe, tmp_path / "unbroken")
    assert stopped.left_out == unbroken.left_out == {"train": {}, "val": {}, "test": {}}
    for which in ("best", "last", "slim"):
        assert run.weights(which).read_bytes() == unbroken.run.weights(which).read_bytes(), which


# --- disks and folders ------------------------------------------------------------------------------------


@pytest.mark.parametrize("written", [0, 1, 2, 3, 5, 6, 7, 10, 12])
def test_a_disk_that_fills_costs_no_more_than_a_checkpoint(recipe, whole, tmp_path, monkeypatch, written):
    """No space at one of the files: the recipe, anchors, origin, a state, best, slim, last, the results."""
    fsync, calls = os.fsync, []

    def full(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) > written:
            raise OSError(28, "No space left on device")
        fsync(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(files.os, "fsync", full)
        with pytest.raises(RunFailed, match="No space left on device; free space"):
            train(recipe, tmp_path)
    assert not list((tmp_path / "tiny-001").glob(".*.tmp"))
    if written in (1, 2):  # it failed before its first step, and leaves nothing behind that would have to be resumed
        assert not (tmp_path / "tiny-001").exists()
    elif written:  # without its recipe it is no run yet
        assert_ends_as(whole, recipe, tmp_path)


def test_a_file_that_may_not_grow_is_the_same(recipe, whole, tmp_path):
    """The kernel itself cuts the write short in the middle of the checkpoint."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, hard))
    try:
        with pytest.raises(RunFailed, match=r"cannot write .*state\.safetensors: File too large"):
            train(recipe, tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not list((tmp_path / "tiny-001").glob(".*.tmp"))
    assert_ends_as(whole, recipe, tmp_path)


@pytest.fixture
def mounted(tmp_path):
    """Mounts a small disk of its own at a folder; where that is not permitted the test is skipped."""
    mounts = []

    def mount(folder: Path, options: str) -> None:
        folder.mkdir(exist_ok=True)
        found = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], capture_output=True)
        if found.returncode:
            pytest.skip("mounting a disk is not permitted here")
        mounts.append(folder)

    yield mount
    for folder in reversed(mounts):
        subprocess.run(["umount", str(folder)], check=True)


def test_a_disk_that_is_really_full(recipe, whole, tmp_path, mounted):
    mounted(tmp_path / "disk", "size=5m")
    with pytest.raises(RunFailed, match="No space left on device"):
        train(recipe, tmp_path / "disk", track=("tensorboard",))
    subprocess.run(["mount", "-o", "remount,size=90m", str(tmp_path / "disk")], check=True)
    assert_ends_as(whole, recipe, tmp_path / "disk")


def test_a_disk_that_is_really_read_only(recipe, tmp_path, mounted):
    mounted(tmp_path / "disk", "ro")
    with pytest.raises(RunFailed, match=r"cannot create .*: Read-only file system; choose another folder"):
        train(recipe, tmp_path / "disk")


def test_a_folder_that_becomes_read_only_keeps_what_is_there(recipe, whole, tmp_path, mounted):
    mounted(tmp_path / "disk", "size=90m")
    with pytest.raises(RunFailed):
        train(recipe, tmp_path / "disk", watcher=Signal(signal.SIGTERM, step=3))
    subprocess.run(["mount", "-o", "remount,ro", str(tmp_path / "disk")], check=True)
    run = find_run("tiny-001", tmp_path / "disk")
    with pytest.raises(RunFailed, match=r"cannot write .*tiny-001: Read-only file system"):
        train(run.recipe_to_resume(), tmp_path / "disk", resume=run)
    subprocess.run(["mount", "-o", "remount,rw", str(tmp_path / "disk")], check=True)
    assert_ends_as(whole, recipe, tmp_path / "disk")


# --- two of them, and other data --------------------------------------------------------------------------


def test_two_processes_on_one_run(recipe, tmp_path):
    with pytest.raises(RunFailed):
        train(recipe, tmp_path, watcher=Signal(signal.SIGTERM, step=1))
    run = find_run("tiny-001", tmp_path)
    holder = subprocess.Popen(["flock", str(run.folder / ".lock"), "sleep", "60"])
    try:
        while subprocess.run(["flock", "-n", str(run.folder / ".lock"), "true"]).returncode == 0:
            pass
        with pytest.raises(RunFailed, match="in use by another process"):
            train(recipe, tmp_path, resume=run)
    finally:
        holder.kill()
        holder.wait()


def test_data_or_anchors_that_changed_since_are_told(recipe, tmp_path):
    with pytest.raises(RunFailed):
        train(recipe, tmp_path, watcher=Signal(signal.SIGTERM, step=5))
    run = find_run("tiny-001", tmp_path)
    other = recipe.model_copy(update={"optim": recipe.optim.model_copy(update={"batch_size": 60})})
    with pytest.raises(RunFailed, match=r"recipe\.json was edited since it was begun"):
        train(other, tmp_path, resume=run)
    about = json.loads(run.about.read_text())
    del about["identity"]  # a run from before this was recorded
    run.about.write_text(json.dumps(about))
    with pytest.raises(Exception, match="does not fit epochs of 1 steps: the data has changed since"):
        train(other, tmp_path, resume=run)
    other = recipe.model_copy(update={"anchors": recipe.anchors.model_copy(update={"subset": 4})})
    with pytest.raises(RunFailed, match="begun with other anchors"):
        train(other, tmp_path, resume=run)


def test_real_kills_at_random_moments(warm_python):
    """A handful here; `benchmarks/kill.py` does as many as it is told."""
    if importlib.util.find_spec("tensorboard") is None:
        pytest.skip("the kill bench also reads TensorBoard's events")
    only = ["--only", "train, frames in memory"]
    ended = subprocess.run(
        [*warm_python(), str(ROOT / "benchmarks" / "kill.py"), "--kills", "4", "--json", *only],
        capture_output=True,
        timeout=600,
    )
    assert ended.returncode == 0, ended.stderr.decode()
    assert json.loads(ended.stdout)["kills"] >= 4


def test_weights_are_those_of_the_last_step(whole):
    state, last = (load_tensors(path, what="test")[0] for path in (whole.state, whole.weights("last")))
    assert all(torch.equal(state[f"model/{name}"], tensor) for name, tensor in last.items())
