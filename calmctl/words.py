"""Numbers of things in words, and how far a piece of work is: `Progress` of one, `Watcher` of trainings."""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Protocol, TypeVar

_BLANKS = frozenset("\u00a0\u1680\u202f\u205f\u3000") | {chr(code) for code in range(0x2000, 0x200B)}
"""Blanks of other scripts: no terminal obeys them, and names need them."""
_JOINERS = frozenset("\u200c\u200d")
"""What joins or parts letters and emoji: between two of those it is part of them, anywhere else it hides."""


def counted(n: int, noun: str) -> str:
    """`1 clip`, `2,000 clips`, `3 queries`: a number with its noun."""
    if n != 1:
        noun = f"{noun[:-1]}ies" if noun.endswith("y") and noun[-2:-1] not in "aeiou" else f"{noun}s"
    return f"{n:,} {noun}"


def visible(text: str) -> str:
    """`text` with control and direction-changing characters shown as Python would write them, and not obeyed."""
    if text.isprintable():
        return text
    # Names and captions come from strangers, and a terminal obeys what is printed: colours, cursor moves, text that
    # runs backwards. So all that Python calls unprintable is spelled out, but for what real scripts need.
    shown = []
    for place, c in enumerate(text):
        beside = text[place - 1 : place] + text[place + 1 : place + 2]
        between = len(beside) == 2 and beside.isprintable() and min(beside) > "\x7f"
        kept = c.isprintable() or c in _BLANKS or (c in _JOINERS and between)
        shown.append(c if kept else repr(c)[1:-1])
    return "".join(shown)


_FORMULAS = ("=", "+", "-", "@", "\t", "\r")


def is_formula(text: str) -> bool:
    """Whether a spreadsheet that opens a CSV file would compute a cell of this text instead of showing it."""
    return text.startswith(_FORMULAS)


def cell(text: str) -> str:
    """A text as a cell of a CSV file: behind an apostrophe where it would be a formula; `uncell` takes that away."""
    return f"'{text}" if is_formula(text.lstrip("'")) else text


def uncell(text: str) -> str:
    """The text that `cell` wrote."""
    return text[1:] if text[:1] == "'" and is_formula(text.lstrip("'")) else text


def utf8_name(name: str) -> tuple[str, str | None]:
    """A file's name as text, and why it cannot be used, if it cannot.

    Names are bytes. Where the locale is not UTF-8, Python gives those that are as something else.
    """
    if name.isascii():  # the same bytes in every locale, and a folder has 10^5 of them
        return name, None
    try:
        # JSON, captions files and digests are UTF-8: a name that is not can be stored nowhere and matched with nothing.
        text = os.fsencode(name).decode("utf-8")
    except UnicodeDecodeError:
        return name.encode("utf-8", "backslashreplace").decode("utf-8"), "its path is not valid UTF-8: rename it"
    if text != name:
        return text, f"this locale ({sys.getfilesystemencoding()}) cannot name it: set PYTHONUTF8=1 and run again"
    return text, None


METRIC_NAMES = {
    "r1": "R@1",
    "r5": "R@5",
    "r10": "R@10",
    "mdr": "MdR",
    "mnr": "MnR",
    "cider": "CIDEr",
    "rouge_l": "ROUGE-L",
    "bleu4": "BLEU-4",
    "meteor": "METEOR",
}
"""What people read for the keys of metrics in results."""
WAYS = {"text_to_video": "text to video", "video_to_text": "video to text", "captions": "captions"}
"""Directions that are shown, and the one of captions, where there is none."""

Item = TypeVar("Item")

TOLD_EVERY_S = 0.1
"""How often a bar hears of quick items (our choice)."""


class Progress(Protocol):
    """Who is told how far a piece of work is."""

    def __call__(self, what: str, done: int, total: int, left_out: int = 0, /) -> None:
        """`done` of `total` items are finished, some of them left out; 0 of 0 where nobody can count them."""


def watched(items: Iterable[Item], what: str, total: int, progress: Progress | None) -> Iterator[Item]:
    """The items, with `progress` told after them: of the first, the last, and ten times a second between."""
    # Told after the item was used, not when it was handed out: a bar at 100 % means that the work is done. A bar is not
    # drawn more often either, and quick items would pay more for being told than for being read.
    told_s = -math.inf
    for done, item in enumerate(items, start=1):
        yield item
        if progress and (done == total or time.monotonic() - told_s >= TOLD_EVERY_S):
            told_s = time.monotonic()
            progress(what, done, total)


class Watcher:
    """Shows what a training does, or several in stages; the command line has one with a bar.

    The methods here do nothing: a watcher that inherits them has only those that it is about.
    """

    def stage(self, text: str) -> None:
        """A stage of the work begins."""

    def begin(self, folder: Path, epochs: int) -> None:
        """Before the first clip is read: the run's folder, and how many epochs it has."""

    def reading(self, what: str, done: int, total: int, left_out: int = 0, /) -> None:
        """The `Progress` of what is read, drawn or encoded."""

    def step(self, done: int, total: int, loss: float) -> None:
        """After each step."""

    def epoch(self, epoch: int, validation: dict[str, float]) -> None:
        """After each epoch's validation."""

    def warn(self, text: str) -> None:
        """A sentence or two on what seems to go wrong."""


SILENT = Watcher()
