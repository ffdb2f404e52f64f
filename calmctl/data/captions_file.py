"""Captions of somebody's own videos, read and written: CSV, JSON or JSONL."""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from calmctl.data.layout import listing
from calmctl.data.textfiles import expect, read_json_file, read_lines, read_table, shown
from calmctl.errors import DatasetError
from calmctl.files import write_text

_VIDEO_KEYS = ("video", "video_id", "id", "file", "file_name", "filename", "path")
_CAPTION_KEYS = ("caption", "captions", "sentence", "text", "description")
_SPLITS = {
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


@dataclass(frozen=True, slots=True)
class CaptionRow:
    """What one row or object tells.

    Attributes:
        place: Where it stands, for messages.
        video: The name it gives the video.
        captions: One or more sentences.
        split: "train", "val" or "test", or None where it tells none.
    """

    place: str
    video: str
    captions: tuple[str, ...]
    split: str | None


def read_captions(path: Path) -> list[CaptionRow]:
    """All rows of a captions file, told by its suffix.

    Raises:
        DatasetError: When the file is malformed, empty, or of another kind.
    """
    readers = {".csv": _csv, ".json": _json, ".jsonl": _jsonl}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise DatasetError(f"{path}: captions can be read from {listing(list(readers))} files only")
    rows = list(reader(path))
    if not rows:
        raise DatasetError(f"{path}: there are no captions in it")
    return rows


def _csv(path: Path) -> Iterator[CaptionRow]:
    for place, record in read_table(path, []):
        yield _row({key: value for key, value in record.items() if value or key in _CAPTION_KEYS}, place)


def _json(path: Path) -> Iterator[CaptionRow]:
    content = read_json_file(path)
    if isinstance(content, dict):
        for video, captions in content.items():
            yield _row({"video": video, "caption": captions}, f"{path}: {shown(video)}")
    else:
        for i, record in enumerate(expect(content, list, str(path))):
            yield _row(expect(record, dict, f"{path}: [{i}]"), f"{path}: [{i}]")


def _jsonl(path: Path) -> Iterator[CaptionRow]:
    for number, line in read_lines(path):
        place = f"{path}:{number}"
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DatasetError(f"{place}: not JSON: {error}") from None
        yield _row(expect(record, dict, place), place)


def _row(record: dict[str, Any], place: str) -> CaptionRow:
    video = expect(_one_of(record, _VIDEO_KEYS, place), str, f"{place}: the video")
    captions = _one_of(record, _CAPTION_KEYS, place)
    captions = captions if isinstance(captions, list) else [captions]
    split = record.get("split")
    if split is not None:
        known = _SPLITS.get(expect(split, str, f"{place}: the split").strip().lower())
        if known is None:
            raise DatasetError(f"{place}: split {shown(split)} is none of train, val and test")
        split = known
    sentences = tuple(expect(sentence, str, f"{place}: the caption") for sentence in captions)
    return CaptionRow(place, video.strip(), sentences, split)


def _one_of(record: dict[str, Any], keys: tuple[str, ...], place: str) -> Any:
    for key in keys:
        if key in record:
            return record[key]
    raise DatasetError(f"{place}: no {keys[0]!r}; it has {shown(', '.join(sorted(record)))}")


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
