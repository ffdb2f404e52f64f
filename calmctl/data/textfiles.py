"""Annotation files as text: strict about what they hold, exact about where a fault is."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from calmctl.errors import DatasetError
from calmctl.files import MOST_JSON_BYTES as MOST_BYTES
from calmctl.files import NotJson, parse_json, read_regular

_AS_UTF8 = "save it as UTF-8 (a spreadsheet calls it 'CSV UTF-8'), or convert it with iconv -t UTF-8"
_KINDS: dict[type, str] = {list: "a list", dict: "an object", str: "text"}


def read_bytes(path: Path, most: int = MOST_BYTES) -> bytes:
    """A whole file of at most `most` bytes."""
    try:
        if path.stat().st_size > most:
            raise DatasetError(f"{path} is larger than {most // 1024**2:,} MiB, too large for an annotation file")
        return read_regular(path, most)
    except OSError as error:
        raise DatasetError(f"cannot read {path}: {error.strerror or error}") from None


def read_text(path: Path) -> str:
    """A whole UTF-8 file, without its byte order mark."""
    content = read_bytes(path)
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise DatasetError(f"{path}:{line}: not UTF-8 but {_encoding(content)}; {_AS_UTF8}") from None


def _encoding(content: bytes) -> str:
    """What text that is not UTF-8 seems to be; nothing is decoded by such a guess."""
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "UTF-16"
    if b"\0" in content[:4096]:
        return "no text"
    return "Windows-1252 or Latin-1, it seems"


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Line numbers and lines that are not blank.

    Only a line feed ends a line: sentences may hold characters that Unicode also counts as line ends.
    """
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        line = line.removesuffix("\r")
        if line.strip():
            yield number, line


def read_ids(path: Path) -> list[str]:
    """A list file: one name a line, blanks around it dropped."""
    return [line.strip() for _, line in read_lines(path)]


def read_table(path: Path, columns: Sequence[str], delimiter: str = ",") -> Iterator[tuple[str, dict[str, str]]]:
    """Rows of a CSV file with a header, each with its place ("file:line") for error messages.

    Raises:
        DatasetError: When one of `columns` is not in the header, a column is there twice, or a row has not as many
            fields as the header.
    """
    rows = csv.reader(io.StringIO(read_text(path), newline=""), delimiter=delimiter, strict=True)
    try:
        header = [name.strip() for name in next(rows, [])]
        check_header(header, path)
        absent = [column for column in columns if column not in header]
        if absent:
            raise DatasetError(f"{path}:1: no column {absent[0]!r}; the header is {shown(delimiter.join(header))}")
        for row in rows:
            place = f"{path}:{rows.line_num}"
            if not row:
                continue
            if len(row) != len(header):
                raise DatasetError(f"{place}: {len(row)} fields, the header has {len(header)}")
            yield place, dict(zip(header, row, strict=True))
    except csv.Error as error:
        raise DatasetError(f"{path}:{rows.line_num}: not CSV: {error}") from None


def check_header(header: Sequence[str], path: Path) -> None:
    """Refuse a header of which a row could not be told apart by name: a repeated column, or another separator."""
    for place, name in enumerate(header):
        if name and name in header[:place]:  # columns without a name are common, and nobody asks for them
            raise DatasetError(
                f"{path}:1: the column {shown(name)} stands twice; rename or remove one (several captions of a clip "
                "are several rows)"
            )
    if len(header) == 1:
        for mark, called, advice in (
            (";", "semicolons", "save it with commas (a spreadsheet calls it 'CSV UTF-8, comma delimited')"),
            ("\t", "tabs", "name it .tsv, or save it with commas"),
        ):
            if mark in header[0]:
                raise DatasetError(f"{path}:1: its columns are separated by {called}; {advice}")


def read_json_file(path: Path) -> Any:
    """JSON of any shape."""
    content = read_bytes(path)
    try:
        return parse_json(content)
    except NotJson as fault:
        raise DatasetError(f"annotations: {path} {fault}") from None


def read_object(path: Path, kind: type[list[Any]] | type[dict[str, Any]]) -> Any:
    """JSON whose outermost value is a `list` or a `dict`."""
    return expect(read_json_file(path), kind, str(path))


def expect(value: Any, kind: type, place: str) -> Any:
    """`value` if it is a list, an object or text as `kind` says; `place` is named otherwise."""
    if not isinstance(value, kind):
        raise DatasetError(f"{place}: expected {_KINDS[kind]}, found {_described(value)}")
    return value


def field(record: Any, key: str, place: str, kind: type = str) -> Any:
    """`record[key]`, checked: `record` must be an object and the value of `kind`."""
    if key not in expect(record, dict, place):
        raise DatasetError(f"{place}: no {key!r}")
    return expect(record[key], kind, f"{place}.{key}")


def text_fields(records: list[Any], keys: Sequence[str], place: str) -> Iterator[tuple[str, ...]]:
    """The text under `keys` of every object in a JSON list (hundreds of thousands: places are made on demand)."""
    for i, record in enumerate(records):
        values = [record.get(key) for key in keys] if isinstance(record, dict) else []
        texts = tuple(value for value in values if isinstance(value, str))
        if len(texts) < len(keys):
            texts = tuple(field(record, key, f"{place}[{i}]") for key in keys)
        yield texts


def shown(text: str) -> str:
    """What a file holds, quoted for a message and no longer than one can take in."""
    return repr(text) if len(text) <= 80 else f"{text[:80]!r}..."


def _described(value: Any) -> str:
    return next((name for kind, name in _KINDS.items() if isinstance(value, kind)), type(value).__name__)
