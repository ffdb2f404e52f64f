"""Which shards of a store an extraction has to make, and why."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from calmctl.data.samples import Clip
from calmctl.data.store_format import Kind, shard_file
from calmctl.data.store_writer import StoreWriter
from calmctl.errors import BadInput


@dataclass(frozen=True, slots=True)
class Work:
    """The groups of one kind that this run answers for, and those of them that it has to make.

    Attributes:
        mine: Every `n`-th group, for part i of n.
        todo: The groups to make.
        redone: Shards that were there and have to be made again, with the reason.
    """

    mine: range
    todo: tuple[int, ...]
    redone: tuple[str, ...]

    @property
    def kept(self) -> tuple[int, ...]:
        """The groups whose shard stays as it is."""
        return tuple(group for group in self.mine if group not in set(self.todo))


def plan_work(
    store: StoreWriter, kind: Kind, clips: Mapping[str, Clip], *, shard: tuple[int, int], retry: bool
) -> Work:
    """Compare what is planned with what is on disk. Raises `BadInput` for a shard that makes no sense."""
    part, parts = shard
    if not 1 <= part <= parts:
        raise BadInput(f"shard {part}/{parts}: the parts are counted from 1 to n, as in 1/4, 2/4, 3/4, 4/4")
    mine = range(part - 1, len(store.groups(kind)), parts)
    reasons = {group: why for group in mine if (why := _reason(store, kind, group, clips, retry))}
    again = {group: why for group, why in reasons.items() if store.entry(kind, group)}
    return Work(mine, tuple(reasons), tuple(f"{shard_file(kind, group)} {why}" for group, why in again.items()))


def _reason(store: StoreWriter, kind: Kind, group: int, clips: Mapping[str, Clip], retry: bool) -> str | None:
    """Why a group has to be made, or None."""
    _, fault = store.shard(kind, group)
    if fault is not None or kind == "texts":
        return fault
    if changed := store.changed_clips(group, clips):
        return f"has a clip whose file has changed ({changed[0]})"
    entry = store.entry(kind, group)
    return "has clips to be tried again" if retry and entry and entry.left_out else None
