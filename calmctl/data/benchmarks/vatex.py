"""VATEX: 41,250 clips of 10 s, ten English sentences each (docs/data.md); its Chinese ones are not read."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from calmctl.data.annotations import clip_name, expect, field, read_names, read_object, row_captions, shown
from calmctl.data.benchmark import Annotated, Benchmark, Protocol, Published, VideoPart

_REFERENCES = "ref_captions.json"
_TRAIN, _VAL = "vatex_training_v1.0.json", "vatex_validation_v1.0.json"
_TEST = "vatex_public_test_english_v1.1.json"
_HUB_TEST = "vatex_test/*.parquet"
_LISTS = {split: f"{split}_list.txt" for split in ("train", "val", "test")}
# HGR's download: an array of names for each split, beside its captions or in a folder of its own.
_ARRAYS = {split: f"{short}_names.npy" for split, short in zip(_LISTS, ("trn", "val", "tst"), strict=True)}
_HGR_FOLDER, _HGR_REFERENCES = "public_split", f"annotation/RET/{_REFERENCES}"
_ID = re.compile(r"(.{11})_(\d{6})_(\d{6})", re.DOTALL)


def _segments(clip_ids: Iterable[str]) -> dict[str, VideoPart]:
    """Ids say which seconds of a YouTube video a clip is, for those who hold the videos whole."""
    parts = {clip_id: match for clip_id in clip_ids if (match := _ID.fullmatch(clip_id))}
    return {
        clip_id: VideoPart(match[1], float(match[2]), float(match[3]))
        for clip_id, match in parts.items()
        if match[2] < match[3]
    }


def _read_official(name: str, files: Mapping[str, Path]) -> Annotated:
    """All clips of a file with all their captions."""
    (path,) = files.values()
    annotated = Annotated.of_rows(row_captions(path, ["videoID"], ["enCap"]))
    return replace(annotated, segments=_segments(annotated.clip_ids))


def _listed(split: str, *captions: str) -> list[tuple[str, str]]:
    """Every list of a split with every file of captions, the text list first."""
    lists = (_LISTS[split], _ARRAYS[split], f"{_HGR_FOLDER}/{_ARRAYS[split]}")
    return [(each, file) for each in lists for file in captions]


def _read_listed(name: str, files: Mapping[str, Path]) -> Annotated:
    """The clips of a list with all their captions, from either file that has them."""
    lists = {path for file, path in files.items() if file.endswith((_LISTS[name], _ARRAYS[name]))}
    if not lists:
        return _read_official(name, files)
    names = read_names(lists.pop())
    if (path := files.get(_REFERENCES, files.get(_HGR_REFERENCES))) is not None:
        content = read_object(path, dict)
        captions = {
            clip_name(each): [
                expect(text, str, f"{path}: {shown(each)}") for text in field(content, each, str(path), list)
            ]
            for each in names
            if each in content
        }
    else:
        captions = dict(row_captions(files[_VAL], ["videoID"], ["enCap"]))
    ids = [*map(clip_name, names)]
    pairs = [(each, text) for each in ids for text in captions.get(each, ())]
    return Annotated(ids, pairs, segments=_segments(ids))


VATEX = Benchmark(
    name="vatex",
    description="VATEX: 41,250 YouTube clips of 10 s, ten English sentences each",
    owners={
        **dict.fromkeys((_TRAIN, _VAL, _TEST), "the VATEX project (Wang et al.; its download page)"),
        **dict.fromkeys(_LISTS.values(), "the projects that descend from X-Pool; or the HGR project, as .npy"),
        _REFERENCES: "the HGR project (hgr_v2t), or the projects that descend from X-Pool",
        "clips": "nobody: cut from YouTube by their ids; the VATEX project gives out features",
    },
    copies={
        **dict.fromkeys(
            (*_ARRAYS.values(), *(f"{_HGR_FOLDER}/{each}" for each in _ARRAYS.values()), _HGR_REFERENCES),
            "the HGR project (hgr_v2t), in its own folders or side by side",
        ),
        _HUB_TEST: "lmms-lab/VATEX on the Hub (4,478 of the public test; a copy whose licence nobody states)",
    },
    clip_names=(
        "YOUTUBEID_START_END.mp4, already cut to 10 s, as in the files; or the whole video, YOUTUBEID.mp4, of which "
        "the seconds that the id names are shown; any other suffix will do"
    ),
    default_protocol="hgr",
    protocols={
        "hgr": Protocol(
            files={
                "train": [*_listed("train", _REFERENCES, _HGR_REFERENCES), (_TRAIN,)],
                "val": _listed("val", _REFERENCES, _VAL, _HGR_REFERENCES),
                "test": _listed("test", _REFERENCES, _VAL, _HGR_REFERENCES),
            },
            read=_read_listed,
            published={
                "train": Published(25_991, 259_910),
                "val": Published(1500, 15_000),
                "test": Published(1500, 15_000),
            },
        ),
        "public": Protocol(
            files={"train": [(_TRAIN,)], "val": [(_VAL,)], "test": [(_TEST,), (_HUB_TEST,)]},
            read=_read_official,
            published={
                "train": Published(25_991, 259_910),
                "val": Published(3000, 30_000),
                "test": Published(6000, 60_000),
            },
        ),
    },
)
