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
        size: Side S of the square result in pixels.
        mode: "shortest": the short side becomes S, the centre is kept; "longest": the long side becomes S,
            the rest is `fill`; "squash": both sides become S.
        interpolation: The filter, antialiased.
        fill: Grey value around a "longest" frame.
    """

    size: int
    mode: Literal["shortest", "longest", "squash"] = "shortest"
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    fill: int = 0

    def __call__(self, frames: np.ndarray) -> np.ndarray:
        """Resize uint8 RGB [F, H, W, 3] to uint8 [F, S, S, 3]."""
        return np.stack([self._resize(frame) for frame in frames])

    def _resize(self, frame: np.ndarray) -> np.ndarray:
        height, width = frame.shape[:2]
        scaled = self._scaled(height, width)
        if scaled != (height, width):
            image = Image.fromarray(frame).resize(scaled[::-1], _FILTERS[self.interpolation])
            frame = np.asarray(image)
        return frame if scaled == (self.size, self.size) else self._centred(frame)

    def _scaled(self, height: int, width: int) -> tuple[int, int]:
        """Height and width after scaling; open_clip truncates in one mode and rounds in the other."""
        size = self.size
        if self.mode == "squash":
            return size, size
        if self.mode == "longest":
            ratio = max(height, width) / size
            return round(height / ratio), round(width / ratio)
        long = int(size * max(height, width) / min(height, width))
        return (long, size) if width <= height else (size, long)

    def _centred(self, frame: np.ndarray) -> np.ndarray:
        """The middle S x S of `frame`, padded with `fill` where it is smaller."""
        canvas = np.full((self.size, self.size, 3), self.fill, dtype=np.uint8)
        source, target = zip(*(_overlap(length, self.size) for length in frame.shape[:2]), strict=True)
        canvas[target] = frame[source]
        return canvas


def _overlap(length: int, size: int) -> tuple[slice, slice]:
    """Where `length` pixels and a canvas of `size` pixels lie over each other when both are centred."""
    if length < size:
        before = (size - length) // 2
        return slice(0, length), slice(before, before + length)
    before = round((length - size) / 2)
    return slice(before, before + size), slice(0, size)
