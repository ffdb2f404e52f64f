"""From a recipe to everything that training needs, with every fault found before the first step."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from calmctl.anchors.shipped import resolve_vocabulary, subset
from calmctl.anchors.vocabulary import Vocabulary
from calmctl.data.benchmark import Splits
from calmctl.data.identity import SplitRecord, contents_of, record_split
from calmctl.data.registry import load_dataset, protocol_for
from calmctl.device import choose_device
from calmctl.errors import DatasetError, StoreError
from calmctl.evaluation.encoding import (
    TEXTS_PER_BATCH,
    EncodedSplit,
    bare_captions,
    encode_split,
    encode_stored,
    frozen_features,
    stream_frames,
)
from calmctl.evaluation.runs import open_store
from calmctl.model.backbone import fingerprint, parameters_digest
from calmctl.model.build import build_caption_model, build_model, recipe_backbone
from calmctl.model.calm import CalmModel
from calmctl.model.captioner import CaptionModel, training_vocabulary, whole_vocabulary
from calmctl.recipe import Recipe
from calmctl.runs.identity import RunIdentity, dataset_name, identify, require_unseen, weights_lineage
from calmctl.samples import Dataset, LeftOut
from calmctl.store.store import FeatureStore
from calmctl.training.batches import WHOLE, Decoded, FeatureBatches, PairBatches, Share, store_batches, video_batches
from calmctl.words import counted

# What a recipe resolves to: the source of batches, the features of a split, and what a run records of both.


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
    model: CalmModel | CaptionModel
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

    def batches(self, progress: Progress | None = None, share: Share = WHOLE) -> PairBatches | FeatureBatches:
        """The source of training batches, or of a share of each; frames kept in memory are decoded now."""
        keys = self.recipe.optim
        if self.store is not None:
            return store_batches(
                self.store,
                "train",
                batch_size=keys.batch_size,
                seed=self.recipe.seed,
                encode_captions=self._caption_tokens(),
                share=share,
            )
        assert self.dataset is not None
        return video_batches(
            self.dataset.splits["train"],
            self.model.backbone,
            self.recipe.data,
            batch_size=keys.batch_size,
            seed=self.recipe.seed,
            progress=_watch(progress, "decoding train clips"),
            encode_captions=self._caption_tokens(),
            frozen_features=self.frozen_features if self.recipe.frozen else None,
            tokenize=self._frozen_texts(self.dataset.splits["train"].captions),
            share=share,
        )

    def frozen_features(self, frames: Iterable[Decoded]) -> Iterable[Decoded]:
        """What frozen towers make of frames [F, S, S, 3], before any adapter; they need to be asked only once."""
        self.model.eval()
        return frozen_features(self.model, frames, self.device)

    def _frozen_texts(self, captions: tuple[str, ...]) -> Callable[[list[str]], Tensor] | None:
        """Features of frozen towers, made once and kept as frames are; None where sentences must stay tokens."""
        read = self.model.scores_sentences or self.model.aligns
        if not (read and self.recipe.frozen and self.recipe.data.cache == "memory"):
            return None
        self.model.eval()
        # Sentences of a length together, and each kept as long as it is: words of all, padded to the longest of all,
        # would be several times as much.
        sentences = sorted(dict.fromkeys(captions), key=len)
        features: dict[str, Tensor] = {}
        for start in range(0, len(sentences), TEXTS_PER_BATCH):
            some = tuple(sentences[start : start + TEXTS_PER_BATCH])
            for sentence, made in zip(some, bare_captions(self.model, some, self.device), strict=True):
                features[sentence] = made[made.any(-1)].clone() if made.dim() > 1 else made
        return lambda batch: pad_sequence([features[sentence] for sentence in batch], batch_first=True)

    def _caption_tokens(self) -> Callable[[list[str]], Tensor] | None:
        if not isinstance(self.model, CaptionModel):
            return None
        captioner = self.model.captioner
        return lambda sentences: captioner.vocabulary.encode(sentences, captioner.max_tokens)

    def identity(self) -> RunIdentity:
        """What this training is made of, before its first step: every file is looked into, a few seconds of work."""
        names = self.store.splits if self.store is not None else tuple(self.dataset.splits) if self.dataset else ()
        splits = {name: self.record(name) for name in names}
        return identify(self.recipe, self.vocabulary, parameters_digest(self.model.backbone), splits)

    def record(self, split: str) -> SplitRecord:
        """What a split is."""
        if self.store is not None:
            return self.store.record(split)
        assert self.dataset is not None
        chosen = self.dataset.splits[split]
        return record_split(self.dataset.name, self.dataset.protocol, chosen, contents_of(chosen.clips))

    @property
    def trained_on(self) -> tuple[str, ...]:
        """The datasets that the weights of this training will have seen, those of `backbone.weights` first."""
        dataset = self.store.header.dataset if self.store else self.recipe.data.dataset
        own = dataset_name(dataset, self.protocol)
        return tuple(dict.fromkeys((*weights_lineage(self.recipe.backbone.weights), own)))

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
            "notes": [*(self.dataset.notes if self.dataset else ()), *self.cut_captions()],
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
            "backbone": fingerprint(self.model.backbone),
            "device": str(self.device),
            "parameters": sum(p.numel() for p in self.model.parameters()),
        }

    def cut_captions(self) -> list[str]:
        """Notes on captions that are not read to their end, by the text tower or by the captioner's loss."""
        notes = []
        splits = self.store.splits if self.store is not None else tuple(self.dataset.splits if self.dataset else ())
        for name in splits:
            captions = self._captions(name)
            if self.model.scores_sentences or self.model.aligns:
                notes.append((name, self.model.backbone.tokens.cut(captions)))
            if isinstance(self.model, CaptionModel) and name == "train":
                captioner = self.model.captioner
                if n := captioner.vocabulary.longer(captions, captioner.max_tokens):
                    notes.append(
                        (
                            name,
                            f"{n:,} of {counted(len(captions), 'caption')} {'is' if n == 1 else 'are'} longer than "
                            f"caption.max_tokens, {captioner.max_tokens}; the rest is not learned",
                        )
                    )
        return [f"{name}: {sentence}" for name, sentence in notes if sentence]

    def _captions(self, split: str) -> tuple[str, ...]:
        if self.store is not None:
            return self.store.split(split).captions
        assert self.dataset is not None
        return self.dataset.splits[split].captions

    def _validation_ids(self) -> list[str]:
        if self.store is not None:
            return list(self.store.split("val").ids)
        assert self.dataset is not None
        return [clip.id for clip in self.dataset.splits["val"].clips]


def _watch(progress: Progress | None, what: str) -> Callable[[int, int], None] | None:
    if progress is None:
        return None
    return lambda done, total: progress(what, done, total)


# From a recipe to everything that training needs, with every fault found before the first step.


def prepare(recipe: Recipe) -> Prepared:
    """Resolve data, vocabulary, device and model.

    Raises:
        CalmError: Whatever is wrong, before any time is spent: a missing dataset or split, a vocabulary, a
            backbone's weights, a feature store of another backbone.
    """
    device = choose_device(recipe.device)
    vocabulary = recipe_vocabulary(recipe)
    data, dataset, store = recipe.data, None, None
    if data.features:
        store = open_store(Path(data.features), recipe.task, data.dataset, data.protocol)
    else:
        dataset = recipe_dataset(recipe)
        if isinstance(dataset.splits, Splits):
            for name in ("train", "val"):
                if name in dataset.splits.absent:  # why, before the model is built
                    raise DatasetError(dataset.splits.absent[name])
    _require_unseen(recipe, dataset, store)
    torch.manual_seed(recipe.seed)
    model = _build(recipe, vocabulary, dataset, store)
    if store is not None:
        store.require_backbone(fingerprint(model.backbone))
        if store.header.n_frames != recipe.data.frames:
            raise StoreError(
                f"{store.path} holds {counted(store.header.n_frames, 'frame')} a clip and the recipe wants "
                f"{recipe.data.frames}; set data.frames={store.header.n_frames}, or extract again"
            )
    prepared = Prepared(recipe, vocabulary, model.to(device), device, dataset, store)
    _require_splits(prepared)
    return prepared


def _build(
    recipe: Recipe, vocabulary: Vocabulary, dataset: Dataset | None, store: FeatureStore | None
) -> CalmModel | CaptionModel:
    if recipe.task == "retrieval":
        return build_model(recipe, vocabulary)
    backbone = recipe_backbone(recipe)
    tokens = whole_vocabulary(backbone)
    if recipe.caption.vocabulary == "train":
        tokens = training_vocabulary(backbone, _train_captions(dataset, store))
    return build_caption_model(recipe, vocabulary, tokens, backbone)


def _train_captions(dataset: Dataset | None, store: FeatureStore | None) -> tuple[str, ...]:
    """The training captions; none where there is no such split, which is refused soon."""
    if store is not None:
        return store.split("train").captions if "train" in store.splits else ()
    assert dataset is not None
    return dataset.splits["train"].captions if "train" in dataset.splits else ()


def _require_unseen(recipe: Recipe, dataset: Dataset | None, store: FeatureStore | None) -> None:
    """Refuse weights that are known to have seen most clips of the test split."""
    protocol = dataset.protocol if dataset is not None else store.protocol if store is not None else ""
    weights = recipe.backbone.weights
    require_unseen(weights_lineage(weights), recipe.data.dataset, protocol, what=f"backbone.weights: {weights}")


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
        protocol=protocol_for(recipe.task, data.dataset, data.protocol),
        annotations=Path(data.annotations) if data.annotations else None,
        videos=Path(data.videos) if data.videos else None,
        val_clips=data.val_clips,
        val_seed=data.val_seed,
    )


def own_records(recipe: Recipe) -> dict[str, SplitRecord]:
    """What the splits of a recipe's data are now, by name.

    Raises:
        CalmError: The data is missing.
    """
    data = recipe.data
    if data.features:
        store = open_store(Path(data.features), recipe.task, data.dataset, data.protocol)
        return {name: store.record(name) for name in store.splits}
    dataset = recipe_dataset(recipe)
    return {
        name: record_split(dataset.name, dataset.protocol, split, contents_of(split.clips))
        for name, split in dataset.splits.items()
    }


def _require_splits(prepared: Prepared) -> None:
    recipe, counts = prepared.recipe, prepared.counts()
    for name in ("train", "val"):
        if counts.get(name, {}).get("captions", 0) == 0:
            raise DatasetError(
                f"{recipe.data.dataset}: the {name} split has no clip with a caption; "
                "check data.root, data.videos and data.val_clips"
            )
    if "test" in counts and counts["test"]["captions"] == 0:
        reasons = Counter(entry.reason for entry in prepared.left_out()["test"])
        gone = counts["test"]["left_out"]
        told = f"{counted(gone, 'clip')} {'is' if gone == 1 else 'are'} missing"
        why = f" ({told}: {reasons.most_common(1)[0][0]})" if reasons else ""
        raise DatasetError(
            f"{recipe.data.dataset}: the test split has no clip with a caption{why}, so the training would end without "
            "a number; bring its clips, or leave the test split out of the annotations"
        )
    if prepared.store is not None and prepared.store.pending:
        raise StoreError(
            f"{prepared.store.path} is not complete: {prepared.store.pending:,} of its clips and sentences are not "
            "extracted yet; run the same 'calmctl extract' again, or merge its parts"
        )
    missing = {name: entries for name, entries in prepared.left_out().items() if entries}
    if prepared.dataset is not None and prepared.dataset.unread:
        missing["what could not be read"] = list(prepared.dataset.unread)
    if recipe.data.require_complete and missing:
        name, entries = next(iter(missing.items()))
        total = sum(len(entries) for entries in missing.values())
        raise DatasetError(
            f"{recipe.data.dataset}: {counted(total, 'clip')} {'is' if total == 1 else 'are'} missing "
            f"(first: {entries[0].id} of {name}: "
            f"{entries[0].reason}); data.require_complete=true makes this an error"
        )
