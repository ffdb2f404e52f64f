"""Reads label lists as they are published: text, CSV, TSV and JSON, each entry with its place in the file.

Understood without being told, when every line fits:

    c000 Holding some clothes          Charades, ImageNet (n01440764 tench)
    1<TAB>person<TAB>yes               COCO, LVIS: id, label, anything more
    79: talk to (e.g., self)           AVA, MultiSports
    1 ApplyEyeMakeup                   UCF101; only when the numbers count up, else they belong to the label
    abseiling                          one label a line: Kinetics, ImageNet, Places ...
    index,mid,display_name             CSV with a header; without one, the first column (or `id,label`)
    ["person", ...]  {"0": "person"}  {"person": 0}  [{"id": 1, "name": "person"}]      JSON
"""

from __future__ import annotations

import csv
import io
import re
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from calmctl.errors import VocabularyError
from calmctl.files import NotJson, parse_json, read_regular

_WHAT = "label list"
_MAX_BYTES = 16 * 1024 * 1024  # a list for people; a larger file was named by mistake
_LABEL_KEYS = ("label", "name", "display_name", "text", "class", "class_name", "category", "action", "noun")
_ID_KEYS = ("id", "label_id", "class_id", "category_id", "mid", "index")
_LIST_KEYS = ("categories", "labels", "classes")
_PREFIXES = {  # how a line may carry its id; the first that most lines fit is taken
    "cNNN Label": re.compile(r"(?P<id>[cn][0-9]{3,}) +(?P<text>\S.*)\Z"),
    "id<TAB>label": re.compile(r"(?P<id>[A-Za-z]*[0-9]+)\t(?P<text>[^\t]*)(\t.*)?\Z"),
    "id: label": re.compile(r"(?P<id>[0-9]+) *: +(?P<text>\S.*)\Z"),
    "N label": re.compile(r"(?P<id>[0-9]+) +(?P<text>\S.*)\Z"),
}


@dataclass(frozen=True, slots=True)
class Entry:
    """One label of a list.

    Attributes:
        id: The list's own id, or None where it has none.
        text: The label as written.
        place: Where it stands, for messages: "line 12" or "entry 12".
    """

    id: str | None
    text: str
    place: str


def read_labels(path: Path, *, column: str | None = None) -> list[Entry]:
    """Read a label list; the form is told from the suffix and the contents.

    Args:
        path: A `.txt`, `.csv`, `.tsv` or `.json` file in UTF-8.
        column: For a CSV or TSV, the label column: its header, or its number from 1.

    Raises:
        VocabularyError: The file cannot be read, or a line does not fit the others; says which.
    """
    where = f"{_WHAT}: {path}"
    text = _read(path, where)
    if column is not None and path.suffix.lower() not in (".csv", ".tsv"):
        raise VocabularyError(f"{where}: a column can be chosen in a .csv or .tsv file only")
    match path.suffix.lower():
        case ".json":
            entries = _from_json(text, where)
        case ".csv":
            entries = _from_table(text, where, ",", column)
        case ".tsv" if column is not None:
            entries = _from_table(text, where, "\t", column)
        case _:
            entries = _from_lines(text, where)
    if not entries:
        raise VocabularyError(f"{where} holds no labels")
    return entries


def _read(path: Path, where: str) -> str:
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise VocabularyError(f"{where} is larger than {_MAX_BYTES // 1024**2} MiB: no list of labels")
        return read_regular(path, _MAX_BYTES).decode("utf-8-sig")
    except FileNotFoundError:
        raise VocabularyError(f"{where} does not exist") from None
    except UnicodeDecodeError as fault:
        line = fault.object.count(b"\n", 0, fault.start) + 1
        raise VocabularyError(f"{where}, line {line}: not UTF-8 text; save the list as UTF-8") from None
    except OSError as fault:
        raise VocabularyError(f"{_WHAT}: cannot read {path}: {fault.strerror or fault}") from fault


def _from_lines(text: str, where: str) -> list[Entry]:
    lines = text.replace("\r\n", "\n").rstrip("\n").split("\n")
    if lines == [""]:
        return []
    for form, pattern in _PREFIXES.items():
        matches = [pattern.match(line) for line in lines]
        ids = [match["id"] for match in matches if match is not None]
        if 2 * len(ids) <= len(lines) or (form == "N label" and not _counts_up(ids)):
            continue
        # Most lines carry an id this way, so one that does not is a mistake, not a label of another kind.
        entries = []
        for number, (line, match) in enumerate(zip(lines, matches, strict=True), start=1):
            if match is None and line.strip():
                raise VocabularyError(f"{where}, line {number}: {line[:60]!r} is not '{form}' as the others are")
            id_, label = (match["id"], match["text"]) if match else (None, "")
            entries.append(Entry(id_, label, f"line {number}"))
        return entries
    for number, line in enumerate(lines, start=1):
        if "\t" in line.strip():
            raise VocabularyError(
                f"{where}, line {number}: a tab, but no plain id before it; name the file .tsv and "
                "choose the label column with --column"
            )
    return [Entry(None, line, f"line {number}") for number, line in enumerate(lines, start=1)]


def _counts_up(ids: list[str]) -> bool:
    return all(int(after) == int(before) + 1 for before, after in pairwise(ids))


def _from_table(text: str, where: str, delimiter: str, column: str | None) -> list[Entry]:
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        rows = [(reader.line_num, row) for row in reader]
    except csv.Error as fault:
        raise VocabularyError(f"{where}, line {reader.line_num}: not a CSV table ({fault})") from None
    while rows and not any(cell.strip() for cell in rows[-1][1]):
        rows.pop()
    if not rows:
        return []
    header = [cell.strip().lower() for cell in rows[0][1]]
    for key in (*_LABEL_KEYS, *_ID_KEYS):
        if header.count(key) > 1 and not (column or "").isdecimal():
            raise VocabularyError(f"{where}: the column {key!r} stands twice; name one by its number with --column")
    label_at, id_at, has_header = _columns(header, [row for _, row in rows], column, where)
    entries = []
    for line, row in rows[has_header:]:
        if row and len(row) <= label_at:
            raise VocabularyError(f"{where}, line {line}: {len(row)} columns, so none is column {label_at + 1}")
        id_ = row[id_at].strip() if row and id_at is not None else None
        entries.append(Entry(id_, row[label_at] if row else "", f"line {line}"))
    return entries


def _columns(header: list[str], rows: list[list[str]], column: str | None, where: str) -> tuple[int, int | None, bool]:
    """Index of the label column, index of the id column if any, and whether the first row is a header."""
    named = [key for key in _LABEL_KEYS if key in header]
    ids = [key for key in _ID_KEYS if key in header]
    if column is not None:
        if column.isdecimal() and 1 <= int(column) <= len(header):
            return int(column) - 1, None, bool(named)
        if column.strip().lower() not in header:
            raise VocabularyError(f"{where} has no column {column!r}; it has {', '.join(header)}")
        label_at = header.index(column.strip().lower())
        return label_at, header.index(ids[0]) if ids else None, True
    if named:
        return header.index(named[0]), header.index(ids[0]) if ids else None, True
    if len(header) > 1 and all(row and row[0].strip().isdecimal() for row in rows):
        return 1, 0, False
    return 0, None, False


def _from_json(text: str, where: str) -> list[Entry]:
    try:
        value = parse_json(text)
    except NotJson as fault:
        raise VocabularyError(f"{where} {fault}") from None
    if isinstance(value, dict):
        for key in _LIST_KEYS:
            if isinstance(value.get(key), list):
                value = value[key]
                break
    if isinstance(value, dict):
        pairs: list[tuple[Any, Any]] = list(value.items())
        if pairs and all(type(index) is int for _, index in pairs):  # {"person": 0}, ordered by index
            pairs = [(str(index), label) for label, index in sorted(pairs, key=lambda pair: int(pair[1]))]
    elif isinstance(value, list):
        pairs = [_json_item(item, position, where) for position, item in enumerate(value, start=1)]
    else:
        raise VocabularyError(f"{where} is neither a list nor an object of labels")
    for position, (_, label) in enumerate(pairs, start=1):
        if not isinstance(label, str):
            raise VocabularyError(f"{where}, entry {position}: {label!r:.60} is not a label")
    return [Entry(id_, label, f"entry {position}") for position, (id_, label) in enumerate(pairs, start=1)]


def _json_item(item: Any, position: int, where: str) -> tuple[str | None, Any]:
    if not isinstance(item, dict):
        return None, item
    label = next((item[key] for key in _LABEL_KEYS if key in item), None)
    if label is None:
        raise VocabularyError(
            f"{where}, entry {position} has no label; it needs one of the keys {', '.join(_LABEL_KEYS)}"
        )
    id_ = next((item[key] for key in _ID_KEYS if key in item), None)
    return None if id_ is None else str(id_), label
