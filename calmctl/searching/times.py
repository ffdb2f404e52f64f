"""When the hits of a search begin and end."""

from __future__ import annotations

from collections.abc import Sequence

from calmctl.data.samples import Clip
from calmctl.data.store_format import shard_file
from calmctl.data.store_writer import Source, read_sources
from calmctl.searching.collection import Collection
from calmctl.searching.mapped import MappedFrames
from calmctl.searching.windows import measure

Times = tuple[float, float | None, float]


def times_of(collection: Collection, frames: MappedFrames, positions: Sequence[int]) -> dict[int, Times]:
    """Start and end of the clips at some positions by their file's own clock, and when its first frame is shown.

    In seconds. A window's are in the shard it was extracted into, counted from the first frame. Where a clip goes to
    the end of its file, or the file's clock is not known, the file is measured; where it is not at hand, an end is None
    and times count from the first frame.
    """
    found: dict[int, Times] = {}
    unmeasured: dict[int, Clip] = {}
    sources: dict[int, dict[str, Source | None]] = {}
    for position in positions:
        key, group = frames.ids[position], frames.group(position)
        if group not in sources:
            path = collection.store.path / shard_file("frames", group)
            sources[group], _ = read_sources(path)
        _, _, start, end, *_ = sources[group].get(key) or [None, None, 0.0, None]
        start_s, end_s = float(start or 0.0), None if end is None else float(end)
        clip = collection.clips.get(key)
        found[position] = start_s, end_s, (clip.begins_s if clip is not None else None) or 0.0
        if clip is not None and (end_s is None or clip.begins_s is None):
            unmeasured[position] = Clip(key, clip.path)
    extents = {clip.id: extent for clip, extent in measure(unmeasured.values()) if not isinstance(extent, str)}
    for position, clip in unmeasured.items():
        if clip.id in extents:
            length_s, begins_s = extents[clip.id]
            start_s, end_s, _ = found[position]
            found[position] = start_s, length_s if end_s is None else min(end_s, length_s), begins_s
    return {
        position: (begins_s + start_s, None if end_s is None else begins_s + end_s, begins_s)
        for position, (start_s, end_s, begins_s) in found.items()
    }
