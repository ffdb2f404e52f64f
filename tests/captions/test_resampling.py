import numpy as np
import pytest

from calmctl.evaluation import statistics as resampling
from calmctl.evaluation.statistics import percentiles, resampled_sums


def test_one_draw_serves_all_columns_and_is_the_same_again() -> None:
    columns = np.random.default_rng(1).random((40, 3))
    sums = resampled_sums(columns, replicates=200)
    assert sums.shape == (200, 3)
    np.testing.assert_allclose(resampled_sums(columns[:, [2]], replicates=200)[:, 0], sums[:, 2], rtol=1e-12)
    assert not np.array_equal(resampled_sums(columns, replicates=200, seed=1), sums)
    assert (resampled_sums(np.ones((40, 1)), replicates=50) == 40).all()


def test_blocks_make_no_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    columns = np.random.default_rng(1).random((40, 3))
    at_once = resampled_sums(columns, replicates=200)
    monkeypatch.setattr(resampling, "_BLOCK_ELEMENTS", 7 * 40)
    np.testing.assert_allclose(resampled_sums(columns, replicates=200), at_once, rtol=1e-12)


def test_the_interval_of_a_mean_is_the_normal_one() -> None:
    """For a mean of many, theory: mean ± 1.96 standard errors."""
    values = np.random.default_rng(2).gamma(2.0, size=2000)
    found = percentiles(resampled_sums(values[:, None], replicates=4000)[:, 0] / len(values))
    error = values.std() / np.sqrt(len(values))
    assert found.low == pytest.approx(values.mean() - 1.96 * error, abs=0.15 * error)
    assert found.high == pytest.approx(values.mean() + 1.96 * error, abs=0.15 * error)
