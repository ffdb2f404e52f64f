"""`calmctl runs`: what was trained, what to keep of it; `compare`: runs beside one another; `report`: a page of one."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from calmctl.cli import options
from calmctl.cli.console import (
    Sheet,
    ask,
    loading,
    note,
    print_json,
    print_text,
    printable,
    progress_bar,
    readings,
    section,
    stdout,
)
from calmctl.cli.results import find_named, print_caveats
from calmctl.errors import BadInput, RunFailed, RunInUse, RunNotFound
from calmctl.files import PAGE, require_output
from calmctl.words import METRIC_NAMES, WAYS, cell, counted

if TYPE_CHECKING:
    from calmctl.evaluation.compare import Comparison, KeptEvaluation
    from calmctl.runs.catalogue import RunRecord
    from calmctl.runs.run import Run
    from calmctl.source.base import SourceSpec

app = options.Commands(
    "List runs, look into one, find the best, free space.",
    "calmctl runs ls",
    "calmctl runs best --trained-on msrvtt",
    "calmctl runs prune",
)

Task = Annotated[str | None, typer.Option(help="Only retrieval or caption runs.", show_default=False)]
TrainedOn = Annotated[
    str | None, typer.Option(metavar="DATASET", help="Only runs trained on this data set.", show_default=False)
]


@app.verb("calmctl runs ls", "calmctl runs ls --task caption", "calmctl runs ls --trained-on msrvtt --json")
def ls(
    task: Task = None, trained_on: TrainedOn = None, as_json: options.Json = False, runs: options.Runs = Path("runs")
) -> None:
    """List the runs of a folder, the newest first.

    With date, recipe, data and how much of it was there, epochs, size, and the score on validation and test.
    """
    records = _records(runs, task, trained_on)
    if as_json:
        print_json([record.to_json() for record in records])
        return
    table = Sheet("run", numbers=["trained", "epoch", "size", "validation", "test"])
    table.columns[0].min_width = max(len(record.name) for record in records)  # never broken
    for record in records:
        name = printable(record.name)
        if record.state == "unreadable":
            table.add_row(f"{name}\n[red]{printable(record.fault)}[/]", "", "", _size(record.bytes))
            continue
        mark = "" if record.state == "finished" else " [yellow]unfinished[/]"
        table.add_row(
            f"{name}{mark}\n[dim]{printable(_recipe(record))}\n{printable(record.trained_on)}[/]",
            _when(record.time),
            f"{record.epoch}/{record.epochs}" if record.epochs else str(record.epoch),
            _size(record.bytes),
            f"{record.metric} {_number(record.validation)}",
            _number(record.test),
        )
    out = stdout()
    out.print(table)
    total = sum(record.bytes for record in records)
    out.print(f"[dim]{counted(len(records), 'run')}, {_size(total)}; times are UTC[/]")


@app.verb("calmctl runs show demo-001", "calmctl runs show runs/msrvtt-001 --json")
def show(run: options.RunName, as_json: options.Json = False, runs: options.Runs = Path("runs")) -> None:
    """Show what a run is: its record, recipe, files, and every evaluation that is kept with it."""
    from calmctl.evaluation.compare import read_kept
    from calmctl.recipe import recipe_from_dict
    from calmctl.runs.catalogue import files_of, flat_recipe, kept_evaluations, run_record
    from calmctl.runs.run import find_run

    chosen = find_run(run, runs)
    record, recipe = run_record(chosen), chosen.recipe()
    plain = flat_recipe(recipe_from_dict({"name": recipe.name, "data": {"dataset": recipe.data.dataset}}))
    changed = {key: value for key, value in flat_recipe(recipe).items() if value != plain[key]}
    kept = [read_kept(chosen, path) for path in kept_evaluations(chosen)]
    files = {name: size for name, size in files_of(chosen).items() if not Path(name).name.startswith(".")}
    if as_json:
        evaluations = [{"file": str(each.path), "weights": each.record["weights"], **each.result} for each in kept]
        plain_recipe = recipe.model_dump(mode="json")
        print_json({"run": record.to_json(), "recipe": plain_recipe, "files": files, "evaluations": evaluations})
        return
    out = stdout()
    out.print(f"[bold]{printable(chosen.name)}[/]\n[dim]{printable(str(chosen.folder))}[/]", soft_wrap=True)
    facts = section("what it is")
    facts.add_row("task", f"{record.task}: {printable(_recipe(record))}")
    when = f"{_when(record.time)} UTC, " if record.time else ""
    facts.add_row("trained", f"{when}{record.progress} epochs, seed {record.seed}")
    facts.add_row("data", printable(record.trained_on))
    if record.parameters:
        facts.add_row("model", f"{printable(record.backbone)}, {record.parameters:,} parameters")
    facts.add_row(
        "score", f"{record.metric} {_number(record.validation)} on validation, {_number(record.test)} on test"
    )
    facts.add_row("files", ", ".join(f"{printable(name)} {_size(size)}" for name, size in files.items()))
    out.print(facts)
    keys = section(f"recipe: what differs from the defaults of {len(plain)} keys")
    for key, value in changed.items():
        keys.add_row(key, printable(json.dumps(value, ensure_ascii=False).strip('"')))
    out.print(keys)
    table = Sheet("evaluation", "weights", "scorer", numbers=["clips", record.metric])
    way, name = ("captions", "cider") if record.task == "caption" else ("text_to_video", "r1")
    for each in kept:
        labels = each.result
        title = f"{labels['dataset']} {labels['protocol']}".strip() + f", {labels['split']}"
        clips = len(each.sums[way].clips)
        value = f"{each.metrics(way)[name]:z.1f}"
        weights = f"{each.record['weights']}{'' if each.is_current else ', earlier'}"
        table.add_row(printable(title), weights, printable(str(labels.get("scorer", ""))), f"{clips:,}", value)
    out.print("\n[bold]kept evaluations[/]")
    out.print(table if kept else "none; calmctl eval makes one")


@app.verb("calmctl runs best --trained-on msrvtt", "calmctl runs best --trained-on demo --task caption --json")
def best(
    task: Task = None, trained_on: TrainedOn = None, as_json: options.Json = False, runs: options.Runs = Path("runs")
) -> None:
    """Print the finished run with the best score on validation.

    Its path alone goes to standard output. The test split has no say in the choice.
    """
    from calmctl.runs.catalogue import best_run

    narrowing = {"--task": task, "--trained-on": trained_on}
    ways = [option for option, value in narrowing.items() if value is None]
    record = best_run(_records(runs, task, trained_on), ways)
    if as_json:
        print_json(record.to_json())
        return
    note(f"{record.metric} {_number(record.validation)} on validation; {printable(_recipe(record))}")
    print(record.folder)


@app.verb("calmctl runs prune", "calmctl runs prune demo-001 --last", "calmctl runs prune --yes")
def prune(
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="RUN...", help="These runs only.", autocompletion=options.complete_run),
    ] = None,
    last: Annotated[bool, typer.Option("--last", help="The last epoch's weights, too.")] = False,
    yes: options.Yes = False,
    runs: options.Runs = Path("runs"),
) -> None:
    """Remove what of runs nothing needs any more; it shows what, and asks.

    The training state of finished runs, what killed processes left, and runs that never took a step.
    """
    from calmctl.runs.catalogue import prunable, run_record
    from calmctl.runs.catalogue import prune as remove
    from calmctl.runs.run import find_run

    records = [run_record(find_run(name, runs)) for name in names] if names else _records(runs, None, None)
    superfluous = prunable(records, last=last)
    if not superfluous:
        note("there is nothing to remove")
        return
    table = Sheet("run", "what", numbers=["size"])
    for each in superfluous:
        table.add_row(printable(each.run.folder.name), each.why, _size(each.bytes))
    stdout().print(table)
    ask(f"Remove this, {_size(sum(each.bytes for each in superfluous))}?", yes)
    freed, faults = 0, []
    for each in superfluous:
        try:
            remove(each)
            freed += each.bytes
        except RunInUse as fault:  # somebody trains it just now: it is as it should be, and the others go on
            note(f"[yellow]left as it is: {printable(str(fault))}[/]")
        except RunFailed as fault:
            faults.append(str(fault))
    note(f"freed {_size(freed)}")
    if faults:
        raise RunFailed("\n".join(faults))


@app.verb("calmctl runs rm demo-001", "calmctl runs rm demo-001 demo-002 --yes")
def rm(names: options.RunNames, yes: options.Yes = False, runs: options.Runs = Path("runs")) -> None:
    """Remove runs, weights and results and all; it shows what, and asks."""
    from calmctl.runs.catalogue import dependants, remove_run, run_record, run_records
    from calmctl.runs.run import find_run

    chosen = [find_run(name, runs) for name in names]
    records, others = [run_record(run) for run in chosen], run_records(runs)
    table = Sheet("run", "state", "data", numbers=["size", "score, val"])
    for record in records:
        score = f"{record.metric} {_number(record.validation)}"
        size = _size(record.bytes)
        table.add_row(printable(record.folder), record.state, printable(record.trained_on), size, score)
    stdout().print(table)
    for run in chosen:
        if users := [name for name in dependants(run, others) if name not in {each.name for each in records}]:
            note(f"[yellow]{printable(', '.join(users))} started from {printable(run.folder.name)}[/]")
    ask(f"Remove {counted(len(chosen), 'run')} for good?", yes)
    for run in chosen:
        remove_run(run)
        note(f"removed {printable(str(run.folder))}")


def _records(root: Path, task: str | None, trained_on: str | None) -> list[RunRecord]:
    """The runs of a folder that are meant. Raises `RunNotFound` where there is none."""
    from calmctl.runs.catalogue import SCORES, run_records

    if task is not None:
        options.one_of(SCORES, "--task", task)
    every = run_records(root)
    chosen = [record for record in every if task in (None, record.task)]
    chosen = [record for record in chosen if trained_on in (None, record.data.partition(" ")[0])]
    if not chosen:
        which = f" of {counted(len(every), 'run')}" if every else ""
        raise RunNotFound(f"no run in {root}{which} is meant; 'calmctl train recipes/demo.yaml' makes one")
    return chosen


def _recipe(record: RunRecord) -> str:
    aligned = "" if record.alignment in ("", "none") else f" + {record.alignment}"
    # A folder is called by its recipe and a number, so that its name is said once.
    recipe = "" if f"{record.name}-".startswith(f"{record.recipe}-") else f"{record.recipe}: "
    return f"{recipe}{record.head}{aligned}, {record.backbone}"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:z.1f}"  # noqa: RUF001


def _size(size: int) -> str:
    unit, name = (1e9, "GB") if size >= 1e9 else (1e6, "MB") if size >= 1e6 else (1e3, "kB")
    return f"{size / unit:.1f} {name}"


def _when(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.gmtime(seconds)) if seconds else "–"  # noqa: RUF001


# `calmctl compare`: runs beside one another on the same test set.


COMPARE_EXAMPLES = options.examples(
    "calmctl compare demo-001 demo-without-001",
    "calmctl compare msrvtt-001 msrvtt-002 none-001 none-002   # seeds",
    "calmctl compare demo-001 demo-without-001 --cross demo-shifted",
    "calmctl compare demo-001 demo-without-001 --latex > table.tex",
)


def compare(
    names: options.RunNames,
    cross: options.Cross = None,
    as_json: options.Json = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="One row per system, direction and metric.")] = False,
    as_markdown: Annotated[bool, typer.Option("--markdown", help="Tables for a page.")] = False,
    as_latex: Annotated[bool, typer.Option("--latex", help="Tables for a paper, by booktabs.")] = False,
    root: options.Root = None,
    annotations: options.Annotations = None,
    videos: options.Videos = None,
    features: options.Features = None,
    split: options.Split = "test",
    weights: options.Weights = "best",
    device: options.Device = "auto",
    runs: options.Runs = Path("runs"),
) -> None:
    """Compare runs on one test set, paired over its clips.

    Numbers, differences from the first run, and the keys in which recipes differ.

    Runs that differ in the seed alone are one system, with mean and spread.

    Evaluations that are kept with the runs are used; what is missing is evaluated now, and kept.
    """
    from calmctl.data.registry import protocol_for
    from calmctl.runs.run import WEIGHTS, find_run

    formats = {"--json": as_json, "--csv": as_csv, "--markdown": as_markdown, "--latex": as_latex}
    if len(chosen_formats := [name for name, wanted in formats.items() if wanted]) > 1:
        raise BadInput(f"{' and '.join(chosen_formats)} exclude each other; give one of them")
    options.one_of(WEIGHTS, "--weights", weights)
    options.one_of(("test", "val"), "--split", split)
    chosen = [find_run(name, runs) for name in names]
    if len({run.folder.resolve() for run in chosen}) < max(2, len(chosen)):
        raise BadInput("name at least two runs, each once; for example: calmctl compare demo-001 demo-without-001")
    if len({run.task for run in chosen}) > 1:
        raise BadInput("retrieval and captioning runs share no number; name runs of one task")
    recipe = chosen[0].recipe()
    options.check_cross(recipe, cross, features)
    comparisons = []
    for spec in options.test_sets(recipe, cross, root, annotations, videos, features):
        protocol = protocol_for(recipe.task, spec.dataset, spec.protocol)
        kept = _kept(chosen, spec, protocol, split, weights, device)
        from calmctl.evaluation.compare import compare_kept

        comparisons.append(compare_kept(kept))
    if as_json:
        print_json([comparison.to_json() for comparison in comparisons])
    elif as_csv:
        _print_csv(comparisons)
    elif as_markdown or as_latex:
        from calmctl.evaluation.compare import latex, markdown

        print_text("\n".join((latex if as_latex else markdown)(comparison) for comparison in comparisons))
    else:
        for comparison in comparisons:
            print_comparison(comparison)


REPORT_EXAMPLES = options.examples(
    "calmctl report", "calmctl report demo-001 --html report.html", "calmctl report runs/msrvtt-001 --top 30"
)


def report(
    run: options.RunArgument = None,
    html: options.Html = None,
    top: options.Top = 10,
    runs: options.Runs = Path("runs"),
) -> None:
    r"""Write one page about a run.

    Curves of the training, numbers with intervals, where the right ones rank, the worst failures, the recipe.

    It is RUN/report.html where --html names no other.

    It needs 'calmctl\[report]', and what calmctl eval has kept.
    """
    chosen = find_named(run, runs, "reporting")
    path = html or (chosen.folder / "report.html" if chosen.folder.is_dir() else Path("report.html"))
    require_output(path, PAGE)
    loading(chosen.name)
    from calmctl.explain.report import write_report

    write_report(chosen, path, top=top)
    note(f"wrote {printable(str(path))}")


def _kept(
    chosen: Sequence[Run], spec: SourceSpec, protocol: str, split: str, weights: str, device: str
) -> list[KeptEvaluation]:
    """An evaluation of each run on a test set: the kept one, or one that is made now."""
    from calmctl.evaluation.compare import KeptEvaluation, changed_since, find_kept, read_kept

    kept: list[KeptEvaluation | None] = []
    for run in chosen:
        like = kept[0] if kept else None
        earlier = find_kept(run, spec.dataset, protocol, split=split, weights=weights, like=like)
        if earlier is not None and (why := changed_since(earlier, spec)):
            note(f"[yellow]{printable(run.name)} is evaluated anew: the test set has changed since, {why}[/]")
            earlier = None
        kept.append(earlier)
    missing = [run for run, each in zip(chosen, kept, strict=True) if each is None]
    if missing:
        loading(", ".join(str(run.folder) for run in missing))
        from calmctl.api import evaluate
        from calmctl.evaluation.runs import keep

        made = {}
        with progress_bar("clips") as bar:
            for run in missing:
                evaluation = evaluate(
                    run, spec, weights=weights, split=split, device=device, kept=False, progress=readings(bar)
                )
                try:
                    made[run] = read_kept(run, keep(run, weights, evaluation))
                except RunFailed as fault:  # somebody else's run: it is compared all the same
                    note(f"[yellow]this evaluation is not kept: {printable(str(fault))}[/]")
                    record: dict[str, Any] = {"weights": weights, **json.loads(json.dumps(evaluation.record()))}
                    made[run] = KeptEvaluation(run, run.evals, record)
        kept = [made[run] if each is None else each for run, each in zip(chosen, kept, strict=True)]
    return [each for each in kept if each is not None]


def _print_csv(comparisons: Sequence[Comparison]) -> None:
    import csv
    import io

    rows, text = [row for comparison in comparisons for row in comparison.rows()], io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(
        {key: cell(value) if isinstance(value, str) else value for key, value in row.items()} for row in rows
    )
    print_text(text.getvalue())


def print_comparison(comparison: Comparison) -> None:
    """Print a comparison within 80 columns: a table a direction, differences below, recipes, what must be said."""
    from calmctl.evaluation.compare import recipe_rows

    out = stdout()
    out.print(f"[bold]{printable(comparison.title)}[/]\n")
    for way in comparison.ways:
        names = list(comparison.systems[0].metrics[way])
        table = Sheet(WAYS[way], numbers=[METRIC_NAMES[name] for name in names])
        for number, system in enumerate(comparison.systems):
            values = [system.metrics[way][name] for name in names]
            table.add_row(f"{_letter(number)} {printable(system.name)}", *(f"{each.mean:z.1f}" for each in values))
            if any(each.std is not None for each in values):
                table.add_row("  [dim]± over seeds[/]", *(f"[dim]{each.std:z.1f}[/]" for each in values))
            bounds = [system.intervals[way].get(name) for name in names]
            # Two numbers below one: the interval in whole points, which is what it is good for.
            table.add_row("", *("" if each is None else f"[dim]{each.low:z.0f}–{each.high:z.0f}[/]" for each in bounds))  # noqa: RUF001
        out.print(table, "")
        if len(comparison.systems) == 1:
            continue
        table = Sheet("minus A", "", numbers=["difference", "95 % interval", "p"], header_style="dim")
        for number, system in enumerate(comparison.systems):
            for place, (name, each) in enumerate(system.differences.get(way, {}).items()):
                interval = f"{each.interval.low:+z.1f} to {each.interval.high:+z.1f}"
                who = f"{_letter(number)} {printable(system.name)}" if place == 0 else ""
                table.add_row(who, METRIC_NAMES[name], f"{each.difference:+z.1f}", interval, f"{each.p_value:.3f}")
        out.print(table, "")
    if rows := recipe_rows(comparison):
        table = Sheet("recipes differ in", *map(_letter, range(len(comparison.systems))))
        for row in rows:
            table.add_row(*map(printable, row))
        out.print(table, "")
    else:
        how = "differ in the seed alone" if len(comparison.systems[0].seeds) > 1 else "do not differ"
        out.print(f"[dim]recipes {how}[/]\n")
    for number, system in enumerate(comparison.systems):
        seeds = ", ".join(map(str, system.seeds))
        out.print(f"[dim]{_letter(number)} {printable(', '.join(system.runs))}; seed {seeds}[/]")
    missing = f"{counted(comparison.left_out, 'clip')} of it left out" if comparison.left_out else "no clip left out"
    out.print(f"[dim]the same test set for all, {missing}; paired over clips; below numbers: 95 % intervals[/]")
    print_caveats(comparison.caveats)


def _letter(number: int) -> str:
    return chr(ord("A") + number) if number < 26 else str(number)
