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
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from calmctl.data.store import FeatureStore
from calmctl.data.store_format import Digest
from calmctl.errors import RunFailed, StoreError
from calmctl.files import (
    locked,
    make_folder,
    read_json,
    remove_unfinished,
    sha256_bytes,
    sha256_file,
    stamp,
    write_json,
)
from calmctl.searching.mapped import ShardRows

FOLDER = "search"
_ABOUT = "about.json"


class _Part(BaseModel):
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


def described(path: Path) -> FileStat:
    """What `about.json` says of a file that was just written."""
    return FileStat(name=path.name, sha256=sha256_file(path), stamp=stamp(path))


def made_here(folder: Path, about: About | None, what: str) -> Path | None:
    """The cache's file for `what`, if it is the very one that was written here and still has its content."""
    file = None if about is None else about.files.get(what)
    if file is None:
        return None
    path = folder / file.name
    try:
        whole = stamp(path) == file.stamp and not path.is_symlink() and sha256_file(path) == file.sha256
    except OSError:
        return None
    return path if whole else None


@contextmanager
def cache_folder(store: FeatureStore, key: str, on_wait: Callable[[], None]) -> Iterator[tuple[Path, str | None]]:
    """The folder of a cache, held by this process, and why nothing can be kept in it, or None.

    What a killed process was writing there is removed.
    """
    folder = store.path / FOLDER / key[:16]
    reason = None
    with ExitStack() as held:
        try:
            if folder.is_symlink() or folder.parent.is_symlink():  # of a stranger's store, to a folder of one's own
                raise RunFailed(f"cannot write {folder}: it is a link to elsewhere")
            make_folder(folder)
            held.enter_context(locked(folder, RunFailed(f"{folder} is in use"), on_wait))
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
            stat = ShardStat(mark=shard_mark(shard), rows=len(shard.rows), stamp=stamp(store.path / shard.name))
        except OSError:
            stat = None
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
