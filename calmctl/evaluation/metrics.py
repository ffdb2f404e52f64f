"""Retrieval metrics from scores alone: R@1/5/10, median and mean rank, both ways, with ties counted fairly.

Ties count as the average over all orders of the equals (docs/protocols.md, our decision), so a constant score
matrix gives chance and no sorting order can flatter a model. Scores [N_t, N_v] and `owners` [N_t] (the clip
each caption describes) are all that goes in; N_t and N_v are unrelated.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from calmctl.errors import BadInput, RunFailed

Direction = Literal["text_to_video", "video_to_text", "video_to_text_plain"]
Ties = Literal["average", "optimistic", "pessimistic"]
DIRECTIONS: tuple[Direction, ...] = get_args(Direction)
_BLOCK_ELEMENTS = 4_000_000  # comparisons are made block by block: memory stays small beside the scores

Floats = NDArray[np.floating[Any]]
Integers = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class RetrievalMetrics:
    """Metrics of one direction.

    Attributes:
        r1, r5, r10: R@K in percent.
        mdr, mnr: Median and mean rank, from 1.
        n_queries, n_candidates: How many queries, and how many candidates each of them ranks.
    """

    r1: float
    r5: float
    r10: float
    mdr: float
    mnr: float
    n_queries: int
    n_candidates: int


@dataclass(frozen=True, slots=True)
class FurtherMetrics:
    """What other papers report of one direction; ties count as the mean over all orders of the equals.

    R@k here is also called hit@k: a query succeeds where any of its targets is among the first k. Only in plain
    video-to-text has a query several targets, and there alone nDCG@10 counts more than the best of them.

    Attributes:
        r50: R@50 in percent.
        ndcg10: nDCG@10 in percent, gain 1 a target, discount 1 / log2(1 + rank).
        mrr: Mean reciprocal rank of the best target, in percent.
    """

    r50: float
    ndcg10: float
    mrr: float


@dataclass(frozen=True, slots=True, eq=False)
class Ranks:
    """Where each query's target stands, before ties are settled; one entry a query, [N].

    Attributes:
        greater: Wrong candidates that score strictly above the best target.
        equal: Wrong candidates that score the same as the best target.
        targets: Targets at that score: 1, or more in plain video-to-text where captions of one clip tie.
        clips: The clip each query belongs to, by which queries are resampled together.
        n_candidates: Number of candidates of every query.
    """

    greater: Integers
    equal: Integers
    targets: Integers
    clips: Integers
    n_candidates: int

    def recall(self, k: int, ties: Ties = "average") -> NDArray[np.float64]:
        """Each query's contribution to R@k, in [0, 1], [N].

        Average ties: the share of orders of the equals in which a target is among the first k. With one
        target that is clip((k - greater) / (equal + 1), 0, 1); with more, the complement of the chance to
        draw only wrong ones.
        """
        if ties == "optimistic":
            return np.where(self.greater < k, 1.0, 0.0)
        if ties == "pessimistic":
            return np.where(self.greater + self.equal < k, 1.0, 0.0)
        if (self.targets == 1).all():
            return np.asarray(np.clip((k - self.greater) / (self.equal + 1), 0.0, 1.0), dtype=np.float64)
        places = np.clip(k - self.greater, 0, self.equal + self.targets)
        missed = np.ones(len(self.greater))
        for draw in range(min(k, int(places.max(initial=0)))):
            wrong_left = np.maximum(self.equal - draw, 0)
            left = np.maximum(self.equal + self.targets - draw, 1)
            missed = np.where(draw < places, missed * wrong_left / left, missed)
        return 1.0 - missed

    def ranks(self, ties: Ties = "average") -> NDArray[np.float64]:
        """Each query's rank of its best target, from 1, [N]; fractional where equals are averaged."""
        before = self.equal / (self.targets + 1) if ties == "average" else 1.0 * self.equal
        return 1.0 + self.greater + (0.0 if ties == "optimistic" else before)

    def reciprocal(self, k: int | None = None) -> NDArray[np.float64]:
        """Each query's expected 1 / rank of its best target over all orders of the equals, [N]; 0 behind the first `k`.

        One target among e equals stands at g + 1 ... g + e + 1 equally often: a mean of the harmonic series. Of m
        targets the first stands at g + 1 + j where j wrong ones are drawn before any of them.
        """
        depth = self.n_candidates if k is None else min(k, self.n_candidates)
        harmonic = np.concatenate([[0.0], np.cumsum(1.0 / np.arange(1, self.n_candidates + 1))])
        last, first = np.minimum(self.greater + self.equal + 1, depth), np.minimum(self.greater, depth)
        expected = (harmonic[last] - harmonic[first]) / (self.equal + 1)
        for query in np.flatnonzero((self.targets > 1) & (self.equal > 0)):
            wrong, right = int(self.equal[query]), int(self.targets[query])
            expected[query], none_yet = 0.0, 1.0
            for j in range(min(wrong + 1, depth - int(self.greater[query]))):
                expected[query] += none_yet * right / (right + wrong - j) / (self.greater[query] + 1 + j)
                none_yet *= (wrong - j) / (right + wrong - j)
        alone = (self.targets > 1) & (self.equal == 0)
        expected[alone] = np.where(self.greater[alone] < depth, 1.0 / (1 + self.greater[alone]), 0.0)
        return np.asarray(expected, dtype=np.float64)

    def gains(self, k: int = 10) -> NDArray[np.float64]:
        """Each query's expected discounted gain within the first `k`, [N]; of one target, which makes it nDCG@k."""
        upto = np.concatenate([[0.0], np.cumsum(1.0 / np.log2(2.0 + np.arange(k)))])
        first, last = np.minimum(self.greater, k), np.minimum(self.greater + self.equal + 1, k)
        return np.asarray((upto[last] - upto[first]) / (self.equal + 1), dtype=np.float64)

    def metrics(self, ties: Ties = "average") -> RetrievalMetrics:
        """The metrics over all queries."""
        ranks = self.ranks(ties)
        r1, r5, r10 = (100.0 * float(self.recall(k, ties).mean()) for k in (1, 5, 10))
        return RetrievalMetrics(
            r1, r5, r10, float(np.median(ranks)), float(ranks.mean()), len(ranks), self.n_candidates
        )


def rank_queries(scores: ArrayLike, owners: ArrayLike, direction: Direction = "text_to_video") -> Ranks:
    """Rank every query of one direction.

    Args:
        scores: Similarities [N_t, N_v]; only their order matters.
        owners: The clip that each caption describes, [N_t].
        direction: "text_to_video": every caption is a query, every clip a candidate.
            "video_to_text": every clip with captions is a query, the candidates are the clips that have
            captions, each by its best caption (the released convention, docs/protocols.md).
            "video_to_text_plain": the same queries; the candidates are all captions, and the rank is that
            of the clip's best own caption.

    Raises:
        BadInput: Shapes or owners that do not fit.
        RunFailed: A score is NaN; the message names the caption and the clip.
    """
    scores_, owners_ = _checked(scores, owners)
    match direction:
        case "text_to_video":
            return _text_to_video(scores_, owners_)
        case "video_to_text":
            return _video_to_text(scores_, owners_)
        case "video_to_text_plain":
            return _video_to_text_plain(scores_, owners_)
    raise BadInput(f"there is no direction {direction!r}; choose one of {', '.join(DIRECTIONS)}")


def rank_all(
    scores: ArrayLike, owners: ArrayLike, *, scores_of_videos: ArrayLike | None = None
) -> dict[Direction, Ranks]:
    """Rank the queries of every direction, once for all that is made of the ranks; arguments as in `rank_queries`.

    `scores_of_videos` [N_t, N_v] is for a scorer whose scores depend on which side asks, as re-ranking's do: it is
    used where the videos are the queries.
    """
    back = scores if scores_of_videos is None else scores_of_videos
    return {each: rank_queries(scores if each == "text_to_video" else back, owners, each) for each in DIRECTIONS}


def ndcg_of_captions(places: Ranks, k: int = 10) -> NDArray[np.float64]:
    """nDCG@k of each clip that ranks all captions, [clips in order].

    Gains add up, so that each own caption's expected gain is all that is needed, whatever it is tied with.

    Args:
        places: Of each caption, its place among all captions as its own clip ranks them; one target each.
        k: Captions that count.
    """
    _, cluster, sizes = np.unique(places.clips, return_inverse=True, return_counts=True)
    ideal = np.cumsum(1.0 / np.log2(2.0 + np.arange(k)))
    return np.asarray(np.bincount(cluster, places.gains(k)) / ideal[np.minimum(sizes, k) - 1], dtype=np.float64)


def further_metrics(ranks: Ranks, ndcg: NDArray[np.float64] | None = None) -> FurtherMetrics:
    """R@50, nDCG@10 and MRR of one direction; `ndcg` of each query where a query has several targets."""
    gains = ranks.gains() if ndcg is None else ndcg
    return FurtherMetrics(
        100.0 * float(ranks.recall(50).mean()), 100.0 * float(gains.mean()), 100.0 * float(ranks.reciprocal().mean())
    )


def text_to_video(scores: ArrayLike, owners: ArrayLike, ties: Ties = "average") -> RetrievalMetrics:
    """Text-to-video metrics; arguments as in `rank_queries`."""
    return rank_queries(scores, owners, "text_to_video").metrics(ties)


def video_to_text(scores: ArrayLike, owners: ArrayLike, ties: Ties = "average") -> RetrievalMetrics:
    """Video-to-text metrics in the released grouped-max convention; arguments as in `rank_queries`."""
    return rank_queries(scores, owners, "video_to_text").metrics(ties)


def retrieval_metrics(scores: ArrayLike, owners: ArrayLike) -> dict[Direction, RetrievalMetrics]:
    """The metrics of every direction; arguments as in `rank_queries`."""
    return {direction: ranks.metrics() for direction, ranks in rank_all(scores, owners).items()}


def _checked(scores: ArrayLike, owners: ArrayLike) -> tuple[Floats, Integers]:
    scores_ = np.asarray(scores)
    owners_ = np.asarray(owners)
    if scores_.dtype.kind in "iu":
        scores_ = scores_.astype(np.float64)
    if scores_.ndim != 2 or scores_.size == 0 or scores_.dtype.kind != "f":
        raise BadInput(f"scores must be numbers [N_t, N_v], not {scores_.dtype} {list(scores_.shape)}")
    if owners_.shape != scores_.shape[:1] or owners_.dtype.kind not in "iu":
        raise BadInput(
            f"owners must be one clip index for each of the {len(scores_)} captions, "
            f"not {owners_.dtype} {list(owners_.shape)}"
        )
    outside = np.flatnonzero((owners_ < 0) | (owners_ >= scores_.shape[1]))
    if len(outside):
        raise BadInput(f"owners[{outside[0]}] is {owners_[outside[0]]}, but there are {scores_.shape[1]} clips")
    for rows in _blocks(*scores_.shape):
        bad = np.argwhere(np.isnan(scores_[rows]))
        if len(bad):
            text, clip = rows.start + bad[0][0], bad[0][1]
            raise RunFailed(
                f"the score of caption {text} with clip {clip} is NaN: the model diverged or a feature is "
                "damaged; no metrics can be made of it"
            )
    return scores_, owners_.astype(np.int64)


def _blocks(length: int, width: int) -> list[slice]:
    """Slices over `length` such that a block of `width` wide rows stays small."""
    step = max(1, _BLOCK_ELEMENTS // max(width, 1))
    return [slice(start, min(start + step, length)) for start in range(0, length, step)]


def _text_to_video(scores: Floats, owners: Integers) -> Ranks:
    greater = np.empty(len(scores), np.int64)
    equal = np.empty(len(scores), np.int64)
    for rows in _blocks(*scores.shape):
        block = scores[rows]
        own = np.take_along_axis(block, owners[rows, None], axis=1)
        greater[rows] = (block > own).sum(axis=1)
        equal[rows] = (block == own).sum(axis=1) - 1
    return Ranks(greater, equal, np.ones_like(greater), owners, scores.shape[1])


def _video_to_text(scores: Floats, owners: Integers) -> Ranks:
    order = np.argsort(owners, kind="stable")
    clips, starts = np.unique(owners[order], return_index=True)
    greater = np.empty(len(clips), np.int64)
    equal = np.empty(len(clips), np.int64)
    for queries in _blocks(len(clips), len(scores)):
        best = np.maximum.reduceat(scores[np.ix_(order, clips[queries])], starts, axis=0)  # [groups, queries]
        own = best[np.arange(len(clips))[queries], np.arange(best.shape[1])]
        greater[queries] = (best > own).sum(axis=0)
        equal[queries] = (best == own).sum(axis=0) - 1
    return Ranks(greater, equal, np.ones_like(greater), clips.astype(np.int64), len(clips))


def _video_to_text_plain(scores: Floats, owners: Integers) -> Ranks:
    clips = np.unique(owners)
    greater = np.empty(len(clips), np.int64)
    equal = np.empty(len(clips), np.int64)
    targets = np.empty(len(clips), np.int64)
    for queries in _blocks(len(clips), len(scores)):
        block = scores[:, clips[queries]]  # [N_t, queries]
        mine = owners[:, None] == clips[queries]
        best = np.where(mine, block, -np.inf).max(axis=0)
        greater[queries] = (block > best).sum(axis=0)
        same = block == best
        targets[queries] = (same & mine).sum(axis=0)
        equal[queries] = (same & ~mine).sum(axis=0)
    return Ranks(greater, equal, targets, clips.astype(np.int64), len(scores))
