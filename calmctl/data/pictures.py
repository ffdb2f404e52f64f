"""Frames as small pictures for people, without torch: what a worker makes of them for a page."""

from __future__ import annotations

from io import BytesIO

import numpy as np
from PIL import Image

PICTURE_SIDE = 256


def shrink(frames: np.ndarray) -> np.ndarray:
    """Frames [n, H, W, 3] at `PICTURE_SIDE` on their long side; a multiple of their size where they are smaller."""
    height, width = frames.shape[1:3]
    side = max(height, width)
    if side <= PICTURE_SIDE:
        times = PICTURE_SIDE // side  # drawn worlds have 48 pixels: keep their edges when a page enlarges them
        return frames.repeat(times, axis=1).repeat(times, axis=2)
    size = (max(1, round(width * PICTURE_SIDE / side)), max(1, round(height * PICTURE_SIDE / side)))
    return np.stack([np.asarray(Image.fromarray(frame).resize(size, Image.Resampling.LANCZOS)) for frame in frames])


def jpeg(frame: np.ndarray) -> bytes:
    """A JPEG file of one frame [H, W, 3]."""
    buffer = BytesIO()
    Image.fromarray(frame).save(buffer, "JPEG", quality=82, optimize=True)
    return buffer.getvalue()
