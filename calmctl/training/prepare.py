"""From a recipe to everything that training needs, with every fault found before the first step."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import torch

from calmctl.anchors.combine import subset
from calmctl.anchors.shipped import resolve_vocabulary
from calmctl.anchors.vocabulary import Vocabulary
from calmctl.data.identity import SplitRecord, contents_of, record_split
from calmctl.data.registry import load_dataset, protocol_for
from calmctl.data.samples import Dataset
from calmctl.data.splits import Splits
from calmctl.data.store import FeatureStore
from calmctl.device import choose_device
from calmctl.errors import DatasetError, StoreError
from calmctl.evaluation.runs import open_store
from calmctl.model.build import build_caption_model, build_model, recipe_backbone
from calmctl.model.calm import CalmModel
from calmctl.model.caption import CaptionModel
from calmctl.model.caption_vocabulary import training_vocabulary, whole_vocabulary
from calmctl.model.preprocess import fingerprint
from calmctl.recipe import Recipe
from calmctl.runs.identity import require_unseen, weights_lineage
from calmctl.training.prepared import Prepared


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
                f"{store.path} holds {store.header.n_frames} frames a clip and the recipe wants "
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
        why = f" ({counts['test']['left_out']} clips are missing: {reasons.most_common(1)[0][0]})" if reasons else ""
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
            f"{recipe.data.dataset}: {total} clips are missing (first: {entries[0].id} of {name}: "
            f"{entries[0].reason}); data.require_complete=true makes this an error"
        )
