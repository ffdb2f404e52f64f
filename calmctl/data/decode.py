"""Frames of one clip, by time; the only door between video files and the rest of the package."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from calmctl.data.inspection import inspect
from calmctl.data.readers import read_with_decord, read_with_pyav, suits_decord
from calmctl.data.samples import Clip
from calmctl.data.sampling import frame_times


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


def read_frames(clip: Clip, n_frames: int) -> np.ndarray:
    """The frames on the screen at the centres of `n_frames` equal intervals of `clip`.

    A clip of fewer frames shows some of them at several instants, and they repeat.

    Args:
        clip: The file, and the window of it.
        n_frames: How many frames.

    Returns:
        RGB, uint8 [F, H, W, 3], upright.

    Raises:
        VideoError: The short reason why the clip cannot be decoded.
    """
    source = inspect(clip.path)
    times_s = frame_times(source.duration_s, n_frames, clip.start_s, clip.end_s)
    frames = read_with_decord(source, times_s) if suits_decord(source) else None
    return read_with_pyav(source, times_s) if frames is None else frames
