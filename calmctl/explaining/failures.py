"""A set, not only a pair: the worst-ranked queries, and the anchors that pulled the wrong clip up."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from calmctl.evaluation.metrics import rank_queries
from calmctl.explaining.collection import Collection, collection_scores
from calmctl.explaining.distributions import worth_saying
from calmctl.explaining.explainer import Explainer
from calmctl.explaining.score import anchor_directions, score_pair, split_score

_PULLS, _TOP, _CAPTIONS = 3, 3, 2


@dataclass(frozen=True, slots=True)
class Weighed:
    """An anchor and a number: a probability, or a part of a score."""

    anchor: str
    value: float


@dataclass(frozen=True, slots=True)
class Candidate:
    """A clip as one query saw it.

    Attributes:
        clip: Its id.
        score: Its score for the query.
        anchors: The strongest anchors of its V_p.
        captions: What people said of it, a few.
    """

    clip: str
    score: float
    anchors: tuple[Weighed, ...]
    captions: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Failure:
    """A query whose own clip did not come first.

    Attributes:
        query: The sentence.
        rank: The rank of its own clip from 1, equals averaged.
        anchors: The strongest anchors of the sentence's S_p.
        right: Its own clip.
        confusing: The wrong clip with the highest score.
        pulled: The anchors with the largest parts in the confusing clip's lead; the parts of all anchors, of
            what they share and of what none covers add up to the lead.
        shared: The lead's part from what all anchors share.
        rest: The lead's part that no anchor covers.
    """

    query: str
    rank: float
    anchors: tuple[Weighed, ...]
    right: Candidate
    confusing: Candidate
    pulled: tuple[Weighed, ...]
    shared: float
    rest: float


@dataclass(frozen=True, slots=True)
class Failures:
    """The worst-ranked queries of a split.

    Attributes:
        run: What searched.
        dataset, split: What was searched.
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
    order = [int(i) for i in np.lexsort((-lead, -ranks)) if ranks[i] > 1]
    directions = anchor_directions(explainer.anchors)
    labels = explainer.vocabulary.texts
    captions = _captions(collection)

    def describe(clip: int, score: float) -> Candidate:
        video = explainer.log_v(encoded.frames[clip]).exp()
        return Candidate(encoded.ids[clip], score, _said(labels, video), captions[clip][:_CAPTIONS])

    def explain_one(query: int) -> Failure:
        text, right, other = encoded.texts[query], int(owners[query]), int(confusing[query])
        ours, theirs = (
            split_score(score_pair(explainer.model.head, text, encoded.frames[clip]), directions)
            for clip in (right, other)
        )
        return Failure(
            query=encoded.captions[query],
            rank=float(ranks[query]),
            anchors=_said(labels, explainer.log_s(text).exp()),
            right=describe(right, float(scores[query, right])),
            confusing=describe(other, float(scores[query, other])),
            pulled=_strongest(labels, theirs.anchors - ours.anchors, _PULLS),
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


def _captions(collection: Collection) -> list[tuple[str, ...]]:
    """The captions of each clip."""
    found: list[list[str]] = [[] for _ in collection.encoded.ids]
    for caption, owner in zip(collection.encoded.captions, collection.encoded.owners, strict=True):
        found[int(owner)].append(caption)
    return [tuple(each) for each in found]


def _said(labels: tuple[str, ...], probabilities: torch.Tensor) -> tuple[Weighed, ...]:
    return tuple(Weighed(labels[k], float(probabilities[k])) for k in worth_saying(probabilities, _TOP))


def _strongest(labels: tuple[str, ...], values: torch.Tensor, count: int) -> tuple[Weighed, ...]:
    order: Iterable[int] = values.argsort(descending=True, stable=True)[:count].tolist()
    return tuple(Weighed(labels[k], float(values[k])) for k in order)
