"""Standard streams that are closed, full, or left by their reader: a sentence or nothing, never a traceback."""

import errno
import os
import subprocess
import sys

import pytest

from calmctl.cli import main
from calmctl.cli.console import Stream

COMMAND = f"{sys.executable} -m calmctl"
LISTED = b"shapes@1"


def shell(command: str, **environment: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(["bash", "-c", command], capture_output=True, env={**os.environ, **environment})


@pytest.mark.parametrize("arguments", ["--help", "--version", "anchors list", "anchors show shapes --json"])
def test_results_that_nobody_can_read_are_a_sentence(arguments):
    for redirection, reason in ((">&-", b"it is closed"), ("> /dev/full", b"No space left on device")):
        ended = shell(f"{COMMAND} {arguments} {redirection}")
        assert ended.returncode == 1 and ended.stderr.startswith(b"error: standard output: " + reason), ended.stderr
        assert ended.stderr.count(b"\n") == 1


@pytest.mark.parametrize("redirection", ["2>&-", "2> /dev/full", "<&-", "2>&- <&-"])
def test_the_work_goes_on_without_standard_error_and_input(redirection):
    ended = shell(f"{COMMAND} anchors list {redirection}")
    assert ended.returncode == 0 and LISTED in ended.stdout and not ended.stderr
    assert shell(f"{COMMAND} anchors show nope {redirection}").returncode == 2


def test_no_file_takes_the_place_of_a_closed_stream(tmp_path):
    ended = shell(f"{COMMAND} anchors merge shapes coco --out {tmp_path}/m.yaml >&- 2>&-")
    assert ended.returncode == 1, "the file is written, and its report could not be"
    assert (tmp_path / "m.yaml").read_text().startswith("schema_version: 1\nname: shapes+coco\n")


@pytest.mark.parametrize("arguments", ["--help", "anchors list", "anchors show charades --json", "recipes show demo"])
def test_a_reader_that_has_read_enough_is_no_error(arguments):
    ended = shell(f"{COMMAND} {arguments} | head -n 1 > /dev/null; exit ${{PIPESTATUS[0]}}")
    assert ended.returncode == 0 and not ended.stderr


def test_a_locale_without_letters_shows_what_it_can():
    ended = shell(f"{COMMAND} anchors show coco", LC_ALL="C", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0")
    assert ended.returncode == 0 and b"person" in ended.stdout


def test_the_text_of_a_file_cannot_act_on_the_terminal(tmp_path):
    recipe = tmp_path / "evil.yaml"
    recipe.write_bytes(b"# \x1b]0;owned\x07\xff\tcaf\xc3\xa9\nname: x\n")
    ended = shell(f"{COMMAND} recipes show {recipe}")
    assert ended.stdout.decode() == "# \\x1b]0;owned\\x07\\xff\tcafé\nname: x\n"


@pytest.mark.parametrize("fault", [errno.ENOSPC, errno.EMFILE])
def test_what_the_machine_refuses_is_no_fault_to_report(fault, monkeypatch, capsys):
    for name, place, told in (("numbers", None, ""), ("file", "/somewhere/file", "/somewhere/file: ")):

        def refused(place=place):
            raise OSError(fault, os.strerror(fault), *([place] if place else []))

        monkeypatch.setattr(sys, "argv", ["calmctl", name])
        monkeypatch.setattr(main, "app", refused)
        monkeypatch.setattr(main, "secure_streams", lambda: Stream(sys.stdout, for_results=True))
        with pytest.raises(SystemExit, match="1"):
            main.main()
        said = capsys.readouterr().err
        assert said.startswith(f"error: {told}{os.strerror(fault)} (a full disk, ") and "unexpected" not in said
