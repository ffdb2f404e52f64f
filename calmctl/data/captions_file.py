"""Captions of somebody's own videos, read and written: CSV, TSV, JSON or JSONL."""

from __future__ import annotations

import csv
import io
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from calmctl.data.layout import listing
from calmctl.data.textfiles import expect, read_json_file, read_lines, read_table, shown
from calmctl.errors import DatasetError
from calmctl.files import NotJson, parse_json, write_text

CAPTIONS_SUFFIXES = (".csv", ".tsv", ".json", ".jsonl")
# The first to be taken first, where no column names more clips than another.
_VIDEO_KEYS = ("video", "file_name", "filename", "file", "path", "video_id", "id")
_CAPTION_KEYS = ("caption", "captions", "sentence", "text", "description")
SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validate": "val",
    "validation": "val",
    "dev": "val",
    "test": "test",
    "testing": "test",
}
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
    readers = {".csv": _table, ".tsv": _table, ".txt": _table, ".json": _json, ".jsonl": _jsonl}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise DatasetError(f"{path}: captions can be read from {listing(CAPTIONS_SUFFIXES)} files only")
    records = [(place, _lower_keys(record, place)) for place, record in reader(path)]
    if not records:
        raise DatasetError(f"{path}: there are no captions in it")
    keys, notes = _choice(records, is_clip)
    return Captions(tuple(_row(record, keys, place) for place, record in records), notes)


def _table(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    tabs = path.suffix.lower() == ".tsv"
    if path.suffix.lower() == ".txt":
        tabs = "\t" in next(read_lines(path), (1, ""))[1]
    for place, record in read_table(path, [], "\t" if tabs else ","):
        for key, cell in record.items():
            if key.lower() in _CAPTION_KEYS and _LIST.match(cell):
                raise DatasetError(
                    f"{place}: a list stands in one cell, {shown(cell)}; give each caption a row of its own, or write "
                    "the file as JSON, where lists are read"
                )
        yield place, {key: value for key, value in record.items() if value or key.lower() in _CAPTION_KEYS}


def _json(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    content = read_json_file(path)
    if isinstance(content, dict):
        for video, captions in content.items():
            yield f"{path}: {shown(video)}", {"video": video, "caption": captions}
    else:
        for i, record in enumerate(expect(content, list, str(path))):
            yield f"{path}: [{i}]", expect(record, dict, f"{path}: [{i}]")


def _jsonl(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    for number, line in read_lines(path):
        place = f"{path}:{number}"
        try:
            record = parse_json(line)
        except NotJson as fault:
            raise DatasetError(f"{place} {fault}") from None
        yield place, expect(record, dict, place)


def _lower_keys(record: dict[str, Any], place: str) -> dict[str, Any]:
    lowered = {key.strip().lower(): value for key, value in record.items()}
    if len(lowered) < len(record):
        raise DatasetError(f"{place}: {shown(', '.join(record))}: two of these differ in capitals only; rename one")
    return lowered


def _choice(
    records: list[tuple[str, dict[str, Any]]], is_clip: Callable[[str], bool]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The keys that may name a video, the first to be taken first, and notes on what is not taken."""
    found = [key for key in _VIDEO_KEYS if any(key in record for _, record in records)]
    notes = []
    if any(sum(key in record for key in _VIDEO_KEYS) > 1 for _, record in records):
        clips = {
            key: sum(is_clip(str(record[key])) for _, record in records if isinstance(record.get(key), int | str))
            for key in found
        }
        found.sort(key=lambda key: -clips[key])
        notes.append(f"videos are named by {found[0]!r}; {listing([repr(key) for key in found[1:]])} not taken")
    told = [key for key in _CAPTION_KEYS if any(key in record for _, record in records)]
    if any(sum(key in record for key in _CAPTION_KEYS) > 1 for _, record in records):
        notes.append(f"captions are those of {told[0]!r}; {listing([repr(key) for key in told[1:]])} not taken")
    return tuple(found), tuple(notes)


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
    """Write one caption a video so that `read_captions` reads it back, and a training can start from it.

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
            place = number % 10 if len(rows) >= 10 else 9 - number
            row["split"] = {8: "val", 9: "test"}.get(place, "train")
    match path.suffix.lower():
        case ".csv":
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
