"""Label lists as they are published (text, CSV, TSV, JSON), each entry with its place, and vocabularies made of them.

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
import unicodedata
from collections import defaultdict
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from calmctl.anchors.vocabulary import PROMPT, Vocabulary, load_vocabulary, make_vocabulary
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
        # Spreadsheets put a byte order mark in front, which would become part of the first label.
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
    # Strict, because a quote that never closes would swallow the rest of the file into one label.
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        rows = [(reader.line_num, row) for row in reader]
    except csv.Error as fault:
        raise VocabularyError(f"{where}, line {reader.line_num}: not a CSV table ({fault})") from None
    # Spreadsheets end in rows of empty cells. Between labels an empty row is a fault, and `_clean` names its line.
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
        # As classifiers save their class indices. Not isinstance: true and false are ints in Python.
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


# Label lists into vocabularies: ids, clean-up, and no repeat or empty label unnoticed.


_YAML = (".yaml", ".yml")
_NOT_STATED = "not stated"


@dataclass(frozen=True, slots=True)
class Built:
    """A vocabulary made from a list.

    Attributes:
        dropped: Repeated labels that were left out, with their places, for the report.
        hints: Facts worth saying about the labels; nothing was changed for them.
    """

    vocabulary: Vocabulary
    dropped: tuple[str, ...] = ()
    hints: tuple[str, ...] = ()


def build_vocabulary(
    path: Path,
    *,
    name: str | None = None,
    version: int | None = None,
    source: str | None = None,
    licence: str | None = None,
    note: str | None = None,
    prompt: str | None = None,
    column: str | None = None,
    keep_first: bool = False,
    spell_out: bool = False,
) -> Built:
    """Make a vocabulary from a label list, or renew one from a vocabulary file edited by hand.

    White space inside a label becomes single spaces and Unicode its composed form (NFC); nothing else
    changes unless asked for.

    Args:
        path: A label list (see `label_lists`) or a vocabulary's YAML, whose fields are then the defaults.
        name: Default: the file's name in lower case.
        version: Default 1.
        source: Where the labels are from. Default: the file's name.
        licence: Default "not stated".
        note: Default none.
        prompt: Template with one `{label}`. Default the paper's (Eq. 4).
        column: For CSV and TSV, the label column.
        keep_first: Keep the first of repeated labels, capitals not counted, instead of refusing the list.
        spell_out: Underscores, and capitals inside words, become spaces: `ApplyEyeMakeup`, `brush_hair`.

    Raises:
        VocabularyError: The list cannot be read; a label is empty, unclean or repeated (with its line); an
            id is repeated; the vocabulary would be invalid.
    """
    where = f"label list: {path}"
    if path.suffix.lower() in _YAML:
        # Here alone a digest that does not fit is right: the file was edited on purpose, and becomes another version.
        edited = load_vocabulary(path, check_digest=False)
        fields: dict[str, Any] = edited.model_dump(exclude={"labels"})
        entries = [Entry(label.id, label.text, f"label {label.id}") for label in edited.labels]
    else:
        fields = {
            "name": re.sub(r"[^a-z0-9._+-]+", "-", path.stem.lower()).strip("-._+") or "labels",
            "version": 1,
            "source": path.name,
            "licence": _NOT_STATED,
            "prompt": PROMPT,
        }
        entries = read_labels(path, column=column)
    given = {"name": name, "version": version, "source": source, "licence": licence, "note": note,
             "prompt": prompt}  # fmt: skip
    fields |= {key: value for key, value in given.items() if value is not None}
    # Cleaned before repeats are looked for: spelling out may make two labels one.
    entries = [_clean(entry, where, spell_out) for entry in entries]
    entries, dropped = _without_repeats(entries, where, keep_first)
    vocabulary = make_vocabulary(_with_ids(entries, where), where=where, **fields)
    return Built(vocabulary, dropped, _hints(vocabulary.texts))


def _clean(entry: Entry, where: str, spell_out: bool) -> Entry:
    # macOS writes letters decomposed: the same label would have two digests.
    text = unicodedata.normalize("NFC", entry.text)
    if spell_out:
        text = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", text.replace("_", " "))
    text = " ".join(text.split())
    if not text:
        raise VocabularyError(f"{where}, {entry.place}: the label is empty; remove the line or name the label")
    if not text.isprintable():
        raise VocabularyError(f"{where}, {entry.place}: {text!r:.60} holds characters that cannot be printed")
    return Entry(entry.id, text, entry.place)


def _without_repeats(entries: list[Entry], where: str, keep_first: bool) -> tuple[list[Entry], tuple[str, ...]]:
    """Refuse or drop labels that CLIP's tokenizer reads alike: equal ones, or but for capitals."""
    # Anchors with the same prompt share one probability between them, and K counts a label twice.
    alike: dict[str, list[Entry]] = defaultdict(list)
    for entry in entries:
        alike[entry.text.lower()].append(entry)
    kept = [same[0] for same in alike.values()]
    repeats = tuple(
        f"{', '.join(dict.fromkeys(repr(entry.text) for entry in same))} ({', '.join(entry.place for entry in same)})"
        for same in alike.values()
        if len(same) > 1
    )
    if repeats and not keep_first:
        shown = "; ".join(repeats[:3]) + (f"; and {len(repeats) - 3} more" if len(repeats) > 3 else "")
        labels = "label repeats" if len(repeats) == 1 else "labels repeat"
        labels += " (CLIP ignores capitals)" if case_twins(tuple(entry.text for entry in entries)) else ""
        raise VocabularyError(
            f"{where}: {len(repeats)} {labels}: {shown}; correct the list or keep the first of each with --keep-first"
        )
    return kept, repeats


def _with_ids(entries: list[Entry], where: str) -> list[tuple[str, str]]:
    """The list's ids where it has them, else a000, a001, ... by position (our choice)."""
    if all(entry.id is None for entry in entries):
        # Three digits at least, as in Charades' own c000 to c156.
        width = max(3, len(str(len(entries) - 1)))
        return [(f"a{position:0{width}d}", entry.text) for position, entry in enumerate(entries)]
    pairs = []
    place_of: dict[str, str] = {}
    for entry in entries:
        if not entry.id:
            raise VocabularyError(f"{where}, {entry.place}: {entry.text!r} has no id, as the others have")
        if entry.id in place_of:
            raise VocabularyError(
                f"{where}, {entry.place}: the id {entry.id!r} is also that of {place_of[entry.id]}; make the ids unique"
            )
        place_of[entry.id] = entry.place
        pairs.append((entry.id, entry.text))
    return pairs


def _hints(texts: tuple[str, ...]) -> tuple[str, ...]:
    hints = []
    joined = [text for text in texts if " " not in text and re.search(r"_|[a-z][A-Z]", text)]
    if joined:
        hints.append(f"{len(joined)} labels are joined words, such as {joined[0]!r}: --spell-out parts them")
    return tuple(hints)


def case_twins(texts: tuple[str, ...]) -> list[tuple[str, ...]]:
    """Groups of labels that differ in capitals only, which CLIP's tokenizer does not see."""
    groups: dict[str, list[str]] = defaultdict(list)
    for text in dict.fromkeys(texts):
        groups[text.lower()].append(text)
    return [tuple(group) for group in groups.values() if len(group) > 1]
