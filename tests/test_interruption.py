import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress

import pytest
from typer.testing import CliRunner

from calmctl import runtime
from calmctl.anchors import label_lists
from calmctl.cli.main import app
from calmctl.errors import BadInput, RunFailed
from calmctl.runtime import interruptible


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_becomes_a_sentence_and_the_former_handler_comes_back(number):
    former = signal.getsignal(signal.SIGTERM)
    with pytest.raises(RunFailed, match=r"^interrupted; go on tomorrow$"), interruptible("go on tomorrow"):
        os.kill(os.getpid(), number)
        raise AssertionError("the signal did not come through")
    assert signal.getsignal(signal.SIGTERM) is former


def test_a_signal_that_a_library_makes_an_error_of_is_told_as_what_it_was():
    with pytest.raises(RunFailed, match=r"^interrupted; again$"), interruptible("again"):
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        except KeyboardInterrupt:
            raise ValueError("the file is damaged") from None


def test_a_signal_that_is_lost_comes_again_and_one_that_was_an_end_does_not(monkeypatch):
    monkeypatch.setattr(runtime, "_AGAIN_S", 0.05)

    def lose():
        with suppress(KeyboardInterrupt):  # as Python does, where it comes while an object is removed
            os.kill(os.getpid(), signal.SIGTERM)

    until = time.monotonic() + 10
    with pytest.raises(RunFailed, match="outer"), interruptible("outer"):
        with interruptible("inner"):
            lose()
        while time.monotonic() < until:
            time.sleep(0.01)
    with interruptible("a server was ended"):
        lose()
    time.sleep(0.1)


def test_other_errors_pass_and_other_threads_may_use_it():
    with pytest.raises(ZeroDivisionError), interruptible("x"):
        raise ZeroDivisionError
    done = []

    def work():
        with interruptible("x"):
            done.append(1)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert done == [1]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_any_command_in_a_sentence(number, monkeypatch, tmp_path):
    (tmp_path / "labels.txt").write_text("a circle\n")
    former = signal.getsignal(number)
    # Where the work would be: most commands have no words of their own for an interruption.
    monkeypatch.setattr(label_lists, "build_vocabulary", lambda *_, **__: os.kill(os.getpid(), number))
    ended = CliRunner().invoke(app, ["anchors", "build", str(tmp_path / "labels.txt")])
    assert ended.exit_code == 1 and isinstance(ended.exception, RunFailed)
    assert str(ended.exception).startswith("interrupted; what was finished is kept; the same command")
    assert signal.getsignal(number) is former


def test_without_a_current_folder_there_is_a_sentence(tmp_path, monkeypatch):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    for command in (["anchors", "list"], ["train", "recipes/demo.yaml"], ["search", "a"], ["demo"], ["runs", "ls"]):
        ended = CliRunner().invoke(app, command)
        assert isinstance(ended.exception, BadInput) and "the current folder was removed" in str(ended.exception)


LEAVING = """
import atexit, os, signal, sys, types
line = types.ModuleType("calmctl.cli.main")
def run():
    if sys.argv[1] == "before":
        os.kill(os.getpid(), int(sys.argv[2]))
    atexit.register(lambda: os.kill(os.getpid(), int(sys.argv[2])))
    sys.exit(3)
line.main = run
sys.modules["calmctl.cli.main"] = line
from calmctl.__main__ import main
main()
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_before_a_command_is_told_and_one_while_it_leaves_changes_nothing(number):
    for moment, code, said in (("before", 1, "error: interrupted; nothing was begun\n"), ("behind", 3, "")):
        words = [sys.executable, "-c", LEAVING, moment, str(int(number))]
        ended = subprocess.run(words, capture_output=True, text=True)
        assert (ended.returncode, ended.stderr) == (code, said)
