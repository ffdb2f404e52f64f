"""From a recipe to everything that training needs, with every fault found before the first step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from calmctl.anchors.combine import subset
from calmctl.anchors.shipped import resolve_vocabulary
from calmctl.anchors.vocabulary import Vocabulary
from calmctl.data.registry import load_dataset
from calmctl.data.samples import Dataset, LeftOut
from calmctl.data.store import FeatureStore
from calmctl.device import choose_device
from calmctl.errors import DatasetError
from calmctl.evaluation.encoding import EncodedSplit, encode_split, encode_stored, stream_frames
from calmctl.model.build import build_model
from calmctl.model.calm import CalmModel
from calmctl.model.preprocess import fingerprint
from calmctl.recipe import Recipe
from calmctl.training.batches import FeatureBatches, PairBatches, store_batches, video_batches

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how many items are done, and of how many."""


@dataclass(slots=True)
class Prepared:
    """What a recipe resolves to.

    Attributes:
        dataset: The clips and captions; None when training on a feature store alone.
        store: The feature store of `data.features`, or None.
    """

    recipe: Recipe
    vocabulary: Vocabulary
    model: CalmModel
    device: torch.device
    dataset: Dataset | None
    store: FeatureStore | None

    def encoded(self, split: str, progress: Progress | None = None) -> EncodedSplit:
        """Features of a split with the model's current weights."""
        if self.store is not None:
            return encode_stored(self.model, self.store, split, self.device)
        assert self.dataset is not None
        chosen = self.dataset.splits[split]
        watch = _watch(progress, f"reading {split} clips")
        frames = stream_frames(chosen, self.model, self.recipe.data, watch)
        return encode_split(self.model, chosen, frames, self.device)

    def batches(self, progress: Progress | None = None) -> PairBatches | FeatureBatches:
        """The source of training batches; frames are decoded now where the recipe keeps them in memory."""
        keys = self.recipe.optim
        if self.store is not None:
            return store_batches(self.store, "train", batch_size=keys.batch_size, seed=self.recipe.seed)
        assert self.dataset is not None
        return video_batches(
            self.dataset.splits["train"],
            self.model.backbone,
            self.recipe.data,
            batch_size=keys.batch_size,
            seed=self.recipe.seed,
            progress=_watch(progress, "decoding train clips"),
        )

    @property
    def protocol(self) -> str:
        """The protocol of the data, "" where there is only one."""
        return self.dataset.protocol if self.dataset is not None else self.store.protocol if self.store else ""

    def counts(self) -> dict[str, dict[str, int]]:
        """Clips, captions and clips left out so far, by split."""
        if self.store is not None:
            stored = {name: self.store.split(name) for name in self.store.splits}
            return {
                name: {"clips": len(s.ids), "captions": len(s.captions), "left_out": len(s.left_out)}
                for name, s in stored.items()
            }
        assert self.dataset is not None
        return {
            name: {"clips": len(s.clips), "captions": len(s.captions), "left_out": len(s.left_out)}
            for name, s in self.dataset.splits.items()
        }

    def left_out(self) -> dict[str, list[LeftOut]]:
        """Clips known to be missing before training, by split."""
        if self.store is not None:
            return {name: list(self.store.split(name).left_out) for name in self.store.splits}
        assert self.dataset is not None
        return {name: list(split.left_out) for name, split in self.dataset.splits.items()}

    def describe(self) -> dict[str, Any]:
        """What a run records of its data and anchors."""
        return {
            "data": self.counts(),
            "notes": list(self.dataset.notes) if self.dataset else [],
            "left_out": {
                name: [{"id": entry.id, "reason": entry.reason} for entry in entries]
                for name, entries in self.left_out().items()
            },
            "validation_ids": self._validation_ids(),
            "vocabulary": {
                "name": self.vocabulary.reference,
                "anchors": len(self.vocabulary),
                "digest": self.vocabulary.digest,
            },
            "device": str(self.device),
            "parameters": sum(p.numel() for p in self.model.parameters()),
        }

    def _validation_ids(self) -> list[str]:
        if self.store is not None:
            return list(self.store.split("val").ids)
        assert self.dataset is not None
        return [clip.id for clip in self.dataset.splits["val"].clips]


def prepare(recipe: Recipe) -> Prepared:
    """Resolve data, vocabulary, device and model.

    Raises:
        CalmError: Whatever is wrong, before any time is spent: a missing dataset or split, a vocabulary, a
            backbone's weights, a feature store of another backbone.
    """
    device = choose_device(recipe.device)
    vocabulary = recipe_vocabulary(recipe)
    store = FeatureStore.open(Path(recipe.data.features)) if recipe.data.features else None
    dataset = None if store is not None else recipe_dataset(recipe)
    torch.manual_seed(recipe.seed)
    model = build_model(recipe, vocabulary)
    if store is not None:
        store.require_backbone(fingerprint(model.backbone))
    prepared = Prepared(recipe, vocabulary, model.to(device), device, dataset, store)
    _require_splits(prepared)
    return prepared


def recipe_vocabulary(recipe: Recipe) -> Vocabulary:
    """The anchors of a recipe, cut to its subset."""
    vocabulary = resolve_vocabulary(recipe.anchors.vocabulary)
    if recipe.anchors.subset is None:
        return vocabulary
    return subset(vocabulary, recipe.anchors.subset, recipe.anchors.subset_seed)


def recipe_dataset(recipe: Recipe) -> Dataset:
    """The dataset of a recipe."""
    data = recipe.data
    return load_dataset(
        data.dataset,
        Path(data.root),
        protocol=data.protocol,
        annotations=Path(data.annotations) if data.annotations else None,
        videos=Path(data.videos) if data.videos else None,
        val_clips=data.val_clips,
        val_seed=data.val_seed,
    )


def _require_splits(prepared: Prepared) -> None:
    recipe, counts = prepared.recipe, prepared.counts()
    for name in ("train", "val"):
        if counts.get(name, {}).get("captions", 0) == 0:
            raise DatasetError(
                f"{recipe.data.dataset}: the {name} split has no clip with a caption; "
                "check data.root, data.videos and data.val_clips"
            )
    missing = {name: entries for name, entries in prepared.left_out().items() if entries}
    if recipe.data.require_complete and missing:
        name, entries = next(iter(missing.items()))
        total = sum(len(entries) for entries in missing.values())
        raise DatasetError(
            f"{recipe.data.dataset}: {total} clips are missing (first: {entries[0].id} of {name}: "
            f"{entries[0].reason}); data.require_complete=true makes this an error"
        )


def _watch(progress: Progress | None, what: str) -> Callable[[int, int], None] | None:
    if progress is None:
        return None
    return lambda done, total: progress(what, done, total)
