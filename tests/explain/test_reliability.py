from itertools import pairwise, permutations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from calmctl.explain.calibration import (
    calibrated,
    isotonic,
    reliability,
    risk_coverage,
    separation,
    separation_interval,
)

answers = st.lists(st.tuples(st.integers(0, 3), st.booleans()), min_size=1, max_size=5)


@given(answers)
def test_risk_coverage_is_the_mean_over_all_orders_of_equals(rows):
    confidence = np.array([float(c) for c, _ in rows])
    correct = np.array([float(ok) for _, ok in rows])
    curves = []
    for order in permutations(range(len(rows))):
        if all(confidence[a] >= confidence[b] for a, b in pairwise(order)):
            errors = 1 - correct[list(order)]
            curves.append(np.cumsum(errors) / np.arange(1, len(rows) + 1))
    found = risk_coverage(confidence, correct)
    np.testing.assert_allclose(found.risk, np.mean(curves, axis=0), atol=1e-12)
    assert found.area == pytest.approx(np.mean(curves))
    assert found.best <= found.area + 1e-12


def test_a_confidence_that_knows_nothing_gets_the_error_rate():
    correct = np.array([1.0, 0.0, 0.0, 1.0, 1.0])
    assert risk_coverage(np.zeros(5), correct).area == pytest.approx(0.4)


@given(answers)
def test_separation_counts_pairs(rows):
    right = [c for c, ok in rows if ok]
    wrong = [c for c, ok in rows if not ok]
    found = separation(np.array([float(c) for c, _ in rows]), np.array([float(ok) for _, ok in rows]))
    if not right or not wrong:
        assert found is None
        return
    pairs = [(a > b) + 0.5 * (a == b) for a in right for b in wrong]
    assert found == pytest.approx(np.mean(pairs))


def test_separation_agrees_with_torchmetrics():
    import torch
    from torchmetrics.functional.classification import binary_auroc

    random = np.random.default_rng(0)
    confidence, correct = random.normal(size=200).round(1), random.integers(0, 2, 200).astype(float)
    # Its scores must lie in [0, 1]; any increasing map does.
    squeezed = torch.from_numpy(1 / (1 + np.exp(-confidence)))
    expected = float(binary_auroc(squeezed, torch.from_numpy(correct).int()))
    assert separation(confidence, correct) == pytest.approx(expected, abs=1e-6)


def test_the_interval_holds_the_value_and_keeps_clips_together():
    random = np.random.default_rng(1)
    confidence, correct = random.normal(size=60), random.integers(0, 2, 60).astype(float)
    low, high = separation_interval(confidence, correct, np.arange(60))
    assert low < separation(confidence, correct) < high
    # The same 60 queries five times over, as five captions a clip, are no more evidence than once.
    again = [np.repeat(each, 5) for each in (confidence, correct, np.arange(60))]
    wide = separation_interval(*again)
    assert wide[1] - wide[0] == pytest.approx(high - low, rel=0.05)


def test_no_interval_where_everything_is_right():
    assert separation_interval(np.arange(9.0), np.ones(9), np.arange(9)) is None


@given(st.lists(st.tuples(st.integers(0, 4), st.sampled_from([0.0, 0.5, 1.0])), min_size=1, max_size=6))
def test_isotonic_beats_every_other_step_function(rows):
    """Against the max-min formula: the value at i is max over a <= i of min over b >= i of mean(y[a..b])."""
    x = np.array([float(a) for a, _ in rows])
    y = np.array([b for _, b in rows])
    levels, values = isotonic(x, y)
    for i, level in enumerate(levels):
        expected = max(
            min(y[(x >= levels[a]) & (x <= levels[b])].mean() for b in range(i, len(levels))) for a in range(i + 1)
        )
        assert values[i] == pytest.approx(expected), level


def test_probabilities_are_not_fitted_to_the_queries_that_judge_them():
    """On pure noise a map fitted to itself would look calibrated; cross-fitted it cannot know."""
    random = np.random.default_rng(2)
    confidence, correct = random.normal(size=400), random.integers(0, 2, 400).astype(float)
    levels, values = isotonic(confidence, correct)
    itself = np.interp(confidence, levels, values)
    fair = calibrated(confidence, correct, np.arange(400))
    assert np.mean((fair - correct) ** 2) > np.mean((itself - correct) ** 2)
    assert np.mean((fair - correct) ** 2) > 0.24
    assert ((fair >= 0) & (fair <= 1)).all()


def test_one_clip_alone_gets_the_plain_rate():
    assert calibrated(np.arange(4.0), np.array([1.0, 1, 0, 0]), np.zeros(4, int)).tolist() == [0.5] * 4


def test_reliability_bins():
    found = reliability(np.array([0.05, 0.05, 0.95, 1.0]), np.array([0.0, 1.0, 1.0, 1.0]))
    assert found.counts.tolist() == [2, 2]
    assert found.observed.tolist() == [0.5, 1.0]
    assert found.error == pytest.approx(0.5 * 0.45 + 0.5 * 0.025)
