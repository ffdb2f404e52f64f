"""The caches of a search: what they were made of, and whether that and they themselves are still the same.

Tables and graphs lie beside a store, and a store may come from anybody. A cache is believed only where `about.json` is
whole and fits the question, every file in it has the digest that is told there, and has the stamp as well that the
system gave it when it was written here: no file that came with a store has that. Whatever else lies there is made
again, and is never opened by native code.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError, safe_open
from torch import Tensor

from calmctl.errors import RunFailed, StoreError
from calmctl.files import (
    make_folder,
    read_json,
    sha256_bytes,
    sha256_file,
    stamp,
    write_json,
)
from calmctl.locks import locked, remove_unfinished
from calmctl.store.format import Digest, shard_file
from calmctl.store.store import FeatureStore

FOLDER = "search"
_ABOUT = "about.json"


class _Part(BaseModel):
    # Whatever does not fit to the letter is no cache, which is then made anew: nobody has to repair one.
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class ShardStat(_Part):
    """A shard: what its rows in the cache depend on, how many these are, and the stamp of its file when checked."""

    mark: Digest
    rows: Annotated[int, Field(ge=0)]
    stamp: list[int]


class FileStat(_Part):
    """A file of the cache."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]+$")]
    sha256: Digest
    stamp: list[int]


class About(_Part):
    """`about.json`.

    Attributes:
        key: What the cache depends on beside the features.
        shards: What it was made of, by name, in order.
        files: What it consists of, by what it is for.
    """

    version: Literal[2] = 2
    key: Digest
    shards: dict[str, ShardStat]
    files: dict[str, FileStat]


def read_about(folder: Path, key: str) -> About | None:
    """What a cache says about itself; None where there is none that is whole and fits, which is then made."""
    try:
        # Its own digest too: an entry that fits the form may still be damaged, and would be read by native code.
        content = read_json(folder / _ABOUT, what="search index", error=StoreError)
        digest = content.pop("sha256", None) if isinstance(content, dict) else None
        about = About.model_validate(content)
    except (StoreError, ValidationError):
        return None
    return about if about.key == key and digest == _digest(about) else None


def write_about(folder: Path, about: About) -> None:
    """Write it, with its own digest. Raises `RunFailed` when it cannot."""
    write_json(folder / _ABOUT, {**about.model_dump(), "sha256": _digest(about)})


def _digest(about: About) -> str:
    return sha256_bytes(json.dumps(about.model_dump(), sort_keys=True).encode("ascii"))


def file_stat(path: Path) -> FileStat:
    """What `about.json` says of a file that was just written."""
    return FileStat(name=path.name, sha256=sha256_file(path), stamp=stamp(path))


def trusted_file(folder: Path, about: About | None, what: str) -> Path | None:
    """The cache's file for `what`, if it is the very one that was written here and still has its content."""
    file = None if about is None else about.files.get(what)
    if file is None:
        return None
    path = folder / file.name
    try:
        # The stamp has inode and time of change, which no copy keeps; the digest finds what was changed in place.
        whole = stamp(path) == file.stamp and not path.is_symlink() and sha256_file(path) == file.sha256
    except OSError:
        return None
    return path if whole else None


@contextmanager
def cache_folder(store: FeatureStore, key: str, on_wait: Callable[[], None]) -> Iterator[tuple[Path, str | None]]:
    """The folder of a cache, held by this process, and why nothing can be kept in it, or None.

    What a killed process was writing there is removed.
    """
    # Enough of the key for a name: all of it is in about.json, which is compared.
    folder = store.path / FOLDER / key[:16]
    reason = None
    with ExitStack() as stack:
        try:
            if folder.is_symlink() or folder.parent.is_symlink():  # of a stranger's store, to a folder of one's own
                raise RunFailed(f"cannot write {folder}: it is a link to elsewhere")
            make_folder(folder)
            stack.enter_context(locked(folder, RunFailed(f"{folder} is in use"), on_wait))
            # A killed process leaves a table half written, 1.9 GB of it for a million clips, and nothing else removes
            # it.
            remove_unfinished(folder)
        except RunFailed as fault:
            reason = str(fault)
        yield folder, reason


def require_whole(
    store: FeatureStore, shards: Sequence[ShardRows], known: Mapping[str, ShardStat]
) -> dict[str, ShardStat]:
    """The shards as they are now; `known` is what was checked the last time.

    A file that is not the one whose digest was checked when the index was made is checked now.

    Raises:
        StoreError: A shard's digest is not the one in the store's index.
    """
    stats: dict[str, ShardStat] = {}
    for shard in shards:
        try:
            stat = ShardStat(mark=shard_version(shard), rows=len(shard.rows), stamp=stamp(store.path / shard.name))
        except OSError:
            stat = None
        # The features of a million clips are 12 GB, so files with the stamp of the last check are not read again.
        if stat is None or known.get(shard.name) != stat:
            _, fault = store.shard("frames", shard.group)
            if fault is not None:
                raise StoreError(f"{store.path / shard.name} {fault}; run the same command that extracted it again")
        assert stat is not None
        stats[shard.name] = stat
    return stats


def shard_version(shard: ShardRows) -> str:
    """What a shard's part of an index depends on: its content, and which of its rows are searched."""
    return sha256_bytes(json.dumps([shard.sha256, shard.rows]).encode("ascii"))


def generation(shards: Sequence[ShardRows]) -> str:
    """What all of an index depends on, beside its key, in a few letters."""
    return sha256_bytes("".join(shard_version(shard) for shard in shards).encode("ascii"))[:16]


def remove_stale(folder: Path, pattern: str, kept: Set[Path]) -> None:
    """Delete the files of earlier generations."""
    for stale in folder.glob(pattern):
        if stale not in kept:
            with suppress(OSError):  # Windows keeps a file that another process has mapped: it goes the next time
                stale.unlink()


# A feature store's clips as rows in one order, read through memory maps.


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
    shards = []
    for group in range(len(store.groups("frames"))):
        entry = store.entry("frames", group)
        if entry is None:
            continue
        kept = [(row, key) for row, key in enumerate(store.present("frames", group)) if key in wanted]
        if kept:
            rows, ids = zip(*kept, strict=True)
            shards.append(ShardRows(group, shard_file("frames", group), entry.sha256, rows, ids))
    return tuple(shards)


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
