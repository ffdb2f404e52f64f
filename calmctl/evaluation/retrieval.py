"""Retrieval evaluated: a model, a split, honest numbers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
import torch

from calmctl.errors import BadInput
from calmctl.evaluation.encoding import EncodedSplit, Stages
from calmctl.evaluation.metrics import DIRECTIONS, Direction, Ranks, rank_queries, retrieval_metrics
from calmctl.evaluation.paper import METHODS
from calmctl.evaluation.released import score_tmass_released
from calmctl.evaluation.rerank import dual_softmax
from calmctl.evaluation.result import HONEST_SCORER, Labels, RetrievalResult, retrieval_result
from calmctl.evaluation.scoring import score_all
from calmctl.model.calm import CalmModel

Scorer = Literal["leak-free", "tmass-released", "dual-softmax"]
SCORERS: tuple[Scorer, ...] = ("leak-free", "tmass-released", "dual-softmax")


@dataclass(frozen=True, slots=True)
class Evaluation:
    """One test set evaluated: the numbers, the scores [N_t, N_v] they are from, what was scored, and notes on it."""

    result: RetrievalResult
    scores: np.ndarray
    encoded: EncodedSplit
    notes: tuple[str, ...] = ()

    @property
    def variant(self) -> str:
        """The scorer where it is not the honest one."""
        return "" if self.result.scorer == HONEST_SCORER else self.result.scorer

    def ranks(self) -> dict[Direction, Ranks]:
        """Where each query's target stands, by direction; re-ranked scores are those of sentences as queries alone."""
        directions = DIRECTIONS if self.result.scorer != "dual-softmax" else DIRECTIONS[:1]
        return {each: rank_queries(self.scores, self.encoded.owners, each) for each in directions}

    def record(self) -> dict[str, Any]:
        """The numbers, clips and captions, and each query's rank."""
        encoded = self.encoded
        return {
            "result": self.result.to_json(),
            "clips": list(encoded.ids),
            "captions": list(encoded.captions),
            "owners": encoded.owners.tolist(),
            "ranks": {direction: _plain(ranks) for direction, ranks in self.ranks().items()},
        }


def _plain(ranks: Ranks) -> dict[str, Any]:
    columns = {"greater": ranks.greater, "equal": ranks.equal, "targets": ranks.targets, "clips": ranks.clips}
    return {name: column.tolist() for name, column in columns.items()} | {"n_candidates": ranks.n_candidates}


def score_split(
    model: CalmModel,
    encoded: EncodedSplit,
    device: torch.device,
    *,
    scorer: Scorer = "leak-free",
    progress: Callable[[int, int], None] | None = None,
) -> np.ndarray:
    """Scores [N_t, N_v] of all pairs of a split, before any re-ranking.

    Only "tmass-released", the audit of a leak, is told which caption belongs to which video.

    Raises:
        BadInput: The audit is asked of a head that is not T-MASS, or where N_t != N_v.
    """
    if scorer == "tmass-released":
        if model.head.name != "t-mass":
            raise BadInput(f"--protocol tmass-released audits T-MASS heads; this run's head is {model.head.name}")
        released: np.ndarray = score_tmass_released(
            model.head, encoded.texts, encoded.frames, torch.from_numpy(encoded.owners)
        ).numpy()
        return released
    return score_all(model.head, encoded.texts, encoded.frames, device=device, progress=progress).numpy()


def validation_numbers(model: CalmModel, encoded: EncodedSplit, device: torch.device) -> dict[str, float]:
    """Numbers of the validation split, and the "score" by which the best epoch is chosen.

    The score is text-to-video R@1, and where that ties the mean rank decides: both are from the validation
    split and the leak-free scorer alone (our choice).
    """
    metrics = retrieval_metrics(score_split(model, encoded, device), encoded.owners)
    ours, back = metrics["text_to_video"], metrics["video_to_text"]
    return {
        "score": ours.r1 - 1e-6 * ours.mnr,
        "t2v_r1": ours.r1,
        "t2v_r5": ours.r5,
        "t2v_r10": ours.r10,
        "t2v_mnr": ours.mnr,
        "v2t_r1": back.r1,
        "v2t_mnr": back.mnr,
    }


def evaluate_encoded(
    model: CalmModel,
    encoded: EncodedSplit,
    device: torch.device,
    labels: Labels,
    *,
    scorer: Scorer = "leak-free",
    progress: Stages | None = None,
) -> Evaluation:
    """Score a split and measure it both ways, with bootstrap intervals."""
    scoring = None if progress is None else partial(progress, "scoring pairs")
    scores = score_split(model, encoded, device, scorer=scorer, progress=scoring)
    if progress:
        progress("ranking, and bootstrap intervals", 0, 0)
    back = scores
    if scorer == "dual-softmax":  # each side's queries are re-ranked among themselves
        plain = torch.from_numpy(scores)
        scores, back = dual_softmax(plain).numpy(), dual_softmax(plain.T).T.numpy()
    result = retrieval_result(
        scores,
        encoded.owners,
        labels,
        scores_of_videos=back,
        scorer=scorer,
        paper_method=paper_method(model),
        left_out=len(encoded.left_out),
    )
    cut = model.backbone.tokens.cut(encoded.captions)
    return Evaluation(result, scores, encoded, () if cut is None else (cut,))


def paper_method(model: CalmModel) -> str:
    """The method of the paper's tables that this model stands for, "" for none: CALM there is T-MASS with the loss."""
    match model.alignment.kind:
        case "vae":
            return METHODS.get(f"{model.head.name}+calm", "")
        case "none":
            return METHODS.get(model.head.name, "")
        case _:
            return ""
