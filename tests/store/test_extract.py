"""Extraction end to end on real files: right numbers, named faults, and the same bytes whatever happens."""

import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Generator, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import calmctl.store.shards as module
from calmctl import files
from calmctl.data.demo_drawing import encode
from calmctl.data.registry import load_dataset
from calmctl.errors import BadInput, DecodingStopped, RunFailed, StoreError, VideoError
from calmctl.model.backbone import Backbone
from calmctl.model.weights import load_backbone
from calmctl.samples import Clip, Dataset, LeftOut, Split
from calmctl.store import writer as store_writer
from calmctl.store.extract import LOG, ExtractReport, deserves_another_try, extract
from calmctl.store.store import FeatureStore
from calmctl.store.writer import merge_stores
from calmctl.video import pool as workers
from calmctl.video.frames import read_frames
from calmctl.video.pixels import FrameResize

F = 3
CLIPS_PER_SHARD = 3
BROKEN = {"clip3", "clip7"}


def write_clip(path: Path, seed: int) -> None:
    """Ten frames of H.264 that differ from one another and from other seeds."""
    picture = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    frames = [np.roll(picture, number, axis=1).repeat(8, 0).repeat(8, 1) for number in range(10)]
    path.write_bytes(encode(np.stack(frames)))


def dataset_of(folder: Path) -> Dataset:
    """Every file of `folder` in the test split with two captions each, one of which is said of all clips."""
    clips = tuple(Clip(path.stem, path) for path in sorted(folder.iterdir()))
    captions = [text for clip in clips for text in (f"a video called {clip.id}", "a pattern moves")]
    owners = [place for place in range(len(clips)) for _ in range(2)]
    missing = (LeftOut("clip99", "no such file"),)
    return Dataset("folder", "", {"test": Split("test", clips, tuple(captions), tuple(owners), missing)})


@pytest.fixture(scope="session")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight clips, of which one is no video and one is empty."""
    folder = tmp_path_factory.mktemp("drawn")
    for number in range(8):
        write_clip(folder / f"clip{number}.mp4", number)
    (folder / "clip3.mp4").write_text("this is no video")
    (folder / "clip7.mp4").write_bytes(b"")
    return folder


@pytest.fixture
def videos(drawn: Path, tmp_path: Path) -> Path:
    """The clips to do with as one likes; same times as the originals."""
    return Path(shutil.copytree(drawn, tmp_path / "videos"))


def seeded_backbone(seed: int = 0) -> Backbone:
    torch.manual_seed(seed)
    return load_backbone("demo-clip", None)


@pytest.fixture(scope="session")
def backbone() -> Backbone:
    return seeded_backbone()


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_writer, "CLIPS_PER_SHARD", CLIPS_PER_SHARD)
    monkeypatch.setattr(store_writer, "SENTENCES_PER_SHARD", 4)


def decode_here(
    clips: Iterable[Clip], *, n_frames: int, transform: FrameResize, **_: object
) -> Generator[tuple[Clip, np.ndarray | VideoError], None, None]:
    """`decode_clips` without processes, for tests that extract many times."""
    for clip in clips:
        try:
            yield clip, transform(read_frames(clip, n_frames))
        except VideoError as error:
            yield clip, error


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "decode_clips", decode_here)


def run(folder: Path, backbone: Backbone, store: Path, **options: Any) -> ExtractReport:
    return extract(dataset_of(folder), backbone, store, n_frames=F, batch_frames=2 * F, workers=2, **options)


@pytest.fixture(scope="session")
def whole(drawn: Path, backbone: Backbone, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The store of one unbroken extraction with worker processes."""
    store = tmp_path_factory.mktemp("whole") / "store"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store_writer, "CLIPS_PER_SHARD", CLIPS_PER_SHARD)
        patch.setattr(store_writer, "SENTENCES_PER_SHARD", 4)
        report = run(drawn, backbone, store)
    assert {clip.id for clip in report.undecodable} == BROKEN
    return store


def content(store: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in store.iterdir() if file.name not in {LOG, ".lock"}}


# --- what is extracted -----------------------------------------------------------------------------------


def test_features_are_what_the_backbone_gives(whole: Path, drawn: Path, backbone: Backbone) -> None:
    store = FeatureStore.open(whole)
    assert set(store.ids) == {f"clip{number}" for number in range(8)} - BROKEN
    with torch.inference_mode():
        for key in store.ids:
            frames = read_frames(Clip(key, drawn / f"{key}.mp4"), F)
            expected = backbone.encode_frames(backbone.preprocess(frames)[None])[0]
            torch.testing.assert_close(store.frames([key])[0], expected, rtol=1e-5, atol=1e-5)
        for sentence in store.sentences:
            expected = backbone.encode_text(backbone.tokenize([sentence]))[0]
            torch.testing.assert_close(store.texts([sentence])[0], expected, rtol=1e-5, atol=1e-5)
    assert len(store.sentences) == len(set(store.sentences)) == 9, "a sentence said twice is encoded once"


def test_broken_clips_are_listed_and_have_no_features(whole: Path) -> None:
    store = FeatureStore.open(whole)
    split = store.split("test")
    assert {clip.id for clip in split.left_out} == {*BROKEN, "clip99"}
    assert all(clip.reason for clip in split.left_out)
    assert len(split.captions) == 2 * len(split.ids) == 12
    features = store.frames(split.ids)
    assert (features.flatten(1).abs().amin(1) > 0).all(), "no clip is zeros"
    assert len(torch.unique(features.flatten(1), dim=0)) == len(split.ids)
    for key in BROKEN:
        with pytest.raises(StoreError, match=key):
            store.frames([key])


def test_strict_makes_them_an_error(drawn: Path, backbone: Backbone, tmp_path: Path, quick: None) -> None:
    with pytest.raises(VideoError, match="clip99: no such file"):
        run(drawn, backbone, tmp_path / "store", strict=True)
    data = dataset_of(drawn)
    split = data.splits["test"]
    complete = Dataset("folder", "", {"test": Split("test", split.clips, split.captions, split.owners)})
    for _ in range(2):  # also where the clip was left out by an earlier run
        with pytest.raises(VideoError, match="clip3: "):
            extract(complete, backbone, tmp_path / "store", n_frames=F, strict=True)
        extract(complete, backbone, tmp_path / "store", n_frames=F)


def test_progress_counts_every_clip_and_caption(drawn: Path, backbone: Backbone, tmp_path: Path, quick: None) -> None:
    steps: list[tuple[Any, ...]] = []
    run(drawn, backbone, tmp_path / "store", progress=lambda *step: steps.append(step))
    clips = [step for step in steps if step[0] == "clips"]
    assert [step[1] for step in clips] == list(range(9)) and {step[2] for step in clips} == {8}
    assert clips[-1][3] == 2
    assert steps[-1] == ("captions", 9, 9)


def test_weights_that_give_no_numbers_are_an_error(drawn: Path, tmp_path: Path, quick: None) -> None:
    damaged = seeded_backbone()
    with torch.no_grad():
        damaged.clip.visual.proj[:] = float("inf")
    with pytest.raises(StoreError, match="no float32 number for 'clip0'"):
        run(drawn, damaged, tmp_path / "store")


# --- the same bytes whatever happens ---------------------------------------------------------------------


def test_a_second_run_repeats_nothing(
    whole: Path, drawn: Path, backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "Worker", None)  # none is started
    before = content(whole)
    report = run(drawn, backbone, whole)
    assert (report.clips_extracted, report.clips_kept) == (0, 6)
    assert (report.texts_extracted, report.texts_kept) == (0, 9)
    assert {clip.id for clip in report.undecodable} == BROKEN and not report.redone
    assert content(whole) == before


def test_sigkill_loses_one_shard_at_most(
    whole: Path, drawn: Path, backbone: Backbone, tmp_path: Path, warm_python: Callable[..., list[str]]
) -> None:
    """A real process, real workers, a real kill -9 in the middle of the second shard."""
    script = tmp_path / "script.py"
    script.write_text(
        f"import sys; sys.path[:] = {sys.path!r}\n"
        "import importlib.util, os, signal\n"
        f"spec = importlib.util.spec_from_file_location('helpers', {__file__!r})\n"
        "helpers = importlib.util.module_from_spec(spec); spec.loader.exec_module(helpers)\n"
        "helpers.store_writer.CLIPS_PER_SHARD, helpers.store_writer.SENTENCES_PER_SHARD = 3, 4\n"
        "from pathlib import Path\n"
        "def kill(what, done, *more):\n"
        "    if done == 5:\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        f"helpers.run(Path({str(drawn)!r}), helpers.seeded_backbone(), Path({str(tmp_path / 'store')!r}), "
        "progress=kill)\n"
    )
    ended = subprocess.run([*warm_python(), str(script)], capture_output=True, timeout=300)
    assert ended.returncode == -signal.SIGKILL, ended.stderr.decode()
    assert FeatureStore.open(tmp_path / "store").ids == ("clip0", "clip1", "clip2")
    report = run(drawn, backbone, tmp_path / "store")
    assert (report.clips_extracted, report.clips_kept) == (3, 3)
    assert content(tmp_path / "store") == content(whole)


class Killed(BaseException):
    """Stands for a kill: nothing catches it."""


@pytest.mark.parametrize("after_the_rename", [False, True])
def test_whatever_write_it_dies_at_it_ends_with_the_same_bytes(
    whole: Path, drawn: Path, backbone: Backbone, tmp_path: Path, quick: None, after_the_rename: bool
) -> None:
    replace, alive = os.replace, True

    def dying(countdown: list[int]) -> Callable[..., None]:
        def replace_or_die(*paths: Any) -> None:
            countdown[0] -= 1
            if countdown[0] == 0 and not after_the_rename:
                raise Killed
            replace(*paths)
            if countdown[0] == 0:
                raise Killed

        return replace_or_die

    deaths = 0
    while alive:
        store = tmp_path / f"store{deaths}"
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(files.os, "replace", dying([deaths + 1]))
            try:
                run(drawn, backbone, store)
                alive = False
            except Killed:
                deaths += 1
        complete = list(store.glob("frames-*"))
        report = run(drawn, backbone, store)
        assert report.clips_kept >= (len(complete) - 1) * 2, "at most the last shard is made again"
        assert content(store) == content(whole)
    assert deaths == 2 + 1 + 2 * (3 + 3), "catalogue and index, plan, each shard and the index after it"


def test_damaged_shards_are_made_again_and_nothing_else(
    whole: Path, drawn: Path, backbone: Backbone, tmp_path: Path, quick: None
) -> None:
    store = Path(shutil.copytree(whole, tmp_path / "store"))
    bits = bytearray((store / "frames-00001.safetensors").read_bytes())
    bits[-7] ^= 4
    (store / "frames-00001.safetensors").write_bytes(bits)
    os.truncate(store / "texts-00002.safetensors", 50)
    (store / "texts-00000.safetensors").unlink()
    untouched = (store / "frames-00000.safetensors").stat().st_mtime_ns
    report = run(drawn, backbone, store)
    assert [line.split()[0] for line in report.redone] == [
        "frames-00001.safetensors",
        "texts-00000.safetensors",
        "texts-00002.safetensors",
    ]
    assert (report.clips_extracted, report.texts_extracted) == (2, 5)
    assert (store / "frames-00000.safetensors").stat().st_mtime_ns == untouched
    assert content(store) == content(whole)


def test_parts_merge_into_the_same_bytes(
    whole: Path, drawn: Path, backbone: Backbone, tmp_path: Path, quick: None
) -> None:
    parts = []
    for part in (1, 2):
        parts.append(tmp_path / f"part{part}")
        report = run(drawn, backbone, parts[-1], shard=(part, 2))
        assert report.shard == (part, 2)
        assert {clip.id for clip in report.undecodable} == ({"clip7"} if part == 1 else {"clip3"})
    assert not set(FeatureStore.open(parts[0]).ids) & set(FeatureStore.open(parts[1]).ids)
    merged = merge_stores(parts[::-1], tmp_path / "merged")
    assert (merged.clips, merged.sentences, merged.incomplete) == (6, 9, ())
    assert content(tmp_path / "merged") == content(whole)


@pytest.mark.parametrize("shard", [(0, 2), (3, 2), (1, 0), (-1, -1)])
def test_parts_are_counted_from_one(drawn: Path, backbone: Backbone, tmp_path: Path, shard: tuple[int, int]) -> None:
    with pytest.raises(BadInput, match="counted from 1 to n"):
        run(drawn, backbone, tmp_path / "store", shard=shard)


# --- files that change -----------------------------------------------------------------------------------


def test_a_changed_file_and_a_repaired_one_are_extracted_again(
    whole: Path, videos: Path, backbone: Backbone, tmp_path: Path, quick: None
) -> None:
    store = Path(shutil.copytree(whole, tmp_path / "store"))
    before = FeatureStore.open(store).frames(["clip0", "clip1", "clip4"])
    write_clip(videos / "clip1.mp4", 101)
    write_clip(videos / "clip7.mp4", 107)
    report = run(videos, backbone, store)
    assert [line.split(" ", 1)[0] for line in report.redone] == [f"frames-0000{group}.safetensors" for group in (0, 2)]
    assert "clip1" in report.redone[0] and "clip7" in report.redone[1]
    opened = FeatureStore.open(store)
    assert [clip.id for clip in opened.left_out] == ["clip3"] and "clip7" in opened.ids
    after = opened.frames(["clip0", "clip1", "clip4"])
    assert [torch.equal(*pair) for pair in zip(before, after, strict=True)] == [True, False, True]


def test_new_files_are_added_and_a_vanished_one_keeps_its_features(
    whole: Path, videos: Path, backbone: Backbone, tmp_path: Path, quick: None
) -> None:
    store = Path(shutil.copytree(whole, tmp_path / "store"))
    write_clip(videos / "another.mp4", 200)
    (videos / "clip5.mp4").unlink()
    report = run(videos, backbone, store)
    assert (report.clips_extracted, report.clips_kept, report.redone) == (1, 6, ())
    assert set(FeatureStore.open(store).ids) == {"another", "clip0", "clip1", "clip2", "clip4", "clip5", "clip6"}


def test_left_out_clips_are_tried_again_only_when_asked(
    whole: Path, drawn: Path, backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[str] = []

    def decode_and_tell(clips: Iterable[Clip], **options: Any) -> Any:
        for clip, frames in decode_here(clips, **options):
            tried.append(clip.id)
            yield clip, frames

    monkeypatch.setattr(module, "decode_clips", decode_and_tell)
    store = Path(shutil.copytree(whole, tmp_path / "store"))
    run(drawn, backbone, store)
    assert tried == []
    run(drawn, backbone, store, retry=True)
    assert tried == ["clip3", "clip4", "clip5", "clip6", "clip7"]
    assert content(store) == content(whole)


def test_only_faults_of_a_file_are_remembered(
    drawn: Path, backbone: Backbone, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the machine ended is tried each time, what a limit ended with a longer one."""
    faults: dict[str, VideoError] = {
        "clip0": DecodingStopped("the decoder was killed twice (SIGKILL)", limit_s=0.0),
        "clip1": DecodingStopped("decoding took longer than 5 s", limit_s=5.0),
        "clip2": VideoError("damaged"),
    }
    tried: list[str] = []

    def decode(clips: Iterable[Clip], **options: Any) -> Any:
        for clip, frames in decode_here(clips, **options):
            tried.append(clip.id)
            yield clip, faults.get(clip.id, frames)

    def again(**options: Any) -> set[str]:
        tried.clear()
        run(drawn, backbone, tmp_path / "store", **options)
        return set(tried)

    monkeypatch.setattr(module, "decode_clips", decode)
    again(timeout_s=5.0)
    groups = FeatureStore.open(tmp_path / "store").groups("frames")
    of = {key: set(group) for group in groups for key in group}
    assert again(timeout_s=5.0) == of["clip0"]
    del faults["clip0"]
    assert again(timeout_s=5.0) == of["clip0"], "and then it is there"
    assert again(timeout_s=5.0) == again(timeout_s=4.0) == set()
    del faults["clip1"]
    assert again(timeout_s=6.0) == of["clip1"]
    assert again() == set()
    del faults["clip2"]
    assert again(retry=True) >= of["clip2"]
    assert content(tmp_path / "store") == content(whole)


@pytest.mark.parametrize(
    ("reason", "tried"),
    [
        ("the decoder ended with exit code 1", True),
        ("the decoder crashed (SIGTERM)", True),
        ("the decoder crashed (SIGKILL) (often: out of memory)", True),
        ("decoding took longer than 0.1 s", True),
        ("not enough memory to decode it", True),
        ("the decoder crashed (SIGSEGV)", False),
        ("the decoder ended with exit code 11", False),
        ("audio only", False),
    ],
)
def test_what_earlier_versions_remember_of_the_machine_is_forgotten(reason: str, tried: bool) -> None:
    assert deserves_another_try(LeftOut("x", reason), 120.0) is tried


def test_another_backbone_is_refused(whole: Path, drawn: Path) -> None:
    before = content(whole)
    with pytest.raises(StoreError, match=r"holds features of demo-clip with random weights .* cannot be mixed"):
        run(drawn, seeded_backbone(1), whole)
    assert content(whole) == before


def test_a_full_disk_is_a_sentence_and_what_is_there_stays(
    whole: Path, drawn: Path, backbone: Backbone, tmp_path: Path, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    fsync, calls = os.fsync, []

    def full(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) > 6:
            raise OSError(28, "No space left on device")
        fsync(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(files.os, "fsync", full)
        with pytest.raises(RunFailed, match="No space left on device; free space"):
            run(drawn, backbone, tmp_path / "store")
    assert not list((tmp_path / "store").glob("*.tmp"))
    run(drawn, backbone, tmp_path / "store")
    assert content(tmp_path / "store") == content(whole)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("at", [1, 5])
def test_a_signal_keeps_what_is_extracted_and_says_so(
    whole: Path, drawn: Path, backbone: Backbone, tmp_path: Path, quick: None, number: int, at: int
) -> None:
    def interrupt(what: str, done: int, *more: int) -> None:
        if what == "clips" and done == at:
            os.kill(os.getpid(), number)

    store = tmp_path / "store"
    with pytest.raises(RunFailed, match=r"^interrupted; what is extracted is kept; go on with the same command"):
        run(drawn, backbone, store, progress=interrupt)
    assert not list(store.glob(".*.tmp"))
    report = run(drawn, backbone, store)
    assert report.clips_kept == (3 if at == 5 else 0)
    assert content(store) == content(whole)


def test_a_file_that_may_not_grow_is_the_same_as_a_full_disk(
    whole: Path, drawn: Path, backbone: Backbone, tmp_path: Path, quick: None
) -> None:
    """The kernel itself cuts the write of the first shard short."""
    store = tmp_path / "store"
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 11, hard))
    try:
        with pytest.raises(RunFailed, match=r"cannot write .*frames-00000\.safetensors: File too large"):
            run(drawn, backbone, store)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not list(store.glob(".*.tmp"))
    run(drawn, backbone, store)
    assert content(store) == content(whole)


def test_a_place_that_cannot_be_written(drawn: Path, backbone: Backbone, tmp_path: Path, quick: None) -> None:
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file", tmp_path / "file" / "store", Path("/proc/nobody/store")):
        with pytest.raises((RunFailed, StoreError), match=str(place)):
            run(drawn, backbone, place)


@pytest.mark.real
def test_real_clips_as_their_users_have_them(
    real_data: Path, backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """14 of the 10,000 clips of MSR-VTT are there; the others are listed and counted, not fatal."""
    from calmctl.data.registry import load_dataset

    monkeypatch.undo()  # shards and batches as they really are
    data = load_dataset("msrvtt", real_data, protocol="full")
    report = extract(data, backbone, tmp_path / "store")
    assert (report.clips_extracted, report.undecodable, len(report.missing)) == (14, (), 10_000 - 14)
    store = FeatureStore.open(tmp_path / "store")
    assert store.frames(store.ids).shape == (14, 12, backbone.dim)
    splits = {name: store.split(name) for name in store.splits}
    assert {name: len(split.ids) for name, split in splits.items() if split.ids} == {"train": 12, "test": 2}
    assert all(len(split.captions) == 20 * len(split.ids) for split in splits.values())
    assert extract(data, backbone, tmp_path / "store").clips_extracted == 0


# --- whose features they are -----------------------------------------------------------------------------


def folder_of(drawn: Path, folder: Path, names: str) -> Path:
    """Some clips of `drawn` under the names a, b, ..."""
    folder.mkdir(parents=True)
    for name, number in zip("abcde", names, strict=False):
        shutil.copy2(drawn / f"clip{number}.mp4", folder / f"{name}.mp4")
    return folder


def extracted(folder: Path, backbone: Backbone, store: Path, **options: Any) -> ExtractReport:
    return extract(load_dataset("folder", folder), backbone, store, n_frames=F, workers=1, **options)


@pytest.mark.parametrize("recorded", [True, False], ids=["recorded", "of before"])
def test_a_second_folder_of_the_same_name_is_refused(
    drawn: Path, backbone: Backbone, tmp_path: Path, quick: None, recorded: bool
) -> None:
    one = folder_of(drawn, tmp_path / "one" / "videos", "0125")
    other = folder_of(drawn, tmp_path / "other" / "videos", "4")
    store = tmp_path / "store"
    extracted(one, backbone, store)
    assert str(tmp_path) not in (store / ".origin").read_text()
    if not recorded:
        (store / ".origin").unlink()
    before = content(store)
    with pytest.raises(StoreError, match=r"features of another folder than .*other/videos: of its 4 clips 0 are"):
        extracted(other, backbone, store)
    # One that shares most clips, too: the features of the one that it does not have would go.
    most = folder_of(drawn, tmp_path / "most" / "videos", "0126")
    with pytest.raises(StoreError, match=r"features of another folder than .*most/videos: of its 4 clips 3 are"):
        extracted(most, backbone, store)
    assert content(store) == before
    assert extracted(one, backbone, store).clips_kept == 4


def test_a_folder_that_was_moved_or_linked_is_the_same_one(
    drawn: Path, backbone: Backbone, tmp_path: Path, quick: None
) -> None:
    store, folder = tmp_path / "store", folder_of(drawn, tmp_path / "videos", "0125")
    extracted(folder, backbone, store)
    (tmp_path / "link").symlink_to("videos")
    assert extracted(tmp_path / "link", backbone, store).clips_kept == 4
    moved = folder.rename(tmp_path / "moved")
    assert extracted(moved, backbone, store).clips_kept == 4
    for clip in moved.iterdir():  # in its own place all of a folder may change
        write_clip(clip, ord(clip.stem))
    assert extracted(moved, backbone, store).clips_extracted == 4


def test_parts_of_one_folder_merge_with_its_mark(drawn: Path, backbone: Backbone, tmp_path: Path, quick: None) -> None:
    folder = folder_of(drawn, tmp_path / "videos", "01256")
    extracted(folder, backbone, tmp_path / "whole")
    for part in (1, 2):
        extracted(folder, backbone, tmp_path / f"part{part}", shard=(part, 2))
    merge_stores([tmp_path / "part1", tmp_path / "part2"], tmp_path / "merged")
    assert content(tmp_path / "merged") == content(tmp_path / "whole")


def test_another_clip_of_the_same_size_and_time_is_noticed(
    drawn: Path, backbone: Backbone, tmp_path: Path, quick: None
) -> None:
    folder = folder_of(drawn, tmp_path / "videos", "0125")
    extracted(folder, backbone, tmp_path / "store")
    clip = folder / "a.mp4"
    before, other = clip.stat(), (drawn / "clip4.mp4").read_bytes()
    size = max(before.st_size, len(other))
    clip.write_bytes(clip.read_bytes().ljust(size, b"\0"))  # padded to one size; decoders do not mind
    os.utime(clip, ns=(1, 1))
    extracted(folder, backbone, tmp_path / "store")
    clip.write_bytes(other.ljust(size, b"\0"))
    os.utime(clip, ns=(1, 1))
    report = extracted(folder, backbone, tmp_path / "store")
    assert report.redone == ("frames-00000.safetensors has a clip whose file has changed (a)",)


# --- two that begin one store ----------------------------------------------------------------------------

BEGINNING = """
import sys, time
from pathlib import Path
import torch
from calmctl.store import writer as store_writer
from calmctl.samples import Clip, Dataset, Split
from calmctl.store.format import Header
from calmctl.errors import StoreError

path, name = Path(sys.argv[1]), sys.argv[2]
look = store_writer._require_vacant
def both_have_looked(folder):
    look(folder)
    (path.parent / name).touch()
    until = time.monotonic() + 20
    while len(list(path.parent.glob("look*"))) < 2 and time.monotonic() < until:
        time.sleep(0.01)
store_writer._require_vacant = both_have_looked
try:
    with store_writer.StoreWriter.create(path, Header(dataset="folder", backbone={"dim": 4}, n_frames=2)) as store:
        store.plan(Dataset("folder", "", {"test": Split("test", (Clip("a", Path("a")),), (), ())}))
        store.add_frames(0, torch.ones(1, 2, 4), {}, [])
except StoreError as fault:
    sys.exit(str(fault))
"""


def test_two_that_begin_a_store_together_lose_nothing(tmp_path: Path, warm_python: Callable[..., list[str]]) -> None:
    command = [*warm_python(), "-c", BEGINNING, str(tmp_path / "store")]
    both = [subprocess.Popen([*command, f"look{n}"], stderr=subprocess.PIPE, text=True) for n in range(2)]
    told = [each.communicate()[1] for each in both]
    assert 0 in [each.returncode for each in both], told
    assert all(not text or "another process is extracting into" in text for text in told), told
    assert FeatureStore.open(tmp_path / "store").ids == ("a",)


def test_a_foreign_byte_in_the_log_fails_nothing(drawn: Path, backbone: Backbone, tmp_path: Path, quick: None) -> None:
    run(drawn, backbone, tmp_path / "store")
    log = tmp_path / "store" / LOG
    log.write_bytes(log.read_bytes() + b"caf\xe9")
    run(drawn, backbone, tmp_path / "store")
    assert [line[:1] for line in log.read_bytes().splitlines()] == [b"{", b"c", b"{"]
