"""Captions of somebody's own videos: CSV, JSON or JSONL."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from calmctl.data.layout import listing
from calmctl.data.textfiles import expect, read_json_file, read_lines, read_table, shown
from calmctl.errors import DatasetError

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
