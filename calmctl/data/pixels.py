"""Frames cut to a backbone's input size, without torch: what a decoding worker does to the frames it reads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import Image

_FILTERS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}


@dataclass(frozen=True, slots=True)
class FrameResize:
    """The resizing half of a backbone's evaluation transform, equal to open_clip's to the last bit.

    Workers that decode need no torch for it (which takes seconds to import and hundreds of megabytes), and
    uint8 frames of the input size are all that has to cross from process to process.

    Attributes:
        size: Side of the square result in pixels, or height and width of the result.
        mode: "shortest": the frame is scaled until it just covers the result, the centre is kept; "longest": until it
            just fits into it, the rest is `fill`; "squash": to the result's height and width.
        interpolation: The filter, antialiased.
        fill: Grey value around a "longest" frame.
    """

    size: int | tuple[int, int]
    mode: Literal["shortest", "longest", "squash"] = "shortest"
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    fill: int = 0

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width of the result."""
        return (self.size, self.size) if isinstance(self.size, int) else self.size

    def __call__(self, frames: np.ndarray) -> np.ndarray:
        """Resize uint8 RGB frames of any one size to uint8 [F, H, W, 3]."""
        return np.stack([self._resize(frame) for frame in frames])

    def _resize(self, frame: np.ndarray) -> np.ndarray:
        height, width = frame.shape[:2]
        scaled = self._scaled(height, width)
        if scaled != (height, width):
            image = Image.fromarray(frame).resize(scaled[::-1], _FILTERS[self.interpolation])
            frame = np.asarray(image)
        return frame if scaled == self.shape else self._centred(frame)

    def _scaled(self, height: int, width: int) -> tuple[int, int]:
        """Height and width after scaling; open_clip truncates where squares are covered and rounds elsewhere."""
        target_height, target_width = self.shape
        if self.mode == "squash":
            return self.shape
        if self.mode == "shortest" and target_height == target_width:
            long = int(target_width * max(height, width) / min(height, width))
            return (long, target_width) if width <= height else (target_height, long)
        ratios = height / target_height, width / target_width
        ratio = max(ratios) if self.mode == "longest" else min(ratios)
        return round(height / ratio), round(width / ratio)

    def _centred(self, frame: np.ndarray) -> np.ndarray:
        """The middle of `frame`, padded with `fill` where it is smaller than the result."""
        canvas = np.full((*self.shape, 3), self.fill, dtype=np.uint8)
        source, target = zip(*map(_overlap, frame.shape[:2], self.shape), strict=True)
        canvas[target] = frame[source]
        return canvas


def _overlap(length: int, size: int) -> tuple[slice, slice]:
    """Where `length` pixels and a canvas of `size` pixels lie over each other when both are centred."""
    if length < size:
        before = (size - length) // 2
        return slice(0, length), slice(before, before + length)
    before = round((length - size) / 2)
    return slice(before, before + size), slice(0, size)
