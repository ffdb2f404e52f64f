"""A table from its runs, on a tiny world: what is missing, what is reused, what goes on, what comes out."""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from calmctl.anchors.vocabulary import make_vocabulary, save_vocabulary
from calmctl.data.registry import load_dataset
from calmctl.errors import BadInput, CalmError
from calmctl.reproduce import outcomes
from calmctl.reproduce.datasets import TableData, folder_world
from calmctl.reproduce.filled import legend
from calmctl.reproduce.reproduce import choose_rows, measure, plan_tables, require_present, write_table
from calmctl.reproduce.rows import Row, Table
from calmctl.reproduce.work import Ledger, digest_of, duration_s, estimate, work_off
from calmctl.source.base import SourceSpec
from calmctl.words import Watcher

CPU = torch.device("cpu")
TESTS = ("demo", "demo-shifted")


@pytest.fixture(scope="module")
def place(tmp_path_factory: Any, tiny_world: Path, tiny_recipe_values: Callable[[Path], dict[str, Any]]) -> Path:
    folder: Path = tmp_path_factory.mktemp("tables")
    values = tiny_recipe_values(tiny_world) | {"optim": {"epochs": 1, "batch_size": 30, "lr_head": 1e-3}}
    (folder / "tiny.yaml").write_text(yaml.safe_dump(values))
    return folder


@pytest.fixture(scope="module")
def table(place: Path) -> Table:
    recipe = str(place / "tiny.yaml")
    return Table(
        "table9",
        "A tiny table",
        (
            Row("t-mass", "T-MASS", recipe, ("head.kind=t-mass", "head.trials=2", "alignment.kind=none"), TESTS),
            Row("meanp", "mean", recipe, ("head.kind=meanp",), TESTS, baseline="t-mass"),
        ),
    )


@pytest.fixture(scope="module")
def world(tiny_world: Path) -> TableData:
    tests = {name: SourceSpec(name, tiny_world) for name in TESTS}
    return TableData("tiny", tests, {"demo": (f"data.root={tiny_world}",)})


@pytest.fixture(scope="module")
def runs(place: Path, table: Table, world: TableData) -> Path:
    """A folder with every run of the table for two seeds."""
    plan = plan_tables([table], world, place / "runs", seeds=2)
    assert [job.state for job in plan.jobs] == ["new"] * 4
    assert [(job.row.key, job.seed) for job in plan.jobs] == [("t-mass", 0), ("meanp", 0), ("t-mass", 1), ("meanp", 1)]
    work_off(plan.jobs, place / "runs")
    return place / "runs"


def test_finished_runs_are_used_again(table: Table, world: TableData, runs: Path) -> None:
    plan = plan_tables([table], world, runs, seeds=2)
    assert [job.state for job in plan.jobs] == ["finished"] * 4
    before = {path: path.stat().st_mtime_ns for path in runs.rglob("*.safetensors")}
    work_off(plan.jobs, runs)
    assert {path: path.stat().st_mtime_ns for path in runs.rglob("*.safetensors")} == before
    more = plan_tables([table], world, runs, seeds=3, overrides=())
    assert [job.state for job in more.jobs] == ["finished"] * 4 + ["new"] * 2
    other = plan_tables([table], world, runs, seeds=2, overrides=("optim.lr_head=2e-3",))
    assert {job.state for job in other.jobs} == {"new"}
    elsewhere = plan_tables([table], world, runs, seeds=2, overrides=("data.workers=2", "optim.log_every=3"))
    assert {job.state for job in elsewhere.jobs} == {"finished"}  # no number depends on these


def test_the_table_is_that_of_its_runs(table: Table, world: TableData, runs: Path, tmp_path: Path) -> None:
    plan = plan_tables([table], world, runs, seeds=2)
    (filled,) = measure(plan, runs, seeds=2, device=CPU)
    assert [(b.trained_on, b.tested_on, b.n_clips) for b in filled.blocks] == [
        ("demo", "demo", 6),
        ("demo", "demo-shifted", 6),
    ]
    t_mass, meanp = filled.blocks[0].lines
    for line in (t_mass, meanp):
        results = [json.loads((Path(run) / "results.json").read_text())["test"][0] for run in line.runs]
        told = [each["metrics"]["text_to_video"]["r1"] for each in results]
        assert line.numbers["r1"] is not None and list(line.numbers["r1"].values) == pytest.approx(told)
    assert t_mass.leak_r1 is not None and meanp.leak_r1 is None and meanp.baseline == "t-mass"
    kept = sorted(path.name for path in runs.rglob("outcomes-*.json"))
    assert len(kept) == 8
    json_file, markdown_file = write_table(filled, tmp_path, "calmctl reproduce table9")
    told = json.loads(json_file.read_text())
    assert told["packages"]["torch"] and "T-MASS" in markdown_file.read_text()
    assert any("leak: AUDIT, NOT A RESULT" in line for line in told["legend"])
    assert any("unpaired over seeds" in line for line in told["legend"])


def _sealed(content: dict[str, Any]) -> dict[str, Any]:
    """With a digest that fits, as calmctl would have written it."""
    content.pop("sha256", None)
    return {**content, "sha256": outcomes._digest(content)}


def test_outcomes_are_read_again_and_not_trusted_for_other_weights(table: Table, world: TableData, runs: Path) -> None:
    plan = plan_tables([table], world, runs, seeds=1)
    (filled,) = measure(plan, runs, seeds=1, device=CPU)
    kept = Path(filled.blocks[0].lines[1].runs[0]) / "outcomes-demo.json"
    whole = kept.read_text()
    kept.write_text(json.dumps({**json.loads(whole), "numbers": {"r1": -1.0}}))
    (edited,) = measure(plan, runs, seeds=1, device=CPU)
    assert edited.blocks[0].lines[1].numbers == filled.blocks[0].lines[1].numbers  # by hand: measured again
    assert json.loads(kept.read_text()) == json.loads(whole)
    kept.write_text(json.dumps(_sealed({**json.loads(whole), "numbers": {"r1": -1.0}})))
    (again,) = measure(plan, runs, seeds=1, device=CPU)
    assert again.blocks[0].lines[1].numbers["r1"].mean == -1.0  # it was read, not measured
    kept.write_text(json.dumps(_sealed({**json.loads(kept.read_text()), "weights": "of another run"})))
    (measured,) = measure(plan, runs, seeds=1, device=CPU)
    assert measured.blocks[0].lines[1].numbers == filled.blocks[0].lines[1].numbers
    assert json.loads(kept.read_text()) == json.loads(whole)
    kept.write_text(json.dumps(_sealed({**json.loads(whole), "a key of another version": 1})))
    measure(plan, runs, seeds=1, device=CPU)
    assert json.loads(kept.read_text()) == json.loads(whole)


def test_a_test_set_that_was_completed_is_measured_again(
    table: Table, world: TableData, runs: Path, tiny_world: Path, tmp_path: Path
) -> None:
    shifted = tmp_path / "shifted"
    shutil.copytree(tiny_world, shifted)
    moved = replace(world, tests={**world.tests, "demo-shifted": replace(world.tests["demo-shifted"], root=shifted)})
    chosen = choose_rows(table, ["t-mass"])
    clip = load_dataset("demo-shifted", shifted).splits["test"].clips[0]

    def clips() -> tuple[int, int]:
        (filled,) = measure(plan_tables([chosen], moved, runs, seeds=1), runs, seeds=1, device=CPU)
        return filled.blocks[1].n_clips, filled.blocks[1].left_out

    whole = clip.path.read_bytes()
    clip.path.unlink()
    assert clips() == (5, 1)
    clip.path.write_bytes(whole[:100])  # there, and broken
    assert clips() == (5, 1)
    clip.path.write_bytes(whole)
    assert clips() == (6, 0)


def test_runs_at_once_are_those_of_one_after_another(
    table: Table, world: TableData, runs: Path, tmp_path: Path
) -> None:
    told: list[tuple[str, int, int]] = []
    plan = plan_tables([table], world, tmp_path, seeds=1)
    work_off(plan.jobs, tmp_path, processes=2)
    plan = plan_tables([table], world, tmp_path, seeds=1)
    (ours,) = measure(
        plan,
        tmp_path,
        seeds=1,
        device=CPU,
        processes=2,
        progress=lambda what, done, total, *_: told.append((what, done, total)),
    )
    # Each process has its share of the threads, and sums in another order differ in their last digits.
    (theirs,) = measure(plan_tables([table], world, runs, seeds=1), runs, seeds=1, device=CPU)
    for our, their in zip(ours.blocks, theirs.blocks, strict=True):
        for line, other in zip(our.lines, their.lines, strict=True):
            assert {name: each and each.mean for name, each in line.numbers.items()} == pytest.approx(
                {name: each and each.mean for name, each in other.numbers.items()}
            )
    assert ("runs that are tested", 2, 2) in told
    told.clear()
    measure(plan, tmp_path, seeds=1, device=CPU, processes=2, progress=lambda what, *_: told.append((what, 0, 0)))
    assert not told  # every number was kept


def test_a_head_that_reads_words_is_trained_and_tested_on_videos(table: Table, world: TableData) -> None:
    """The row's own keys go before the world's features."""
    stored = replace(
        world,
        tests={name: replace(test, features=Path("features") / name) for name, test in world.tests.items()},
        overrides={"demo": (*world.overrides["demo"], "data.features=features/demo", "backbone.adapter=linear")},
    )
    words = Row("wti", "WTI", table.rows[0].recipe, ("head.kind=wti", "data.features=null"), TESTS)
    for row, features in ((words, [None, None]), (table.rows[1], [Path("features") / name for name in TESTS])):
        recipe = stored.recipe(row, 0)
        assert [test.features for test in stored.tests_of(row, recipe)] == features


def test_runs_of_several_revisions_are_told(table: Table, world: TableData, runs: Path) -> None:
    plan = plan_tables([table], world, runs, seeds=1)
    (filled,) = measure(plan, runs, seeds=1, device=CPU)
    assert not any("revisions" in note for note in filled.table.notes)
    about = Path(filled.blocks[0].lines[1].runs[0]) / "run.json"
    whole = about.read_text()
    about.write_text(json.dumps({**json.loads(whole), "git": "0123456789abcdef+changes"}))
    (mixed,) = measure(plan, runs, seeds=1, device=CPU)
    about.write_text(whole)
    assert "2 revisions of calmctl: 0123456789ab+changes, " in mixed.table.notes[-1]


def test_an_interrupted_run_goes_on(table: Table, world: TableData, tmp_path: Path) -> None:
    class Stop(Exception):
        pass

    class Halt(Watcher):
        def step(self, done: int, total: int, loss: float) -> None:
            if done == 1:
                raise Stop

    class Listen(Watcher):
        def stage(self, text: str) -> None:
            seen.append(text)

    chosen = choose_rows(table, ["t-mass"])
    overrides = ("optim.save_every=1",)
    plan = plan_tables([chosen], world, tmp_path, seeds=1, overrides=overrides)
    with pytest.raises(Stop):
        work_off(plan.jobs, tmp_path, watcher=Halt())
    halted = plan_tables([chosen], world, tmp_path, seeds=1, overrides=overrides)
    assert [job.state for job in halted.jobs] == ["interrupted"]
    with pytest.raises(BadInput, match="is not finished"):
        measure(halted, tmp_path, seeds=1, overrides=overrides, device=CPU)
    seen: list[str] = []
    work_off(halted.jobs, tmp_path, watcher=Listen())
    assert (
        seen == [f"run 1 of 1: {halted.jobs[0].recipe.name} goes on"] and len(list(tmp_path.glob("*/recipe.json"))) == 1
    )
    done = plan_tables([chosen], world, tmp_path, seeds=1)
    assert [job.state for job in done.jobs] == ["finished"]
    assert done.jobs[0].run is not None and duration_s(done.jobs[0].run) is None  # a broken run's time tells nothing


def test_a_run_of_weights_that_have_changed_since_does_not_count(
    table: Table, world: TableData, runs: Path, tmp_path: Path
) -> None:
    run = Ledger(runs).finished(world.recipe(table.rows[1], 0))
    assert run is not None
    start = tmp_path / "start.safetensors"
    start.write_bytes(run.weights("slim").read_bytes())
    os.utime(start, (1, 1))
    overrides = (f"backbone.weights={start}",)
    chosen = choose_rows(table, ["t-mass"])
    work_off(plan_tables([chosen], world, tmp_path, seeds=1, overrides=overrides).jobs, tmp_path)
    assert plan_tables([chosen], world, tmp_path, seeds=1, overrides=overrides).jobs[0].state == "finished"
    os.utime(start, (2**32, 2**32))  # a date ahead of every clock is no other content
    assert plan_tables([chosen], world, tmp_path, seeds=1, overrides=overrides).jobs[0].state == "finished"
    start.write_bytes(run.weights("last").read_bytes())
    assert plan_tables([chosen], world, tmp_path, seeds=1, overrides=overrides).jobs[0].state == "new"


def test_a_moved_folder_of_runs_is_recognised(table: Table, world: TableData, runs: Path, tmp_path: Path) -> None:
    moved = shutil.copytree(runs, tmp_path / "moved", ignore=shutil.ignore_patterns("*.mp4"))
    old, new = (Ledger(place).finished(world.recipe(table.rows[1], 0)) for place in (runs, moved))
    assert old is not None and new is not None and new.folder == moved / old.folder.name


def test_a_run_of_anchors_that_have_changed_since_does_not_count(
    table: Table, world: TableData, tmp_path: Path
) -> None:
    anchors = tmp_path / "own@1.yaml"
    about = {"name": "own", "source": "made up", "licence": "CC0"}
    labels = [(color, color) for color in ("red", "green", "blue", "yellow", "white")]
    save_vocabulary(make_vocabulary(labels, where="here", **about), anchors)
    overrides = (f"anchors.vocabulary={anchors}",)
    chosen = choose_rows(table, ["t-mass"])
    work_off(plan_tables([chosen], world, tmp_path, seeds=1, overrides=overrides).jobs, tmp_path)
    assert plan_tables([chosen], world, tmp_path, seeds=1, overrides=overrides).jobs[0].state == "finished"
    save_vocabulary(make_vocabulary([*labels[1:], ("red", "dark red")], where="here", **about), anchors)
    assert plan_tables([chosen], world, tmp_path, seeds=1, overrides=overrides).jobs[0].state == "new"


def test_the_cost_is_from_finished_runs_or_from_measured_steps(table: Table, world: TableData, runs: Path) -> None:
    finished = plan_tables([table], world, runs, seeds=2)
    assert estimate(finished.jobs).seconds == 0
    more = plan_tables([table], world, runs, seeds=4)
    cost = estimate(more.jobs)
    known = [s for job in finished.jobs if job.run and (s := duration_s(job.run)) is not None]
    assert len(known) == 4 and cost.how == "finished runs" and cost.memory_bytes is None
    assert cost.seconds == pytest.approx(sum(known))  # two of each row are done, two of each are to do
    new = plan_tables([table], world, runs, seeds=1, overrides=("optim.lr_head=2e-3",))
    measured = estimate(new.jobs)
    assert measured.seconds is not None and measured.seconds > 0 and "3 measured steps" in measured.how
    assert measured.memory_bytes is not None and measured.memory_bytes > 10**8


def test_digests_tell_recipes_apart(table: Table, world: TableData) -> None:
    recipe = world.recipe(table.rows[0], 0)
    assert digest_of(recipe) == digest_of(recipe.model_copy(update={"name": "other", "device": "cpu"}))
    assert digest_of(recipe) != digest_of(world.recipe(table.rows[0], 1))
    assert digest_of(recipe) != digest_of(world.recipe(table.rows[0], 0, ("head.dropout=0.2",)))


def test_missing_data_is_listed_and_can_be_left_out(table: Table, tiny_world: Path, tmp_path: Path) -> None:
    nowhere = TableData("x", {n: SourceSpec(n, tmp_path) for n in TESTS}, {"demo": (f"data.root={tiny_world}",)})
    plan = plan_tables([table], nowhere, tmp_path, seeds=1)
    assert [each.what for each in plan.missing] == ["demo-shifted"]
    with pytest.raises(BadInput, match=r"(?s)1 of 4 things .*--skip-missing.*demo-shifted"):
        require_present(plan)
    lean = plan_tables([table], nowhere, tmp_path, seeds=1, skip_missing=True)
    require_present(lean)
    assert {row.tests for row in lean.tables[0].rows} == {("demo",)}
    assert lean.left_out["table9"] == {"→ demo-shifted": "the test set is missing"}
    none = plan_tables([table], folder_world(tmp_path, [table]), tmp_path, seeds=1, skip_missing=True)
    with pytest.raises(BadInput, match="nothing is left to run"):
        require_present(none)


def test_a_row_that_misses_its_vocabulary_is_left_out(table: Table, world: TableData, tmp_path: Path) -> None:
    row = Row("k", "Kinetics", table.rows[0].recipe, ("anchors.vocabulary=kinetics@1.yaml",), TESTS, "t-mass")
    both = Table("table9", "", (table.rows[0], row))
    plan = plan_tables([both], world, tmp_path, seeds=1)
    assert "calmctl anchors build kinetics.txt" in plan.missing[0].says
    lean = plan_tables([both], world, tmp_path, seeds=1, skip_missing=True)
    assert [each.key for each in lean.tables[0].rows] == ["t-mass"] and "k" in lean.left_out["table9"]


def test_mistakes_are_sentences(table: Table, world: TableData, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="has no row 'xpool'; it has t-mass, meanp"):
        choose_rows(table, ["xpool"])
    assert [row.key for row in choose_rows(table, ["meanp"]).rows] == ["t-mass", "meanp"]
    with pytest.raises(BadInput, match="at least one run"):
        plan_tables([table], world, tmp_path, seeds=0)
    with pytest.raises(CalmError, match="did you mean"):
        plan_tables([table], world, tmp_path, seeds=1, overrides=("head.drop=0.1",))


def test_a_second_stage_follows_its_first(table: Table, world: TableData, runs: Path, tmp_path: Path) -> None:
    keys = ("head.kind=diffusionret", "head.base=meanp", "head.base_alignment=vae", "alignment.kind=none")
    more = ("head.from_run=meanp", "head.candidates=3")
    second = Row("second", "second", table.rows[1].recipe, (*keys, *more), TESTS, "meanp", first="meanp")
    staged = replace(table, rows=(*table.rows, second))
    assert [row.key for row in choose_rows(replace(staged, rows=(table.rows[1], second)), ["second"]).rows] == [
        "meanp",
        "second",
    ]
    nothing = plan_tables([staged], world, tmp_path / "empty", seeds=1)
    *_, last = nothing.jobs
    assert last.state == "new" and last.first == nothing.recipes["table9", "meanp", 0]
    assert estimate([last]).how == "without the second stages"

    folder = Path(shutil.copytree(runs, tmp_path / "runs"))
    plan = plan_tables([staged], world, folder, seeds=1)
    assert [(job.row.key, job.state) for job in plan.jobs] == [
        ("t-mass", "finished"),
        ("meanp", "finished"),
        ("second", "new"),
    ]
    assert plan.jobs[1].run is not None and plan.jobs[2].recipe.head.from_run == str(plan.jobs[1].run.folder)
    work_off(plan.jobs, folder)
    again = plan_tables([staged], world, folder, seeds=1)
    assert {job.state for job in again.jobs} == {"finished"}
    (filled,) = measure(again, folder, seeds=1, device=CPU)
    # A re-ranked number and a leak-free one share no column; their difference is told all the same.
    assert {block.scorer for block in filled.blocks} == {"leak-free", "re-ranked (list-wise over 3)"}
    base, stage = filled.blocks[0].lines[-1], filled.blocks[1].lines[-1]
    assert any("whose numbers share no column: scorer: leak-free and re-ranked" in line for line in legend(filled))
    assert (base.row, stage.row, stage.baseline) == ("meanp", "second", "meanp") and stage.gains
    # Another first stage is another second one: this one's run is not of it.
    os.remove(plan.jobs[1].run.weights("slim"))
    (plan.jobs[1].run.folder / "best.safetensors").unlink()
    assert plan_tables([staged], world, folder, seeds=1).jobs[-1].first is not None
