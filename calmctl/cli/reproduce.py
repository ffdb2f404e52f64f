"""`calmctl reproduce`: a table of the paper, from its runs to its numbers."""

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

from calmctl.cli import console as options
from calmctl.cli.console import BarWatcher, Sheet, loading, print_json, printable, progress_bar, stderr, stdout
from calmctl.errors import BadInput, CalmError
from calmctl.words import counted

if TYPE_CHECKING:
    from calmctl.reproduce.filled import Block, Filled
    from calmctl.reproduce.reproduce import Plan
    from calmctl.reproduce.work import Cost, Job
    from calmctl.runs.run import Run


TABLES = ("table1", "table2", "table3", "table4", "table5", "table6", "table7", "ablations")
DEMO = "demo"

EXAMPLES = """Examples:

calmctl reproduce table1 --dry-run                     # data, runs, time and memory; trains nothing

calmctl reproduce table1 table6 table7 --data demo     # on the drawn world: no download, no GPU

calmctl reproduce table7 --data /data --seeds 5 optim.precision=bf16

calmctl reproduce table1 --data /data --skip-missing --rows t-mass,t-mass+calm

calmctl reproduce ablations --data demo --json"""


def reproduce(
    tables: Annotated[
        list[str],
        typer.Argument(metavar="TABLE... [KEY=VALUE]...", help=f"{', '.join(TABLES)}; recipe keys for all rows."),
    ],
    data: Annotated[
        Path, typer.Option(help="Folder of the datasets, each in a folder of its name; or demo, the drawn world.")
    ] = Path("data"),
    seeds: Annotated[int, options.RUNS(help="Runs of each row.")] = 3,
    rows: Annotated[
        str | None, typer.Option(metavar="KEY,KEY", help="These rows alone, and those they are compared with.")
    ] = None,
    skip_missing: Annotated[
        bool, typer.Option("--skip-missing", help="Leave out rows and test sets whose data is missing.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what it takes; train nothing.")] = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
    demo_root: Annotated[Path, typer.Option(help="With --data demo: folder for the drawn clips.")] = Path("data/demo"),
    runs: Annotated[Path, typer.Option(help="Folder for the runs and the tables.")] = Path("runs/reproduce"),
    as_json: Annotated[bool, typer.Option("--json", help="Print the plan or the tables as JSON.")] = False,
) -> None:
    """Run a table of the paper: ours over seeds, its number, and which differences are more than chance.

    Finished runs are used again, interrupted ones go on. Tables are also written as JSON and Markdown.
    """
    names = [word for word in tables if "=" not in word]
    overrides = tuple(word for word in tables if "=" in word) + ((f"device={device}",) if device != "auto" else ())
    unknown = [name for name in names if name not in TABLES]
    if unknown or not names:
        raise BadInput(f"{f'there is no {unknown[0]}; ' if unknown else ''}name one or more of {', '.join(TABLES)}")
    from calmctl.device import check_device

    check_device(device)
    loading("the model library")
    from calmctl.device import choose_device
    from calmctl.reproduce.reproduce import as_json as table_json
    from calmctl.reproduce.reproduce import choose_rows, measure, plan_tables, require_present, write_table
    from calmctl.reproduce.work import Cost, estimate, reproducing, work_off

    where = choose_device(device)
    keys = rows.split(",") if rows else []
    with progress_bar("items") as bar, ExitStack() as held:
        watcher = StageWatcher(bar)
        if str(data) == DEMO:
            from calmctl.reproduce.stand_in import find_stand_in, make_stand_in, planned_stand_in, stand_in_table

            chosen = [choose_rows(stand_in_table(name, runs), keys) for name in names]
            if not dry_run:
                held.enter_context(reproducing(runs))
            world = find_stand_in(demo_root, runs)
            made = world is not None
            if world is None:
                world = planned_stand_in(demo_root, runs) if dry_run else make_stand_in(demo_root, runs, watcher)
        else:
            from calmctl.reproduce.datasets import folder_world
            from calmctl.reproduce.rows import published_table

            chosen = [choose_rows(published_table(name), keys) for name in names]
            world, made = folder_world(data, chosen), True
        plan = plan_tables(chosen, world, runs, seeds=seeds, overrides=overrides, skip_missing=skip_missing)
        if dry_run:
            drawn = "not measured: the demo world is not drawn yet, which the command without --dry-run does first"
            try:
                missing = "not measured: data is missing" if made else drawn
                cost = Cost(None, None, missing) if plan.missing or not made else estimate(plan.jobs)
            except CalmError as fault:  # weights that are not at hand, say: a plan is wanted all the same
                cost = Cost(None, None, f"not measured: {fault}")
            if as_json:
                print_json(plan_json(plan, cost))
            else:
                print_plan(plan, cost, made=made)
            return
        require_present(plan)
        if str(data) != DEMO:
            held.enter_context(reproducing(runs))
            # Two that look at once would both train what is missing: look again, now that nobody else does.
            plan = plan_tables(chosen, world, runs, seeds=seeds, overrides=overrides, skip_missing=skip_missing)
        print_plan(plan, estimate(plan.jobs), made=True, to_stderr=True)
        work_off(plan.jobs, runs, watcher=watcher, progress=watcher.reading, on_job=watcher.job)
        filled = measure(plan, runs, seeds=seeds, overrides=overrides, device=where, progress=watcher.reading)
    command = shlex.join(["calmctl", *sys.argv[1:]])
    files = [path for table in filled for path in write_table(table, runs, command)]
    if as_json:
        print_json([table_json(table) for table in filled])
    else:
        print_tables(filled)
        stdout().print("\n".join(["", *(f"wrote {path}" for path in files)]), soft_wrap=True, markup=False)


# What `calmctl reproduce` shows: the plan before, the work meanwhile, the tables after.


_PAPER_TIME = (
    "the paper gives 1.14 s a batch of 128, on hardware it does not name: 2.2 hours for the 7,035 batches of MSR-VTT"
)


class StageWatcher(BarWatcher):
    """Says each stage and each run on a line of its own."""

    def stage(self, text: str) -> None:
        """Print the stage, also where stderr is no terminal."""
        self._bar.console.print(f"[bold]{text}[/]", soft_wrap=True)

    def job(self, job: Job, number: int, total: int) -> None:
        """Print which run begins."""
        goes_on = " goes on" if job.state == "interrupted" else ""
        self._bar.console.print(f"[bold]run {number} of {total}: {printable(job.recipe.name)}{goes_on}[/]")

    def begin(self, run: Run, epochs: int) -> None:
        """Nothing is printed: a table's runs are many, and `job` has named this one."""
        self._epochs = epochs

    def epoch(self, epoch: int, validation: dict[str, float]) -> None:
        """Nothing: a table's runs are many, and their validation numbers are in their folders."""


def plan_json(plan: Plan, cost: Cost) -> dict[str, Any]:
    """A plan for programs."""
    return {
        "tables": [table.name for table in plan.tables],
        "data": plan.world.name,
        "found": [asdict(each) for each in plan.found.values()],
        "left_out": plan.left_out,
        "runs": [
            {"name": job.recipe.name, "state": job.state, "folder": str(job.run.folder) if job.run else None}
            for job in plan.jobs
        ],
        "seconds": cost.seconds,
        "memory_bytes": cost.memory_bytes,
        "measured_from": cost.how,
    }


def print_plan(plan: Plan, cost: Cost, *, made: bool, to_stderr: bool = False) -> None:
    """Print what tables need and take, within 80 columns."""
    out = stderr() if to_stderr else stdout()
    for table in plan.tables:
        out.print(Text(f"{table.title}: {counted(len(table.rows), 'row')}", style="bold"))
    if not made:
        out.print("The demo world is not made yet: it is drawn, and its CLIP trained, in a few minutes at first.")
    grid = Sheet(show_header=False)
    grid.add_column(no_wrap=True)
    grid.add_column(max_width=28)
    grid.add_column(overflow="fold")
    for each in plan.found.values():
        mark = Text("there", style="green") if each.present else Text("missing", style="bold red")
        if not (each.present or made):
            mark = Text("to come", style="yellow")  # the command makes it, nobody has to bring it
        if each.online:
            mark = Text("online", style="yellow")
        grid.add_row(mark, printable(each.what), printable(each.says if each.present or made else "is made first"))
    out.print(grid)
    states = Counter(job.state for job in plan.jobs)
    kinds = ", ".join(f"{states[state]} {state}" for state in ("finished", "interrupted", "new") if states[state])
    out.print(f"{counted(len(plan.jobs), 'run')} ({kinds}); rows that several tables share run once")
    _print_cost(out, cost, made=made)
    for name, reasons in plan.left_out.items():
        for what, why in reasons.items():
            out.print(f"[yellow]left out of {name}[/]: {printable(what)}: {printable(why)}", soft_wrap=True)
    out.print()


def print_tables(filled: list[Filled]) -> None:
    """Print tables within 80 columns."""
    from calmctl.reproduce import filled as cells

    out = stdout()
    for table in filled:
        out.print(Text(f"\n{table.table.title}", style="bold"))
        for block in table.blocks:
            out.print()
            out.print(Text.assemble((cells.heading(block), "bold"), f"  {cells.size(block)}"))
            out.print(_grid(block, stand_in=table.table.stand_in))
        out.print()
        for line in cells.legend(table):
            style = "bold red" if line.startswith(("!!", "leak")) else "dim"
            out.print(Text(line, style=style))


def _print_cost(out: Console, cost: Cost, *, made: bool) -> None:
    if cost.seconds is None:
        out.print(f"time and memory {printable(cost.how)}{f'; {_PAPER_TIME}' if made else ''}")
        return
    from calmctl.training.train import spoken

    memory = "" if cost.memory_bytes is None else f", memory up to {cost.memory_bytes / 2**30:z.1f} GiB"
    out.print(f"time for the rest: about {spoken(cost.seconds)}{memory} (from {printable(cost.how)})")


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
