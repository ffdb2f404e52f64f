"""Charades-STA: sentences with the moment of a 30 s video that each describes (docs/data.md)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from calmctl.data.annotations import read_lines, shown, span_of
from calmctl.data.benchmark import Annotated, Benchmark, Protocol, Published, untimed_note
from calmctl.errors import DatasetError
from calmctl.samples import Span

_LINE = re.compile(r"(\S+) +(\d+(?:\.\d+)?) +(\d+(?:\.\d+)?) *##(.*)", re.DOTALL)


def _read(name: str, files: Mapping[str, Path]) -> Annotated:
    """A line is a video, a start, an end and behind ## a sentence; a video is a clip, whole."""
    (path,) = files.values()
    captions: list[tuple[str, str]] = []
    moments: list[tuple[Span, ...]] = []
    for number, line in read_lines(path):
        parts = _LINE.fullmatch(line.strip())
        if parts is None:
            raise DatasetError(f"{path}:{number}: expected VIDEO START END##SENTENCE, found {shown(line)}")
        span = span_of([float(parts[2]), float(parts[3])], f"{path}:{number}")
        captions.append((parts[1], parts[4].strip()))
        moments.append((span,) if span else ())
    clips = list(dict.fromkeys(clip for clip, _ in captions))
    return Annotated(clips, captions, moments=moments, notes=untimed_note(moments))


CHARADES_STA = Benchmark(
    name="charades-sta",
    description="Charades-STA: 16,128 sentences, each timed in a home video of 30 s",
    owners={
        **dict.fromkeys(
            ("charades_sta_train.txt", "charades_sta_test.txt"), "the TALL project (Gao et al., ICCV 2017)"
        ),
        "clips": "the Charades project (Allen Institute for AI; non-commercial licence): Charades_v1 or its 480p copy",
    },
    clip_names="VIDEO.mp4, five letters and digits, as in the files; any other suffix will do",
    protocols={
        "": Protocol(
            files={"train": [("charades_sta_train.txt",)], "test": [("charades_sta_test.txt",)]},
            read=_read,
            published={"train": Published(None, 12_408, reported=True), "test": Published(None, 3720, reported=True)},
            val_clips=500,
        )
    },
)
