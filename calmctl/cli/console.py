"""What every subcommand shows with: consoles, tables, progress bars and notes."""

from __future__ import annotations

import errno
import json
import os
import shlex
import shutil
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TextIO, cast

import typer
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.markup import escape
from rich.measure import Measurement
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
from rich.table import Table
from rich.text import Text

from calmctl.errors import BadInput, RunFailed
from calmctl.words import Watcher, counted, visible

if TYPE_CHECKING:
    from calmctl import words


UNBROKEN = 10_000
"""Columns where output is no terminal: a program that reads a table wants every row, path and caption on one line."""
_FOLDED = 12
"""Columns below which a path or a name is not folded (our choice)."""


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
        # rich and typer ask a stream for much more: its encoding, whether it is a terminal.
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
        # Notes that nobody reads are no reason to stop.
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
        # A locale that cannot write a caption's letters must not end the command.
        stream.reconfigure(errors="backslashreplace")
    sys.stdout, sys.stderr = cast(TextIO, out), cast(TextIO, notes)
    return out


class Terminal(Console):
    """A console on which other people's text cannot act, wherever it comes from.

    Captions, labels and file names may hold control sequences, marks that turn the direction of writing, or halves
    of characters. Whatever is not printable is shown as Python would write it. Our own signs have stand-ins as wide
    where the stream's code page lacks them.
    """

    _STAND_INS = str.maketrans("→–“”─▁▂▃▄▅▆▇█▏▎▍▌▋▊▉", '>-""-_.:-=+*#  -=++*')  # noqa: RUF001

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterator[Segment]:
        """The segments of `renderable`; rich's own control codes are no text and pass."""
        for segment in super().render(renderable, options):
            text = segment.text
            if not (segment.control or text.replace("\n", "").isprintable()):
                text = "\n".join(map(visible, text.split("\n")))
            # All signs or none: code page 437 has a whole block and no quarter of one.
            text = text if self.encoding.startswith("utf") else text.translate(self._STAND_INS)
            yield Segment(text, segment.style, segment.control)


def _width(stream: TextIO) -> int | None:
    """Columns of a stream: a terminal's own, or what COLUMNS says (rich asks both); else lines stay whole."""
    return None if stream.isatty() or os.environ.get("COLUMNS", "").isdigit() else UNBROKEN


def stdout() -> Console:
    """The console results go to."""
    # No emoji and no highlighting: a caption that says :smile: is printed as it is.
    return Terminal(width=_width(sys.stdout), highlight=False, emoji=False)


def stderr() -> Console:
    """The console progress, notes and errors go to."""
    return Terminal(stderr=True, width=_width(sys.stderr), highlight=False, emoji=False)


class Sheet(Table):
    """A table without lines that never cuts: text wraps, paths fold, and where that is not enough rows are stacked.

    Columns of `numbers`, right-justified, stay whole. A terminal too narrow for them gets each row as a list of
    "heading value" instead.
    """

    def __init__(self, *headings: str, numbers: Sequence[str] = (), **options: Any) -> None:
        super().__init__(*headings, **{"box": None, "pad_edge": False, **options})
        for heading in numbers:
            self.add_column(heading, justify="right")

    def add_column(  # type: ignore[override]
        self,
        header: RenderableType = "",
        *,
        justify: Literal["left", "center", "right"] = "left",
        overflow: Literal["fold", "ellipsis"] = "fold",
        no_wrap: bool | None = None,
        **options: Any,
    ) -> None:
        """Add a column; numbers do not wrap, everything else may."""
        whole = justify == "right" if no_wrap is None else no_wrap
        super().add_column(header, justify=justify, overflow=overflow, no_wrap=whole, **options)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """The table, or its rows one below the other."""
        if options.max_width >= UNBROKEN:  # no terminal: what folds for an eye is one cell for a program
            for column in self.columns:
                column.max_width = None
        if self._least(console, options) <= options.max_width:
            for line in Segment.split_lines(cast("Iterable[Segment]", super().__rich_console__(console, options))):
                yield from _unpadded(line)
                yield Segment.line()
            return
        if self.title:
            yield self.title if not isinstance(self.title, str) else Text.from_markup(self.title)
        # Stacked, because rich would cut what does not fit, numbers as well.
        for row in zip(*(column.cells for column in self.columns), strict=True):
            grid = Table.grid(padding=(0, 1))
            grid.add_column(overflow="fold", max_width=max(_FOLDED, options.max_width // 2))
            grid.add_column(overflow="fold")
            shown = [(column.header, cell) for column, cell in zip(self.columns, row, strict=True) if cell]
            for number, (header, cell) in enumerate(shown):
                grid.add_row(header if not isinstance(header, str) else f"{'' if number == 0 else '  '}{header}", cell)
            yield grid

    def _least(self, console: Console, options: ConsoleOptions) -> int:
        """The columns without which something would be cut."""
        wide, least = options.update(width=UNBROKEN), (len(self.columns) - 1) * sum(self.padding[1::2])
        for column in self.columns:
            cells = [Measurement.get(console, wide, cell) for cell in (column.header, *column.cells)]
            if column.no_wrap:
                least += max(cell.maximum for cell in cells)
            else:  # a heading and every word of text stay whole; what is longer is a path, which folds
                words = max(column.min_width or 0, *(cell.minimum for cell in cells))
                least += words if column.min_width else min(words, _FOLDED)
        return least


def facts_grid() -> Table:
    """A grid of names and what is to be said of them."""
    grid = Table.grid(padding=(0, 1))
    grid.add_column(min_width=8)
    grid.add_column(ratio=1)
    return grid


def section(title: str) -> Table:
    """A grid of facts, below a title that is printed at once."""
    stdout().print(f"\n[bold]{title}[/]")
    return facts_grid()


def facts_sheet() -> Sheet:
    """A table of names, which stay whole, and what is to be said of them."""
    sheet = Sheet(show_header=False)
    sheet.add_column(no_wrap=True)
    sheet.add_column()
    return sheet


def _unpadded(line: Sequence[Segment]) -> Iterator[Segment]:
    """A line of a table without the blanks at its end: in a pipe the longest cell would set them."""
    last = len(line)
    while last and not line[last - 1].text.strip():
        last -= 1
    for number, segment in enumerate(line[:last], start=1):
        yield Segment(segment.text.rstrip(), segment.style) if number == last else segment


def note(text: str) -> None:
    """Tell a person something on stderr, wrapped only by the terminal."""
    stderr().print(text, soft_wrap=True)


def print_json(value: Any) -> None:
    """Print `value` as JSON for programs, on stdout; what a terminal would obey is escaped."""
    # No NaN: JSON has none, and most readers refuse it. Letters that a code page lacks are written as JSON does.
    plain = not (getattr(sys.stdout, "encoding", None) or "").lower().startswith("utf")
    written = json.dumps(value, indent=2, ensure_ascii=plain, allow_nan=False)
    # They can only be inside strings, where JSON has them written either way.
    print("".join(c if c == "\n" or c.isprintable() else json.dumps(c)[1:-1] for c in written))


def print_text(text: str) -> None:
    """Print the text of a file as it is on stdout, but for what a terminal would obey."""
    print("".join(c if c in "\n\t" else visible(c) for c in text), end="")


def print_plain(text: str) -> None:
    """Print on stdout what is no markup, in whole lines: labels, and paths to be copied."""
    stdout().print(text, markup=False, soft_wrap=True)


def printable(text: str) -> str:
    """`text` with markup escaped and control characters shown instead of obeyed."""
    return escape(visible(text))


def loading(what: str) -> None:
    """Say at once what takes seconds: the model library is imported after this."""
    note(f"[dim]loading {printable(what)} ...[/]")


def activation() -> str | None:
    """The line after which `calmctl ...` can be typed; None where it can be already.

    After `make demo` the program lies in .venv, which no shell knows yet: without this line every command that is
    printed, by an error as well, would be "command not found".
    """
    if shutil.which("calmctl"):
        return None
    script = Path(sys.prefix, "bin", "activate")
    if not script.is_file():
        return f"PATH={shlex.quote(str(Path(sys.executable).parent))}:$PATH"
    return f"source {shlex.quote(os.path.relpath(script) if script.is_relative_to(Path.cwd()) else str(script))}"


def print_next(*commands: str) -> None:
    """Print what can be pasted next, whole lines each."""
    print_plain("Next:")
    for line in filter(None, (activation(), *commands)):
        print_plain(f"  {visible(line)}")


def ask(question: str, yes: bool) -> None:
    """Ask before what cannot be taken back, unless --yes has answered; no ends the command.

    Raises `BadInput` where nobody can answer.
    """
    if yes:
        return
    if not _somebody_is_there():
        raise BadInput(f"nobody is there to be asked: {question} Say --yes to do it without being asked")
    typer.confirm(question, abort=True)


def _somebody_is_there() -> bool:
    return sys.stdin.isatty()


class RateColumn(ProgressColumn):
    """Items a second, such as "41.2 clips/s"; what an item is, the bar's own words say ("reading val clips")."""

    def __init__(self, unit: str) -> None:
        super().__init__()
        self._unit = unit

    def render(self, task: Task) -> Text:
        """The rate of `task` so far."""
        rate = task.finished_speed or task.speed
        last = task.description.rpartition(" ")[2]
        unit = last if last.endswith("s") else self._unit
        return Text("" if rate is None or task.total is None else f"{rate:.1f} {unit}/s")


class _CountColumn(MofNCompleteColumn):
    """Such as "3/10", and nothing where nothing is counted."""

    def render(self, task: Task) -> Text:
        """The count of `task`."""
        return Text("") if task.total is None else super().render(task)


def progress_bar(unit: str) -> Progress:
    """A progress bar on stderr with rate and time left; silent where stderr is not a terminal."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        _CountColumn(),
        RateColumn(unit),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
        console=stderr(),
        disable=not sys.stderr.isatty(),
        transient=True,
    )


def readings(bar: Progress) -> words.Progress:
    """A `calmctl.words.Progress` that shows each "what" while it lasts.

    0 of 0 is work that cannot be counted: its name stands there until the next begins.
    """
    tasks: dict[str, TaskID] = {}

    def progress(what: str, done: int, total: int, left_out: int = 0, /) -> None:
        for former in [name for name in tasks if name != what and bar.tasks and _endless(bar, tasks[name])]:
            bar.remove_task(tasks.pop(former))
        if what not in tasks:
            tasks[what] = bar.add_task(what, total=total or None, note="")
        bar.update(tasks[what], completed=done, note=f"{left_out} left out" if left_out else "")
        # A full bar goes at once. It used to stand there while clips were ranked, as if the command hung.
        if total and done >= total:
            bar.remove_task(tasks.pop(what))

    return progress


def _endless(bar: Progress, task: TaskID) -> bool:
    return next(each.total for each in bar.tasks if each.id == task) is None


class BarWatcher(Watcher):
    """Shows a training as one bar, reading of clips as others, and validation numbers as lines."""

    def __init__(self, bar: Progress) -> None:
        self._bar = bar
        self._epochs = 1
        self._steps: TaskID | None = None
        self._readings = readings(bar)

    def stage(self, text: str) -> None:
        """Say the stage on a line of its own, also where stderr is no terminal."""
        self._bar.console.print(f"[bold]{printable(text)}[/]", soft_wrap=True)

    def begin(self, folder: Path, epochs: int) -> None:
        """Say where the run is, also where stderr is no terminal: whoever stops it wants to know."""
        self._epochs = epochs
        self._bar.console.print(f"run {printable(str(folder))}", soft_wrap=True)

    def step(self, done: int, total: int, loss: float) -> None:
        """Advance the bar of the training."""
        # Rounded up: the first steps are epoch 1 and the last one is not the next.
        epoch = max(1, -(-done * self._epochs // total))
        if self._steps is None:
            self._steps = self._bar.add_task("training steps", total=total, note="")
        self._bar.update(self._steps, completed=done, note=f"epoch {epoch}/{self._epochs}, loss {loss:.3f}")
        if done == total:
            self._bar.remove_task(self._steps)
            self._steps = None

    def reading(self, what: str, done: int, total: int, left_out: int = 0, /) -> None:
        """Advance the bar of some reading; it goes away when it is full."""
        self._readings(what, done, total, left_out)

    def epoch(self, epoch: int, validation: dict[str, float]) -> None:
        """Print the validation numbers of an epoch."""
        if "cider" in validation:
            self._bar.console.print(
                f"epoch {epoch}: validation CIDEr {validation['cider']:.1f} (ptb-python tokens)  "
                f"log p a token {validation['log_prob_per_token']:.2f}"
            )
            return
        self._bar.console.print(
            f"epoch {epoch}: validation R@1 {validation['t2v_r1']:.1f}  R@5 {validation['t2v_r5']:.1f}  "
            f"R@10 {validation['t2v_r10']:.1f}  MnR {validation['t2v_mnr']:.1f}"
            + (f"  (R@1 {validation['base_t2v_r1']:.1f} before re-ranking)" if "base_t2v_r1" in validation else "")
        )

    def warn(self, text: str) -> None:
        """Print a warning above the bar."""
        self._bar.console.print(f"[yellow]warning:[/] {printable(text)}", soft_wrap=True)


_NAMED = 3
"""Clips that a reason names (our choice)."""


def print_left_out(left_out: dict[str, dict[str, str]], *, noun: str = "clip") -> None:
    """Tell on stderr which clips were not used: by split and reason, with their number and the first names."""
    for split, entries in left_out.items():
        by_reason: dict[str, list[str]] = {}
        for clip, reason in entries.items():
            by_reason.setdefault(reason, []).append(clip)
        if entries:
            note(f"[yellow]{split}: {counted(len(entries), noun)} left out[/] (--json lists all)")
        # The most frequent reason first: it is the one to do something about.
        for reason, clips in sorted(by_reason.items(), key=lambda item: -len(item[1])):
            shown = ", ".join(clips[:_NAMED]) + (", ..." if len(clips) > _NAMED else "")
            note(f"  {len(clips)} x {printable(reason)}: {printable(shown)}")
