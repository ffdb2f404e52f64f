"""Evaluating a finished run, in and out of its domain."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from calmctl.data.identity import SplitRecord, contents_of, record_split
from calmctl.data.registry import load_dataset, protocol_for
from calmctl.errors import BadInput, DatasetError
from calmctl.evaluation.encoding import EncodedSplit, encode_split, encode_stored, stream_frames
from calmctl.evaluation.metrics import Direction
from calmctl.evaluation.result import Labels
from calmctl.evaluation.retrieval import Evaluation, Scorer, evaluate_encoded
from calmctl.evaluation.statistics import PairedDifference, paired_differences
from calmctl.files import sha256_file, write_json
from calmctl.model.calm import AlignedModel
from calmctl.recipe import Recipe
from calmctl.runs.checkpoint import load_run
from calmctl.runs.identity import (
    Judgement,
    RunIdentity,
    judge,
    require_unseen,
    split_faults,
    weights_identity,
    weights_lineage,
)
from calmctl.runs.run import WEIGHTS, Run
from calmctl.runtime import environment
from calmctl.samples import Dataset, Split
from calmctl.store.store import FeatureStore
from calmctl.words import counted

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class TestSet:
    """What to evaluate on.

    Attributes:
        dataset: Its name.
        root, annotations, videos: Where it lies; None for the run's own places, or the default for another dataset.
        protocol: Its protocol, None for the default.
        features: A feature store instead of videos.
    """

    dataset: str
    root: Path | None = None
    annotations: Path | None = None
    videos: Path | None = None
    protocol: str | None = None
    features: Path | None = None


def evaluate_run(
    run: Run,
    tests: Sequence[TestSet],
    *,
    which: str = "best",
    split: str = "test",
    scorer: Scorer = "leak-free",
    device: torch.device,
    require_complete: bool = False,
    progress: Progress | None = None,
) -> list[Evaluation]:
    """Evaluate the weights `which` of `run` on the `split` of each test set, the model untouched.

    Raises:
        CalmError: A test set is missing, has no usable clip, or is known to hold clips that were trained on; with
            `require_complete`, any clip left out.
    """
    recipe = run.recipe()
    # What is not there is said before a model is loaded, which takes seconds.
    opened = [open_test_set(recipe, test, split) for test in tests]
    model = load_run(run, which, device)
    evaluations = []
    for test, each in zip(tests, opened, strict=True):
        labels = labels_of(run, which, test, each.record)
        encoded = each.encode(model, recipe, device, progress)
        if require_complete:
            check_complete(encoded, test.dataset, split)
        evaluations.append(evaluate_encoded(model, encoded, device, labels, scorer=scorer, progress=progress))
    return evaluations


def labels_of(run: Run, which: str, test: TestSet, record: SplitRecord) -> Labels:
    """The labels of what the weights `which` of a run give on a test set.

    Args:
        run: The run.
        which: "best", "last" or "slim".
        test: What was asked for.
        record: What was read: names are taken from here.

    Raises:
        CheckpointError: The run is known to be trained on most of these clips.
    """
    weights = run.trained_weights(which)
    require_unseen(weights_lineage(str(weights)), record.dataset, record.protocol, what=str(run.folder))
    recipe, identity = run.recipe(), weights_identity(weights)
    finished = run.results.exists() or not run.log.exists()  # weights that were given away come without either
    found = judge(identity, record, run=run, own=test == own_test_set(recipe), finished=finished)
    return labelled(record, identity, found, recipe, WEIGHTS[which])


def labels_of_start(recipe: Recipe, record: SplitRecord) -> Labels:
    """The labels of what the weights that a run started from give; of a pretrained tag only the test set is known."""
    weights = recipe.backbone.weights
    caveats = tuple(split_faults(record))
    if weights_lineage(weights):
        caveats = judge(weights_identity(Path(str(weights))), record, run=None, own=False).caveats
    return Labels(dataset=record.dataset, protocol=record.protocol, split=record.name, concerns=caveats)


def labelled(
    record: SplitRecord, identity: RunIdentity | None, found: Judgement, recipe: Recipe, system: str
) -> Labels:
    """Labels from what was read and trained on; the recipe is asked where the weights do not say."""
    trained = (recipe.data.dataset, trained_protocol_of(recipe))
    if identity is not None:
        trained = (identity.train.dataset, identity.train.protocol)
    return Labels(
        dataset=record.dataset,
        protocol=record.protocol,
        split=record.name,
        trained_on=trained[0],
        trained_protocol=trained[1],
        system=system,
        published=found.published,
        concerns=found.caveats,
        test_set=record.summary(),
    )


def check_complete(encoded: EncodedSplit, dataset: str, split: str) -> None:
    """Raise `DatasetError` where clips of a split were left out."""
    if encoded.left_out:
        first = encoded.left_out[0]
        raise DatasetError(
            f"{dataset}: {counted(len(encoded.left_out), 'clip')} of the {split} split left out "
            f"(first: {first.id}: {first.reason}); --require-complete makes this an error"
        )


def own_test_set(recipe: Recipe) -> TestSet:
    """The test set of the dataset a run was trained on."""
    data = recipe.data
    return TestSet(
        data.dataset,
        Path(data.root),
        Path(data.annotations) if data.annotations else None,
        Path(data.videos) if data.videos else None,
        data.protocol,
        Path(data.features) if data.features else None,
    )


def trained_protocol_of(recipe: Recipe) -> str:
    """The protocol a run was trained under, "" where its dataset has only one."""
    return protocol_for(recipe.task, recipe.data.dataset, recipe.data.protocol)


@dataclass(frozen=True, slots=True)
class OpenTestSet:
    """A test set that was read and not encoded yet: what it is, known before time is spent on it."""

    record: SplitRecord
    source: Split | FeatureStore

    def encode(
        self, model: AlignedModel, recipe: Recipe, device: torch.device, progress: Progress | None
    ) -> EncodedSplit:
        """Its features with a run's model. Raises `StoreError` where a store is of another backbone."""
        name, source = self.record.dataset, self.source
        if isinstance(source, FeatureStore):
            return encode_stored(model, source, self.record.name, device)
        watch = None if progress is None else lambda done, total: progress(f"{name} clips", done, total)
        return encode_split(model, source, stream_frames(source, model, recipe.data, watch), device, progress)


def open_test_set(recipe: Recipe, test: TestSet, split: str) -> OpenTestSet:
    """The `split` of a test set, for a run of `recipe`.

    Raises:
        CalmError: The test set is missing, or a feature store is of another dataset.
    """
    if test.features is not None:
        store = open_store(test.features, recipe.task, test.dataset, test.protocol)
        return OpenTestSet(store.record(split), store)
    dataset = load_test_set(test, recipe, split)
    if split not in dataset.splits:
        raise DatasetError(f"{test.dataset} has no {split} split; it has {', '.join(dataset.splits)}")
    chosen = dataset.splits[split]
    return OpenTestSet(record_split(dataset.name, dataset.protocol, chosen, contents_of(chosen.clips)), chosen)


def open_store(path: Path, task: str, dataset: str, protocol: str | None) -> FeatureStore:
    """A feature store that is asked for as `dataset`, under `protocol` where one is named.

    Raises:
        StoreError: It holds features of another dataset or protocol.
        DatasetError: Its protocol does not do for the task.
    """
    store = FeatureStore.open(path)
    store.require_dataset(dataset, protocol)
    protocol_for(task, dataset, store.protocol)
    return store


def load_test_set(test: TestSet, recipe: Recipe, split: str = "test") -> Dataset:
    """The dataset of a test set from where it was said to be; else beside the training data, then from data/NAME.

    Raises:
        DatasetError: It is in none of these places, or cannot be read.
    """
    places = [test.root] if test.root else [Path(recipe.data.root), Path("data") / test.dataset]
    protocol = protocol_for(recipe.task, test.dataset, test.protocol)
    # A run's validation clips were carved from its own training list: no other protocol, and no test split, has them.
    own = split != "test" and (test.dataset, protocol) == (recipe.data.dataset, trained_protocol_of(recipe))
    for number, place in enumerate(places, start=1):
        try:
            return load_dataset(
                test.dataset,
                place,
                protocol=protocol,
                annotations=test.annotations,
                videos=test.videos,
                val_clips=recipe.data.val_clips if own else None,
                val_seed=recipe.data.val_seed,
            )
        except DatasetError:
            if number == len(places):
                raise
    raise AssertionError("there is always a place to look in")


# Evaluations that are kept in a run's folder, each query's rank with them, and two runs compared on the same queries.
#
#     runs/NAME/evals/DATASET[-PROTOCOL]-SPLIT-WEIGHTS[-SCORER].json
#
# A number alone cannot be compared with another: whether two runs differ is a question about the queries that both
# answered (docs/protocols.md). So the ranks are kept; the last evaluation of a kind replaces the one before.


class Kept(Protocol):
    """An evaluation of either task, as it is kept."""

    @property
    def result(self) -> Labels:
        """What it is of."""

    @property
    def variant(self) -> str:
        """How it was scored, "" for the default."""

    def record(self) -> dict[str, Any]:
        """The numbers, and what there is of every query or clip, as plain data."""


def keep(run: Run, which: str, evaluation: Kept) -> Path:
    """Write an evaluation of the weights `which` into the folder of `run`. Raises `RunFailed` where it cannot."""
    result = evaluation.result
    words = [result.dataset, result.protocol, result.split, which, evaluation.variant]
    path = run.evals / f"{'-'.join(word for word in words if word)}.json"
    weights = {"weights": which, "weights_sha256": sha256_file(run.trained_weights(which))}
    write_json(path, {"run": str(run.folder), **weights, **evaluation.record(), **environment()})
    return path


def compare(first: Evaluation, second: Evaluation) -> Mapping[Direction, Mapping[str, PairedDifference]]:
    """`second` minus `first` by direction and metric, paired over clips.

    Raises:
        BadInput: They did not answer the same queries among the same clips.
    """
    one, other = first.encoded, second.encoded
    same = one.ids == other.ids and one.captions == other.captions and np.array_equal(one.owners, other.owners)
    if not same:
        raise BadInput(
            f"{first.result.dataset}: the two runs were tested on other clips or captions "
            f"({counted(len(one.ids), 'clip')} and {counted(len(one.captions), 'caption')}, "
            f"{len(other.ids)} and {len(other.captions)}): they cannot be paired"
        )
    before, after = first.ranks(), second.ranks()
    return {each: paired_differences(before[each], after[each]) for each in before if each in after}
