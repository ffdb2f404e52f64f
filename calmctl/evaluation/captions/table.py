"""Caption scores as a table of 80 columns, times 100, the paper's Tables 4 and 5 beside."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from calmctl.evaluation.captions.result import CaptionResult
from calmctl.evaluation.captions.scores import METRICS
from calmctl.evaluation.paper import PaperCaptioning
from calmctl.evaluation.tables import Fitting

# BLEU-1 to 3 are narrow: the paper has none of them, and their intervals are in the JSON only.
_WIDE = 11  # an interval such as 100.0 to 115.7
_COLUMNS = (
    ("", 14),
    ("B-1", 5),
    ("B-2", 5),
    ("B-3", 5),
    ("BLEU-4", _WIDE),
    ("METEOR", _WIDE),
    ("ROUGE-L", _WIDE),
    ("CIDEr", _WIDE),
)  # 80 with the gaps
_WIDTH = 80
_WITH_INTERVAL = ("bleu4", "meteor", "rouge_l", "cider")


def caption_table(results: Sequence[CaptionResult]) -> RenderableType:
    """A block a test set: the metrics with their intervals, the paper's rows, caveats at the foot."""
    return Fitting(_wide(results), _WIDTH, _narrow(results))


def _narrow(results: Sequence[CaptionResult]) -> RenderableType:
    parts: list[RenderableType] = []
    for result in results:
        grid = Table.grid(padding=(0, 1))
        grid.add_row("", "ours" if result.paper else "", *(_paper_cells(row)[0] for row in result.paper))
        papers = [dict(zip(METRICS, _paper_cells(row)[1:], strict=True)) for row in result.paper]
        for (heading, _), metric in zip(_COLUMNS[1:], METRICS, strict=True):
            bound = result.scores.intervals.get(metric) if metric in _WITH_INTERVAL else None
            spread = f" ({_number(bound.low)}–{_number(bound.high)})" if bound else ""  # noqa: RUF001
            ours = Text(f"{_number(getattr(result.scores, metric))}{spread}")
            grid.add_row(Text(heading, style="bold"), ours, *(paper[metric] for paper in papers))
        parts += [_heading(result), grid, ""]
    return Group(*parts, *_footnotes(results))


def _wide(results: Sequence[CaptionResult]) -> RenderableType:
    header = _grid()
    header.add_row(*(Text(name, style="bold") for name, _ in _COLUMNS))
    parts: list[RenderableType] = [header, Text("─" * _WIDTH, style="dim")]
    for result in results:
        parts += [_heading(result), _rows(result), ""]
    return Group(*parts, *_footnotes(results))


def _grid() -> Table:
    grid = Table.grid(padding=(0, 1))
    for name, width in _COLUMNS:
        grid.add_column(justify="right" if name else "left", width=width, no_wrap=True)
    return grid


def _heading(result: CaptionResult) -> Text:
    domain = "→ " if result.dataset and result.trained_on not in ("", result.dataset) else ""
    heading = Text(f"{domain}{result.dataset or result.name} {result.protocol}".strip(), style="bold")
    facts = [result.system, f"trained on {result.trained_on}" if result.trained_on else ""]
    facts.append(f"{result.scores.n} captions, {result.scores.n_references} references")
    heading.append(f"  {', '.join(fact for fact in facts if fact)}", style="not bold")
    return heading


def _rows(result: CaptionResult) -> Table:
    grid = _grid()
    values = {metric: getattr(result.scores, metric) for metric in METRICS}
    grid.add_row("ours" if result.paper else "", *(Text(_number(value)) for value in values.values()))
    if result.scores.intervals:
        bounds = [result.scores.intervals.get(metric) if metric in _WITH_INTERVAL else None for metric in METRICS]
        cells = [f"{_number(bound.low)}–{_number(bound.high)}" if bound else "" for bound in bounds]  # noqa: RUF001
        grid.add_row("", *(Text(cell, style="dim") for cell in cells))
    if result.paper:
        grid.add_row(Text(f"paper, Table {result.paper[0].table}", style="italic"))
    for row in result.paper:
        grid.add_row(*_paper_cells(row))
    return grid


def _paper_cells(row: PaperCaptioning) -> list[Text]:
    values = [f"{value:z.1f}" for value in (row.bleu4, row.meteor, row.rouge_l, row.cider)]
    mark = " *" if row.note else ""
    return [Text(text, style="italic") for text in (f"{row.method}{mark}", "", "", "", *values)]


def _number(value: float | None) -> str:
    if value is None:
        return "n/a"
    return f"{100 * value:z.1f}" if value < 9.99 else f"{100 * value:z.0f}"


def _footnotes(results: Sequence[CaptionResult]) -> list[Text]:
    below = "; below them 95 % bootstrap intervals over clips"
    shown = any(result.scores.intervals for result in results)
    tokenizers = ", ".join(dict.fromkeys(result.scores.tokenizer for result in results))
    notes = [
        Text(f"all numbers times 100{below if shown else ''}", style="dim"),
        Text(f"tokenizer {tokenizers}; no SPICE (docs/caption-scoring.md)", style="dim"),
    ]
    rows = [row for result in results for row in result.paper]
    if rows:
        notes.append(Text("paper: Tables 4 and 5, one run without a seed, tokenizer not stated", style="dim"))
    notes += [Text(f"* {row.method}: {row.note}", style="dim") for row in dict.fromkeys(rows) if row.note]
    caveats = dict.fromkeys(caveat for result in results for caveat in result.caveats)
    return notes + [Text(f"!! {caveat}", style="bold red") for caveat in caveats]
