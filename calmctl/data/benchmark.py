"""What the published datasets have in common: which files define a split, who has them, and how large it is."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from calmctl.data.layout import Places, VideoFiles, listing, places
from calmctl.data.samples import Dataset
from calmctl.data.splits import Annotated, Splits, build_split, carve_val, split_digest
from calmctl.data.textfiles import shown
from calmctl.errors import DatasetError
from calmctl.files import sha256_file


@dataclass(frozen=True, slots=True)
class Published:
    """What is known of a published split.

    Attributes:
        clips: How many; None where no count is known.
        captions: How many; None where no count is known.
        sha256: `split_digest` of it, where the real annotation files were at hand.
    """

    clips: int | None
    captions: int | None
    sha256: str | None = None


@dataclass(frozen=True, slots=True)
class Protocol:
    """One published way to split a dataset.

    Attributes:
        files: For each split the sets of annotation files that define it; the first complete set is read.
        read: Reads a split's files, given as {name: path}.
        published: Published sizes and digests of splits.
        val_clips: How many clips to carve from train for validation, where no file defines such a split.
    """

    files: Mapping[str, Sequence[Sequence[str]]]
    read: Callable[[str, Mapping[str, Path]], Annotated]
    published: Mapping[str, Published]
    val_clips: int = 0


@dataclass(frozen=True, slots=True)
class Benchmark:
    """A published dataset.

    Attributes:
        name: As on the command line.
        description: One line.
        owners: Who gives out each annotation file, in words; "clips" for the clips.
        clip_names: How a clip's file is found, in words.
        protocols: By name; "" where there is only one.
        default_protocol: The one taken where none is named.
        id_of: Clip id of a video file's name, where that is not the name without its last suffix.
    """

    name: str
    description: str
    owners: Mapping[str, str]
    clip_names: str
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
        files = first_complete(choices, where)
        if files is None:
            ways = missing_ways(choices, where)
            owners = dict.fromkeys(benchmark.owners[file] for way in ways for file in way)
            absent[name] = (
                f"{title}: no {name} split, because {', or '.join(map(listing, ways))} cannot be found in "
                f"{listing(where.annotations)}; get it from {', or '.join(owners)}, or say where it is with "
                "--annotations"
            )
        else:
            used |= dict.fromkeys(files.values())
            found[name] = protocol.read(name, files)
            check_names(found[name], f"{title}: the {name} split")
    if not found:
        raise DatasetError(next(iter(absent.values())))

    listed = list_videos(benchmark, where, found.values())
    splits = {
        name: replace(build_split(title, name, split, listed.find), differs=_differences(name, split, protocol))
        for name, split in found.items()
    }
    if not any(split.clips for split in splits.values()):
        n_clips = len({clip_id for split in found.values() for clip_id in split.clip_ids})
        raise DatasetError(
            f"{title}: not one of its {n_clips:,} clips is in {listing(where.videos)}; get them from "
            f"{benchmark.owners['clips']}, or say where they are with --videos"
        )
    notes = [f"annotations: {listing([f'{file.name} (SHA-256 {sha256_file(file)[:12]})' for file in used])}"]
    for name, split in found.items():
        notes += [f"{name}: {note}" for note in (*split.notes, *_oddities(split), *splits[name].differs)]
    notes += [f"{name}: not one of its clips was found" for name, split in splits.items() if not split.clips]
    notes += absent.values()
    if "val" not in protocol.files and "train" in splits:
        splits, note = carve_val(splits, title, val_clips, protocol.val_clips, val_seed)
        notes.append(note)
    elif val_clips is not None and "val" in protocol.files:
        raise DatasetError(f"{title}: no validation clips can be carved, it has a val split; leave val_clips out")
    if "val" not in protocol.files and "train" in absent:
        absent["val"] = absent["train"]
    return Dataset(benchmark.name, protocol_name, Splits(splits, absent), tuple(notes), listed.unread)


def first_complete(choices: Sequence[Sequence[str]], where: Places) -> dict[str, Path] | None:
    """The first set of annotation files that is there, {name: path}."""
    for choice in choices:
        files = {name: path for name in choice if (path := where.find(name)) is not None}
        if len(files) == len(choice):
            return files
    return None


def missing_ways(choices: Sequence[Sequence[str]], where: Places) -> list[list[str]]:
    """The files to get, one way or another; ways that only ask for more than another one are left out."""
    ways = [[name for name in choice if where.find(name) is None] for choice in choices]
    return [way for way in ways if not any(set(other) < set(way) for other in ways)]


def check_names(split: Annotated, place: str) -> None:
    """Refuse ids that could name something outside the folder of clips."""
    for clip_id in split.clip_ids:
        if clip_id in ("", ".", "..") or set(clip_id) & set("/\\\0"):
            raise DatasetError(f"{place} names {shown(clip_id)}, which is not the name of a clip")


def list_videos(benchmark: Benchmark, where: Places, splits: Iterable[Annotated]) -> VideoFiles:
    """The first folder's files that hold any clip of the dataset."""
    clip_ids = {clip_id for split in splits for clip_id in split.clip_ids}
    listed = VideoFiles(where.videos[0], benchmark.id_of)
    for folder in where.videos[1:]:
        if any(isinstance(listed.find(clip_id), Path) for clip_id in clip_ids):
            break
        listed = VideoFiles(folder, benchmark.id_of)
    return listed


def _differences(name: str, split: Annotated, protocol: Protocol) -> tuple[str, ...]:
    published = protocol.published.get(name)
    return () if published is None else tuple(differences(split, published))


def _oddities(split: Annotated) -> list[str]:
    """A note for what could not be used."""
    notes = []
    blank = sum(not sentence.strip() for _, sentence in split.captions)
    repeated = len(split.clip_ids) - len(set(split.clip_ids))
    if blank:
        notes.append(f"{blank:,} empty captions left out")
    if repeated:
        notes.append(f"{repeated:,} clips are listed more than once; each is taken once")
    return notes


def differences(split: Annotated, published: Published) -> list[str]:
    """In what a split that was read is not the published one; nothing where it is, as far as that is known."""
    counted = (
        ("clips", len(set(split.clip_ids)), published.clips),
        ("captions", len(split.captions), published.captions),
    )
    differing = [
        f"{count:,} {what} in the annotation files, {known:,} published"
        for what, count, known in counted
        if known is not None and count != known
    ]
    if not differing and published.sha256 not in (None, split_digest(split)):
        differing.append("as many clips and captions as published, but not the same ones (their digest differs)")
    return differing
