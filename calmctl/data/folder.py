"""Any folder of videos, with or without captions.

    folder/**/*.mp4 ...            the clips; a clip's id is its path without the suffix
    folder/captions.csv            columns `video`, `caption`, and `split` if the folder has splits
    folder/captions.json           {"video": "caption" or ["captions", ...]}, or a list of objects
    folder/captions.jsonl          one object a line: {"video": ..., "caption": ..., "split": ...}
    folder/train.txt, val.txt, test.txt    the splits as lists of videos, where no `split` is told

Without any of the last four every clip belongs to the test split, captioned or not.
"""

from __future__ import annotations

from pathlib import Path

from calmctl.data.captions_file import CaptionRow, read_captions
from calmctl.data.folder_clips import FolderClips
from calmctl.data.layout import listing
from calmctl.data.samples import Dataset, Split
from calmctl.data.splits import Annotated, Splits, build_split, carve_val
from calmctl.data.textfiles import read_lines, shown
from calmctl.errors import DatasetError

_CAPTIONS_FILES = ("captions.csv", "captions.json", "captions.jsonl")
_VAL_CLIPS = 500


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
    if folder is None or not folder.is_dir():
        raise DatasetError(f"{folder or 'folder'}: not a folder; name one with videos in it")
    captions_file, lists = _annotation_files(annotations or root or folder)
    clips = FolderClips(folder)
    rows = read_captions(captions_file) if captions_file else []
    named = [(clips.id_of(row.video, row.place), row) for row in rows]
    captions = [(clip_id, sentence) for clip_id, row in named for sentence in row.captions]
    splits = {
        name: build_split(f"{folder}", name, Annotated(list(members), captions), clips.find, need_captions=False)
        for name, members in _members(named, lists, clips).items()
    }
    if not any(split.clips for split in splits.values()):
        raise DatasetError(f"{folder}: there is no video in it" + (f" that {captions_file} names" if rows else ""))
    notes = [f"captions: {captions_file.name if captions_file else 'none'}", *_unused(splits, clips, bool(rows))]
    if "train" in splits and "val" not in splits:
        splits, note = carve_val(splits, str(folder), val_clips, _VAL_CLIPS, val_seed)
        notes.append(note)
    elif val_clips is not None:
        raise DatasetError(f"{folder}: no validation clips can be carved here; leave val_clips out")
    return Dataset("folder", "", Splits(splits, {}), tuple(notes))


def _annotation_files(place: Path) -> tuple[Path | None, dict[str, Path]]:
    """The captions file, and the list file of each split."""
    if place.is_file():
        return place, {}
    found = [place / name for name in _CAPTIONS_FILES if (place / name).is_file()]
    if len(found) > 1:
        raise DatasetError(f"{place}: {listing([path.name for path in found])} are there; name one with --annotations")
    if not place.is_dir():
        raise DatasetError(f"{place}: there is no such captions file or folder")
    lists = {split: place / f"{split}.txt" for split in ("train", "val", "test")}
    return (found[0] if found else None), {split: path for split, path in lists.items() if path.is_file()}


def _members(
    named: list[tuple[str, CaptionRow]], lists: dict[str, Path], clips: FolderClips
) -> dict[str, dict[str, None]]:
    """Clip ids of every split.

    Raises:
        DatasetError: When a row tells no split beside others that do, or a clip is in two splits.
    """
    if any(row.split for _, row in named):
        memberships = [(clip_id, row.split, row.place) for clip_id, row in named]
    elif lists:
        memberships = [
            (clips.id_of(line.strip(), f"{path}:{number}"), split, f"{path}:{number}")
            for split, path in lists.items()
            for number, line in read_lines(path)
        ]
    else:
        return {"test": dict.fromkeys([*clips.ids, *(clip_id for clip_id, _ in named)])}
    splits: dict[str, dict[str, None]] = {}
    split_of: dict[str, str] = {}
    for clip_id, split, place in memberships:
        if split is None:
            raise DatasetError(f"{place}: no split, although other rows have one")
        if split_of.setdefault(clip_id, split) != split:
            raise DatasetError(f"{place}: {shown(clip_id)} is in {split} and in {split_of[clip_id]}; choose one")
        splits.setdefault(split, {})[clip_id] = None
    return splits


def _unused(splits: dict[str, Split], clips: FolderClips, have_captions: bool) -> list[str]:
    """Notes on clips without captions, videos in no split and files that are no videos."""
    notes = []
    members = {clip.id for split in splits.values() for clip in split.clips}
    bare = sum(len(split.clips) - len(set(split.owners)) for split in splits.values())
    outside = [clip_id for clip_id in clips.ids if clip_id not in members and isinstance(clips.find(clip_id), Path)]
    if have_captions and bare:
        notes.append(f"{bare:,} clips have no caption")
    if outside:
        notes.append(f"{len(outside):,} videos of the folder are in no split")
    if clips.ignored:
        notes.append(f"{clips.ignored:,} files without a video suffix were not taken")
    return notes
