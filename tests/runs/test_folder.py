import errno
import json
import os

import pytest

from calmctl.errors import CheckpointError, RecipeError, RunFailed, RunNotFound
from calmctl.recipe import recipe_from_dict
from calmctl.runs.run import Run, create_run, describe_choice, find_run
from calmctl.training.trackers import trackers_of


@pytest.fixture
def run(tiny_recipe, tmp_path):
    return create_run(tmp_path, tiny_recipe())


def steps(run):
    return [(line["step"], line.get("epoch")) for line in map(json.loads, run.log.read_text().splitlines())]


def test_a_log_ends_where_the_checkpoint_ends(run):
    for record in ({"step": 1}, {"step": 2}, {"step": 2, "epoch": 1, "validation": {}}, {"step": 3}):
        assert run.append_log(record).items() > record.items()
    run.trim_log(3, 1)
    assert steps(run) == [(1, None), (2, None), (2, 1), (3, None)]
    run.trim_log(2, 1)
    assert steps(run) == [(1, None), (2, None), (2, 1)]
    run.trim_log(2, 0)  # a checkpoint from before the validation: it will be validated, and logged, again
    assert steps(run) == [(1, None), (2, None)]
    run.trim_log(0, 0)
    assert steps(run) == []


def test_a_line_that_a_kill_cut_short_is_dropped(run):
    run.append_log({"step": 1})
    whole = run.log.read_bytes()
    for kept in range(1, len(whole)):
        run.log.write_bytes(whole + whole[:kept])
        if kept < len(whole):
            run.trim_log(5, 5)
            assert run.log.read_bytes() == whole


@pytest.mark.parametrize("line", ["{", "3", "[]", "{}", '{"step": "x"}', "\x00", "\udcff"])
def test_a_damaged_log_is_a_sentence(run, line):
    run.log.write_bytes(line.encode("utf-8", "surrogateescape") + b"\n")
    with pytest.raises(CheckpointError, match=r"log\.jsonl is damaged"):
        run.read_log(1, 1)


def test_a_run_is_held_by_one_and_cleared_of_what_a_killed_one_left(run):
    leftover = run.folder / ".state.safetensors.x1y2.tmp"
    leftover.write_bytes(b"half")
    with run.locked():
        assert not leftover.exists()
        leftover.write_bytes(b"half")  # now somebody is writing it
        with pytest.raises(RunFailed, match="in use by another process"), Run(run.folder).locked():
            pass
        assert leftover.exists()


def test_only_a_finished_run_loses_its_checkpoint(run):
    run.state.write_bytes(b"state")
    run.drop_state()
    assert run.state.exists()
    run.results.write_text("{}")
    run.drop_state()
    assert not run.state.exists()


def test_a_folder_that_cannot_be_written_is_a_sentence(run, tiny_recipe, tmp_path):
    (run.folder / ".lock").mkdir()  # root may write everywhere, but not a file where a folder is
    with pytest.raises(RunFailed, match=r"cannot write .*tiny-001"), run.locked():
        pass
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(RunFailed, match=r"cannot create .*; choose another folder with --runs"):
            create_run(place, tiny_recipe())


def test_a_run_appears_with_its_recipe_or_not_at_all(tiny_recipe, tmp_path, monkeypatch):
    root = tmp_path / "runs"
    (root / "tiny-001").mkdir(parents=True)  # left empty, where it could not be removed
    (root / "tiny-002").mkdir()
    (root / "tiny-002" / "note").write_text("a person's")
    (root / "tiny-003").write_text("no folder")
    runs = [create_run(root, tiny_recipe(), ["tensorboard"]) for _ in range(2)]
    assert [run.folder.name for run in runs] == ["tiny-001", "tiny-004"]
    assert trackers_of(runs[0]) == ["tensorboard"]  # without options, and before anything was tracked
    assert (root / "tiny-001").stat().st_mode == (root / "tiny-002").stat().st_mode
    before = sorted(root.rglob("*"))

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RunFailed, match=r"cannot write .*runs/tiny/recipe.json: No space left on device; free space"):
        create_run(root, tiny_recipe())
    assert sorted(root.rglob("*")) == before


def test_a_full_disk_ends_a_log_with_a_sentence(run):
    run.log.symlink_to("/dev/full")
    with pytest.raises(RunFailed, match=r"cannot write .*log\.jsonl: No space left on device"):
        run.append_log({"step": 1})


def trained(root, name, age, *, dataset="folder", task="retrieval", clips=16, missing=0, ids=("a", "b")):
    """A run that looks trained `age` seconds ago."""
    run = create_run(root, recipe_from_dict({"name": name, "task": task, "data": {"dataset": dataset}}))
    run.weights("best").touch()
    run.log.write_text(json.dumps({"step": 1, "time": 1e9 - age}) + "\n")
    record = {"data": {"train": {"clips": clips, "left_out": missing}}, "validation_ids": list(ids)}
    run.about.write_text(json.dumps(record))
    return run


def test_a_run_says_what_it_was_trained_on_and_on_how_much(tmp_path):
    whole = trained(tmp_path, "a", 0, dataset="msrvtt", clips=9000)
    trial = trained(tmp_path, "b", 0, dataset="msrvtt", clips=12, missing=8988)
    assert str(whole.trained_on) == "trained on msrvtt, 9,000 clips"
    assert str(trial.trained_on) == "trained on msrvtt, 12 of 9,000 clips"
    assert str(trained(tmp_path, "c", 0, clips=1).trained_on) == "trained on folder, 1 clip"
    seen = {"dataset": "msrvtt", "protocol": "9k", "clips": 20, "left_out": 8980}
    trial.about.write_text(json.dumps({"identity": {"splits": {"train": seen}, "undecodable": 1}}))
    assert str(trial.trained_on) == "trained on msrvtt 9k, 19 of 9,000 clips", "as its weights were made"
    whole.about.unlink()
    assert str(whole.trained_on) == "trained on msrvtt"


def test_clips_of_another_kind_are_warned_of(tmp_path):
    demo, real = trained(tmp_path, "demo", 0, dataset="demo"), trained(tmp_path, "real", 0)
    # a folder into which somebody copied the demo's clips
    copied = trained(tmp_path, "copied", 0, ids=("val0000-b1e5a9d1", "val0001-00ff00ff"))
    assert demo.trained_on.drawn and copied.trained_on.drawn and not real.trained_on.drawn
    assert "mean nothing" in demo.trained_on.warning(False) and demo.trained_on.warning(True) is None
    assert "drawn shapes" in real.trained_on.warning(True) and real.trained_on.warning(False) is None


def test_the_newest_run_that_knows_such_clips_answers(tmp_path):
    old = trained(tmp_path, "old", 300)
    new = trained(tmp_path, "new", 200)
    demo = trained(tmp_path, "demo", 100, dataset="demo")
    trained(tmp_path, "writer", 50, task="caption")

    def found(**options):
        return find_run(None, tmp_path, task="retrieval", **options).folder

    assert found() == demo.folder and found(drawn=True) == demo.folder and found(drawn=False) == new.folder
    for run in (old, new):
        run.weights("best").unlink()
    with pytest.raises(
        RunNotFound, match=r"was trained on real videos; the newest, .*demo-001, was trained on demo, 16"
    ):
        found(drawn=False)


def test_a_link_pins_a_run(tmp_path):
    trained(tmp_path, "a", 300)
    demo = trained(tmp_path, "demo", 200, dataset="demo")
    trained(tmp_path, "b", 100)
    (tmp_path / "default").symlink_to("demo-001")
    pinned = find_run(None, tmp_path, task="retrieval", drawn=False)
    assert pinned.folder.resolve() == demo.folder.resolve()
    assert describe_choice(pinned) == f"the pinned run, {tmp_path / 'default'} -> demo-001"
    assert find_run("default", tmp_path).folder == tmp_path / "default"
    writer = trained(tmp_path, "writer", 400, task="caption")
    assert find_run(None, tmp_path, task="caption").folder == writer.folder, "the link leads to a run of another task"


def test_a_name_without_its_number_is_recognised(tmp_path):
    for _ in range(2):
        trained(tmp_path, "msvd-a", 0)
    with pytest.raises(RunNotFound, match=r"no run at msvd-a .*did you mean .*msvd-a-002\?"):
        find_run("msvd-a", tmp_path)
    with pytest.raises(RunNotFound, match=r"did you mean .*msvd-a-001\?"):
        find_run("msvd-a-01", tmp_path)
    for name in ("demo-001", "demo-without-001"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "recipe.json").write_text("{}")
    with pytest.raises(RunNotFound, match=r"did you mean .*[/\\]demo-001\?"):
        find_run("demo", tmp_path)  # another recipe's name begins as this one


def test_an_old_run_s_unknown_key_says_which_version_made_it(run):
    recipe = json.loads(run.recipe_file.read_text())
    run.recipe_file.write_text(json.dumps(recipe | {"colour": "blue"}))
    with pytest.raises(RecipeError, match="unknown key colour") as caught:
        run.recipe()
    assert "made by" not in str(caught.value)
    run.about.write_text(json.dumps({"packages": {"calmctl": "0.0.7"}}))
    with pytest.raises(RecipeError, match=r"this run was made by calmctl 0\.0\.7: use that version"):
        run.recipe()


def test_a_run_of_before_the_key_stays_what_it_was(run):
    """EMCL's reconstruction was `shares` before `head.em_rebuild`; a resumed run must not change its method."""
    values = json.loads(run.recipe_file.read_text())
    assert run.recipe().head.em_rebuild == values["head"].pop("em_rebuild") == "released"
    run.recipe_file.write_text(json.dumps(values))
    assert run.recipe().head.em_rebuild == "released"  # of other heads nothing changed: they are recognised as before
    values["head"]["kind"] = "emcl"
    run.recipe_file.write_text(json.dumps(values))
    assert run.recipe().head.em_rebuild == "shares"
