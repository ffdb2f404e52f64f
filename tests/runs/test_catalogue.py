"""Runs of a folder: what a record says, which is best, what may be removed."""

import errno
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from calmctl.cli.main import app
from calmctl.errors import BadInput, CheckpointError, RunFailed, RunNotFound
from calmctl.recipe import recipe_from_dict
from calmctl.runs import catalogue
from calmctl.runs.catalogue import (
    best_run,
    dependants,
    prunable,
    prune,
    recipe_differences,
    remove_run,
    run_record,
    run_records,
)
from calmctl.runs.run import PINNED, Run, create_run, find_run


def made(root, name="tiny", *, scores=(50.0,), epochs=1, finished=True, test=40.0, seed=24, val="v", time=1e9, **keys):
    """A run as a training leaves it, without weights that mean anything."""
    values = {"name": name, "seed": seed, "data": {"dataset": "demo"}, "optim": {"epochs": epochs}, **keys}
    run = create_run(root, recipe_from_dict(values))
    train = {"dataset": "demo", "protocol": "retrieval", "clips": 12, "left_out": 3}
    identity = {"splits": {"train": train, "val": {"digest": val}}, "undecodable": 1}
    run.about.write_text(json.dumps({"identity": identity, "parameters": 7}))
    lines = [{"step": 1, "loss": 1.0, "time": time - 1}]
    numbers = [{"epoch": float(n), "score": r1, "t2v_r1": r1} for n, r1 in enumerate(scores, 1)]
    lines += [{"step": n, "validation": each, "epoch": n, "time": time} for n, each in enumerate(numbers, 1)]
    run.log.write_text("".join(json.dumps(line) + "\n" for line in lines))
    for which in ("best", "last"):
        run.weights(which).write_bytes(b"0" * 1000)
    run.state.write_bytes(b"0" * 5000)
    if finished:
        tested = {"metrics": {"text_to_video": {"r1": test}}}
        run.results.write_text(json.dumps({"validation": numbers, "test": [tested]}))
    return run


def test_a_record_says_what_a_run_is(tmp_path):
    run = made(tmp_path, scores=(30.0, 55.0, 50.0), epochs=3)
    (run.evals).mkdir()
    (run.evals / "demo.json").write_text("{}")
    record = run_record(run)
    assert (record.state, record.epoch, record.epochs, record.progress) == ("finished", 3, 3, "3/3")
    assert (record.metric, record.validation, record.test) == ("R@1", 55.0, 40.0), "of the best epoch on validation"
    # 12 listed and found, of which 1 did not decode, and 3 missing.
    assert record.trained_on == "demo retrieval, 11 of 15 clips"
    assert (record.seed, record.parameters, record.evals, record.head) == (24, 7, 1, "t-mass")
    assert record.bytes == sum(path.stat().st_size for path in run.folder.rglob("*") if path.is_file())


def test_an_unfinished_run_has_the_epochs_of_its_log(tmp_path):
    run = made(tmp_path, scores=(30.0, 20.0), epochs=5, finished=False)
    with run.log.open("a") as log:
        log.write('{"step": 3, "ti')  # a kill
    record = run_record(run)
    assert (record.state, record.progress, record.validation, record.test) == (
        "unfinished",
        "2/5 unfinished",
        30.0,
        None,
    )


@pytest.mark.parametrize("content", ["[]", "{}", "3", '{"name": "x", "data": 3}', "{"])
def test_a_run_that_cannot_be_read_does_not_hide_the_others(tmp_path, content):
    broken = made(tmp_path, "broken")
    broken.recipe_file.write_text(content)
    made(tmp_path, "sound", time=2e9)
    sound, unreadable = run_records(tmp_path)
    assert (sound.name, sound.state) == ("sound-001", "finished")
    assert (unreadable.name, unreadable.state) == ("broken-001", "unreadable") and unreadable.fault


def test_a_number_that_is_not_finite_makes_no_record(tmp_path):
    """A log may have NaN, of a step that failed; a record goes into JSON, which has none."""
    run = made(tmp_path, "diverged", scores=(30.0,), finished=False)
    with run.log.open("a") as log:
        log.write('{"step": 9, "loss": NaN, "time": 5.0}\n')
    assert (run_record(run).state, run_record(run).validation) == ("unfinished", 30.0)
    with run.log.open("a") as log:
        log.write('{"step": 10, "loss": 1.0, "time": 1e999}\n')
    assert run_record(run).state == "unreadable"


def test_a_log_nested_too_deeply_is_a_damaged_line(tmp_path):
    """No reader of logs overflows its stack: the list of runs, the newest run, and a resume."""
    run = made(tmp_path, "deep")
    with run.log.open("a") as log:
        log.write("[" * 100_000 + "\n")
    (record,) = run_records(tmp_path)
    assert record.state == "finished"
    run.weights("best").write_bytes(b"")
    assert find_run(None, tmp_path).name == run.name
    with pytest.raises(CheckpointError, match="not every line is a logged step"):
        run.read_log(9, 9)


def test_records_are_the_newest_first_and_a_pin_is_none(tmp_path):
    for name, time in (("a", 3e9), ("b", 1e9), ("c", 2e9)):
        made(tmp_path, name, time=time)
    (tmp_path / PINNED).symlink_to("b-001")
    assert [record.name for record in run_records(tmp_path)] == ["a-001", "c-001", "b-001"]
    assert run_records(tmp_path / "nowhere") == []


def test_the_best_run_is_the_best_on_validation(tmp_path):
    made(tmp_path, "a", scores=(50.0,), test=90.0)
    made(tmp_path, "b", scores=(60.0,), test=10.0)
    made(tmp_path, "c", scores=(99.0,), finished=False)
    assert best_run(run_records(tmp_path)).name == "b-001"
    with pytest.raises(RunNotFound, match="no finished run"):
        best_run([record for record in run_records(tmp_path) if record.name == "c-001"])
    made(tmp_path, "d", val="other clips")
    with pytest.raises(BadInput, match=r"2 different things.*--task and --trained-on"):
        best_run(run_records(tmp_path))
    with pytest.raises(BadInput, match=r"not defined; calmctl compare tests some on the same clips"):
        best_run(run_records(tmp_path), [])  # both were given


def test_recipes_differ_where_results_do(tmp_path):
    values = {"name": "x", "data": {"dataset": "demo"}}
    changes = ["name=y", "data.root=elsewhere", "optim.log_every=3", "optim.epochs=2", "seed=3", "device=cpu"]
    first, second = recipe_from_dict(values), recipe_from_dict(values, overrides=changes)
    assert recipe_differences([first, second]) == {"seed": [24, 3], "optim.epochs": [5, 2]}
    start = recipe_from_dict(values, overrides=["backbone.weights=laion2b_s34b_b79k"])
    assert recipe_differences([first, start]) == {"backbone.weights": ["openai", "laion2b_s34b_b79k"]}


def test_what_nothing_needs_can_go(tmp_path):
    finished, going, begun = made(tmp_path, "a"), made(tmp_path, "b", finished=False), made(tmp_path, "c")
    for path in (begun.results, begun.log, begun.state, *map(begun.weights, ("best", "last"))):
        path.unlink()
    (finished.folder / ".state.safetensors.x.tmp").write_bytes(b"half")
    found = {each.run.folder.name: each for each in prunable(run_records(tmp_path))}
    assert found.keys() == {"a-001", "c-001"}, "what can still go on is needed"
    assert found["a-001"].bytes == 5004 and found["c-001"].paths == (begun.folder,)
    for each in found.values():
        prune(each)
    assert not begun.folder.exists() and not finished.state.exists() and finished.weights("last").exists()
    assert going.state.exists()
    assert prunable(run_records(tmp_path)) == []
    (more,) = prunable(run_records(tmp_path), last=True)
    assert more.paths == (finished.weights("last"),)


def test_a_run_is_removed_with_its_pin(tmp_path):
    run, other = made(tmp_path, "a"), made(tmp_path, "b")
    (tmp_path / PINNED).symlink_to("a-001")
    with pytest.raises(BadInput, match="a link to a run"):
        remove_run(Run(tmp_path / PINNED))
    with run.locked(), pytest.raises(RunFailed, match="in use by another process"):
        remove_run(Run(run.folder))
    remove_run(run)
    assert [path.name for path in tmp_path.iterdir()] == [other.folder.name]


def test_a_run_that_could_not_be_removed_whole_can_be_removed_again(tmp_path, monkeypatch):
    run, unlink = made(tmp_path, "a"), Path.unlink

    def failing(self, missing_ok=False):
        if self.name == "last.safetensors":
            raise OSError(errno.EIO, "Input/output error", str(self))
        unlink(self, missing_ok)

    monkeypatch.setattr(Path, "unlink", failing)
    with pytest.raises(RunFailed, match=r"cannot remove .*last\.safetensors: Input/output error"):
        remove_run(run)
    monkeypatch.undo()
    assert run.recipe_file.exists(), "what is left is still a run"
    remove_run(run)
    assert not run.folder.exists()


def test_a_removal_that_was_killed_can_be_given_again(tmp_path, monkeypatch):
    run, remove, removed = made(tmp_path, "a"), catalogue._remove, []

    def killed(path):
        if len(removed) == 3:
            raise KeyboardInterrupt
        removed.append(path)
        remove(path)

    monkeypatch.setattr(catalogue, "_remove", killed)
    with pytest.raises(KeyboardInterrupt):
        remove_run(run)
    assert run_record(run).state == "unfinished", "it is no finished run, and is still listed"
    monkeypatch.setattr(catalogue, "_remove", remove)
    remove_run(run)
    assert not run.folder.exists()


def test_a_file_that_cannot_be_removed_is_an_error_and_the_others_go(tmp_path, monkeypatch):
    first, second, unlink = made(tmp_path, "a"), made(tmp_path, "b"), Path.unlink

    def failing(self, missing_ok=False):
        if self == first.state:
            raise OSError(errno.EACCES, "Permission denied")
        unlink(self, missing_ok)

    monkeypatch.setattr(Path, "unlink", failing)
    ended = CliRunner().invoke(app, ["runs", "prune", "--yes", "--runs", str(tmp_path)])
    assert ended.exit_code == 1 and "cannot remove" in str(ended.exception)
    assert first.state.exists() and not second.state.exists()
    with second.locked():  # somebody trains it: that is as it should be
        second.state.write_bytes(b"0")
        assert CliRunner().invoke(app, ["runs", "prune", "b-001", "--yes", "--runs", str(tmp_path)]).exit_code == 0
    with pytest.raises(RunFailed, match="cannot remove"):
        first.drop_state()


def test_a_run_that_was_removed_is_not_begun_again(tmp_path):
    """`train --resume` reads the recipe, and holds the run only then."""
    run = made(tmp_path, "a")
    with run.locked():
        run.recipe_file.unlink()  # what a removal does last
    with pytest.raises(RunFailed, match="has been removed by another process"), run.locked():
        pass


def test_who_started_from_a_run_is_known(tmp_path):
    run = made(tmp_path, "a")
    weights = run.weights("slim")
    weights.write_bytes(b"")
    made(tmp_path, "b", backbone={"weights": str(weights)})
    made(tmp_path, "c")
    assert dependants(run, run_records(tmp_path)) == ["b-001"]
