"""Any folder of videos, with or without captions.

    folder/**/*.mp4 ...            the clips; a clip's id is its path without the suffix
    folder/captions.csv            columns `video`, `caption`, and `split` if the folder has splits; or captions.tsv
    folder/captions.json           {"video": "caption" or ["captions", ...]}, or a list of objects
    folder/captions.jsonl          one object a line: {"video": ..., "caption": ..., "split": ...}
    folder/train.txt, val.txt, test.txt    the splits as lists of videos, where no `split` is told

A table of another name is read where it is the only one whose rows are captions of clips in the folder; others are
named. Without any of these every clip belongs to the test split, captioned or not.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from calmctl.counting import counted
from calmctl.data.captions_file import CAPTIONS_SUFFIXES, SPLIT_NAMES, Captions, read_captions
from calmctl.data.folder_clips import FolderClips
from calmctl.data.layout import listing, require_folder
from calmctl.data.samples import Dataset, LeftOut, Split
from calmctl.data.splits import Annotated, Splits, build_split, carve_val
from calmctl.data.textfiles import read_lines, shown
from calmctl.errors import DatasetError

_VAL_CLIPS = 500
_MOST_TABLES = 20
"""Tables of other names that are looked into (our choice): more of them are no captions of a folder."""


def load_folder(
    root: Path | None,
    *,
    annotations: Path | None = None,
    videos: Path | None = None,
    val_clips: int | None = None,
    val_seed: int = 0,
) -> Dataset:
    """Read a folder of videos.

    Args:
        root: The folder, with the captions file in it.
        annotations: The captions file, or the folder that holds it, where that is not `root`.
        videos: The folder of videos, where that is not `root`.
        val_clips: Clips to carve from train where there is a train split and no val split; None for a tenth,
            at most 500; 0 for none.
        val_seed: Seed of that list.

    Raises:
        DatasetError: When there is no video, or the captions file is malformed or names a path outside.
    """
    folder = videos or root
    if folder is None:
        raise DatasetError("folder: name one with videos in it")
    require_folder(folder)
    clips = FolderClips(folder)
    beside = _annotation_files(annotations or root or folder, clips)
    rows = beside.captions.rows if beside.captions else ()
    row_ids = clips.ids_of((row.video, row.place) for row in rows)
    captions = [(clip_id, sentence) for clip_id, row in zip(row_ids, rows, strict=True) for sentence in row.captions]
    members, no_split = _members(row_ids, beside, clips)
    splits = {
        name: build_split(f"{folder}", name, Annotated(list(ids), captions), clips.find, need_captions=False)
        for name, ids in members.items()
    }
    _require_clips(folder, splits, beside)
    unread = (*clips.unread, *beside.unread, *clips.unnamed_videos())
    read = [path.relative_to(folder).as_posix() for path in beside.read if path.is_relative_to(folder)]
    notes = [*beside.notes, *_counts(splits, clips, captions, read)]
    if "train" in splits and "val" not in splits:
        splits, note = carve_val(splits, str(folder), val_clips, _VAL_CLIPS, val_seed)
        notes.append(note)
    elif val_clips is not None and "val" in splits:
        raise DatasetError(f"{folder}: no validation clips can be carved, it has a val split; leave val_clips out")
    if no_split:
        notes.append(no_split)
    lacking = [name for name in ("train", "val") if no_split and name not in splits]
    absent = {name: f"{folder}: there is no {name} split: {no_split}" for name in lacking}
    return Dataset("folder", "", Splits(splits, absent), tuple(notes), unread)


@dataclass(frozen=True, slots=True)
class _Beside:
    """What lies beside the clips.

    Attributes:
        captions: The captions file; None where there is none.
        lists: The list file of each split.
        read: All of these files.
        notes: Which captions file it is, and what is about it.
        unread: Tables whose captions were not read, with reasons.
    """

    captions: Captions | None
    lists: dict[str, Path]
    read: tuple[Path, ...]
    notes: tuple[str, ...]
    unread: tuple[LeftOut, ...]


def _annotation_files(place: Path, clips: FolderClips) -> _Beside:
    """Read the captions file of `place`, which is one, or a folder that holds one; find the lists of splits."""
    if os.path.isfile(place):
        given = read_captions(place, clips.is_clip)
        return _Beside(given, {}, (place,), (f"captions: {place.name}", *given.notes), ())
    require_folder(place, "there is no such captions file or folder")
    # One that seems not to be there, a dangling link or in a folder that cannot be entered, says so when it is read.
    files = [path for path in sorted(place.iterdir()) if os.path.isfile(path) or not os.path.exists(path)]
    files = [path for path in files if not path.name.startswith(".")]
    lists = _lists(place, files)
    named = [path for path in files if path.stem.lower() == "captions" and path.suffix.lower() in CAPTIONS_SUFFIXES]
    if len(named) > 1:
        raise DatasetError(f"{place}: {listing([path.name for path in named])} are there; name one with --annotations")
    tables = [path for path in files if path not in named and _may_be_captions(path, clips)]
    fitting, other = _looked_into(tables, clips)
    if not named and len(fitting) > 1:
        names = listing([path.name for path in fitting])
        raise DatasetError(f"{place}: {names} all hold captions; name one with --annotations, or make one file of them")
    chosen = named[0] if named else next(iter(fitting), None)
    captions = None if chosen is None else fitting.get(chosen) or read_captions(chosen, clips.is_clip)
    lost = [
        LeftOut(path.name, f"captions that are not read: {chosen.name} is; name one file with --annotations")
        for path in fitting
        if chosen is not None and path != chosen
    ]
    notes = [f"captions: {chosen.name if chosen else 'none'}", *(captions.notes if captions else ())]
    for path, reason in other.items():
        if chosen is None:
            lost.append(LeftOut(path.name, f"a table that is not read: {reason}"))
        else:
            notes.append(f"{path.name} is not read: {reason}")
    lost += [
        LeftOut(name, "a captions file below the folder is not read; name it with --annotations, or move it up")
        for name in clips.others
        if "/" in name and PurePosixPath(name).stem.lower() in ("captions", "metadata") and _is_table(name)
    ]
    read = (*lists.values(), *([chosen] if chosen else ()))
    return _Beside(captions, lists, read, tuple(notes), tuple(lost))


def _lists(place: Path, files: list[Path]) -> dict[str, Path]:
    lists: dict[str, Path] = {}
    for path in files:
        split = SPLIT_NAMES.get(path.stem.lower()) if path.suffix.lower() == ".txt" else None
        if split is not None:
            if split in lists:
                raise DatasetError(
                    f"{place}: {lists[split].name} and {path.name} both list the {split} split; keep one"
                )
            lists[split] = path
    return {split: lists[split] for split in ("train", "val", "test") if split in lists}


def _is_table(name: str) -> bool:
    path = PurePosixPath(name)
    return path.suffix.lower() in CAPTIONS_SUFFIXES or path.name.lower() == "captions.txt"


def _may_be_captions(path: Path, clips: FolderClips) -> bool:
    """Whether a file of another name is a table, and not what some program wrote beside one clip (clip.info.json)."""
    head = path.name.split(".")
    return _is_table(path.name) and not any(clips.is_clip(".".join(head[:n])) for n in range(1, len(head)))


def _looked_into(tables: list[Path], clips: FolderClips) -> tuple[dict[Path, Captions], dict[Path, str]]:
    """The tables that hold captions of clips in the folder, and the others with the reason why they do not."""
    fitting: dict[Path, Captions] = {}
    other = dict.fromkeys(
        tables[_MOST_TABLES:], f"there are more than {_MOST_TABLES} tables; name one with --annotations"
    )
    for path in tables[:_MOST_TABLES]:
        try:
            captions = read_captions(path, clips.is_clip)
        except DatasetError as fault:
            other[path] = str(fault).removeprefix(f"{path}: ")
            continue
        if any(clips.is_clip(row.video) for row in captions.rows):
            fitting[path] = captions
        else:
            other[path] = "no row of it names a clip that is here"
    return fitting, other


def _members(row_ids: list[str], beside: _Beside, clips: FolderClips) -> tuple[dict[str, dict[str, None]], str | None]:
    """Clip ids of every split; where none is for training, also why, and what to do about it.

    Raises:
        DatasetError: When a row tells no split beside others that do, or a clip is in two splits.
    """
    rows = beside.captions.rows if beside.captions else ()
    if any(row.split for row in rows):
        memberships = [(clip_id, row.split, row.place) for clip_id, row in zip(row_ids, rows, strict=True)]
    elif beside.lists:
        listed = [
            (line, split, f"{path}:{number}")
            for split, path in beside.lists.items()
            for number, line in read_lines(path)
        ]
        ids = clips.ids_of((line, place) for line, _, place in listed)
        memberships = [(clip_id, split, place) for clip_id, (_, split, place) in zip(ids, listed, strict=True)]
    else:
        if beside.captions is None:
            why = "no captions file: enough to search, not to train; write captions.csv (video,caption,split) into it"
        else:
            why = (
                "nothing tells which clips to train on: enough to search and to evaluate, not to train; add a column "
                "split to the captions file, or train.txt and test.txt"
            )
        return {"test": dict.fromkeys([*clips.ids, *row_ids])}, why
    splits: dict[str, dict[str, None]] = {}
    split_of: dict[str, str] = {}
    for clip_id, split, place in memberships:
        if split is None:
            raise DatasetError(f"{place}: no split, although other rows have one")
        if split_of.setdefault(clip_id, split) != split:
            raise DatasetError(f"{place}: {shown(clip_id)} is in {split} and in {split_of[clip_id]}; choose one")
        splits.setdefault(split, {})[clip_id] = None
    if "train" in splits:
        return splits, None
    return splits, "no clip is said to be in train: enough to search and to evaluate, not to train"


def _require_clips(folder: Path, splits: dict[str, Split], beside: _Beside) -> None:
    """Raise `DatasetError` where there is no clip to use, with the first reason why."""
    if any(split.clips for split in splits.values()):
        return
    left_out = next((split.left_out[0] for split in splits.values() if split.left_out), None)
    named = f" that {listing([path.name for path in beside.read])} names" if beside.read else ""
    first = f" (first of those named: {left_out.id}: {left_out.reason})" if left_out else ""
    raise DatasetError(f"{folder}: there is no video in it{named}{first}")


def _counts(
    splits: dict[str, Split], clips: FolderClips, captions: list[tuple[str, str]], read: list[str]
) -> list[str]:
    """Notes on what there is without being used."""
    notes = []
    members = {clip.id for split in splits.values() for clip in split.clips}
    known = members | {clip.id for split in splits.values() for clip in split.left_out}
    bare = sum(len(split.clips) - len(set(split.owners)) for split in splits.values())
    outside = [clip_id for clip_id in clips.ids if clip_id not in members and isinstance(clips.find(clip_id), Path)]
    astray = sum(clip_id not in known for clip_id, _ in captions)
    blank = sum(not sentence.strip() for _, sentence in captions)
    if captions and bare:
        notes.append(f"{counted(bare, 'clip')} {'has' if bare == 1 else 'have'} no caption")
    if blank:
        notes.append(f"{counted(blank, 'empty caption')} left out")
    if outside:
        notes.append(
            f"{counted(len(outside), 'video')} of the folder {'is' if len(outside) == 1 else 'are'} in no split"
        )
    if astray:
        notes.append(f"{counted(astray, 'caption')} left out: of videos in no split")
    if clips.renamed:
        name, clip_id = next(iter(clips.renamed.items()))
        notes.append(
            f"{counted(len(clips.renamed), 'video')} found under another suffix (first: {shown(name)} is "
            f"{shown(clip_id)})"
        )
    if passed_over := clips.passed_over(read):
        notes.append(passed_over)
    return notes
