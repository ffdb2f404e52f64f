"""Files of captions and references: coco-caption's JSON, MSR-VTT's, and {id: caption}."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from calmctl.data.textfiles import expect, read_text, shown
from calmctl.errors import DatasetError
from calmctl.files import NotJson, parse_json

_ID_KEYS = ("image_id", "video_id")
_LIST_KEYS = ("annotations", "sentences")  # coco-caption's and MSR-VTT's name for the list of captions


def read_hypotheses(path: Path) -> dict[str, str]:
    """One caption an id, from [{"image_id", "caption"}] or {id: caption}; "video_id" is as good.

    Raises:
        DatasetError: The file is malformed, or has no caption or more than one for an id.
    """
    captions = {}
    for name, found in _read(path).items():
        if len(found) != 1:
            raise DatasetError(f"{path}: {shown(name)} has {len(found)} captions; exactly one an id is scored")
        captions[name] = found[0]
    return captions


def read_references(path: Path) -> dict[str, list[str]]:
    """All references of each id, from {"annotations": [{"image_id", "caption"}]} or {id: [captions]}.

    Raises:
        DatasetError: The file is malformed, or an id has no reference.
    """
    references = _read(path)
    for name, found in references.items():
        if not found:
            raise DatasetError(f"{path}: {shown(name)} has an empty list of references; give one or leave it out")
    return references


def _read(path: Path) -> dict[str, list[str]]:
    content = _parse(path)
    if isinstance(content, dict):
        for key in _LIST_KEYS:
            # Not a caption of something that is called "annotations": that would be text or a list of text.
            if isinstance(content.get(key), list) and not any(isinstance(each, str) for each in content[key]):
                return _records(content[key], f"{path}: {key}")
        found = {name: _captions(value, f"{path}: {shown(name)}") for name, value in content.items()}
    else:
        found = _records(expect(content, list, str(path)), str(path))
    if not found:
        raise DatasetError(f"{path}: there are no captions in it")
    return found


def _records(records: list[Any], place: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for number, record in enumerate(records):
        try:
            name, caption = next(record[key] for key in _ID_KEYS if key in record), record["caption"]
        except (KeyError, StopIteration, TypeError):
            raise DatasetError(
                f'{place}[{number}]: expected {{"image_id" or "video_id": ..., "caption": ...}}, '
                f"found {shown(json.dumps(record, ensure_ascii=False))}"
            ) from None
        if isinstance(name, bool) or not isinstance(name, int | str):
            raise DatasetError(f"{place}[{number}]: an id must be text or a whole number, not {shown(str(name))}")
        found.setdefault(str(name), []).append(_text(caption, f"{place}[{number}]"))
    if not found:
        raise DatasetError(f"{place}: there are no captions in it")
    return found


def _captions(value: Any, place: str) -> list[str]:
    """Of {id: caption}, {id: [caption, ...]} or {id: [{"caption": caption}, ...]}."""
    values = value if isinstance(value, list) else [value]
    return [_text(each["caption"] if isinstance(each, dict) and "caption" in each else each, place) for each in values]


def _text(caption: Any, place: str) -> str:
    if caption is None:
        raise DatasetError(f'{place}: the caption is null; write "" where a system said nothing')
    return str(expect(caption, str, f"{place}: the caption"))


def _parse(path: Path) -> Any:
    text = read_text(path)
    try:
        return parse_json(text)
    except NotJson as fault:
        raise DatasetError(f"{path} {fault}") from None
