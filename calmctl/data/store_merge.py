"""Merging the stores of one extraction that was divided over machines or a job array."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from calmctl.data.store import FeatureStore
from calmctl.data.store_writer import StoreWriter
from calmctl.errors import StoreError


@dataclass(frozen=True, slots=True)
class MergeReport:
    """What a merge did.

    Attributes:
        store: The merged store's folder.
        shards_taken: Shards copied into it by this merge.
        clips: Clips that have features in it now.
        sentences: Sentences that have features in it now.
        incomplete: Shards that none of the parts had: those parts are still to be extracted.
    """

    store: Path
    shards_taken: int
    clips: int
    sentences: int
    incomplete: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """The report for programs."""
        return {**asdict(self), "store": str(self.store)}


def merge_stores(parts: Sequence[Path], out: Path) -> MergeReport:
    """Merge the stores that `extract` with `shard=(i, n)` made into one at `out`.

    The result is, byte for byte, the store a single extraction would have made. Merging again, with more
    parts, continues.

    Raises:
        StoreError: A part is no store, is damaged, or comes from another dataset or backbone.
        RunFailed: `out` cannot be written.
    """
    stores = [FeatureStore.open(part) for part in parts]
    if not stores:
        raise StoreError("nothing to merge: name the stores that `calmctl extract --shard i/n` made")
    with StoreWriter.create(out, stores[0].header) as merged:
        taken = sum(merged.take(store) for store in stores)
        return MergeReport(out, taken, len(merged.ids), len(merged.sentences), merged.verify())
