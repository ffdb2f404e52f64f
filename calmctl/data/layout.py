"""Where a dataset's files are: annotation files by name, clips by id.

Nothing here joins a name from an annotation file to a path. Folders are listed, and what an annotation names
is looked up in the listing, so no annotation can reach outside them.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from calmctl.errors import DatasetError

# fmt: off
VIDEO_SUFFIXES = frozenset((
    ".3g2", ".3gp", ".asf", ".avi", ".f4v", ".flv", ".gif", ".m2ts", ".m2v", ".m4v", ".mkv",
    ".mov", ".mp4", ".mpeg", ".mpg", ".mts", ".ogv", ".ts", ".vob", ".webm", ".wmv",
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
        """The first annotation file of that name."""
        return next((folder / name for folder in self.annotations if (folder / name).is_file()), None)


def places(name: str, root: Path | None, annotations: Path | None, videos: Path | None) -> Places:
    """The folders to look in for the dataset `name`.

    Raises:
        DatasetError: When a folder that was given is none, or neither root nor the two others were given.
    """
    for what, folder in (("--root", root), ("--annotations", annotations), ("--videos", videos)):
        if folder is not None and not folder.is_dir():
            raise DatasetError(
                f"{name}: {what} {folder} is not a folder; put the annotation files and clips of {name} there, or "
                "name where they are (in a recipe: data.root, data.annotations, data.videos; see docs/data.md)"
            )
    if root is None and (annotations is None or videos is None):
        raise DatasetError(f"{name}: say where its files are with --root, or with --annotations and --videos")
    return Places(
        _existing(annotations, root, name, "annotations"),
        _existing(videos, root, name, "videos"),
    )


def _existing(given: Path | None, root: Path | None, name: str, kind: str) -> tuple[Path, ...]:
    if given is not None:
        folders = [given / name, given]
    else:
        assert root is not None
        folders = [root / below for below in candidates(kind, name)]
    return tuple(folder for folder in folders if folder.is_dir())


def candidates(kind: str, name: str) -> list[str]:
    """Folders below a root that may hold the "annotations" or "videos" of the dataset `name`, the best first."""
    return [f"{kind}/{name}", f"{name}/{kind}", name, kind, "."]


class VideoFiles:
    """Every file below a folder, by id.

    A file answers to its whole name and to its name without the last suffix, so that ids with dots work with
    and without a suffix; or, where `id_of` is given, to what that makes of its name. Where several files
    answer to one id, one with a video suffix comes first, then the first in path order.

    Attributes:
        folder: What was listed.
    """

    def __init__(self, folder: Path, id_of: Callable[[str], str] | None = None) -> None:
        self.folder = folder
        self._files: dict[str, tuple[bool, str]] = {}
        self._faults: dict[str, str] = {}
        for path, fault in walk(folder):
            name = os.path.basename(path)
            stem, suffix = os.path.splitext(name)
            for key in {id_of(name)} if id_of else {name, stem}:
                if fault:
                    self._faults.setdefault(key, fault)
                    continue
                found = (suffix.lower() not in VIDEO_SUFFIXES, path)
                self._files[key] = min(found, self._files.get(key, found))

    def find(self, clip_id: str) -> Path | str:
        """The file of a clip, or the reason why there is none."""
        if clip_id in self._files:
            return Path(self._files[clip_id][1])
        return self._faults.get(clip_id, "no video file of this name")


def walk(folder: Path) -> Iterator[tuple[str, str | None]]:
    """Paths of everything below `folder` but plain folders, each with the fault that makes it no file.

    Hidden names are skipped. Links to folders are followed, once each. Folders named like a video come too.
    """
    seen: set[tuple[int, int]] = set()
    for parent, folders, files in os.walk(folder, followlinks=True):
        status = os.stat(parent)
        if (status.st_dev, status.st_ino) in seen:
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in folders:
            if os.path.splitext(name)[1].lower() in VIDEO_SUFFIXES:
                yield os.path.join(parent, name), "a folder, not a file"
        for name in sorted(files):
            if not name.startswith("."):
                path = os.path.join(parent, name)
                yield path, None if os.path.exists(path) else "dangling link"


def listing(names: Sequence[object]) -> str:
    """`a`, `a and b`, or `a, b and c`."""
    *head, last = map(str, names)
    return f"{', '.join(head)} and {last}" if head else last
