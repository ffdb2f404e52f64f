"""The videos of somebody's own folder, and which of them a captions file means."""

from __future__ import annotations

import os
import stat
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath

from calmctl.counting import counted, utf8_name
from calmctl.data.layout import VIDEO_SUFFIXES, Listing, listing, not_there
from calmctl.data.samples import LeftOut
from calmctl.data.textfiles import shown
from calmctl.errors import DatasetError

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
        listed = Listing(folder, leave=False)
        self._roots = {Path(root(folder)).as_posix(): None for root in (os.path.abspath, os.path.realpath)}
        self.unread = listed.unread
        self.renamed: dict[str, str] = {}
        found = {Path(os.path.relpath(path, folder)).as_posix(): fault for path, fault in listed.files.items()}
        videos = {name for name in found if os.path.splitext(name)[1].lower() in VIDEO_SUFFIXES}
        uses = Counter([*found, *(os.path.splitext(name)[0] for name in videos)])
        self.ids: list[str] = []
        self.others = [name for name in found if name not in videos]
        self._found: dict[str, Path | str] = {}
        # What a captions file may call a clip, from exact to loose.
        by_path: dict[str, list[str]] = defaultdict(list)
        self._by_stem: dict[str, list[str]] = defaultdict(list)
        by_name: dict[str, list[str]] = defaultdict(list)
        self._by_bare_name: dict[str, list[str]] = defaultdict(list)
        for name, fault in found.items():
            stem = os.path.splitext(name)[0]
            is_video = name in videos
            clip_id, unusable = utf8_name(stem if is_video and uses[stem] == 1 else name)
            self._found[clip_id] = unusable or fault or folder / name
            text, stem = utf8_name(name)[0], utf8_name(stem)[0]
            by_path[text].append(clip_id)
            by_name[os.path.basename(text)].append(clip_id)
            if is_video:
                self.ids.append(clip_id)
                self._by_stem[stem].append(clip_id)
                self._by_bare_name[os.path.basename(stem)].append(clip_id)
        self._names = (by_path, self._by_stem, by_name, self._by_bare_name)
        # Composed and decomposed letters (macOS writes the latter) are one text to a person: looked up second.
        self._composed = tuple(_composed(names) for names in self._names)

    def find(self, clip_id: str) -> Path | str:
        """The file of a clip, or the reason why there is none."""
        if clip_id in self._found:
            return self._found[clip_id]
        for place in self.unread:
            if clip_id.startswith(f"{place.id}/"):
                return f"below {place.id}, {place.reason}"
        return not_there(self.unread)

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
                    twin = self._only(self._by_stem.get(stem) or self._by_bare_name.get(stem, []), name, place)
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
        told = [f" ({each.id}: {each.reason})" for each in self.unread[:1]]
        over = self.passed_over()
        return "there is no video in it" + "".join(told) + (f" ({over})" if over else "")

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
        if not stat.S_ISREG(os.stat(path).st_mode):
            return False
        with path.open("rb") as handle:
            head = handle.read(12)
    except OSError:
        return False  # told where it is named; nobody asked for this file
    return head.startswith(_HEADS) or head[4:8] in _BOXES or (head[:4] == b"RIFF" and head[8:] == b"AVI ")
