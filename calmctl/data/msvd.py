"""MSVD: 1,970 clips, 18 to 81 sentences each, every one of them a query (docs/data.md)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from calmctl.data.benchmark import Benchmark, Counts, Protocol
from calmctl.data.splits import Annotated
from calmctl.data.textfiles import expect, field, read_ids, read_object, shown

_CAPTIONS = "captions_msvd.json"


def _read(name: str, files: Mapping[str, Path]) -> Annotated:
    path = files[_CAPTIONS]
    captions = read_object(path, dict)
    clip_ids = read_ids(files[f"{name}_list.txt"])
    pairs = [
        (clip_id, expect(sentence, str, f"{path}: {shown(clip_id)}[{i}]"))
        for clip_id in dict.fromkeys(clip_ids)
        if clip_id in captions  # some releases lack a few clips; those are listed as left out
        for i, sentence in enumerate(field(captions, clip_id, str(path), list))
    ]
    return Annotated(clip_ids, pairs)


MSVD = Benchmark(
    name="msvd",
    description="MSVD: 1,970 YouTube clips of 10 s, about 40 sentences each",
    publisher=(
        "Microsoft Research (the clips, YouTubeClips, with the Video Description Corpus) and the X-Pool project "
        "(captions_msvd.json and the lists)"
    ),
    protocols={
        "": Protocol(
            files={split: [(f"{split}_list.txt", _CAPTIONS)] for split in ("train", "val", "test")},
            read=_read,
            published={
                "train": Counts(1200, 48_774),
                "val": Counts(100, 4290),
                "test": Counts(670, 27_763),
            },
        )
    },
)
