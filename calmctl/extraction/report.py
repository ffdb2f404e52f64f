"""What an extraction did, and how far it is while it does it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from calmctl.data.samples import LeftOut


@dataclass(frozen=True, slots=True)
class Progress:
    """How far an extraction is.

    Attributes:
        unit: What is being counted now.
        done: How many of this run's are finished, those left out included.
        total: How many this run has to do.
        left_out: How many of the finished could not be decoded.
    """

    unit: Literal["clips", "captions"]
    done: int
    total: int
    left_out: int = 0


OnProgress = Callable[[Progress], None]


@dataclass(frozen=True, slots=True)
class ExtractReport:
    """What an extraction did.

    Attributes:
        store: The store's folder.
        dataset: The dataset's name.
        protocol: Its protocol.
        shard: (i, n): this run did the i-th of n parts, counted from 1.
        clips_extracted: Clips decoded and encoded by this run.
        clips_kept: Clips of this part that were there already.
        texts_extracted: Sentences encoded by this run.
        texts_kept: Sentences of this part that were there already.
        redone: Shards that were there and had to be made again, with the reason.
        undecodable: Clips of this part that could not be decoded, with reasons.
        missing: Clips of the protocol whose file does not exist, with reasons.
        duration_s: Wall time of decoding and encoding clips.
        notes: Facts about the dataset, and on captions that are not read to their end.
        unread: Folders and files of the dataset that were not read, with reasons.
    """

    store: Path
    dataset: str
    protocol: str
    shard: tuple[int, int]
    clips_extracted: int
    clips_kept: int
    texts_extracted: int
    texts_kept: int
    redone: tuple[str, ...]
    undecodable: tuple[LeftOut, ...]
    missing: tuple[LeftOut, ...]
    duration_s: float
    notes: tuple[str, ...] = ()
    unread: tuple[LeftOut, ...] = ()

    @property
    def clips_per_s(self) -> float | None:
        """Clips a second, decoding and encoding together; None when there was nothing to do."""
        return self.clips_extracted / self.duration_s if self.clips_extracted else None

    def as_json(self) -> dict[str, Any]:
        """The report for programs."""
        return {**asdict(self), "store": str(self.store), "clips_per_s": self.clips_per_s}
