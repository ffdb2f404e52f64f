"""LSMDC: 118,081 short movie clips, one sentence per line (docs/data.md)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from calmctl.data.annotations import read_lines
from calmctl.data.benchmark import Annotated, Benchmark, Protocol, Published
from calmctl.data.locate import listing
from calmctl.errors import DatasetError

_COLUMNS = 6  # clip id, start and end aligned, start and end extracted, sentence
_TRAIN = "LSMDC16_annos_training.csv"
_VAL = "LSMDC16_annos_val.csv"
_TEST = "LSMDC16_challenge_1000_publictect.csv"  # so spelled where it is published
# Fewer candidates make an easier test, so these stay, and a note says so.
_OFTEN_DROPPED = frozenset(
    {
        "1012_Unbreakable_00.05.16.065-00.05.21.941",
        "0017_Pianist_00.23.28.872-00.23.34.843",
        "0017_Pianist_00.30.36.767-00.30.38.009",
        "3064_SPARKLE_2012_01.41.07.000-01.41.11.793",
    }
)


def _read(name: str, files: Mapping[str, Path]) -> Annotated:
    """Every line is a (clip, sentence) pair; a clip with several lines has several sentences.

    The files are tab-separated without quoting: a quotation mark is part of the sentence. Some ids carry a
    stray one in front, which is not part of the id.
    """
    (path,) = files.values()
    pairs = []
    for number, line in read_lines(path):
        # Cut so often and no more: a tab in the sentence belongs to it.
        cells = line.split("\t", _COLUMNS - 1)
        if len(cells) != _COLUMNS:
            raise DatasetError(f"{path}:{number}: {len(cells)} tab-separated fields, expected {_COLUMNS}")
        pairs.append((cells[0].strip().removeprefix('"'), cells[-1]))
    clip_ids = list(dict.fromkeys(clip_id for clip_id, _ in pairs))
    kept = [clip_id for clip_id in clip_ids if clip_id in _OFTEN_DROPPED]
    notes = (f"kept {listing(kept)}, which comparable code drops",) if kept else ()
    return Annotated(clip_ids, pairs, notes=notes)


LSMDC = Benchmark(
    name="lsmdc",
    description="LSMDC 2016: 118,081 movie clips of 4 s, one sentence each",
    owners=dict.fromkeys(
        (_TRAIN, _VAL, _TEST, _TEST.replace("tect", "test"), "clips"),
        "the Large Scale Movie Description Challenge (Max Planck Institute for Informatics; given out on request and "
        "not to be passed on)",
    ),
    clip_names=(
        "CLIP.avi, where CLIP is the first column of the tables, dots and all; any other suffix will do; in folders by "
        "movie, as given out, or otherwise"
    ),
    protocols={
        "": Protocol(
            files={"train": [(_TRAIN,)], "val": [(_VAL,)], "test": [(_TEST,), (_TEST.replace("tect", "test"),)]},
            read=_read,
            published={
                # Published are the numbers of lines; how many clips they name is not.
                "train": Published(None, 101_079),
                "val": Published(None, 7408),
                "test": Published(None, 1000),
            },
        )
    },
)
