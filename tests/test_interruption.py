import os
import signal
import threading

import pytest
from typer.testing import CliRunner

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
