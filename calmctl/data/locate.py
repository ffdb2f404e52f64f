"""Where a dataset's files are: annotation files by name, clips by id.

Nothing here joins a name from an annotation file to a path. Folders are listed, and what an annotation names
is looked up in the listing, so no annotation can reach outside them.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from calmctl.errors import DatasetError
from calmctl.samples import LeftOut
from calmctl.words import counted, utf8_name

# fmt: off
# The containers that are read, by every suffix in use. What is not here is no clip: before .qt, .divx and their like
# were, searches passed such videos over in silence.
VIDEO_SUFFIXES = frozenset((
    ".3g2", ".3gp", ".asf", ".avi", ".divx", ".dv", ".f4v", ".flv", ".gif", ".m1v", ".m2ts", ".m2v", ".m4v", ".mkv",
    ".mov", ".mp4", ".mpe", ".mpeg", ".mpg", ".mts", ".mxf", ".ogm", ".ogv", ".qt", ".ts", ".vob", ".webm", ".wmv",
))
# fmt: on


@dataclass(frozen=True, slots=True)
class Places:
    """Folders in which one dataset's files are looked for, first match first.

    Attributes:
        annotations: For annotation files.
        videos: For clips; each is searched with everything below it.
    """

    annotations: tuple[Path, ...]
    videos: tuple[Path, ...]

    def find(self, name: str) -> Path | None:
        """The first annotation file of that name, or that a pattern such as data/val-*.parquet fits."""
        # Joined only here: the name is one that a declaration has, and none that a file says.
        for folder in self.annotations:
            fitting = sorted(folder.glob(name)) if "*" in name else [folder / name]
            if path := next(filter(os.path.isfile, fitting), None):
                return path
        return None


def places(name: str, root: Path | None, annotations: Path | None, videos: Path | None) -> Places:
    """The folders to look in for the dataset `name`.

    Raises:
        DatasetError: When a folder that was given is none, or neither root nor the two others were given.
    """
    for what, folder in (("--root", root), ("--annotations", annotations), ("--videos", videos)):
        if folder is not None and not os.path.isdir(folder):
            raise DatasetError(
                f"{name}: {what} {folder} is not a folder; put the annotation files and clips of {name} there, or "
                "name where they are (in a recipe: data.root, data.annotations, data.videos; see docs/data.md)"
            )
        if folder is not None:
            require_folder(folder)
    if root is None and (annotations is None or videos is None):
        raise DatasetError(f"{name}: say where its files are with --root, or with --annotations and --videos")
    return Places(_existing(annotations, root, name, "annotations"), _existing(videos, root, name, "videos"))


def _existing(given: Path | None, root: Path | None, name: str, kind: str) -> tuple[Path, ...]:
    if given is not None:
        folders = [given / name, given]
    else:
        assert root is not None
        folders = [root / below for below in candidates(kind, name)]
    return tuple(folder for folder in folders if os.path.isdir(folder))


def candidates(kind: str, name: str) -> list[str]:
    """Folders below a root that may hold the "annotations" or "videos" of the dataset `name`, the best first."""
    return [f"{kind}/{name}", f"{name}/{kind}", name, kind, "."]


@dataclass(frozen=True, slots=True)
class Missing:
    """What stands for the file of a clip that has none."""

    reason: str


class VideoFiles:
    """Every file below a folder, by id.

    A file answers to its whole name and to its name without the last suffix, so that ids with dots work with
    and without a suffix; or, where `id_of` is given, to what that makes of its name. Where several files
    answer to one id, one with a video suffix comes first, then the first in path order. Links to folders
    elsewhere are followed: only published names are looked up here.

    Attributes:
        folder: What was listed.
        unread: Folders below it that could not be read, with reasons.
    """

    def __init__(self, folder: Path, id_of: Callable[[str], str] | None = None) -> None:
        self.folder = folder
        self._files: dict[str, tuple[bool, str]] = {}
        self._faults: dict[str, str] = {}
        listed = Listing(folder, follow_outside=True)
        self.unread = listed.unread
        for below, fault in listed.files.items():
            path = os.path.join(folder, below)
            name = os.path.basename(path)
            stem, suffix = os.path.splitext(name)
            for key in {id_of(name)} if id_of else {name, stem}:
                if fault:
                    self._faults.setdefault(key, fault)
                    continue
                candidate = (suffix.lower() not in VIDEO_SUFFIXES, path)
                # False is less than True: a video suffix wins, then the order of paths.
                self._files[key] = min(candidate, self._files.get(key, candidate))

    def find(self, clip_id: str) -> Path | Missing:
        """The file of a clip."""
        if clip_id in self._files:
            return Path(self._files[clip_id][1])
        return Missing(self._faults.get(clip_id, not_there(self.unread)))


def not_there(unread: Sequence[LeftOut]) -> str:
    """The reason for a name that no file has, as far as the folders could be read."""
    elsewhere = f" in what was read ({counted(len(unread), 'folder')} {'was' if len(unread) == 1 else 'were'} not)"
    return "no video file of this name" + (elsewhere if unread else "")


class Listing:
    """Everything below a folder but plain folders.

    Hidden names are skipped. Links to folders are followed, once each. Folders named like a video come too.

    Attributes:
        files: By path below the folder, with slashes, each with the fault that makes it no file, or None.
    """

    def __init__(self, folder: Path, *, follow_outside: bool) -> None:
        """List `folder`; links to folders outside it are followed only where `follow_outside` says so.

        Raises:
            DatasetError: The folder itself cannot be read.
        """
        require_folder(folder)
        self.files: dict[str, str | None] = {}
        self._unread: list[LeftOut] = []
        self._above = len(os.path.join(folder, ""))
        root = os.path.realpath(folder)
        visited: set[tuple[int, int]] = set()
        for parent, folders, files in os.walk(folder, followlinks=True, onerror=self._not_read):
            try:
                status = os.stat(parent)
            except OSError as error:  # gone, or its disk is, since its name was read
                self._not_read(error)
                folders.clear()
                continue
            # Links may lead in a circle. A folder is its device and inode, by whatever path it was reached.
            if (status.st_dev, status.st_ino) in visited:
                folders.clear()
                continue
            visited.add((status.st_dev, status.st_ino))
            # In place, because os.walk goes on with this list. Sorted, because a disk has names in any order. Without
            # the hidden: macOS leaves a ._clip.mp4 beside each clip on disks of others.
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            for name in list(folders):
                path = os.path.join(parent, name)
                if os.path.splitext(name)[1].lower() in VIDEO_SUFFIXES:
                    self.files[self._below(path)] = "a folder, not a file"
                if not follow_outside and os.path.islink(path) and not _is_below(os.path.realpath(path), root):
                    self._leave_out(path, "a link out of the folder, not followed; name the folder that it leads to")
                    folders.remove(name)
            for name in sorted(files):
                if not name.startswith("."):
                    path = os.path.join(parent, name)
                    self.files[self._below(path)] = _file_fault(path)

    @property
    def unread(self) -> tuple[LeftOut, ...]:
        """Folders that could not be read, and links that were not followed; ids are the paths below the folder."""
        return tuple(self._unread)

    @property
    def videos(self) -> dict[str, str]:
        """Files with a video suffix, by path: the path without it."""
        parts = ((name, *os.path.splitext(name)) for name in self.files)
        return {name: stem for name, stem, suffix in parts if suffix.lower() in VIDEO_SUFFIXES}

    def _not_read(self, error: OSError) -> None:
        # os.walk would go on without a word.
        self._leave_out(os.fsdecode(error.filename), f"a folder that cannot be read: {error.strerror or error}")

    def _leave_out(self, path: str, reason: str) -> None:
        self._unread.append(LeftOut(utf8_name(self._below(path))[0], reason))

    def _below(self, path: str) -> str:
        # Cut and not computed: os.path.relpath takes ten times as long, and folders have 10^5 files.
        return path[self._above :].replace(os.sep, "/")


def _is_below(path: str, root: str) -> bool:
    # The root of a disk ends with a separator already.
    return path == root or path.startswith(root.rstrip(os.sep) + os.sep)


def _file_fault(path: str) -> str | None:
    """Why there is nothing to read at `path`, or None; what is in it is not looked at."""
    if os.access(path, os.R_OK):
        return None
    try:
        os.stat(path)
    except FileNotFoundError:
        return "dangling link" if os.path.islink(path) else "missing file"
    except OSError as error:
        return f"cannot be read: {error.strerror or error}"
    return f"cannot be read: {os.strerror(errno.EACCES)}"


def require_folder(folder: Path, advice: str = "name one with videos in it") -> None:
    """Raise `DatasetError` with the true reason where `folder` cannot be listed."""
    try:
        # Tried, not asked: what the system answers is the true reason.
        os.scandir(folder).close()
    except (FileNotFoundError, NotADirectoryError):
        raise DatasetError(f"{folder}: not a folder; {advice}") from None
    except OSError as error:
        raise DatasetError(f"{folder}: cannot be read: {error.strerror or error}") from None


def listing(names: Sequence[object]) -> str:
    """`a`, `a and b`, or `a, b and c`."""
    *head, last = map(str, names)
    return f"{', '.join(head)} and {last}" if head else last


# The demo's clips, which are told by their names.


_NAME = re.compile(r"(train|val|test|shifted)\d{4}(-[0-9a-f]{8})?")


def drawn(names: Sequence[str]) -> bool:
    """Whether clips, by id or by file name without the suffix, are this world's: at least half have its names."""
    ours = sum(_NAME.fullmatch(name) is not None for name in names)
    # Names, because this is asked before any file is opened. Half of them, because demo clips are copied among
    # others.
    return ours > 0 and 2 * ours >= len(names)
