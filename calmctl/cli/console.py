"""Consoles, progress bars and small tables that every subcommand shares."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

WIDTH = 80
"""Tables fit this many columns, also where output is not a terminal."""


def stdout() -> Console:
    """The console results go to."""
    return Console(width=None if sys.stdout.isatty() else WIDTH, highlight=False)


def stderr() -> Console:
    """The console progress, notes and errors go to."""
    return Console(stderr=True, width=None if sys.stderr.isatty() else WIDTH, highlight=False)


def note(text: str) -> None:
    """Tell a person something on stderr, wrapped only by the terminal."""
    stderr().print(text, soft_wrap=True)


def print_json(value: Any) -> None:
    """Print `value` as JSON for programs, on stdout."""
    print(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False))


def printable(text: str) -> str:
    """`text` with markup escaped and control characters shown instead of obeyed."""
    return escape("".join(c if c.isprintable() else repr(c)[1:-1] for c in text))


class RateColumn(ProgressColumn):
    """Items a second, such as "41.2 clips/s"."""

    def __init__(self, unit: str) -> None:
        super().__init__()
        self._unit = unit

    def render(self, task: Task) -> Text:
        """The rate of `task` so far."""
        rate = task.finished_speed or task.speed
        return Text("" if rate is None else f"{rate:.1f} {self._unit}/s")


def progress_bar(unit: str) -> Progress:
    """A progress bar on stderr with rate and time left; silent where stderr is not a terminal."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        RateColumn(unit),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
        console=stderr(),
        disable=not sys.stderr.isatty(),
        transient=True,
    )


def readings(bar: Progress) -> Callable[[str, int, int], None]:
    """A progress callback (what is done, items done, items in all) that gives each "what" a bar of its own."""
    tasks: dict[str, TaskID] = {}

    def progress(what: str, done: int, total: int) -> None:
        if what not in tasks:
            tasks[what] = bar.add_task(what, total=total, note="")
        bar.update(tasks[what], completed=done)

    return progress
