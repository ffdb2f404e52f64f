"""Frames of a long video at any instants, in a process of its own and with little memory."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from calmctl.data.inspection import inspect
from calmctl.data.instants import LONG_TIMEOUT_S, Transform, frame_windows
from calmctl.data.workers import TIMEOUT_S, run_isolated
from calmctl.errors import VideoError


def video_extent(path: Path) -> tuple[float, float]:
    """When the first frame is shown by the file's own clock, and the length from there, in seconds.

    Raises:
        VideoError: The video cannot be opened.
    """
    begins_s, duration_s = _isolated(_extent, path, TIMEOUT_S).tolist()
    return begins_s, duration_s


def frames_at(path: Path, times_s: np.ndarray, transform: Transform) -> np.ndarray:
    """The frames on the screen at some instants, in one pass over the file.

    Args:
        path: The video.
        times_s: Seconds from the first frame, ascending, [T].
        transform: Picklable; uint8 [n, H, W, 3] -> [n, ...] of one shape. Only what it makes is kept.

    Returns:
        [T, ...].

    Raises:
        VideoError: The video cannot be decoded, has crashed its decoder or takes too long.
    """
    return _isolated(partial(_read, times_s=times_s, transform=transform), path, LONG_TIMEOUT_S)


def _isolated(job: Callable[[Path], np.ndarray], path: Path, timeout_s: float) -> np.ndarray:
    ((_, found),) = run_isolated(job, [path], workers=1, timeout_s=timeout_s)
    if isinstance(found, VideoError):
        raise VideoError(f"{path}: {found}")
    return found


def _extent(path: Path) -> np.ndarray:
    source = inspect(path)
    return np.array([source.begins_s, source.duration_s])


def _read(path: Path, *, times_s: np.ndarray, transform: Transform) -> np.ndarray:
    return np.concatenate([transform(window) for window in frame_windows(inspect(path), times_s)])
