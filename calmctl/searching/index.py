"""What a search keeps beside a feature store: tables that follow from the features and one head's weights.

    STORE/search/KEY/
      about.json                   digests: of the files below, and of the shards that they are made of
      GENERATION-NAME.npy          one tensor of the scorer's table, [N, ...] float32, one row a clip

Nothing here is more than a cache: it follows from the store, is brought up to date shard by shard, and may be deleted.
KEY is a digest of the weights it depends on, so that another head has another index over the same features; the
backbone is the store's affair, which refuses features of another one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch

from calmctl.data.store import FeatureStore
from calmctl.errors import RunFailed
from calmctl.files import write_atomic
from calmctl.model.heads.base import VideoTable
from calmctl.searching.mapped import MappedFrames, ShardRows
from calmctl.searching.marks import (
    About,
    ShardStat,
    cache_folder,
    described,
    generation,
    made_here,
    read_about,
    remove_stale,
    require_whole,
    shard_mark,
    write_about,
)
from calmctl.searching.scorers import Scorer

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class SearchIndex:
    """Clips that a scorer can score.

    Attributes:
        frames: Their features.
        columns: The tensors of the table, [N, ...] float32, as memory maps.
        folder: Where the index lies.
        made: Clips whose table was made by this opening; the others were there.
        not_kept: Why the table could not be kept there, or None.
    """

    frames: MappedFrames
    columns: Mapping[str, np.ndarray]
    folder: Path
    made: int
    not_kept: str | None = None

    def table(self, where: slice | np.ndarray, device: torch.device) -> VideoTable:
        """The scorer's table of some clips; of a slice nothing is copied."""
        return {name: torch.from_numpy(np.asarray(column[where])).to(device) for name, column in self.columns.items()}


def open_index(
    store: FeatureStore,
    shards: Sequence[ShardRows],
    scorer: Scorer,
    progress: Progress | None = None,
    on_wait: Callable[[], None] = lambda: None,
) -> SearchIndex:
    """Open the index of a scorer over a store, made or brought up to date first where that is needed.

    Args:
        store: The features.
        shards: The clips of it that are searched.
        scorer: Whose table it is.
        progress: Called with clips done and clips in all.
        on_wait: Called before waiting for another process that makes the same index.

    Raises:
        StoreError: A shard is damaged.
    """
    sample = scorer.table(torch.ones(store.shape("frames", 1), device=scorer.device))
    shapes = {name: tuple(part.shape[1:]) for name, part in sample.items()}
    with cache_folder(store, scorer.key, on_wait) as (folder, not_kept):
        old = read_about(folder, scorer.key)
        stats = require_whole(store, shards, old.shards if old else {})
        frames = MappedFrames(store, shards)
        name = generation(shards)
        kept = _kept_rows(folder, old, shapes)
        new = {shard.name for shard in shards if kept.get(shard.name, (None,))[0] != shard_mark(shard)}
        made = sum(len(shard.rows) for shard in shards if shard.name in new)
        files = {column: folder / f"{name}-{column}.npy" for column in shapes}

        def parts() -> Iterator[list[np.ndarray]]:
            done = 0
            for shard, (start, stop) in zip(shards, pairwise(frames.starts.tolist()), strict=True):
                if shard.name not in new:
                    yield kept[shard.name][1]
                    continue
                yield [
                    part.float().cpu().numpy()
                    for part in scorer.table(frames.block(start, stop).to(scorer.device)).values()
                ]
                done += stop - start
                if progress is not None:
                    progress(done, made)

        current = old is not None and {file.name for file in old.files.values()} == {f.name for f in files.values()}
        if not new and current:
            if not_kept is None and old is not None and old.shards != stats:  # the same content in other files
                _try(lambda: write_about(folder, old.model_copy(update={"shards": stats})))
            return SearchIndex(frames, {column: _mapped(file) for column, file in files.items()}, folder, 0)
        if not_kept is None:
            not_kept = _try(lambda: _keep(folder, scorer.key, stats, files, shapes, len(frames), parts()))
        if not_kept is None:
            return SearchIndex(frames, {column: _mapped(file) for column, file in files.items()}, folder, made, None)
        # Where nothing can be kept the table is made for this search alone, in memory.
        blocks = [np.empty((len(frames), *shape), np.float32) for shape in shapes.values()]
        for part, (start, stop) in zip(parts(), pairwise(frames.starts.tolist()), strict=True):
            for block, values in zip(blocks, part, strict=True):
                block[start:stop] = values
        return SearchIndex(frames, dict(zip(shapes, blocks, strict=True)), folder, made, not_kept)


def _try(write: Callable[[], object]) -> str | None:
    try:
        write()
    except RunFailed as fault:
        return str(fault)
    return None


def _keep(
    folder: Path,
    key: str,
    stats: dict[str, ShardStat],
    files: Mapping[str, Path],
    shapes: Mapping[str, tuple[int, ...]],
    rows: int,
    parts: Iterator[list[np.ndarray]],
) -> None:
    """Write the columns, then what they are, then remove those of before."""
    _write_columns(files, shapes, rows, parts)
    described_files = {column: described(file) for column, file in files.items()}
    write_about(folder, About(key=key, shards=stats, files=described_files))
    remove_stale(folder, "*.npy", set(files.values()))


def _mapped(file: Path) -> np.ndarray:
    column: np.ndarray = np.load(file, mmap_mode="c", allow_pickle=False)
    return column


def _write_columns(
    files: Mapping[str, Path], shapes: Mapping[str, tuple[int, ...]], rows: int, parts: Iterator[list[np.ndarray]]
) -> None:
    """Write all columns in one pass over their parts; none appears before all of them are complete."""

    def fill(waiting: list[str], handles: list[BinaryIO]) -> None:
        if waiting:
            write_atomic(files[waiting[0]], lambda handle: fill(waiting[1:], [*handles, handle]))
            return
        for handle, shape in zip(handles, shapes.values(), strict=True):
            header = {"descr": "<f4", "fortran_order": False, "shape": (rows, *shape)}
            np.lib.format.write_array_header_1_0(handle, header)
        for part in parts:
            for handle, values in zip(handles, part, strict=True):
                handle.write(np.ascontiguousarray(values, dtype="<f4").data)

    fill(list(files), [])


def _kept_rows(
    folder: Path, about: About | None, shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, tuple[str, list[np.ndarray]]]:
    """The rows of each shard in the columns of before, with the mark of what they were made of."""
    if about is None:
        return {}
    starts = np.cumsum([0, *(stat.rows for stat in about.shards.values())])
    columns = []
    for column, shape in shapes.items():
        file = made_here(folder, about, column)
        if file is None:
            return {}
        try:
            columns.append(np.load(file, mmap_mode="r", allow_pickle=False))
        except (OSError, ValueError, EOFError):
            return {}
        if columns[-1].shape != (starts[-1], *shape) or columns[-1].dtype != np.dtype("<f4"):
            return {}
    return {
        name: (stat.mark, [column[start:stop] for column in columns])
        for (name, stat), (start, stop) in zip(about.shards.items(), pairwise(starts.tolist()), strict=True)
    }
