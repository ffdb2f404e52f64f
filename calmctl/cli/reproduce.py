"""`calmctl reproduce`: a table of the paper, from runs to numbers; `calmctl demo`: all of calmctl on a drawn world."""

from __future__ import annotations

import shlex
import sys
from collections import Counter
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from calmctl.cli import options
from calmctl.cli.console import (
    EXAMPLES_SHOWN,
    BarWatcher,
    Sheet,
    examples_table,
    loading,
    print_json,
    print_next,
    printable,
    progress_bar,
    stderr,
    stdout,
)
from calmctl.errors import BadInput, CalmError
from calmctl.words import counted

if TYPE_CHECKING:
    from calmctl.demo import Demo
    from calmctl.reproduce.filled import Block, Filled
    from calmctl.reproduce.reproduce import Plan
    from calmctl.reproduce.work import Cost


# Typed out: the rows' module imports the recipes' schema, which no help needs.
TABLES = ("table1", "table2", "table3", "table4", "table5", "table6", "table7", "ablations")
DEMO = "demo"

DEMO_DATA = Path("data/demo")

EXAMPLES = options.examples(
    "calmctl reproduce table1 --dry-run",
    "calmctl reproduce table1 table6 table7 --data demo     # no download, no GPU",
    "calmctl reproduce table7 --data /data --seeds 5 optim.precision=bf16",
    "calmctl reproduce table1 --data /data --skip-missing --rows t-mass,t-mass+calm",
    "calmctl reproduce ablations --data demo --json",
)
DEMO_EXAMPLES = options.examples("calmctl demo", "calmctl demo --seed 1 --json")


def reproduce(
    tables: Annotated[
        list[str],
        typer.Argument(metavar="TABLE... [KEY=VALUE]...", help=f"{', '.join(TABLES)}; recipe keys for all rows."),
    ],
    data: Annotated[
        Path, typer.Option(metavar="FOLDER|demo", help="Folder of the data sets' folders, or demo.")
    ] = Path("data"),
    seeds: Annotated[int, options.SEEDS(help="Runs of each row.")] = 3,
    rows: Annotated[
        str | None, typer.Option(metavar="KEY,KEY", help="These rows alone, and those they are compared with.")
    ] = None,
    skip_missing: Annotated[
        bool, typer.Option("--skip-missing", help="Leave out rows and test sets whose data is missing.")
    ] = False,
    dry_run: options.DryRun = False,
    as_json: options.Json = False,
    demo_root: Annotated[
        Path, typer.Option(metavar="FOLDER", help="Of --data demo: folder of its clips.", rich_help_panel=options.DATA)
    ] = DEMO_DATA,
    device: options.Device = "auto",
    runs: options.Runs = Path("runs/reproduce"),
) -> None:
    """Run a table of the paper, beside the paper's numbers.

    Ours is mean and spread over seeds; differences that are more than chance are marked.

    Finished runs are used again, interrupted ones go on. Tables are also written as JSON and Markdown.
    """
    names = [word for word in tables if "=" not in word]
    # A device is a recipe key like any other, and trainings get it as one.
    overrides = tuple(word for word in tables if "=" in word) + ((f"device={device}",) if device != "auto" else ())
    unknown = [name for name in names if name not in TABLES]
    if unknown or not names:
        raise BadInput(f"{f'there is no {unknown[0]}; ' if unknown else ''}name one or more of {', '.join(TABLES)}")
    from calmctl.device import check_device

    check_device(device)
    loading("the model library")
    from calmctl.device import choose_device
    from calmctl.reproduce.reproduce import (
        choose_rows,
        measure,
        plan_tables,
        require_present,
        table_to_json,
        write_table,
    )
    from calmctl.reproduce.work import Cost, estimate, reproducing, work_off

    where = choose_device(device)
    keys = rows.split(",") if rows else []
    with progress_bar("items") as bar, ExitStack() as stack:
        watcher = StageWatcher(bar)
        if str(data) == DEMO:
            from calmctl.reproduce.stand_in import find_stand_in, make_stand_in, planned_stand_in, stand_in_table

            chosen = [choose_rows(stand_in_table(name, runs), keys) for name in names]
            if not dry_run:  # held before looking, since what is missing is made at once
                stack.enter_context(reproducing(runs))
            world = find_stand_in(demo_root, runs)
            world_exists = world is not None
            if world is None:
                # A dry run makes nothing, the world included.
                world = planned_stand_in(demo_root, runs) if dry_run else make_stand_in(demo_root, runs, watcher)
        else:
            from calmctl.reproduce.datasets import folder_world
            from calmctl.reproduce.rows import published_table

            chosen = [choose_rows(published_table(name), keys) for name in names]
            world, world_exists = folder_world(data, chosen), True
        plan = plan_tables(chosen, world, runs, seeds=seeds, overrides=overrides, skip_missing=skip_missing)
        if dry_run:
            drawn = "not measured: the demo world is not drawn yet, which the command without --dry-run does first"
            try:
                missing = "not measured: data is missing" if world_exists else drawn
                cost = Cost(None, None, missing) if plan.missing or not world_exists else estimate(plan.jobs)
            except CalmError as fault:  # weights that are not at hand, say: a plan is wanted all the same
                cost = Cost(None, None, f"not measured: {fault}")
            if as_json:
                print_json(plan_json(plan, cost))
            else:
                print_plan(plan, cost, world_exists=world_exists)
            return
        require_present(plan)
        if str(data) != DEMO:
            stack.enter_context(reproducing(runs))
            # Two that look at once would both train what is missing: look again, now that nobody else does.
            plan = plan_tables(chosen, world, runs, seeds=seeds, overrides=overrides, skip_missing=skip_missing)
        # On stderr: standard output has the tables, or JSON, and nothing else.
        print_plan(plan, estimate(plan.jobs), world_exists=True, to_stderr=True)
        work_off(plan.jobs, runs, watcher=watcher)
        filled = measure(plan, runs, seeds=seeds, overrides=overrides, device=where, progress=watcher.reading)
    # Stands in the Markdown, so that whoever reads the table can make it again.
    command = shlex.join(["calmctl", *sys.argv[1:]])
    files = [path for table in filled for path in write_table(table, runs, command)]
    if as_json:
        print_json([table_to_json(table) for table in filled])
    else:
        print_tables(filled)
        stdout().print("\n".join(["", *(f"wrote {path}" for path in files)]), soft_wrap=True, markup=False)


# What `calmctl reproduce` shows: the plan before, the work meanwhile, the tables after.


_PAPER_TIME = (
    "the paper gives 1.14 s a batch of 128, on hardware it does not name: 2.2 hours for the 7,035 batches of MSR-VTT"
)


class StageWatcher(BarWatcher):
    """Says which run begins, and no more of each."""

    def begin(self, folder: Path, epochs: int) -> None:
        """Nothing is printed: a table's runs are many, and `stage` has named this one."""
        self._epochs = epochs

    def epoch(self, epoch: int, validation: dict[str, float]) -> None:
        """Nothing: validation numbers are in the runs' folders."""


def plan_json(plan: Plan, cost: Cost) -> dict[str, Any]:
    """A plan for programs."""
    return {
        "tables": [table.name for table in plan.tables],
        "data": plan.world.name,
        "found": [asdict(each) for each in plan.found.values()],
        "left_out": plan.not_run,
        "runs": [
            {"name": job.recipe.name, "state": job.state, "folder": str(job.run.folder) if job.run else None}
            for job in plan.jobs
        ],
        "seconds": cost.seconds,
        "memory_bytes": cost.memory_bytes,
        "measured_from": cost.how,
    }


def print_plan(plan: Plan, cost: Cost, *, world_exists: bool, to_stderr: bool = False) -> None:
    """Print what tables need and take, within 80 columns."""
    out = stderr() if to_stderr else stdout()
    for table in plan.tables:
        out.print(Text(f"{table.title}: {counted(len(table.rows), 'row')}", style="bold"))
    if not world_exists:
        out.print("The demo world is not made yet: it is drawn, and its CLIP trained, in a few minutes at first.")
    grid = Sheet(show_header=False)
    grid.add_column(no_wrap=True)
    grid.add_column(max_width=28)
    grid.add_column(overflow="fold")
    for each in plan.found.values():
        mark = Text("there", style="green") if each.present else Text("missing", style="bold red")
        if not (each.present or world_exists):
            mark = Text("to come", style="yellow")  # the command makes it, nobody has to bring it
        if each.online:
            mark = Text("online", style="yellow")
        grid.add_row(
            mark, printable(each.what), printable(each.says if each.present or world_exists else "is made first")
        )
    out.print(grid)
    states = Counter(job.state for job in plan.jobs)
    kinds = ", ".join(f"{states[state]} {state}" for state in ("finished", "interrupted", "new") if states[state])
    out.print(f"{counted(len(plan.jobs), 'run')} ({kinds}); rows that several tables share run once")
    _print_cost(out, cost, world_exists=world_exists)
    for name, reasons in plan.not_run.items():
        for what, why in reasons.items():
            out.print(f"[yellow]left out of {name}[/]: {printable(what)}: {printable(why)}")
    out.print()


def print_tables(filled: list[Filled]) -> None:
    """Print tables within 80 columns."""
    from calmctl.reproduce import filled as cells

    out = stdout()
    for table in filled:
        out.print(Text(f"\n{table.table.title}", style="bold"))
        for block in table.blocks:
            out.print()
            scorer = "" if block.scorer.startswith(("leak-free", "pycocoevalcap")) else f", {block.scorer}"
            out.print(Text.assemble((cells.heading(block), "bold"), f"  {cells.size(block)}{scorer}"))
            out.print(_grid(block, stand_in=table.table.stand_in))
        out.print()
        for line in cells.legend(table):
            # In red, because an audit of a leak must not be taken for a result.
            style = "bold red" if line.startswith(("!!", "leak")) else "dim"
            out.print(Text(line, style=style))


def _print_cost(out: Console, cost: Cost, *, world_exists: bool) -> None:
    if cost.seconds is None:
        out.print(f"time and memory {printable(cost.how)}{f'; {_PAPER_TIME}' if world_exists else ''}")
        return
    from calmctl.training.train import format_duration

    memory = "" if cost.memory_bytes is None else f", memory up to {cost.memory_bytes / 2**30:z.1f} GiB"
    out.print(f"time for the rest: about {format_duration(cost.seconds)}{memory} (from {printable(cost.how)})")


def _grid(block: Block, *, stand_in: bool) -> Sheet:
    from calmctl.reproduce import filled as cells

    captions = "cider" in block.lines[0].numbers
    metrics = ("bleu4", "meteor", "cider", "rouge_l") if captions else ("r1", "r5", "mnr")
    printed = any(line.paper for line in block.lines)
    leaks = any(line.leak_r1 is not None for line in block.lines)
    grid = Sheet(padding=(0, 1, 0, 0), header_style="bold")
    grid.add_column("", no_wrap=True)
    names = [cells.NAMES[metric] for metric in metrics]
    names += ["paper", "diff."] if printed else []
    names += ["vs. base"]
    names += ["leak"] if leaks else []
    for name in names:
        grid.add_column(name, justify="right", no_wrap=True, style="dim red" if name == "leak" else None)
    for line in block.lines:
        row = [line.label, *(cells.number(line.numbers[metric]) for metric in metrics)]
        row += [cells.paper(line), cells.paper_gap(line)] if printed else []
        row += [cells.gain(line, interval=stand_in)]
        row += [cells.mean(line.leak_r1)] if leaks else []
        grid.add_row(*row)
    return grid


# `calmctl demo`: drawn clips, a small CLIP, and CALM with and without its loss.


def demo(
    overrides: options.Overrides = None,
    # The recipes' own, so that a plain training of a recipe is the demo's run once more.
    seed: options.Seed = 24,
    as_json: options.Json = False,
    root: options.Root = None,
    runs: options.Runs = Path("runs"),
) -> None:
    """Draw a world of captioned clips, train and evaluate on it.

    With CALM and without, in domain and out of it. Needs no download and no GPU.

    Clips are drawn into data/demo, or into --root. Interrupted and given again, it goes on where it was.
    """
    folder = root or DEMO_DATA
    loading("the model library")
    from calmctl.demo import run_demo
    from calmctl.files import read_json
    from calmctl.reproduce.work import reproducing

    with progress_bar("items") as bar, reproducing(runs):
        done = run_demo(folder, runs, seed=seed, overrides=overrides or [], watcher=BarWatcher(bar))
    if as_json:
        print_json(read_json(done.report, what="demo report"))
    else:
        print_demo(done, folder)


def print_demo(done: Demo, root: Path) -> None:
    """Print what the demo found, and what can be done next, within 80 columns."""
    run, without = (shlex.quote(str(done.systems[number].run.folder)) for number in (2, 1))
    where = "" if root == DEMO_DATA else f" --root {shlex.quote(str(root))}"

    table = Sheet(title="text to video, R@1 with its 95 % interval", title_justify="left")
    table.add_column("")
    for result in done.systems[0].results:
        dataset = result.labels.dataset
        table.add_column(f"{'→ ' if dataset != 'demo' else ''}{dataset}", justify="right")
        table.add_column("R@5", justify="right")
        table.add_column("MnR", justify="right")
    for system in done.systems:
        cells = []
        for result in system.results:
            numbers, interval = result.metrics["text_to_video"], result.intervals["text_to_video"]
            spread = f" ({interval.r1.low:z.0f}-{interval.r1.high:z.0f})" if interval else ""
            cells += [f"{numbers.r1:z.1f}{spread}", f"{numbers.r5:z.1f}", f"{numbers.mnr:z.1f}"]
        table.add_row(system.name, *cells)
    out = stdout()
    out.print()
    out.print(table)
    first = done.systems[0].results[0].metrics["text_to_video"]
    out.print(
        f"\n{counted(first.n_queries, 'test caption')}, {counted(first.n_candidates, 'clip')} each; chance is "
        f"{100 / first.n_candidates:z.1f} %. Leak-free scorer, best epoch on validation.",
    )
    for test, difference in zip(("in domain", "out of domain"), done.differences, strict=True):
        out.print(
            f"CALM's loss, {test}: R@1 {difference.difference:+z.1f} points, 95 % interval over clips "
            f"{difference.interval.low:+z.1f} to {difference.interval.high:+z.1f}."
        )
    out.print(
        # No verdict from one seed: the interval is over clips, and seeds vary beside it.
        "One seed, whose luck no interval over clips knows: whether CALM helps takes several "
        "(calmctl reproduce table7 --data demo, or calmctl demo --seed N).\n"
    )
    scores = done.captions.result.scores
    out.print(examples_table(done.captions, EXAMPLES_SHOWN))
    out.print(
        f"\nCIDEr {100 * scores.cider:z.1f}, BLEU-4 {100 * scores.bleu4:z.1f} over {scores.n} test clips "
        f"(calmctl eval {done.captioner.folder} has all).\n"
    )
    for system in done.systems:
        out.print(f"{system.name:17} {system.run.folder}", soft_wrap=True)
    out.print(f"{'captioner':17} {done.captioner.folder}", soft_wrap=True)
    out.print(f"{'all numbers':17} {done.report}", soft_wrap=True)
    out.print(f"{'a page to look at':17} {done.page}\n", soft_wrap=True)
    print_next(
        f"calmctl eval {run} --cross demo-shifted{where}",
        f"calmctl eval {run} --against {without}{where}",
        f"calmctl explain {shlex.quote(str(done.clip.path))} {shlex.quote(done.sentence)} --run {run}",
        f'calmctl search "a red circle" --in {shlex.quote(str(done.clip.path.parent))} --run {run}',
        "calmctl train recipes/demo.yaml --dry-run" + (f" data.root={shlex.quote(str(root))}" if where else ""),
    )
