"""A filled table: ours over seeds, the paper's number, and which differences are more than chance."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from calmctl.evaluation.bootstrap import PairedDifference
from calmctl.evaluation.seeds import Spread, differences_over_seeds, mean_intervals, spread
from calmctl.reproducing.outcomes import Outcome
from calmctl.reproducing.tables import Row, Table

_NORMAL_95 = 1.959963985


@dataclass(frozen=True, slots=True)
class PaperGap:
    """Ours minus the paper's number, for R@1 or CIDEr.

    Attributes:
        difference: In points.
        exceeds_noise: R@1 only: whether it is more than 95 % of the noise of both, ours over seeds and clips, the
            paper's as one binomial draw of as many queries. Not a paired comparison: the paper's outcomes are not
            known. None for CIDEr, whose noise in the paper nobody can tell, and with one seed.
    """

    difference: float
    exceeds_noise: bool | None


@dataclass(frozen=True, slots=True)
class Line:
    """One system on one test set.

    Attributes:
        row: The key of its row.
        label: Its name in print.
        runs: Folders of its runs, one a seed.
        numbers: Over seeds by metric; None where a metric could not be computed.
        paper: The paper's numbers.
        paper_gap: Ours minus the paper's; None where the paper has none or where this is a stand-in.
        leak_r1: R@1 under the released T-MASS protocol, an audit; None where there is none.
        baseline: Key of the row it is compared with, "".
        gains: This row minus its baseline by metric, paired over clips; seeds are drawn for each by itself.
        paper_gain: The paper's number minus its baseline's, where it has both.
        note: What a reader must know.
    """

    row: str
    label: str
    runs: tuple[str, ...]
    numbers: Mapping[str, Spread | None]
    paper: Mapping[str, float]
    paper_gap: PaperGap | None
    leak_r1: Spread | None
    baseline: str
    gains: Mapping[str, PairedDifference]
    paper_gain: float | None
    note: str

    @property
    def one_seed(self) -> bool:
        """Whether the spread over seeds is unknown, so that no difference can be called more than chance."""
        return len(self.runs) == 1

    def to_json(self) -> dict[str, Any]:
        """Plain data; with one seed nothing says whether a gain exceeds noise."""
        gains = {
            name: {**asdict(gain), "exceeds_noise": None if self.one_seed else not gain.within_noise}
            for name, gain in self.gains.items()
        }
        return {**asdict(self), "gains": gains}


@dataclass(frozen=True, slots=True)
class Block:
    """All systems that were trained on one dataset and tested on one."""

    trained_on: str
    tested_on: str
    protocol: str
    scorer: str
    n_queries: int
    n_clips: int
    left_out: int
    lines: tuple[Line, ...]
    caveats: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Filled:
    """A table with numbers.

    Attributes:
        data: "demo", or the folder.
        seeds: Of the trainings.
        overrides: Recipe keys that a person changed for all rows.
        left_out: Systems that are not in it, with the reason.
    """

    table: Table
    data: str
    seeds: tuple[int, ...]
    overrides: tuple[str, ...]
    blocks: tuple[Block, ...]
    left_out: Mapping[str, str]

    @property
    def headline(self) -> str:
        """The metric that rows are judged by: "r1", or "cider" for captions."""
        return headline(self.blocks[0].lines[0].numbers) if self.blocks else "r1"

    @property
    def comparisons(self) -> int:
        """How many differences are judged: at 95 %, one in twenty exceeds chance by chance."""
        return sum(len(line.gains) > 0 for block in self.blocks for line in block.lines)

    def to_json(self) -> dict[str, Any]:
        """Plain data; everything that a table shows, with every seed."""
        return {
            "table": self.table.name,
            "title": self.table.title,
            "data": self.data,
            "stand_in": self.table.stand_in,
            "seeds": list(self.seeds),
            "overrides": list(self.overrides),
            "blocks": [
                {
                    **{k: v for k, v in asdict(block).items() if k != "lines"},
                    "lines": [x.to_json() for x in block.lines],
                }
                for block in self.blocks
            ],
            "comparisons": self.comparisons,
            "left_out": dict(self.left_out),
            "notes": list(self.table.notes),
        }


def fill(
    table: Table,
    measured: Mapping[str, Mapping[str, Sequence[Outcome]]],
    runs: Mapping[str, Sequence[str]],
    *,
    data: str,
    seeds: tuple[int, ...],
    overrides: tuple[str, ...],
    left_out: Mapping[str, str],
) -> Filled:
    """Put outcomes into a table.

    Args:
        table: Its rows.
        measured: Outcomes by row and dataset, one a seed.
        runs: Folders by row, one a seed.
        data: What it was made on.
        seeds: Of the trainings.
        overrides: Changed for all rows.
        left_out: More systems that are not in it.
    """
    rows = {row.key: row for row in table.rows if row.key in measured}
    blocks = []
    places = dict.fromkeys((_trained_on(measured[key]), name) for key, row in rows.items() for name in row.tests)
    for trained_on, tested_on in places:
        here = {
            key: measured[key][tested_on]
            for key in rows
            if tested_on in measured[key] and _trained_on(measured[key]) == trained_on
        }
        if here:
            blocks.append(_block(table, rows, here, runs, trained_on, tested_on))
    return Filled(table, data, seeds, overrides, tuple(blocks), {**(table.left_out or {}), **left_out})


def _trained_on(outcomes: Mapping[str, Sequence[Outcome]]) -> str:
    return next(iter(outcomes.values()))[0].trained_on


def _block(
    table: Table,
    rows: Mapping[str, Row],
    here: Mapping[str, Sequence[Outcome]],
    runs: Mapping[str, Sequence[str]],
    trained_on: str,
    tested_on: str,
) -> Block:
    first = next(iter(here.values()))[0]
    lines = tuple(_line(table, rows, key, here, runs, tested_on) for key in here)
    caveats = dict.fromkeys(caveat for outcomes in here.values() for each in outcomes for caveat in each.caveats)
    return Block(
        trained_on,
        tested_on,
        first.protocol,
        first.scorer,
        first.n_queries,
        len(first.sums.clips),
        first.left_out,
        lines,
        tuple(caveats),
    )


def _line(
    table: Table,
    rows: Mapping[str, Row],
    key: str,
    here: Mapping[str, Sequence[Outcome]],
    runs: Mapping[str, Sequence[str]],
    tested_on: str,
) -> Line:
    row, outcomes = rows[key], here[key]
    base = here.get(row.baseline)
    paper = row.paper_on(tested_on)
    paper_base = rows[row.baseline].paper_on(tested_on) if row.baseline in rows else {}
    metric = headline(outcomes[0].numbers)
    return Line(
        key,
        row.label,
        tuple(runs[key]),
        {name: _spread(each.numbers.get(name) for each in outcomes) for name in outcomes[0].numbers},
        paper,
        _paper_gap(outcomes, paper[metric], metric) if metric in paper and not table.stand_in else None,
        _spread(each.leak_r1 for each in outcomes),
        row.baseline if base else "",
        differences_over_seeds([each.sums for each in base], [each.sums for each in outcomes]) if base else {},
        paper[metric] - paper_base[metric] if metric in paper and metric in paper_base else None,
        row.note,
    )


def _spread(values: Iterable[float | None]) -> Spread | None:
    numbers = list(values)
    known = [value for value in numbers if value is not None]
    return spread(known) if known and len(known) == len(numbers) else None


def headline(numbers: Mapping[str, object]) -> str:
    """The metric that rows with these numbers are judged by."""
    return "r1" if "r1" in numbers else "cider"


def _paper_gap(outcomes: Sequence[Outcome], paper: float, metric: str) -> PaperGap:
    sums = [each.sums for each in outcomes]
    difference = sum(each.means[metric] for each in sums) / len(sums) - paper
    if metric != "r1" or len(outcomes) == 1:
        return PaperGap(difference, None)
    interval = mean_intervals(sums)[metric]
    ours = (interval.high - interval.low) / 2  # half a 95 % interval
    theirs = _NORMAL_95 * math.sqrt(paper * (100 - paper) / outcomes[0].n_queries)
    return PaperGap(difference, abs(difference) > math.hypot(ours, theirs))
