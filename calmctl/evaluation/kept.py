"""Evaluations that are kept in a run's folder, each query's rank with them, and two runs compared on the same queries.

    runs/NAME/evals/DATASET[-PROTOCOL]-SPLIT-WEIGHTS[-SCORER].json

A number alone cannot be compared with another: whether two runs differ is a question about the queries that both
answered (docs/protocols.md). So the ranks are kept; the last evaluation of a kind replaces the one before.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from calmctl.errors import BadInput
from calmctl.evaluation.bootstrap import PairedDifference, paired_differences
from calmctl.evaluation.metrics import Direction
from calmctl.evaluation.result import Labels
from calmctl.evaluation.retrieval import Evaluation
from calmctl.files import sha256_file, write_json
from calmctl.provenance import environment
from calmctl.runs.folder import Run


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
            f"{first.result.dataset}: the two runs were tested on other clips or captions ({len(one.ids)} clips and "
            f"{len(one.captions)} captions, {len(other.ids)} and {len(other.captions)}): they cannot be paired"
        )
    before, after = first.ranks(), second.ranks()
    return {each: paired_differences(before[each], after[each]) for each in before if each in after}
