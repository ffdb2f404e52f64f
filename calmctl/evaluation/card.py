"""The protocol card: how a number was made, carried by the number, so that two are told apart before they are compared.

Recalls of one data set differ by 5 to 20 points with its test list, its captions a clip, the frames and the scorer
(docs/protocols.md). A table puts two numbers into one column only where their cards do not differ.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import numpy as np

from calmctl.data.benchmark import Annotated, split_digest
from calmctl.errors import BadInput
from calmctl.files import parse_json, read_regular, sha256_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """How a number was made; None where that is not known.

    Attributes:
        dataset: Name of what was tested on.
        protocol: Its protocol, "" where there is only one.
        split: "test" or "val".
        list_digest: `data.benchmark.split_digest` of the clips and captions that were used: the same whatever file told
            them. Of ids alone it begins with "ids ".
        queries: How many were asked; sentences, or clips where captions are made.
        candidates: How many each of them ranks; references where captions are made.
        captions: Captions of a clip, the fewest and the most.
        left_out: Clips of the protocol that were not used.
        frames: Frames of a clip.
        reader: What decoded them, with its version.
        files: Digest of the clips' files: copies of one data set that were encoded anew are others.
        pixels: Size of a frame, and how it got there.
        scorer: As in `Labels`, or the scorer of captions.
        selection: How the weights were chosen among those of a training.
        weights: SHA-256 of the weights.
        trained_on: Data set and protocol of the training.
        seeds: Of the training.
    """

    dataset: str | None = None
    protocol: str | None = None
    split: str | None = None
    list_digest: str | None = None
    queries: int | None = None
    candidates: int | None = None
    captions: tuple[int, ...] | None = None
    left_out: int | None = None
    frames: int | None = None
    reader: str | None = None
    files: str | None = None
    pixels: str | None = None
    scorer: str | None = None
    selection: str | None = None
    weights: str | None = None
    trained_on: str | None = None
    seeds: tuple[int, ...] | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain data, with the digests."""
        values = {name: list(each) if isinstance(each, tuple) else each for name, each in asdict(self).items()}
        return {**values, "column": self.column, "digest": self.digest}

    @classmethod
    def from_json(cls, values: Mapping[str, Any], place: str) -> Card:
        """What `to_json` gave; keys that a later version added are left out.

        Raises:
            BadInput: A value is of another type.
        """
        hints, known = get_type_hints(cls), {}
        for each in fields(cls):
            value = values.get(each.name)
            kind = next(kind for kind in get_args(hints[each.name]) if kind is not type(None))
            if get_origin(kind) is tuple and isinstance(value, list) and all(type(one) is int for one in value):
                value = tuple(value)
            if value is not None and not (type(value) is kind or (get_origin(kind) is tuple and type(value) is tuple)):
                raise BadInput(f"{place}: the card's {each.name} is no {getattr(kind, '__name__', 'list of numbers')}")
            known[each.name] = value
        return cls(**known)

    @property
    def digest(self) -> str:
        """Of all of it, 12 hexadecimal digits."""
        return _digest(asdict(self))

    @property
    def column(self) -> str:
        """Of what a column of a table has in common: all but which system answered."""
        return _digest({name: self._compared(name) for name in COMPARED})

    def differences(self, other: Card) -> tuple[str, ...]:
        """In what two cards differ, as far as both know it; nothing where their numbers may stand in one column."""
        pairs = [(name, getattr(self, name), getattr(other, name)) for name in COMPARED]
        return tuple(
            f"{NAMES[name]}: {shown_value(name, ours)} and {shown_value(name, theirs)}"
            for name, ours, theirs in pairs
            if None not in (ours, theirs) and ours != theirs and not self._same_list(other, name)
        )

    def unknown(self, other: Card) -> tuple[str, ...]:
        """What only one of two cards knows, or none of them."""
        return tuple(NAMES[name] for name in COMPARED if None in (getattr(self, name), getattr(other, name)))

    def _same_list(self, other: Card, name: str) -> bool:
        lists = self.list_digest, other.list_digest
        known = None not in lists
        if name == "list_digest":  # a list of ids says nothing of one of sentences
            return known and len({each.startswith("ids ") for each in lists if each}) == 2
        return name in ("dataset", "protocol") and known and lists[0] == lists[1]

    def _compared(self, name: str) -> Any:
        # Two protocols may share a test list, as MSR-VTT's 9k and 7k do: the list is what was tested.
        return None if name in ("dataset", "protocol") and self.list_digest else getattr(self, name)


NAMES = {
    "dataset": "data set",
    "protocol": "protocol",
    "split": "split",
    "list_digest": "clips and captions",
    "queries": "queries",
    "candidates": "candidates",
    "captions": "captions a clip",
    "left_out": "clips left out",
    "frames": "frames a clip",
    "reader": "reader",
    "files": "files of the clips",
    "pixels": "pixels",
    "scorer": "scorer",
    "selection": "selection",
    "weights": "weights",
    "trained_on": "trained on",
    "seeds": "seeds",
}
"""What people read for each of a card's fields."""
COMPARED = tuple(NAMES)[: tuple(NAMES).index("weights")]
"""What must not differ within a column; the rest tells which system answered."""


def shown_value(name: str, value: Any) -> str:
    """A field's value for people: digests short, numbers with separators."""
    if value is None:
        return "not known"
    if name == "captions":
        return " to ".join(f"{each:,}" for each in dict.fromkeys(value))
    if name == "seeds":
        return ", ".join(map(str, value))
    if name in ("list_digest", "files", "weights"):
        kind, _, digest = value.rpartition(" ")
        return f"{kind} {digest[:12]}".strip()
    return f"{value:,}" if isinstance(value, int) else str(value) or "the only one"


def _digest(values: Mapping[str, Any]) -> str:
    return sha256_bytes(repr(sorted(values.items())).encode())[:12]


def list_facts(ids: Sequence[str], captions: Sequence[str], owners: Sequence[int]) -> dict[str, Any]:
    """The card's list digest and captions a clip, of clips `ids` whose `captions[i]` is that of `ids[owners[i]]`."""
    counts = np.bincount(np.asarray(owners, dtype=np.int64), minlength=len(ids))
    pairs = [(ids[owner], caption) for owner, caption in zip(owners, captions, strict=True)]
    spread = (int(counts.min()), int(counts.max())) if len(counts) else None
    return {"list_digest": split_digest(Annotated(list(ids), pairs)), "captions": spread}


def cards_in(path: Path) -> Iterator[tuple[str, Card]]:
    """The cards in a JSON file of ours, or in the results of a run's folder, each with what it is of.

    Raises:
        BadInput: It cannot be read, or holds none.
    """
    if path.is_dir():
        files = [path / "results.json", *sorted((path / "evals").glob("*.json")), *sorted(path.glob("outcomes-*.json"))]
        files = [each for each in files if each.is_file()]
    else:
        files = [path]
    if path.suffix.lower() in (".csv", ".npz"):
        raise BadInput(
            f"{path}: cards are read from JSON, as --json prints and calmctl score writes with --ranks ranks.json"
        )
    count = 0
    for file in files:
        try:
            content = parse_json(read_regular(file))
        except (OSError, ValueError) as fault:
            why = fault.strerror if isinstance(fault, OSError) and fault.strerror else str(fault)
            raise BadInput(f"{file}: cannot be read as JSON: {why}") from None
        waiting = deque([(f"{path.name}: {file.stem}" if path.is_dir() else file.name, content)])
        while waiting:
            name, value = waiting.popleft()
            if isinstance(value, dict):
                if isinstance(value.get("card"), dict):
                    count += 1
                    what = [str(value[each]) for each in ("system", "method", "row") if value.get(each)]
                    yield ", ".join([name, *what]), Card.from_json(value["card"], str(file))
                waiting += [(name, each) for each in value.values() if isinstance(each, dict | list)]
            elif isinstance(value, list):
                waiting += [(name, each) for each in value if isinstance(each, dict | list)]
    if not count:
        raise BadInput(
            f"{path}: it holds no protocol card; numbers that were made before there were cards have none: evaluate "
            "again with calmctl eval or calmctl score, and --json"
        )
