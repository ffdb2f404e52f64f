"""Consoles, progress bars and small tables that every subcommand shares."""

from __future__ import annotations

import errno
import json
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any, TextIO, cast

from rich.console import Console, ConsoleOptions, RenderableType
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
from rich.segment import Segment
from rich.text import Text

from calmctl.errors import RunFailed

WIDTH = 80
"""Tables fit this many columns, also where output is not a terminal."""


class ReaderLeft(Exception):
    """Whoever read standard output, as `head` does, has read enough: no error of ours."""


class Stream:
    """Standard output or standard error, whatever becomes of it.

    The work goes on where nobody can read what it says: there may be files to write. Results that were lost are an
    error at the end. Only a reader that has left on purpose ends the work.
    """

    def __init__(self, stream: TextIO, *, for_results: bool) -> None:
        self._stream, self._for_results = stream, for_results
        self._lost: OSError | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write; raises `ReaderLeft` where these are results."""
        try:
            return self._stream.write(text)
        except OSError as fault:
            self._give_up(fault)
            return len(text)

    def flush(self) -> None:
        """Flush; raises as `write`."""
        try:
            self._stream.flush()
        except OSError as fault:
            self._give_up(fault)

    def _give_up(self, fault: OSError) -> None:
        # What is still in buffers, and all that follows, goes nowhere: it must not fail again when Python ends.
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self._stream.fileno())
        os.close(nowhere)
        if self._for_results and isinstance(fault, BrokenPipeError):
            raise ReaderLeft from None
        self._lost = fault

    def require_whole(self) -> None:
        """Raise `RunFailed` where something was lost."""
        self.flush()  # now, where what goes wrong can still be told
        if self._lost is not None:
            reason = "it is closed" if self._lost.errno == errno.EBADF else self._lost.strerror
            raise RunFailed(f"standard output: {reason}; what was to be written to files is there")


def secure_streams() -> Stream:
    """Make the standard streams usable where they are closed, full, or of an odd encoding; returns standard output."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            # Or the next file that is opened becomes standard output, and what is printed goes into it. This one cannot
            # be written to either, so that results which nobody sees are an error.
            os.open(os.devnull, os.O_RDONLY if descriptor < 2 else os.O_WRONLY)
    sys.stdin = sys.stdin or open(0, closefd=False)  # noqa: SIM115
    out, notes = (
        Stream(stream or open(descriptor, "w", encoding="utf-8", closefd=False), for_results=descriptor == 1)  # noqa: SIM115
        for descriptor, stream in ((1, sys.stdout), (2, sys.stderr))
    )
    for stream in (out, notes):
        stream.reconfigure(errors="backslashreplace")
    sys.stdout, sys.stderr = cast(TextIO, out), cast(TextIO, notes)
    return out


class Terminal(Console):
    """A console on which other people's text cannot act, wherever it comes from.

    Captions, labels and file names may hold control sequences, marks that turn the direction of writing, or halves
    of characters. Whatever is not printable is shown as Python would write it.
    """

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterator[Segment]:
        """The segments of `renderable`; rich's own control codes are no text and pass."""
        for segment in super().render(renderable, options):
            if segment.control or segment.text.isprintable():
                yield segment
            else:
                yield Segment("".join(c if c == "\n" else visible(c) for c in segment.text), segment.style)


def stdout() -> Console:
    """The console results go to."""
    return Terminal(width=None if sys.stdout.isatty() else WIDTH, highlight=False, emoji=False)


def stderr() -> Console:
    """The console progress, notes and errors go to."""
    return Terminal(stderr=True, width=None if sys.stderr.isatty() else WIDTH, highlight=False, emoji=False)


def note(text: str) -> None:
    """Tell a person something on stderr, wrapped only by the terminal."""
    stderr().print(text, soft_wrap=True)


def print_json(value: Any) -> None:
    """Print `value` as JSON for programs, on stdout; what a terminal would obey is escaped."""
    written = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
    # They can only be inside strings, where JSON has them written either way.
    print("".join(c if c == "\n" or c.isprintable() else json.dumps(c)[1:-1] for c in written))


def print_text(text: str) -> None:
    """Print the text of a file as it is on stdout, but for what a terminal would obey."""
    print("".join(c if c in "\n\t" else visible(c) for c in text), end="")


def printable(text: str) -> str:
    """`text` with markup escaped and control characters shown instead of obeyed."""
    return escape(visible(text))


def visible(text: str) -> str:
    """`text` with whatever is not printable shown as Python would write it."""
    return text if text.isprintable() else "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


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
