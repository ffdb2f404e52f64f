"""The study of CALM's loss on a tiny world: what it runs, keeps and says; its statistics against formulas."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from calmctl.data.demo_world import DemoCounts
from calmctl.errors import RunFailed
from calmctl.reproduce import effect, effect_result
from calmctl.reproduce.effect import BASE, Grid, Job
from calmctl.runs.identity import former_digest, recipe_digest

CPU = torch.device("cpu")
COUNTS = DemoCounts(train=12, val=4, test=8, shifted=8)
KEYS = ("optim.epochs=1", "optim.batch_size=60", "data.frames=2", "data.workers=1", "anchors.entropy=1")


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A folder with the world of the study and two of its runs."""
    folder = tmp_path_factory.mktemp("study")
    recipe = Job("study", "meanp", BASE, "1.0", 0).recipe(KEYS)
    world = effect.find_world(folder, folder / "clips", COUNTS, recipe)
    jobs = [Job("study", "meanp", loss, "0.4", 0) for loss in (BASE, "vae")]
    return folder, world, jobs, effect.run_jobs(jobs, folder, world, overrides=KEYS, device=CPU)


def test_runs_are_measured_on_both_test_sets_and_kept(study):
    folder, world, jobs, done = study
    assert world.frames["train"].shape == (12, 2, 48, 48, 3) and world.frames["demo"].dtype == np.uint8
    assert len(world.splits["val"].captions) == 20 and len(world.splits["demo"].captions) == 8
    assert len(set(world.train("0.4").captions) & set(world.train("1.0").captions)) == 0
    none, vae = (done[job] for job in jobs)
    for record in (none, vae):
        assert set(record["tests"]) == {"demo", "demo-shifted"}
        assert all(1 <= each["mnr"] <= 8 and each["kl"] > 0 for each in record["tests"].values())
    assert "tau" not in none and vae["tau"] > 0 and "own_active_units" in vae["tests"]["demo"]
    assert none["tests"]["demo"].keys() == {"r1", "r5", "mnr", "kl"}  # it has no anchors of its own
    # Nothing is done twice, and a run of other keys is another run.
    lines = (folder / effect.RUNS).read_bytes()
    assert effect.run_jobs(jobs, folder, world, overrides=KEYS, device=CPU) == done
    assert (folder / effect.RUNS).read_bytes() == lines
    assert effect._kept(jobs, folder / effect.RUNS, world, (*KEYS, "optim.epochs=2")) == {}


def test_a_run_has_the_loss_of_training_and_nothing_else(study):
    """The same seed without a loss and with one of weight 0 ends in the same weights: the loss is all that differs."""
    _, world, _, done = study
    bench = effect.Bench(world, KEYS, CPU)
    weightless = bench.run(Job("study", "meanp", "kl", "0.4", 0, weight=0.0))
    none = done[Job("study", "meanp", BASE, "0.4", 0)]
    for test in effect.TESTS:
        assert weightless["tests"][test]["mnr"] == none["tests"][test]["mnr"]
        assert weightless["tests"][test]["kl"] == pytest.approx(none["tests"][test]["kl"], rel=1e-5)


def test_time_that_is_over_begins_no_run(study):
    folder, world, _, _ = study
    later = [Job("study", "meanp", BASE, "1.0", 5)]
    assert effect.run_jobs(later, folder, world, overrides=KEYS, device=CPU, until=0.0) == {}


def test_the_grid_has_whole_seeds_and_ce_takes_the_weight_of_kl():
    grid = Grid(seeds=2)
    done = {}
    for job in effect.rate_jobs(grid):
        done[job] = {"validation": [{"r1": 40.0}, {"r1": 50.0 + (job.rate == 2e-4)}]}
    assert effect.choose_rate(done) == 2e-4
    for job in effect.weight_jobs(grid, 2e-4):
        best = {"vae": 0.3, "kl": 0.1, "mse": 1.0}[job.loss]
        done[job] = {"validation": [{"r1": 50.0 + (job.weight == best)}, {"r1": 10.0}]}
    weights = effect.choose_weights(grid, done)
    assert weights == {BASE: 1.0, "vae": 0.3, "kl": 0.1, "mse": 1.0, "ce": 0.1}
    jobs = effect.study_jobs(grid, 2e-4, weights)
    assert len(set(jobs)) == len(jobs) == 2 * 3 * 3 * 5
    assert [job.seed for job in jobs] == sorted(job.seed for job in jobs)  # a cut leaves whole seeds
    assert {job.recipe().seed for job in jobs}.isdisjoint(job.recipe().seed for job in done)
    assert jobs[0].recipe().data.protocol == "retrieval"
    assert Job("study", "xpool", "ce", "0.4", 0).recipe().data.protocol == "retrieval-0.4"


def _records(grid, seeds, gain):
    """Records in which every loss adds `gain(loss, seed)` points of R@1 to a base that the seed moves."""
    rng = np.random.default_rng(0)
    choices = [*effect.rate_jobs(grid), *effect.weight_jobs(grid, 5e-4)]
    done = {job: {"validation": [{"r1": 1.0}]} for job in choices}
    for seed in range(seeds):
        base = 50.0 + rng.normal(0, 5)
        for job in effect.study_jobs(grid, 5e-4, dict.fromkeys(grid.losses, 1.0)):
            if job.seed == seed:
                r1 = base + gain(job.loss, seed)
                tests = {test: {"r1": r1, "r5": 90.0, "mnr": 2.0, "kl": 1.0} for test in effect.TESTS}
                done[job] = {"loss": job.loss, "tests": tests, "start": {}, "seconds": 1.0}
    return done


def test_differences_are_paired_over_seeds_and_counted():
    grid = Grid(("xpool",), (BASE, "vae", "kl"), ("1.0", "0.4"), 5)
    gains = [0.3, 0.5, 0.2, 0.6, 0.4]  # far below the spread of 5 points between seeds
    done = _records(grid, 4, lambda loss, seed: gains[seed] if loss == "vae" else 0.0)
    found = effect_result.evaluate_study(grid, 5e-4, dict.fromkeys(grid.losses, 1.0), done, {})
    assert found.grid.seeds == 4  # the fifth is not whole
    assert found.comparisons == {"averaged": 12, "by dial": 24, "by head and dial": 24}
    vae = next(e for e in found.overall if (e.loss, e.test, e.metric) == ("vae", "demo", "r1"))
    mean, error = np.mean(gains[:4]), np.std(gains[:4], ddof=1) / 2
    assert vae.difference == pytest.approx(mean)
    assert vae.half == pytest.approx(3.182446 * error, rel=1e-4)  # t of 3 degrees of freedom, 97.5 %
    # Of 3 degrees of freedom the law of t is known in closed form.
    t = mean / error
    p = 1 - 2 / math.pi * (t / math.sqrt(3) / (1 + t * t / 3) + math.atan(t / math.sqrt(3)))
    assert vae.p == pytest.approx(p, abs=1e-6)
    assert vae.p_holm == pytest.approx(12 * p, abs=1e-5)  # the smallest of twelve, a tie with out of domain
    assert next(e for e in found.overall if e.loss == "kl").p == 1.0
    text = effect_result.as_markdown(found, "command", {"packages": {}, "created": "today", "git": "x"})
    assert "| | vae | +0.40 ± " in text and "12 averaged" in text
    assert effect_result.picture(found).count("<circle") == 2 + 4 * 2 * 2  # the key, and four panels


def test_a_study_of_one_seed_answers_nothing():
    grid = Grid(("xpool",), (BASE, "vae"), ("1.0",), 3)
    with pytest.raises(RunFailed, match="1 of 3 seeds of the study are whole"):
        effect_result.evaluate_study(grid, 5e-4, {BASE: 1.0, "vae": 1.0}, _records(grid, 1, lambda *_: 0.0), {})


def test_the_runs_of_the_published_study_are_runs_of_today_s_recipe():
    """A key that a later version adds may not throw hours away (`_LATER` in runs/identity.py has it then)."""
    lines = (Path(__file__).parents[2] / "docs" / effect.RUNS).read_text(encoding="utf-8").splitlines()
    for record in map(json.loads, lines[:: len(lines) // 8]):
        job = Job(**{name: record[name] for name in Job.__slots__})
        values = job.recipe().model_dump(mode="json")
        assert record["recipe"] in (recipe_digest(values), former_digest(values)), job
        values["data"]["captions_per_clip"] = "one"
        assert record["recipe"] not in (recipe_digest(values), former_digest(values))
