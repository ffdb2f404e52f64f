"""What the cells of a filled table say, for the terminal and for Markdown alike."""

from __future__ import annotations

from collections.abc import Iterator

from calmctl.counting import counted
from calmctl.evaluation.bootstrap import PairedDifference
from calmctl.evaluation.seeds import Spread
from calmctl.reproducing.table import Block, Filled, Line, headline

NAMES = {
    "r1": "R@1",
    "r5": "R@5",
    "r10": "R@10",
    "mdr": "MdR",
    "mnr": "MnR",
    "bleu4": "BLEU-4",
    "meteor": "METEOR",
    "cider": "CIDEr",
    "rouge_l": "ROUGE-L",
}


def heading(block: Block) -> str:
    """The dataset that a block is about, with an arrow where it was not trained on."""
    arrow = "" if block.trained_on == block.tested_on else f"{block.trained_on} → "
    return f"{arrow}{block.tested_on} {block.protocol}".strip()


def size(block: Block) -> str:
    """How large its test set is, and what is missing of it."""
    left_out = f", {counted(block.left_out, 'clip')} left out" if block.left_out else ""
    return f"{block.n_queries} queries, {block.n_clips} clips{left_out}"


def number(value: Spread | None) -> str:
    """Mean ± sample standard deviation, "n/a" where a metric could not be computed."""
    if value is None:
        return "n/a"
    return f"{value.mean:z.1f}" if value.std is None else f"{value.mean:z.1f} ± {value.std:z.1f}"


def mean(value: Spread | None) -> str:
    """The mean alone, "" where there is none."""
    return "" if value is None else f"{value.mean:z.1f}"


def gain(line: Line, *, interval: bool) -> str:
    """What a row has more than its baseline in the headline's metric; a star where several seeds call it no chance."""
    found = headline_gain(line)
    if found is None:
        return ""
    star = "" if found.within_noise or line.one_seed else "*"
    bounds = f" ({found.interval.low:+z.1f} {found.interval.high:+z.1f})" if interval else ""
    return f"{found.difference:+z.1f}{star}{bounds}"


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
    if any(block.scorer == "leak-free" for block in filled.blocks):
        yield "Scorer: leak-free (docs/protocols.md)."
    if filled.comparisons:
        yield (
            f"vs. base: {NAMES[filled.headline]} minus that of the row it is held against ({_baselines(filled)}). * "
            "more than this test set and these seeds can make by chance (95 %: Student's t, paired over clips, "
            f"unpaired over seeds); of {filled.comparisons} such differences at most {0.05 * filled.comparisons:z.1f} "
            "would be starred by chance alone."
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
