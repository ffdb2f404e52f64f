"""What a recipe resolves to: the source of batches, the features of a split, and what a run records of both."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from calmctl.anchors.vocabulary import Vocabulary
from calmctl.counting import counted
from calmctl.data.identity import SplitRecord, contents_of, record_split
from calmctl.data.samples import Dataset, LeftOut
from calmctl.data.store import FeatureStore
from calmctl.evaluation.encoding import (
    TEXTS_PER_BATCH,
    EncodedSplit,
    bare_captions,
    encode_split,
    encode_stored,
    frozen_features,
    stream_frames,
)
from calmctl.model.calm import CalmModel
from calmctl.model.caption import CaptionModel
from calmctl.model.preprocess import fingerprint, parameters_digest
from calmctl.recipe import Recipe
from calmctl.runs.identity import RunIdentity, dataset_name, identify, weights_lineage
from calmctl.training.batches import WHOLE, FeatureBatches, PairBatches, Share, store_batches, video_batches
from calmctl.training.frames import Decoded

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
