"""The simulation of large extractions, where its answer is known by other means."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(scope="module")
def scale() -> ModuleType:
    path = Path(__file__).parents[2] / "benchmarks" / "scale.py"
    spec = importlib.util.spec_from_file_location("benchmark_scale", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up there
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("queue", [False, True])
def test_equal_clips_on_equal_machines_take_the_division(scale, queue):
    cluster = scale.Cluster(64_000, 10, 4.0, clip_cv=0.0, machine_cv=0.0)
    outcome = scale.simulate(cluster, queue=queue, seed=0)
    assert outcome.total_s == pytest.approx(scale.ideal_s(cluster)) == pytest.approx(1600.0)
    assert outcome.lost_shards == 0


def test_fixed_shares_wait_for_the_slowest_machine_and_a_queue_does_not(scale):
    cluster = scale.Cluster(640_000, 10, 4.0, clip_cv=0.0, machine_cv=0.5)
    fixed, queue = (scale.simulate(cluster, queue=queue, seed=1) for queue in (False, True))
    # The same seed draws the same machines: shares end with the slowest; a queue ends when the sum of speeds says.
    speeds = scale._log_normal(_after_shards(cluster, 1), 0.5, 10)
    assert fixed.total_s == pytest.approx(scale.ideal_s(cluster) * speeds.mean() / speeds.min())
    assert queue.total_s == pytest.approx(scale.ideal_s(cluster), rel=0.01)


def _after_shards(cluster, seed):
    import numpy as np

    rng = np.random.default_rng(seed)
    rng.standard_normal(-(-cluster.clips // cluster.shard))
    return rng


def test_a_death_costs_its_shard_and_the_restart(scale):
    calm = scale.Cluster(6_400, 1, 4.0, clip_cv=0.0, machine_cv=0.0)
    deadly = scale.Cluster(6_400, 1, 4.0, clip_cv=0.0, machine_cv=0.0, mtbf_s=400.0, restart_s=50.0)
    outcome = scale.simulate(deadly, queue=True, seed=3)
    extra = outcome.total_s - scale.simulate(calm, queue=True, seed=3).total_s
    shard_s = 64 / 4.0
    assert outcome.lost_shards > 0
    assert 50.0 * outcome.lost_shards <= extra <= (50.0 + shard_s) * outcome.lost_shards


def test_time_is_that_of_renewal_theory_when_deaths_are_frequent(scale):
    # One shard of work w with deaths at rate l and restart d takes (1/l + d)(exp(l w) - 1) on average.
    import math

    w, rate, d = 100.0, 1 / 150.0, 20.0
    cluster = scale.Cluster(20_000 * 100, 1, 1.0, shard=100, clip_cv=0.0, machine_cv=0.0, mtbf_s=1 / rate, restart_s=d)
    expected = 20_000 * (1 / rate + d) * (math.exp(rate * w) - 1)
    assert scale.simulate(cluster, queue=False, seed=0).total_s == pytest.approx(expected, rel=0.03)
