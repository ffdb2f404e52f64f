import errno
import os
import stat

import pytest

from calmctl.errors import BadInput, RunFailed
from calmctl.files import read_json, sha256_bytes, sha256_file, unused, write_json, write_text


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
    "content", [b"{", b"\xff\xfe", b"[" * 100_000, b"1" * 5000, b""], ids=["cut", "binary", "deep", "long", "empty"]
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
