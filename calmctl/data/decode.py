"""Frames of a video file, by time; the only door between video files and the rest of the package.

Memory does not grow with the number of frames asked for: whole frames go through a window of `WINDOW_BYTES`, and what a
transform makes of them is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from calmctl.data.inspection import Source, inspect
from calmctl.data.readers import read_with_decord, stream_with_pyav, suits_decord
from calmctl.data.samples import Clip
from calmctl.data.sampling import frame_times
from calmctl.data.worker import MEMORY_BYTES, in_gib
from calmctl.errors import VideoError

Transform = Callable[[np.ndarray], np.ndarray]

FRAMES_PER_WINDOW = 16
WINDOW_BYTES = 128 << 20
"""Whole frames held at once: 16, fewer where they are larger than 1080p (our choice)."""
OPEN_BYTES = 256 << 20
"""What the windows of one file that overlap may hold together; beyond that the file is passed over again."""

# Below this, too few whole frames fit into a window for decord's answers to be checked against one another.
_FEWEST_CHECKED = 4
# Seconds of video from one sign of life to the next: the way to a window may take longer than a clip may.
_SIGN_S = 10.0


@dataclass(frozen=True, slots=True)
class VideoInfo:
    """What a report says about a video file.

    Attributes:
        duration_s: From the first frame to the end of the last, in seconds.
        n_frames: How many frames are shown.
        frames_per_s: Their mean rate.
        width: Displayed width in pixels, after rotation.
        height: Displayed height in pixels, after rotation.
        codec: FFmpeg's name for the codec.
        reader: "decord", or "pyav" for what decord cannot open or gets wrong.
    """

    duration_s: float
    n_frames: int
    frames_per_s: float
    width: int
    height: int
    codec: str
    reader: str


def probe(path: Path) -> VideoInfo:
    """Describe a video file; raises `VideoError` with a short reason where it cannot be decoded."""
    source = inspect(path)
    n_frames = len(source.starts_s)
    return VideoInfo(
        duration_s=source.duration_s,
        n_frames=n_frames,
        frames_per_s=n_frames / source.duration_s if source.duration_s else 0.0,
        width=source.width,
        height=source.height,
        codec=source.codec,
        reader="decord" if suits_decord(source) else "pyav",
    )


def read_frames(clip: Clip, n_frames: int, transform: Transform | None = None) -> np.ndarray:
    """The frames on the screen at the centres of `n_frames` equal intervals of `clip`.

    A clip of fewer frames shows some of them at several instants, and they repeat.

    Args:
        clip: The file, and the window of it.
        n_frames: How many frames.
        transform: Makes [n, ...] of one shape of RGB, uint8 [n, H, W, 3], upright; None keeps whole frames.

    Returns:
        What the transform made of all frames, [F, ...].

    Raises:
        VideoError: The short reason why the clip cannot be decoded.
    """
    source = inspect(clip.path)
    times_s = frame_times(source.duration_s, n_frames, clip.start_s, clip.end_s)
    frames: np.ndarray | None = None
    done = 0
    for window in frame_windows(source, times_s):
        made = window if transform is None else transform(window)
        if frames is None:
            if len(made) == n_frames:
                return made
            frames = np.empty((n_frames, *made.shape[1:]), made.dtype)
        frames[done : done + len(made)] = made
        done += len(made)
    assert frames is not None
    return frames


def read_windows(
    clips: Sequence[Clip], n_frames: int, transform: Transform | None = None
) -> Iterator[np.ndarray | VideoError | None]:
    """The same for windows of one file, by their beginnings, in one pass over it: as `read_frames` of each, in order.

    Where a window holds nothing of the file, its place has the reason; None is a sign of life.

    Raises:
        VideoError: The file cannot be decoded, or not any further.
    """
    source = inspect(clips[0].path)
    times: list[np.ndarray | VideoError] = []
    for clip in clips:
        try:
            times.append(frame_times(source.duration_s, n_frames, clip.start_s, clip.end_s))
        except VideoError as fault:
            times.append(fault)
    blank = np.zeros((1, source.height, source.width, 3), np.uint8)
    window_bytes = n_frames * (blank if transform is None else transform(blank)).nbytes
    most = max(1, OPEN_BYTES // window_bytes)
    some = len(times) if _most_open(times) <= most else most
    for first in range(0, len(times), some):
        yield from _one_pass(source, times[first : first + some], transform)


def _most_open(times: Sequence[np.ndarray | VideoError]) -> int:
    """How many windows are under way at once, when all of them are read in one pass."""
    spans = [(each[0], each[-1]) for each in times if isinstance(each, np.ndarray)]
    begun = np.array([start for start, _ in spans])
    ended = np.sort([end for _, end in spans])
    return int(np.max(np.arange(1, len(spans) + 1) - np.searchsorted(ended, begun), initial=0))


def _one_pass(
    source: Source, times: Sequence[np.ndarray | VideoError], transform: Transform | None
) -> Iterator[np.ndarray | VideoError | None]:
    """Each window in its turn; those that others overlap are held until they are whole."""
    chosen = [number for number, each in enumerate(times) if isinstance(each, np.ndarray)]
    spans = [each for each in times if isinstance(each, np.ndarray)]
    every_s = np.concatenate([np.empty(0), *spans])
    signs_s = np.arange(0.0, every_s.max(initial=0.0), _SIGN_S)
    owners = np.repeat(np.array([-1, *chosen]), [len(signs_s), *map(len, spans)])
    every_s = np.concatenate([signs_s, every_s])
    order = np.argsort(every_s, kind="stable")
    under_way: dict[int, list[np.ndarray]] = {number: [] for number in chosen}
    next_one = 0
    shown = made = np.empty(0)
    for owner, frame in zip(owners[order], _streamed_frames(source, every_s[order]), strict=True):
        if owner < 0:
            yield None
            continue
        if frame is not shown:
            shown, made = frame, frame if transform is None else transform(frame[None])[0]
        under_way[owner].append(made)
        while next_one < len(times):
            reason = times[next_one]
            if isinstance(reason, np.ndarray):
                if len(under_way[next_one]) < len(reason):
                    break
                yield np.stack(under_way.pop(next_one))
            else:
                yield reason
            next_one += 1
    yield from (each for each in times[next_one:] if isinstance(each, VideoError))


def frame_windows(source: Source, times_s: np.ndarray) -> Iterator[np.ndarray]:
    """Whole frames [n, H, W, 3] of consecutive instants."""
    size = min(FRAMES_PER_WINDOW, max(1, WINDOW_BYTES // (source.width * source.height * 3)))
    windows = [times_s[i : i + size] for i in range(0, len(times_s), size)]
    by_decord = suits_decord(source) and size >= _FEWEST_CHECKED
    for done, window in enumerate(windows):
        with _within_memory(source):
            frames = read_with_decord(source, window) if by_decord else None
        if frames is None:  # from here on in one pass: PyAV would start from the beginning for every window
            yield from _streamed(source, np.concatenate(windows[done:]), size)
            return
        yield frames


def _streamed(source: Source, times_s: np.ndarray, size: int) -> Iterator[np.ndarray]:
    waiting: list[np.ndarray] = []
    for frame in _streamed_frames(source, times_s):
        waiting.append(frame)
        if len(waiting) == size:
            yield np.stack(waiting)
            waiting = []
    if waiting:
        yield np.stack(waiting)


def _streamed_frames(source: Source, times_s: np.ndarray) -> Iterator[np.ndarray]:
    with _within_memory(source):
        yield from stream_with_pyav(source, times_s)


@contextmanager
def _within_memory(source: Source) -> Iterator[None]:
    """What the decoders cannot hold is what the file claims, whatever machine this is."""
    try:
        yield
    except MemoryError:
        raise VideoError(
            f"{source.width} x {source.height} pixels in {len(source.starts_s):,} frames: "
            f"decoding takes more than {in_gib(MEMORY_BYTES)} of memory"
        ) from None
