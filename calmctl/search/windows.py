"""Long videos in windows or shots: a hit is then a moment, with a start and an end."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

from calmctl.errors import BadInput, DatasetError, RunFailed, VideoError
from calmctl.files import make_folder, read_json, stamp, whole_digest, write_json
from calmctl.samples import Clip, LeftOut
from calmctl.video.instants import Extent, find_shots, is_length, measure, require_countable
from calmctl.words import Progress, watched

MOST_WINDOWS = 2_000_000
"""Of a folder (our choice): they are listed in memory, a gigabyte."""
_STAMP = 4  # numbers in the stamp of a file


def window_bounds(duration_s: float, window_s: float, stride_s: float) -> list[tuple[float, float]]:
    """Windows that begin every `stride_s` and cover a video.

    What remains behind the last whole window becomes one of its own, of full length and ending with the video, if it
    is at least half a stride long; else it joins the last. A video shorter than a window is one.

    Raises:
        VideoError: There would be more than `calmctl.video.instants.MOST_PARTS`.
    """
    require_countable(duration_s, (duration_s - window_s) / stride_s, "windows")
    # Rounding must not lose a window that just fits.
    count = max(1, int((duration_s - window_s) / stride_s + 1e-9) + 1)
    bounds = [(k * stride_s, min(k * stride_s + window_s, duration_s)) for k in range(count)]
    remains = duration_s - bounds[-1][1]
    if remains >= stride_s / 2:
        return [*bounds, (duration_s - window_s, duration_s)]
    return [*bounds[:-1], (bounds[-1][0], duration_s)]


def check_windows(window_s: float | None, stride_s: float | None, shots: bool = False) -> float | None:
    """The stride in seconds: the window's length where none is given. Raises `BadInput` for what makes no windows."""
    if shots and (window_s is not None or stride_s is not None):
        raise BadInput("--shots cuts where the picture changes, --window by the clock; give one of them")
    if window_s is None:
        if stride_s is not None:
            raise BadInput("--stride says how far apart windows begin; give their length too, with --window")
        return None
    if not 0.1 <= window_s < float("inf"):
        raise BadInput(f"--window {window_s:g}: a window must be at least 0.1 seconds long")
    stride_s = window_s if stride_s is None else stride_s
    if not 0.1 <= stride_s <= window_s:
        raise BadInput(
            f"--stride {stride_s:g} must lie between 0.1 and the window's {window_s:g} seconds: no second is skipped"
        )
    return stride_s


def windows_of(
    clips: Sequence[Clip], window_s: float, stride_s: float, cache: Path, progress: Progress | None = None
) -> tuple[list[Clip], list[LeftOut]]:
    """Every file as windows, and the files whose length cannot be told, with reasons.

    Args:
        clips: Whole files.
        window_s: Length of a window in seconds.
        stride_s: Seconds between the beginnings of two.
        cache: Where lengths are remembered, by the stamps of files, because a long file takes seconds to measure.
        progress: Told of the files.
    """
    known = extents_of(clips, cache, progress, prune=True, digest=_digest)
    windows: list[Clip] = []
    left_out = []
    for clip in clips:
        extent = known[clip.id]
        if isinstance(extent, str):
            left_out.append(LeftOut(clip.id, extent))
            continue
        length, begins_s = extent
        try:
            bounds = window_bounds(length, window_s, stride_s)
        except VideoError as fault:
            left_out.append(LeftOut(clip.id, str(fault)))
            continue
        windows += _named(clip, bounds, begins_s)
        # After each file: one of a few kilobytes may claim years, and the list itself is what would take the memory.
        if len(windows) > MOST_WINDOWS:
            raise DatasetError(
                f"more than {MOST_WINDOWS:,} windows in the folder; take longer ones with --window, or --stride"
            )
    return windows, left_out


def shots_of(clips: Sequence[Clip], cache: Path, progress: Progress | None = None) -> tuple[list[Clip], list[LeftOut]]:
    """Every file as its shots, and the files that have none, with reasons; arguments as in `windows_of`.

    A shot ends where the picture changes at once (`calmctl.video.instants`); a file is decoded for that once.
    """
    known = _facts_of(clips, cache, progress, find_shots, "finding shots", _are_ends, prune=True, digest=_digest)
    shots: list[Clip] = []
    left_out = []
    for clip in clips:
        ends_s, begins_s = known[clip.id]
        if isinstance(ends_s, str):
            left_out.append(LeftOut(clip.id, ends_s))
            continue
        shots += _named(clip, pairwise([0.0, *ends_s]), begins_s)
        if len(shots) > MOST_WINDOWS:
            raise DatasetError(f"more than {MOST_WINDOWS:,} shots in the folder; search a part of it")
    return shots, left_out


def extents_of(
    clips: Sequence[Clip],
    cache: Path,
    progress: Progress | None = None,
    *,
    prune: bool = False,
    digest: Callable[[Clip], str | None] = lambda clip: None,
) -> dict[str, Extent | str]:
    """The extent of every clip's file by the clip's id, or why it has none; measured once, and again when it changes.

    Args:
        clips: The clips.
        cache: Where extents are remembered, by the stamps of files.
        progress: Told of the files that are measured.
        prune: Whether the cache is to forget all other clips.
        digest: The SHA-256 of a clip's file, by which a renamed one is known again; None where nobody can tell.
    """
    known = _facts_of(clips, cache, progress, measure, "measuring videos", is_length, prune=prune, digest=digest)
    return {
        key: length if isinstance(length, str) else Extent(length, begins) for key, (length, begins) in known.items()
    }


Look = Callable[[Sequence[Clip]], Iterable[tuple[Clip, tuple[Any, float] | VideoError]]]


def _facts_of(
    clips: Sequence[Clip],
    cache: Path,
    progress: Progress | None,
    look: Look,
    what: str,
    fits: Callable[[Any], bool],
    *,
    prune: bool,
    digest: Callable[[Clip], str | None],
) -> dict[str, tuple[Any, float]]:
    """What `look` says of every clip's file, or why it says nothing, and when it begins; remembered in `cache`."""
    known = _remembered(cache, fits)
    stamps = {clip.id: _stat(clip.path) for clip in clips}
    passing: set[str] = set()  # stopped by a limit or the machine: looked at again next time
    # By the file's stamp: one that was replaced is looked at again.
    unknown = [clip for clip in clips if known.get(clip.id, [])[:_STAMP] != stamps[clip.id]]
    contents = {clip.id: digest(clip) for clip in watched(unknown, "reading videos", len(unknown), progress)}
    alike = {each[_STAMP]: each[-2:] for each in known.values() if len(each) > _STAMP + 2}
    renamed = {clip.id: alike[contents[clip.id]] for clip in unknown if contents[clip.id] in alike}
    known |= {key: [*stamps[key], contents[key], *fact] for key, fact in renamed.items()}
    unknown = [clip for clip in unknown if clip.id not in renamed]
    for clip, fact in watched(look(unknown), what, len(unknown), progress):
        # The file's stamp and digest, and behind them the fact (or why there is none) and the file's beginning.
        content = contents[clip.id]
        told = (str(fact), 0.0) if isinstance(fact, VideoError) else fact
        known[clip.id] = [*stamps[clip.id], *([] if content is None else [content]), *told]
        if isinstance(fact, VideoError) and fact.limit_s is not None:
            passing.add(clip.id)
    # Of a stranger's store the folder may be a link to one of one's own.
    if (unknown or renamed) and not cache.parent.is_symlink():
        kept = stamps if prune else known
        with suppress(RunFailed):  # they are looked at again the next time
            make_folder(cache.parent)
            write_json(cache, {key: known[key] for key in kept if key not in passing})
    return {clip.id: (known[clip.id][-2], known[clip.id][-1]) for clip in clips}


def _named(clip: Clip, bounds: Iterable[tuple[float, float]], begins_s: float) -> list[Clip]:
    """Parts of a file as clips, named by the file's own clock."""
    begins_s = round(begins_s, 3)  # as names have it: a store that was kept knows no more, and answers alike
    parts = []
    for start, end in bounds:
        moment = ",".join(_to_ms(begins_s + each) for each in (start, end))
        parts.append(Clip(f"{clip.id}#t={moment}", clip.path, start, end, begins_s))
    return parts


def _to_ms(time_s: float) -> str:
    """A time to a millisecond, however long the video: windows begin at least 50 apart, so no two names are equal."""
    return f"{time_s:z.3f}".rstrip("0").rstrip(".")


def _stat(path: Path) -> list[int]:
    try:
        return stamp(path)
    except OSError:
        return [0] * _STAMP


def _digest(clip: Clip) -> str | None:
    try:
        return whole_digest(clip.path)
    except OSError:
        return None


def _remembered(cache: Path, fits: Callable[[Any], bool]) -> dict[str, list[Any]]:
    try:
        known = read_json(cache, what="facts about videos")
    except BadInput:
        return {}
    if not isinstance(known, dict):
        return {}
    # Anybody may have edited it: what is no fact of a file is looked up in the file.
    return {
        key: each
        for key, each in known.items()
        if isinstance(each, list)
        and len(each) > 2
        and is_length(each[-1])
        and (isinstance(each[-2], str) or fits(each[-2]))
    }


def _are_ends(value: object) -> bool:
    """Whether a value can be the ends of shots: times of which each is later than the one before."""
    if not (isinstance(value, list) and value and all(map(is_length, value))):
        return False
    return value[0] > 0 and all(end < later for end, later in pairwise(value))
