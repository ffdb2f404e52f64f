"""A filled table as Markdown: what a page or a paper quotes, with intervals and p-values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from calmctl.reproducing import cells
from calmctl.reproducing.table import Block, Filled, Line, headline


def as_markdown(filled: Filled, command: str, about: Mapping[str, Any]) -> str:
    """The whole table; `command` makes it again, `about` is `provenance.environment()`."""
    parts = [f"# {filled.table.title}", ""]
    for block in filled.blocks:
        parts += [f"## {cells.heading(block)}", "", f"{cells.size(block)}. Scorer: {block.scorer}.", ""]
        parts += [*_table(block), ""]
    parts += [f"- {line}" for line in cells.legend(filled)]
    versions = ", ".join(f"{name} {version}" for name, version in about["packages"].items())
    parts += ["", f"Made on {about['created']} from revision {about['git']}, with {versions}, by", "", f"    {command}"]
    return "\n".join([*parts, ""])


def _table(block: Block) -> list[str]:
    metrics = list(block.lines[0].numbers)
    printed = any(line.paper for line in block.lines)
    leaks = any(line.leak_r1 is not None for line in block.lines)
    compared = any(line.gains for line in block.lines)
    name = cells.NAMES[headline(block.lines[0].numbers)]
    names = ["system", *(cells.NAMES[metric] for metric in metrics)]
    names += ["paper", f"{name} - paper"] if printed else []
    names += [f"{name} vs. base, 95 % interval, p"] if compared else []
    names += ["leak: audit, R@1"] if leaks else []
    rows = [names, ["---"] * len(names)]
    for line in block.lines:
        row = [line.label.strip() + (" (+ the head above)" if line.label.startswith(" ") else "")]
        row += [cells.number(line.numbers[metric]) for metric in metrics]
        row += [_paper(line), cells.paper_gap(line)] if printed else []
        row += [_gain(line)] if compared else []
        row += [cells.number(line.leak_r1) if line.leak_r1 else ""] if leaks else []
        rows.append(row)
    return [f"| {' | '.join(row)} |" for row in rows]


def _paper(line: Line) -> str:
    return ", ".join(f"{cells.NAMES[metric]} {value:z.1f}" for metric, value in line.paper.items())


def _gain(line: Line) -> str:
    found = cells.headline_gain(line)
    if found is None:
        return ""
    return cells.gain(line, interval=True) + ("" if line.one_seed else f", p {found.p_value:z.3f}")
