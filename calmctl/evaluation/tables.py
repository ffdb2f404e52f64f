"""Results as a table for people (80 columns) and as plain data for programs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.table import Table
from rich.text import Text

from calmctl.evaluation.metrics import Direction
from calmctl.evaluation.paper import PaperRetrieval
from calmctl.evaluation.result import HONEST_SCORER, RetrievalResult
from calmctl.evaluation.statistics import METRICS, Interval
from calmctl.words import counted

_WAYS: dict[Direction, str] = {"text_to_video": "text → video", "video_to_text": "video → text"}
_COLUMNS = (("", 15), ("R@1", 11), ("R@5", 11), ("R@10", 11), ("MdR", 11), ("MnR", 13))  # 77 with the gaps
_WIDTH = 77
_PAPER_NOTE = (
    "paper: text-to-video, one run without a seed, evaluator not stated; its baseline's released evaluator "
    "leaks, so these may be inflated (docs/protocols.md)"
)


@dataclass(frozen=True, slots=True)
class Fitting:
    """A table in two layouts: as it is meant, and one for fewer columns, so that no digit is cut."""

    wide: RenderableType
    width: int
    narrow: RenderableType

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """The layout there is room for."""
        yield self.wide if options.max_width >= self.width else self.narrow


def retrieval_table(results: Sequence[RetrievalResult]) -> RenderableType:
    """One block per test set: each direction with its interval, the paper's row, caveats at the foot."""
    return Fitting(_wide(results), _WIDTH, _narrow(results))


def metric_grid(columns: Sequence[tuple[str, int]]) -> Table:
    """A table without lines whose columns are as wide in every block, so that blocks stand under one header."""
    grid = Table.grid(padding=(0, 1))
    for name, width in columns:
        grid.add_column(justify="right" if name else "left", width=width, no_wrap=True)
    return grid


def metric_header(columns: Sequence[tuple[str, int]], width: int) -> list[RenderableType]:
    """The header of such tables, and a line under it."""
    header = metric_grid(columns)
    header.add_row(*(Text(name, style="bold") for name, _ in columns))
    return [header, Text("─" * width, style="dim")]


def from_to(interval: Interval, number: Callable[[float], str]) -> str:
    """An interval as tables print it, such as "53.1–66.5"."""
    return f"{number(interval.low)}–{number(interval.high)}"  # noqa: RUF001


def _wide(results: Sequence[RetrievalResult]) -> RenderableType:
    parts: list[RenderableType] = []
    if title := _title(results):
        parts += [Text(title, style="bold"), ""]
    parts += metric_header(_COLUMNS, _WIDTH)
    several_systems = len({each.labels.system for each in results}) > 1
    for result in results:
        parts += [_heading(result, several_systems=several_systems), _rows(result), ""]
    return Group(*parts, *_footnotes(results))


def _narrow(results: Sequence[RetrievalResult]) -> RenderableType:
    parts: list[RenderableType] = [Text(_title(results), style="bold")] if _title(results) else []
    several_systems = len({each.labels.system for each in results}) > 1
    for result in results:
        paper = result.paper
        papers = dict(zip(METRICS, _paper_cells(paper)[1:], strict=True)) if paper else {}
        mark = "" if result.labels.scorer == HONEST_SCORER else "!! "
        grid = Table.grid(padding=(0, 1))
        grid.add_row("", *(Text(mark + way) for way in _WAYS.values()), _paper_cells(paper)[0] if paper else "")
        for (heading, _), name in zip(_COLUMNS[1:], METRICS, strict=True):
            cells = []
            for direction in _WAYS:
                bounds = result.intervals[direction]
                bound: Interval | None = None if bounds is None else getattr(bounds, name)
                spread = f" ({from_to(bound, _number)})" if bound else ""
                cells.append(Text(f"{_number(getattr(result.metrics[direction], name))}{spread}"))
            grid.add_row(Text(heading, style="bold"), *cells, papers.get(name, ""))
        parts += [_heading(result, several_systems=several_systems), grid, ""]
    return Group(*parts, *_footnotes(results))


def _title(results: Sequence[RetrievalResult]) -> str:
    # Said once, above the table, where all agree.
    trained = {f"{each.labels.trained_on} {each.labels.trained_protocol}".strip() for each in results} - {""}
    systems = {each.labels.system for each in results} - {""}
    parts = [f"trained on {each}" for each in trained if len(trained) == 1]
    return ", ".join(parts + [each for each in systems if len(systems) == 1])


def _heading(result: RetrievalResult, *, several_systems: bool) -> Text:
    labels = result.labels
    domain = "→ " if labels.trained_on not in ("", labels.dataset) else ""
    name = f"{domain}{labels.dataset} {labels.protocol}".strip()
    heading = Text(name or labels.system, style="bold")  # of pairs in a file nobody knows which data set they are
    facts = [f"{counted(result.n_captions, 'caption')}, {counted(result.n_clips, 'clip')}"]
    if several_systems and labels.system and name:
        facts.insert(0, labels.system)
    heading.append(f"  {', '.join(facts)}", style="not bold")
    warnings = [f"{labels.split} split"] if labels.split != "test" else []
    warnings += [f"{counted(result.left_out, 'clip')} left out"] if result.left_out else []
    warnings += [f"scorer: {labels.scorer}"] if labels.scorer != HONEST_SCORER else []
    for warning in warnings:
        heading.append(f"  !! {warning}", style="bold red")
    return heading


def _rows(result: RetrievalResult) -> Table:
    grid = metric_grid(_COLUMNS)
    mark = "" if result.labels.scorer == HONEST_SCORER else "!! "
    for direction, way in _WAYS.items():
        metrics = result.metrics[direction]
        intervals = result.intervals[direction]
        grid.add_row(Text(mark + way), *(Text(_number(getattr(metrics, name))) for name in METRICS))
        if intervals is not None:
            cells = (from_to(getattr(intervals, name), _number) for name in METRICS)
            grid.add_row("", *(Text(cell, style="dim") for cell in cells))
        if direction == "text_to_video" and result.paper is not None:
            grid.add_row(*_paper_cells(result.paper))
    return grid


def _paper_cells(row: PaperRetrieval) -> list[Text]:
    # The paper prints no median rank.
    values = (_number(row.r1), _number(row.r5), _number(row.r10), "", _number(row.mnr))
    return [Text(text, style="italic") for text in (f"paper: {row.method}{' *' if row.note else ''}", *values)]


def _number(value: float) -> str:
    # Four digits and a decimal, twice, would not fit an interval's column.
    return f"{value:z.1f}" if value < 1000 else f"{value:z.0f}"


def _footnotes(results: Sequence[RetrievalResult]) -> list[Text]:
    notes = []
    levels = {each.level for result in results for each in result.intervals.values() if each is not None}
    if levels:
        level = ", ".join(f"{100 * value:g} %" for value in sorted(levels))
        notes.append(Text(f"below each number: {level} interval over clips (docs/protocols.md)", style="dim"))
    rows = [result.paper for result in results if result.paper is not None]
    if rows:
        notes.append(Text(_PAPER_NOTE, style="dim"))
    notes += [Text(each.paper_apart, style="dim") for each in results if each.paper_apart]
    notes += [Text(f"* {row.method} on {row.tested_on}: {row.note}", style="dim") for row in rows if row.note]
    # Once each, however many results share it.
    caveats = dict.fromkeys(caveat for result in results for caveat in result.caveats)
    return notes + [Text(f"!! {caveat}", style="bold red") for caveat in caveats]
