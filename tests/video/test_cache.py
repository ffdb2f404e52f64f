"""Frames kept on disk: those of the video and no others, whatever happened to the files and whoever was killed."""

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from calmctl.errors import BadInput, RunFailed, VideoError
from calmctl.samples import Clip
from calmctl.video import cache as module
from calmctl.video.cache import HOW, CachedReader, CacheFolder, FrameCache, KeptFrames
from calmctl.video.frames import read_frames
from calmctl.video.pixels import FrameReader, FrameResize

RESIZED = FrameReader(3, FrameResize(32))
CROPPED = RESIZED.augmented((7, 0, 1), flip=True)
SHRUNK = RESIZED.augmented((7, 0, 1), flip=True, short_side=24)


@pytest.fixture(scope="module")
def drawn(tiny_world: Path) -> list[Path]:
    """Small square videos."""
    return sorted(tiny_world.rglob("*.mp4"))[:6]


@pytest.fixture
def clips(drawn: list[Path], tmp_path: Path) -> list[Clip]:
    """Copies of them, with a folder beside for what is kept."""
    folder = tmp_path / "data"
    folder.mkdir()
    return [Clip(path.stem, Path(shutil.copy(path, folder))) for path in drawn]


def read(cache: FrameCache, reader: FrameReader, clip: Clip, keeps: bool = True) -> tuple[np.ndarray, str, int]:
    """What a worker would send: the frames, how they came, and how many bytes were written."""
    frames, event = CachedReader(cache, reader, keeps)(clip)
    assert frames is not None and event is not None and not isinstance(frames, VideoError)
    assert not isinstance(event, VideoError)
    return frames, HOW[int(event[0])], int(event[1])


@pytest.mark.parametrize("reader", [RESIZED, CROPPED, SHRUNK])
def test_kept_frames_are_those_of_the_video(
    clips: list[Clip], tmp_path: Path, reader: FrameReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, expected = FrameCache.of(tmp_path / "kept", reader), reader(clips[0])
    frames, how, written = read(cache, reader, clips[0])
    assert how == "absent" and written == cache.path(clips[0]).stat().st_size
    np.testing.assert_array_equal(frames, expected)
    monkeypatch.setattr(FrameCache, "decode", None)  # nobody decodes any more
    frames, how, written = read(cache, reader, clips[0])
    assert (how, written) == ("read", 0)
    np.testing.assert_array_equal(frames, expected)
    assert len(list((tmp_path / "kept").rglob("*.frames"))) == 1


def test_every_pair_has_a_crop_of_its_own_from_one_entry(clips: list[Clip], tmp_path: Path) -> None:
    cache = FrameCache.of(tmp_path, CROPPED)
    found = []
    for place in range(3):
        reader = RESIZED.augmented((7, 0, place), flip=True)
        assert FrameCache.of(tmp_path, reader) == cache
        frames, how, _ = read(cache, reader, clips[0])
        assert how == ("read" if place else "absent")
        np.testing.assert_array_equal(frames, reader(clips[0]))
        found.append(frames)
    assert not any(np.array_equal(found[0], other) for other in found[1:])


def test_what_decides_the_frames_decides_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    readers = [RESIZED, CROPPED, SHRUNK, FrameReader(4, FrameResize(32)), FrameReader(3, FrameResize(32, "squash"))]
    ways = {FrameCache.of(tmp_path, reader).way for reader in readers}
    monkeypatch.setattr(module, "installed_version", lambda package: "another")
    ways.add(FrameCache.of(tmp_path, RESIZED).way)
    assert len(ways) == 6


def test_windows_of_a_file_have_frames_of_their_own(clips: list[Clip], tmp_path: Path) -> None:
    cache = FrameCache.of(tmp_path, RESIZED)
    windows = [Clip(str(end), clips[0].path, start, end) for start, end in ((0.0, 0.5), (0.5, 1.0))]
    for _ in range(2):
        for clip in (*windows, clips[0]):
            np.testing.assert_array_equal(read(cache, RESIZED, clip)[0], RESIZED(clip))
    assert len({cache.path(clip) for clip in (*windows, clips[0])}) == 3


def _flipped(place: float) -> Any:
    def damage(content: bytes) -> bytes:
        at = int(place * (len(content) - 1))
        return content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]

    return damage


@pytest.mark.parametrize(
    "damage",
    [
        *(_flipped(place) for place in (0.0, 0.005, 0.01, 0.5, 1.0)),
        lambda content: content[:-1],
        lambda content: content + b"\0",
        lambda content: b"",
        lambda content: b"[" * 100_000,
        lambda content: b"[]\n" + content,
        lambda content: content.replace(b"[3, 32, 32, 3]", b"[3, 32, 96, 1]"),
    ],
)
def test_a_damaged_entry_is_noticed_and_made_again(clips: list[Clip], tmp_path: Path, damage: Any) -> None:
    cache = FrameCache.of(tmp_path, RESIZED)
    read(cache, RESIZED, clips[0])
    path = cache.path(clips[0])
    sound = path.read_bytes()
    path.write_bytes(damage(sound))
    frames, how, written = read(cache, RESIZED, clips[0])
    assert how == "damaged" and written == len(sound) and path.read_bytes() == sound
    np.testing.assert_array_equal(frames, RESIZED(clips[0]))


@pytest.mark.parametrize(
    "shape", [[3, -1, 32, 3], [3, 10**30, 1, 3], [3], "3323", [3, 3072, 1], [3, 32, 32, 3.0], [1, 96, 32, 3]]
)
def test_an_entry_of_a_stranger_with_a_right_digest_is_not_believed(
    clips: list[Clip], tmp_path: Path, shape: object
) -> None:
    cache = FrameCache.of(tmp_path, RESIZED)
    pixels, made_of = bytes(3 * 32 * 32 * 3), module.stamp(clips[0].path)
    header = {"stamp": made_of, "shape": shape, "sha256": module._digest(made_of, shape, memoryview(pixels))}
    cache.path(clips[0]).parent.mkdir(parents=True)
    cache.path(clips[0]).write_bytes(json.dumps(header).encode() + b"\n" + pixels)
    frames, how, _ = read(cache, RESIZED, clips[0])
    assert how == "damaged"
    np.testing.assert_array_equal(frames, RESIZED(clips[0]))


def test_a_changed_video_is_decoded_again_and_its_entry_replaced(clips: list[Clip], tmp_path: Path) -> None:
    cache = FrameCache.of(tmp_path / "kept", RESIZED)
    first, other = clips[:2]
    before = read(cache, RESIZED, first)[0]
    status = first.path.stat()
    first.path.write_bytes(other.path.read_bytes())
    os.utime(first.path, ns=(status.st_atime_ns, status.st_mtime_ns))  # no clock tells
    frames, how, _ = read(cache, RESIZED, first)
    assert how == "changed" and not np.array_equal(frames, before)
    np.testing.assert_array_equal(frames, RESIZED(other))
    assert read(cache, RESIZED, first)[1] == "read"
    assert len(list((tmp_path / "kept").rglob("*.frames"))) == 1


def test_a_video_that_is_written_to_while_it_is_decoded_is_not_kept(
    clips: list[Clip], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decode = FrameCache.decode

    def and_touch(cache: FrameCache, clip: Clip) -> np.ndarray:
        frames = decode(cache, clip)
        os.utime(clip.path, ns=(1, 1))
        return frames

    monkeypatch.setattr(FrameCache, "decode", and_touch)
    cache = FrameCache.of(tmp_path / "kept", RESIZED)
    assert read(cache, RESIZED, clips[0])[1:] == ("absent", 0) and not cache.path(clips[0]).exists()


def test_data_that_move_together_with_the_cache_stay_known(clips: list[Clip], tmp_path: Path) -> None:
    reader = CROPPED
    read(FrameCache.of(tmp_path / "data/.frames", reader), reader, clips[0])
    (tmp_path / "data").rename(tmp_path / "moved")
    clip = Clip(clips[0].id, tmp_path / "moved" / clips[0].path.name)
    assert read(FrameCache.of(tmp_path / "moved/.frames", reader), reader, clip)[1] == "read"


def test_what_cannot_be_kept_is_read_all_the_same(
    clips: list[Clip], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = CROPPED(clips[0])
    cache = FrameCache.of(tmp_path / "kept", CROPPED)

    def full(path: Path, write: object) -> None:
        raise RunFailed("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(module, "write_atomic", full)
        frames, *how = read(cache, CROPPED, clips[0])
        assert how == ["absent", 0]
        np.testing.assert_array_equal(frames, expected)
    with monkeypatch.context() as patch:
        patch.setattr(module, "MOST_BYTES", read_frames(clips[0], 3).nbytes - 1)
        frames, *how = read(cache, CROPPED, clips[0])
        assert how == ["absent", 0]
        np.testing.assert_array_equal(frames, expected)
    with pytest.raises(VideoError, match="missing"):
        read(cache, CROPPED, Clip("gone", tmp_path / "gone.mp4"))
    assert not (tmp_path / "kept").exists()


WRITER = """
import os, signal, sys
from pathlib import Path
from calmctl.samples import Clip
from calmctl.video.cache import CachedReader, FrameCache
from calmctl.video.pixels import FrameReader, FrameResize

fatal = sys.argv[1]
function, calls = getattr(os, fatal), 0

def fall(*arguments):
    global calls
    calls += 1
    if calls == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return function(*arguments)

setattr(os, fatal, fall)
reader = FrameReader(3, FrameResize(32))
cache = FrameCache.of(Path(sys.argv[2]), reader)
for path in sys.argv[3:]:
    list(CachedReader(cache, reader)(Clip(path, Path(path))))
"""


@pytest.mark.parametrize("fatal", ["fsync", "replace"])
def test_a_kill_between_two_writes_leaves_whole_entries(clips: list[Clip], tmp_path: Path, fatal: str) -> None:
    kept = tmp_path / "kept"
    arguments = [fatal, str(kept), *(str(clip.path) for clip in clips[:3])]
    killed = subprocess.run([sys.executable, "-c", WRITER, *arguments], check=False)
    assert killed.returncode == -signal.SIGKILL
    cache = FrameCache.of(kept, RESIZED)
    assert [cache.path(clip).exists() for clip in clips[:3]] == [True, False, False]
    (unfinished,) = kept.rglob(".*.tmp")
    with unfinished.open("rb") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        assert [read(cache, RESIZED, clip)[1] for clip in clips[:3]] == ["read", "absent", "absent"]
        CacheFolder(kept, 1 << 30).begin()
        assert unfinished.exists(), "somebody is writing it"
    CacheFolder(kept, 1 << 30).begin()
    assert not unfinished.exists()
    assert [read(cache, RESIZED, clip)[1] for clip in clips[:3]] == ["read"] * 3


FILLER = """
import sys
from pathlib import Path
from calmctl.samples import Clip
from calmctl.video.cache import CacheFolder, KeptFrames
from calmctl.video.pixels import FrameReader, FrameResize

reader = FrameReader(3, FrameResize(32))
folder = CacheFolder(Path(sys.argv[1]), 1 << 30)
folder.begin()
clips = [Clip(path, Path(path)) for path in sys.argv[2:]]
assert KeptFrames(folder, reader).fill(clips, reader, "clips", workers=1) == {}
assert folder.counts["damaged"] == folder.counts["unkept"] == 0, folder.counts
"""


def test_two_processes_fill_one_folder(clips: list[Clip], tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    arguments = [sys.executable, "-c", FILLER, str(kept), *(str(clip.path) for clip in clips)]
    both = [subprocess.Popen(arguments) for _ in range(2)]
    assert [process.wait() for process in both] == [0, 0]
    cache = FrameCache.of(kept, RESIZED)
    for clip in clips:
        frames, how, _ = read(cache, RESIZED, clip)
        assert how == "read"
        np.testing.assert_array_equal(frames, RESIZED(clip))
    assert not list(kept.rglob(".*.tmp"))
    assert json.loads((kept / cache.way / "about.json").read_text())["done"] == {
        "FrameResize": {"size": 32, "mode": "shortest", "interpolation": "bicubic", "fill": 0}
    }


def test_workers_answer_in_order_and_what_happened_is_counted(clips: list[Clip], tmp_path: Path) -> None:
    broken = Clip("broken", tmp_path / "broken.mp4")
    broken.path.write_text("no video")
    # Twice in a row, as two captions of a clip may come.
    asked = [clips[0], clips[0], broken, clips[1], clips[0]]
    folder = CacheFolder(tmp_path / "kept", 1 << 30)
    folder.begin()
    kept = KeptFrames(folder, CROPPED)
    readers = [RESIZED.augmented((7, 0, place), flip=False) for place in range(len(asked))]
    found = list(kept.stream(zip(asked, readers, strict=True), workers=1))
    for clip, reader, result in zip(asked, readers, found, strict=True):
        if clip is broken:
            assert "not a video" in str(result)
        else:
            assert not isinstance(result, VideoError)
            np.testing.assert_array_equal(result, reader(clip))
    assert folder.counts == {"absent": 2, "read": 2, "unkept": 0} and folder.warnings() == []
    assert folder.used_bytes == CacheFolder(tmp_path / "kept", 1).used_bytes - _about(tmp_path / "kept")
    cache = FrameCache.of(folder.folder, CROPPED)
    cache.path(clips[0]).write_bytes(b"damaged")
    list(kept.stream([(clips[0], CROPPED)], workers=1))
    assert folder.warnings() == [f"{folder.folder}: the kept frames of 1 clip were damaged and decoded again"]
    assert folder.warnings() == []


def _about(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("about.json"))


def test_a_folder_holds_what_it_may_and_no_more(clips: list[Clip], tmp_path: Path) -> None:
    entry = 3 * 32 * 32 * 3 + 300
    folder = CacheFolder(tmp_path / "kept", 3 * entry)
    refused = r"6 clips of 3 frames take about 0\.1 MB more than the 0\.0 MB .*data\.cache_gb is 2\.8.*; raise that"
    with pytest.raises(BadInput, match=refused):
        folder.require_room([(RESIZED, clips)], workers=1)
    assert not folder.folder.exists()
    folder.begin()
    kept = KeptFrames(folder, RESIZED)
    assert kept.fill(clips, RESIZED, "clips", workers=1) == {}
    assert folder.counts["absent"] == 6 and 3 <= folder.counts["unkept"] <= 5, folder.counts
    assert folder.used_bytes <= folder.most_bytes and folder.full
    (warning,) = folder.warnings()
    assert "data.cache_gb is reached" in warning and "decoded again each time" in warning
    # What is there is read, though nothing more is kept.
    folder = CacheFolder(tmp_path / "kept", 1)
    KeptFrames(folder, RESIZED).fill(clips, RESIZED, "clips", workers=1)
    assert folder.counts["read"] >= 1 and folder.counts["unkept"] == folder.counts["absent"]


def test_room_is_measured_before_anything_is_kept(
    clips: list[Clip], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = CacheFolder(tmp_path / "kept", 1 << 30)
    said = folder.require_room([(CROPPED, clips), (RESIZED, clips[:1])], workers=1)
    need = 6 * read_frames(clips[0], 3).nbytes + 3 * 32 * 32 * 3  # whole frames, and one clip at input size
    assert said == f"7 clips of 3 frames in {folder.folder}: about {need / 1e6:.1f} MB to come, 0 there"
    assert not folder.folder.exists()
    monkeypatch.setattr(shutil, "disk_usage", lambda place: shutil._ntuple_diskusage(1000, 999, 1))  # type: ignore[attr-defined]
    with pytest.raises(BadInput, match=r"take about 0\.2 MB in .*its disk has 0\.0 MB left; free space"):
        folder.require_room([(CROPPED, clips)], workers=1)
    monkeypatch.undo()
    KeptFrames(folder, CROPPED).fill(clips, CROPPED, "clips", workers=1)
    assert folder.require_room([(CROPPED, clips)], workers=1).endswith("all of them there")


@pytest.mark.real
@pytest.mark.parametrize("short_side", [None, 256])
def test_kept_frames_of_real_clips_are_theirs(real_data: Path, tmp_path: Path, short_side: int | None) -> None:
    found = [path for suffix in ("mp4", "avi") for path in sorted(real_data.rglob(f"*.{suffix}"))[:2]]
    assert len(found) == 4
    reader = FrameReader(12, FrameResize(224)).augmented((1, 2, 3), flip=True, short_side=short_side)
    cache = FrameCache.of(tmp_path, reader)
    for path in found:
        expected = reader(Clip(path.stem, path))
        for how in ("absent", "read"):
            frames, came, _ = read(cache, reader, Clip(path.stem, path))
            assert came == how
            np.testing.assert_array_equal(frames, expected)
