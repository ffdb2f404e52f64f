"""`calmctl diagnose`: what the numbers of a run hide. Each diagnosis is a command, with what it prints below it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer
from rich.bar import Bar
from rich.text import Text

from calmctl.cli import options
from calmctl.cli.console import (
    Sheet,
    loading,
    note,
    open_with_progress,
    print_json,
    printable,
    progress_bar,
    readings,
    section,
    stdout,
)
from calmctl.errors import BadInput
from calmctl.files import PAGE, VOCABULARY, require_output
from calmctl.words import counted

if TYPE_CHECKING:
    from collections.abc import Sequence

    from calmctl.evaluation.gap import Gap, Measure, SystemGap
    from calmctl.explain.calibration import Calibration, Signal
    from calmctl.explain.collection import Candidate, Failures, Weighed
    from calmctl.explain.coverage import Coverage
    from calmctl.runs.run import Run

app = typer.Typer(
    cls=options.Group,
    no_args_is_help=True,
    rich_markup_mode="rich",
    help="Ask of a run what its numbers do not tell.",
    epilog=options.examples(
        "calmctl diagnose gap --against runs/demo-without-001",
        "calmctl diagnose failures runs/msrvtt-001",
    ),
)


def _find(name: str | None, runs: Path, device: str, task: str | None = "retrieval") -> Run:
    """The run that is diagnosed, and a word on which it is where nobody named one."""
    from calmctl.device import check_device
    from calmctl.runs.run import describe_choice, find_run

    check_device(device)
    run = find_run(name, runs, task=task)
    if name is None:
        note(f"diagnosing {printable(describe_choice(run))}, {printable(str(run.trained_on))}")
    return run


# How far sentences and clips lie apart, before training and after.


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


@app.command(
    epilog=options.examples(
        "calmctl diagnose gap",
        "calmctl diagnose gap runs/demo-001 --against runs/demo-without-001",
        "calmctl diagnose gap runs/demo-001 --cross demo --cross demo-shifted",
    )
)
def gap(
    run: options.RunArgument = None,
    cross: options.Cross = None,
    against: options.Against = None,
    as_json: options.Json = False,
    root: options.Root = None,
    annotations: options.Annotations = None,
    videos: options.Videos = None,
    features: options.Features = None,
    split: options.Split = "test",
    weights: options.Weights = "best",
    device: options.Device = "auto",
    runs: options.Runs = Path("runs"),
) -> None:
    """Measure how far sentences and clips lie apart.

    This is the modality gap, before training and after.
    """
    from calmctl.runs.run import WEIGHTS, find_run

    chosen = _find(run, runs, device, task=None)
    others = [find_run(name, runs) for name in against or []]
    options.require_known("--weights", weights, WEIGHTS)
    options.require_known("--split", split, ("test", "val", "train"))
    options.check_cross(chosen.recipe(), cross, features)
    for other in others:
        if other.task != chosen.task:
            raise BadInput(f"{chosen.folder} and {other.folder} are runs of two tasks, which share no number")
    loading(", ".join(str(each.folder) for each in (chosen, *others)))
    from calmctl.device import choose_device
    from calmctl.evaluation.gap import gaps_of_runs
    from calmctl.runtime import environment

    tests = options.test_sets(chosen.recipe(), cross, root, annotations, videos, features)
    with progress_bar("clips") as bar:
        found = gaps_of_runs(
            [chosen, *others], tests, which=weights, split=split, device=choose_device(device), progress=readings(bar)
        )
    if as_json:
        gaps = [
            {
                "system": each.system,
                "trained_with": each.loss,
                "dataset": each.dataset,
                "vocabulary": each.vocabulary,
                **each.gap.to_json(),
                "caveats": list(each.caveats),
            }
            for each in found
        ]
        print_json({"split": split, "weights": weights, "gaps": gaps, **environment()})
        return
    _print_gap(found, split)


def _print_gap(found: Sequence[SystemGap], split: str) -> None:
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
    for caveat in dict.fromkeys(caveat for each in found for caveat in each.caveats):
        out.print(Text(f"!! {caveat}", style="bold red"))


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


# Whether a run's uncertainty knows its errors.


@app.command(
    epilog=options.examples(
        "calmctl diagnose calibration", "calmctl diagnose calibration runs/msrvtt-001 --html calibration.html"
    )
)
def calibration(
    run: options.RunArgument = None,
    html: options.Html = None,
    as_json: options.Json = False,
    weights: options.Weights = "best",
    device: options.Device = "auto",
    runs: options.Runs = Path("runs"),
) -> None:
    """Ask whether a run knows when it is wrong.

    It is asked on the validation split of the data set that it was trained on.
    """
    if html is not None:
        require_output(html, PAGE)
    chosen = _find(run, runs, device)
    options.require_known("--weights", weights, ("best", "last"))  # anchors and VAE are not in slim
    loading(str(chosen.folder))
    from calmctl.device import choose_device
    from calmctl.explain.calibration import calibrate
    from calmctl.explain.explainer import explain_with_run

    explainer = explain_with_run(chosen, choose_device(device), which=weights)
    found = calibrate(explainer, open_with_progress(explainer, "val"))
    if html is not None:
        from calmctl.explain.pages import write_calibration_page

        write_calibration_page(found, html)
    if as_json:
        print_json(found.to_json())
    else:
        print_calibration(found)
    if html is not None:
        note(f"wrote {printable(str(html))}")


def print_calibration(found: Calibration) -> None:
    """Print a calibration within 80 columns."""
    out = stdout()
    out.print(f"[bold]{printable(found.run)}[/], {found.split} split of {found.dataset}", soft_wrap=True)
    out.print(
        f"{counted(found.queries, 'sentence')} among {counted(found.clips, 'clip')}, "
        f"R@1 {100 * found.accuracy:z.1f} %\n"
    )
    out.print(f"[bold]{printable(found.conclusion)}[/]\n")
    for caveat in found.caveats:
        out.print(f"[bold red]!! {printable(caveat)}[/]", soft_wrap=True)
    table = Sheet(header_style="dim")
    table.add_column("confidence")
    for heading in ("AUROC", "95 %", "AURC", "ECE"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("")
    for signal in found.signals:
        interval = "" if signal.interval is None else f"{signal.interval[0]:z.2f}-{signal.interval[1]:z.2f}"
        auroc = "" if signal.separation is None else f"{signal.separation:z.3f}"
        area, error = f"{signal.risk_coverage.area:z.3f}", f"{signal.reliability.error:z.3f}"
        table.add_row(signal.name, auroc, interval, area, error, signal.verdict)
    out.print(table)
    best = found.signals[0].risk_coverage.best
    out.print(
        f"\n[dim]AURC: area under risk-coverage, lower is better; knowing nothing {1 - found.accuracy:z.3f}, "
        f"knowing all {best:z.3f}.[/]"
    )
    for signal in found.signals[:2]:
        _print_diagrams(signal)


def _print_diagrams(signal: Signal) -> None:
    out = stdout()
    rel, curve = signal.reliability, signal.risk_coverage
    table = Sheet(header_style="dim", title=f"\n[bold]{signal.name}[/]", title_justify="left")
    table.title_style = ""
    for heading in ("predicted", "sentences"):
        table.add_column(heading, justify="right")
    table.add_column("observed")
    table.add_column("", justify="right")
    for predicted, observed, count in zip(rel.predicted, rel.observed, rel.counts, strict=True):
        bar = Bar(1.0, 0.0, float(observed), width=30, color="cyan")
        table.add_row(f"{100 * predicted:z.0f} %", str(count), bar, f"{100 * observed:z.0f} %")
    out.print(table)
    shares = (0.1, 0.25, 0.5, 0.75, 1.0)
    places = [max(0, round(share * len(curve.risk)) - 1) for share in shares]
    at = ", ".join(f"{100 * curve.risk[i]:z.0f} % at {100 * s:z.0f} %" for s, i in zip(shares, places, strict=True))
    out.print(f"errors among the most trusted: {at}")


# The queries that a run gets most wrong, and which anchors misled it.


@app.command(
    epilog=options.examples(
        "calmctl diagnose failures", "calmctl diagnose failures runs/msrvtt-001 --top 20 --html failures.html"
    )
)
def failures(
    run: options.RunArgument = None,
    top: options.Top = 10,
    html: options.Html = None,
    as_json: options.Json = False,
    split: options.Split = "test",
    vocabulary: options.Vocabulary = None,
    device: options.Device = "auto",
    runs: options.Runs = Path("runs"),
) -> None:
    """Show the sentences that a run ranks worst.

    Beside each stand the clip that it preferred, and the anchors that misled it.
    """
    from calmctl.anchors.shipped import resolve_vocabulary

    if html is not None:
        require_output(html, PAGE)
    chosen = _find(run, runs, device)
    if vocabulary is not None:
        resolve_vocabulary(vocabulary)  # a wrong name is told before a model is loaded
    loading(str(chosen.folder))
    from calmctl.device import choose_device
    from calmctl.explain.collection import find_failures
    from calmctl.explain.explainer import explain_with_run

    explainer = explain_with_run(chosen, choose_device(device), vocabulary=vocabulary)
    collection = open_with_progress(explainer, split)
    found = find_failures(explainer, collection, top)
    if html is not None:
        from calmctl.explain.pages import write_failures_page

        write_failures_page(found, collection, html)
    if as_json:
        print_json(found.to_json())
    else:
        print_failures(found)
    if html is not None:
        note(f"wrote {printable(str(html))}")


def print_failures(found: Failures) -> None:
    """Print a run's worst queries."""
    out = stdout()
    out.print(f"[bold]{printable(found.run)}[/], {found.split} split of {found.dataset}", soft_wrap=True)
    out.print(
        f"{found.failed} of {counted(found.queries, 'sentence')} do not find their clip first among "
        f"{counted(found.clips, 'clip')}; "
        f"the worst {len(found.worst)}:"
    )
    for caveat in found.caveats:
        out.print(f"[bold red]!! {printable(caveat)}[/]", soft_wrap=True)
    for failure in found.worst:
        grid = section(f"rank {failure.rank:g}  {printable(failure.query)}")
        grid.add_row("[dim]sentence[/]", _weighed(failure.anchors))
        grid.add_row("[green]right[/]", _candidate(failure.right))
        grid.add_row("[red]confusing[/]", _candidate(failure.confusing))
        pulled = ", ".join(f"{printable(each.anchor)} {each.value:+z.3f}" for each in failure.pulled)
        lead = failure.confusing.score - failure.right.score
        grid.add_row("[dim]pulled by[/]", f"{pulled}\nof a lead of {lead:+z.3f}")
        out.print(grid)


def _candidate(candidate: Candidate) -> str:
    said = f"\n“{printable(candidate.captions[0])}”" if candidate.captions else ""
    anchors = _weighed(candidate.anchors)
    return f"[bold]{printable(candidate.clip)}[/] {candidate.score:z.3f}  {anchors}{said}"


def _weighed(anchors: Sequence[Weighed]) -> str:
    from calmctl.explain.words import percent

    return ", ".join(f"{printable(each.anchor)} [dim]{percent(each.value)}[/]" for each in anchors)


# Which anchors of a run carry mass on its data set.


_SHOWN = 12


@app.command(
    epilog=options.examples("calmctl diagnose coverage", "calmctl diagnose coverage runs/demo-001 --out used.yaml")
)
def coverage(
    run: options.RunArgument = None,
    out: options.VocabularyFile = None,
    as_json: options.Json = False,
    split: options.Split = "val",
    vocabulary: options.Vocabulary = None,
    device: options.Device = "auto",
    runs: options.Runs = Path("runs"),
) -> None:
    """Show which anchors a data set uses, and which never.

    Also which say the same, and which are worth keeping: --out writes those.
    """
    from calmctl.anchors.shipped import resolve_vocabulary

    chosen = _find(run, runs, device)
    if vocabulary is not None:
        resolve_vocabulary(vocabulary)  # a wrong name is told before a model is loaded
    if out is not None:
        require_output(out, VOCABULARY)
    loading(str(chosen.folder))
    from calmctl.device import choose_device
    from calmctl.explain.coverage import coverage as measure
    from calmctl.explain.coverage import suggested_vocabulary
    from calmctl.explain.explainer import explain_with_run

    explainer = explain_with_run(chosen, choose_device(device), vocabulary=vocabulary)
    found = measure(explainer, open_with_progress(explainer, split))
    if split == "test":
        note("[yellow]this is the test split: anchors chosen by it have seen the answers[/]")
    if as_json:
        print_json(found.to_json())
    else:
        print_coverage(found)
    if out is not None:
        from calmctl.anchors.shipped import publish

        subset = suggested_vocabulary(found, explainer.vocabulary)
        status = publish(subset, out)
        note(f"{status} {printable(str(out))} ({subset.reference}, {len(subset)} labels)")


def print_coverage(found: Coverage) -> None:
    """Print a coverage within 80 columns."""
    console = stdout()
    console.print(
        f"[bold]{printable(found.vocabulary)}[/], {len(found.anchors)} anchors, by {printable(found.run)}",
        soft_wrap=True,
    )
    console.print(
        f"{counted(found.clips, 'clip')} and {counted(found.captions, 'caption')} of {found.dataset}, "
        f"{found.split} split"
    )
    console.print(f"The mass is as on {found.effective:z.1f} anchors with equal shares.\n")
    table = Sheet(header_style="dim")
    table.add_column("anchor", ratio=1)
    for heading in ("mass in V_p", "in S_p", "clips", "captions"):
        table.add_column(heading, justify="right", no_wrap=True)
    for use in found.anchors[:_SHOWN]:
        masses = (f"{100 * use.video_mass:z.1f} %", f"{100 * use.text_mass:z.1f} %")
        table.add_row(printable(use.label), *masses, str(use.clips), str(use.captions))
    console.print(table)
    if len(found.anchors) > _SHOWN:
        console.print(f"[dim]and {len(found.anchors) - _SHOWN} more (--json lists all)[/]")
    console.print("[dim]clips, captions: those that need it among the fewest anchors that hold 90 % of their mass[/]")
    if found.never:
        console.print(f"\n[bold]Never needed[/] ({len(found.never)}): {', '.join(map(printable, found.never))}")
    if found.twins:
        console.print(f"\n[bold]Near-duplicates[/] ({len(found.twins)}), which rise and fall together")
        like: dict[str, list[str]] = {}
        for twins in found.twins:
            like.setdefault(twins.kept, []).append(f"{printable(twins.dropped)} [dim]{twins.correlation:z.2f}[/]")
        for kept, dropped in like.items():
            console.print(f"  {printable(kept)} = {', '.join(dropped)}")
    console.print(
        f"\nSuggested: the {len(found.suggested)} others, which carry {100 * found.kept_mass:z.1f} % of the mass; "
        "--out FILE writes them as a vocabulary."
    )
