"""How long files are, told by processes of their own; and how many parts of one are looked at."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from calmctl.data.inspection import inspect
from calmctl.data.samples import Clip
from calmctl.data.workers import TIMEOUT_S, run_isolated
from calmctl.errors import VideoError

MOST_PARTS = 250_000
"""Windows or segments of one file (our choice): 69 hours of one a second."""


def video_duration_s(path: Path) -> float:
    """Length of a video in seconds. Raises `VideoError`."""
    ((_, length),) = measure([Clip(str(path), path)], workers=1)
    if isinstance(length, VideoError):
        raise VideoError(f"{path}: {length}")
    return length


def measure(clips: Iterable[Clip], *, workers: int | None = None) -> Iterator[tuple[Clip, float | VideoError]]:
    """The length of every clip's file in seconds, or why it has none."""
    for clip, found in run_isolated(_duration, clips, workers=workers, timeout_s=TIMEOUT_S):
        if isinstance(found, VideoError):
            yield clip, found
            continue
        length = float(found.flat[0]) if found.dtype == np.float64 and found.size == 1 else math.nan
        yield clip, length if is_length(length) else VideoError("its length is no number of seconds")


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


def _duration(clip: Clip) -> np.ndarray:
    return np.array([inspect(clip.path).duration_s])
