"""Many instants of one video, however long: frames go through one small window of memory."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np

from calmctl.errors import VideoError
from calmctl.samples import Clip
from calmctl.video.frames import decoded_frames, frame_times, frame_windows
from calmctl.video.inspect import VideoFile, inspect
from calmctl.video.pool import TIMEOUT_S, run_isolated
from calmctl.video.worker import Transform

INSTANTS_PER_S, FEWEST_INSTANTS, MOST_INSTANTS = 2.0, 12, 240
LONG_TIMEOUT_S = 900.0


def instants_of(length_s: float) -> int:
    """How many instants a timeline has: two per second, at least 12 and at most 240 (our choice)."""
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

    Few whole frames are in memory at a time; what the transforms make of them is kept.

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
    ((_, result),) = run_isolated(job, [clip], workers=1, timeout_s=timeout_s)
    if isinstance(result, VideoError):
        raise VideoError(f"{clip.path}: {result}")
    # A worker hands over one array: the six travel as the bytes of an .npz, which holds nothing executable.
    with np.load(BytesIO(result.tobytes()), allow_pickle=False) as arrays:
        start_s, end_s = arrays["window_s"].tolist()
        return Sampled(start_s, end_s, **{name: arrays[name] for name in arrays.files if name != "window_s"})


def _sample(
    clip: Clip, *, n_frames: int, instants: int | None, transform: Transform, picture: Transform | None
) -> np.ndarray:
    source = inspect(clip.path)
    end_s = source.duration_s if clip.end_s is None else min(clip.end_s, source.duration_s)
    count = instants or instants_of(end_s - clip.start_s)
    times_s, instants_s = (frame_times(source.duration_s, n, clip.start_s, clip.end_s) for n in (n_frames, count))
    # Scoring and timeline share one pass: a long video is decoded once, however finely it is looked at.
    every_s = np.unique(np.concatenate([times_s, instants_s]))
    scored = np.isin(every_s, times_s)
    transformed, pictures, done = [], [], 0
    for window in frame_windows(source, every_s):
        transformed.append(transform(window))
        chosen = window[scored[done : done + len(window)]]
        if picture is not None and len(chosen):
            pictures.append(picture(chosen))
        done += len(window)
    frames = np.concatenate(transformed)
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


# How long files are and when they begin, told by processes of their own; how many parts of one are looked at.


MOST_PARTS = 250_000
"""Windows or segments of one file (our choice): 69 hours of one per second."""


class Extent(NamedTuple):
    """Seconds from a video's first frame to the end of its last, and when the first is shown by the file's clock."""

    length_s: float
    begins_s: float


def video_extent(path: Path) -> Extent:
    """The extent of one video. Raises `VideoError`."""
    ((_, extent),) = measure([Clip(str(path), path)], workers=1)
    if isinstance(extent, VideoError):
        raise VideoError(f"{path}: {extent}")
    return extent


def measure(clips: Iterable[Clip], *, workers: int | None = None) -> Iterator[tuple[Clip, Extent | VideoError]]:
    """The extent of every clip's file, or why it has none."""
    for clip, result in run_isolated(_extent, clips, workers=workers, timeout_s=TIMEOUT_S):
        if isinstance(result, VideoError):
            yield clip, result
            continue
        numbers = result.tolist() if result.dtype == np.float64 and result.shape == (2,) else []
        # What a decoder says that a file has taken over is checked like the file.
        fits = len(numbers) == 2 and all(map(is_length, numbers))
        yield clip, Extent(*numbers) if fits else VideoError("its length is no number of seconds")


def is_length(value: object) -> bool:
    """Whether a value, of a file of ours or of a decoder, can be a length in seconds."""
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < math.inf


def require_countable(duration_s: float, count: float, what: str) -> None:
    """Raise `VideoError` for a file that claims to be so long that its parts could not be listed or looked at."""
    if count > MOST_PARTS:
        raise VideoError(
            f"it claims {duration_s:,.0f} s, which is {count:,.0f} {what}, and at most {MOST_PARTS:,} of a file "
            "are looked at; take longer ones"
        )


def _extent(clip: Clip) -> np.ndarray:
    source = inspect(clip.path)
    return np.array([source.duration_s, source.begins_s])


# Where one shot ends and the next begins.


CUT = 0.26
"""How much pictures change where a shot ends, of 0 to 1: about what FFmpeg's own detector calls a cut (scdet: 10 %)."""
SHORTEST_SHOT_S = 1.0
"""Shots are at least so long (our choice): flashes and the frames of a fade are no shots of their own."""
_SEEN = 160, 90  # pixels in which pictures are compared (our choice)


class Shots(NamedTuple):
    """Where a video's shots end, in seconds from its first frame, and when that is shown by the file's own clock."""

    ends_s: list[float]
    begins_s: float


def find_shots(clips: Iterable[Clip], *, workers: int | None = None) -> Iterator[tuple[Clip, Shots | VideoError]]:
    """The shots of every clip's whole file, or why it has none; every frame is decoded, in processes of their own."""
    for clip, result in run_isolated(_shots, clips, workers=workers, timeout_s=LONG_TIMEOUT_S):
        if isinstance(result, VideoError):
            yield clip, result
            continue
        begins_s, *ends_s = result.tolist() if result.dtype == np.float64 and result.ndim == 1 else [math.nan]
        fits = bool(ends_s) and all(map(is_length, (begins_s, *ends_s))) and ends_s == sorted(ends_s)
        yield clip, Shots(ends_s, begins_s) if fits else VideoError("its shots are no numbers of seconds")


def _shots(clip: Clip) -> np.ndarray:
    source = inspect(clip.path)
    ends_s: list[float] = []
    for cut_s in _cuts(source):
        if cut_s - (ends_s[-1] if ends_s else 0.0) >= SHORTEST_SHOT_S:
            ends_s.append(cut_s)
    if ends_s and source.duration_s - ends_s[-1] < SHORTEST_SHOT_S:
        ends_s.pop()
    return np.array([source.begins_s, *ends_s, source.duration_s])


def _cuts(source: VideoFile) -> Iterator[float]:
    """When the pictures change at once, by FFmpeg's own measure: the part of `select` that its `scdet` shares."""
    graph = av.filter.Graph()
    width, height = _SEEN
    pictures = graph.add_buffer(width=width, height=height, format="rgb24", time_base=Fraction(1, 1000))
    chosen = graph.add("select", f"gt(scene,{CUT})")
    out = graph.add("buffersink")
    pictures.link_to(chosen)
    chosen.link_to(out)
    graph.configure()
    times_s: list[float] = []
    for time_s, frame in decoded_frames(source):
        picture: Any = frame.reformat(width, height, "rgb24")
        # Its number instead of its time: clocks of files may stand still, or be set back.
        picture.pts, picture.time_base = len(times_s), Fraction(1, 1000)
        times_s.append(time_s)
        graph.push(picture)
        while True:
            try:
                number = graph.pull().pts
            except (av.error.BlockingIOError, av.error.EOFError):  # no cut here
                break
            if number is not None and 0 < number < len(times_s):
                yield times_s[number]
