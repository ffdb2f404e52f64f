"""What sentences for people are made of: numbers of things, and other people's text made harmless."""

from __future__ import annotations

_READABLE = frozenset("\u00a0\u1680\u202f\u205f\u3000\u200c\u200d") | {chr(code) for code in range(0x2000, 0x200B)}
"""Blanks of other scripts, and what joins or parts letters and emoji: no terminal obeys them, and names need them."""


def counted(n: int, noun: str) -> str:
    """`1 clip`, `2,000 clips`, `3 queries`: a number with its noun."""
    if n != 1:
        noun = f"{noun[:-1]}ies" if noun.endswith("y") and noun[-2:-1] not in "aeiou" else f"{noun}s"
    return f"{n:,} {noun}"


def visible(text: str) -> str:
    """`text` with control and direction-changing characters shown as Python would write them, and not obeyed."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in _READABLE else repr(c)[1:-1] for c in text)
