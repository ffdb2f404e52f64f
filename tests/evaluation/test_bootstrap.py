"""Bootstrap intervals against explicit resampling, known standard errors and coverage."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calmctl.errors import BadInput
from calmctl.evaluation.bootstrap import METRICS, Interval, _medians, bootstrap_intervals, paired_differences
from calmctl.evaluation.metrics import Ranks, rank_queries


def successes(hits: np.ndarray, clips: np.ndarray | None = None, n_candidates: int = 100) -> Ranks:
    """Ranks of queries that either come first or come last."""
    greater = np.where(hits, 0, n_candidates - 1)
    clips = np.arange(len(hits)) if clips is None else clips
    return Ranks(greater, np.zeros_like(greater), np.ones_like(greater), clips, n_candidates)


def test_intervals_equal_resampling_query_by_query() -> None:
    rng = np.random.default_rng(3)
    scores = rng.integers(0, 30, (90, 25)).astype(np.float64)  # ties, so that contributions are fractional
    owners = rng.integers(0, 25, 90)
    ranks = rank_queries(scores, owners)
    got = bootstrap_intervals(ranks, replicates=300, seed=7)
    assert got is not None
    clips = np.unique(owners)
    counts = np.random.default_rng(7).multinomial(len(clips), np.full(len(clips), 1 / len(clips)), size=300)
    values = []
    for count in counts:
        chosen = np.concatenate([np.flatnonzero(owners == clip) for clip in np.repeat(clips, count)])
        each = ranks.ranks()[chosen]
        recalls = [100 * ranks.recall(k)[chosen].mean() for k in (1, 5, 10)]
        values.append([*recalls, np.median(each), each.mean()])
    expected = np.quantile(np.array(values), [0.025, 0.975], axis=0)
    for column, name in enumerate(METRICS):
        interval: Interval = getattr(got, name)
        np.testing.assert_allclose([interval.low, interval.high], expected[:, column], atol=1e-9)
    assert got.n_clusters == len(clips)


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(1, 9), st.integers(0, 3)), min_size=1, max_size=8))
def test_weighted_medians_equal_medians_of_the_copies(pairs: list[tuple[int, int]]) -> None:
    ranks = np.array(sorted(rank for rank, _ in pairs), np.float64)
    counts = np.array([count for _, count in pairs])
    if counts.sum():
        assert _medians(ranks, counts[None, :]) == np.median(np.repeat(ranks, counts))


def test_width_is_that_of_the_binomial() -> None:
    hits = np.arange(1000) < 500
    got = bootstrap_intervals(successes(hits), replicates=4000)
    assert got is not None
    # docs/science.md: the standard error of R@1 = 50 % on 1,000 queries is 1.58 points.
    assert got.r1.high - got.r1.low == pytest.approx(2 * 1.96 * 1.58, rel=0.06)


def test_captions_of_one_clip_are_not_independent() -> None:
    hits = np.repeat(np.arange(50) < 25, 20)
    together = bootstrap_intervals(successes(hits, np.repeat(np.arange(50), 20)))
    apart = bootstrap_intervals(successes(hits))
    assert together is not None and apart is not None
    ratio = (together.r1.high - together.r1.low) / (apart.r1.high - apart.r1.low)
    assert ratio == pytest.approx(np.sqrt(20), rel=0.15)


def test_coverage_is_near_the_level() -> None:
    rng = np.random.default_rng(11)
    covered = 0
    for trial in range(300):
        got = bootstrap_intervals(successes(rng.random(120) < 0.4), replicates=300, seed=trial)
        assert got is not None
        covered += got.r1.low <= 40.0 <= got.r1.high
    assert 0.90 <= covered / 300 <= 0.985  # 0.95 with a standard error of 0.013


def test_seeds_repeat_and_differ() -> None:
    ranks = successes(np.random.default_rng(0).random(60) < 0.5)
    assert bootstrap_intervals(ranks, seed=1) == bootstrap_intervals(ranks, seed=1)
    assert bootstrap_intervals(ranks, seed=1) != bootstrap_intervals(ranks, seed=2)


def test_levels_nest() -> None:
    ranks = successes(np.random.default_rng(0).random(60) < 0.5)
    narrow, wide = bootstrap_intervals(ranks, level=0.8), bootstrap_intervals(ranks, level=0.99)
    assert narrow is not None and wide is not None
    assert wide.r1.low < narrow.r1.low < narrow.r1.high < wide.r1.high


def test_one_clip_has_no_interval() -> None:
    assert bootstrap_intervals(successes(np.array([True, False]), np.array([4, 4]))) is None
    with pytest.raises(BadInput, match="on one clip"):
        paired_differences(successes(np.array([True])), successes(np.array([False])))


def test_equal_systems_do_not_differ() -> None:
    ranks = successes(np.random.default_rng(0).random(60) < 0.5)
    for each in paired_differences(ranks, ranks).values():
        assert (each.difference, each.interval, each.p_value) == (0.0, Interval(0.0, 0.0), 1.0)
        assert each.within_noise


def test_pairing_sees_what_separate_intervals_hide() -> None:
    rng = np.random.default_rng(5)
    first = rng.random(400) < 0.5
    second = first | (rng.random(400) < 0.06)  # right wherever the first is, and a little more
    got = paired_differences(successes(first), successes(second))["r1"]
    alone, other = bootstrap_intervals(successes(first)), bootstrap_intervals(successes(second))
    assert alone is not None and other is not None
    assert alone.r1.high > other.r1.low  # the separate intervals overlap
    assert not got.within_noise
    assert got.p_value < 0.01
    assert got.difference == pytest.approx(100 * (second.mean() - first.mean()))
    back = paired_differences(successes(second), successes(first))["r1"]
    assert (back.difference, back.interval.low) == (-got.difference, pytest.approx(-got.interval.high, abs=0.3))


def test_chance_differences_are_called_noise() -> None:
    rng = np.random.default_rng(8)
    verdicts = [
        paired_differences(
            successes(rng.random(150) < 0.5), successes(rng.random(150) < 0.5), replicates=300, seed=trial
        )["r1"]
        for trial in range(200)
    ]
    noise = sum(each.within_noise for each in verdicts) / 200
    assert 0.90 <= noise <= 0.99
    assert np.mean([each.p_value < 0.05 for each in verdicts]) <= 0.10


def test_ranks_improve_downwards() -> None:
    rng = np.random.default_rng(9)
    worse = rng.integers(10, 40, 200)
    zeros, ones = np.zeros(200, np.int64), np.ones(200, np.int64)
    first = Ranks(worse, zeros, ones, np.arange(200), 100)
    second = Ranks(worse - 5, zeros, ones, np.arange(200), 100)
    got = paired_differences(first, second)
    assert got["mnr"].difference == got["mdr"].difference == -5.0
    assert not got["mnr"].within_noise


def test_different_queries_cannot_be_paired() -> None:
    with pytest.raises(BadInput, match="only results on the same queries"):
        paired_differences(successes(np.ones(5, bool)), successes(np.ones(6, bool)))
    with pytest.raises(BadInput, match="only results on the same queries"):
        paired_differences(successes(np.ones(5, bool)), successes(np.ones(5, bool), n_candidates=9))


@pytest.mark.parametrize(("options", "said"), [({"level": 95.0}, "level must be"), ({"replicates": 10}, "too few")])
def test_options_that_make_no_sense(options: dict[str, float], said: str) -> None:
    with pytest.raises(BadInput, match=said):
        bootstrap_intervals(successes(np.ones(5, bool)), **options)  # type: ignore[arg-type]
