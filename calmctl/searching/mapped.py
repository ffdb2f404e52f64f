"""A feature store's clips as rows in one order, read through memory maps."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from calmctl.data.store import FeatureStore
from calmctl.data.store_format import shard_file
from calmctl.errors import StoreError


@dataclass(frozen=True, slots=True)
class ShardRows:
    """The rows of one shard that are searched.

    Attributes:
        group: Number of the shard.
        name: Its file.
        sha256: Its digest, as the store's index says.
        rows: Rows of the file, ascending.
        ids: Their clips.
    """

    group: int
    name: str
    sha256: str
    rows: tuple[int, ...]
    ids: tuple[str, ...]


def searched_rows(store: FeatureStore) -> tuple[ShardRows, ...]:
    """The clips of a store that have features and belong to a split, shard by shard.

    A clip that has left its folder is in no split any more: its features stay in their shard, unsearched.
    """
    wanted = {key for split in store.splits for key in store.split(split).ids}
    found = []
    for group in range(len(store.groups("frames"))):
        entry = store.entry("frames", group)
        if entry is None:
            continue
        kept = [(row, key) for row, key in enumerate(store.present("frames", group)) if key in wanted]
        if kept:
            rows, ids = zip(*kept, strict=True)
            found.append(ShardRows(group, shard_file("frames", group), entry.sha256, rows, ids))
    return tuple(found)


class MappedFrames:
    """Frame features [N, F, D] of the searched clips; only what is asked for is read, and nothing is kept.

    Attributes:
        ids: The N clips.
        starts: Where each shard's rows begin, [shards + 1].
        dtype: Of the features on disk.
    """

    def __init__(self, store: FeatureStore, shards: Sequence[ShardRows]) -> None:
        self.ids = tuple(key for shard in shards for key in shard.ids)
        self.starts = np.cumsum([0, *(len(shard.rows) for shard in shards)])
        self.n_frames, self.dim = store.header.n_frames, store.dim
        self.dtype = getattr(torch, store.header.dtype)
        self._shards = shards
        self._maps = [_mapped(store.path / shard.name) for shard in shards]

    def __len__(self) -> int:
        return len(self.ids)

    def group(self, position: int) -> int:
        """The number of the shard that holds a clip."""
        return self._shards[int(np.searchsorted(self.starts, position, side="right")) - 1].group

    def stored(self, start: int, stop: int) -> Iterator[Tensor]:
        """Clips `start` to `stop` as they lie in their shards, [n, F, D] a part; of whole shards nothing is copied."""
        for number in range(int(np.searchsorted(self.starts, start, side="right")) - 1, len(self._shards)):
            first, end = int(self.starts[number]), int(self.starts[number + 1])
            if first >= stop:
                break
            low, high = max(start, first) - first, min(stop, end) - first
            rows, mapped = self._shards[number].rows, self._maps[number]
            yield mapped[low:high] if len(rows) == len(mapped) else mapped[list(rows[low:high])]

    def block(self, start: int, stop: int, buffer: Tensor | None = None) -> Tensor:
        """Clips `start` to `stop` as float32 [n, F, D]; in `buffer`, where one of at least n clips is given.

        A buffer that is used again and again stays in the processor's cache, and its pages are there already.
        """
        out = self.empty(stop - start) if buffer is None else buffer[: stop - start]
        done = 0
        for part in self.stored(start, stop):
            out[done : done + len(part)].copy_(part)
            done += len(part)
        return out

    def rows(self, positions: np.ndarray) -> Tensor:
        """The clips at `positions` [n] as float32 [n, F, D]."""
        out = self.empty(len(positions))
        shards = np.searchsorted(self.starts, positions, side="right") - 1
        for place, (number, position) in enumerate(zip(shards.tolist(), positions.tolist(), strict=True)):
            out[place].copy_(self._maps[number][self._shards[number].rows[position - int(self.starts[number])]])
        return out

    def empty(self, n: int) -> Tensor:
        """Memory for n clips."""
        return torch.empty(n, self.n_frames, self.dim)


def _mapped(path: Path) -> Tensor:
    try:
        with safe_open(path, framework="pt") as handle:
            frames: Tensor = handle.get_tensor("frames")
            return frames
    except (SafetensorError, OSError) as fault:
        raise StoreError(f"{path} cannot be read ({fault}); run the same `calmctl extract` again") from None
