"""The two sources: videos, which are decoded, and a feature store, which was made of them before."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from calmctl.data.benchmark import Splits
from calmctl.data.identity import SplitRecord, contents_of, record_split
from calmctl.data.registry import load_dataset, protocol_for
from calmctl.errors import BadInput, DatasetError, StoreError
from calmctl.model.backbone import fingerprint
from calmctl.model.calm import AlignedModel
from calmctl.recipe import Recipe
from calmctl.recipe.schema import Data
from calmctl.samples import Dataset, Split, StoredSplit
from calmctl.source.base import Source, SourceSpec
from calmctl.source.batches import CachedFrames, FeatureBatches, FrameSource, PairBatches, Sampling, StreamedFrames
from calmctl.source.encoding import (
    EncodedSplit,
    encode_split,
    frozen_features,
    frozen_texts,
    nothing_usable,
    stream_frames,
)
from calmctl.store.store import FeatureStore
from calmctl.video.cache import CacheFolder, KeptFrames
from calmctl.video.pixels import FrameReader, FrameResize, Shrink
from calmctl.words import Progress, counted, watched


def open_source(spec: SourceSpec, recipe: Recipe, *, val: bool = True) -> Source:
    """Read what `spec` names, for a run of `recipe`.

    Args:
        spec: Which data, and where it lies.
        recipe: Its task decides the protocol where none is named; its keys say how clips are decoded.
        val: Whether validation clips are wanted. A run's were carved from its own training list: no other protocol,
            and nobody who wants the test split alone, has them.

    Raises:
        DatasetError: It is in no place where it was said to be, cannot be read, or its protocol does not do.
        StoreError: A feature store of another dataset or protocol.
    """
    # A store holds one data set under one protocol: what is named beside it is only compared, and no place looked at.
    if spec.features is not None:
        store = FeatureStore.open(spec.features)
        store.require_dataset(spec.dataset, spec.protocol)
        # Only asked: it refuses a protocol without all references for a captioner, whoever extracted the features.
        protocol_for(recipe.task, spec.dataset, store.protocol)
        return StoredSource(store)
    data = recipe.data
    protocol = protocol_for(recipe.task, spec.dataset, spec.protocol)
    own = val and (spec.dataset, protocol) == (data.dataset, protocol_for(recipe.task, data.dataset, data.protocol))
    *places, last = [spec.root] if spec.root else [Path(data.root), Path("data") / spec.dataset]
    load = partial(
        load_dataset,
        spec.dataset,
        protocol=protocol,
        annotations=spec.annotations,
        videos=spec.videos,
        val_clips=data.val_clips if own else None,
        val_seed=data.val_seed,
    )
    # The last place is read behind the loop: if it is not there either, its error is the one that is shown.
    for place in places:
        try:
            return VideoSource(load(place), data)
        except DatasetError:
            continue
    return VideoSource(load(last), data)


def recipe_source(recipe: Recipe) -> Source:
    """What a recipe trains on. Raises as `open_source`."""
    return open_source(SourceSpec.of(recipe.data), recipe)


class VideoSource(Source):
    """The videos of a dataset, decoded as often as they are asked for."""

    def __init__(self, dataset: Dataset, data: Data) -> None:
        """Clips of `dataset`, decoded as the keys `data` of a recipe say."""
        self.name, self.protocol, self.splits = dataset.name, dataset.protocol, tuple(dataset.splits)
        self.notes, self.unread = dataset.notes, dataset.unread
        self.absent = dataset.splits.absent if isinstance(dataset.splits, Splits) else {}
        self._dataset, self._data = dataset, data
        self._kept: dict[str, CachedFrames] = {}
        self._on_disk: dict[FrameResize | Shrink, KeptFrames] = {}

    def split(self, name: str) -> Split:
        """One split; raises `DatasetError` with what is missing of it."""
        if name not in self.splits:
            raise DatasetError(
                self.absent.get(name, f"{self.name} has no {name} split; it has {', '.join(self.splits)}")
            )
        return self._dataset.splits[name]

    def record(self, split: str) -> SplitRecord:
        """What a split is: the files of its clips are read."""
        chosen = self.split(split)
        return record_split(self.name, self.protocol, chosen, contents_of(chosen.clips))

    def require_fit(self, model: AlignedModel, n_frames: int) -> None:
        """Videos fit every model: they are decoded to its size."""

    def encode(
        self, model: AlignedModel, split: str, progress: Progress | None = None, *, keep: bool = False
    ) -> EncodedSplit:
        """Decode and encode a split; `keep` frames at input size, or the features of frozen towers, in memory."""
        chosen = self.split(split)
        what = f"{self.name} {split} clips".strip()
        # A test split is encoded once or twice, so it is not kept, whatever the recipe says.
        if keep and self._data.cache == "disk":
            reader, keys = self._reader(model, train=False), self._data
            jobs = ((clip, reader) for clip in chosen.clips)
            read = self._kept_frames(reader).stream(jobs, workers=keys.workers or None, timeout_s=keys.timeout_s)
            return encode_split(model, chosen, watched(read, what, len(chosen.clips), progress), progress)
        if not (keep and self._data.cache == "memory"):
            frames = stream_frames(chosen, model, self._data, what, progress)
            return encode_split(model, chosen, frames, progress)
        if split not in self._kept:
            self._kept[split] = self._cached(model, chosen, what, progress)
        return encode_split(model, chosen, self._kept[split].frames)

    def batches(
        self, model: AlignedModel, split: str, sampling: Sampling, progress: Progress | None = None
    ) -> PairBatches:
        """Pairs whose clips are decoded when they are due, or all of them now, for a cache in memory."""
        chosen = self.split(split)
        kept = self._kept_frames(self._reader(model, train=True)) if self._data.cache == "disk" else None
        frames: FrameSource = StreamedFrames(
            chosen.clips, model.reader(self._data.frames), self._data, sampling.seed, kept
        )
        tokenize: Callable[[list[str]], Tensor] = model.backbone.tokenize
        if self._data.cache == "memory":
            frames = self._cached(model, chosen, f"decoding {split} clips", progress)
            # Frozen towers make the same feature of a sentence in every epoch. A captioner without CALM's loss reads
            # none.
            if model.frozen and (model.scores_sentences or model.aligns):
                tokenize = frozen_texts(model, chosen.captions)
        return PairBatches(chosen, frames, tokenize, sampling, model.caption_tokens)

    # Frames kept on disk, for all runs: as they are before any crop where a training crops, else at input size.

    def keeping(self, model: AlignedModel) -> str:
        """How many clips are kept, where, and about how much is to come; raises `BadInput` where there is no room."""
        if self._data.cache != "disk":
            return ""
        asked = [(self._reader(model, train=name == "train"), self.split(name).clips) for name in self._kept_splits]
        return self._cache_folder().require_room(asked, workers=self._data.workers or None)

    def fill(self, model: AlignedModel, progress: Progress | None = None) -> dict[str, dict[str, str]]:
        """Decode and keep now what a training of `model` will ask for; the clips that do not decode, by split."""
        undecodable = {}
        for name in self._kept_splits:
            reader, keys = self._reader(model, train=name == "train"), self._data
            undecodable[name] = self._kept_frames(reader).fill(
                self.split(name).clips,
                reader,
                f"{self.name} {name} clips",
                workers=keys.workers or None,
                timeout_s=keys.timeout_s,
                progress=progress,
            )
        return undecodable

    @property
    def _kept_splits(self) -> tuple[str, ...]:
        return tuple(name for name in ("train", "val") if name in self.splits)

    def _reader(self, model: AlignedModel, *, train: bool) -> FrameReader:
        reader = model.reader(self._data.frames)
        if not isinstance(reader, FrameReader):
            raise BadInput(
                "data.cache: disk keeps frames, and this model reads what a codec keeps; set data.cache=none"
            )
        if not train or self._data.augment == "none":
            return reader
        return reader.augmented(
            (0,), flip=False, short_side=self._data.short_side
        )  # any draw: what comes before it counts

    def _cache_folder(self) -> CacheFolder:
        if self.cache is None:
            keys = self._data
            folder = Path(keys.cache_folder) if keys.cache_folder else Path(keys.root) / ".frames"
            self.cache = CacheFolder(folder, int(keys.cache_gb * 1e9))
        return self.cache

    def _kept_frames(self, reader: FrameReader) -> KeptFrames:
        if reader.lasting not in self._on_disk:
            folder = self._cache_folder()
            folder.begin()
            self._on_disk[reader.lasting] = KeptFrames(folder, reader)
        return self._on_disk[reader.lasting]

    def _cached(self, model: AlignedModel, split: Split, what: str, progress: Progress | None) -> CachedFrames:
        """All frames of a split, or what frozen towers make of them, before any adapter: that is asked only once."""
        model.eval()
        frames = stream_frames(split, model, self._data, what, progress)
        # Features of frozen towers are a fraction of the frames: 24 KB of 12 frames at D = 512, where pixels have 1.8
        # MB.
        return CachedFrames(list(frozen_features(model, frames) if model.keeps_features else frames))


class StoredSource(Source):
    """A feature store: the towers are frozen, and nothing is decoded or encoded again."""

    def __init__(self, store: FeatureStore) -> None:
        self.name, self.protocol, self.splits = store.header.dataset, store.protocol, store.splits
        self._store = store
        # Put together key by key, and asked for several times in a run.
        self._split = cache(store.split)

    def split(self, name: str) -> StoredSplit:
        """One split, restricted to the clips that have features; raises `StoreError` where there is none."""
        return self._split(name)

    def record(self, split: str) -> SplitRecord:
        """What a split is: of the data that was extracted."""
        return self._store.record(split)

    @property
    def is_complete(self) -> bool:
        """Whether all of the data set is extracted."""
        return self._store.is_complete

    def require_fit(self, model: AlignedModel, n_frames: int) -> None:
        """Raise `StoreError` unless it is complete, has `n_frames` frames per clip, and is of the model's towers."""
        store = self._store
        store.require_backbone(fingerprint(model.backbone))
        if store.header.n_frames != n_frames:
            raise StoreError(
                f"{store.path} holds {counted(store.header.n_frames, 'frame')} a clip and the recipe wants {n_frames}; "
                f"set data.frames={store.header.n_frames}, or extract again"
            )
        # Half a store is not half a data set: which clips are missing depends on when somebody stopped.
        if not store.is_complete:
            missing = f"{store.pending:,} of its" if store.pending else "its"
            raise StoreError(
                f"{store.path} is not complete: {missing} clips and sentences are not extracted yet; "
                "run the same 'calmctl extract' again, or merge its parts"
            )

    @torch.inference_mode()
    def encode(
        self, model: AlignedModel, split: str, progress: Progress | None = None, *, keep: bool = False
    ) -> EncodedSplit:
        """The stored features behind the model's adapter, if it has one."""
        # Compared at every call: a store that is named for an evaluation was never looked at by the training.
        store, stored = self._store, self.split(split)
        store.require_backbone(fingerprint(model.backbone))
        if not stored.ids:
            raise DatasetError(nothing_usable(split, stored.left_out))
        captions = stored.captions if model.scores_sentences else ()
        return EncodedSplit(
            model.encode_texts(store.texts(captions).to(model.device)).cpu(),
            model.encode_frames(store.frames(stored.ids).to(model.device)).cpu(),
            np.array(stored.owners, dtype=np.int64),
            stored.ids,
            stored.captions,
            stored.left_out,
        )

    def batches(
        self, model: AlignedModel, split: str, sampling: Sampling, progress: Progress | None = None
    ) -> FeatureBatches:
        """Pairs of features; the whole split is held in memory as float32."""
        stored = self.split(split)
        frames, texts = self._store.frames(stored.ids), self._store.texts(stored.captions)
        return FeatureBatches(stored, frames, texts, sampling, model.caption_tokens(stored.captions))
