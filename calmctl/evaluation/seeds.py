"""Several seeds of one system: mean and spread, and whether two systems differ by more than chance.

Two things are chance: which clips the test set holds, and which seeds were run. Both are given Student's t: over clips
as in `bootstrap`, all systems on the same clips, and over seeds with n - 1 degrees of freedom, unpaired, because two
seeds with one number share nothing but that number. Three seeds are too few to resample: they have ten different
resamples, whose percentiles find differences where there are none in 15 of 100 cases. Variances add, and so do degrees
of freedom by the rule of Welch and Satterthwaite (Welch, The Generalization of `Student's' Problem when Several
Different Population Variances are Involved, 1947). Where seeds are all the noise, systems that do not differ are then
found different in 4 of 100 cases with three seeds and in 5 with five, as they may be (simulated in
tests/evaluation/test_seeds.py); where clips vary as well, in fewer, because what varies with both is counted twice
(Owen, The Pigeonhole Bootstrap, 2007). With one seed the spread over seeds is unknown, and an interval tells of the
clips alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from calmctl.errors import BadInput
from calmctl.evaluation.bootstrap import Interval, Noise, PairedDifference, clip_noise, judge, pooled, t_quantile
from calmctl.evaluation.metrics import Ranks

QUERY_METRICS = ("r1", "r5", "r10", "mnr")
"""Metrics that are means over queries; the median rank is none, so it is not here."""

Doubles = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Spread:
    """A number over seeds.

    Attributes:
        mean: Over seeds.
        std: Sample standard deviation over seeds (n - 1); None with one seed.
        values: One a seed.
    """

    mean: float
    std: float | None
    values: tuple[float, ...]


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
    """Mean and sample standard deviation of one number a seed."""
    array = np.asarray(values, dtype=np.float64)
    return Spread(float(array.mean()), float(array.std(ddof=1)) if len(array) > 1 else None, tuple(array.tolist()))


def mean_intervals(seeds: Sequence[ClipSums], *, level: float = 0.95) -> dict[str, Interval]:
    """Intervals of each metric's mean over `seeds`, on other clips and other seeds."""
    sums, sizes = _over_seeds([seeds])[0], seeds[0].sizes
    found = {}
    for column, name in enumerate(seeds[0].metrics):
        mean = float(sums[:, column].sum() / sizes.sum())
        # The name is left out: one system's share is no difference of two, and gets no additional clip.
        variance, freedom = pooled([clip_noise("", sums[:, column], sizes), *_seed_noise([seeds], name)])
        half = t_quantile(level, freedom) * variance**0.5
        found[name] = Interval(mean - half, mean + half)
    return found


def differences_over_seeds(
    first: Sequence[ClipSums], second: Sequence[ClipSums], *, level: float = 0.95
) -> dict[str, PairedDifference]:
    """The mean over seeds of `second` minus that of `first` by metric: paired over clips, unpaired over seeds.

    Raises:
        BadInput: The two were not tested on the same queries, or on one clip only.
    """
    before, after = _over_seeds([first, second])
    sizes, n_clips = first[0].sizes, len(first[0].clips)
    found = {}
    for column, name in enumerate(first[0].metrics):
        change = after[:, column] - before[:, column]
        noises = [clip_noise(name, change, sizes), *_seed_noise([first, second], name)]
        found[name] = judge(name, noises, float(change.sum() / sizes.sum()), n_clips, level)
    return found


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
