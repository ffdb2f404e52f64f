"""ActivityNet Captions: 20,000 long videos, each with timed sentences that together are its paragraph (docs/data.md).

Two groups of annotators described each validation video: val_1 and val_2 are other sentences for the same videos.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from calmctl.data.annotations import clip_name, expect, field, read_json_file, read_object, row_captions, shown, span_of
from calmctl.data.benchmark import Annotated, Benchmark, Protocol, Published, VideoPart, untimed_note
from calmctl.errors import DatasetError
from calmctl.samples import Span

_YOUTUBE_ID = 11  # characters


def clip_id_of(name: str) -> str:
    """`v_` and the YouTube id, of the name of a file: some copies go without the `v_`."""
    stem = clip_name(name)
    return f"v_{stem}" if len(stem) == _YOUTUBE_ID else stem


def _videos(path: Path) -> Iterator[tuple[str, float | None, list[str], list[Span | None] | None]]:
    """Each video's id, length in seconds, sentences and their spans: the owners' {id: ...}, or a list of rows."""
    content = read_json_file(path)
    if isinstance(content, list) and not any(isinstance(row, dict) and "sentences" in row for row in content):
        for name, sentences in row_captions(path):  # a paragraph, or its sentences, and nothing else
            yield clip_id_of(name), None, sentences, None
        return
    rows: list[tuple[str, Any]] = [(shown(name), {"video_id": name} | expect(row, dict, f"{path}: {shown(name)}"))
                                   for name, row in content.items()] if isinstance(content, dict) else [
        (f"[{number}]", row) for number, row in enumerate(expect(content, list, str(path)))]  # fmt: skip
    for called, row in rows:
        place = f"{path}: {called}"
        name = field(row, "video_id", place)
        length = row.get("duration")
        if type(length) not in (int, float) or not 0 < length < 1e9:
            raise DatasetError(f"{place}.duration: expected seconds, found {shown(str(length))}")
        sentences = [expect(text, str, f"{place}.sentences") for text in field(row, "sentences", place, list)]
        times = field(row, "timestamps", place, list)
        if len(times) != len(sentences):
            raise DatasetError(f"{place}: {len(sentences)} sentences and {len(times)} timestamps; each needs one")
        yield clip_id_of(name), float(length), sentences, [span_of(each, f"{place}.timestamps") for each in times]


def _listed(files: Mapping[str, Path]) -> dict[str, None] | None:
    """The ids of the list beside the annotations, where there is one."""
    lists = [path for name, path in files.items() if name.endswith("_ids.json")]
    ids = [clip_id_of(expect(each, str, str(path))) for path in lists for each in read_object(path, list)]
    return dict.fromkeys(ids) if lists else None


def _read_paragraphs(name: str, files: Mapping[str, Path]) -> Annotated:
    """A video against all its sentences, joined by a space; shown from 0 to its length, rounded up."""
    listed = _listed(files)
    (path,) = (path for name, path in files.items() if not name.endswith("_ids.json"))
    videos = {clip_id: (length, sentences) for clip_id, length, sentences, _ in _videos(path)}
    ids = list(videos) if listed is None else [*(each for each in videos if each in listed), *(listed.keys() - videos)]
    return Annotated(
        ids,
        [(each, " ".join(text.strip() for text in videos[each][1])) for each in ids if each in videos],
        segments={
            each: VideoPart(each, 0.0, float(math.ceil(length)))
            for each, (length, _) in videos.items()
            if length is not None
        },
    )


def _read_moments(name: str, files: Mapping[str, Path]) -> Annotated:
    """Every sentence, with the span of its video that it describes."""
    (path,) = files.values()
    ids: dict[str, None] = {}
    captions: list[tuple[str, str]] = []
    moments: list[tuple[Span, ...]] = []
    for clip_id, _, sentences, spans in _videos(path):
        if spans is None:
            raise DatasetError(f"{path} has no times of its sentences; the owners' {path.name} has")
        ids[clip_id] = None
        captions += [(clip_id, text.strip()) for text in sentences]
        moments += [(each,) if each else () for each in spans]
    return Annotated([*ids], captions, moments=moments, notes=untimed_note(moments))


_OWNER = "the ActivityNet Captions project (Stanford; captions.zip of Dense-Captioning Events in Videos)"
_SHORT = {"train": "train", "val_1": "val", "val_2": "val"}


def _files(split: str, *, lists: bool = True) -> list[tuple[str, ...]]:
    listed = [(f"{split}.json", f"{_SHORT[split]}_ids.json")] if lists else []
    return [*listed, (f"{split}.json",), (f"raw_data/{split}.json",)]


ACTIVITYNET = Benchmark(
    name="activitynet",
    description="ActivityNet Captions: 20,000 videos of 2 min, timed sentences, one paragraph each",
    owners={
        **{f"{split}.json": _OWNER for split in _SHORT},
        **dict.fromkeys(("train_ids.json", "val_ids.json"), "the CLIP4Clip project (its ActivityNet lists)"),
        "clips": "the ActivityNet project (a form on its site gives access to all of them)",
    },
    copies={
        **{
            f"raw_data/{split}.json": "friedrichor/ActivityNet_Captions on the Hub (the same files)" for split in _SHORT
        },
        **dict.fromkeys(("anet_ret_train.json", "anet_ret_val_1.json"), "the UMT and VindLU projects"),
    },
    clip_names="v_YOUTUBEID.mp4, or without the v_; any other suffix will do",
    default_protocol="paragraphs",
    protocols={
        "paragraphs": Protocol(
            files={
                "train": [*_files("train"), ("anet_ret_train.json",)],
                "test": [*_files("val_1"), ("anet_ret_val_1.json",)],
            },
            read=_read_paragraphs,
            published={"train": Published(10_009, 10_009, reported=True), "test": Published(4917, 4917)},
            val_clips=500,
        ),
        "val2": Protocol(
            files={"train": [*_files("train"), ("anet_ret_train.json",)], "test": _files("val_2", lists=False)},
            read=_read_paragraphs,
            published={"train": Published(10_009, 10_009, reported=True), "test": Published(4885, 4885)},
            val_clips=500,
        ),
        "moments": Protocol(
            files={
                "train": _files("train", lists=False),
                "val": _files("val_1", lists=False),
                "test": _files("val_2", lists=False),
            },
            read=_read_moments,
            published={
                "train": Published(10_009, None, reported=True),
                "val": Published(4917, None),
                "test": Published(4885, 17_031),
            },
        ),
    },
    id_of=clip_id_of,
)
