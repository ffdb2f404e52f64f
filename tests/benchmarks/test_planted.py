"""The bench of planted faults: a small sample of it, and checks one by one where its cases say little."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from calmctl.referee.suspicions import diagonal_advantage

PATH = Path(__file__).parents[2] / "benchmarks" / "planted.py"


def _bench() -> ModuleType:
    spec = importlib.util.spec_from_file_location("benchmark_planted", PATH)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up there
    spec.loader.exec_module(module)
    return module


bench = _bench()


@pytest.mark.parametrize("name", bench.FAULTS)
def test_what_is_planted_is_found(name: str) -> None:
    assert bench.measure(name, 3, seed=11)[0] == 3


@pytest.mark.parametrize("name", bench.HONEST)
def test_honest_scores_are_not_suspected(name: str) -> None:
    found, named = bench.measure(name, 4, seed=11)
    assert (found, dict(named)) == (0, {})


def test_a_leak_is_not_claimed_where_nothing_can_be_predicted() -> None:
    """Scores of full rank in which true pairs lead are those of a working model, or of a leak: no answer."""
    rng = np.random.default_rng(0)
    assert diagonal_advantage(rng.normal(size=(300, 300)) + 3 * np.eye(300)) is None
    low = rng.normal(size=(300, 8)) @ rng.normal(size=(8, 300))
    without, leaked = diagonal_advantage(low), diagonal_advantage(low + 3 * np.eye(300))
    assert without is not None and abs(without["standard_errors"]) < 4
    assert leaked is not None and leaked["share"] == pytest.approx(1.0, abs=0.2) and leaked["standard_errors"] > 100
