"""DiDeMo as paragraph retrieval: all descriptions of a clip, joined, describe it (docs/data.md).

The same clip appears under two file extensions in the official JSON, and some names end in a bare dot. No name
holds another dot, so what precedes the first one is the clip.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

from calmctl.data.annotations import field, read_ids, read_object, read_table, row_captions, shown, text_fields
from calmctl.data.benchmark import Annotated, Benchmark, Protocol, Published
from calmctl.errors import DatasetError
from calmctl.samples import Span
from calmctl.words import counted

_WINDOW_S = (0.0, 31.0)
_PIECE_S, _PIECES = 5.0, 6


def clip_id_of(file_name: str) -> str:
    """The clip that a file of DiDeMo, or a re-encoded copy of it, shows."""
    return file_name.split(".", 1)[0]


def _read_official(name: str, files: Mapping[str, Path]) -> Annotated:
    """Paragraphs by clip: every description of it, whatever file name it is under; those of a list, if any."""
    # Lists and JSON have one clip under two suffixes, so they meet by what precedes the dot.
    listed = {clip_id_of(file_name): None for file_name in _listed(files)}
    (json_file,) = (path for path in files.values() if path.suffix == ".json")
    return _paragraphs(json_file, lambda file_name: not listed or clip_id_of(file_name) in listed, listed)


def _read_tmass(name: str, files: Mapping[str, Path]) -> Annotated:
    """Paragraphs by exact file name: T-MASS's own table, or the same made from the JSON and a list file."""
    table = files.get(f"didemo_{name}_label.csv")
    if table is None:
        names = dict.fromkeys(_listed(files))
        # By the exact name, which tears a clip's descriptions apart as T-MASS's tables do: comparable with those
        # alone.
        return _paragraphs(files[f"{name}_data.json"], names.__contains__, map(clip_id_of, names))
    # Paths are those of the machine that made the table; only the file's name means anything here.
    pairs = [
        (clip_id_of(re.split(r"[/\\]", row["video_path"])[-1]), row["text"])
        for _, row in read_table(table, ["video_path", "text"])
    ]
    return Annotated([clip_id for clip_id, _ in pairs], pairs, *_WINDOW_S)


def _listed(files: Mapping[str, Path]) -> list[str]:
    """File names in the list file, where one is among the files."""
    return [name for file, path in files.items() if file.endswith(".txt") for name in read_ids(path)]


def _paragraphs(path: Path, keep: Callable[[str], bool], listed: Iterable[str]) -> Annotated:
    """One paragraph per clip, of its descriptions under kept file names; listed clips without any come last."""
    descriptions: dict[str, list[str]] = {}
    for file_name, description in _described(path):
        if keep(file_name):
            descriptions.setdefault(clip_id_of(file_name), []).append(description)
    n_joined = sum(map(len, descriptions.values()))
    return Annotated(
        list(dict.fromkeys([*descriptions, *listed])),
        [(clip_id, " ".join(texts)) for clip_id, texts in descriptions.items()],
        *_WINDOW_S,
        notes=(f"{counted(n_joined, 'description')} joined into {counted(len(descriptions), 'paragraph')}",),
    )


def _described(path: Path) -> Iterator[tuple[str, str]]:
    """Every file's name and a description: the owners' rows, or those of copies, which have whole paragraphs."""
    rows = read_object(path, list)
    if rows and isinstance(rows[0], dict) and "caption" in rows[0] and "description" not in rows[0]:
        yield from ((name, text) for name, texts in row_captions(path) for text in texts)
    else:
        yield from text_fields(rows, ["video", "description"], f"{path}: ")  # type: ignore[misc]


def _read_moments(name: str, files: Mapping[str, Path]) -> Annotated:
    """Every description with the spans that its annotators chose, each of one piece of 5 s or of several in a row."""
    (path,) = files.values()
    captions: list[tuple[str, str]] = []
    moments: list[tuple[Span, ...]] = []
    for number, record in enumerate(read_object(path, list)):
        place = f"{path}: [{number}]"
        captions.append((clip_id_of(field(record, "video", place)), field(record, "description", place)))
        chosen = []
        for pieces in field(record, "times", place, list):
            match pieces:
                case [int() as first, int() as last] if 0 <= first <= last < _PIECES:
                    chosen.append((_PIECE_S * first, _PIECE_S * (last + 1)))
                case _:
                    raise DatasetError(f"{place}.times: expected two pieces from 0 to 5, found {shown(str(pieces))}")
        moments.append(tuple(chosen))
    clips = list(dict.fromkeys(clip for clip, _ in captions))
    return Annotated(clips, captions, *_WINDOW_S, moments=moments)


def _names(*names: str) -> list[str]:
    return [name.format(split) for split in ("train", "val", "test") for name in names]


def _files(*choices: str) -> dict[str, list[tuple[str, ...]]]:
    return {
        split: [tuple(name.format(split) for name in choice.split()) for choice in choices]
        for split in ("train", "val", "test")
    }


DIDEMO = Benchmark(
    name="didemo",
    description="DiDeMo: 10,000 Flickr clips of 30 s, one paragraph each",
    owners={
        **dict.fromkeys(_names("{0}_data.json"), "the LocalizingMoments project of Hendricks et al. (its data folder)"),
        **dict.fromkeys(
            _names("ce_{0}_list.txt", "{0}_list.txt"), "the collaborative-experts project (its DiDeMo lists)"
        ),
        **dict.fromkeys(_names("didemo_{0}_label.csv"), "the T-MASS project (its data folder)"),
        "clips": "the LocalizingMoments project of Hendricks et al. (which says where to get them)",
    },
    copies={
        **dict.fromkeys(
            _names("didemo_{0}.json", "raw_data/didemo_{0}.json"),
            "friedrichor/DiDeMo on the Hub, also as VLM2Vec/DiDeMo (copies whose licence nobody states)",
        ),
        **dict.fromkeys(_names("didemo_ret_{0}.json"), "the UMT and VindLU projects"),
    },
    clip_names=(
        "as in the JSON files, whose names have many suffixes and some none; what precedes the first dot counts, so "
        "that re-encoded copies are found"
    ),
    default_protocol="official",
    protocols={
        "official": Protocol(
            files=_files(
                *("{0}_data.json ce_{0}_list.txt", "{0}_data.json {0}_list.txt", "{0}_data.json"),
                *("raw_data/didemo_{0}.json", "didemo_{0}.json", "didemo_ret_{0}.json"),
            ),
            read=_read_official,
            published={
                "train": Published(8392, 8392),
                "val": Published(1065, 1065, "c223d9d2a7f422ef70197984d8cb1a2e0fcc723c7f6f1f2e7cffda2b0dd4020f"),
                "test": Published(1004, 1004, "cef08e77ed239503693621a0c944abbd11937e2cf19438aa8006a78cfccd9fb3"),
            },
        ),
        "tmass": Protocol(
            files=_files("didemo_{0}_label.csv", "{0}_data.json ce_{0}_list.txt", "{0}_data.json {0}_list.txt"),
            read=_read_tmass,
            published={
                "train": Published(8362, 8362),
                "val": Published(1062, 1062),
                "test": Published(1004, 1004, "f09c4d8d70a1a38c1ba6ce25fb020e9922f58973b9c628b7e5d98d9f06a77c13"),
            },
        ),
        "moments": Protocol(
            files=_files("{0}_data.json", "raw_data/didemo_{0}.json"),
            read=_read_moments,
            published={
                "train": Published(None, 33_005, reported=True),
                "val": Published(1065, 4180, "e3e05884dda5631784e2c3970c279eb55c211bdfd54bb6b34fa0a9c789bb32e1"),
                "test": Published(1004, 4021, "9e31bfbbab1a8ab6ee666f6f0dcb70a9413cdb281cf7f7c59a0b8360b6457d6f"),
            },
        ),
    },
    id_of=clip_id_of,
)
