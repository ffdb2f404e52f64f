"""Evaluating a finished run, in and out of its domain."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from calmctl.data.registry import load_dataset, protocol_for
from calmctl.data.samples import Dataset
from calmctl.data.store import FeatureStore
from calmctl.errors import DatasetError
from calmctl.evaluation.encoding import EncodedSplit, encode_split, encode_stored, stream_frames
from calmctl.evaluation.retrieval import Evaluation, Scorer, evaluate_encoded
from calmctl.model.aligned import AlignedModel
from calmctl.recipe import Recipe
from calmctl.runs.folder import WEIGHTS, Run
from calmctl.runs.load import load_run

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
        CalmError: A test set is missing or has no usable clip; with `require_complete`, any clip left out.
    """
    recipe = run.recipe()
    # What is not there is said before a model is loaded, which takes seconds.
    datasets = [None if test.features else load_test_set(test, recipe) for test in tests]
    model = load_run(run, which, device)
    trained_protocol = trained_protocol_of(recipe)
    evaluations = []
    for test, dataset in zip(tests, datasets, strict=True):
        encoded, protocol = encode_test_set(model, recipe, test, split, device, progress, dataset)
        if require_complete:
            check_complete(encoded, test.dataset, split)
        evaluations.append(
            evaluate_encoded(
                model,
                encoded,
                device,
                dataset=test.dataset,
                protocol=protocol,
                trained_on=recipe.data.dataset,
                trained_protocol=trained_protocol,
                system=WEIGHTS[which],
                split=split,
                scorer=scorer,
                progress=progress,
            )
        )
    return evaluations


def check_complete(encoded: EncodedSplit, dataset: str, split: str) -> None:
    """Raise `DatasetError` where clips of a split were left out."""
    if encoded.left_out:
        first = encoded.left_out[0]
        raise DatasetError(
            f"{dataset}: {len(encoded.left_out)} clips of the {split} split are left out "
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


def encode_test_set(
    model: AlignedModel,
    recipe: Recipe,
    test: TestSet,
    split: str,
    device: torch.device,
    progress: Progress | None,
    dataset: Dataset | None = None,
) -> tuple[EncodedSplit, str]:
    """Features of the `split` of a test set with a run's model, and the protocol they are of.

    `dataset` is what `load_test_set` reads, where it was read already.

    Raises:
        CalmError: The test set is missing or has no usable clip, or a feature store is of another backbone.
    """
    if test.features is not None:
        store = FeatureStore.open(test.features)
        protocol = protocol_for(recipe.task, test.dataset, store.protocol)
        return encode_stored(model, store, split, device), protocol
    dataset = dataset or load_test_set(test, recipe)
    if split not in dataset.splits:
        raise DatasetError(f"{test.dataset} has no {split} split; it has {', '.join(dataset.splits)}")
    chosen = dataset.splits[split]
    watch = None if progress is None else lambda done, total: progress(f"{test.dataset} clips", done, total)
    frames = stream_frames(chosen, model, recipe.data, watch)
    return encode_split(model, chosen, frames, device, progress), dataset.protocol


def load_test_set(test: TestSet, recipe: Recipe) -> Dataset:
    """The dataset of a test set from where it was said to be; else beside the training data, then from data/NAME.

    Raises:
        DatasetError: It is in none of these places, or cannot be read.
    """
    places = [test.root] if test.root else [Path(recipe.data.root), Path("data") / test.dataset]
    for number, place in enumerate(places, start=1):
        try:
            return load_dataset(
                test.dataset,
                place,
                protocol=protocol_for(recipe.task, test.dataset, test.protocol),
                annotations=test.annotations,
                videos=test.videos,
                val_clips=recipe.data.val_clips if test.dataset == recipe.data.dataset else None,
                val_seed=recipe.data.val_seed,
            )
        except DatasetError:
            if number == len(places):
                raise
    raise AssertionError("there is always a place to look in")
