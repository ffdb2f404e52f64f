"""`calmctl diagnose`: what the numbers of a run hide. Each diagnosis is a command, with what it prints below it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from rich.bar import Bar
from rich.text import Text

from calmctl.cli import options
from calmctl.cli.console import Sheet, loading, note, print_json, printable, progress_bar, readings, section, stdout
from calmctl.cli.results import find_named, find_others, open_with_progress, print_caveats, print_result
from calmctl.device import choose_device
from calmctl.explain.words import percent
from calmctl.files import VOCABULARY, require_output
from calmctl.runtime import environment
from calmctl.words import counted

if TYPE_CHECKING:
    from collections.abc import Sequence

    from calmctl.evaluation.gap import Measure, SystemGap
    from calmctl.explain.calibration import Calibration, Signal
    from calmctl.explain.collection import AnchorWeight, Candidate, Failures
    from calmctl.explain.coverage import Coverage

app = options.Commands(
    "Ask of a run what its numbers do not tell.",
    "calmctl diagnose gap --against runs/demo-without-001",
    "calmctl diagnose failures runs/msrvtt-001",
)


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


@app.verb(
    "calmctl diagnose gap",
    "calmctl diagnose gap runs/demo-001 --against runs/demo-without-001",
    "calmctl diagnose gap runs/demo-001 --cross demo --cross demo-shifted",
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
    from calmctl.runs.run import WEIGHTS

    chosen = find_named(run, runs, "diagnosing")
    others = find_others(against, runs, chosen)
    options.one_of(WEIGHTS, "--weights", weights)
    options.one_of(("test", "val", "train"), "--split", split)
    options.check_cross(chosen.recipe(), cross, features)
    loading(", ".join(str(each.folder) for each in (chosen, *others)))
    from calmctl.evaluation.gap import gaps_of_runs

    tests = options.test_sets(chosen.recipe(), cross, root, annotations, videos, features)
    with progress_bar("clips") as bar:
        measured = gaps_of_runs(
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
            for each in measured
        ]
        print_json({"split": split, "weights": weights, "gaps": gaps, **environment()})
    else:
        _print_gap(measured, split)


def _print_gap(measured: Sequence[SystemGap], split: str) -> None:
    from calmctl.evaluation.gap import FOLDS

    out = stdout()
    first = measured[0]
    for dataset in dict.fromkeys(each.dataset for each in measured):
        here = [each for each in measured if each.dataset == dataset]
        out.print(Text.assemble((dataset, "bold"), f", {split} split: {here[0].gap.n_clips} clips and sentences"))
        # The same measures again for the next systems: a table of 80 columns takes three.
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
    print_caveats(dict.fromkeys(caveat for each in measured for caveat in each.caveats))


def _grid(systems: Sequence[SystemGap]) -> Sheet:
    grid = Sheet(header_style="bold")
    grid.add_column("", no_wrap=True)
    for each in systems:
        name = Path(each.system).name
        grid.add_column(f"{name}\n{each.loss}" if each.loss else name, justify="right", overflow="fold")
    for field, label in _MEASURES:
        values: list[Measure] = [getattr(each.gap, field) for each in systems]
        grid.add_row(label, *(_number(value.value) for value in values))
        bounds = (f"{_number(v.interval.low)} to {_number(v.interval.high)}" for v in values)
        grid.add_row("", *(Text(bound, style="dim") for bound in bounds))
    return grid


def _number(value: float) -> str:
    return f"{value:z.3f}" if abs(value) < 10 else f"{value:z.1f}"


# Whether a run's uncertainty knows its errors.


@app.verb("calmctl diagnose calibration", "calmctl diagnose calibration runs/msrvtt-001 --html calibration.html")
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
    chosen = find_named(run, runs, "diagnosing", task="retrieval")
    options.one_of(("best", "last"), "--weights", weights)  # anchors and VAE are not in slim
    loading(str(chosen.folder))
    from calmctl.explain.calibration import calibrate
    from calmctl.explain.explainer import explain_with_run

    explainer = explain_with_run(chosen, choose_device(device), which=weights)
    result = calibrate(explainer, open_with_progress(explainer, "val"))
    if html is not None:
        from calmctl.explain.pages import write_calibration_page

        write_calibration_page(result, html)
    print_result(result, print_calibration, as_json, html)


def print_calibration(result: Calibration) -> None:
    """Print a calibration within 80 columns."""
    out = stdout()
    out.print(f"[bold]{printable(result.run)}[/], {result.split} split of {result.dataset}", soft_wrap=True)
    out.print(
        f"{counted(result.queries, 'sentence')} among {counted(result.clips, 'clip')}, "
        f"R@1 {100 * result.accuracy:z.1f} %\n"
    )
    out.print(f"[bold]{printable(result.conclusion)}[/]\n")
    print_caveats(result.caveats)
    table = Sheet("confidence", numbers=["AUROC", "95 %", "AURC", "ECE"], header_style="dim")
    table.add_column("")
    for signal in result.signals:
        interval = "" if signal.interval is None else f"{signal.interval[0]:z.2f}-{signal.interval[1]:z.2f}"
        auroc = "" if signal.separation is None else f"{signal.separation:z.3f}"
        area, error = f"{signal.risk_coverage.area:z.3f}", f"{signal.reliability.error:z.3f}"
        table.add_row(signal.name, auroc, interval, area, error, signal.verdict)
    out.print(table)
    # The same for every signal, because it depends on the answers alone.
    best = result.signals[0].risk_coverage.best
    out.print(
        f"\n[dim]AURC: area under risk-coverage, lower is better; knowing nothing {1 - result.accuracy:z.3f}, "
        f"knowing all {best:z.3f}.[/]"
    )
    # The plain confidence and the posterior: the question is between these two.
    for signal in result.signals[:2]:
        _print_diagrams(signal)


def _print_diagrams(signal: Signal) -> None:
    out = stdout()
    rel, curve = signal.reliability, signal.risk_coverage
    title = {"title": f"\n[bold]{signal.name}[/]", "title_justify": "left", "title_style": ""}
    table = Sheet(numbers=["predicted", "sentences"], header_style="dim", **title)
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


@app.verb("calmctl diagnose failures", "calmctl diagnose failures runs/msrvtt-001 --top 20 --html failures.html")
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

    chosen = find_named(run, runs, "diagnosing", task="retrieval")
    if vocabulary is not None:
        resolve_vocabulary(vocabulary)  # a wrong name is told before a model is loaded
    loading(str(chosen.folder))
    from calmctl.explain.collection import find_failures
    from calmctl.explain.explainer import explain_with_run

    explainer = explain_with_run(chosen, choose_device(device), vocabulary=vocabulary)
    collection = open_with_progress(explainer, split)
    result = find_failures(explainer, collection, top)
    if html is not None:
        from calmctl.explain.pages import write_failures_page

        write_failures_page(result, collection, html)
    print_result(result, print_failures, as_json, html)


def print_failures(result: Failures) -> None:
    """Print a run's worst queries."""
    out = stdout()
    out.print(f"[bold]{printable(result.run)}[/], {result.split} split of {result.dataset}", soft_wrap=True)
    out.print(
        f"{result.failed} of {counted(result.queries, 'sentence')} do not find their clip first among "
        f"{counted(result.clips, 'clip')}; the worst {len(result.worst)}:"
    )
    print_caveats(result.caveats)
    for failure in result.worst:
        grid = section(f"rank {failure.rank:g}  {printable(failure.query)}")
        grid.add_row("[dim]sentence[/]", _weighed(failure.anchors))
        grid.add_row("[green]right[/]", _candidate(failure.right))
        grid.add_row("[red]confusing[/]", _candidate(failure.confusing))
        pulled = ", ".join(f"{printable(each.anchor)} {each.value:+z.3f}" for each in failure.pulled)
        lead = failure.confusing.score - failure.right.score
        grid.add_row("[dim]pulled by[/]", f"{pulled}\nof a lead of {lead:+z.3f}")
        out.print(grid)


def _candidate(candidate: Candidate) -> str:
    quote = f"\n“{printable(candidate.captions[0])}”" if candidate.captions else ""
    anchors = _weighed(candidate.anchors)
    return f"[bold]{printable(candidate.clip)}[/] {candidate.score:z.3f}  {anchors}{quote}"


def _weighed(anchors: Sequence[AnchorWeight]) -> str:
    return ", ".join(f"{printable(each.anchor)} [dim]{percent(each.value)}[/]" for each in anchors)


# Which anchors of a run carry mass on its data set.


_SHOWN = 12


@app.verb("calmctl diagnose coverage", "calmctl diagnose coverage runs/demo-001 --out used.yaml")
def coverage(
    run: options.RunArgument = None,
    out: options.VocabularyFile = None,
    as_json: options.Json = False,
    # Anchors that are chosen on the test split have seen its answers.
    split: options.Split = "val",
    vocabulary: options.Vocabulary = None,
    device: options.Device = "auto",
    runs: options.Runs = Path("runs"),
) -> None:
    """Show which anchors a data set uses, and which never.

    Also which say the same, and which are worth keeping: --out writes those.
    """
    from calmctl.anchors.shipped import publish, resolve_vocabulary

    chosen = find_named(run, runs, "diagnosing", task="retrieval")
    if vocabulary is not None:
        resolve_vocabulary(vocabulary)  # a wrong name is told before a model is loaded
    if out is not None:
        require_output(out, VOCABULARY)
    loading(str(chosen.folder))
    from calmctl.explain.coverage import coverage as measure
    from calmctl.explain.coverage import suggested_vocabulary
    from calmctl.explain.explainer import explain_with_run

    explainer = explain_with_run(chosen, choose_device(device), vocabulary=vocabulary)
    result = measure(explainer, open_with_progress(explainer, split))
    if split == "test":
        note("[yellow]this is the test split: anchors chosen by it have seen the answers[/]")
    print_result(result, print_coverage, as_json)
    if out is not None:
        subset = suggested_vocabulary(result, explainer.vocabulary)
        status = publish(subset, out)
        note(f"{status} {printable(str(out))} ({subset.reference}, {len(subset)} labels)")


def print_coverage(result: Coverage) -> None:
    """Print a coverage within 80 columns."""
    console = stdout()
    console.print(
        f"[bold]{printable(result.vocabulary)}[/], {len(result.anchors)} anchors, by {printable(result.run)}",
        soft_wrap=True,
    )
    console.print(
        f"{counted(result.clips, 'clip')} and {counted(result.captions, 'caption')} of {result.dataset}, "
        f"{result.split} split"
    )
    console.print(f"The mass is as on {result.effective:z.1f} anchors with equal shares.\n")
    table = Sheet("anchor", numbers=["mass in V_p", "in S_p", "clips", "captions"], header_style="dim")
    table.columns[0].ratio = 1
    for use in result.anchors[:_SHOWN]:
        masses = (f"{100 * use.video_mass:z.1f} %", f"{100 * use.text_mass:z.1f} %")
        table.add_row(printable(use.label), *masses, str(use.clips), str(use.captions))
    console.print(table)
    if len(result.anchors) > _SHOWN:
        console.print(f"[dim]and {len(result.anchors) - _SHOWN} more (--json lists all)[/]")
    console.print("[dim]clips, captions: those that need it among the fewest anchors that hold 90 % of their mass[/]")
    if result.never:
        console.print(f"\n[bold]Never needed[/] ({len(result.never)}): {', '.join(map(printable, result.never))}")
    if result.twins:
        console.print(f"\n[bold]Near-duplicates[/] ({len(result.twins)}), which rise and fall together")
        like: dict[str, list[str]] = {}
        for twins in result.twins:
            like.setdefault(twins.kept, []).append(f"{printable(twins.dropped)} [dim]{twins.correlation:z.2f}[/]")
        for kept, dropped in like.items():
            console.print(f"  {printable(kept)} = {', '.join(dropped)}")
    console.print(
        f"\nSuggested: the {len(result.suggested)} others, which carry {100 * result.kept_mass:z.1f} % of the mass; "
        "--out FILE writes them as a vocabulary."
    )
