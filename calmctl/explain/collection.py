"""A split of the run's own dataset, encoded: what a clip or a sentence is ranked among."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from calmctl.anchors.distribution import kl_divergence
from calmctl.errors import BadInput
from calmctl.evaluation.metrics import rank_queries
from calmctl.evaluation.result import left_out_caveats
from calmctl.evaluation.retrieval import score_all
from calmctl.evaluation.runs import labels_of
from calmctl.explain.anchors import without, worth_saying
from calmctl.explain.explainer import Explainer
from calmctl.explain.score import anchor_directions, project_out, score_pair, split_score
from calmctl.samples import Clip, Split
from calmctl.source.base import SourceSpec
from calmctl.source.encoding import EncodedSplit
from calmctl.source.source import open_source
from calmctl.words import Progress


@dataclass(frozen=True, slots=True)
class Collection:
    """An encoded split.

    Attributes:
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
    own = SourceSpec.of(recipe.data)
    source = open_source(own, recipe, val=split != "test")
    # Before encoding, which takes long: clips that were trained on are refused here.
    labels = labels_of(explainer.run, explainer.which, own, source.record(split))
    encoded = source.encode(explainer.model, split, progress)
    chosen = source.split(split)
    clips = {clip.id: clip for clip in chosen.clips} if isinstance(chosen, Split) else {}
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
        # Of every clip and of the sentence, or the others would be ranked by what this one has lost.
        directions = anchor_directions(explainer.anchors).centred[removed]
        text, frames = project_out(text, directions), project_out(frames, directions)
    scores = torch.from_numpy(collection_scores(explainer, text[None], frames)[0])
    return Standing(len(frames), rank_of(scores, 0), rank_of(-kl_divergence(log_s, log_v), 0))


# A set, not only a pair: the worst-ranked queries, and the anchors that pulled the wrong clip up.


_PULLS, _TOP, _CAPTIONS = 3, 3, 2


@dataclass(frozen=True, slots=True)
class AnchorWeight:
    """An anchor and a number: a probability, or a part of a score."""

    anchor: str
    value: float


@dataclass(frozen=True, slots=True)
class Candidate:
    """A clip as one query saw it.

    Attributes:
        score: Its score for the query.
        anchors: The strongest anchors of its V_p.
        captions: What people said of it, a few.
    """

    clip: str
    score: float
    anchors: tuple[AnchorWeight, ...]
    captions: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Failure:
    """A query whose own clip did not come first.

    Attributes:
        rank: The rank of its own clip from 1, equals averaged.
        anchors: The strongest anchors of the sentence's S_p.
        confusing: The wrong clip with the highest score.
        pulled: The anchors with the largest parts in the confusing clip's lead; the parts of all anchors, of
            what they share and of what none covers add up to the lead.
        shared: The lead's part from what all anchors share.
        rest: The lead's part that no anchor covers.
    """

    query: str
    rank: float
    anchors: tuple[AnchorWeight, ...]
    right: Candidate
    confusing: Candidate
    pulled: tuple[AnchorWeight, ...]
    shared: float
    rest: float


@dataclass(frozen=True, slots=True)
class Failures:
    """The worst-ranked queries of a split.

    Attributes:
        queries, clips: How many sentences searched how many clips.
        failed: How many queries did not find their clip first (ties count as failed).
        worst: The worst of them, worst first.
        caveats: What must be said of these numbers.
    """

    run: str
    dataset: str
    split: str
    queries: int
    clips: int
    failed: int
    worst: tuple[Failure, ...]
    caveats: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


@torch.inference_mode()
def find_failures(explainer: Explainer, collection: Collection, count: int) -> Failures:
    """The `count` worst-ranked queries of a collection; of equal ranks the ones with the larger lead first."""
    encoded, owners = collection.encoded, collection.encoded.owners
    scores = collection_scores(explainer, encoded.texts, encoded.frames)
    ranks = rank_queries(scores, owners).ranks()
    own = scores[np.arange(len(owners)), owners]
    wrong = scores.copy()
    wrong[np.arange(len(owners)), owners] = -np.inf
    confusing = wrong.argmax(axis=1)
    lead = wrong.max(axis=1) - own
    # A tie for the first place is a failure too: nothing says that the right one would be listed first.
    order = [int(i) for i in np.lexsort((-lead, -ranks)) if ranks[i] > 1]
    directions = anchor_directions(explainer.anchors)
    labels = explainer.vocabulary.texts
    captions = encoded.captions_by_clip()

    def describe(clip: int, score: float) -> Candidate:
        video = explainer.log_v(encoded.frames[clip]).exp()
        return Candidate(encoded.ids[clip], score, _top_anchors(labels, video), captions[clip][:_CAPTIONS])

    def explain_one(query: int) -> Failure:
        text, right, other = encoded.texts[query], int(owners[query]), int(confusing[query])
        # Both against the same sentence: the parts of the two scores are then those of one difference, the lead.
        ours, theirs = (
            split_score(score_pair(explainer.model.head, text, encoded.frames[clip]), directions)
            for clip in (right, other)
        )
        pulls = theirs.anchors - ours.anchors
        strongest = pulls.argsort(descending=True, stable=True)[:_PULLS].tolist()
        return Failure(
            query=encoded.captions[query],
            rank=float(ranks[query]),
            anchors=_top_anchors(labels, explainer.log_s(text).exp()),
            right=describe(right, float(scores[query, right])),
            confusing=describe(other, float(scores[query, other])),
            pulled=tuple(AnchorWeight(labels[k], float(pulls[k])) for k in strongest),
            shared=theirs.shared - ours.shared,
            rest=theirs.rest - ours.rest,
        )

    return Failures(
        run=explainer.name,
        dataset=collection.dataset,
        split=collection.split,
        queries=len(owners),
        clips=scores.shape[1],
        failed=len(order),
        worst=tuple(explain_one(query) for query in order[:count]),
        caveats=collection.caveats,
    )


def _top_anchors(labels: tuple[str, ...], probabilities: torch.Tensor) -> tuple[AnchorWeight, ...]:
    return tuple(AnchorWeight(labels[k], float(probabilities[k])) for k in worth_saying(probabilities, _TOP))
