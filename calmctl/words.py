"""Numbers of things in words."""

from __future__ import annotations

import os
import sys

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
    shown = []
    for place, c in enumerate(text):
        beside = text[place - 1 : place] + text[place + 1 : place + 2]
        between = len(beside) == 2 and beside.isprintable() and min(beside) > "\x7f"
        kept = c.isprintable() or c in _BLANKS or (c in _JOINERS and between)
        shown.append(c if kept else repr(c)[1:-1])
    return "".join(shown)


def utf8_name(name: str) -> tuple[str, str | None]:
    """A file's name as text, and why it cannot be used, if it cannot.

    Names are bytes. Where the locale is not UTF-8, Python gives those that are as something else.
    """
    try:
        text = os.fsencode(name).decode("utf-8")
    except UnicodeDecodeError:
        return name.encode("utf-8", "backslashreplace").decode("utf-8"), "its path is not valid UTF-8: rename it"
    if text != name:
        return text, f"this locale ({sys.getfilesystemencoding()}) cannot name it: set PYTHONUTF8=1 and run again"
    return text, None
