"""How much of the exact answer the first stage of a two-stage search keeps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from calmctl.searching.approximate import Graph
from calmctl.searching.exact import Best


@dataclass(frozen=True, slots=True)
class Recall:
    """The first stage against the exact answer.

    Attributes:
        at: k of recall@k.
        queries: How many queries it is the mean of.
        candidates: Clips that the first stage passes on.
        kept: Share of the exact best `at` clips that are among them: the two-stage answer holds exactly these.
        first: Share that would be left if the first stage's own best `at` were the answer.
    """

    at: int
    queries: int
    candidates: int
    kept: float
    first: float


def measure_recall(exact: Sequence[Best], graph: Graph, sentences: Tensor, *, candidates: int, at: int = 10) -> Recall:
    """Compare the graph's candidates of every query with its exact answer.

    Args:
        exact: The exact best `at` of every query.
        graph: The first stage.
        sentences: Sentence features [N_t, D] of the same queries.
        candidates: Clips that the first stage is to pass on: as in a search, at least `at`, and at most all.
        at: k.
    """
    candidates = min(max(at, candidates), len(graph))
    kept, first = [], []
    for best, sentence in zip(exact, sentences, strict=True):
        kept.append(_share(best, graph.candidates(sentence, candidates)))
        first.append(_share(best, graph.candidates(sentence, at)))
    return Recall(at, len(kept), candidates, float(np.mean(kept)), float(np.mean(first)))


def _share(best: Best, positions: np.ndarray) -> float:
    return len(set(best.positions) & set(positions.tolist())) / max(1, len(best.positions))
