"""What `benchmarks/kill.py` and `pairs.py` stand on: a fault of each kind that they look for is found."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

from forks import Fork, locks_free, orphans_gone, still_running
from outcomes import differences, load_all, outcome, temporaries

from calmctl.files import write_json, write_text

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")


@pytest.fixture
def at(tmp_path: Path) -> Path:
    (tmp_path / "at").mkdir()
    return tmp_path / "at"


def test_a_fork_dies_before_exactly_that_operation(at: Path, tmp_path: Path) -> None:
    def job(tell: object) -> None:
        for name in ("a", "b"):
            write_json(at / f"{name}.json", {"name": name, "created": "now"})

    whole = Fork(job, at, tmp_path / "out").wait()
    assert whole.status == 0
    names = [operation.split()[0] for operation in whole.operations]
    assert names == ["open", "os.chmod", "os.rename"] * 2
    expected = outcome(at)
    for path in at.iterdir():
        path.unlink()
    for number, (files, left) in enumerate([(0, 0), (0, 1), (0, 1), (1, 0), (1, 1), (1, 1)], start=1):
        killed = Fork(job, at, tmp_path / "out", die_at=number).wait()
        assert killed.status == -9 and len(killed.operations) == number
        assert load_all(at) == len(temporaries(at)) == left and len(list(at.glob("*.json"))) == files
        for path in at.iterdir():
            path.unlink()
    assert Fork(job, at, tmp_path / "out").wait().status == 0
    assert differences(outcome(at), expected) == []


def test_what_is_half_written_differs_or_is_left_is_found(at: Path) -> None:
    write_json(at / "a.json", {"n": 1, "created": "then"})
    before = outcome(at)
    write_json(at / "a.json", {"n": 1, "created": "now"})
    assert differences(outcome(at), before) == []
    write_json(at / "a.json", {"n": 2})
    write_text(at / "b.md", "more")
    assert differences(outcome(at), before) == ["a.json differs", "b.md is too many"]
    (at / "a.json").write_text(json.dumps({"n": 2})[:-1])
    with pytest.raises(ValueError, match="not JSON"):
        load_all(at)
    (at / "a.json").unlink()
    (at / "kept.frames").write_bytes(b'{"shape": [2, 2]}\n123')
    with pytest.raises(AssertionError, match="not whole"):
        load_all(at)


def test_a_process_that_outlives_its_own_is_found_and_ended(at: Path, tmp_path: Path) -> None:
    def job(tell: object) -> None:
        subprocess.Popen(["sleep", "60"], start_new_session=True)  # with the mark
        if os.fork() == 0:  # in the group
            time.sleep(60)
            os._exit(0)

    fork = Fork(job, at, tmp_path / "out")
    assert fork.wait().status == 0
    assert len(still_running(fork)) == 2
    with pytest.raises(AssertionError, match="sleep 60"):
        orphans_gone(fork, limit_s=0.1)
    while still_running(fork):  # it was killed, and is gone as soon as the system has seen to it
        pass
    assert orphans_gone(fork) == (0, 0.0)


def test_a_lock_that_is_held_is_found(at: Path) -> None:
    (at / ".lock").touch()
    assert locks_free(at) == 1
    with (at / ".lock").open("rb") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        with pytest.raises(AssertionError, match=r"\.lock is held"):
            locks_free(at)
