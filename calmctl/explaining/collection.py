"""A split of the run's own dataset, encoded: what a clip or a sentence is ranked among."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from calmctl.anchors.distribution import kl_divergence
from calmctl.data.samples import Clip, Split
from calmctl.errors import BadInput
from calmctl.evaluation.encoding import EncodedSplit
from calmctl.evaluation.result import left_out_caveats
from calmctl.evaluation.runs import labels_of, open_test_set, own_test_set
from calmctl.evaluation.scoring import score_all
from calmctl.explaining.distributions import without
from calmctl.explaining.explainer import Explainer
from calmctl.explaining.score import anchor_directions, project_out

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Collection:
    """An encoded split.

    Attributes:
        dataset: The dataset's name.
        split: The split's name.
        encoded: Its features, captions and owners.
        clips: The clips' files by id; empty where features were extracted and only they are at hand.
        caveats: What must be said of numbers on it.
    """

    dataset: str
    split: str
    encoded: EncodedSplit
    clips: dict[str, Clip]
    caveats: tuple[str, ...] = ()


def open_collection(explainer: Explainer, split: str, progress: Progress | None = None) -> Collection:
    """Encode `split` of the dataset that the explainer's run was trained on.

    Raises:
        BadInput: There is no run, and so no dataset.
        DatasetError: The dataset or the split is not there, or no clip of it is usable.
    """
    if explainer.run is None:
        raise BadInput("a bare backbone has no dataset to look at; name a run with --run")
    recipe = explainer.run.recipe()
    test = own_test_set(recipe)
    opened = open_test_set(recipe, test, split)
    labels = labels_of(explainer.run, explainer.which, test, opened.record)
    watch = None if progress is None else lambda _, done, total: progress(done, total)
    encoded = opened.encode(explainer.model, recipe, explainer.device, watch)
    clips = {clip.id: clip for clip in opened.source.clips} if isinstance(opened.source, Split) else {}
    caveats = (*left_out_caveats(labels.dataset, len(encoded.ids), len(encoded.left_out)), *labels.concerns)
    return Collection(labels.dataset, split, encoded, clips, caveats)


def collection_scores(explainer: Explainer, texts: Tensor, frames: Tensor) -> np.ndarray:
    """The head's scores [N_t, N_v] of texts [N_t, D] and videos [N_v, F, D]; the leak-free scorer."""
    scores: np.ndarray = score_all(explainer.model.head, texts, frames, device=explainer.device).numpy()
    return scores


def rank_of(scores: Tensor, index: int) -> float:
    """The rank from 1 of one candidate among `scores` [N], highest best; equals count half (docs/protocols.md)."""
    own = scores[index]
    return 1.0 + float((scores > own).sum()) + 0.5 * float((scores == own).sum() - 1)


@dataclass(frozen=True, slots=True)
class Standing:
    """Where a video stands for a sentence among the clips of a collection.

    Attributes:
        clips: How many stand there, the video included.
        by_score: Rank by the retrieval score.
        by_anchors: Rank by KL(S_p || V_p), the smallest first: by the anchors alone.
    """

    clips: int
    by_score: float
    by_anchors: float


@torch.inference_mode()
def standing(explainer: Explainer, text: Tensor, frames: Tensor, removed: list[int] | None = None) -> Standing:
    """Rank the first of `frames` [N_v, F, D] for one text [D], without the anchors `removed` where there are any.

    Without them means, for the anchors' rank, that they are not in the vocabulary; for the score's rank, that
    what is particular to them (not shared by all anchors) is taken out of every feature before scoring.
    """
    log_s, log_v = explainer.log_s(text), explainer.log_v(frames)
    if removed:
        log_s, log_v = without(log_s, removed), without(log_v, removed)
        gone = anchor_directions(explainer.anchors).centred[removed]
        text, frames = project_out(text, gone), project_out(frames, gone)
    scores = torch.from_numpy(collection_scores(explainer, text[None], frames)[0])
    return Standing(len(frames), rank_of(scores, 0), rank_of(-kl_divergence(log_s, log_v), 0))
