"""The worker pool: whatever an item does to its worker, the others go on."""

import errno
import itertools
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from calmctl.errors import BadInput, RunFailed, VideoError
from calmctl.samples import Clip
from calmctl.video import worker as worker_process
from calmctl.video.pool import available_cores, run_isolated
from calmctl.video.worker import MEMORY_BYTES

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
        "memory": "decoding what it claims takes more than 4 GiB of memory",
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


def test_nor_do_the_clips_of_a_training_that_keeps_no_frames(jobs: ModuleType) -> None:
    from calmctl.recipe.schema import Data
    from calmctl.source.batches import StreamedFrames

    data = Data(dataset="demo", augment="none", workers=1)
    frames = StreamedFrames((Clip("a", Path("a.mp4")),), jobs.TorchSeen(), data, seed=0)
    (has_torch,) = frames.stream([0], [0], epoch=0)
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


def test_a_machine_without_room_for_a_worker_is_a_sentence(jobs: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    def full() -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(tempfile, "TemporaryFile", full)
    with pytest.raises(RunFailed, match="cannot start a decoding worker: No space left on device"):
        list(run_isolated(jobs.misbehave, ["one"], workers=1))


def test_a_plain_script_may_use_it_and_no_worker_outlives_a_killed_parent(tmp_path: Path) -> None:
    """No `__main__` guard, and a folder full of modules that would be imported instead of the real ones."""
    (tmp_path / "numpy.py").write_text("raise SystemExit('a worker imported from the current folder')")
    (tmp_path / "script.py").write_text(
        "import os, signal, sys\n"
        f"sys.path[:] = [{str(HERE)!r}, *{sys.path!r}]\n"
        "import worker_jobs\n"
        "from calmctl.video.pool import run_isolated\n"
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


def test_what_is_sent_to_a_whole_job_ends_no_worker(jobs: ModuleType) -> None:
    ((_, own_session),) = run_isolated(jobs.signals, [0], workers=1)
    assert own_session[0]


@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize(
    ("name", "reason", "limit_s"),
    [
        ("SIGKILL", "the decoder was killed twice (SIGKILL, often: out of memory)", 0.0),
        ("SIGXCPU", "the decoder was killed twice (SIGXCPU)", 0.0),
        ("SIGSEGV", "the decoder crashed (SIGSEGV)", None),
    ],
)
def test_one_death_is_tried_again_and_two_are_blamed_on_whom_they_tell_of(
    jobs: ModuleType, tmp_path: Path, name: str, reason: str, limit_s: float | None, times: int
) -> None:
    results = run_isolated(jobs.die, [(name, str(tmp_path / "tries"), times), ("SIGKILL", str(tmp_path / "b"), 0)])
    (_, first), (_, second) = results
    if times == 1:
        assert isinstance(first, np.ndarray) and first[0] == 2
    else:
        assert isinstance(first, VideoError) and (str(first), first.limit_s) == (reason, limit_s)
    assert isinstance(second, np.ndarray)


def test_a_stream_that_dies_goes_on_where_it_was(jobs: ModuleType, tmp_path: Path) -> None:
    """Its arrays come one by one, each once, a reason in its place; and a second item is not mixed up with it."""
    items = [(6, str(tmp_path / "died"), 4), (30, str(tmp_path / "died"), -1)]
    found: dict[int, list[str | int]] = {6: [], 30: []}
    for (count, _, _), result in run_isolated(jobs.stream, items, workers=2):
        found[count].append(str(result) if isinstance(result, VideoError) else int(result[0]))
    assert found[6] == [0, 1, 2, "three", 4, 5]
    assert found[30] == [0, 1, 2, "three", *range(4, 30)]
    assert (tmp_path / "died").exists()


def test_a_stream_waits_for_its_consumer_and_closing_ends_it(jobs: ModuleType, tmp_path: Path) -> None:
    results = run_isolated(jobs.stream, [(10**9, str(tmp_path / "never"), -1)] * 2, workers=2)
    assert [int(result[0]) for _, result in itertools.islice(results, 3)] == [0, 1, 2]
    results.close()


def test_a_time_limit_is_no_fault_of_the_file(jobs: ModuleType) -> None:
    ((_, result),) = run_isolated(jobs.misbehave, ["hang"], workers=1, timeout_s=0.3)
    assert isinstance(result, VideoError) and result.limit_s == 0.3


@pytest.mark.parametrize("timeout_s", [0.0, -1.0, float("inf"), float("nan"), 1e10, 1e300])
def test_a_time_limit_is_a_length_of_time(jobs: ModuleType, timeout_s: float) -> None:
    with pytest.raises(BadInput, match="time limit"):
        list(run_isolated(jobs.pid, [0], timeout_s=timeout_s))


def test_time_in_which_this_process_was_stopped_does_not_count(
    jobs: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A scheduler that suspends a job stops clocks of nothing but its processes: an hour passes between two ticks."""
    hours = itertools.count(0, 3600)
    monkeypatch.setattr(worker_process.time, "monotonic", lambda: next(hours))
    monkeypatch.setattr(worker_process, "_TICK_S", 0.01)
    ((_, result),) = run_isolated(jobs.pid, [0], workers=1, timeout_s=120.0)
    assert isinstance(result, np.ndarray)


def test_the_machine_is_safe_from_what_files_claim(jobs: ModuleType) -> None:
    ((_, limits),) = run_isolated(jobs.limits, [0], workers=1)
    assert limits.tolist() == [MEMORY_BYTES, 1000]


def test_no_array_is_made_that_a_worker_cannot_have(jobs: ModuleType) -> None:
    worker = worker_process.Worker(b"")
    try:
        for shape in ([10**13], [10**6, 10**6], [-1, -(10**12)], ["x"], [1 << 62, 1 << 62]):
            assert worker._array({"shape": shape, "dtype": "|u1"}) is None
    finally:
        worker.finish()


SCRIPT = """
import os, signal, sys
sys.path[:] = {path!r}
import worker_jobs
from calmctl.video.pool import run_isolated
signal.signal(signal.SIGTERM, lambda *_: None)  # as a run that ends its step first
print("begin", flush=True)
for item, result in run_isolated(worker_jobs.{job}, {items!r}, workers=2):
    print(item, result, flush=True)
os._exit(0)  # Python's own way out sets signals back
"""


def script(job: str, items: list[str], folder: Path) -> "subprocess.Popen[str]":
    text = SCRIPT.format(path=[str(HERE), *sys.path], job=job, items=items)
    return subprocess.Popen(
        [sys.executable, "-c", text],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def test_a_group_that_is_told_to_end_ends_no_clip(tmp_path: Path) -> None:
    """The signal comes again and again while workers start and while they work, as `timeout` and Slurm send it."""
    run = script("misbehave", ["one", "two", "three"], tmp_path)
    assert run.stdout is not None and run.stdout.readline() == "begin\n"
    while run.poll() is None:
        with suppress(ProcessLookupError):
            os.killpg(run.pid, signal.SIGTERM)
        time.sleep(0.002)
    told, errors = run.communicate()
    assert (run.returncode, errors) == (0, "")
    assert len(told.splitlines()) == 3 and "decoder" not in told and "Error" not in told


def test_a_hanging_decoder_ends_with_its_killed_parent(tmp_path: Path) -> None:
    run = script("slow_pid_to_file", ["pid"], tmp_path)
    while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
        time.sleep(0.01)
    os.kill(run.pid, signal.SIGKILL)
    run.communicate()
    assert gone(int((tmp_path / "pid").read_text()))
