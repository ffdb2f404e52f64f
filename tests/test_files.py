import errno
import fcntl
import io
import os
import stat
import subprocess
import sys

import pytest

from calmctl import locks
from calmctl.anchors.label_lists import read_labels
from calmctl.data.annotations import read_captions, read_ids
from calmctl.errors import BadInput, RunFailed
from calmctl.files import (
    PAGE,
    SUBTITLES,
    TABLE,
    append_text,
    content_digest,
    new_folder,
    read_json,
    require_output,
    sha256_bytes,
    sha256_file,
    unused,
    write_json,
    write_output,
    write_text,
)
from calmctl.runs.run import Run
from calmctl.store.format import Header
from calmctl.store.store import FeatureStore
from calmctl.store.writer import StoreWriter
from calmctl.tensors import load_tensors, read_metadata
from calmctl.yaml_strict import load_yaml


def test_a_file_appears_whole_with_ordinary_rights(tmp_path):
    path = tmp_path / "new" / "a.json"
    write_json(path, {"é": [1, 2]})
    assert read_json(path, what="test") == {"é": [1, 2]}
    mask = os.umask(0)
    os.umask(mask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~mask
    assert sha256_file(path) == sha256_bytes(path.read_bytes())


@pytest.mark.parametrize("fault", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_a_full_disk_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, fault):
    path = tmp_path / "a.txt"
    write_text(path, "old")

    def full(descriptor):
        raise OSError(fault, os.strerror(fault))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RunFailed, match=r"cannot write .*a\.txt.*free space"):
        write_text(path, "new")
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    "content",
    [b"{", b"\xff\xfe", b"[" * 100_000, b"1" * 5000, b"", b"[1.5, 1e999]", b'{"a": -Infinity}', b"NaN"],
    ids=["cut", "binary", "deep", "long", "empty", "too large", "infinite", "no number"],
)
def test_bad_json_is_a_sentence(tmp_path, content):
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(BadInput, match=r"thing: .*a\.json is not JSON"):
        read_json(path, what="thing")


def test_a_missing_file_and_a_folder_are_sentences(tmp_path):
    with pytest.raises(BadInput, match="does not exist"):
        read_json(tmp_path / "none.json", what="thing")
    with pytest.raises(BadInput, match="cannot read"):
        read_json(tmp_path, what="thing")


def test_a_name_that_is_taken_gets_a_number(tmp_path):
    wanted = tmp_path / "demo-report.json"
    for name in ("demo-report.json", "demo-report-2.json", "demo-report-3.json"):
        assert unused(wanted) == tmp_path / name
        unused(wanted).touch()
    assert unused(wanted, lambda path: path.name == "demo-report.json") == tmp_path / "demo-report-2.json"


# --- what is no file -------------------------------------------------------------------------------------


def not_files(folder):
    """Links to a device that never ends and to a pipe that never answers, and a folder."""
    os.mkfifo(folder / "pipe")
    (folder / "endless").symlink_to("/dev/zero")
    (folder / "folder").mkdir()
    return {name: folder / name for name in ("pipe", "endless", "folder")}


READERS = {
    "json": lambda path: read_json(path, what="thing"),
    "yaml": lambda path: load_yaml(path, what="thing"),
    "annotations": read_ids,
    "labels": read_labels,
    "tensors": lambda path: load_tensors(path, what="thing"),
    "metadata": lambda path: read_metadata(path, what="thing"),
    "captions": read_captions,
    "log": lambda path: Run(path.parent / "run").read_log(1, 1),
    "store": FeatureStore.open,
}


@pytest.mark.parametrize("what", ["pipe", "endless", "folder"])
@pytest.mark.parametrize("reader", READERS)
def test_every_reader_opens_regular_files_alone(tmp_path, reader, what):
    path = not_files(tmp_path)[what]
    if reader == "log":
        (tmp_path / "run").mkdir()
        (tmp_path / "run" / "log.jsonl").symlink_to(path)
    if reader == "store":
        with StoreWriter.create(tmp_path / "store", Header(dataset="folder", backbone={"dim": 4}, n_frames=2)):
            pass
        (tmp_path / "store" / "catalogue.json").unlink()
        (tmp_path / "store" / "catalogue.json").symlink_to(path)
        path = tmp_path / "store"
    if reader == "captions":
        (tmp_path / "captions.csv").symlink_to(path)
        path = tmp_path / "captions.csv"
    with pytest.raises(BadInput, match=r"it is a (pipe|device), not a file|Is a directory|not a feature store"):
        READERS[reader](path)


def test_a_json_file_without_end_is_not_read(tmp_path):
    path = tmp_path / "a.json"
    path.touch()
    os.truncate(path, 2 << 30)  # a hole: no disk is used
    with pytest.raises(BadInput, match="it is larger than 1,024 MiB"):
        read_json(path, what="thing")


def test_a_content_digest_sees_a_change_anywhere_in_a_small_file_and_most_of_a_large_one(tmp_path):
    path = tmp_path / "clip.mp4"
    seen = set()
    for content in (b"a" * 10, b"a" * 9 + b"b", bytes(1 << 21), bytes((1 << 21) - 1) + b"b", bytes(1 << 22)):
        path.write_bytes(content)
        os.utime(path, ns=(1, 1))
        seen.add(content_digest(path))
    assert len(seen) == 5


# --- files that options name -----------------------------------------------------------------------------

OURS = "<!doctype html>\n<title>a sentence · calmctl search</title>\n"
CUES = "1\n00:00:00,000 --> 00:00:02,000\na dog\n\n2\n00:00:02,000 --> 00:00:04,500\na cat\n"
THEIRS = {
    "a page of theirs": (PAGE, "<!doctype html><title>calmctl search</title>"),
    "a video": (PAGE, "\x00\x00\x00 ftypisom"),
    "subtitles with a pause": (SUBTITLES, CUES.replace("00:00:02,000 -->", "00:00:03,000 -->")),
    "subtitles of two lines": (SUBTITLES, CUES.replace("a dog", "a dog\nbarks")),
    "notes": (TABLE, "# Notes\n"),
    "settings": (TABLE, '{\n  "key": 1\n}\n'),
}


@pytest.mark.parametrize("case", THEIRS)
def test_what_is_no_output_of_ours_is_not_replaced(tmp_path, case):
    kind, content = THEIRS[case]
    path = tmp_path / "out"
    path.write_text(content)
    for call in (lambda: require_output(path, kind), lambda: write_output(path, OURS, kind)):
        with pytest.raises(BadInput, match=r"out exists and is not .* that calmctl wrote"):
            call()
    assert path.read_text() == content


@pytest.mark.parametrize(
    ("kind", "content"),
    [(PAGE, OURS), (SUBTITLES, CUES), (TABLE, '{\n  "legend": []\n}\n'), (TABLE, "# Table 1\n\nMade on a day\n")],
)
def test_an_output_of_ours_is_replaced_and_keeps_its_mode(tmp_path, kind, content):
    path = tmp_path / "out"
    path.touch(mode=0o600)
    for text in (content, content + "\n"):
        write_output(path, text, kind)
        assert path.read_text() == text and stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_link_stays_and_its_target_is_replaced(tmp_path):
    (tmp_path / "target").write_text(OURS)
    (tmp_path / "link").symlink_to("target")
    (tmp_path / "new").symlink_to(tmp_path / "begun")
    for name, target in (("link", "target"), ("new", "begun")):
        write_output(tmp_path / name, OURS * 2, PAGE)
        assert (tmp_path / name).is_symlink() and (tmp_path / target).read_text() == OURS * 2
    (tmp_path / "round").symlink_to("round")
    with pytest.raises(BadInput, match="symbolic links"):
        write_output(tmp_path / "round", OURS, PAGE)
    with pytest.raises(BadInput, match="is a folder"):
        write_output(tmp_path, OURS, PAGE)


def test_devices_and_pipes_are_written_into(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = subprocess.Popen(["cat", str(pipe)], stdout=subprocess.PIPE)
    write_output(pipe, OURS, PAGE)
    assert reader.communicate()[0].decode() == OURS and stat.S_ISFIFO(pipe.stat().st_mode)
    (tmp_path / "nowhere").symlink_to("/dev/null")
    write_output(tmp_path / "nowhere", OURS, PAGE)
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode) and (tmp_path / "nowhere").is_symlink()
    (tmp_path / "full").symlink_to("/dev/full")
    with pytest.raises(RunFailed, match="No space left on device"):
        write_output(tmp_path / "full", OURS, PAGE)


def test_standard_output_gets_a_page_between_what_is_printed(tmp_path):
    script = (
        "from pathlib import Path; from calmctl.files import PAGE, write_output; print('before');"
        "write_output(Path('/dev/stdout'), 'page\\n', PAGE); print('after')"
    )
    with (tmp_path / "file").open("wb") as into_file:
        subprocess.run([sys.executable, "-c", script], stdout=into_file, check=True)
    assert (tmp_path / "file").read_text() == "before\npage\nafter\n"
    piped = subprocess.run([sys.executable, "-c", script], stdout=subprocess.PIPE, check=True)
    assert piped.stdout == b"before\npage\nafter\n"


def test_a_file_of_ours_never_takes_a_device_s_or_a_pipe_s_place(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(RunFailed, match="it is a pipe, not a file"):
        write_text(tmp_path / "pipe", "new")
    (tmp_path / "link").symlink_to(tmp_path / "private")
    (tmp_path / "private").write_text("mine")
    write_text(tmp_path / "link", "new")  # a store from elsewhere may hold such a link
    assert (tmp_path / "private").read_text() == "mine" and (tmp_path / "link").read_text() == "new"


def test_lines_are_added_behind_anything(tmp_path):
    path = tmp_path / "log"
    path.write_bytes(b"caf\xe9\ncut sho")
    append_text(path, "new\n")
    append_text(path, "newer\n")
    assert path.read_bytes() == b"caf\xe9\ncut sho\nnew\nnewer\n"
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(RunFailed, match="it is a pipe"):
        append_text(tmp_path / "pipe", "x\n")


def test_a_write_that_takes_a_part_is_gone_on_with(tmp_path, monkeypatch):
    class Half(io.FileIO):
        def write(self, content):
            return super().write(content[: (len(content) + 1) // 2])

    monkeypatch.setattr(os, "fdopen", lambda descriptor, mode, buffering: Half(descriptor, mode))
    append_text(tmp_path / "log", "a line of some length\n")
    append_text(tmp_path / "log", "and another\n")
    assert (tmp_path / "log").read_text() == "a line of some length\nand another\n"


def test_what_a_killed_process_was_writing_is_removed_and_what_another_writes_is_not(tmp_path):
    for name in (".calmctl-killed.tmp", ".calmctl-alive.tmp", ".of-others.tmp"):
        (tmp_path / name).write_text("half")
    (tmp_path / ".calmctl-folder.tmp").mkdir()
    (tmp_path / ".calmctl-folder.tmp" / "part").write_text("half")
    with open(tmp_path / ".calmctl-alive.tmp") as alive:
        fcntl.flock(alive, fcntl.LOCK_EX)
        write_text(tmp_path / "a", "whole")
    assert {path.name for path in tmp_path.iterdir()} == {".calmctl-alive.tmp", ".of-others.tmp", "a"}


def test_a_file_that_is_taken_for_an_abandoned_one_is_begun_again(tmp_path, monkeypatch):
    hold, taken = locks._hold, []

    def held(descriptor):
        if not taken:  # another process cleans up, right between the making of the file and its lock
            taken.extend(tmp_path.iterdir())
            taken[0].unlink()
        return hold(descriptor)

    monkeypatch.setattr(locks, "_hold", held)
    write_text(tmp_path / "a", "whole")
    assert len(taken) == 1 and [path.name for path in tmp_path.iterdir()] == ["a"]


def test_what_cannot_be_removed_either_does_not_hide_what_went_wrong(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fsync", full)
    monkeypatch.setattr(os, "unlink", full)
    with pytest.raises(RunFailed, match=r"cannot write .*a\.txt: Input/output error"):
        write_text(tmp_path / "a.txt", "new")
    monkeypatch.undo()
    locks._tidied.clear()  # as in the next process
    write_text(tmp_path / "a.txt", "new")
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


@pytest.mark.parametrize("there", [False, True])
def test_a_folder_appears_whole_or_not_at_all(tmp_path, there, monkeypatch):
    folder = tmp_path / "out"
    if there:
        folder.mkdir()
        (folder / ".calmctl-killed.tmp").mkdir()
    with pytest.raises(ZeroDivisionError), new_folder(folder) as begun:
        write_text(begun / "a", "1")
        raise ZeroDivisionError
    assert list(tmp_path.rglob("*")) == ([folder] if there else [])
    replace = os.replace

    def failing(source, target):
        if os.path.basename(target) in ("b", "out"):
            raise OSError(errno.ENOSPC, "No space left on device")
        replace(source, target)

    monkeypatch.setattr(os, "replace", failing)
    with pytest.raises(RunFailed, match=r"cannot create .*out: No space left"), new_folder(folder) as begun:
        (begun / "a").write_text("1")
        (begun / "b").write_text("2")
    assert list(tmp_path.rglob("*")) == ([folder] if there else [])
    message = "cannot write .*out/b: No space left"
    with pytest.raises(RunFailed, match=message), new_folder(folder) as begun:
        write_text(begun / "b", "2")
    monkeypatch.undo()
    with new_folder(folder) as begun:
        write_text(begun / "a", "1")
        write_text(begun / "b", "2")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a", "b", "out"]
    with pytest.raises(BadInput, match="not empty"), new_folder(folder):
        pass


# --- one process at a time -------------------------------------------------------------------------------
