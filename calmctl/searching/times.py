"""When the hits of a search begin and end."""

from __future__ import annotations

from collections.abc import Sequence

from calmctl.data.long import measure
from calmctl.data.samples import Clip
from calmctl.data.store_format import shard_file
from calmctl.errors import StoreError
from calmctl.searching.collection import Collection
from calmctl.searching.mapped import MappedFrames
from calmctl.tensorfiles import read_metadata

Times = tuple[float, float | None]


def times_of(collection: Collection, frames: MappedFrames, positions: Sequence[int]) -> dict[int, Times]:
    """Start and end in seconds of the clips at some positions; an end is None where the file is not at hand.

    A window's are in the shard it was extracted into. Where a clip goes to the end of its file, the file is measured.
    """
    found: dict[int, Times] = {}
    open_ended: dict[int, Clip] = {}
    sources: dict[int, dict[str, list[float | None] | None]] = {}
    for position in positions:
        key, group = frames.ids[position], frames.group(position)
        if group not in sources:
            path = collection.store.path / shard_file("frames", group)
            sources[group] = read_metadata(path, what="feature store", error=StoreError).get("sources", {})
        source = sources[group].get(key) or [None, None, 0.0, None]
        start_s, end_s = float(source[2] or 0.0), source[3]
        found[position] = start_s, end_s
        clip = collection.clips.get(key)
        if end_s is None and clip is not None:
            open_ended[position] = Clip(key, clip.path)
    lengths = {clip.id: length for clip, length in measure(open_ended.values()) if isinstance(length, float)}
    for position, clip in open_ended.items():
        found[position] = found[position][0], lengths.get(clip.id)
    return found
