"""Training augmentation: one random crop and flip a clip, without torch (T-MASS's released settings)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image

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
    """

    size: int | tuple[int, int]
    flip: bool
    seed: tuple[int, ...]

    def __call__(self, frames: np.ndarray) -> np.ndarray:
        """Crop uint8 RGB frames of any one size to uint8 [F, H, W, 3]."""
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
