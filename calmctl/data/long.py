"""How long files are and when they begin, told by processes of their own; how many parts of one are looked at."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from calmctl.data.inspection import inspect
from calmctl.data.samples import Clip
from calmctl.data.workers import TIMEOUT_S, run_isolated
from calmctl.errors import VideoError

MOST_PARTS = 250_000
"""Windows or segments of one file (our choice): 69 hours of one a second."""


class Extent(NamedTuple):
    """Seconds from a video's first frame to the end of its last, and when the first is shown by the file's clock."""

    length_s: float
    begins_s: float


def video_extent(path: Path) -> Extent:
    """The extent of one video. Raises `VideoError`."""
    ((_, found),) = measure([Clip(str(path), path)], workers=1)
    if isinstance(found, VideoError):
        raise VideoError(f"{path}: {found}")
    return found


def measure(clips: Iterable[Clip], *, workers: int | None = None) -> Iterator[tuple[Clip, Extent | VideoError]]:
    """The extent of every clip's file, or why it has none."""
    for clip, found in run_isolated(_extent, clips, workers=workers, timeout_s=TIMEOUT_S):
        if isinstance(found, VideoError):
            yield clip, found
            continue
        told = found.tolist() if found.dtype == np.float64 and found.shape == (2,) else []
        # What a decoder says that a file has taken over is checked like the file.
        fits = len(told) == 2 and all(map(is_length, told))
        yield clip, Extent(*told) if fits else VideoError("its length is no number of seconds")


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
