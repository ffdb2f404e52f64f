"""Frames of a training's clips: decoded when they are due, or kept in memory. Decoding processes need no torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import numpy as np

from calmctl.data.augment import CropFlip
from calmctl.data.pixels import FrameResize
from calmctl.data.samples import Clip
from calmctl.data.workers import run_isolated
from calmctl.errors import VideoError
from calmctl.recipe.schema import Data

Decoded = np.ndarray | VideoError


class FrameSource(Protocol):
    """Frames of clips by their number in the split."""

    def stream(self, clips: Sequence[int], places: Sequence[int], epoch: int) -> Iterator[Decoded]:
        """Frames uint8 [F, S, S, 3] of `clips` in order, each with its place in the epoch."""
        ...

    def blank(self) -> np.ndarray:
        """Gray frames of the same shape, or features that stand for them."""
        ...


@dataclass(frozen=True, slots=True)
class StreamedFrames:
    """Decodes each clip when its pair is due, in worker processes, augmented there."""

    clips: tuple[Clip, ...]
    resize: FrameResize
    data: Data
    seed: int

    def stream(self, clips: Sequence[int], places: Sequence[int], epoch: int) -> Iterator[Decoded]:
        """Frames of `clips` in order."""
        jobs = [(self.clips[clip], self._transform(epoch, place)) for clip, place in zip(clips, places, strict=True)]
        job = partial(_decode_augmented, n_frames=self.data.frames)
        ahead = 256  # about two batches of the paper's size: decoding goes on while a step computes
        workers, timeout_s = self.data.workers or None, self.data.timeout_s
        for _, frames in run_isolated(job, jobs, workers=workers, timeout_s=timeout_s, ahead=ahead):
            yield frames

    def blank(self) -> np.ndarray:
        """Gray frames."""
        return np.full((self.data.frames, *self.resize.shape, 3), 128, np.uint8)

    def _transform(self, epoch: int, position: int) -> FrameResize | CropFlip:
        if self.data.augment == "none":
            return self.resize
        return CropFlip(self.resize.size, self.data.flip, (self.seed, epoch, position))


@dataclass(frozen=True, slots=True)
class CachedFrames:
    """Frames at input size, decoded once: [F, S, S, 3] a clip, or the reason why there are none.

    Where the towers are frozen, their features [F, D] stand in the frames' place.
    """

    frames: list[np.ndarray | VideoError]

    def stream(self, clips: Sequence[int], places: Sequence[int], epoch: int) -> Iterator[Decoded]:
        """Frames of `clips` in order; the same in every epoch."""
        return (self.frames[clip] for clip in clips)

    def blank(self) -> np.ndarray:
        """Gray, or ones, in the shape of any clip that decodes: a blank stands beside one that does."""
        found = next(each for each in self.frames if isinstance(each, np.ndarray))
        return np.full_like(found, 128 if found.dtype == np.uint8 else 1)


def _decode_augmented(item: tuple[Clip, Callable[[np.ndarray], np.ndarray]], *, n_frames: int) -> np.ndarray:
    from calmctl.data.decode import read_frames

    clip, transform = item
    return transform(read_frames(clip, n_frames))
