"""YouCook2 as clip retrieval: a sentence finds the part of a cooking video that it describes (docs/data.md)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from calmctl.data.annotations import clip_name, expect, field, read_object, read_rows, shown, span_of
from calmctl.data.benchmark import Annotated, Benchmark, Protocol, Published, VideoPart
from calmctl.errors import DatasetError

_OFFICIAL = "youcookii_annotations_trainval.json"
_HUB = "data/val-*.parquet"
_SUBSETS = {"train": "training", "test": "validation"}


def _read(name: str, files: Mapping[str, Path]) -> Annotated:
    """One clip a described segment; its id is its video's and the segment's number."""
    captions: dict[str, str] = {}
    segments: dict[str, VideoPart] = {}
    (path,) = files.values()
    rows = _official(path, _SUBSETS[name]) if path.suffix == ".json" else _hub(path)
    for place, video, row in rows:
        number = row.get("id")
        if type(number) not in (int, str):
            raise DatasetError(f"{place}.id: expected the segment's number, found {shown(str(number))}")
        clip_id = f"{video}_{number}"
        span = span_of(field(row, "segment", place, list), f"{place}.segment")
        if span is None or clip_id in segments:
            why = "ends before it begins" if span is None else "stands twice"
            raise DatasetError(f"{place}: the segment {shown(clip_id)} {why}")
        captions[clip_id] = field(row, "sentence", place).strip()
        cut = clip_name(row["video_path"]) if isinstance(row.get("video_path"), str) else ""
        segments[clip_id] = VideoPart(video, *span, cut="" if cut == video else cut)
    return Annotated(list(segments), list(captions.items()), segments=segments)


def _official(path: Path, subset: str) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for video, entry in field(read_object(path, dict), "database", str(path), dict).items():
        place = f"{path}: {shown(video)}"
        if field(entry, "subset", place) == subset:
            for number, row in enumerate(field(entry, "annotations", place, list)):
                yield f"{place}.annotations[{number}]", video, expect(row, dict, place)


def _hub(path: Path) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for place, row in read_rows(path, ("id", "youtube_id", "segment", "sentence", "video_path")):
        yield place, field(row, "youtube_id", place), row


YOUCOOK2 = Benchmark(
    name="youcook2",
    description="YouCook2: 14,000 parts of cooking videos, one sentence each",
    owners={
        _OFFICIAL: "the YouCook2 project (University of Michigan)",
        "clips": "nobody: from YouTube by their ids; or cut already, lmms-lab/YouCook2 on the Hub",
    },
    copies={
        _HUB: "lmms-lab/YouCook2 on the Hub, copied by VLM2Vec/YouCook2 (copies whose licence nobody states)",
    },
    clip_names=(
        "YOUTUBEID.mp4, the whole video, of which each segment is shown; or YOUTUBEID_NUMBER.mp4, cut already; any "
        "other suffix will do"
    ),
    protocols={
        "": Protocol(
            files={"train": [(_OFFICIAL,)], "test": [(_OFFICIAL,), (_HUB,)]},
            read=_read,
            published={"train": Published(None, None), "test": Published(3350, 3350, reported=True)},
            val_clips=500,
        )
    },
)
