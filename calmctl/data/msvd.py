"""MSVD: 1,970 clips, 18 to 81 sentences each, every one of them a query (docs/data.md)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from calmctl.data.benchmark import Benchmark, Protocol, Published
from calmctl.data.pickled import read_pickle
from calmctl.data.splits import Annotated
from calmctl.data.textfiles import expect, field, read_ids, read_lines, read_object, shown

_CAPTIONS = "captions_msvd.json"
_TOKENS = "raw-captions.pkl"
_DESCRIPTIONS = "AllVideoDescriptions.txt"
_NOTES = {
    _TOKENS: (
        f"the captions are the words of {_TOKENS}, joined by spaces: what its tokeniser did to case, punctuation and "
        "apostrophes stays done"
    ),
    _DESCRIPTIONS: (
        f"the captions are as {_DESCRIPTIONS} has them; published retrieval numbers rest on {_CAPTIONS}, which holds "
        "neither capital letters nor punctuation"
    ),
}


def _read(name: str, files: Mapping[str, Path]) -> Annotated:
    """The clips of a list with every caption; which file the captions are from is noted where it matters."""
    clip_ids = read_ids(files[f"{name}_list.txt"])
    (file,) = files.keys() & _READERS.keys()
    captions = _READERS[file](files[file], dict.fromkeys(clip_ids))
    return Annotated(clip_ids, list(captions), notes=(_NOTES[file],) if file in _NOTES else ())


def _from_json(path: Path, clip_ids: dict[str, None]) -> Iterator[tuple[str, str]]:
    captions = read_object(path, dict)
    for clip_id in clip_ids:
        if clip_id in captions:  # some releases lack a few clips; those are listed as left out
            for i, sentence in enumerate(field(captions, clip_id, str(path), list)):
                yield clip_id, expect(sentence, str, f"{path}: {shown(clip_id)}[{i}]")


def _from_tokens(path: Path, clip_ids: dict[str, None]) -> Iterator[tuple[str, str]]:
    captions: dict[str, Any] = expect(read_pickle(path), dict, str(path))
    for clip_id in clip_ids:
        if clip_id in captions:
            for i, words in enumerate(field(captions, clip_id, str(path), list)):
                place = f"{path}: {shown(clip_id)}[{i}]"
                yield clip_id, " ".join(expect(word, str, place) for word in expect(words, list, place))


def _from_lines(path: Path, clip_ids: dict[str, None]) -> Iterator[tuple[str, str]]:
    """A line a caption, behind the clip's id and a space; lines that begin with # are about the file."""
    for _, line in read_lines(path):
        if not line.startswith("#"):
            clip_id, _, sentence = line.strip().replace("\t", " ", 1).partition(" ")
            if clip_id in clip_ids:
                yield clip_id, sentence.strip()


_READERS = {_CAPTIONS: _from_json, _TOKENS: _from_tokens, _DESCRIPTIONS: _from_lines}


MSVD = Benchmark(
    name="msvd",
    description="MSVD: 1,970 YouTube clips of 10 s, about 40 sentences each",
    owners={
        **{f"{split}_list.txt": "the X-Pool project (its data folder)" for split in ("train", "val", "test")},
        _CAPTIONS: "the X-Pool project (its data folder)",
        _TOKENS: "the CLIP4Clip project (msvd_data.zip among its releases)",
        _DESCRIPTIONS: "Microsoft Research and the University of Texas at Austin (Video Description Corpus)",
        "clips": "Microsoft Research and the University of Texas at Austin (Video Description Corpus: YouTubeClips)",
    },
    clip_names="YOUTUBEID_START_END.avi, as in the lists; any other suffix will do",
    protocols={
        "": Protocol(
            files={
                split: [(f"{split}_list.txt", captions) for captions in _READERS] for split in ("train", "val", "test")
            },
            read=_read,
            published={
                "train": Published(1200, 48_774, "2bb3c2212a69b37c8ff811b14af51ffdaa91c114164ea01fc81cd9747495f566"),
                "val": Published(100, 4290, "03202dec6e9fa9f04e6395fc86fd9acbce2faa32cff54439ff5396e542447001"),
                "test": Published(670, 27_763, "b873f2a69e905d5e4a7a7798254492b0cb04655ae090b6653e9c12d0789d79ea"),
            },
        )
    },
)
