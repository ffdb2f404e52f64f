"""What a search keeps beside a feature store: tables that follow from the features and one head's weights.

    STORE/search/KEY/
      about.json                   which shards the files below are made of, by digest
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
from typing import Any, BinaryIO

import numpy as np
import torch

from calmctl.data.store import FeatureStore
from calmctl.files import write_atomic, write_json
from calmctl.model.heads.base import VideoTable
from calmctl.searching.mapped import MappedFrames, ShardRows
from calmctl.searching.marks import ABOUT, generation, read_about, remove_stale, require_whole, shard_mark
from calmctl.searching.scorers import Scorer

FOLDER = "search"
Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class SearchIndex:
    """Clips that a scorer can score.

    Attributes:
        frames: Their features.
        columns: The tensors of the table, [N, ...] float32, as memory maps.
        folder: Where the index lies.
        made: Clips whose table was made by this opening; the others were there.
    """

    frames: MappedFrames
    columns: Mapping[str, np.ndarray]
    folder: Path
    made: int

    def table(self, where: slice | np.ndarray, device: torch.device) -> VideoTable:
        """The scorer's table of some clips; of a slice nothing is copied."""
        return {name: torch.from_numpy(np.asarray(column[where])).to(device) for name, column in self.columns.items()}


def open_index(
    store: FeatureStore, shards: Sequence[ShardRows], scorer: Scorer, progress: Progress | None = None
) -> SearchIndex:
    """Open the index of a scorer over a store, made or brought up to date first where that is needed.

    Raises:
        StoreError: A shard is damaged.
        RunFailed: The index cannot be written.
    """
    folder = store.path / FOLDER / scorer.key[:16]
    sample = scorer.table(torch.ones(store.shape("frames", 1), device=scorer.device))
    shapes = {name: tuple(part.shape[1:]) for name, part in sample.items()}
    old = read_about(folder, scorer.key)
    stats = require_whole(store, shards, old["shards"] if old else {})
    frames = MappedFrames(store, shards)
    name = generation(shards)
    kept = _kept_rows(folder, old, shapes)
    new = {shard.name for shard in shards if kept.get(shard.name, (None,))[0] != shard_mark(shard)}
    made = sum(len(shard.rows) for shard in shards if shard.name in new)
    files = {column: folder / f"{name}-{column}.npy" for column in shapes}
    if new or not all(file.is_file() for file in files.values()):

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

        _write_columns(files, shapes, len(frames), parts())
    if old is None or old.get("generation") != name or old["shards"] != stats:
        write_json(folder / ABOUT, {"key": scorer.key, "generation": name, "shards": stats})
    remove_stale(folder, "*.npy", set(files.values()))
    columns = {column: np.load(file, mmap_mode="c", allow_pickle=False) for column, file in files.items()}
    return SearchIndex(frames, columns, folder, made)


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
    folder: Path, about: dict[str, Any] | None, shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, tuple[str, list[np.ndarray]]]:
    """The rows of each shard in the columns of before, with the mark of what they were made of."""
    if about is None:
        return {}
    starts = np.cumsum([0, *(stat[1] for stat in about["shards"].values())])
    columns = []
    for column, shape in shapes.items():
        file = folder / Path(f"{about.get('generation')}-{column}.npy").name
        try:
            columns.append(np.load(file, mmap_mode="r", allow_pickle=False))
        except (OSError, ValueError):
            return {}
        if columns[-1].shape != (starts[-1], *shape):
            return {}
    return {
        name: (stat[0], [column[start:stop] for column in columns])
        for (name, stat), (start, stop) in zip(about["shards"].items(), pairwise(starts.tolist()), strict=True)
    }
