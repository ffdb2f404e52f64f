"""Several seeds of one system: mean and spread, and whether two systems differ by more than chance.

Two things are chance: which clips the test set holds, and which seeds were run. Clips are resampled: all systems see
the same clips in a replicate, all queries of a clip together, as in `bootstrap`. Seeds are too few to resample: three
have ten different resamples, and their percentiles find differences where there are none in 15 of 100 cases. Their
mean is given the law of a mean of few normal values instead: Student's t times the standard error, with n - 1 degrees
of freedom for one system and Welch's for a difference (Welch, The Generalization of `Student's' Problem when Several
Different Population Variances are Involved, 1947), unpaired, because two seeds with one number share nothing but that
number. Where seeds are all the noise, systems that do not differ are then found different in 4 of 100 cases with three
seeds and in 5 with five, as they may be (simulated in tests/evaluation/test_seeds.py); where clips vary as well, in
fewer, because what varies with both is counted twice (Owen, The Pigeonhole Bootstrap, 2007). With one seed the spread
over seeds is unknown, and an interval tells of the clips alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from calmctl.errors import BadInput
from calmctl.evaluation.bootstrap import Interval, PairedDifference
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


def mean_intervals(
    seeds: Sequence[ClipSums], *, level: float = 0.95, replicates: int = 2000, seed: int = 0
) -> dict[str, Interval]:
    """Percentile intervals of each metric's mean over `seeds`, on other clips and other seeds."""
    rng = np.random.default_rng(seed)
    (clips,) = _on_other_clips([seeds], replicates, rng)
    drawn = clips + _with_other_seeds([seeds], replicates, rng)
    return {name: _interval(drawn[:, column], level) for column, name in enumerate(seeds[0].metrics)}


def differences_over_seeds(
    first: Sequence[ClipSums],
    second: Sequence[ClipSums],
    *,
    level: float = 0.95,
    replicates: int = 2000,
    seed: int = 0,
) -> dict[str, PairedDifference]:
    """The mean over seeds of `second` minus that of `first` by metric: paired over clips, unpaired over seeds.

    Raises:
        BadInput: The two were not tested on the same queries, or on one clip only.
    """
    rng = np.random.default_rng(seed)
    before, after = _on_other_clips([first, second], replicates, rng)
    change = after - before + _with_other_seeds([first, second], replicates, rng)
    found = {}
    for column, name in enumerate(first[0].metrics):
        values = change[:, column]
        least = min(int((values >= 0).sum()), int((values <= 0).sum()))
        found[name] = PairedDifference(
            name,
            float(np.mean([each.means[name] for each in second]) - np.mean([each.means[name] for each in first])),
            _interval(values, level),
            min(1.0, 2.0 * (1 + least) / (replicates + 1)),
            len(first[0].clips),
        )
    return found


def _on_other_clips(systems: Sequence[Sequence[ClipSums]], replicates: int, rng: np.random.Generator) -> list[Doubles]:
    """For each system the means over its seeds in every replicate, [R, M]; the clips drawn are the same for all."""
    one = systems[0][0]
    for system in systems:
        for each in system:
            if each.clips != one.clips or each.metrics != one.metrics or not np.array_equal(each.sizes, one.sizes):
                raise BadInput(
                    f"only results on the same queries can be compared: {len(one.clips)} clips with "
                    f"{one.sizes.sum():.0f} queries are not {len(each.clips)} with {each.sizes.sum():.0f}, "
                    "or they are other clips"
                )
    n_clips = len(one.clips)
    if n_clips < 2:
        raise BadInput("one clip leaves nothing to resample; evaluate on at least two")
    clips = rng.multinomial(n_clips, np.full(n_clips, 1.0 / n_clips), size=replicates).astype(np.float64)  # [R, C]
    total = (clips @ one.sizes)[:, None]
    return [np.mean([(clips @ each.sums) / total for each in system], axis=0) for system in systems]


def _with_other_seeds(systems: Sequence[Sequence[ClipSums]], replicates: int, rng: np.random.Generator) -> Doubles:
    """What other seeds would add to a mean, or to the difference of two: t times its standard error, [R, M]."""
    several = [system for system in systems if len(system) > 1]
    freedom = np.array([len(system) - 1 for system in several])[:, None]
    variances = np.array(
        [np.var([list(each.means.values()) for each in system], axis=0, ddof=1) / len(system) for system in several]
    )  # [systems, M], of the means
    error = variances.sum(0) if several else np.zeros(1)
    if not error.any():
        return np.zeros((replicates, 1))
    parts = variances / np.where(error > 0, error, 1)
    welch = 1 / np.maximum((parts**2 / freedom).sum(0), 1e-9)
    return rng.standard_t(welch, size=(replicates, len(error))) * np.sqrt(error)


def _interval(values: Doubles, level: float) -> Interval:
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(low), float(high))
