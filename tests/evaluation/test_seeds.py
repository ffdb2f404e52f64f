"""Several seeds of a system: spread, and differences over clips and seeds."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from calmctl.errors import BadInput
from calmctl.evaluation.metrics import Ranks, rank_queries
from calmctl.evaluation.statistics import (
    ClipSums,
    clip_sums,
    differences_over_seeds,
    mean_intervals,
    paired_differences,
    spread,
)


def ranks(seed: int, n_texts: int = 30, n_videos: int = 12, help_: float = 1.0) -> Ranks:
    rng = np.random.default_rng(seed)
    owners = np.arange(n_texts) % n_videos
    scores = rng.normal(size=(n_texts, n_videos))
    scores[np.arange(n_texts), owners] += help_
    return rank_queries(scores, owners)


def sums(*seeds: int, help_: float = 1.0) -> list[ClipSums]:
    return [clip_sums(ranks(seed, help_=help_), [f"clip{i}" for i in range(12)]) for seed in seeds]


def test_clip_sums_are_the_queries_of_each_clip() -> None:
    found = ranks(3)
    made = clip_sums(found, [f"clip{i}" for i in range(12)])
    for row, clip in enumerate(made.clips):
        mine = [q for q in range(30) if f"clip{found.clips[q]}" == clip]
        assert made.sizes[row] == len(mine)
        brute = [sum(100.0 * (found.greater[q] < k) for q in mine) for k in (1, 5, 10)]
        brute.append(sum(1.0 + found.greater[q] for q in mine))
        assert made.sums[row] == pytest.approx(brute)
    metrics = found.metrics()
    assert made.means == pytest.approx({"r1": metrics.r1, "r5": metrics.r5, "r10": metrics.r10, "mnr": metrics.mnr})


def test_spread_is_the_sample_standard_deviation() -> None:
    assert spread([1.0, 2.0, 6.0]).mean == 3.0
    assert spread([1.0, 2.0, 6.0]).std == pytest.approx(7.0**0.5)
    assert spread([4.0]).std is None


def test_one_seed_each_is_the_paired_bootstrap_of_two_systems() -> None:
    """With one seed nothing but clips is chance, as in `paired_differences`."""
    ours = differences_over_seeds(sums(1), sums(2, help_=2.0))
    theirs = paired_differences(ranks(1), ranks(2, help_=2.0))
    for metric in ("r1", "r5", "r10", "mnr"):
        assert ours[metric].difference == pytest.approx(theirs[metric].difference)
        assert ours[metric].interval.low == pytest.approx(theirs[metric].interval.low)
        assert ours[metric].interval.high == pytest.approx(theirs[metric].interval.high)
        assert ours[metric].p_value == theirs[metric].p_value


def test_several_seeds_against_a_slow_transcription() -> None:
    """Variances of clips and seeds added; degrees of freedom by Welch and Satterthwaite; t from a million draws."""
    first, second = sums(1, 2, 3), sums(4, 5, help_=1.5)
    found = differences_over_seeds(first, second)["mnr"]
    sizes = first[0].sizes
    change = [
        sum(each.sums[c, 3] for each in second) / 2 - sum(each.sums[c, 3] for each in first) / 3 for c in range(12)
    ]
    plain = np.mean([s.means["mnr"] for s in second]) - np.mean([s.means["mnr"] for s in first])
    assert found.difference == pytest.approx(plain)
    clips = sum((d - plain * n) ** 2 for d, n in zip(change, sizes, strict=True)) * 12 / 11 / sizes.sum() ** 2
    a, b = (np.var([each.means["mnr"] for each in system], ddof=1) / len(system) for system in (first, second))
    variance = clips + a + b
    welch = variance**2 / (clips**2 / 11 + a**2 / 2 + b**2 / 1)
    t = np.random.default_rng(0).standard_t(welch, 1_000_000)
    half = np.quantile(abs(t), 0.95) * variance**0.5
    assert found.interval.high - plain == pytest.approx(half, rel=0.01)
    assert plain - found.interval.low == pytest.approx(half, rel=0.01)
    assert found.p_value == pytest.approx(np.mean(abs(t) >= abs(plain) / variance**0.5), abs=0.002)


@pytest.mark.parametrize(("n_seeds", "t"), [(2, 12.706), (3, 4.303), (5, 2.776), (10, 2.262)])
def test_seeds_alone_give_the_t_interval_of_the_textbook(n_seeds: int, t: float) -> None:
    """Clips that are all alike leave the seeds: mean ± t s / sqrt(n), with the tabulated t of n - 1 degrees."""
    values = np.random.default_rng(n_seeds).normal(50, 10, size=n_seeds)
    alike = [ClipSums(("a", "b"), ("r1",), np.full((2, 1), v), np.ones(2)) for v in values]
    interval = mean_intervals(alike)["r1"]
    half = t * values.std(ddof=1) / n_seeds**0.5
    assert interval.high - values.mean() == pytest.approx(half, rel=0.001)
    assert values.mean() - interval.low == pytest.approx(half, rel=0.001)


@given(st.integers(0, 1000))
def test_a_system_does_not_differ_from_itself_beyond_chance(seed: int) -> None:
    same = differences_over_seeds(sums(seed), sums(seed))
    assert all(d.difference == 0 and d.interval.low == -d.interval.high and d.within_noise for d in same.values())
    assert same["mnr"].interval.low == 0  # recalls keep a width: 12 clips do not say that no clip would differ


def test_what_does_not_fit_is_refused() -> None:
    other = clip_sums(ranks(1), [f"other{i}" for i in range(12)])
    with pytest.raises(BadInput, match="same queries"):
        differences_over_seeds(sums(1), [other])
    one = [ClipSums(("a",), ("r1",), np.ones((1, 1)), np.ones(1))]
    with pytest.raises(BadInput, match="at least two"):
        differences_over_seeds(one, one)


@pytest.mark.parametrize(("n_seeds", "starred"), [(3, 0.04), (5, 0.05)])
def test_few_seeds_find_no_more_differences_than_they_may(n_seeds: int, starred: float) -> None:
    """What the module says of itself: no difference, clips alike, and seeds drawn from one law."""
    rng = np.random.default_rng(0)

    def system() -> list[ClipSums]:
        values = rng.normal(size=n_seeds)
        return [ClipSums(("a", "b"), ("mnr",), np.full((2, 1), value), np.ones(2)) for value in values]

    found = [not differences_over_seeds(system(), system())["mnr"].within_noise for _ in range(1500)]
    assert np.mean(found) == pytest.approx(starred, abs=0.012)  # more than twice its standard error


def test_a_difference_that_seeds_and_clips_agree_on_is_found() -> None:
    rng = np.random.default_rng(0)

    def system(chance: float) -> list[ClipSums]:
        hits = rng.random((3, 400, 1)) < chance
        return [ClipSums(tuple(map(str, range(400))), ("r1",), 100.0 * each, np.ones(400)) for each in hits]

    assert not differences_over_seeds(system(0.3), system(0.6))["r1"].within_noise


def test_clips_and_seeds_together_find_no_more_than_they_may() -> None:
    """Systems that do not differ, on clips of unequal difficulty, with a luck of every seed and of every clip in it."""
    rng, found = np.random.default_rng(1), []
    for _ in range(600):
        clips = rng.normal(size=200)

        def system(clips: np.ndarray = clips) -> list[ClipSums]:
            made = []
            for _ in range(3):
                chance = 1 / (1 + np.exp(-(clips + 0.3 * rng.normal() + 0.7 * rng.normal(size=200))))
                hits = 100.0 * (rng.random(200) < chance)[:, None]
                made.append(ClipSums(tuple(map(str, range(200))), ("r1",), hits, np.ones(200)))
            return made

        found.append(not differences_over_seeds(system(), system())["r1"].within_noise)
    assert np.mean(found) == pytest.approx(0.02, abs=0.013)
