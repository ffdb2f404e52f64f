"""Frames cut to a backbone's input size, without torch: what a decoding worker does to the frames it reads."""

from __future__ import annotations

import math
from dataclasses import dataclass
from io import BytesIO
from typing import Literal

import numpy as np
from PIL import Image

from calmctl.samples import Clip

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

    def described(self) -> str:
        """In words, for a protocol card."""
        height, width = self.shape
        return f"{height} x {width}, {self.mode}, {self.interpolation}"

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


@dataclass(frozen=True, slots=True)
class Shrink:
    """Frames scaled down until their short side is `side`; smaller ones stay as they are, and with None all do.

    Bicubic with antialiasing, as the crops that come behind it. What was shrunk once does not change again.
    """

    side: int | None

    def __call__(self, frames: np.ndarray) -> np.ndarray:
        """Shrink uint8 RGB frames [F, H, W, 3] of one size."""
        height, width = frames.shape[1:3]
        if self.side is None or min(height, width) <= self.side:
            return frames
        ratio = self.side / min(height, width)
        size = (max(self.side, round(width * ratio)), max(self.side, round(height * ratio)))
        return np.stack([np.asarray(Image.fromarray(frame).resize(size, Image.Resampling.BICUBIC)) for frame in frames])


# Training augmentation: one random crop and flip per clip, without torch (T-MASS's released settings).


SCALE = (0.5, 1.0)
RATIO = (3 / 4, 4 / 3)


@dataclass(frozen=True, slots=True)
class CropFlip:
    """A crop of random area and aspect ratio, the same for all frames of a clip, resized to the input size.

    Area is 0.5 to 1 of the frame, the ratio 3/4 to 4/3 (log-uniform); where ten draws do not fit, the largest
    centred square is taken. Resizing is bicubic with antialiasing.

    Attributes:
        size: Side of the square result in pixels, or height and width of the result.
        flip: Whether to mirror half of the clips.
        seed: What the draw depends on, and nothing else does.
        short_side: `Shrink`'s, before the crop.
    """

    size: int | tuple[int, int]
    flip: bool
    seed: tuple[int, ...]
    short_side: int | None = None

    def __call__(self, frames: np.ndarray) -> np.ndarray:
        """Crop uint8 RGB frames of any one size to uint8 [F, H, W, 3]."""
        frames = Shrink(self.short_side)(frames)
        rng = np.random.default_rng(self.seed)
        top, left, height, width = _box(frames.shape[1], frames.shape[2], rng)
        mirrored = self.flip and rng.random() < 0.5
        box = (left, top, left + width, top + height)
        size = (self.size, self.size) if isinstance(self.size, int) else (self.size[1], self.size[0])
        resized = [
            np.asarray(Image.fromarray(frame).resize(size, Image.Resampling.BICUBIC, box=box)) for frame in frames
        ]
        cropped = np.stack(resized)
        return cropped[:, :, ::-1] if mirrored else cropped


def _box(height: int, width: int, rng: np.random.Generator) -> tuple[int, int, int, int]:
    for _ in range(10):
        area = height * width * rng.uniform(*SCALE)
        ratio = math.exp(rng.uniform(math.log(RATIO[0]), math.log(RATIO[1])))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            return int(rng.integers(0, height - h + 1)), int(rng.integers(0, width - w + 1)), h, w
    side = min(height, width)
    return (height - side) // 2, (width - side) // 2, side, side


# How a clip is read: as frames, here; as what a codec keeps of it, in `compressed`.


@dataclass(frozen=True, slots=True)
class FrameReader:
    """Reads a clip as `n_frames` frames, cut to size by `transform`: uint8 [F, S, S, 3].

    Attributes:
        transform: `FrameResize`, or `CropFlip` for one draw of the augmentation.
    """

    n_frames: int
    transform: FrameResize | CropFlip

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Of what it gives."""
        size = self.transform.size
        return self.n_frames, *((size, size) if isinstance(size, int) else size), 3

    @property
    def lasting(self) -> FrameResize | Shrink:
        """What it does to a clip each time alike, before any draw; applying it twice is applying it once."""
        return self.transform if isinstance(self.transform, FrameResize) else Shrink(self.transform.short_side)

    def augmented(self, seed: tuple[int, ...], *, flip: bool, short_side: int | None = None) -> FrameReader:
        """The same reader with a crop of its own, of frames shrunk to `short_side`."""
        return FrameReader(self.n_frames, CropFlip(self.transform.size, flip, seed, short_side))

    def __call__(self, clip: Clip) -> np.ndarray:
        """The clip's frames. Raises `VideoError`."""
        from calmctl.video.frames import read_frames

        return read_frames(clip, self.n_frames, self.transform)


# Frames as small pictures for people, without torch: what a worker makes of them for a page.


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
