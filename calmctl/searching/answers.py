"""What a search gives back."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from calmctl.data.samples import LeftOut


@dataclass(frozen=True, slots=True)
class Shared:
    """An anchor that sentence and clip both have, and min(V_p, S_p) of it."""

    anchor: str
    share: float


@dataclass(frozen=True, slots=True)
class Hit:
    """One clip of an answer.

    Attributes:
        rank: From 1.
        score: The head's cosine, in float64.
        clip: Its id.
        file: Where it lies; None where only its features are known.
        start_s: When the clip begins by its file's own clock, as a player shows it; from the file's first frame where
            only features are known.
        end_s: When it ends; None where only its features are known.
        shared: The strongest shared anchors; None where they were not asked for.
        neighbours: Windows that overlap or adjoin this one and score less: the same moment, so no hits of their own.
        begins_s: When the file's first frame is shown by that clock.
    """

    rank: int
    score: float
    clip: str
    file: Path | None
    start_s: float
    end_s: float | None
    shared: tuple[Shared, ...] | None = None
    neighbours: int = 0
    begins_s: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """Plain data, for programs."""
        return {**asdict(self), "file": None if self.file is None else str(self.file)}


@dataclass(frozen=True, slots=True)
class Answer:
    """What a query found, the best first."""

    query: str
    hits: tuple[Hit, ...]


@dataclass(frozen=True, slots=True)
class Found:
    """A search.

    Attributes:
        seeker: Who searched.
        collection: What was searched.
        clips: How many clips that are.
        unit: What one of them is, "clip" or "window".
        method: How, for people.
        answers: One for each query.
        left_out: Files that could not be decoded.
    """

    seeker: str
    collection: Path
    clips: int
    unit: str
    method: str
    answers: tuple[Answer, ...]
    left_out: tuple[LeftOut, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain data, for programs."""
        return {
            "by": self.seeker,
            "collection": str(self.collection),
            "clips": self.clips,
            "unit": self.unit,
            "method": self.method,
            "answers": [
                {
                    "query": answer.query,
                    "hits": [
                        {**asdict(hit), "file": None if hit.file is None else str(hit.file)} for hit in answer.hits
                    ],
                }
                for answer in self.answers
            ],
            "left_out": {clip.id: clip.reason for clip in self.left_out},
        }
