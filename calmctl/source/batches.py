"""Batches of (clip, caption) pairs: from video files, from frames kept in memory, or from extracted features."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from typing import Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from calmctl.errors import VideoError
from calmctl.model.calm import Batch
from calmctl.parallel import SINGLE, World
from calmctl.recipe.schema import Data
from calmctl.samples import Clip, LeftOut, Split, StoredSplit
from calmctl.video.cache import KeptFrames
from calmctl.video.compressed import CompressedReader
from calmctl.video.pixels import FrameReader
from calmctl.video.pool import read_with, run_isolated

# Frames of a training's clips: decoded when they are due, or kept in memory. Decoding processes need no torch.

Decoded = np.ndarray | VideoError

AHEAD, AHEAD_BYTES = 256, 1 << 30
"""Clips decoded before they are due: two batches of the paper's size, and less where they are large (our choice)."""


class FrameSource(Protocol):
    """Frames of clips by their number in the split."""

    def stream(self, clips: Sequence[int], places: Sequence[int], epoch: int) -> Iterator[Decoded]:
        """Frames of `clips` in order as the model's reader has them, uint8, each with its place in the epoch."""
        ...

    def blank(self) -> np.ndarray:
        """Gray frames of the same shape, or features that stand for them."""
        ...


@dataclass(frozen=True, slots=True)
class StreamedFrames:
    """Decodes each clip when its pair is due, in worker processes, augmented there; kept frames are read instead."""

    clips: tuple[Clip, ...]
    reader: FrameReader | CompressedReader
    data: Data
    seed: int
    kept: KeptFrames | None = None

    def stream(self, clips: Sequence[int], places: Sequence[int], epoch: int) -> Iterator[Decoded]:
        """Frames of `clips` in order."""
        # Decoding goes on while a step computes.
        ahead = max(1, min(AHEAD, AHEAD_BYTES // math.prod(self.reader.shape)))
        workers, timeout_s = self.data.workers or None, self.data.timeout_s
        pairs = zip(clips, places, strict=True)
        if self.kept is not None and isinstance(self.reader, FrameReader):
            cached = ((self.clips[clip], self._crop(self.reader, epoch, place)) for clip, place in pairs)
            yield from self.kept.stream(cached, workers=workers, timeout_s=timeout_s, ahead=ahead)
            return
        jobs = ((self.clips[clip], self._reader(epoch, place)) for clip, place in pairs)
        for _, frames in run_isolated(read_with, jobs, workers=workers, timeout_s=timeout_s, ahead=ahead):
            yield frames

    def blank(self) -> np.ndarray:
        """Gray frames."""
        return np.full(self.reader.shape, 128, np.uint8)

    def _reader(self, epoch: int, place: int) -> FrameReader | CompressedReader:
        if isinstance(self.reader, FrameReader):
            return self._crop(self.reader, epoch, place)
        if self.data.augment == "none":
            return self.reader
        return self.reader.augmented((self.seed, epoch, place), flip=self.data.flip)

    def _crop(self, reader: FrameReader, epoch: int, place: int) -> FrameReader:
        if self.data.augment == "none":
            return reader
        # By place in the epoch: the same draws for a run that goes on, and others for each caption of a clip.
        return reader.augmented((self.seed, epoch, place), flip=self.data.flip, short_side=self.data.short_side)


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
        example = next(frames for frames in self.frames if isinstance(frames, np.ndarray))
        return np.full_like(example, 128 if example.dtype == np.uint8 else 1)


# Batches: pairs in an order that is a function of seed and epoch.


PerClip = Literal["all", "one"]


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the pairs of a split become batches.

    Attributes:
        batch_size: Pairs per step, of all processes together.
        seed: Of the order, and of augmentation.
        captions_per_clip: As in `EpochOrder`.
        world: The processes, each of which takes its part of every batch.
    """

    batch_size: int
    seed: int
    captions_per_clip: PerClip = "all"
    world: World = SINGLE


class _Epochs:
    """What both kinds of batches share: the order of each epoch, and which places in it are this process's.

    Attributes:
        ids: The ids of the split's clips.
        left_out: Clips met so far that do not decode; their pairs are skipped, batches shrink accordingly.
    """

    def __init__(self, owners: Sequence[int], ids: Sequence[str], sampling: Sampling) -> None:
        self.ids = ids
        self.left_out: dict[str, LeftOut] = {}
        self._sampling = sampling
        self._order = EpochOrder(owners, sampling.seed, sampling.captions_per_clip)
        # Rounded up: the last batch is short, and trains all the same.
        self.steps_per_epoch = -(-len(self._order) // sampling.batch_size)

    def _parts(self, epoch: int, skip: int) -> tuple[list[int], list[range]]:
        """The pairs of an epoch in order, and this process's places in it for each batch after the first `skip`."""
        order = self._order.of(epoch)
        return order, self._sampling.world.places(len(order), self._sampling.batch_size, skip)


class PairBatches(_Epochs):
    """Every (clip, caption) pair of a split once per epoch, in an order drawn from the seed and the epoch.

    With `captions_per_clip` "one", every clip once, with a caption that is drawn anew for each epoch.
    """

    def __init__(
        self,
        split: Split,
        frames: FrameSource,
        tokenize: Callable[[list[str]], Tensor],
        sampling: Sampling,
        encode_captions: Callable[[list[str]], Tensor | None] = lambda sentences: None,
    ) -> None:
        """Make batches of `split`; `encode_captions` gives a caption decoder's tokens [B, T], where there is one."""
        super().__init__(split.owners, split.ids, sampling)
        self._split, self._frames = split, frames
        self._tokenize, self._encode_captions = tokenize, encode_captions

    def epoch(self, epoch: int, skip: int) -> Iterator[Batch | None]:
        """The batches of `epoch` after the first `skip`; None where no clip of a batch decodes."""
        order, parts = self._parts(epoch, skip)
        places = list(chain.from_iterable(parts))
        pairs = [order[place] for place in places]
        owners = [self._split.owners[pair] for pair in pairs]
        # One stream for the whole epoch, so that decoding runs ahead across batches; what is skipped is not decoded.
        stream = zip(pairs, owners, self._frames.stream(owners, places, epoch), strict=True)
        for part in parts:
            group = list(islice(stream, len(part)))
            usable = [(pair, owner, frames) for pair, owner, frames in group if self._is_usable(owner, frames)]
            if not usable:
                yield None
                continue
            chosen, clips, arrays = zip(*usable, strict=True)
            yield self._batch(chosen, clips, np.stack(arrays))

    def blank(self) -> Batch:
        """A row with gray frames and some sentence of the split."""
        return self._batch([0], [self._split.owners[0]], self._frames.blank()[None])

    def _batch(self, pairs: Sequence[int], clips: Sequence[int], frames: np.ndarray) -> Batch:
        sentences = [self._split.captions[pair] for pair in pairs]
        captions = self._encode_captions(sentences)
        return Batch(self._tokenize(sentences), torch.from_numpy(frames), torch.tensor(clips), captions)

    def _is_usable(self, owner: int, frames: np.ndarray | VideoError) -> bool:
        if isinstance(frames, VideoError):
            clip = self._split.clips[owner]
            # Its pair is dropped and none moves up: the order of an epoch stays what seed and epoch say.
            self.left_out[clip.id] = LeftOut(clip.id, str(frames))
            return False
        return True


class FeatureBatches(_Epochs):
    """The same pairs from a feature store: the towers are frozen, so nothing is decoded or encoded again."""

    def __init__(
        self, split: StoredSplit, frames: Tensor, texts: Tensor, sampling: Sampling, captions: Tensor | None = None
    ) -> None:
        """Take the frames [N_v, F, D] and texts [N_t, D] of `split`, and a caption decoder's tokens [N_t, T]."""
        super().__init__(split.owners, split.ids, sampling)
        self._frames, self._texts, self._captions = frames, texts, captions
        self._owners = torch.tensor(split.owners)

    def epoch(self, epoch: int, skip: int) -> Iterator[Batch | None]:
        """The batches of `epoch` after the first `skip`; None where there are fewer pairs than processes."""
        order, parts = self._parts(epoch, skip)
        for part in parts:
            yield self._batch([order[place] for place in part]) if part else None

    def blank(self) -> Batch:
        """The first pair."""
        return self._batch([0])

    def _batch(self, pairs: list[int]) -> Batch:
        clips = self._owners[pairs]
        captions = None if self._captions is None else self._captions[pairs]
        # A store may be float16; training on it is not.
        return Batch(self._texts[pairs].float(), self._frames[clips].float(), clips, captions)


@dataclass(frozen=True, slots=True)
class EpochOrder:
    """Which pairs an epoch has, and their order: a function of seed and epoch, so a run can take it up anywhere.

    Attributes:
        owners: For each pair the number of its clip.
        captions_per_clip: Whether all captions of a clip are in every epoch, or one of them, each as likely as others.
    """

    owners: Sequence[int]
    seed: int
    captions_per_clip: PerClip = "all"

    def __len__(self) -> int:
        """Pairs an epoch."""
        return len(self.owners) if self.captions_per_clip == "all" else len(set(self.owners))

    def of(self, epoch: int) -> list[int]:
        """The pairs of `epoch` in order."""
        # A generator of its own: dropout and noise draw from torch's, as often as the model likes.
        rng = np.random.default_rng([self.seed, epoch])
        order: list[int] = rng.permutation(len(self.owners)).tolist()
        if self.captions_per_clip == "all":
            return order
        first: dict[int, int] = {}
        for pair in order:
            first.setdefault(self.owners[pair], pair)
        # Once more: clips with many captions would stand in front.
        chosen: list[int] = rng.permutation(list(first.values())).tolist()
        return chosen
