"""Numbers that options take: each with the range in which it means something.

A number is finite, and small enough that no command can be made to take all memory or all time by one. Outside its
range the command line says so before anything is loaded. What an option means stands at the option.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import typer


@dataclass(frozen=True, slots=True)
class Range:
    """From `least` to `most`, both included; call it for an option with such numbers."""

    least: float
    most: float

    def __call__(self, *names: str, help: str, metavar: str | None = None, panel: str | None = None) -> Any:
        """What `typer.Option` makes of it, for `Annotated`."""
        return typer.Option(
            *names,
            min=self.least,
            max=self.most,
            callback=_number,
            help=help,
            metavar=metavar or "N",  # the range is told when it is missed, and takes half a line in the help
            rich_help_panel=panel,
        )


def _number(value: float | None) -> float | None:
    """Refuse what lies in no range and, as older command-line libraries compare, outside of none."""
    if isinstance(value, float) and math.isnan(value):
        raise typer.BadParameter("nan is no number")
    return value


TIMEOUT_S = Range(0.1, 86_400)
SECONDS = Range(0.1, 86_400)
WORKERS = Range(1, 1024)
FRAMES = Range(1, 1000)
INSTANTS = Range(1, 1000)
ACTORS = Range(0, 10_000)
SEED = Range(0, 2**63 - 1)
RUNS = Range(1, 1000)
BEAMS = Range(1, 100)
LENGTH_PENALTY = Range(0, 10)
TEMPERATURE = Range(0.01, 100)
HITS = Range(1, 1_000_000)
LABELS = Range(1, 1_000_000)
VERSION = Range(1, 1_000_000)
