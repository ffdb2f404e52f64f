"""Evaluating a finished run, in and out of its domain."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import torch

from calmctl.data.identity import SplitRecord
from calmctl.data.registry import protocol_for
from calmctl.errors import BadInput, DatasetError, RunFailed
from calmctl.evaluation.card import Card
from calmctl.evaluation.metrics import Direction
from calmctl.evaluation.result import HONEST_SCORER, Labels
from calmctl.evaluation.retrieval import Evaluation
from calmctl.evaluation.statistics import PairedDifference, paired_differences
from calmctl.files import make_folder, read_json, sha256_bytes, sha256_file, stamp, unused, write_json
from calmctl.locks import locked
from calmctl.model.calm import AlignedModel
from calmctl.model.spec import read_spec
from calmctl.recipe import Recipe
from calmctl.runs.identity import judge, require_unseen, split_faults, started_from, weights_identity, weights_lineage
from calmctl.runs.run import WEIGHTS, Run
from calmctl.runtime import environment, installed_reader
from calmctl.source.base import SourceSpec
from calmctl.source.encoding import EncodedSplit
from calmctl.source.source import open_source
from calmctl.tensors import read_metadata
from calmctl.words import Progress, counted

Model = TypeVar("Model", bound=AlignedModel)
E = TypeVar("E", covariant=True)


class Task(Protocol[Model, E]):
    """What runs are trained for, and how they are evaluated: `Retrieval`, `Captioning`."""

    @property
    def scorer(self) -> str:
        """As in `Labels`."""
        ...

    def load(self, run: Run, which: str, device: torch.device) -> Model:
        """The weights `which` of a run. Raises `CheckpointError` for a run of another task."""
        ...

    def validate(self, model: Model, encoded: EncodedSplit) -> dict[str, float]:
        """Numbers of the validation split; "score" decides which epoch is best."""
        ...

    def evaluate(self, model: Model, encoded: EncodedSplit, labels: Labels, progress: Progress | None = None) -> E:
        """The numbers of an encoded split."""
        ...


def evaluate_run(
    run: Run,
    tests: Sequence[SourceSpec],
    task: Task[Model, E],
    *,
    which: str = "best",
    split: str = "test",
    device: torch.device,
    require_complete: bool = False,
    progress: Progress | None = None,
) -> list[E]:
    """Evaluate the weights `which` of `run` on the `split` of each test set, the model untouched.

    `which` is "best", "last" or "slim", `split` "test" or "val", `task` `Retrieval` or `Captioning` with its options. A
    protocol of None in `tests` is the task's own; with `require_complete` any clip left out is an error.

    Raises:
        CalmError: A test set is missing, has no usable clip, or is known to hold clips that were trained on.
    """
    recipe = run.recipe()
    # What is not there is said before a model is loaded, which takes seconds.
    sources = [open_source(test, recipe, val=split != "test") for test in tests]
    records = [source.record(split) for source in sources]
    weights = run.trained_weights(which)
    before = _stamp(weights)
    model = task.load(run, which, device)
    evaluations = []
    for test, source, record in zip(tests, sources, records, strict=True):
        # Before encoding: a set that is known to hold clips of the training is refused here.
        try:
            labels = labels_of(run, which, test, record, scorer=task.scorer)
        except FileNotFoundError:
            raise RunFailed(f"{run.folder} has been removed by another process") from None
        if _stamp(weights) != before:  # the labels would be of others than the model
            raise RunFailed(f"{weights} has changed while it was read: its training goes on; evaluate again")
        encoded = source.encode(model, split, progress)
        if require_complete:
            check_complete(encoded, test.dataset, split)
        evaluations.append(task.evaluate(model, encoded, labels, progress))
    return evaluations


def _stamp(weights: Path) -> list[int] | None:
    try:
        return stamp(weights)
    except FileNotFoundError:
        return None


def labels_of(
    run: Run,
    which: str,
    test: SourceSpec,
    record: SplitRecord,
    *,
    scorer: str = HONEST_SCORER,
    finished: bool | None = None,
) -> Labels:
    """The labels of what the weights `which` of a run give on a test set.

    Names are taken from `record`, what was read, and not from `test`, what was asked for. `finished` says whether the
    weights are final; None: where the run's folder says so.

    Raises:
        CheckpointError: The run is known to be trained on most of these clips.
    """
    weights = run.trained_weights(which)
    require_unseen(weights_lineage(str(weights)), record.dataset, record.protocol, what=str(run.folder))
    recipe, identity = run.recipe(), weights_identity(weights)
    if finished is None:
        finished = run.results.exists() or not run.log.exists()  # weights that were given away come without either
    judgement = judge(identity, record, run=run, own=test == SourceSpec.of(recipe.data), finished=finished)
    data = recipe.data  # which is asked where the weights do not say what they saw
    trained = (data.dataset, protocol_for(recipe.task, data.dataset, data.protocol))
    if identity is not None:
        trained = (identity.train.dataset, identity.train.protocol)
    spec = read_spec(read_metadata(weights, what="weights"), source=str(weights))
    card = Card(
        frames=data.frames,
        # Of features nobody knows what decoded them; which features they are is known.
        reader=f"features {record.features[:12]}" if record.features else installed_reader(),
        files=sha256_bytes(record.contents.encode()) if record.knows_files else None,
        pixels=None if spec is None else spec.frame_resize.described(),
        selection=WEIGHTS[which].partition(",")[0],  # how they were chosen, and not in which file they lie
        weights=sha256_file(weights),
        seeds=(recipe.seed,),
    )
    return Labels(
        card=card,
        dataset=record.dataset,
        protocol=record.protocol,
        split=record.name,
        trained_on=trained[0],
        trained_protocol=trained[1],
        system=WEIGHTS[which],
        scorer=scorer,
        published=judgement.published,
        concerns=judgement.caveats,
        test_set=record.summary(),
    )


def labels_of_start(recipe: Recipe, record: SplitRecord) -> Labels:
    """The labels of what the weights that a run started from give; of a pretrained tag only the test set is known."""
    weights = started_from(recipe)
    caveats = tuple(split_faults(record))
    if weights_lineage(weights):
        caveats = judge(weights_identity(Path(str(weights))), record, run=None, own=False).caveats
    return Labels(dataset=record.dataset, protocol=record.protocol, split=record.name, concerns=caveats)


def check_complete(encoded: EncodedSplit, dataset: str, split: str) -> None:
    """Raise `DatasetError` where clips of a split were left out."""
    if encoded.left_out:
        first = encoded.left_out[0]
        raise DatasetError(
            f"{dataset}: {counted(len(encoded.left_out), 'clip')} of the {split} split left out "
            f"(first: {first.id}: {first.reason}); --require-complete makes this an error"
        )


# Evaluations that are kept in a run's folder, each query's rank with them, and two runs compared on the same queries.
#
#     runs/NAME/evals/DATASET[-PROTOCOL]-SPLIT-WEIGHTS[-SCORER].json
#
# A number alone cannot be compared with another: whether two runs differ is a question about the queries that both
# answered (docs/protocols.md). So the ranks are kept. An evaluation of the same weights on the same clips replaces the
# one before; of other weights, or by another protocol under the same name, it stands beside it as NAME-2.json.


class Result(Protocol):
    """The numbers of an evaluation of either task."""

    @property
    def labels(self) -> Labels:
        """What they are of."""


class Kept(Protocol):
    """An evaluation of either task, as it is kept."""

    @property
    def result(self) -> Result:
        """Its numbers."""

    def record(self) -> dict[str, Any]:
        """The numbers, and what there is of every query or clip, as plain data."""


def keep(run: Run, which: str, evaluation: Kept) -> Path:
    """Write an evaluation of the weights `which` into the folder of `run`. Raises `RunFailed` where it cannot."""
    if not run.folder.exists():
        raise RunFailed(f"{run.folder} has been removed")
    labels = evaluation.result.labels
    words = [labels.dataset, labels.protocol, labels.split, which]
    words += [labels.scorer.partition(" (")[0]] if labels.scorer != HONEST_SCORER else []
    path = run.evals / f"{'-'.join(word for word in words if word)}.json"
    # A name is no identity: a run that went on has other weights under the same one.
    # What was evaluated, and not what lies there by now: a training may have gone on.
    weights = {"weights": which, "weights_sha256": labels.card.weights or sha256_file(run.trained_weights(which))}
    # By its name alone: the file lies in the run's own folder, which may be moved.
    record = {"run": run.folder.name, **weights, **evaluation.record(), **environment()}

    def of_something_else(other: Path) -> bool:
        if not other.exists():
            return False
        theirs = read_json(other, what=f"run {run.folder}")
        return _what_it_is_of(theirs) != _what_it_is_of(record)

    make_folder(run.evals)
    # Of two at once the second would take the first one's name for free.
    with locked(run.evals, RunFailed(f"{run.evals} is in use"), on_wait=lambda: None):
        path = unused(path, of_something_else)
        write_json(path, record)
    return path


def _what_it_is_of(record: Any) -> tuple[Any, ...]:
    """Digests of weights, test set and protocol; whatever else a file holds is something else."""
    try:
        result = record["result"]
        test_set, card = result["test_set"] or {}, result.get("card") or {}
        return record["weights_sha256"], test_set.get("digest"), card.get("column")
    except (KeyError, TypeError, AttributeError):
        return ()


def compare(first: Evaluation, second: Evaluation) -> Mapping[Direction, Mapping[str, PairedDifference]]:
    """`second` minus `first` by direction and metric, paired over clips.

    Raises:
        BadInput: They did not answer the same queries among the same clips.
    """
    one, other = first.encoded, second.encoded
    # The order too: ranks are paired by their place.
    same = one.ids == other.ids and one.captions == other.captions and np.array_equal(one.owners, other.owners)
    if not same:
        raise BadInput(
            f"{first.result.labels.dataset}: the two runs were tested on other clips or captions "
            f"({counted(len(one.ids), 'clip')} and {counted(len(one.captions), 'caption')}, "
            f"{len(other.ids)} and {len(other.captions)}): they cannot be paired"
        )
    before, after = first.own_ranks(), second.own_ranks()
    return {each: paired_differences(before[each], after[each]) for each in before if each in after}
