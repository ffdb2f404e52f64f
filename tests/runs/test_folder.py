import json

import pytest

from calmctl.errors import CheckpointError, RunFailed
from calmctl.runs.folder import Run, create_run


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


def test_a_full_disk_ends_a_log_with_a_sentence(run):
    run.log.symlink_to("/dev/full")
    with pytest.raises(RunFailed, match=r"cannot write .*log\.jsonl: No space left on device"):
        run.append_log({"step": 1})
