"""How much of a number is chance: intervals over clips, and whether two systems differ.

All queries of one clip are drawn, or vary, together: the captions of one clip succeed and fail together, and counting
them as independent would make MSVD's 41 captions per clip look like 41 clips. Each kind of number has the method that
keeps its promise of 95 % (simulated in tests/evaluation/test_bootstrap.py):

- R@K: Wilson's interval (Wilson, Probable Inference, 1927) on the queries divided by the design effect, so that it has
  a width at 0 and 100 % too, where resampling has none.
- Mean rank: bootstrap-t of its logarithm (Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 12).
  Ranks have a long tail, and few clips hold too little of it: on ranks of which log has the standard deviation 1.6,
  93 % of the intervals hold the truth at 1,000 clips, 92 at 200, 91 at 100 and 90 at 50. Percentiles of the resampled
  mean, which earlier revisions used, hold it in 92, 88, 85 and 81 %.
- Median rank: percentiles of the resampled median, which is a whole rank or half of one, so they hold it too often.
- Differences of two systems on the same queries: Student's t over clips. A resampled t is of no use here: the tails of
  differences are long on both sides, and it would find mean ranks different that are not in 12 of 100 cases.
  Of R@K one clip more is counted on which each system is right half of the time and wrong half of the time (Agresti and
  Min, Effects and Non-effects of Paired Identical Observations, 2004): four queries that all speak for one system are
  not yet a difference.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from calmctl.errors import BadInput
from calmctl.evaluation.metrics import Ranks

METRICS = ("r1", "r5", "r10", "mdr", "mnr")
RECALLS = ("r1", "r5", "r10", "r50")
LEVEL = 0.95
REPLICATES = 1000
# Counts of clips in resamples that are held at once: 32 MB.
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
        r1, r5, r10: Of R@K, in percent.
        mnr: Of the mean rank; without width where every clip has the same mean rank, because nothing then tells how
            much worse another clip could be.
        level: Coverage aimed at, 0.95 by default.
        replicates: Number of resamples, for the mean and the median rank.
        n_clusters: Number of clips.
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
        p_value: Two-sided. By Student's t; for mdr twice the smaller share of resamples on either side of 0, at least
            2 / (replicates + 1).
        n_clusters: Number of clips.
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


@dataclass(frozen=True, slots=True)
class Noise:
    """What chance of one kind, clips or seeds, adds to a number.

    Attributes:
        variance: Of the number.
        freedom: Degrees of freedom that `variance` was estimated with.
        centre: The middle of the interval, where it is not the number itself.
    """

    variance: float
    freedom: float
    centre: float | None = None


def bootstrap_intervals(
    ranks: Ranks, *, level: float = LEVEL, replicates: int = 2000, seed: int = 0
) -> Intervals | None:
    """Intervals of one direction's metrics; None where there is only one clip, which tells nothing of others.

    Raises:
        BadInput: `level` is not inside (0, 1), or there are fewer than 100 replicates.
    """
    _check(level, replicates)
    clusters, n_clusters = _clusters(ranks.clips)
    if n_clusters < 2:
        return None
    sizes = _by_clip(np.ones(len(clusters)), clusters, n_clusters)
    r1, r5, r10 = (wilson(_by_clip(ranks.recall(k), clusters, n_clusters), sizes, level=level) for k in (1, 5, 10))
    total = _by_clip(ranks.ranks(), clusters, n_clusters)
    # Sorted once: the median of a resample is then a look-up among counts.
    ascending = _Sorted(ranks, clusters)
    medians, studentized = [], []
    for counts in draws(len(clusters), n_clusters, replicates, seed):
        medians.append(ascending.medians(counts))
        studentized.append(_studentized(total, sizes, counts))
    mean = total.sum() / sizes.sum()
    error = _relative_error(total, sizes, np.ones((1, n_clusters), np.int64))[0]
    low, high = np.quantile(np.concatenate(studentized), [(1 - level) / 2, (1 + level) / 2])
    # No mean rank is below 1 or above the number of candidates, which few clips say nothing against.
    # A bootstrap-t turns round: the upper quantile of t makes the lower end.
    lower, upper = np.clip([-high * error, -low * error], -np.log(mean), np.log(ranks.n_candidates / mean))
    mnr = Interval(float(mean * np.exp(lower)), float(mean * np.exp(upper)))
    mdr = percentiles(np.concatenate(medians), level)
    return Intervals(r1, r5, r10, mdr, mnr, level, replicates, seed, n_clusters)


def paired_differences(
    first: Ranks, second: Ranks, *, replicates: int = 2000, seed: int = 0
) -> dict[str, PairedDifference]:
    """`second` minus `first` on the same clips.

    Returns:
        One difference for each of `METRICS`.

    Raises:
        BadInput: The two did not answer the same queries, or one clip only, or fewer than 100
            replicates.
    """
    _check(LEVEL, replicates)
    if not np.array_equal(first.clips, second.clips) or first.n_candidates != second.n_candidates:
        raise BadInput(
            f"only results on the same queries can be paired: {len(first.clips)} queries among "
            f"{first.n_candidates} candidates are not {len(second.clips)} among {second.n_candidates}"
        )
    clusters, n_clusters = _clusters(first.clips)
    if n_clusters < 2:
        raise BadInput("two systems cannot be compared on one clip; evaluate on at least two")
    sizes = _by_clip(np.ones(len(clusters)), clusters, n_clusters)
    change = {f"r{k}": 100.0 * (second.recall(k) - first.recall(k)) for k in (1, 5, 10)}
    change["mnr"] = second.ranks() - first.ranks()
    differences = {}
    for metric, values in change.items():
        noise = clip_noise(metric, _by_clip(values, clusters, n_clusters), sizes)
        differences[metric] = judge(metric, [noise], float(values.mean()), n_clusters)
    differences["mdr"] = _median_difference(first, second, clusters, n_clusters, replicates, seed)
    return {metric: differences[metric] for metric in METRICS}


def mean_interval(values: Doubles, clips: NDArray[np.int64]) -> Interval | None:
    """Student's t over clips of the mean of `values` [N], percents of queries of `clips` [N]; None of one clip."""
    cluster, n_clips = _clusters(clips)
    if n_clips < 2:
        return None
    noise = clip_noise("", _by_clip(values, cluster, n_clips), _by_clip(np.ones(len(values)), cluster, n_clips))
    mean, half = float(values.mean()), t_quantile(LEVEL, noise.freedom) * noise.variance**0.5
    return Interval(max(0.0, mean - half), min(100.0, mean + half))


def recall_interval(ranks: Ranks, k: int) -> Interval | None:
    """Wilson's interval of R@k over clips; None of one clip."""
    clusters, n_clusters = _clusters(ranks.clips)
    if n_clusters < 2:
        return None
    sizes = _by_clip(np.ones(len(clusters)), clusters, n_clusters)
    return wilson(_by_clip(ranks.recall(k), clusters, n_clusters), sizes)


def paired_mean(metric: str, first: Doubles, second: Doubles, clips: NDArray[np.int64]) -> PairedDifference:
    """The mean of `second` minus that of `first`, percents of the same queries of `clips`, [N] each."""
    cluster, n_clips = _clusters(clips)
    sizes, change = _by_clip(np.ones(len(clips)), cluster, n_clips), second - first
    noise = clip_noise(metric, _by_clip(change, cluster, n_clips), sizes)
    return judge(metric, [noise], float(change.mean()), n_clips)


def wilson(hits: Doubles, sizes: Doubles, *, level: float = LEVEL) -> Interval:
    """Wilson's interval of a share, in percent, of queries that succeed by the clip.

    The design effect says how many queries that succeed by the clip weigh as much as one that is alone: 1 with a query
    a clip, and `worst` where all queries of a clip do the same. It is estimated from the clips, and near 0 or 100 %
    from the few that have anything of the rarer outcome; the worst case counts as one more of them (our choice).

    Args:
        hits: Successes of each clip's queries, [C]; ties make fractions.
        sizes: Queries of each clip, [C].
        level: Coverage aimed at.
    """
    n = sizes.sum()
    share = hits.sum() / n
    worst = (sizes**2).sum() / n
    mixed = min(int((hits > 0).sum()), int((hits < sizes).sum()))
    effect = worst
    if mixed and 0 < share < 1:
        effect = ((hits - share * sizes) ** 2).sum() / n / (share * (1 - share))
    n /= max(1.0, (mixed * effect + worst) / (mixed + 1))
    z2 = NormalDist().inv_cdf((1 + level) / 2) ** 2
    middle = share + z2 / (2 * n)
    half = np.sqrt(z2 * (share * (1 - share) / n + z2 / (4 * n * n)))
    low, high = (100 * (middle + side * half) / (1 + z2 / n) for side in (-1, 1))
    return Interval(float(max(0.0, low)), float(min(100.0, high)))


def clip_noise(metric: str, sums: Doubles, sizes: Doubles) -> Noise:
    """What other clips would do to a mean over queries, or to a difference of two such means.

    Args:
        metric: Its name; the difference of one of `RECALLS` gets the additional clip of this module's first lines.
        sums: Of each clip's queries, [C]; differences in percent for one of `RECALLS`.
        sizes: Queries of each clip, [C].
    """
    clips, n = len(sizes), sizes.sum()
    size = n / clips
    added = 2 * size if metric in RECALLS else 0.0
    # Drawn towards 0 by the added clip, and the interval's middle with it; the difference itself stays as measured.
    mean = sums.sum() / (n + added)
    squares = ((sums - mean * sizes) ** 2).sum()
    if metric in RECALLS:  # half a clip each of +100, -100, and twice 0 points
        squares += size**2 * (100.0**2 + 2 * mean**2)
    return Noise(clips / (clips - 1) * squares / (n + added) ** 2, clips - 1, mean)


def judge(metric: str, noises: Sequence[Noise], difference: float, n_clusters: int) -> PairedDifference:
    """A difference with all that is chance in it; degrees of freedom by Welch and Satterthwaite."""
    variance, freedom = pooled(noises)
    centre = next((noise.centre for noise in noises if noise.centre is not None), difference)
    if variance == 0.0:
        # Nothing varies: equal is certain, and so is different.
        p_value, half = float(difference == 0.0), 0.0
    else:
        p_value, half = t_tails(centre / variance**0.5, freedom), t_quantile(LEVEL, freedom) * variance**0.5
    return PairedDifference(metric, difference, Interval(centre - half, centre + half), p_value, n_clusters)


def pooled(noises: Sequence[Noise]) -> tuple[float, float]:
    """The variance of a sum of independent parts, and its degrees of freedom."""
    variance = sum(noise.variance for noise in noises)
    lost = sum(noise.variance**2 / noise.freedom for noise in noises)
    return variance, variance**2 / lost if lost > 0 else np.inf


def t_tails(t: float, freedom: float) -> float:
    """P(|T| > |t|) of Student's t."""
    grid, inside = _student(freedom)
    return float(1.0 - np.interp(abs(t), grid, inside))


def t_quantile(level: float, freedom: float) -> float:
    """The t with P(|T| <= t) = `level`."""
    grid, inside = _student(freedom)
    return float(np.interp(level, inside, grid))


@lru_cache(maxsize=16)  # four metrics of one comparison, and the tails and the quantile of each, ask for the same one
def _student(freedom: float) -> tuple[Doubles, Doubles]:
    """A grid of t from 0, and P(|T| <= t) there: the density integrated over asinh t, whose tail is short for any t."""
    u = np.linspace(0.0, 20.0, 8001)
    grid = np.sinh(u)
    freedom = min(freedom, 1e7)  # the normal law, to seven digits
    density = np.exp(-(freedom + 1) / 2 * np.log1p(grid**2 / freedom)) * np.cosh(u)
    inside = np.concatenate([[0.0], np.cumsum(density[1:] + density[:-1])])
    return grid, inside / inside[-1]


def _check(level: float, replicates: int) -> None:
    if not 0.0 < level < 1.0:
        raise BadInput(f"level must be between 0 and 1, such as 0.95, not {level}")
    if replicates < 100:
        raise BadInput(f"{replicates} replicates are too few for an interval; use at least 100")


def _clusters(clips: NDArray[np.int64]) -> tuple[NDArray[np.int64], int]:
    """For each query, of the clip `clips` [N], the number of its cluster from 0, and the number of clusters."""
    names, clusters = np.unique(clips, return_inverse=True)
    return clusters, len(names)


def _by_clip(values: Doubles, clusters: NDArray[np.int64], n_clusters: int) -> Doubles:
    """Sums of `values` [N] over the queries of each clip, [C]."""
    return np.bincount(clusters, values, n_clusters).astype(np.float64)


def _relative_error(sums: Doubles, sizes: Doubles, counts: NDArray[np.int64]) -> Doubles:
    """Standard error of the mean rank over the mean rank itself, that is of its logarithm, in each replicate [R]."""
    mean = (counts @ sums) / (counts @ sizes)
    squares = counts @ sums**2 - 2 * mean * (counts @ (sums * sizes)) + mean**2 * (counts @ sizes**2)
    clips = len(sizes)
    return np.asarray(np.sqrt(np.maximum(squares, 0.0) * clips / (clips - 1)) / (counts @ sums), dtype=np.float64)


def _studentized(sums: Doubles, sizes: Doubles, counts: NDArray[np.int64]) -> Doubles:
    """How many of its own standard errors the logarithm of each replicate's mean rank is off, [R]."""
    off = np.log((counts @ sums) / (counts @ sizes)) - np.log(sums.sum() / sizes.sum())
    error = _relative_error(sums, sizes, counts)
    # A replicate of equal clips has no error of its own; one of rounding size would make its t endless.
    known = error > 1e-9
    return np.where(known, off / np.where(known, error, 1.0), 0.0)


def _median_difference(
    first: Ranks, second: Ranks, clusters: NDArray[np.int64], n_clusters: int, replicates: int, seed: int
) -> PairedDifference:
    systems = [_Sorted(ranks, clusters) for ranks in (first, second)]
    counted = draws(len(clusters), n_clusters, replicates, seed)
    drawn = np.concatenate([systems[1].medians(counts) - systems[0].medians(counts) for counts in counted])
    least = min(int((drawn >= 0).sum()), int((drawn <= 0).sum()))
    return PairedDifference(
        "mdr",
        second.metrics().mdr - first.metrics().mdr,
        percentiles(drawn),
        # The data as they are count as one more resample, so no p is 0.
        min(1.0, 2.0 * (1 + least) / (replicates + 1)),
        n_clusters,
    )


class _Sorted:
    """Ranks ascending, with the cluster of each, for medians of resamples."""

    def __init__(self, ranks: Ranks, clusters: NDArray[np.int64]) -> None:
        values = ranks.ranks()
        order = np.argsort(values, kind="stable")
        self.ranks, self.clusters = values[order], clusters[order]

    def medians(self, counts: NDArray[np.int64]) -> Doubles:
        """Medians where the queries of each clip are there `counts` [R, C] times; [R]."""
        return _medians(self.ranks, counts[:, self.clusters])


def _medians(ranks: Doubles, counts: NDArray[np.int64]) -> Doubles:
    """Medians of `ranks` [N] (ascending), each value there `counts` [R, N] times; [R]."""
    upto = np.cumsum(counts, axis=1)
    total = upto[:, -1:]
    lower = (upto <= (total - 1) // 2).sum(axis=1)  # index of the value at each middle position
    upper = (upto <= total // 2).sum(axis=1)
    return np.asarray((ranks[lower] + ranks[upper]) / 2.0, dtype=np.float64)


# Resampling of clips, for what has no law of its own: all bootstraps draw here.


def draws(n_queries: int, n_clusters: int, replicates: int, seed: int) -> Iterator[NDArray[np.int64]]:
    """Blocks [R, C] of how often each clip was drawn in a replicate; nothing is copied query by query."""
    rng = np.random.default_rng(seed)
    block = max(1, _BLOCK_ELEMENTS // n_queries)
    for start in range(0, replicates, block):
        size = min(block, replicates - start)
        yield rng.multinomial(n_clusters, np.full(n_clusters, 1.0 / n_clusters), size=size)


def resampled_sums(columns: Doubles, *, replicates: int = REPLICATES, seed: int = 0) -> Doubles:
    """Sums over clips drawn with replacement, [R, K], of `columns` [N, K]; one draw serves all columns."""
    return np.concatenate([drawn @ columns for drawn in draws(len(columns), len(columns), replicates, seed)])


def resampled_rows(clips: NDArray[np.int64], *, seed: int = 0) -> Iterator[NDArray[np.intp]]:
    """The rows of each replicate, for what is no sum; the rows of one clip, `clips` [N], are drawn together."""
    cluster, n_clips = _clusters(clips)
    # Not by counts as above: AUROC and the like are no sums over clips.
    members = [np.flatnonzero(cluster == c) for c in range(n_clips)]
    rng = np.random.default_rng(seed)
    for _ in range(REPLICATES):
        yield np.concatenate([members[c] for c in rng.integers(len(members), size=len(members))])


def percentiles(values: Doubles, level: float = LEVEL) -> Interval:
    """The interval that holds `level` of the resampled `values` [R]."""
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(low), float(high))


# Several seeds of one system: mean and spread, and whether two systems differ by more than chance.
#
# Two things are chance: which clips the test set holds, and which seeds were run. Both are given Student's t: over
# clips as above, all systems on the same clips, and over seeds with n - 1 degrees of freedom, unpaired, because two
# seeds with one number share nothing but that number. Three seeds are too few to resample: they have ten different
# resamples, whose percentiles find differences where there are none in 15 of 100 cases. Variances add, and so do
# degrees of freedom by the rule of Welch and Satterthwaite (Welch, The Generalization of `Student's' Problem when
# Several Different Population Variances are Involved, 1947). Where seeds are all the noise, systems that do not
# differ are then found different in 4 of 100 cases with three seeds and in 5 with five, as they may be (simulated in
# tests/evaluation/test_seeds.py); where clips vary as well, in fewer, because what varies with both is counted twice
# (Owen, The Pigeonhole Bootstrap, 2007). With one seed the spread over seeds is unknown, and an interval tells of the
# clips alone.


QUERY_METRICS = ("r1", "r5", "r10", "mnr")
"""Metrics that are means over queries; the median rank is none, so it is not here."""


@dataclass(frozen=True, slots=True)
class Spread:
    """A number over seeds.

    Attributes:
        std: Sample standard deviation over seeds (n - 1); None with one seed.
        values: One a seed.
    """

    mean: float
    std: float | None
    values: tuple[float, ...]

    def __str__(self) -> str:
        """Such as "48.1 ± 0.3", and "48.1" of one seed."""
        return f"{self.mean:z.1f}" if self.std is None else f"{self.mean:z.1f} ± {self.std:z.1f}"


@dataclass(frozen=True, slots=True, eq=False)
class ClipSums:
    """Outcomes of one system and seed on one test set, added up over the queries of each clip.

    Attributes:
        clips: Ids of the C clips, in the order of the rows.
        metrics: Names of the M metrics.
        sums: [C, M].
        sizes: Queries of each clip, [C].
    """

    clips: tuple[str, ...]
    metrics: tuple[str, ...]
    sums: Doubles
    sizes: Doubles

    @property
    def means(self) -> dict[str, float]:
        """Each metric over all queries."""
        return dict(zip(self.metrics, (self.sums.sum(0) / self.sizes.sum()).tolist(), strict=True))


def clip_sums(ranks: Ranks, ids: Sequence[str]) -> ClipSums:
    """The outcomes of `QUERY_METRICS` by clip; `ids` names clips by their number."""
    clips, cluster = np.unique(ranks.clips, return_inverse=True)
    columns = [100.0 * ranks.recall(k) for k in (1, 5, 10)] + [ranks.ranks()]
    return ClipSums(
        tuple(ids[clip] for clip in clips),
        QUERY_METRICS,
        np.stack([np.bincount(cluster, column, len(clips)) for column in columns], axis=1),
        np.bincount(cluster, minlength=len(clips)).astype(np.float64),
    )


def spread(values: Sequence[float]) -> Spread:
    """Mean and sample standard deviation of one number per seed."""
    array = np.asarray(values, dtype=np.float64)
    return Spread(float(array.mean()), float(array.std(ddof=1)) if len(array) > 1 else None, tuple(array.tolist()))


def mean_intervals(seeds: Sequence[ClipSums]) -> dict[str, Interval]:
    """Intervals of each metric's mean over `seeds`, on other clips and other seeds."""
    sums, sizes = _over_seeds([seeds])[0], seeds[0].sizes
    intervals = {}
    for column, name in enumerate(seeds[0].metrics):
        mean = float(sums[:, column].sum() / sizes.sum())
        # The name is left out: one system's share is no difference of two, and gets no additional clip.
        variance, freedom = pooled([clip_noise("", sums[:, column], sizes), *_seed_noise([seeds], name)])
        half = t_quantile(LEVEL, freedom) * variance**0.5
        intervals[name] = Interval(mean - half, mean + half)
    return intervals


def differences_over_seeds(first: Sequence[ClipSums], second: Sequence[ClipSums]) -> dict[str, PairedDifference]:
    """The mean over seeds of `second` minus that of `first` by metric: paired over clips, unpaired over seeds.

    Raises:
        BadInput: The two were not tested on the same queries, or on one clip only.
    """
    before, after = _over_seeds([first, second])
    sizes, n_clips = first[0].sizes, len(first[0].clips)
    differences = {}
    for column, name in enumerate(first[0].metrics):
        change = after[:, column] - before[:, column]
        noises = [clip_noise(name, change, sizes), *_seed_noise([first, second], name)]
        differences[name] = judge(name, noises, float(change.sum() / sizes.sum()), n_clips)
    return differences


def _over_seeds(systems: Sequence[Sequence[ClipSums]]) -> list[Doubles]:
    """For each system the sums of its clips, as a mean over its seeds, [C, M]."""
    one = systems[0][0]
    for system in systems:
        for each in system:
            if each.clips != one.clips or each.metrics != one.metrics or not np.array_equal(each.sizes, one.sizes):
                raise BadInput(
                    f"only results on the same queries can be compared: {len(one.clips)} clips with "
                    f"{one.sizes.sum():z.0f} queries are not {len(each.clips)} with {each.sizes.sum():z.0f}, "
                    "or they are other clips"
                )
    if len(one.clips) < 2:
        raise BadInput("one clip tells nothing of others; evaluate on at least two")
    return [np.mean([each.sums for each in system], axis=0) for system in systems]


def _seed_noise(systems: Sequence[Sequence[ClipSums]], metric: str) -> list[Noise]:
    """What other seeds would do to each system's mean; nothing is known of a system with one seed."""
    several = [[each.means[metric] for each in system] for system in systems if len(system) > 1]
    return [Noise(float(np.var(values, ddof=1)) / len(values), len(values) - 1) for values in several]
