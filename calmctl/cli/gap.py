"""`calmctl eval --gap`: how far sentences and clips lie apart, before training and after."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from rich.text import Text

from calmctl.cli.console import Sheet, print_json, progress_bar, readings, stdout

if TYPE_CHECKING:
    from collections.abc import Sequence

    from calmctl.evaluation.gap import Gap, Measure
    from calmctl.evaluation.gap_runs import SystemGap
    from calmctl.evaluation.runs import TestSet
    from calmctl.runs.folder import Run

_COLUMNS = 3  # systems beside each other: more do not fit 80 columns
_MEASURES = (
    ("centroid_distance", "centroid distance"),
    ("alignment", "alignment"),
    ("uniformity_texts", "uniformity, text"),
    ("uniformity_videos", "uniformity, video"),
    ("separability", "separability"),
    ("divergence_matched", "KL, true pairs"),
    ("divergence_unmatched", "KL, other pairs"),
)


def show_gap(
    runs: Sequence[Run], tests: Sequence[TestSet], *, which: str, split: str, device: str, as_json: bool
) -> None:
    """Measure the gap of runs and of what they started from, and print it.

    Raises:
        CalmError: As `gaps_of_runs`.
    """
    from calmctl.device import choose_device
    from calmctl.evaluation.gap_runs import gaps_of_runs
    from calmctl.provenance import environment

    with progress_bar("clips") as bar:
        found = gaps_of_runs(
            runs, tests, which=which, split=split, device=choose_device(device), progress=readings(bar)
        )
    if as_json:
        gaps = [
            {
                "system": each.system,
                "trained_with": each.loss,
                "dataset": each.dataset,
                "vocabulary": each.vocabulary,
                **each.gap.to_json(),
            }
            for each in found
        ]
        print_json({"split": split, "weights": which, "gaps": gaps, **environment()})
        return
    _print(found, split)


def _print(found: Sequence[SystemGap], split: str) -> None:
    from calmctl.evaluation.gap import FOLDS

    out = stdout()
    first = found[0]
    for dataset in dict.fromkeys(each.dataset for each in found):
        here = [each for each in found if each.dataset == dataset]
        out.print(Text.assemble((dataset, "bold"), f", {split} split: {here[0].gap.n_clips} clips and sentences"))
        for start in range(0, len(here), _COLUMNS):
            out.print(_grid(here[start : start + _COLUMNS]))
            out.print()
    for line in (
        "Below each number its 95 % bootstrap interval over clips. Features before any head: sentences, and clips' "
        "mean frames; one sentence a clip.",
        "centroid distance 0 to 2; alignment: mean squared distance of true pairs, lower is closer; uniformity: lower "
        f"is more spread out; separability: {FOLDS}-fold held-out accuracy of telling sentences from clips, 0.5 is no "
        "gap, 1 a complete one.",
        f"KL(S_p || V_p) in nats over {first.vocabulary} ({first.gap.n_anchors} prompts, no offsets, tau 100).",
    ):
        out.print(Text(line, style="dim"))


def _grid(systems: Sequence[SystemGap]) -> Sheet:
    grid = Sheet(header_style="bold")
    grid.add_column("", no_wrap=True)
    for each in systems:
        name = Path(each.system).name
        grid.add_column(f"{name}\n{each.loss}" if each.loss else name, justify="right", overflow="fold")
    for field, label in _MEASURES:
        values = [_measure(each.gap, field) for each in systems]
        grid.add_row(label, *(_number(value.value) for value in values))
        bounds = (f"{_number(v.interval.low)} to {_number(v.interval.high)}" for v in values)
        grid.add_row("", *(Text(bound, style="dim") for bound in bounds))
    return grid


def _measure(gap: Gap, field: str) -> Measure:
    value: Measure = getattr(gap, field)
    return value


def _number(value: float) -> str:
    return f"{value:z.3f}" if abs(value) < 10 else f"{value:z.1f}"
