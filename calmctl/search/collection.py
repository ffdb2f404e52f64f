"""What is searched, which of it, and when the hits begin and end."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import date
from pathlib import Path

import numpy as np

from calmctl.data.folder import FolderClips
from calmctl.data.locate import Missing, VideoFiles
from calmctl.errors import BadInput, DatasetError, RunFailed, StoreError
from calmctl.files import sha256_bytes
from calmctl.model.backbone import fingerprint
from calmctl.samples import Clip, Dataset, LeftOut, Split
from calmctl.search.model import BARE_FRAMES, SearchModel
from calmctl.search.rows import FOLDER, MappedFrames, ShardRows, searched_rows
from calmctl.search.windows import extents_of, shots_of, windows_of
from calmctl.store.extract import deserves_another_try, extract
from calmctl.store.format import INDEX, shard_file
from calmctl.store.store import NOT_EXTRACTED, ClipSource, FeatureStore, read_sources
from calmctl.store.writer import has_stamp, is_unchanged, record_origin
from calmctl.video.instants import CUT, SHORTEST_SHOT_S
from calmctl.video.pool import TIMEOUT_S
from calmctl.words import Progress, counted

Times = tuple[float, float | None, float]


def times_of(
    collection: Collection, frames: MappedFrames, positions: Sequence[int], progress: Progress | None = None
) -> dict[int, Times]:
    """Start and end of the clips at some positions by their file's own clock, and when its first frame is shown.

    In seconds. A window's are in the shard it was extracted into, counted from the first frame. Where a clip goes to
    the end of its file, or the file's clock is not known, the file is measured; where it is not at hand, an end is None
    and times count from the first frame.
    """
    times: dict[int, Times] = {}
    unmeasured: dict[int, Clip] = {}
    digests: dict[str, str | None] = {}
    sources: dict[int, dict[str, ClipSource | None]] = {}
    for position in positions:
        key, group = frames.ids[position], frames.group(position)
        if group not in sources:
            # One shard's record of its sources is read once, however many hits are in it.
            path = collection.store.path / shard_file("frames", group)
            sources[group], _ = read_sources(path)
        _, _, start, end, *contents = sources[group].get(key) or [None, None, 0.0, None]
        start_s, end_s = float(start or 0.0), None if end is None else float(end)
        clip = collection.clips.get(key)
        known = clip or collection.windows.get(key)
        times[position] = start_s, end_s, (known.begins_s if known is not None else None) or 0.0
        if clip is not None and (end_s is None or clip.begins_s is None):
            unmeasured[position] = Clip(key, clip.path)
            digests[key] = str(contents[1]) if len(contents) > 1 else None
    # A measured file is remembered, because a decoder takes longer to start than a search to answer.
    cache = collection.store.path / FOLDER / "lengths.json"
    extents = extents_of(list(unmeasured.values()), cache, progress, digest=lambda clip: digests[clip.id])
    for position, clip in unmeasured.items():
        extent = extents[clip.id]
        if not isinstance(extent, str):
            length_s, begins_s = extent
            start_s, end_s, _ = times[position]
            times[position] = start_s, length_s if end_s is None else min(end_s, length_s), begins_s
    return {
        position: (begins_s + start_s, None if end_s is None else begins_s + end_s, begins_s)
        for position, (start_s, end_s, begins_s) in times.items()
    }


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which clips may be found; what is None is not asked.

    Attributes:
        below: A folder below the collection: clips whose id begins with it.
        since, until: Days on which the file was last changed, the first and the last of them.
        longer_s, shorter_s: Seconds that a clip lasts, at least and at most.
    """

    below: str | None = None
    since: date | None = None
    until: date | None = None
    longer_s: float | None = None
    shorter_s: float | None = None

    @property
    def by_file(self) -> bool:
        """Whether files must be at hand to tell."""
        return (self.since, self.until, self.longer_s, self.shorter_s) != (None,) * 4


def wanted_positions(
    collection: Collection, frames: MappedFrames, wanted: Wanted, progress: Progress | None = None
) -> np.ndarray:
    """The positions of the clips that are wanted, ascending.

    Raises:
        BadInput: There is none, or dates and lengths are asked for and no file is known.
    """
    clips = collection.clips
    prefix = "" if wanted.below is None else wanted.below.strip("/") + "/"
    kept = [position for position, key in enumerate(frames.ids) if key.startswith(prefix)]
    if wanted.by_file and not clips:
        raise BadInput(f"days and lengths are those of files, and {collection.name} knows none; give --videos")
    if wanted.since is not None or wanted.until is not None:
        first, last = wanted.since or date.min, wanted.until or date.max
        kept = [n for n in kept if (day := _day(clips.get(frames.ids[n]))) is not None and first <= day <= last]
    if wanted.longer_s is not None or wanted.shorter_s is not None:
        least, most = wanted.longer_s or 0.0, float("inf") if wanted.shorter_s is None else wanted.shorter_s
        times = times_of(collection, frames, kept, progress)
        kept = [n for n in kept if (end_s := times[n][1]) is not None and least <= end_s - times[n][0] <= most]
    if not kept:
        raise BadInput(f"none of {counted(len(frames.ids), collection.unit)} is in that folder, of that day and length")
    return np.array(kept, np.int64)


def _day(clip: Clip | None) -> date | None:
    try:
        return None if clip is None else date.fromtimestamp(clip.path.stat().st_mtime)
    except (OSError, ValueError, OverflowError):
        return None


# What is searched: a feature store, or a folder of videos that becomes one.


STORES = Path("features") / "search"
_WINDOW = re.compile(r"(.+)#t=(-?\d+(?:\.\d+)?),-?\d+(?:\.\d+)?", re.DOTALL)
WAITING = "waiting for another search"


@dataclass(frozen=True, slots=True)
class Collection:
    """Clips with features.

    Attributes:
        name: The folder or the store.
        store: The features.
        shards: The clips of it that are searched.
        clips: Where they lie, by id, as far as that is known.
        left_out: Files that could not be decoded, with reasons.
        extracted: Clips whose features were made by this opening.
        is_store: Whether it is somebody's store, and not a folder's.
        unit: What one of its clips is, "clip", "window" or "shot".
        unread: Folders below a folder that could not be read, and links that were not followed, with reasons.
        passed_over: A note on the files of a folder that are no videos by their suffix.
        windows: Where clips are windows, by id which part of which file each is; of a store whose videos are not at
            hand the path is the file's name alone.
    """

    name: Path
    store: FeatureStore
    shards: tuple[ShardRows, ...]
    clips: Mapping[str, Clip]
    left_out: tuple[LeftOut, ...]
    extracted: int
    is_store: bool
    unit: str = "clip"
    unread: tuple[LeftOut, ...] = ()
    passed_over: str | None = None
    windows: Mapping[str, Clip] = field(default_factory=dict)


def open_collection(
    where: Path,
    search_model: SearchModel,
    *,
    window_s: float | None = None,
    stride_s: float | None = None,
    shots: bool = False,
    videos: Path | None = None,
    stores: Path = STORES,
    verify: bool = False,
    progress: Progress | None = None,
) -> Collection:
    """Open a feature store, or a folder of videos, of which new and changed files are extracted first.

    Args:
        where: The store or the folder.
        search_model: Whose features they have to be.
        window_s: Length in seconds of the windows that a folder's videos are cut into; None for whole videos.
        stride_s: Seconds between the beginnings of two windows.
        shots: Cut the videos where the picture changes at once instead.
        videos: Where the clips of a store lie, for pictures.
        stores: Where the features of folders are kept.
        verify: Check every file of a folder's features, and make again what is damaged.
        progress: Told of the work.

    Raises:
        StoreError: The store is of another backbone or number of frames, or damaged.
        DatasetError: There is nothing to search, or nothing of it can be decoded.
        RunFailed: New features cannot be kept in `stores`.
    """
    if (where / INDEX).is_file():
        if window_s is not None or shots:
            cutting = "--shots" if shots else "--window"
            raise StoreError(f"{where} is a feature store, whose clips are fixed; {cutting} is for a folder of videos")
        return _open_store(where, search_model, videos)
    if not where.is_dir():
        raise DatasetError(f"{where} is neither a feature store nor a folder; name one with --in")
    if videos is not None:
        raise DatasetError("--videos says where the clips of a feature store lie; a folder of videos has its own")
    return _open_folder(where, search_model, window_s, stride_s, shots, stores, verify, progress)


def _open_store(path: Path, search_model: SearchModel, videos: Path | None) -> Collection:
    store = FeatureStore.open(path)
    store.require_backbone(fingerprint(search_model.model.backbone))
    if search_model.n_frames not in (None, store.header.n_frames):
        frames_held = counted(store.header.n_frames, "frame")
        raise StoreError(
            f"{path} holds {frames_held} a clip, and {search_model.name} was trained on {search_model.n_frames}; "
            f"extract again with --frames {search_model.n_frames}, or search with a run of {frames_held}"
        )
    shards = searched_rows(store)
    ids = [key for shard in shards for key in shard.ids]
    if not ids:
        raise StoreError(f"{path} holds no clips; extract some into it with `calmctl extract`")
    clips = {}
    windows = _stored_windows(store)
    if videos is not None:
        if not videos.is_dir():
            raise DatasetError(f"--videos {videos} is not a folder")
        # A store's ids are published names or paths below a folder, and each kind has its own way to a file.
        files, folder = VideoFiles(videos), FolderClips(videos)
        for key in ids:
            name = str(windows[key].path) if key in windows else key
            path_of_clip = next((p for p in (files.find(name), folder.find(name)) if isinstance(p, Path)), None)
            if path_of_clip is not None:
                clips[key] = replace(windows.get(key, Clip(key, path_of_clip)), path=path_of_clip)
    # A store that is half extracted once answered as if it were whole. It is searched, and says what is missing.
    pending = [
        LeftOut(key, NOT_EXTRACTED)
        for group, keys in enumerate(store.groups("frames"))
        if store.entry("frames", group) is None
        for key in keys
    ]
    unit = "window" if windows else "clip"
    return Collection(path, store, shards, clips, (*store.left_out, *pending), 0, True, unit, windows=windows)


def _stored_windows(store: FeatureStore) -> dict[str, Clip]:
    """The windows that a search of a folder made its store of; nothing where a clip of it is none."""
    windows: dict[str, Clip] = {}
    if not all("#t=" in key for key in store.ids):
        return windows
    for group in range(len(store.groups("frames"))):
        if store.entry("frames", group) is None:
            continue
        sources, _ = read_sources(store.path / shard_file("frames", group))
        for key in store.present("frames", group):
            match sources.get(key), _WINDOW.fullmatch(key):
                case [_, _, int() | float() as start_s, int() | float() as end_s, *_], re.Match() as named:
                    # Its name has the file's own time, and its source that since the first frame.
                    begins_s = round(float(named[2]) - start_s, 3)  # names have milliseconds
                    windows[key] = Clip(key, Path(named[1]), start_s, end_s, begins_s)
                case _:
                    return {}
    return windows


def _open_folder(
    folder: Path,
    search_model: SearchModel,
    window_s: float | None,
    stride_s: float | None,
    shots: bool,
    stores: Path,
    verify: bool,
    progress: Progress | None,
) -> Collection:
    folder_clips = FolderClips(folder)
    files = [(key, folder_clips.find(key)) for key in folder_clips.ids]
    clips = [Clip(key, path) for key, path in files if isinstance(path, Path)]
    left_out = [LeftOut(key, file.reason) for key, file in files if isinstance(file, Missing)]
    if not files:
        raise DatasetError(f"{folder}: {folder_clips.no_video()}; name another folder or a feature store with --in")
    n_frames = search_model.n_frames or BARE_FRAMES
    backbone = fingerprint(search_model.model.backbone)
    # Another measure of a cut makes other shots.
    cutting = ("shots", str((CUT, SHORTEST_SHOT_S))) if shots else (window_s, stride_s)
    path = stores / store_name(folder, backbone, n_frames, *cutting)
    if shots:
        clips, uncut = shots_of(clips, path / ".shots.json", progress)
        left_out += uncut
    elif window_s is not None:
        clips, unmeasured = windows_of(clips, window_s, stride_s or window_s, path / ".durations.json", progress)
        left_out += unmeasured
    extracted = 0
    existing = next(parent for parent in (path, *path.parents) if parent.exists())
    writable = os.access(existing, os.W_OK)
    if clips and (verify or not _is_current(path, clips, writable)):
        dataset = Dataset("folder", "", {"test": Split("test", tuple(clips), (), ())}, folder=folder)
        # Asked before the decoding, not after it.
        if not writable:
            raise RunFailed(f"cannot write {path}: {existing} is read-only; keep the features elsewhere, with --cache")
        if (path / INDEX).is_file():  # its name says whose it is, also that of a store from before there was a record
            record_origin(path, folder)
        report = extract(
            dataset,
            search_model.model.backbone,
            path,
            n_frames=n_frames,
            # Every question reads all of them, and reading is what takes the time (docs/search.md).
            dtype="float16",
            device=search_model.device,
            reuse=True,
            progress=progress,
            on_wait=lambda: progress(WAITING, 0, 1) if progress else None,
        )
        extracted = report.clips_extracted
    wanted = {clip.id: clip for clip in clips}
    store = FeatureStore.open(path) if clips else None
    shards = searched_rows(store) if store else ()
    if store:
        # A store remembers what has left the folder, too.
        left_out += [clip for clip in store.left_out if clip.id in wanted]
    if store is None or not shards:
        what = f"none of its {len(files):,} videos could" if len(files) > 1 else "its one video could not"
        raise DatasetError(
            f"{folder}: {what} be decoded (first: {left_out[0].id}: {left_out[0].reason}); nothing can be searched"
        )
    unit = "shot" if shots else "clip" if window_s is None else "window"
    return Collection(
        folder,
        store,
        shards,
        wanted,
        tuple(left_out),
        extracted,
        False,
        unit,
        folder_clips.unread,
        folder_clips.passed_over(),
        {} if unit == "clip" else wanted,
    )


def store_name(
    folder: Path, backbone: Mapping[str, object], n_frames: int, window: float | str | None, stride: float | str | None
) -> str:
    """The name of a folder's store: every backbone, number of frames and cutting has one of its own."""
    whole = folder.resolve()
    # The same weights with other pixel statistics are another backbone.
    keys = ("model", "parameters_sha256", "activation", "image_size", "mean", "std", "interpolation", "resize")
    text = json.dumps([str(whole), [backbone[key] for key in keys], n_frames, window, stride])
    return f"{whole.name or 'videos'}-{sha256_bytes(text.encode('utf-8', 'backslashreplace'))[:12]}"


def _is_current(path: Path, clips: list[Clip], writable: bool) -> bool:
    """Whether a store has exactly these clips, each extracted from the file as it is now.

    A file of another date is read once and its new date written down; each time, where nothing can be written.
    """
    same = has_stamp if writable else is_unchanged
    try:
        store = FeatureStore.open(path)
        split = store.split("test")
        if {*split.ids, *(clip.id for clip in split.left_out)} != {clip.id for clip in clips}:
            return False
        # What a limit or the machine stopped is tried again; what does not decode waits until its file changes.
        if any(deserves_another_try(clip, TIMEOUT_S) for clip in store.left_out):
            return False
        current = {clip.id: clip for clip in clips}
        for group in range(len(store.groups("frames"))):
            if store.entry("frames", group) is None:
                return False
            sources, since_ns = read_sources(path / shard_file("frames", group))
            for key in store.groups("frames")[group]:
                if key in current and not same(current[key], sources.get(key), since_ns):
                    return False
    except (StoreError, OSError):
        return False
    return True
