"""Frames decoded once: kept on disk, a file a clip, for every epoch of every run that asks for the same ones.

A folder holds `WAY/XX/CLIP.frames`. WAY is a digest of what is done to every clip alike: how many frames, what is done
to them, and the versions of all that decodes and scales. CLIP is a digest of which file, and which window of it. The
file says which state of the video its frames were decoded from, and has a digest of all that is in it.

An entry is whole or not there, whoever is killed: it is written beside and renamed. Nobody locks anything: two
processes that decode one clip at the same time write the same bytes. An entry that is damaged, or whose video has
changed, is decoded again and replaced. So the folder may be deleted at any time, and copied.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
from collections import Counter
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from calmctl.errors import BadInput, RunFailed, VideoError
from calmctl.files import make_folder, read_regular, sha256_bytes, stamp, write_atomic, write_json
from calmctl.locks import remove_unfinished
from calmctl.runtime import installed_version
from calmctl.samples import Clip
from calmctl.video.pixels import FrameReader, FrameResize, Shrink
from calmctl.video.pool import TIMEOUT_S, run_answers, run_isolated
from calmctl.video.worker import Result
from calmctl.words import Progress, counted, watched

FORMAT = 1
"""Of an entry, and of the rule by which instants are chosen and frames are read: raised when either changes."""
MOST_BYTES = 1 << 30
"""An entry that would be larger is not kept, and its clip decoded each time (our choice)."""
SAMPLED = 8
"""Clips that are decoded to tell how much all of them will take (our choice)."""
_HEADER_BYTES = 4096

# --- entries: what a worker reads and writes ---------------------------------------------------------------


class _Unusable(Exception):
    """An entry cannot be used; the message is one of `Counts`' fields."""


class _TooLarge(Exception):
    """The frames of a clip are more than an entry may hold."""


@dataclass(frozen=True, slots=True)
class FrameCache:
    """The kept frames of one way of reading.

    Attributes:
        root: The folder of all ways.
        way: Digest of this one.
        n_frames: Frames a clip, F.
        lasting: What was done to them before they were kept.
    """

    root: Path
    way: str
    n_frames: int
    lasting: FrameResize | Shrink

    @classmethod
    def of(cls, root: Path, reader: FrameReader) -> FrameCache:
        """The cache in `root`, which need not exist, of what `reader` does to every clip alike."""
        way = sha256_bytes(json.dumps(_way(reader)).encode())[:16]
        return cls(Path(os.path.abspath(root)), way, reader.n_frames, reader.lasting)

    def path(self, clip: Clip) -> Path:
        """Where the clip's entry is, if it is there."""
        place = os.path.abspath(clip.path)
        with suppress(ValueError):  # another drive, on Windows
            place = os.path.relpath(place, self.root)  # data that are moved together with the cache stay known
        name = sha256_bytes(json.dumps([place, float(clip.start_s), clip.end_s]).encode())[:32]
        return self.root / self.way / name[:2] / f"{name}.frames"

    def read(self, clip: Clip) -> np.ndarray:
        """The clip's frames [F, H, W, 3], read-only. Raises `_Unusable`."""
        try:
            now = stamp(clip.path)
        except OSError:
            raise _Unusable("absent") from None  # whoever reads the clip says why
        try:
            content = read_regular(self.path(clip), MOST_BYTES + _HEADER_BYTES)
        except FileNotFoundError:
            raise _Unusable("absent") from None
        except OSError:
            raise _Unusable("damaged") from None
        try:
            end = content.index(b"\n", 0, _HEADER_BYTES)
            header = json.loads(content[:end])
            made_of, shape, digest = header["stamp"], header["shape"], header["sha256"]
            pixels = memoryview(content)[end + 1 :]
            sound = digest == _digest(made_of, shape, pixels) and (shape[0], shape[3]) == (self.n_frames, 3)
            if not sound or min(shape) < 1:
                raise _Unusable("damaged")
            frames = np.frombuffer(pixels, np.uint8).reshape(shape)
        # A folder may come from a stranger, whose digests are right and whose shapes are anything.
        except (ValueError, LookupError, TypeError, OverflowError, RecursionError):
            raise _Unusable("damaged") from None
        if made_of != now:
            raise _Unusable("changed")
        return frames

    def decode(self, clip: Clip) -> np.ndarray:
        """The same frames from the video. Raises `VideoError`, and `_TooLarge` where they cannot be kept."""
        from calmctl.video.frames import read_frames

        def bounded(frames: np.ndarray) -> np.ndarray:
            done = self.lasting(frames)
            # Known at the first window: memory for all frames is asked for after it.
            if done[0].nbytes * self.n_frames > MOST_BYTES:
                raise _TooLarge
            return done

        return read_frames(clip, self.n_frames, bounded)

    def keep(self, clip: Clip, made_of: list[int], frames: np.ndarray) -> int:
        """Keep the frames that were decoded from the video of stamp `made_of`; the bytes written, 0 where none were."""
        frames = np.ascontiguousarray(frames)
        pixels, shape = frames.reshape(-1).data, list(frames.shape)
        digest = _digest(made_of, shape, pixels)
        header = {"calmctl_frames": FORMAT, "stamp": made_of, "shape": shape, "sha256": digest}
        line = json.dumps(header).encode() + b"\n"
        try:
            if stamp(clip.path) != made_of:  # written to while it was decoded: who knows what the frames are of
                return 0
            write_atomic(self.path(clip), lambda handle: (handle.write(line), handle.write(pixels)))
        except (OSError, RunFailed):  # a full disk, or a folder of somebody else's: told by who counts what was kept
            return 0
        return len(line) + frames.nbytes


def _digest(made_of: object, shape: object, pixels: memoryview) -> str:
    digest = hashlib.sha256(json.dumps([FORMAT, made_of, shape]).encode())
    digest.update(pixels)
    return digest.hexdigest()


def _way(reader: FrameReader) -> dict[str, object]:
    """All that decides what a clip's kept frames are, but the clip."""
    import av

    lasting = reader.lasting
    return {
        "format": FORMAT,
        "frames": reader.n_frames,
        "done": {type(lasting).__name__: asdict(lasting)},
        "ffmpeg": {name: list(number) for name, number in sorted(av.library_versions.items())},
        "packages": {name: installed_version(name) for name in ("av", "decord", "pillow")},
        "machine": platform.machine(),
    }


@dataclass(frozen=True, slots=True)
class CachedReader:
    """Reads a clip from the cache, else from its video, and keeps its frames then; a job of `run_isolated`.

    Attributes:
        cache: The cache.
        reader: What reads the clip; what it does beyond `FrameReader.lasting` is done behind the cache.
        keeps: Whether what was decoded may be kept.
    """

    cache: FrameCache
    reader: FrameReader
    keeps: bool = True

    def __call__(self, clip: Clip) -> Iterator[Result]:
        """The clip's frames, then `[how, bytes]` int64: a place in `HOW`, and what was written. Raises `VideoError`."""
        how, written = "read", 0
        try:
            frames = self._finished(self.cache.read(clip))
        except _Unusable as reason:
            how = str(reason)
            frames, written = self._decoded(clip)
        # The frames first: a worker that dies in between is asked again, and what came first is not sent twice.
        yield frames
        yield np.array([HOW.index(how), written], np.int64)

    def _decoded(self, clip: Clip) -> tuple[np.ndarray, int]:
        try:
            made_of = stamp(clip.path)
            frames = self.cache.decode(clip)
        except (_TooLarge, OSError):  # OSError: no file; the reader has words for it
            return self.reader(clip), 0
        return self._finished(frames), self.cache.keep(clip, made_of, frames) if self.keeps else 0

    def _finished(self, frames: np.ndarray) -> np.ndarray:
        # A resize is what was kept; a crop is drawn for each pair.
        return frames if self.reader.transform == self.cache.lasting else self.reader.transform(frames)


HOW = ("read", "absent", "changed", "damaged")
"""How a clip's frames came: from the cache; or by decoding, as there were none, of another video, or damaged ones."""


# --- the folder: what the process that trains knows of it ---------------------------------------------------


class CacheFolder:
    """A folder of kept frames, how much it may hold, and what came of it.

    Attributes:
        folder: Where.
        most_bytes: What it may hold, frames of other recipes and data included.
        counts: Clips by `HOW` they came, and "unkept": decoded and not kept.
        full: Whether something was not kept because of `most_bytes`.
        used_bytes: What it held at first, and what this process added.
        expected_bytes: Of an entry, by the way that it is read, as far as `require_room` looked.
    """

    def __init__(self, folder: Path, most_bytes: int) -> None:
        """Look how much is in `folder`, which need not exist."""
        self.folder, self.most_bytes = folder, most_bytes
        self.counts: Counter[str] = Counter()
        self.full = False
        self.used_bytes = _size(folder)
        self.expected_bytes: dict[str, int] = {}
        self._reported: Counter[str] = Counter()

    def warnings(self) -> list[str]:
        """What is wrong since the last call, in sentences."""
        new = self.counts - self._reported
        self._reported = Counter(self.counts)
        warnings = []
        if new["damaged"]:
            warnings.append(
                f"{self.folder}: the kept frames of {counted(new['damaged'], 'clip')} were damaged and decoded again"
            )
        if new["unkept"]:
            why = "data.cache_gb is reached" if self.full else "a full disk, a read-only folder, or a clip too large"
            warnings.append(
                f"{self.folder}: {counted(new['unkept'], 'time')} a clip was decoded and its frames not kept ({why}); "
                "it is decoded again each time"
            )
        return warnings

    def require_room(self, splits: Iterable[tuple[FrameReader, Sequence[Clip]]], *, workers: int | None) -> str:
        """How much the frames of these clips take, in words, before the first of them is kept.

        Raises:
            BadInput: They do not fit into `most_bytes`, or on the disk.
        """
        n_clips = n_there = n_frames = 0
        need = 0.0
        ways = "name another folder with data.cache_folder, or set data.cache=none"
        for reader, clips in splits:
            cache = FrameCache.of(self.folder, reader)
            missing = [clip for clip in clips if not cache.path(clip).exists()]
            each = _bytes_a_clip(cache, reader, missing, workers)
            self.expected_bytes[cache.way] = int(each)
            need += len(missing) * each
            n_clips, n_there, n_frames = n_clips + len(clips), n_there + len(clips) - len(missing), reader.n_frames
            if isinstance(cache.lasting, Shrink):
                ways = f"set data.short_side={(cache.lasting.side or 257) - 1} or less, {ways}"
        what = f"{counted(n_clips, 'clip')} of {counted(n_frames, 'frame')}"
        if self.used_bytes + need > self.most_bytes:
            raise BadInput(
                f"data.cache: disk: {what} take about {in_gb(need)} more than the {in_gb(self.used_bytes)} that "
                f"{self.folder} holds, and data.cache_gb is {self.most_bytes / 1e9:g}; raise that, delete the folder "
                f"where frames of others fill it, {ways}"
            )
        free = shutil.disk_usage(_existing(self.folder)).free
        if need > free:
            raise BadInput(
                f"data.cache: disk: {what} take about {in_gb(need)} in {self.folder}, and its disk has {in_gb(free)} "
                f"left; free space, {ways}"
            )
        there = "all of them there" if n_there == n_clips else f"about {in_gb(need)} to come, {n_there:,} there"
        return f"{what} in {self.folder}: {there}"

    def begin(self) -> None:
        """Make the folder, and remove what killed processes left half-written. Raises `RunFailed`."""
        make_folder(self.folder)
        for place in (*self.folder.glob("*"), *self.folder.glob("*/*")):
            remove_unfinished(place)


def _bytes_a_clip(cache: FrameCache, reader: FrameReader, missing: Sequence[Clip], workers: int | None) -> float:
    """Of the frames that are kept, the mean: known where they have one size, else of some clips that are decoded."""
    if isinstance(cache.lasting, FrameResize):
        return float(np.prod(reader.shape))
    step = max(1, len(missing) // SAMPLED)
    some = run_isolated(cache.decode, missing[::step][:SAMPLED], workers=workers and min(workers, SAMPLED))
    sizes = [frames.nbytes for _, frames in some if not isinstance(frames, VideoError)]
    return float(np.mean(sizes)) if sizes else 0.0


class KeptFrames:
    """The clips of a training by one reader, through a cache; one process's view of it."""

    def __init__(self, folder: CacheFolder, reader: FrameReader) -> None:
        """What `reader` does to every clip alike is kept in `folder`."""
        self._folder, self._cache = folder, FrameCache.of(folder.folder, reader)
        self._asked, self._largest = 0, folder.expected_bytes.get(self._cache.way, 0)
        about = self._cache.root / self._cache.way / "about.json"
        if not about.exists():  # for people: what these frames are
            write_json(about, _way(reader))

    def stream(
        self,
        jobs: Iterable[tuple[Clip, FrameReader]],
        *,
        workers: int | None = None,
        timeout_s: float = TIMEOUT_S,
        ahead: int | None = None,
    ) -> Generator[np.ndarray | VideoError, None, None]:
        """What each clip's reader reads of it, in order, or why there is nothing; how they came is counted."""
        cached = ((clip, self._cached(reader)) for clip, reader in jobs)
        with closing(run_answers(_read, cached, workers, timeout_s, ahead)) as answered:
            for _, results in answered:
                frames = next(results, VideoError("the decoder gave nothing"))
                self._asked -= 1
                for each in results:
                    if isinstance(each, np.ndarray):  # and not the death of a worker that had done its work
                        self._count(HOW[int(each[0])], int(each[1]))
                yield frames

    def _cached(self, reader: FrameReader) -> CachedReader:
        folder, self._asked = self._folder, self._asked + 1
        # Whatever is asked for and not answered yet may come to be written.
        keeps = folder.used_bytes + self._asked * self._largest < folder.most_bytes
        folder.full = folder.full or not keeps
        return CachedReader(self._cache, reader, keeps)

    def _count(self, how: str, written: int) -> None:
        folder = self._folder
        folder.counts[how] += 1
        folder.counts["unkept"] += how != "read" and not written
        folder.used_bytes += written
        self._largest = max(self._largest, written)

    def fill(
        self,
        clips: Sequence[Clip],
        reader: FrameReader,
        what: str,
        *,
        workers: int | None = None,
        timeout_s: float = TIMEOUT_S,
        progress: Progress | None = None,
    ) -> dict[str, str]:
        """Decode and keep what is not there; the clips that cannot be decoded, with reasons."""
        results = self.stream(((clip, reader) for clip in clips), workers=workers, timeout_s=timeout_s)
        paired = zip(clips, watched(results, what, len(clips), progress), strict=True)
        return {clip.id: str(result) for clip, result in paired if isinstance(result, VideoError)}


def _read(item: tuple[Clip, CachedReader]) -> Iterator[Result]:
    clip, reader = item
    return reader(clip)


def in_gb(size: float) -> str:
    """Bytes for people, as disks are sold: "24.9 GB"."""
    return f"{size / 1e9:,.1f} GB" if size >= 1e9 else f"{size / 1e6:,.1f} MB"


def _size(folder: Path) -> int:
    """Bytes of all files below `folder`; 0 where there is none."""
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            with suppress(FileNotFoundError):  # being renamed by another process
                total += os.stat(os.path.join(parent, name)).st_size
    return total


def _existing(folder: Path) -> Path:
    folder = Path(os.path.abspath(folder))
    return next(place for place in (folder, *folder.parents) if place.exists())
