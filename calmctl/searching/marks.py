"""What an index was made of, and whether the store still is that."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence, Set
from contextlib import suppress
from pathlib import Path
from typing import Any

from calmctl.data.store import FeatureStore
from calmctl.errors import StoreError
from calmctl.files import read_json, sha256_bytes
from calmctl.searching.mapped import ShardRows

ABOUT = "about.json"
Stats = dict[str, list[Any]]
"""Of each shard's file: its mark, how many rows are searched, its size in bytes and its time of change in ns."""


def read_about(folder: Path, key: str) -> dict[str, Any] | None:
    """What an index says it was made of; None where there is none that fits, which is then made."""
    try:
        about = read_json(folder / ABOUT, what="search index", error=StoreError)
    except StoreError:
        return None
    return about if isinstance(about, dict) and about.get("key") == key and "shards" in about else None


def require_whole(store: FeatureStore, shards: Sequence[ShardRows], known: Mapping[str, Any]) -> Stats:
    """The `Stats` of the shards as they are now; `known` are those of the last time.

    A file that is not the one whose digest was checked when the index was made is checked now.

    Raises:
        StoreError: A shard's digest is not the one in the store's index.
    """
    stats: Stats = {}
    for shard in shards:
        try:
            status = (store.path / shard.name).stat()
        except OSError:
            status = None
        stat = [shard_mark(shard), len(shard.rows), status.st_size, status.st_mtime_ns] if status else None
        if stat is None or known.get(shard.name) != stat:
            _, fault = store.shard("frames", shard.group)
            if fault is not None:
                raise StoreError(f"{store.path / shard.name} {fault}; run the same command that extracted it again")
        assert stat is not None
        stats[shard.name] = stat
    return stats


def shard_mark(shard: ShardRows) -> str:
    """What a shard's part of an index depends on: its content, and which of its rows are searched."""
    return sha256_bytes(json.dumps([shard.sha256, shard.rows]).encode("ascii"))


def generation(shards: Sequence[ShardRows]) -> str:
    """What all of an index depends on, beside its key, in a few letters."""
    return sha256_bytes("".join(shard_mark(shard) for shard in shards).encode("ascii"))[:16]


def remove_stale(folder: Path, pattern: str, kept: Set[Path]) -> None:
    """Delete the files of earlier generations."""
    for stale in folder.glob(pattern):
        if stale not in kept:
            with suppress(OSError):  # Windows keeps a file that another process has mapped: it goes the next time
                stale.unlink()
