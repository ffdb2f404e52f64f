"""The videos of somebody's own folder, and which of them a captions file means."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from pathlib import Path, PurePosixPath

from calmctl.data.layout import VIDEO_SUFFIXES, listing, walk
from calmctl.data.textfiles import shown
from calmctl.errors import DatasetError


class FolderClips:
    """Everything below a folder, by id: the path without the suffix, or with it where two would be equal.

    Attributes:
        ids: Of all files with a video suffix, in path order.
        ignored: How many files have none.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        found = {Path(os.path.relpath(path, folder)).as_posix(): fault for path, fault in walk(folder)}
        videos = {name for name in found if os.path.splitext(name)[1].lower() in VIDEO_SUFFIXES}
        uses = Counter([*found, *(os.path.splitext(name)[0] for name in videos)])
        self.ids: list[str] = []
        self.ignored = len(found) - len(videos)
        self._found: dict[str, Path | str] = {}
        # What a captions file may call a clip, from exact to loose.
        self._by_path: dict[str, list[str]] = defaultdict(list)
        self._by_stem: dict[str, list[str]] = defaultdict(list)
        self._by_name: dict[str, list[str]] = defaultdict(list)
        self._by_bare_name: dict[str, list[str]] = defaultdict(list)
        for name, fault in found.items():
            stem = os.path.splitext(name)[0]
            is_video = name in videos
            clip_id = stem if is_video and uses[stem] == 1 else name
            try:
                clip_id.encode("utf-8")
            except UnicodeEncodeError:
                clip_id = clip_id.encode("utf-8", "backslashreplace").decode("utf-8")
                fault = "its path is not valid UTF-8: rename it"
            self._found[clip_id] = fault or folder / name
            self._by_path[name].append(clip_id)
            self._by_name[os.path.basename(name)].append(clip_id)
            if is_video:
                self.ids.append(clip_id)
                self._by_stem[stem].append(clip_id)
                self._by_bare_name[os.path.basename(stem)].append(clip_id)

    def find(self, clip_id: str) -> Path | str:
        """The file of a clip, or the reason why there is none."""
        return self._found.get(clip_id, "no video file of this name")

    def id_of(self, name: str, place: str) -> str:
        """Id of the clip that a captions file calls `name`.

        A name is a path below the folder, or only a file's name, with or without the suffix. One that fits
        nothing is its own id, which `find` then does not find.

        Raises:
            DatasetError: The name leads out of the folder, or fits several files.
        """
        path = PurePosixPath(name)
        if not name or path.is_absolute() or ".." in path.parts or "\0" in name:
            raise DatasetError(f"{place}: {shown(name)} is not a path below {self._folder}")
        for names in (self._by_path, self._by_stem, self._by_name, self._by_bare_name):
            fitting = names.get(str(path), [])
            if len(fitting) > 1:
                raise DatasetError(f"{place}: {shown(name)} fits {listing(fitting)}; name the path of one")
            if fitting:
                return fitting[0]
        return str(path)
