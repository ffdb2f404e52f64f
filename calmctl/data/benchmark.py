"""What the published datasets have in common: which files define a split, who has them, and how large it is."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from calmctl.data.layout import Places, VideoFiles, listing, places
from calmctl.data.samples import Dataset
from calmctl.data.splits import Annotated, Splits, build_split, carve_val
from calmctl.data.textfiles import shown
from calmctl.errors import DatasetError
from calmctl.files import sha256_file


@dataclass(frozen=True, slots=True)
class Counts:
    """Published size of a split; None where no count is known."""

    clips: int | None
    captions: int | None


@dataclass(frozen=True, slots=True)
class Protocol:
    """One published way to split a dataset.

    Attributes:
        files: For each split the sets of annotation files that define it; the first complete set is read.
        read: Reads a split's files, given as {name: path}.
        published: Published sizes of splits.
        val_clips: How many clips to carve from train for validation, where no file defines such a split.
    """

    files: Mapping[str, Sequence[Sequence[str]]]
    read: Callable[[str, Mapping[str, Path]], Annotated]
    published: Mapping[str, Counts]
    val_clips: int = 0


@dataclass(frozen=True, slots=True)
class Benchmark:
    """A published dataset.

    Attributes:
        name: As on the command line.
        description: One line.
        publisher: Who gives out the annotation files and the clips, in words.
        protocols: By name; "" where there is only one.
        default_protocol: The one taken where none is named.
        id_of: Clip id of a video file's name, where that is not the name without its last suffix.
    """

    name: str
    description: str
    publisher: str
    protocols: Mapping[str, Protocol]
    default_protocol: str = ""
    id_of: Callable[[str], str] | None = None


def load_benchmark(
    benchmark: Benchmark,
    protocol_name: str,
    root: Path | None,
    *,
    annotations: Path | None = None,
    videos: Path | None = None,
    val_clips: int | None = None,
    val_seed: int = 0,
) -> Dataset:
    """Read the annotation files of one protocol and find its clips.

    Splits whose annotation files are missing are absent (see `Splits`); clips whose file is missing are listed.

    Raises:
        DatasetError: When no split is defined, a file is malformed, or not one clip is found.
    """
    title = f"{benchmark.name} {protocol_name}".strip()
    protocol = benchmark.protocols[protocol_name]
    where = places(benchmark.name, root, annotations, videos)
    found: dict[str, Annotated] = {}
    absent: dict[str, str] = {}
    used: dict[Path, None] = {}
    for name, choices in protocol.files.items():
        files = _first_complete(choices, where)
        if files is None:
            absent[name] = (
                f"{title}: no {name} split, because {_missing(choices, where)} cannot be found in "
                f"{listing(where.annotations)}; get it from {benchmark.publisher}, or say where it is with "
                "--annotations"
            )
        else:
            used |= dict.fromkeys(files.values())
            found[name] = protocol.read(name, files)
            _check_names(found[name], f"{title}: the {name} split")
    if not found:
        raise DatasetError(next(iter(absent.values())))

    listed = _list_videos(benchmark, where, found.values())
    splits = {name: build_split(title, name, split, listed.find) for name, split in found.items()}
    if not any(split.clips for split in splits.values()):
        n_clips = len({clip_id for split in found.values() for clip_id in split.clip_ids})
        raise DatasetError(
            f"{title}: not one of its {n_clips:,} clips is in {listing(where.videos)}; get them from "
            f"{benchmark.publisher}, or say where they are with --videos"
        )
    notes = [f"annotations: {listing([f'{file.name} (SHA-256 {sha256_file(file)[:12]})' for file in used])}"]
    for name, split in found.items():
        notes += [f"{name}: {note}" for note in (*split.notes, *_oddities(split, protocol.published.get(name)))]
    notes += [f"{name}: not one of its clips was found" for name, split in splits.items() if not split.clips]
    notes += absent.values()
    if "val" not in protocol.files and "train" in splits:
        splits, note = carve_val(splits, title, val_clips, protocol.val_clips, val_seed)
        notes.append(note)
    elif val_clips is not None:
        raise DatasetError(f"{title}: no validation clips can be carved here; leave val_clips out")
    return Dataset(benchmark.name, protocol_name, Splits(splits, absent), tuple(notes))


def _first_complete(choices: Sequence[Sequence[str]], where: Places) -> dict[str, Path] | None:
    for choice in choices:
        files = {name: path for name in choice if (path := where.find(name)) is not None}
        if len(files) == len(choice):
            return files
    return None


def _missing(choices: Sequence[Sequence[str]], where: Places) -> str:
    """The files to get, one way or another; ways that only ask for more than another one are left out."""
    ways = [[name for name in choice if where.find(name) is None] for choice in choices]
    shortest = [way for way in ways if not any(set(other) < set(way) for other in ways)]
    return ", or ".join(listing(way) for way in shortest)


def _check_names(split: Annotated, place: str) -> None:
    """Refuse ids that could name something outside the folder of clips."""
    for clip_id in split.clip_ids:
        if clip_id in ("", ".", "..") or set(clip_id) & set("/\\\0"):
            raise DatasetError(f"{place} names {shown(clip_id)}, which is not the name of a clip")


def _list_videos(benchmark: Benchmark, where: Places, splits: Iterable[Annotated]) -> VideoFiles:
    """The first folder's files that hold any clip of the dataset."""
    clip_ids = {clip_id for split in splits for clip_id in split.clip_ids}
    listed = VideoFiles(where.videos[0], benchmark.id_of)
    for folder in where.videos[1:]:
        if any(isinstance(listed.find(clip_id), Path) for clip_id in clip_ids):
            break
        listed = VideoFiles(folder, benchmark.id_of)
    return listed


def _oddities(split: Annotated, published: Counts | None) -> list[str]:
    """A note for each count that differs from the published one, and for what could not be used."""
    notes = []
    blank = sum(not sentence.strip() for _, sentence in split.captions)
    repeated = len(split.clip_ids) - len(set(split.clip_ids))
    if blank:
        notes.append(f"{blank:,} empty captions left out")
    if repeated:
        notes.append(f"{repeated:,} clips are listed more than once; each is taken once")
    if published is None:
        return notes
    counted = (
        ("clips", len(set(split.clip_ids)), published.clips),
        ("captions", len(split.captions), published.captions),
    )
    return notes + [
        f"{count:,} {what} in the annotation files, {known:,} published"
        for what, count, known in counted
        if known is not None and count != known
    ]
