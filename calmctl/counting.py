"""Numbers of things in words."""

from __future__ import annotations


def counted(n: int, noun: str) -> str:
    """`1 clip`, `2,000 clips`: a number with its noun, which takes an s."""
    return f"{n:,} {noun}{'' if n == 1 else 's'}"
