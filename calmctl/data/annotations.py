"""Annotation files as text: strict about what they hold, exact about where a fault is."""

from __future__ import annotations

import csv
import io
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from calmctl.data.locate import VIDEO_SUFFIXES, listing
from calmctl.errors import DatasetError
from calmctl.files import MOST_JSON_BYTES as MOST_BYTES
from calmctl.files import NotJson, npy_header, npy_texts, open_regular, parse_json, read_regular, write_text
from calmctl.samples import Span
from calmctl.words import is_formula

_AS_UTF8 = "save it as UTF-8 (a spreadsheet calls it 'CSV UTF-8'), or convert it with iconv -t UTF-8"
_KINDS: dict[type, str] = {list: "a list", dict: "an object", str: "text"}


def read_bytes(path: Path, most: int = MOST_BYTES) -> bytes:
    """A whole file of at most `most` bytes."""
    try:
        # Asked first, for a sentence with the limit in it; `read_regular` holds the limit where a file grows or lies.
        if path.stat().st_size > most:
            raise DatasetError(f"{path} is larger than {most // 1024**2:,} MiB, too large for an annotation file")
        return read_regular(path, most)
    except OSError as error:
        raise DatasetError(f"cannot read {path}: {error.strerror or error}") from None


def read_text(path: Path) -> str:
    """A whole UTF-8 file, without its byte order mark."""
    content = read_bytes(path)
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise DatasetError(f"{path}:{line}: not UTF-8 but {_encoding(content)}; {_AS_UTF8}") from None
    if "\0" in text:  # English in UTF-16 without its mark is valid UTF-8, with a zero beside each letter
        line = text[: text.index("\0")].count("\n") + 1
        raise DatasetError(f"{path}:{line}: a zero byte, as in UTF-16 or in what is no text; {_AS_UTF8}")
    return text


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
    """A list file: one name per line, blanks around it dropped."""
    return [line.strip() for _, line in read_lines(path)]


def read_names(path: Path) -> list[str]:
    """A list of names: text, one a line, or a .npy of text.

    Raises:
        DatasetError: It is malformed, or an array of anything else.
    """
    if path.suffix.lower() != ".npy":
        return read_ids(path)
    import numpy as np

    content = read_bytes(path)
    handle = io.BytesIO(content)
    shape, _, dtype = npy_header(handle, str(path), len(content), DatasetError)
    if dtype.kind not in "US" or len(shape) != 1:
        raise DatasetError(f"{path}: expected a list of names, found {list(shape)} of {dtype}")
    names = np.frombuffer(content, dtype, offset=handle.tell()) if shape[0] * dtype.itemsize else np.empty(0, "U1")
    return npy_texts(names, str(path), DatasetError)


def read_table(path: Path, columns: Sequence[str], delimiter: str = ",") -> Iterator[tuple[str, dict[str, str]]]:
    """Rows of a CSV file with a header, each with its place ("file:line") for error messages.

    Raises:
        DatasetError: When one of `columns` is not in the header, a column is there twice, or a row has not as many
            fields as the header.
    """
    rows = csv_rows(path, delimiter)
    header = [name.strip() for name in next(rows, ("", []))[1]]
    check_header(header, path)
    absent = [column for column in columns if column not in header]
    if absent:
        raise DatasetError(f"{path}:1: no column {absent[0]!r}; the header is {shown(delimiter.join(header))}")
    for place, row in rows:
        # A comma in a caption without quotes makes one field more. Whatever pairs names and cells without counting
        # cuts the sentence there.
        if row and len(row) != len(header):
            raise DatasetError(f"{place}: {len(row)} fields, the header has {len(header)}")
        if row:
            yield place, dict(zip(header, row, strict=True))


def csv_rows(path: Path, delimiter: str) -> Iterator[tuple[str, list[str]]]:
    """The rows of a CSV file, empty ones too, each with its place.

    Raises:
        DatasetError: It is not CSV.
    """
    # Strict, or csv reads on behind a quotation mark that nobody closes and makes one caption of all rows below.
    # newline: a line end inside quotes is part of its cell.
    rows = csv.reader(io.StringIO(read_text(path), newline=""), delimiter=delimiter, strict=True)
    try:
        for row in rows:
            yield f"{path}:{rows.line_num}", row
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


def span_of(value: Any, place: str) -> Span | None:
    """A start and an end in seconds; None where the end is not behind the start, as a few published ones are."""
    numbers = [each for each in expect(value, list, place) if type(each) in (int, float) and 0 <= each < 1e9]
    if len(numbers) != 2 or len(value) != 2:
        raise DatasetError(f"{place}: expected a start and an end in seconds, found {shown(json.dumps(value))}")
    return (float(numbers[0]), float(numbers[1])) if numbers[0] < numbers[1] else None


def shown(text: str) -> str:
    """What a file holds, quoted for a message and no longer than one can take in."""
    return repr(text) if len(text) <= 80 else f"{text[:80]!r}..."


def _described(value: Any) -> str:
    return next((name for kind, name in _KINDS.items() if isinstance(value, kind)), type(value).__name__)


# Rows as copies of data sets have them, on the Hub and beside code: a JSON list, JSONL or parquet, an object a video.


_SHARD = re.compile(r"-00000-of-(\d{5})\.parquet\Z")
_ROWS_AT_ONCE = 64  # of parquet: however far a page unfolds, only so many rows are in memory before they are counted


def read_rows(path: Path, keys: Sequence[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The rows of a file, each with its place for messages.

    Args:
        path: .json with a list of objects, .jsonl, or .parquet; of shards, NAME-00000-of-N.parquet, the first.
        keys: What is wanted of a row; of parquet nothing else is read, however many videos lie in it.

    Raises:
        DatasetError: It is malformed or too large, or a shard is missing.
    """
    match path.suffix.lower():
        case ".parquet":
            yield from _parquet_rows(path, keys)
        case ".jsonl":
            yield from _jsonl(path)
        case _:
            for i, record in enumerate(read_object(path, list)):
                yield f"{path}: [{i}]", expect(record, dict, f"{path}: [{i}]")


def _parquet_rows(path: Path, keys: Sequence[str] | None = None) -> Iterator[tuple[str, dict[str, Any]]]:
    """As `read_rows`; without `keys` all columns of text, lists of text and whole numbers, and no videos."""
    count = int(shard[1]) if (shard := _SHARD.search(path.name)) else 1
    number = 0
    for place in range(count):
        part = path.with_name(path.name.replace("-00000-of-", f"-{place:05d}-of-")) if shard else path
        with open_parquet(part) as table:
            meta, columns = table.metadata, table.schema_arrow
            wanted = [each.name for each in columns if (_is_text(each.type) if keys is None else each.name in keys)]
            groups = [meta.row_group(each) for each in range(meta.num_row_groups)]
            chunks = [group.column(each) for group in groups for each in range(group.num_columns)]
            read = [each for each in chunks if each.path_in_schema.split(".")[0] in wanted]
            too_large = DatasetError(f"{part} is larger than {MOST_BYTES // 1024**2:,} MiB without its videos")
            if sum(each.total_uncompressed_size for each in read) > MOST_BYTES:
                raise too_large
            unfolded = 0
            for batch in table.iter_batches(_ROWS_AT_ONCE, columns=wanted):
                unfolded += batch.nbytes
                if unfolded > MOST_BYTES:  # a word in a page's dictionary may stand in a million rows
                    raise too_large
                for row in batch.to_pylist():
                    yield f"{part}: row {number}", row
                    number += 1


@contextmanager
def open_parquet(path: Path, otherwise: str = "") -> Iterator[Any]:
    """A `pyarrow.parquet.ParquetFile`; what goes wrong while it is read is a sentence.

    Raises:
        DatasetError: It cannot be read, or pyarrow is not installed, where `otherwise` says what else can be done.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        way = f"pip install 'calmctl[parquet]'{otherwise}"
        raise DatasetError(f"{path}: reading .parquet needs pyarrow: {way}") from None
    try:
        with open_regular(path) as handle:
            yield pyarrow.parquet.ParquetFile(handle)
    except OSError as error:
        raise DatasetError(f"cannot read {path}: {error.strerror or error}") from None
    except (pyarrow.ArrowException, ValueError) as fault:
        raise DatasetError(f"{path} is not a .parquet file that can be read ({shown(str(fault))})") from None


def _is_text(kind: Any) -> bool:
    from pyarrow import types

    if types.is_list(kind) or types.is_large_list(kind) or types.is_dictionary(kind):
        kind = kind.value_type
    return bool(types.is_string(kind) or types.is_large_string(kind) or types.is_integer(kind))


def clip_name(name: str) -> str:
    """What a row calls a clip, without folders and without a video's suffix."""
    name = re.split(r"[/\\]", name)[-1]
    stem, dot, suffix = name.rpartition(".")
    return stem if dot and f".{suffix.lower()}" in VIDEO_SUFFIXES else name


def row_captions(
    path: Path, videos: Sequence[str] = ("video_id", "video"), captions: Sequence[str] = ("caption",)
) -> Iterator[tuple[str, list[str]]]:
    """The clip of every row, and its captions: text, or a list of it, under the first of the keys that is there.

    Raises:
        DatasetError: As `read_rows`; or a row lacks a key.
    """
    for place, row in read_rows(path, (*videos, *captions)):
        video, sentences = (_first_of(row, keys, place) for keys in (videos, captions))
        sentences = sentences if isinstance(sentences, list) else [sentences]
        yield (
            clip_name(expect(video, str, f"{place}: the video")),
            [expect(each, str, f"{place}: the caption") for each in sentences],
        )


def _first_of(row: dict[str, Any], keys: Sequence[str], place: str) -> Any:
    for key in keys:
        if row.get(key) is not None:
            return row[key]
    raise DatasetError(f"{place}: no {keys[0]!r}; it has {shown(', '.join(sorted(row)))}")


# Captions of somebody's own videos: CSV, TSV, JSON, JSONL or parquet, and written as the first four.


CAPTIONS_SUFFIXES = (".csv", ".tsv", ".json", ".jsonl", ".parquet")
# The first to be taken first, where no column names more clips than another.
_VIDEO_KEYS = ("video", "file_name", "filename", "file", "path", "video_id", "id")
_CAPTION_KEYS = ("caption", "captions", "sentence", "text", "description")
SPLIT_NAMES = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validate", "validation", "dev"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
_MOST_NAMED = 5
"""Columns that a note names."""
# A list that some program wrote into one cell: ['a man', "a guy"]. Quotes and brackets are no part of a caption.
_LIST = re.compile(r"\s*\[\s*(['\"]).*['\"]\s*,?\s*\]\s*\Z", re.DOTALL)


@dataclass(frozen=True, slots=True)
class CaptionRow:
    """What one row or object tells.

    Attributes:
        place: Where it stands, for messages.
        video: The name it gives the video, as it is written.
        captions: One or more sentences.
        split: "train", "val" or "test", or None where it tells none.
    """

    place: str
    video: str
    captions: tuple[str, ...]
    split: str | None


@dataclass(frozen=True, slots=True)
class Captions:
    """A captions file.

    Attributes:
        rows: All of it.
        notes: Which of several columns were taken, where there was a choice.
    """

    rows: tuple[CaptionRow, ...]
    notes: tuple[str, ...]


def read_captions(path: Path, is_clip: Callable[[str], bool] = lambda name: False) -> Captions:
    """Read a captions file, whose kind its suffix tells; a .txt is a table with a header, in tabs or commas.

    Args:
        path: The file.
        is_clip: Whether a name means a clip; of several columns that could name the video, the one that names
            most clips is taken.

    Raises:
        DatasetError: When the file is malformed, empty, or of another kind.
    """
    readers = {".csv": _table, ".tsv": _table, ".txt": _table, ".json": _json, ".jsonl": _jsonl, ".parquet": _parquet}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise DatasetError(f"{path}: captions can be read from {listing(CAPTIONS_SUFFIXES)} files only")
    records = [(place, lower_keys(record, place)) for place, record in reader(path)]
    if not records:
        raise DatasetError(f"{path}: there are no captions in it")
    keys, notes = _choice(records, is_clip)
    return Captions(tuple(_row(record, keys, place) for place, record in records), notes)


def _table(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    tabs = path.suffix.lower() == ".tsv"
    if path.suffix.lower() == ".txt":
        # The header tells which it is: sentences hold commas in both.
        tabs = "\t" in next(read_lines(path), (1, ""))[1]
    for place, record in read_table(path, [], "\t" if tabs else ","):
        for key, cell in record.items():
            if key.lower() in _CAPTION_KEYS and _LIST.match(cell):
                raise DatasetError(
                    f"{place}: a list stands in one cell, {shown(cell)}; give each caption a row of its own, or write "
                    "the file as JSON, where lists are read"
                )
        # An empty cell is left out like a key that is not there; an empty caption stays, to be counted as left out.
        yield place, {key: value for key, value in record.items() if value or key.lower() in _CAPTION_KEYS}


def _json(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    content = read_json_file(path)
    if isinstance(content, dict):
        for video, captions in _generated(content).items():
            yield f"{path}: {shown(video)}", {"video": video, "caption": captions}
    else:
        for i, record in enumerate(expect(content, list, str(path))):
            yield f"{path}: [{i}]", expect(record, dict, f"{path}: [{i}]")


def _generated(content: dict[str, Any]) -> dict[str, Any]:
    """{video: captions} of what `calmctl caption --json` prints, which holds more, and as it is of anything else."""
    captions = content.get("captions")
    if "search" not in content or not isinstance(captions, dict):
        return content
    return {
        video: entry.get("caption", entry) if isinstance(entry, dict) else entry for video, entry in captions.items()
    }


def _jsonl(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    for number, line in read_lines(path):
        place = f"{path}:{number}"
        try:
            record = parse_json(line)
        except NotJson as fault:
            raise DatasetError(f"{place} {fault}") from None
        yield place, expect(record, dict, place)


def _parquet(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    for place, row in _parquet_rows(path):  # an empty cell is a key that is not there
        yield place, {key: value for key, value in row.items() if value is not None}


def lower_keys(record: dict[str, Any], place: str) -> dict[str, Any]:
    """A row or an object by its keys in lower case; two that differ in capitals only are refused."""
    lowered = {key.strip().lower(): value for key, value in record.items()}
    # The later of two would win without a word.
    if len(lowered) < len(record):
        raise DatasetError(f"{place}: {shown(', '.join(record))}: two of these differ in capitals only; rename one")
    return lowered


def _choice(
    records: list[tuple[str, dict[str, Any]]], is_clip: Callable[[str], bool]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The keys that may name a video, the first to be taken first, and notes on what is not taken."""
    video_keys = [key for key in _VIDEO_KEYS if any(key in record for _, record in records)]
    notes = []
    if any(sum(key in record for key in _VIDEO_KEYS) > 1 for _, record in records):
        # Counted in the values: a metadata.csv as the Hub has it numbers its rows under `id`, beside the `file_name`
        # that is meant.
        clips = {
            key: sum(is_clip(str(record[key])) for _, record in records if isinstance(record.get(key), int | str))
            for key in video_keys
        }
        video_keys.sort(key=lambda key: -clips[key])
        notes.append(
            f"videos are named by {video_keys[0]!r}; {listing([repr(key) for key in video_keys[1:]])} not taken"
        )
    caption_keys = [key for key in _CAPTION_KEYS if any(key in record for _, record in records)]
    if any(sum(key in record for key in _CAPTION_KEYS) > 1 for _, record in records):
        notes.append(
            f"captions are those of {caption_keys[0]!r}; {listing([repr(key) for key in caption_keys[1:]])} not taken"
        )
    known = (*_VIDEO_KEYS, *_CAPTION_KEYS, "split", "")
    if other := [
        repr(key) for key in dict.fromkeys(key for _, record in records for key in record) if key not in known
    ]:
        some = listing(other) if len(other) <= _MOST_NAMED else f"{', '.join(other[:_MOST_NAMED])}, ... ({len(other)})"
        notes.append(f"columns not read: {some}")
    return tuple(video_keys), tuple(notes)


def _row(record: dict[str, Any], video_keys: tuple[str, ...], place: str) -> CaptionRow:
    video = _one_of(record, video_keys or _VIDEO_KEYS, place)
    if isinstance(video, int) and not isinstance(video, bool):  # ids are often numbers
        video = str(video)
    captions = _one_of(record, _CAPTION_KEYS, place)
    captions = captions if isinstance(captions, list) else [captions]
    split = record.get("split")
    if split is not None:
        known = SPLIT_NAMES.get(expect(split, str, f"{place}: the split").strip().lower())
        if known is None:
            raise DatasetError(f"{place}: split {shown(split)} is none of train, val and test")
        split = known
    sentences = tuple(expect(sentence, str, f"{place}: the caption") for sentence in captions)
    return CaptionRow(place, expect(video, str, f"{place}: the video"), sentences, split)


def _one_of(record: dict[str, Any], keys: tuple[str, ...], place: str) -> Any:
    for key in keys:
        if key in record:
            return record[key]
    what = "video" if keys[0] in _VIDEO_KEYS else "caption"
    raise DatasetError(f"{place}: no {what!r}; it has {shown(', '.join(sorted(record)))}")


def write_captions(path: Path, captions: Mapping[str, str]) -> dict[str, int]:
    """Write one caption per video so that `read_captions` reads it back, and a training can start from it.

    Of ten videos in order one is for the test and one for validation, from three videos on (our choice); the column
    is the user's to change.

    Args:
        path: The file; its suffix says which kind.
        captions: By path below the folder of videos.

    Returns:
        How many videos of each split were written; none where there are too few to split.
    """
    rows = [{"video": video, "caption": caption} for video, caption in captions.items()]
    if len(rows) > 2:
        for number, row in enumerate(rows):
            # Below ten videos the first is for the test and the second for validation, so that both splits are there.
            place = number % 10 if len(rows) >= 10 else 9 - number
            row["split"] = {8: "val", 9: "test"}.get(place, "train")
    match path.suffix.lower():
        case ".csv":
            for row in rows:
                # A file's name leads where it did, and a sentence says what it did, but neither is a formula.
                row["video"] = f"./{row['video']}" if is_formula(row["video"]) else row["video"]
                row["caption"] = f" {row['caption']}" if is_formula(row["caption"]) else row["caption"]
            text = io.StringIO()
            writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
            write_text(path, text.getvalue())
        case ".jsonl":
            write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
        case _:
            write_text(path, json.dumps(rows, indent=2, ensure_ascii=False) + "\n")
    return dict(Counter(row["split"] for row in rows if "split" in row))
