"""Extraction under Ray Data: a local Ray of two actors makes the very bytes that one machine makes."""

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from calmctl.data.demo_drawing import encode
from calmctl.errors import BadInput, RunFailed
from calmctl.model.backbone import Backbone
from calmctl.model.weights import load_backbone
from calmctl.samples import Clip, Dataset, LeftOut, Split
from calmctl.store import writer as store_writer
from calmctl.store.cluster import _temporary_session
from calmctl.store.extract import LOG, extract
from calmctl.store.writer import merge_stores

# Ray's own modules, and what it does to subprocesses and sockets at its shutdown, warn; ours must not.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning:ray.*"),
    pytest.mark.filterwarnings("ignore::FutureWarning:ray.*"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture(scope="module")
def local_ray(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A Ray of this machine alone, two cores and 150 MB; the tests are skipped where it cannot start."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}.items():
            patch.setenv(name, value)
        patch.delenv("RAY_ADDRESS", raising=False)
        ray = pytest.importorskip("ray", reason="Ray is not installed (calmctl[cluster])")
        try:
            ray.init(
                address="local",
                num_cpus=2,
                object_store_memory=150 * 1024**2,
                include_dashboard=False,
                log_to_driver=False,
                logging_level="ERROR",
                _node_ip_address="127.0.0.1",
            )
        except Exception as error:
            pytest.skip(f"Ray does not start here: {type(error).__name__}: {error}")
        try:
            yield
        finally:
            ray.shutdown()


@pytest.fixture
def backbone() -> Backbone:
    torch.manual_seed(0)
    return load_backbone("demo-clip", None)


@pytest.fixture
def dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Dataset:
    """Eight clips in three groups, two of them broken, one without a file; 9 sentences in three groups."""
    monkeypatch.setattr(store_writer, "CLIPS_PER_SHARD", 3)
    monkeypatch.setattr(store_writer, "SENTENCES_PER_SHARD", 4)
    clips = []
    for number in range(8):
        frames = np.random.default_rng(number).integers(0, 256, (6, 6, 8, 3), dtype=np.uint8)
        path = tmp_path / f"clip{number}.mp4"
        path.write_bytes(encode(frames.repeat(8, 1).repeat(8, 2)))
        clips.append(Clip(path.stem, path))
    clips[3].path.write_text("this is no video")
    clips[7].path.write_bytes(b"")
    captions = tuple(text for clip in clips for text in (f"a video called {clip.id}", "a pattern moves"))
    owners = tuple(place for place in range(8) for _ in range(2))
    missing = (LeftOut("clip99", "no such file"),)
    return Dataset("folder", "", {"test": Split("test", tuple(clips), captions, owners, missing)})


def run(dataset: Dataset, backbone: Backbone, store: Path, **options: Any) -> Any:
    return extract(dataset, backbone, store, n_frames=3, batch_frames=6, workers=1, **options)


def content(store: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in store.iterdir() if file.name not in {LOG, ".lock"}}


def test_two_actors_make_the_store_of_one_machine(
    local_ray: None, dataset: Dataset, backbone: Backbone, tmp_path: Path
) -> None:
    """By itself, merged with a part that a job array made, and with one damaged shard made again elsewhere."""
    run(dataset, backbone, tmp_path / "one")
    steps: list[tuple[Any, ...]] = []
    report = run(dataset, backbone, tmp_path / "ray", ray_actors=2, progress=lambda *step: steps.append(step))
    assert content(tmp_path / "ray") == content(tmp_path / "one")
    assert {clip.id for clip in report.undecodable} == {"clip3", "clip7"}
    assert (report.clips_extracted, report.texts_extracted) == (6, 9)
    clips = [step for step in steps if step[0] == "clips"]
    assert (clips[0][1], *clips[-1][1::2]) == (0, 8, 2)

    run(dataset, backbone, tmp_path / "part2", shard=(2, 2))
    merge_stores([tmp_path / "part2", tmp_path / "ray"], tmp_path / "merged")
    assert content(tmp_path / "merged") == content(tmp_path / "one")

    shard = tmp_path / "ray" / "frames-00001.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1])
    report = run(dataset, backbone, tmp_path / "ray")
    assert [line.split()[0] for line in report.redone] == ["frames-00001.safetensors"]
    assert content(tmp_path / "ray") == content(tmp_path / "one")


def test_without_ray_the_message_says_how_to_get_it(
    dataset: Dataset, backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(BadInput, match=r"--ray needs ray.*pip install 'calmctl\[cluster\]'"):
        run(dataset, backbone, tmp_path / "store", ray_actors=2)


def test_a_ray_that_does_not_start_is_a_sentence(
    dataset: Dataset, backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def init(**options: Any) -> None:
        raise Exception("The current node timed out during startup.\nSome of the raylets failed.")

    ray = pytest.importorskip("ray")
    pytest.importorskip("ray.data")
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", init)
    told = r"--ray: Ray does not start: The current node timed out during startup\. Some of the raylets failed\.; try"
    with pytest.raises(RunFailed, match=told):
        run(dataset, backbone, tmp_path / "store", ray_actors=2)


def test_nothing_to_do_starts_no_ray(
    dataset: Dataset, backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(dataset, backbone, tmp_path / "store")
    monkeypatch.setitem(sys.modules, "ray", None)
    assert run(dataset, backbone, tmp_path / "store", ray_actors=2).clips_extracted == 0


@pytest.mark.skipif(sys.platform != "linux", reason="it looks into /proc")
def test_what_a_session_started_ends_with_it() -> None:
    """As where its process is killed: the pipe that only that process holds is closed (`benchmarks/kill.py`)."""
    with _temporary_session() as folder:
        started = subprocess.Popen(["sleep", "600"], start_new_session=True)
        Path(folder, "ray").mkdir()
    assert started.wait(10) == -signal.SIGKILL
    assert not Path(folder).exists()
