"""The videos of somebody's own folder, and which of them a captions file means."""

from __future__ import annotations

import os
import re
import stat
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path, PurePosixPath, PureWindowsPath

from calmctl.data.annotations import CAPTIONS_SUFFIXES, SPLIT_NAMES, Captions, read_captions, read_lines, shown
from calmctl.data.benchmark import Annotated, Splits, build_split, carve_val
from calmctl.data.locate import VIDEO_SUFFIXES, Listing, Missing, listing, not_there, require_folder
from calmctl.data.packed import how_to_unpack, may_be_packed
from calmctl.errors import DatasetError
from calmctl.samples import Dataset, LeftOut, Split
from calmctl.words import counted, utf8_name

# How files of the common containers begin. Sound and pictures share some of them: their suffixes are believed.
_HEADS = (b"\x1aE\xdf\xa3", b"FLV\x01")  # Matroska and WebM, Flash
_BOXES = (b"ftyp", b"moov", b"mdat")  # MP4 and QuickTime, behind four bytes
_NO_VIDEOS = frozenset((".avif", ".cr3", ".heic", ".heif", ".m4a", ".m4b", ".mka", ".mks"))


class FolderClips:
    """Everything below a folder, by id: the path without the suffix, or with it where two would be equal.

    Attributes:
        ids: Of all files with a video suffix, in path order.
        unread: Folders that could not be read and links that were not followed, with reasons.
        renamed: What a captions file or a list called clips that were found under another suffix, {name: id}.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        listed = Listing(folder, follow_outside=False)
        # Captions files of programs hold absolute paths: by the folder's name, or by where it really lies.
        self._roots = {Path(root(folder)).as_posix(): None for root in (os.path.abspath, os.path.realpath)}
        self.unread = listed.unread
        self.renamed: dict[str, str] = {}
        videos = listed.videos
        # A stem that two files share is the id of neither.
        uses = Counter([*listed.files, *videos.values()])
        self.ids: list[str] = []
        self.others = [name for name in listed.files if name not in videos]
        self._files: dict[str, str | Missing] = {}
        self._named: list[tuple[str, str, bool]] = []
        for name, fault in listed.files.items():
            stem = videos.get(name)
            clip_id, unusable = utf8_name(stem if stem is not None and uses[stem] == 1 else name)
            reason = unusable or fault
            self._files[clip_id] = Missing(reason) if reason else name
            self._named.append((clip_id, name, stem is not None))
            if stem is not None:
                self.ids.append(clip_id)

    @cached_property
    def _names(self) -> tuple[dict[str, list[str]], ...]:
        """What a captions file may call a clip, from exact to loose: path, stem, name, bare name."""
        by_path, by_stem, by_name, by_bare_name = (defaultdict[str, list[str]](list) for _ in range(4))
        for clip_id, name, is_video in self._named:
            text = utf8_name(name)[0]
            by_path[text].append(clip_id)
            by_name[os.path.basename(text)].append(clip_id)
            if is_video:
                stem = utf8_name(os.path.splitext(name)[0])[0]
                by_stem[stem].append(clip_id)
                by_bare_name[os.path.basename(stem)].append(clip_id)
        return by_path, by_stem, by_name, by_bare_name

    @cached_property
    def _composed(self) -> tuple[dict[str, list[str]], ...]:
        # Composed and decomposed letters (macOS writes the latter) are one text to a person: looked up second.
        return tuple(_composed(names) for names in self._names)

    def find(self, clip_id: str) -> Path | Missing:
        """The file of a clip."""
        if clip_id in self._files:
            file = self._files[clip_id]
            return file if isinstance(file, Missing) else self._folder / file
        for place in self.unread:
            if clip_id.startswith(f"{place.id}/"):
                return Missing(f"below {place.id}, {place.reason}")
        return Missing(not_there(self.unread))

    def id_of(self, name: str, place: str) -> str:
        """Id of the clip that a captions file calls `name`.

        A name is a path below the folder, or only a file's name, with or without the suffix. One that fits
        nothing is its own id, which `find` then does not find.

        Raises:
            DatasetError: The name leads out of the folder, or fits several files.
        """
        return self._exact(name, place) or str(PurePosixPath(_forms(name)[-1]))

    def ids_of(self, names: Iterable[tuple[str, str]]) -> list[str]:
        """`id_of` every (name, place) of a file.

        A name whose file was encoded anew, with another suffix, means that file, unless the file goes by its own
        name as well.

        Raises:
            DatasetError: As `id_of`.
        """
        named = [(name, place, self._exact(name, place)) for name, place in names]
        own = {clip_id for _, _, clip_id in named if clip_id is not None}
        ids = []
        for name, place, clip_id in named:
            if clip_id is None:
                form = PurePosixPath(self._below(_forms(name)[-1]) or _forms(name)[-1])
                clip_id = str(form)
                if form.suffix.lower() in VIDEO_SUFFIXES:
                    stem = str(form.with_suffix(""))
                    _, by_stem, _, by_bare_name = self._names
                    twin = self._only(by_stem.get(stem) or by_bare_name.get(stem, []), name, place)
                    if twin is not None and twin not in own:
                        self.renamed[name] = clip_id = twin
            ids.append(clip_id)
        return ids

    def is_clip(self, name: str) -> bool:
        """Whether `name` means at least one file here."""
        return bool(self._fitting(name))

    def passed_over(self, read: Sequence[str] = ()) -> str | None:
        """A note on the files without a video suffix, by suffix, but for those in `read`; None where there is none."""
        others = [name for name in self.others if name not in read]
        if not others:
            return None
        suffixes = Counter(os.path.splitext(name)[1].lower() or "no suffix" for name in others).most_common()
        some = ", ".join(f"{suffix} {count:,}" for suffix, count in suffixes[:5]) + (", ..." if suffixes[5:] else "")
        were = "was" if len(others) == 1 else "were"
        return f"{counted(len(others), 'file')} without a video suffix {were} not taken ({some})"

    def no_video(self) -> str:
        """That there is none, with what may be the cause."""
        reasons = [f" ({place.id}: {place.reason})" for place in self.unread[:1]]
        over = self.passed_over()
        return "there is no video in it" + "".join(reasons) + (f" ({over})" if over else "") + self.packed()

    def packed(self) -> str:
        """What to do about archives in a folder without videos; "" where there are none."""
        archives = [self._folder / name for name in self.others if may_be_packed(os.path.basename(name))]
        if not archives:
            return ""
        name = self._folder.name  # "" of the current folder and of a disk's root
        out = self._folder.with_name(f"{name}-unpacked") if name else Path("unpacked")
        return f"; videos may be packed in {archives[0].name}: {how_to_unpack(archives, out)}"

    def unnamed_videos(self) -> list[LeftOut]:
        """Files that begin as videos do and have no video suffix."""
        return [
            LeftOut(utf8_name(name)[0], "a video by its content, without a video suffix: not taken; rename it")
            for name in self.others
            if os.path.splitext(name)[1].lower() not in _NO_VIDEOS and _begins_as_video(self._folder / name)
        ]

    def _exact(self, name: str, place: str) -> str | None:
        fitting = self._fitting(name)
        if fitting is None:
            raise DatasetError(f"{place}: {shown(name)} is not a path below {self._folder}")
        return self._only(fitting, name, place)

    def _fitting(self, name: str) -> list[str] | None:
        """The clips that `name` means: as it is written, then without blanks around it, then as a path of Windows.

        None where it leads out of the folder.
        """
        # All tables for one form before the next form: a file may really be called " lead.mp4".
        for form in _forms(name):
            path = self._below(form)
            if path is None:
                return None
            for tables, key in ((self._names, path), (self._composed, unicodedata.normalize("NFC", path))):
                for names in tables:
                    if key in names:
                        return names[key]
        return []

    def _only(self, fitting: list[str], name: str, place: str) -> str | None:
        if len(fitting) > 1:
            raise DatasetError(f"{place}: {shown(name)} fits {listing(fitting)}; name the path of one")
        return fitting[0] if fitting else None

    def _below(self, name: str) -> str | None:
        """`name` as a path below the folder, or None where it leads elsewhere."""
        path = PurePosixPath(name)
        if path.is_absolute():
            path = next((path.relative_to(root) for root in self._roots if path.is_relative_to(root)), path)
        # A drive, as in C:/videos; with backslashes it may still be the name of a file here.
        of_windows = "\\" not in name and PureWindowsPath(name).is_absolute()
        if path.is_absolute() or of_windows or ".." in path.parts or "\0" in name or not name.strip():
            return None
        return str(path)


def _forms(name: str) -> list[str]:
    """What a name may mean, the most exact first: a file's name may hold blanks at its ends, and backslashes."""
    return list(dict.fromkeys([name, name.strip(), name.strip().replace("\\", "/")]))


def _composed(names: dict[str, list[str]]) -> dict[str, list[str]]:
    composed: dict[str, list[str]] = defaultdict(list)
    for name, clip_ids in names.items():
        composed[unicodedata.normalize("NFC", name)] += clip_ids
    return composed


def _begins_as_video(path: Path) -> bool:
    """Whether a regular file begins like one of the common containers."""
    try:
        # Opening a pipe waits for whoever writes into it.
        if not stat.S_ISREG(os.stat(path).st_mode):
            return False
        with path.open("rb") as handle:
            head = handle.read(12)
    except OSError:
        return False  # told where it is named; nobody asked for this file
    return head.startswith(_HEADS) or head[4:8] in _BOXES or (head[:4] == b"RIFF" and head[8:] == b"AVI ")


# Any folder of videos, with or without captions.
#
#     folder/**/*.mp4 ...            the clips; a clip's id is its path without the suffix
#     folder/captions.csv            columns `video`, `caption`, and `split` if the folder has splits; or captions.tsv
#     folder/captions.json           {"video": "caption" or ["captions", ...]}, or a list of objects
#     folder/captions.jsonl          one object a line: {"video": ..., "caption": ..., "split": ...}; or .parquet
#     folder/train.txt, val.txt, test.txt    the splits as lists of videos, where no `split` is told
#
# A table of another name is read where it is the only one whose rows are captions of clips in the folder; others are
# named. Without any of these every clip belongs to the test split, captioned or not.


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
    files = _annotation_files(annotations or root or folder, clips)
    rows = files.captions.rows if files.captions else ()
    row_ids = clips.ids_of((row.video, row.place) for row in rows)
    captions = [(clip_id, sentence) for clip_id, row in zip(row_ids, rows, strict=True) for sentence in row.captions]
    members, no_split = _members(row_ids, files, clips)
    splits = {
        # Clips without a caption stay: they can be searched, and a test ranks them among its candidates.
        name: build_split(f"{folder}", name, Annotated(list(ids), captions), clips.find, need_captions=False)
        for name, ids in members.items()
    }
    _require_clips(folder, splits, files, clips)
    # All of these hold data that is lost, so `--strict` refuses them; notes tell what costs nothing.
    unread = (*clips.unread, *files.unread, *clips.unnamed_videos())
    read = [path.relative_to(folder).as_posix() for path in files.read if path.is_relative_to(folder)]
    notes = [*files.notes, *_counts(splits, clips, captions, read)]
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
class _AnnotationFiles:
    """The captions file and the lists of splits that belong to a folder of clips.

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


def _annotation_files(place: Path, clips: FolderClips) -> _AnnotationFiles:
    """Read the captions file of `place`, which is one, or a folder that holds one; find the lists of splits."""
    if os.path.isfile(place):
        given = read_captions(place, clips.is_clip)
        return _AnnotationFiles(given, {}, (place,), (f"captions: {place.name}", *given.notes), ())
    require_folder(place, "there is no such captions file or folder")
    # One that seems not to be there, a dangling link or in a folder that cannot be entered, says so when it is read.
    files = [path for path in sorted(place.iterdir()) if os.path.isfile(path) or not os.path.exists(path)]
    files = [path for path in files if not path.name.startswith(".")]
    lists = _lists(place, files)
    named = [path for path in files if path.stem.lower() == "captions" and path.suffix.lower() in CAPTIONS_SUFFIXES]
    if len(named) > 1:
        raise DatasetError(f"{place}: {listing([path.name for path in named])} are there; name one with --annotations")
    tables = [path for path in files if path not in named and _may_be_captions(path, clips)]
    fitting, other = _sort_tables(tables, clips)
    by_split = {} if named or len(fitting) < 2 else _one_a_split(fitting)
    # A guess is made only where there is nothing to choose: the wrong one of two tables would train without a fault.
    if not named and len(fitting) > 1 and not by_split:
        names = listing([path.name for path in fitting])
        raise DatasetError(f"{place}: {names} all hold captions; name one with --annotations, or make one file of them")
    chosen = named[0] if named else next(iter(fitting), None)
    captions = None if chosen is None else fitting.get(chosen) or read_captions(chosen, clips.is_clip)
    if by_split:
        captions = _joined(by_split)
    lost = [
        LeftOut(path.name, f"captions that are not read: {chosen.name} is; name one file with --annotations")
        for path in fitting
        if chosen is not None and path != chosen and not by_split
    ]
    sources = listing([path.name for path in fitting]) if by_split else chosen.name if chosen else "none"
    notes = [f"captions: {sources}", *(captions.notes if captions else ())]
    if lists and captions is not None and any(row.split for row in captions.rows):
        names = listing([path.name for path in lists.values()])
        notes.append(f"{names} not read: the column split of the captions file tells the splits")
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
    lost += [
        LeftOut(path.name, "captions of a kind that is not read; save them as .csv, .tsv, .json or .jsonl")
        for path in files
        if chosen is None
        and path.name.lower().startswith(("captions.", "metadata."))
        and not _is_table(path.name)
        and path.suffix.lower() not in VIDEO_SUFFIXES
    ]
    read = (*lists.values(), *(fitting if by_split else [chosen] if chosen else ()))
    return _AnnotationFiles(captions, lists, read, tuple(notes), tuple(lost))


_LATER_SHARD = re.compile(r"-(?!00000)\d{5}-of-\d{5}\.parquet\Z")
_SPLIT_WORD = re.compile(r"([a-z]+)\d*k?")


def _one_a_split(tables: dict[Path, Captions]) -> dict[str, Captions]:
    """Tables by the split that their names end in or hold as a word; nothing unless each has another one."""
    by_split: dict[str, Captions] = {}
    for path, captions in tables.items():
        words = (_SPLIT_WORD.fullmatch(word) for word in re.split(r"[-_. ]", path.stem.lower()))
        splits = {SPLIT_NAMES[word[1]] for word in words if word and word[1] in SPLIT_NAMES}
        if len(splits) != 1 or (split := splits.pop()) in by_split:
            return {}
        if any(row.split not in (None, split) for row in captions.rows):
            raise DatasetError(f"{path}: its name says {split}, and rows in it another split; rename it or the split")
        by_split[split] = captions
    return by_split


def _joined(tables: dict[str, Captions]) -> Captions:
    """One table of several, each row in the split that its file is of."""
    rows = (replace(row, split=split) for split, captions in tables.items() for row in captions.rows)
    notes = dict.fromkeys(note for captions in tables.values() for note in captions.notes)
    return Captions(tuple(rows), tuple(notes))


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
    if _LATER_SHARD.search(path.name):  # read with the first one
        return False
    return path.suffix.lower() in CAPTIONS_SUFFIXES or path.name.lower() == "captions.txt"


def _may_be_captions(path: Path, clips: FolderClips) -> bool:
    """Whether a file of another name is a table, and not what some program wrote beside one clip (clip.info.json)."""
    head = path.name.split(".")
    return _is_table(path.name) and not any(clips.is_clip(".".join(head[:n])) for n in range(1, len(head)))


def _sort_tables(tables: list[Path], clips: FolderClips) -> tuple[dict[Path, Captions], dict[Path, str]]:
    """The tables that hold captions of clips in the folder, and the others with the reason why they do not."""
    fitting: dict[Path, Captions] = {}
    other = dict.fromkeys(
        tables[_MOST_TABLES:], f"there are more than {_MOST_TABLES} tables; name one with --annotations"
    )
    # Its rows decide, not its name: a metadata.csv may hold captions, or anything else.
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


def _members(
    row_ids: list[str], files: _AnnotationFiles, clips: FolderClips
) -> tuple[dict[str, dict[str, None]], str | None]:
    """Clip ids of every split; where none is for training, also why, and what to do about it.

    Raises:
        DatasetError: When a row tells no split beside others that do, or a clip is in two splits.
    """
    rows = files.captions.rows if files.captions else ()
    if any(row.split for row in rows):
        memberships = [(clip_id, row.split, row.place) for clip_id, row in zip(row_ids, rows, strict=True)]
    elif files.lists:
        listed = [
            (line, split, f"{path}:{number}")
            for split, path in files.lists.items()
            for number, line in read_lines(path)
        ]
        ids = clips.ids_of((line, place) for line, _, place in listed)
        memberships = [(clip_id, split, place) for clip_id, (_, split, place) in zip(ids, listed, strict=True)]
    else:
        if files.captions is None:
            why = "no captions file: enough to search, not to train; write captions.csv (video,caption,split) into it"
        else:
            why = (
                "nothing tells which clips to train on: enough to search and to evaluate, not to train; add a column "
                "split to the captions file, or train.txt and test.txt"
            )
        # Nobody trains by accident on what nobody has split.
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


def _require_clips(folder: Path, splits: dict[str, Split], files: _AnnotationFiles, clips: FolderClips) -> None:
    """Raise `DatasetError` where there is no clip to use, with the first reason why."""
    if any(split.clips for split in splits.values()):
        return
    left_out = next((split.left_out[0] for split in splits.values() if split.left_out), None)
    named = f" that {listing([path.name for path in files.read])} names" if files.read else ""
    first = f" (first of those named: {shown(left_out.id)}: {left_out.reason})" if left_out else ""
    raise DatasetError(f"{folder}: there is no video in it{named}{first}{clips.packed()}")


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
