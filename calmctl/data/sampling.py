"""Which instants of a clip are looked at, and which frame is on the screen at each of them."""

from __future__ import annotations

import numpy as np

from calmctl.errors import VideoError

# A frame that starts at the very instant asked for is the one on the screen, whatever the rounding of floats.
_TICK_S = 1e-6


def frame_times(duration_s: float, n_frames: int, start_s: float = 0.0, end_s: float | None = None) -> np.ndarray:
    """Centres of `n_frames` equal intervals of a clip, or of a window of it.

    Released code samples by frame number; we sample by time, which is the same at a constant frame rate and
    right at a variable one (T-MASS's released settings; the choice of time is ours).

    Args:
        duration_s: Length of the clip in seconds.
        n_frames: How many instants.
        start_s: Start of the window in seconds from the first frame.
        end_s: End of the window, clipped to the duration; None for the clip's end.

    Returns:
        Seconds from the first frame, float64 [F].

    Raises:
        VideoError: When nothing of the clip lies inside the window.
    """
    if n_frames < 1:
        raise ValueError(f"n_frames must be at least 1, not {n_frames}")
    stop_s = duration_s if end_s is None else min(end_s, duration_s)
    if start_s < 0 or stop_s < start_s or (stop_s == start_s and start_s > 0):
        raise VideoError(
            f"the window from {start_s:g} s to {'the end' if end_s is None else f'{end_s:g} s'} "
            f"holds nothing of a clip of {duration_s:g} s"
        )
    return start_s + (stop_s - start_s) * (np.arange(n_frames, dtype=np.float64) + 0.5) / n_frames


def displayed_frames(starts_s: np.ndarray, times_s: np.ndarray) -> np.ndarray:
    """Index of the frame on the screen at each instant: the last that starts no later.

    Args:
        starts_s: Start of every frame in seconds, ascending, float64 [N].
        times_s: The instants, float64 [F].

    Returns:
        Indices into `starts_s`, int64 [F]; instants before the first frame get the first.
    """
    return np.maximum(np.searchsorted(starts_s, times_s + _TICK_S, side="right") - 1, 0)


def instants_before(start_s: float, times_s: np.ndarray) -> int:
    """How many of the ascending instants [F] come before a frame that starts at `start_s` is on the screen."""
    return int(np.searchsorted(times_s + _TICK_S, start_s, side="left"))
