"""Processes side by side: who holds a folder, who is writing a file, and what those left that were killed."""

import errno
import os
import subprocess
import sys

import pytest

from calmctl.errors import RunFailed
from calmctl.files import write_atomic, write_text
from calmctl.locks import locked, remove_unfinished

HOLDING = """
import sys, time
from pathlib import Path
import fcntl
from calmctl.errors import RunFailed
from calmctl.locks import locked
if sys.argv[2] != "0":
    def flock(*_): raise OSError(int(sys.argv[2]), "no locks")
    fcntl.flock = flock
with locked(Path(sys.argv[1]), RunFailed("busy")):
    print("held", flush=True)
    time.sleep(60)
"""


def no_locks(monkeypatch, fault=errno.ENOLCK):
    import fcntl

    def flock(*_):
        raise OSError(fault, "no locks")

    monkeypatch.setattr(fcntl, "flock", flock)


def end(process):
    process.kill()
    process.wait()  # until then its number is in use


@pytest.mark.parametrize("fault", [0, errno.ENOLCK, errno.ENOSYS])
def test_a_folder_is_held_by_one_process_also_where_there_are_no_locks(tmp_path, monkeypatch, fault):
    if fault:
        no_locks(monkeypatch, fault)
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDING, str(tmp_path), str(fault)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout.readline() == "held\n"
        told = r"busy.*lock\.process names that process" if fault else r"busy\Z"
        with pytest.raises(RunFailed, match=told), locked(tmp_path, RunFailed("busy")):
            pass
        waited = []
        with locked(tmp_path, RunFailed("busy"), on_wait=lambda: waited.append(end(holder))):
            assert len(waited) == 1, "who may wait is told, and goes on when the other process has ended"
    finally:
        holder.kill()
        holder.communicate()


def test_what_old_versions_left_goes_from_folders_of_ours(tmp_path):
    left = tmp_path / ".a.txt.x1y2.tmp"
    left.write_bytes(b"half")
    write_text(tmp_path / "a.txt", "new")
    assert left.exists(), "it may be another program's, in a folder of a person's"
    remove_unfinished(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_a_file_that_is_being_written_is_nobody_else_s_to_remove(tmp_path):
    seen = []

    def write(handle):
        handle.write(b"first")
        write_text(tmp_path / "a.txt", "second")  # of the same file, at the same time
        remove_unfinished(tmp_path)
        seen.extend(path.name for path in tmp_path.glob(".*.tmp"))

    write_atomic(tmp_path / "a.txt", write)
    assert len(seen) == 1 and (tmp_path / "a.txt").read_text() == "first"


def test_where_there_are_no_locks_age_tells(tmp_path, monkeypatch):
    no_locks(monkeypatch)
    left = tmp_path / ".calmctl-x1y2.tmp"
    left.write_bytes(b"half")
    write_text(tmp_path / "a.txt", "new")
    assert left.exists(), "somebody may be writing it"
    os.utime(left, (1, 1))
    remove_unfinished(tmp_path)
    assert not left.exists() and (tmp_path / "a.txt").read_text() == "new"
