"""How much of a number is chance: bootstrap intervals, and whether two systems differ.

Queries are resampled with replacement, all queries of one clip together: the captions of one clip succeed and
fail together, and counting them as independent would make MSVD's 41 captions a clip look like 41 clips.
Percentile bootstrap (Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13).
Where every query succeeds or every query fails the interval of a recall has no width; that is the method's
limit, not certainty.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from calmctl.errors import BadInput
from calmctl.evaluation.metrics import Ranks

METRICS = ("r1", "r5", "r10", "mdr", "mnr")
_BLOCK_ELEMENTS = 4_000_000

Doubles = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Interval:
    """A confidence interval, in the metric's own unit."""

    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Intervals:
    """Intervals of one direction's metrics, and how they were made.

    Attributes:
        r1: Of R@1, in percent.
        r5: Of R@5, in percent.
        r10: Of R@10, in percent.
        mdr: Of the median rank.
        mnr: Of the mean rank.
        level: Coverage aimed at, 0.95 by default.
        replicates: Number of resamples.
        seed: Seed of the resampling.
        n_clusters: Number of clips that were resampled.
    """

    r1: Interval
    r5: Interval
    r10: Interval
    mdr: Interval
    mnr: Interval
    level: float
    replicates: int
    seed: int
    n_clusters: int


@dataclass(frozen=True, slots=True)
class PairedDifference:
    """Second system minus first on the same queries, for one metric.

    Attributes:
        metric: "r1", "r5", "r10", "mdr" or "mnr".
        difference: On all queries; percent or ranks. For mdr and mnr, negative is better.
        interval: Of the difference.
        p_value: Two-sided: twice the smaller share of resamples on either side of 0, at least 2 / (replicates + 1).
        n_clusters: Number of clips that were resampled.
    """

    metric: str
    difference: float
    interval: Interval
    p_value: float
    n_clusters: int

    @property
    def within_noise(self) -> bool:
        """Whether the interval holds 0: the difference may be chance."""
        return self.interval.low <= 0.0 <= self.interval.high


def bootstrap_intervals(
    ranks: Ranks, *, level: float = 0.95, replicates: int = 2000, seed: int = 0
) -> Intervals | None:
    """Percentile intervals of one direction's metrics; None where there is only one clip to resample.

    Raises:
        BadInput: `level` is not inside (0, 1), or there are fewer than 100 replicates.
    """
    _check(level, replicates)
    clusters, n_clusters = _clusters(ranks)
    if n_clusters < 2:
        return None
    values = np.concatenate(list(_resample([ranks], clusters, n_clusters, replicates, seed)), axis=1)[0]
    r1, r5, r10, mdr, mnr = (_interval(column, level) for column in values.T)
    return Intervals(r1, r5, r10, mdr, mnr, level, replicates, seed, n_clusters)


def paired_differences(
    first: Ranks, second: Ranks, *, level: float = 0.95, replicates: int = 2000, seed: int = 0
) -> dict[str, PairedDifference]:
    """Paired bootstrap of `second` minus `first`, both resampled by the same clips.

    Returns:
        One difference for each of `METRICS`.

    Raises:
        BadInput: The two did not answer the same queries, or one clip only, or a wrong `level` or
            `replicates`.
    """
    _check(level, replicates)
    if not np.array_equal(first.clips, second.clips) or first.n_candidates != second.n_candidates:
        raise BadInput(
            f"only results on the same queries can be paired: {len(first.clips)} queries among "
            f"{first.n_candidates} candidates are not {len(second.clips)} among {second.n_candidates}"
        )
    clusters, n_clusters = _clusters(first)
    if n_clusters < 2:
        raise BadInput("two systems cannot be compared on one clip; evaluate on at least two")
    values = np.concatenate(list(_resample([first, second], clusters, n_clusters, replicates, seed)), axis=1)
    drawn = values[1] - values[0]
    before, after = first.metrics(), second.metrics()
    result = {}
    for column, metric in enumerate(METRICS):
        above = int((drawn[:, column] >= 0).sum())
        below = int((drawn[:, column] <= 0).sum())
        result[metric] = PairedDifference(
            metric,
            getattr(after, metric) - getattr(before, metric),
            _interval(drawn[:, column], level),
            min(1.0, 2.0 * (1 + min(above, below)) / (replicates + 1)),
            n_clusters,
        )
    return result


def _check(level: float, replicates: int) -> None:
    if not 0.0 < level < 1.0:
        raise BadInput(f"level must be between 0 and 1, such as 0.95, not {level}")
    if replicates < 100:
        raise BadInput(f"{replicates} replicates are too few for an interval; use at least 100")


def _clusters(ranks: Ranks) -> tuple[NDArray[np.int64], int]:
    """For each query the number of its cluster from 0, and the number of clusters."""
    clips, clusters = np.unique(ranks.clips, return_inverse=True)
    return clusters, len(clips)


def _interval(values: Doubles, level: float) -> Interval:
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(low), float(high))


def _resample(
    systems: list[Ranks], clusters: NDArray[np.int64], n_clusters: int, replicates: int, seed: int
) -> Iterator[Doubles]:
    """Blocks of resampled metrics [S, R, 5]; all systems see the same clips in each replicate.

    A replicate is a count of how often each clip was drawn, so a mean over its queries is a ratio of two
    products with per-clip sums; nothing is copied query by query.
    """
    rng = np.random.default_rng(seed)
    sizes = np.bincount(clusters, minlength=n_clusters).astype(np.float64)
    means = []  # per system: sums over each clip's queries of R@1, R@5, R@10 and rank, [C, 4]
    sorted_ranks = []  # per system: ranks ascending, and the cluster of each
    for system in systems:
        ranks = system.ranks()
        columns = [100.0 * system.recall(k) for k in (1, 5, 10)] + [ranks]
        means.append(np.stack([np.bincount(clusters, column, n_clusters) for column in columns], axis=1))
        order = np.argsort(ranks, kind="stable")
        sorted_ranks.append((ranks[order], clusters[order]))
    block = max(1, _BLOCK_ELEMENTS // len(clusters))
    for start in range(0, replicates, block):
        size = min(block, replicates - start)
        drawn = rng.multinomial(n_clusters, np.full(n_clusters, 1.0 / n_clusters), size=size)  # [R, C]
        total = drawn @ sizes  # [R], queries in each replicate
        values = np.empty((len(systems), size, 5))
        for index, (sums, (ranks, cluster)) in enumerate(zip(means, sorted_ranks, strict=True)):
            values[index][:, [0, 1, 2, 4]] = (drawn @ sums) / total[:, None]
            values[index][:, 3] = _medians(ranks, drawn[:, cluster])
        yield values


def _medians(ranks: Doubles, counts: NDArray[np.int64]) -> Doubles:
    """Medians of `ranks` [N] (ascending), each value there `counts` [R, N] times; [R]."""
    upto = np.cumsum(counts, axis=1)
    total = upto[:, -1:]
    lower = (upto <= (total - 1) // 2).sum(axis=1)  # index of the value at each middle position
    upper = (upto <= total // 2).sum(axis=1)
    return np.asarray((ranks[lower] + ranks[upper]) / 2.0, dtype=np.float64)
