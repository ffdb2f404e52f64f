"""The worker pool: whatever an item does to its worker, the others go on."""

import itertools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from calmctl.data.workers import available_cores, run_isolated
from calmctl.errors import RunFailed, VideoError

HERE = Path(__file__).parent


@pytest.fixture
def jobs(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The jobs, importable by name: workers look where the parent looks."""
    monkeypatch.syspath_prepend(HERE)
    import worker_jobs

    return worker_jobs


def told(result: np.ndarray | VideoError) -> str:
    return str(result) if isinstance(result, VideoError) else result.tobytes().decode()


def gone(pid: int) -> bool:
    """Whether a process has ended (and, being nobody's child here, been collected)."""
    for _ in range(200):
        try:
            os.kill(pid, 0)
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except (ProcessLookupError, FileNotFoundError):
            return True
        time.sleep(0.05)
    return False


def test_every_fault_costs_one_item_and_results_keep_their_order(jobs: ModuleType) -> None:
    limit = "decoding took longer than 2 s"
    expected = {
        "one": "one",
        "crash": "the decoder crashed (SIGSEGV)",
        "two": "two",
        "hang": limit,
        "three": "three",
        "reason": "no video stream",
        "bug": "KeyError: 'frame'",
        "exit": "the decoder ended with exit code 3",
        "memory": "not enough memory to decode it",
        "noise": "noise",
        "read-nowhere": "the decoder crashed (SIGSEGV)",
        "hang-in-c": limit,
        "empty": "",
        "four": "four",
    }
    results = list(run_isolated(jobs.misbehave, expected, workers=2, timeout_s=2.0))
    assert {item: told(result) for item, result in results} == expected
    assert [item for item, _ in results] == list(expected)
    empty = dict(results)["empty"]
    assert isinstance(empty, np.ndarray) and empty.shape == (0, 3) and empty.dtype == np.float32


def test_large_arrays_arrive_whole(jobs: ModuleType) -> None:
    for number, array in run_isolated(jobs.large, range(6), workers=2):
        np.testing.assert_array_equal(array, jobs.large(number))


def test_look_ahead_is_bounded_and_input_may_be_endless(jobs: ModuleType) -> None:
    asked: list[int] = []

    def endless() -> Iterator[int]:
        for number in itertools.count():
            asked.append(number)
            yield number

    results = run_isolated(jobs.pid, endless(), workers=1, ahead=3)
    for consumed in range(1, 6):
        next(results)
        assert len(asked) == consumed + 3, "one in hand, one in the worker, three ahead"
    results.close()


def test_closing_ends_the_workers_and_one_worker_serves_many_items(jobs: ModuleType) -> None:
    results = run_isolated(jobs.pid, range(100), workers=1)
    pids = {int(array[0]) for _, array in itertools.islice(results, 20)}
    assert len(pids) == 1
    results.close()
    assert gone(pids.pop())


def test_nothing_is_started_for_nothing(jobs: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "Popen", None)
    assert list(run_isolated(jobs.pid, [], workers=2)) == []


def test_decoding_needs_no_torch(jobs: ModuleType) -> None:
    ((_, has_torch),) = run_isolated(jobs.has_torch, [0], workers=1)
    assert not has_torch[0]


def test_a_worker_that_cannot_start_is_an_error_with_its_own_words(jobs: ModuleType) -> None:
    module = ModuleType("only_in_this_process")
    exec("def job(item): return item", module.__dict__)
    sys.modules[module.__name__] = module
    try:
        with pytest.raises(RunFailed, match=r"does not start: ModuleNotFoundError.*only_in_this_process"):
            list(run_isolated(module.job, [0], workers=1))
    finally:
        del sys.modules[module.__name__]


def test_a_plain_script_may_use_it_and_no_worker_outlives_a_killed_parent(tmp_path: Path) -> None:
    """No `__main__` guard, and a folder full of modules that would be imported instead of the real ones."""
    (tmp_path / "numpy.py").write_text("raise SystemExit('a worker imported from the current folder')")
    (tmp_path / "script.py").write_text(
        "import os, signal, sys\n"
        f"sys.path[:] = [{str(HERE)!r}, *{sys.path!r}]\n"
        "import worker_jobs\n"
        "from calmctl.data.workers import run_isolated\n"
        "results = run_isolated(worker_jobs.pid_to_file, ['pid'] * 9, workers=1)\n"
        "next(results)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    ended = subprocess.run([sys.executable, "script.py"], cwd=tmp_path, capture_output=True, timeout=60)
    assert ended.returncode == -signal.SIGKILL, ended.stderr.decode()
    assert gone(int((tmp_path / "pid").read_text()))


def test_processes_of_one_training_share_the_cores(monkeypatch):
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    cores = available_cores()
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")
    assert available_cores() == cores
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(cores * 2))
    assert available_cores() == 1
