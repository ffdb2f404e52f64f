"""Many instants of one video, however long: frames go through one small window of memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from io import BytesIO

import numpy as np

from calmctl.data.inspection import Source, inspect
from calmctl.data.readers import read_with_decord, stream_with_pyav, suits_decord
from calmctl.data.samples import Clip
from calmctl.data.sampling import frame_times
from calmctl.data.workers import run_isolated
from calmctl.errors import VideoError

FRAMES_PER_WINDOW = 16
"""Whole frames held at once: 100 MB at 1080p (our choice)."""

INSTANTS_PER_S, FEWEST_INSTANTS, MOST_INSTANTS = 2.0, 12, 240
LONG_TIMEOUT_S = 900.0

Transform = Callable[[np.ndarray], np.ndarray]


def instants_of(length_s: float) -> int:
    """How many instants a timeline has: two a second, at least 12 and at most 240 (our choice)."""
    return min(max(round(length_s * INSTANTS_PER_S), FEWEST_INSTANTS), MOST_INSTANTS)


@dataclass(frozen=True, slots=True)
class Sampled:
    """A video looked at twice: as scoring samples it, and at finer instants.

    Times are those of the file's own clock, which a player shows: the first frame may come after a while of sound.

    Attributes:
        start_s: Where the clip's window begins.
        end_s: Where it ends.
        times_s: The centres of F equal intervals, [F].
        frames: What was on the screen then, behind the transform, [F, ...].
        instants_s: The finer instants, [T].
        instants: What was on the screen then, behind the transform, [T, ...].
        pictures: The F frames behind the other transform, or empty.
    """

    start_s: float
    end_s: float
    times_s: np.ndarray
    frames: np.ndarray
    instants_s: np.ndarray
    instants: np.ndarray
    pictures: np.ndarray


def sample_video(
    clip: Clip,
    n_frames: int,
    *,
    instants: int | None = None,
    transform: Transform,
    picture: Transform | None = None,
    timeout_s: float = LONG_TIMEOUT_S,
) -> Sampled:
    """Read a clip in one pass, in a process of its own.

    Only `FRAMES_PER_WINDOW` whole frames are in memory at a time; what the transforms make of them is kept.

    Args:
        clip: The video, or a window of it.
        n_frames: F.
        instants: T; None for `instants_of` its length.
        transform: Picklable; uint8 [n, H, W, 3] -> [n, ...] of one shape, as `FrameResize` does.
        picture: The same for the F pictures; None for no pictures.
        timeout_s: Limit for all of it; an hour without an index is decoded from end to end.

    Raises:
        VideoError: The short reason why the video cannot be decoded, has crashed its decoder or takes too long.
    """
    job = partial(_sample, n_frames=n_frames, instants=instants, transform=transform, picture=picture)
    ((_, found),) = run_isolated(job, [clip], workers=1, timeout_s=timeout_s)
    if isinstance(found, VideoError):
        raise VideoError(f"{clip.path}: {found}")
    # A worker hands over one array: the six travel as the bytes of an .npz, which holds nothing executable.
    with np.load(BytesIO(found.tobytes()), allow_pickle=False) as arrays:
        start_s, end_s = arrays["window_s"].tolist()
        return Sampled(start_s, end_s, **{name: arrays[name] for name in arrays.files if name != "window_s"})


def _sample(
    clip: Clip, *, n_frames: int, instants: int | None, transform: Transform, picture: Transform | None
) -> np.ndarray:
    source = inspect(clip.path)
    end_s = source.duration_s if clip.end_s is None else min(clip.end_s, source.duration_s)
    count = instants or instants_of(end_s - clip.start_s)
    times_s, instants_s = (frame_times(source.duration_s, n, clip.start_s, clip.end_s) for n in (n_frames, count))
    every_s = np.unique(np.concatenate([times_s, instants_s]))
    scored = np.isin(every_s, times_s)
    seen, pictures, done = [], [], 0
    for window in frame_windows(source, every_s):
        seen.append(transform(window))
        chosen = window[scored[done : done + len(window)]]
        if picture is not None and len(chosen):
            pictures.append(picture(chosen))
        done += len(window)
    frames = np.concatenate(seen)
    buffer = BytesIO()
    np.savez(
        buffer,
        window_s=source.begins_s + np.array([clip.start_s, end_s]),
        times_s=source.begins_s + times_s,
        frames=frames[np.searchsorted(every_s, times_s)],
        instants_s=source.begins_s + instants_s,
        instants=frames[np.searchsorted(every_s, instants_s)],
        pictures=np.concatenate(pictures) if pictures else np.empty(0, np.uint8),
    )
    return np.frombuffer(buffer.getvalue(), np.uint8)


def frame_windows(source: Source, times_s: np.ndarray) -> Iterator[np.ndarray]:
    """Whole frames [n, H, W, 3] of consecutive instants."""
    windows = [times_s[i : i + FRAMES_PER_WINDOW] for i in range(0, len(times_s), FRAMES_PER_WINDOW)]
    for done, window in enumerate(windows):
        frames = read_with_decord(source, window) if suits_decord(source) else None
        if frames is None:  # from here on in one pass: PyAV would start from the beginning for every window
            yield from _streamed(source, np.concatenate(windows[done:]))
            return
        yield frames


def _streamed(source: Source, times_s: np.ndarray) -> Iterator[np.ndarray]:
    waiting: list[np.ndarray] = []
    for frame in stream_with_pyav(source, times_s):
        waiting.append(frame)
        if len(waiting) == FRAMES_PER_WINDOW:
            yield np.stack(waiting)
            waiting = []
    if waiting:
        yield np.stack(waiting)
