"""What a search is asked and what it gives back."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from calmctl.samples import LeftOut
from calmctl.search.confidence import Confidence


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
        score: The head's cosine, in float64; re-ranked where the head does that.
        clip: Its id.
        file: Where it lies; None where only its features are known.
        start_s: When the clip begins by its file's own clock, as a player shows it; from the file's first frame where
            only features are known.
        end_s: When it ends; None where only its features are known.
        shared: The strongest shared anchors; None where they were not asked for.
        neighbours: Windows that overlap or adjoin this one and score less: the same moment, so no hits of their own.
        begins_s: When the file's first frame is shown by that clock.
        base_score: The score before re-ranking; None where the head does not re-rank.
        confidence: Whether it matches at all; None where that was not asked for.
        position: Its place in the collection, by which `Search` knows it.
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
    base_score: float | None = None
    confidence: Confidence | None = None
    position: int = 0

    def to_json(self) -> dict[str, Any]:
        """Plain data, for programs."""
        return {**told(self), "file": None if self.file is None else str(self.file)}


def told(hit: Any) -> dict[str, Any]:
    """A hit's fields, without the score before re-ranking and the confidence where there are none."""
    kept = asdict(hit)
    kept.pop("position", None)  # of this collection as it was opened: it means nothing to the next one
    return {name: each for name, each in kept.items() if each is not None or name not in ("base_score", "confidence")}


@dataclass(frozen=True, slots=True)
class Answer:
    """What a query found, the best first."""

    query: str
    hits: tuple[Hit, ...]

    @property
    def matches(self) -> int | None:
        """How many of the hits match; None where that was not asked for."""
        if not self.hits or any(hit.confidence is None for hit in self.hits):
            return None
        return sum(hit.confidence is not None and hit.confidence.match for hit in self.hits)


@dataclass(frozen=True, slots=True)
class Found:
    """A search.

    Attributes:
        seeker: Who searched.
        collection: What was searched.
        clips: How many clips that are.
        unit: What one of them is, "clip", "window" or "shot".
        method: How, for people.
        answers: One for each query.
        left_out: Files that could not be decoded.
        confidence: By what it is said whether something matches; None where that was not asked for.
    """

    seeker: str
    collection: Path
    clips: int
    unit: str
    method: str
    answers: tuple[Answer, ...]
    left_out: tuple[LeftOut, ...]
    confidence: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain data, for programs."""
        plain: dict[str, Any] = {
            "by": self.seeker,
            "collection": str(self.collection),
            "clips": self.clips,
            "unit": self.unit,
            "method": self.method,
            "answers": [
                {"query": answer.query, "hits": [hit.to_json() for hit in answer.hits]} for answer in self.answers
            ],
            "left_out": {clip.id: clip.reason for clip in self.left_out},
        }
        if self.confidence is None:
            return plain
        for answer, written in zip(self.answers, plain["answers"], strict=True):
            written["matches"] = answer.matches
        return {**plain, "confidence": self.confidence}


@dataclass(frozen=True, slots=True)
class Term:
    """A part of a combined question: a sentence, or a clip of the collection by its position.

    Attributes:
        text: The sentence; None for a clip.
        position: The clip; None for a sentence.
        weight: What it counts; below zero for what shall not be seen.
    """

    text: str | None = None
    position: int | None = None
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class Ranked:
    """One sentence for a clip; the rest as in `Hit`."""

    rank: int
    score: float
    sentence: str
    shared: tuple[Shared, ...] | None = None
    base_score: float | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain data, for programs."""
        return told(self)
