"""Batches of (clip, caption) pairs: from video files, from frames kept in memory, or from extracted features."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from calmctl.data.augment import CropFlip
from calmctl.data.pixels import FrameResize
from calmctl.data.samples import Clip, LeftOut, Split
from calmctl.data.store import FeatureStore
from calmctl.data.workers import decode_clips, run_isolated
from calmctl.errors import VideoError
from calmctl.model.backbone import Backbone
from calmctl.model.calm import Batch
from calmctl.model.preprocess import split_preprocess
from calmctl.recipe.schema import Data

Item = TypeVar("Item")


class FrameSource(Protocol):
    """Frames of clips by their number in the split."""

    def stream(self, clips: list[int], epoch: int, first: int) -> Iterator[np.ndarray | VideoError]:
        """Frames uint8 [F, S, S, 3] of `clips` in order; `first` is the first one's place in the epoch."""
        ...


class PairBatches:
    """Every (clip, caption) pair of a split once an epoch, in an order drawn from the seed and the epoch.

    Attributes:
        left_out: Clips met so far that do not decode; their pairs are skipped, batches shrink accordingly.
    """

    def __init__(
        self,
        split: Split,
        frames: FrameSource,
        tokenize: Callable[[list[str]], Tensor],
        *,
        batch_size: int,
        seed: int,
    ) -> None:
        self._split = split
        self._frames = frames
        self._tokenize = tokenize
        self._batch_size = batch_size
        self._seed = seed
        self.left_out: dict[str, LeftOut] = {}
        self.steps_per_epoch = -(-len(split.captions) // batch_size)

    def epoch(self, epoch: int, skip: int) -> Iterator[Batch | None]:
        """The batches of `epoch` after the first `skip`; None where no clip of a batch decodes."""
        first = skip * self._batch_size
        order = epoch_order(len(self._split.captions), self._seed, epoch)[first:]
        owners = [self._split.owners[pair] for pair in order]
        stream = zip(order, owners, self._frames.stream(owners, epoch, first), strict=True)
        for group in _groups(stream, self._batch_size):
            usable = [(pair, owner, frames) for pair, owner, frames in group if self._is_usable(owner, frames)]
            if not usable:
                yield None
                continue
            pairs, clips, arrays = zip(*usable, strict=True)
            yield Batch(
                self._tokenize([self._split.captions[pair] for pair in pairs]),
                torch.from_numpy(np.stack(arrays)),
                torch.tensor(clips),
            )

    def _is_usable(self, owner: int, frames: np.ndarray | VideoError) -> bool:
        if isinstance(frames, VideoError):
            clip = self._split.clips[owner]
            self.left_out[clip.id] = LeftOut(clip.id, str(frames))
            return False
        return True


class FeatureBatches:
    """The same pairs from a feature store: the towers are frozen, so nothing is decoded or encoded again."""

    def __init__(self, frames: Tensor, texts: Tensor, owners: Iterable[int], *, batch_size: int, seed: int) -> None:
        """Take frames [N_v, F, D], texts [N_t, D] and for each text the number of its clip."""
        self._frames, self._texts = frames, texts
        self._owners = torch.tensor(list(owners))
        self._batch_size = batch_size
        self._seed = seed
        self.steps_per_epoch = -(-len(texts) // batch_size)

    def epoch(self, epoch: int, skip: int) -> Iterator[Batch | None]:
        """The batches of `epoch` after the first `skip`."""
        order = epoch_order(len(self._texts), self._seed, epoch)[skip * self._batch_size :]
        for pairs in _groups(order, self._batch_size):
            clips = self._owners[pairs]
            yield Batch(self._texts[pairs].float(), self._frames[clips].float(), clips)


def epoch_order(count: int, seed: int, epoch: int) -> list[int]:
    """The order of `count` pairs in `epoch`: a function of seed and epoch alone, so a run can take it up anywhere."""
    order: list[int] = np.random.default_rng([seed, epoch]).permutation(count).tolist()
    return order


@dataclass(frozen=True, slots=True)
class StreamedFrames:
    """Decodes each clip when its pair is due, in worker processes, augmented there."""

    clips: tuple[Clip, ...]
    resize: FrameResize
    data: Data
    seed: int

    def stream(self, clips: list[int], epoch: int, first: int) -> Iterator[np.ndarray | VideoError]:
        """Frames of `clips` in order."""
        jobs = [(self.clips[clip], self._transform(epoch, first + position)) for position, clip in enumerate(clips)]
        job = partial(_decode_augmented, n_frames=self.data.frames)
        ahead = 256  # about two batches of the paper's size: decoding goes on while a step computes
        for _, frames in run_isolated(job, jobs, workers=self.data.workers, timeout_s=self.data.timeout_s, ahead=ahead):
            yield frames

    def _transform(self, epoch: int, position: int) -> FrameResize | CropFlip:
        if self.data.augment == "none":
            return self.resize
        return CropFlip(self.resize.size, self.data.flip, (self.seed, epoch, position))


@dataclass(frozen=True, slots=True)
class CachedFrames:
    """Frames at input size, decoded once: [F, S, S, 3] a clip, or the reason why there are none."""

    frames: list[np.ndarray | VideoError]

    def stream(self, clips: list[int], epoch: int, first: int) -> Iterator[np.ndarray | VideoError]:
        """Frames of `clips` in order; the same in every epoch."""
        return (self.frames[clip] for clip in clips)


def video_batches(
    split: Split,
    backbone: Backbone,
    data: Data,
    *,
    batch_size: int,
    seed: int,
    progress: Callable[[int, int], None] | None = None,
) -> PairBatches:
    """Batches from the video files of `split`; `progress(done, total)` watches the filling of the cache."""
    resize = split_preprocess(backbone)[0]
    frames: FrameSource = StreamedFrames(split.clips, resize, data, seed)
    if data.cache == "memory":
        cache: list[np.ndarray | VideoError] = []
        for _, decoded in decode_clips(
            split.clips, data.frames, workers=data.workers, timeout_s=data.timeout_s, transform=resize
        ):
            cache.append(decoded)
            if progress:
                progress(len(cache), len(split.clips))
        frames = CachedFrames(cache)
    return PairBatches(split, frames, backbone.tokenize, batch_size=batch_size, seed=seed)


def store_batches(store: FeatureStore, split: str, *, batch_size: int, seed: int) -> FeatureBatches:
    """Batches of one split of a feature store; the whole split is held in memory as float32."""
    stored = store.split(split)
    return FeatureBatches(
        store.frames(stored.ids), store.texts(stored.captions), stored.owners, batch_size=batch_size, seed=seed
    )


def _groups(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    remaining = iter(items)
    while group := list(islice(remaining, size)):
        yield group


def _decode_augmented(item: tuple[Clip, Callable[[np.ndarray], np.ndarray]], *, n_frames: int) -> np.ndarray:
    from calmctl.data.decode import read_frames

    clip, transform = item
    return transform(read_frames(clip, n_frames))
