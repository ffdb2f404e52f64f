"""Several processes at once: what begins when, what comes back, and that none is left."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest

from calmctl.errors import RunFailed
from calmctl.reproduce.at_once import at_once


def test_the_first_fault_ends_what_is_at_work() -> None:
    ended: list[object] = []

    def may_begin(item: object) -> bool:
        return item != "no number" or bool(ended)

    started = time.monotonic()
    with pytest.raises(TypeError, match="str"):
        for item, result in at_once(["no number", 0.0, 600.0], time.sleep, processes=2, may_begin=may_begin):  # type: ignore[list-item]
            ended.append(item)
            assert result is None
    assert ended == [0.0] and time.monotonic() - started < 60
    assert multiprocessing.active_children() == []


def test_what_may_never_begin_is_left_out() -> None:
    assert list(at_once([4, 5], abs, processes=1, may_begin=lambda item: item == 4)) == [(4, 4)]


def test_every_process_begins_with_the_arguments(tmp_path: Path) -> None:
    done = at_once(["a", "b"], os.path.abspath, processes=2, begin=os.chdir, arguments=(tmp_path,))
    assert dict(done) == {name: str(tmp_path / name) for name in "ab"}


def test_a_killed_process_is_a_sentence() -> None:
    with pytest.raises(RunFailed, match=r"was killed .* with fewer at once"):
        list(at_once([1], os._exit, processes=1))


def test_an_interrupt_that_comes_while_a_process_is_begun_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    submit = ProcessPoolExecutor.submit

    def interrupted(*arguments: object) -> None:
        submit(*arguments)  # type: ignore[arg-type]
        raise KeyboardInterrupt

    monkeypatch.setattr(ProcessPoolExecutor, "submit", interrupted)
    with pytest.raises(KeyboardInterrupt):
        list(at_once([600.0], time.sleep, processes=1))
    assert multiprocessing.active_children() == []


def test_an_interrupt_that_comes_again_while_a_process_saves_waits_for_it(tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text(
        "import pathlib, time\n"
        "from calmctl.runtime import interruptible\n"
        "def train(folder):\n"
        "    try:\n"
        "        with interruptible('resume it'):\n"
        "            pathlib.Path(folder, 'begun').touch()\n"
        "            time.sleep(600)\n"
        "    finally:\n"
        "        pathlib.Path(folder, 'ending').touch()\n"
        "        time.sleep(0.5)\n"
        "        pathlib.Path(folder, 'saved').touch()\n"
    )
    code = (
        "import sys, slow\n"
        "from calmctl.errors import RunFailed\n"
        "from calmctl.reproduce.at_once import at_once\n"
        "from calmctl.runtime import interruptible\n"
        "try:\n"
        "    with interruptible('go on'): list(at_once(['.'], slow.train, processes=1))\n"
        "except RunFailed as fault: sys.exit(str(fault))"
    )
    paths = os.pathsep.join([str(tmp_path), *sys.path])
    with subprocess.Popen(
        [sys.executable, "-c", code],
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": paths},
    ) as parent:
        try:
            for sign in ("begun", "ending"):
                while not (tmp_path / sign).exists():
                    assert parent.poll() is None
                    time.sleep(0.01)
                parent.terminate()
            _, said = parent.communicate(timeout=30)
        finally:
            parent.kill()
    assert said == "interrupted; go on\n" and (tmp_path / "saved").exists()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGHUP])
def test_no_process_outlives_the_one_that_began_it(number: signal.Signals) -> None:
    """Not even one that is still busy with its imports."""
    code = (
        "import multiprocessing, signal, sys, threading, time\n"
        "signal.signal(signal.SIGHUP, signal.SIG_DFL)\n"  # under nohup it is ignored, and stays so
        "from calmctl.errors import RunFailed\n"
        "from calmctl.reproduce.at_once import at_once\n"
        "from calmctl.runtime import interruptible\n"
        "class Import:\n"
        "    def __reduce__(self): return time.sleep, (600.0,)\n"
        "def tell():\n"
        "    while not multiprocessing.active_children(): time.sleep(0.01)\n"
        "    print(multiprocessing.active_children()[0].pid, flush=True)\n"
        "threading.Thread(target=tell, daemon=True).start()\n"
        "try:\n"
        "    with interruptible('go on'): list(at_once([600.0], time.sleep, processes=1, begin=Import()))\n"
        "except RunFailed as fault: sys.exit(str(fault))"
    )
    begun = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    with begun as parent:
        assert parent.stdout is not None and parent.stderr is not None
        child = int(parent.stdout.readline())
        # Ctrl-C and the end of a terminal reach all of its processes, and only the parent may hear of them.
        os.kill(parent.pid, number) if number == signal.SIGKILL else os.killpg(parent.pid, number)
        told = parent.stderr.read()
    deadline = time.monotonic() + 30
    while Path(f"/proc/{child}").exists():
        assert time.monotonic() < deadline, "the process is still there"
        time.sleep(0.02)
    assert "Traceback" not in told
    assert number == signal.SIGKILL or told == "interrupted; go on\n"
