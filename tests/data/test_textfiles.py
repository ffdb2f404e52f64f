from pathlib import Path

import pytest

from calmctl.data.annotations import field, read_ids, read_json_file, read_lines, read_object, read_table, text_fields
from calmctl.errors import DatasetError


def written(path: Path, content: bytes | str) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_only_a_line_feed_ends_a_line(tmp_path: Path) -> None:
    path = written(tmp_path / "x", "\ufeffone\u2028still one\r\n\n  \ntwo\x0b\x85two")
    assert list(read_lines(path)) == [(1, "one\u2028still one"), (4, "two\x0b\x85two")]


def test_lists_without_a_final_newline(tmp_path: Path) -> None:
    assert read_ids(written(tmp_path / "x", " a\r\nb \n\nc")) == ["a", "b", "c"]


def test_a_table_with_newlines_in_quotes(tmp_path: Path) -> None:
    path = written(tmp_path / "x.csv", 'id, text\r\n1,"two\nlines, ""quoted"""\r\n\r\n2,\n')
    rows = [row for _, row in read_table(path, ["id", "text"])]
    assert rows == [{"id": "1", "text": 'two\nlines, "quoted"'}, {"id": "2", "text": ""}]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"x:1: no column 'id'"),
        (b"name\n1\n", r"x:1: no column 'id'; the header is 'name'"),
        (b"id,text\n1,a\n2\n", r"x:3: 1 fields, the header has 2"),
        (b"id,text\n1,a,b\n", r"x:2: 3 fields, the header has 2"),
        (b'id,text\n1,"open\n', r"x:\d: not CSV"),
        (b"id,text\n1,a\n2,caf\xe9\n", r"x:3: not UTF-8"),
    ],
)
def test_broken_tables(tmp_path: Path, content: bytes, message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        list(read_table(written(tmp_path / "x", content), ["id", "text"]))


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[1,]", b"\xff", b"[" * 100_000, b"1" * 5000, b'{"a": 1}', b"null", b'"text"']
)
def test_broken_json(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(DatasetError, match="x"):
        read_object(written(tmp_path / "x", content), list)


def test_unreadable_files(tmp_path: Path) -> None:
    for read in (read_ids, read_json_file):
        with pytest.raises(DatasetError):
            read(tmp_path / "gone")
        with pytest.raises(DatasetError):
            read(tmp_path)


def test_fields_name_their_place() -> None:
    with pytest.raises(DatasetError, match=r"f: \[1\]: no 'b'"):
        list(text_fields([{"a": "1", "b": "2"}, {"a": "1"}], ["a", "b"], "f: "))
    with pytest.raises(DatasetError, match=r"f: \[0\]\.a: expected text, found int"):
        list(text_fields([{"a": 1}], ["a"], "f: "))
    with pytest.raises(DatasetError, match=r"f: \[0\]: expected an object, found a list"):
        list(text_fields([[]], ["a"], "f: "))
    with pytest.raises(DatasetError, match=r"f\.a: expected a list, found text"):
        field({"a": "x"}, "a", "f", list)
