"""Intervals against explicit resampling, textbook formulas, known standard errors and simulated coverage."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calmctl.errors import BadInput
from calmctl.evaluation.metrics import Ranks, rank_queries
from calmctl.evaluation.statistics import (
    RECALLS,
    Interval,
    _medians,
    bootstrap_intervals,
    paired_differences,
    t_quantile,
    t_tails,
    wilson,
)

COVERAGE = {50: 0.90, 100: 0.91, 200: 0.92, 1000: 0.93}  # as the module and docs/protocols.md say


def successes(hits: np.ndarray, clips: np.ndarray | None = None, n_candidates: int = 100) -> Ranks:
    """Ranks of queries that either come first or come last."""
    greater = np.where(hits, 0, n_candidates - 1)
    clips = np.arange(len(hits)) if clips is None else clips
    return Ranks(greater, np.zeros_like(greater), np.ones_like(greater), clips, n_candidates)


def long_tailed(rng: np.random.Generator, n: int, luck: np.ndarray | None = None) -> np.ndarray:
    """Ranks as published systems have them on 1,000 clips: most are first, a few are hundreds down."""
    return np.clip(np.round(np.exp(0.9 + 1.6 * (rng.normal(size=n) if luck is None else luck))), 1, 999).astype(
        np.int64
    )


def of_ranks(ranks: np.ndarray) -> Ranks:
    return Ranks(ranks - 1, np.zeros_like(ranks), np.ones_like(ranks), np.arange(len(ranks)), 1000)


def test_rank_intervals_equal_resampling_query_by_query() -> None:
    """Percentiles for the median, bootstrap-t of the logarithm for the mean: each replicate copied out, in a loop."""
    rng = np.random.default_rng(3)
    scores = rng.integers(0, 30, (90, 25)).astype(np.float64)  # ties, so that contributions are fractional
    owners = rng.integers(0, 25, 90)
    ranks = rank_queries(scores, owners)
    got = bootstrap_intervals(ranks, replicates=300, seed=7)
    assert got is not None
    clips = np.unique(owners)
    counts = np.random.default_rng(7).multinomial(len(clips), np.full(len(clips), 1 / len(clips)), size=300)

    def log_mean_and_error(chosen: list[np.ndarray]) -> tuple[float, float]:
        sums, sizes = np.array([each.sum() for each in chosen]), np.array([len(each) for each in chosen])
        mean = sums.sum() / sizes.sum()
        variance = sum((a - mean * n) ** 2 for a, n in zip(sums, sizes, strict=True)) * 25 / 24 / sizes.sum() ** 2
        return np.log(mean), variance**0.5 / mean

    by_clip = [ranks.ranks()[owners == clip] for clip in clips]
    centre, error = log_mean_and_error(by_clip)
    medians, ts = [], []
    for count in counts:
        chosen = [each for each, n in zip(by_clip, count, strict=True) for _ in range(n)]
        medians.append(np.median(np.concatenate(chosen)))
        mean, own = log_mean_and_error(chosen)
        ts.append((mean - centre) / own)
    low, high = np.quantile(ts, [0.025, 0.975])
    np.testing.assert_allclose([got.mnr.low, got.mnr.high], np.exp([centre - high * error, centre - low * error]))
    np.testing.assert_allclose([got.mdr.low, got.mdr.high], np.quantile(medians, [0.025, 0.975]), atol=1e-9)
    assert got.n_clusters == len(clips)


@pytest.mark.parametrize(
    ("hits", "n", "low", "high"),
    [(0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718), (15, 148, 0.0624, 0.1605), (81, 263, 0.2553, 0.3662)],
)
def test_recalls_of_single_queries_have_wilsons_interval(hits: int, n: int, low: float, high: float) -> None:
    """The worked examples of Newcombe, Two-sided Confidence Intervals for the Single Proportion, 1998, table I."""
    got = bootstrap_intervals(successes(np.arange(n) < hits))
    assert got is not None
    assert (got.r1.low, got.r1.high) == pytest.approx((100 * low, 100 * high), abs=0.006)


@pytest.mark.parametrize(("freedom", "t"), [(1, 12.7062), (2, 4.3027), (9, 2.26216), (np.inf, 1.95996)])
def test_student_t_is_that_of_the_tables(freedom: float, t: float) -> None:
    assert t_quantile(0.95, freedom) == pytest.approx(t, rel=1e-5)
    assert t_tails(-t, freedom) == pytest.approx(0.05, rel=1e-4)


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


@pytest.mark.parametrize(
    ("clips", "queries", "share", "least"),
    # From 1,500 sets each. One query a clip, then MSVD's form: up to 59 queries a clip, which succeed together by half.
    [(50, 1, 0.9, 0.94), (50, 1, 0.99, 0.90), (200, 1, 0.99, 0.94), (1000, 1, 0.4, 0.94),
     (50, 60, 0.5, 0.94), (50, 60, 0.99, 0.94), (200, 60, 0.99, 0.93), (670, 60, 0.9, 0.93)],
)  # fmt: skip
def test_wilson_holds_the_truth_near_100_percent_too(clips: int, queries: int, share: float, least: float) -> None:
    rng, covered, widths = np.random.default_rng(5), 0, []
    for _ in range(1500):
        sizes = rng.integers(1, queries, clips) if queries > 1 else np.ones(clips, np.int64)
        hits = rng.binomial(sizes, rng.beta(share, 1 - share, clips)) if queries > 1 else rng.binomial(1, share, clips)
        got = wilson(hits.astype(float), sizes.astype(float))
        covered += got.low <= 100 * share <= got.high
        widths.append(got.high - got.low)
    assert covered / 1500 >= least - 0.01  # a standard error of 0.006 or 0.007
    assert min(widths) > 0.1


@pytest.mark.parametrize(("clips", "covered"), COVERAGE.items())
def test_mean_rank_intervals_hold_the_truth_as_often_as_is_said(clips: int, covered: float) -> None:
    rng = np.random.default_rng(2)
    truth = long_tailed(rng, 2_000_000).mean()
    sets = {50: 600, 200: 300}.get(clips, 150)
    held = []
    for trial in range(sets):
        got = bootstrap_intervals(of_ranks(long_tailed(rng, clips)), replicates=400, seed=trial)
        assert got is not None
        held.append((got.mnr.low <= truth <= got.mnr.high, got.mdr.low <= 2.0 <= got.mdr.high))
    mean, median = np.mean(held, axis=0)
    assert mean == pytest.approx(covered, abs=2.5 * (covered * (1 - covered) / sets) ** 0.5)
    assert median >= 0.95  # whole ranks: held too often


@pytest.mark.parametrize("clips", [50, 200, 1000])
def test_equal_systems_are_found_different_in_mean_rank_no_more_than_they_may(clips: int) -> None:
    rng, found = np.random.default_rng(4), []
    for _ in range(400 if clips < 1000 else 150):
        clip = rng.normal(size=clips)
        first, second = (
            of_ranks(long_tailed(rng, clips, 0.9 * clip + 0.19**0.5 * rng.normal(size=clips))) for _ in "ab"
        )
        got = paired_differences(first, second, replicates=100)["mnr"]
        assert got.within_noise == (got.p_value >= 0.05)
        found.append(not got.within_noise)
    assert 0.01 <= np.mean(found) <= 0.055


def test_equal_systems_near_100_percent_are_found_different_no_more_than_they_may() -> None:
    rng = np.random.default_rng(4)
    found = []
    for _ in range(500):
        first, second = (successes(rng.random(200) < 0.99) for _ in "ab")  # a query or two apart, or none
        found.append(not paired_differences(first, second, replicates=100)["r1"].within_noise)
    assert np.mean(found) <= 0.05


def test_four_queries_that_speak_for_one_system_are_no_difference() -> None:
    first = np.arange(200) >= 4
    got = paired_differences(successes(first), successes(np.ones(200, bool)))["r1"]
    assert got.difference == pytest.approx(2.0)
    assert got.within_noise and got.p_value > 0.05


def test_nothing_but_right_answers_leave_room_below_100_percent() -> None:
    got = bootstrap_intervals(successes(np.ones(50, bool)))
    assert got is not None
    assert 92.0 < got.r1.low < 94.0 and got.r1.high == 100.0  # n / (n + z^2)
    many = bootstrap_intervals(successes(np.ones(1000, bool), np.repeat(np.arange(50), 20)))
    assert many is not None and many.r1.low == pytest.approx(got.r1.low)  # 50 clips, however many captions they have


@pytest.mark.parametrize("ranks", [[1, 1, 2], [1, 2, 3], [3, 3, 2], [1, 1, 1], [1, 3, 3]])
def test_few_clips_leave_the_mean_rank_between_first_and_last(ranks: list[int]) -> None:
    places = np.array(ranks)
    found = bootstrap_intervals(Ranks(places - 1, places * 0, places * 0 + 1, np.arange(3), 3))
    assert found is not None and 1.0 <= found.mnr.low <= places.mean() <= found.mnr.high <= 3.0 + 1e-9


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
    for metric, each in paired_differences(ranks, ranks).items():
        assert (each.difference, each.p_value) == (0.0, 1.0)
        assert each.within_noise
        if metric in RECALLS:  # 60 clips on which they agree do not say that they agree on all
            assert each.interval.low == -each.interval.high < -1.0
        else:
            assert each.interval == Interval(0.0, 0.0)


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
