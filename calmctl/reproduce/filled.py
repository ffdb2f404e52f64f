"""What the cells of a filled table say, for the terminal and for Markdown alike."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any

from calmctl.evaluation.card import Card
from calmctl.evaluation.statistics import PairedDifference, Spread, differences_over_seeds, mean_intervals, spread
from calmctl.reproduce.outcomes import Outcome
from calmctl.reproduce.rows import Row, Table
from calmctl.words import METRIC_NAMES, counted


def heading(block: Block) -> str:
    """The dataset that a block is about, with an arrow where it was not trained on."""
    arrow = "" if block.trained_on == block.tested_on else f"{block.trained_on} → "
    return f"{arrow}{block.tested_on} {block.protocol}".strip()


def size(block: Block) -> str:
    """How large its test set is, and what is missing of it."""
    left_out = f", {counted(block.left_out, 'clip')} left out" if block.left_out else ""
    return f"{counted(block.n_queries, 'query')}, {counted(block.n_clips, 'clip')}{left_out}"


def number(value: Spread | None) -> str:
    """Mean ± sample standard deviation, "n/a" where a metric could not be computed."""
    return "n/a" if value is None else str(value)


def mean(value: Spread | None) -> str:
    """The mean alone, "" where there is none."""
    return "" if value is None else f"{value.mean:z.1f}"


def gain(line: Line, *, interval: bool) -> str:
    """What a row has more than its baseline in the headline's metric; a star where several seeds call it no chance."""
    difference = headline_gain(line)
    if difference is None:
        return ""
    # One seed tells nothing of the spread over seeds, so no difference is starred by it.
    star = "" if difference.within_noise or line.one_seed else "*"
    bounds = f" ({difference.interval.low:+z.1f} {difference.interval.high:+z.1f})" if interval else ""
    return f"{difference.difference:+z.1f}{star}{bounds}"


def headline_gain(line: Line) -> PairedDifference | None:
    """The row's difference from its baseline in the headline's metric."""
    return line.gains.get(headline(line.numbers))


def paper_gap(line: Line) -> str:
    """Ours minus the paper's; a star where that is more than chance."""
    if line.paper_gap is None:
        return ""
    return f"{line.paper_gap.difference:+z.1f}{'*' if line.paper_gap.exceeds_noise else ''}"


def paper(line: Line) -> str:
    """The paper's number in the headline's metric."""
    value = line.paper.get(headline(line.numbers))
    return "" if value is None else f"{value:z.1f}"


def legend(filled: Filled) -> Iterator[str]:
    """What has to be known to read the table, a sentence or two each."""
    seeds, lines = filled.seeds, [line for block in filled.blocks for line in block.lines]
    spread = "mean ± sample standard deviation over them" if len(seeds) > 1 else "one seed has no spread"
    yield f"Seeds {', '.join(map(str, seeds))}: {spread}. Best epoch on validation, never on the test split."
    if scorers := dict.fromkeys(block.scorer for block in filled.blocks if block.scorer.startswith("leak-free")):
        yield f"Scorer: {', '.join(scorers)} (docs/protocols.md)."
    if filled.comparisons:
        yield (
            f"vs. base: {METRIC_NAMES[filled.headline]} minus that of the row it is held against "
            f"({_baselines(filled)}). * more than this test set and these seeds can make by chance (95 %: Student's t, "
            f"paired over clips, unpaired over seeds); of {filled.comparisons} such differences at most "
            f"{0.05 * filled.comparisons:z.1f} would be starred by chance alone."
        )
        if len(seeds) == 1:
            yield (
                "One seed: nothing is starred, because the spread over seeds is not known and may be larger than that "
                "over clips."
            )
    if any(line.paper_gap is not None for line in lines):
        yield (
            "paper: its number in the same metric; diff.: ours minus that. * more than the noise of both, the paper's "
            "taken as one binomial draw, unpaired."
        )
    if any(line.leak_r1 is not None for line in lines):
        yield (
            "leak: AUDIT, NOT A RESULT. R@1 of the same weights under T-MASS's released protocol, which pools every "
            "clip with its own caption. Comparable with numbers of that protocol alone."
        )
    for first, other in combinations(filled.blocks, 2):
        apart = first.card.differences(other.card)
        if apart and (first.trained_on, first.tested_on) == (other.trained_on, other.tested_on):
            yield f"{heading(first)} has two tables, whose numbers share no column: {'; '.join(apart)}."
    yield from filled.table.notes
    yield from dict.fromkeys(f"{line.label.strip()}: {line.note}" for line in lines if line.note)
    yield from dict.fromkeys(f"!! {caveat}" for block in filled.blocks for caveat in block.caveats)
    if filled.overrides:
        yield f"Changed for all rows: {' '.join(filled.overrides)}"
    yield from (f"Not here: {what}: {why}." for what, why in filled.left_out.items())


def _baselines(filled: Filled) -> str:
    labels = {row.key: row.label.strip() for row in filled.table.rows}
    used = dict.fromkeys(line.baseline for block in filled.blocks for line in block.lines if line.baseline)
    return ", ".join(labels[key] for key in used) if len(used) < 4 else "the row above it"


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
        runs: Folders of its runs, one per seed.
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
    """All systems that were trained on one dataset and tested on one, in one way: `card` is that of the first."""

    trained_on: str
    tested_on: str
    protocol: str
    scorer: str
    n_queries: int
    n_clips: int
    left_out: int
    lines: tuple[Line, ...]
    caveats: tuple[str, ...]
    card: Card


@dataclass(frozen=True, slots=True)
class Filled:
    """A table with numbers.

    Attributes:
        data: "demo", or the folder.
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
        # Counted for the legend: of twenty differences at 95 % one exceeds chance by chance.
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
                    **{k: v for k, v in asdict(block).items() if k not in ("lines", "card")},
                    "card": block.card.to_json(),
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
    """Put outcomes into a table: `measured` by row and dataset and folders of `runs` by row, one per seed.

    `left_out` has more systems that are not in it; the rest is as in `Filled`.
    """
    rows = {row.key: row for row in table.rows if row.key in measured}
    blocks = []
    # A block for each pair of training and test set: tables of captions have two training sets.
    places = dict.fromkeys((_trained_on(measured[key]), name) for key, row in rows.items() for name in row.tests)
    for trained_on, tested_on in places:
        here = {
            key: measured[key][tested_on]
            for key in rows
            if tested_on in measured[key] and _trained_on(measured[key]) == trained_on
        }
        # And a block for each card among them: numbers that were made in two ways never stand in one column. Their
        # differences are still taken, clip by clip, and say what they are of.
        columns = dict.fromkeys(outcomes[0].card.column for outcomes in here.values())
        for column in columns:
            keys = [key for key, outcomes in here.items() if outcomes[0].card.column == column]
            blocks.append(_block(table, rows, here, keys, runs, trained_on, tested_on))
    # What no such table runs, and what this one could not.
    return Filled(table, data, seeds, overrides, tuple(blocks), {**(table.left_out or {}), **left_out})


def _trained_on(outcomes: Mapping[str, Sequence[Outcome]]) -> str:
    return next(iter(outcomes.values()))[0].trained_on


def _block(
    table: Table,
    rows: Mapping[str, Row],
    here: Mapping[str, Sequence[Outcome]],
    keys: Sequence[str],
    runs: Mapping[str, Sequence[str]],
    trained_on: str,
    tested_on: str,
) -> Block:
    first = here[keys[0]][0]
    lines = tuple(_line(table, rows, key, here, runs, tested_on) for key in keys)
    caveats = dict.fromkeys(caveat for key in keys for each in here[key] for caveat in each.caveats)
    for key in keys:
        for each in here[key][1:]:
            if apart := here[key][0].card.differences(each.card):
                caveats[f"{rows[key].label.strip()}: its seeds were not measured alike ({'; '.join(apart)})"] = None
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
        first.card,
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
    # The paper's numbers stand beside its own data alone, and nothing is subtracted from them elsewhere. A stand-in
    # shows them as what they are: of another world.
    stands = table.stand_in or all(each.published for each in (*outcomes, *(base or ())))
    paper = row.paper_on(tested_on) if stands else {}
    paper_base = rows[row.baseline].paper_on(tested_on) if row.baseline in rows and stands else {}
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
    # All or none: a mean over some of the seeds would stand beside means over all of them.
    return spread(known) if known and len(known) == len(numbers) else None


def headline(numbers: Mapping[str, object]) -> str:
    """The metric that rows with these numbers are judged by."""
    return "r1" if "r1" in numbers else "cider"


def _paper_gap(outcomes: Sequence[Outcome], paper: float, metric: str) -> PaperGap:
    sums = [each.sums for each in outcomes]
    difference = sum(each.means[metric] for each in sums) / len(sums) - paper
    # The noise of a CIDEr that others measured is not known, nor ours from one seed.
    if metric != "r1" or len(outcomes) == 1:
        return PaperGap(difference, None)
    interval = mean_intervals(sums)[metric]
    # Unpaired, because nobody has the paper's outcomes query by query: its R@1 counts as one binomial draw.
    ours = (interval.high - interval.low) / 2  # half a 95 % interval
    theirs = _NORMAL_95 * math.sqrt(paper * (100 - paper) / outcomes[0].n_queries)
    return PaperGap(difference, abs(difference) > math.hypot(ours, theirs))


def as_markdown(filled: Filled, command: str, about: Mapping[str, Any]) -> str:
    """The whole table; `command` makes it again, `about` is `runtime.environment()`."""
    parts = [f"# {filled.table.title}", ""]
    for block in filled.blocks:
        parts += [f"## {heading(block)}", "", f"{size(block)}. Scorer: {block.scorer}.", ""]
        parts += [*_table(block), ""]
    parts += [f"- {line}" for line in legend(filled)]
    return "\n".join([*parts, *made_by(command, about), ""])


def made_by(command: str, about: Mapping[str, Any]) -> list[str]:
    """The last lines of a page of results: when, with which versions and by which command it was made."""
    versions = ", ".join(f"{name} {version}" for name, version in about["packages"].items())
    return ["", f"Made on {about['created']} from revision {about['git']}, with {versions}, by", "", f"    {command}"]


def _table(block: Block) -> list[str]:
    metrics = list(block.lines[0].numbers)
    printed = any(line.paper for line in block.lines)
    leaks = any(line.leak_r1 is not None for line in block.lines)
    compared = any(line.gains for line in block.lines)
    name = METRIC_NAMES[headline(block.lines[0].numbers)]
    names = ["system", *(METRIC_NAMES[metric] for metric in metrics)]
    names += ["paper", f"{name} - paper"] if printed else []
    names += [f"{name} vs. base, 95 % interval, p"] if compared else []
    names += ["leak: audit, R@1"] if leaks else []
    rows = [names, ["---"] * len(names)]
    for line in block.lines:
        row = [line.label.strip() + (" (+ the head above)" if line.label.startswith(" ") else "")]
        row += [number(line.numbers[metric]) for metric in metrics]
        quoted = ", ".join(f"{METRIC_NAMES[metric]} {value:z.1f}" for metric, value in line.paper.items())
        row += [quoted, paper_gap(line)] if printed else []
        row += [_gain(line)] if compared else []
        row += [number(line.leak_r1) if line.leak_r1 else ""] if leaks else []
        rows.append(row)
    return [f"| {' | '.join(row)} |" for row in rows]


def _gain(line: Line) -> str:
    difference = headline_gain(line)
    if difference is None:
        return ""
    return gain(line, interval=True) + ("" if line.one_seed else f", p {difference.p_value:z.3f}")
