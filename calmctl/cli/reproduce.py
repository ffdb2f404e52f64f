"""`calmctl reproduce`: a table of the paper, from its runs to its numbers."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from calmctl.cli.console import loading, print_json, progress_bar, stdout
from calmctl.errors import BadInput, CalmError

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
    seeds: Annotated[int, typer.Option(min=1, help="Runs of each row.")] = 3,
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
    from calmctl.cli.reproduce_view import StageWatcher, plan_json, print_plan, print_tables
    from calmctl.device import choose_device
    from calmctl.reproducing.estimate import Cost, estimate
    from calmctl.reproducing.reproduce import as_json as table_json
    from calmctl.reproducing.reproduce import choose_rows, measure, plan_tables, require_present, write_table
    from calmctl.reproducing.work import work_off

    where = choose_device(device)
    keys = rows.split(",") if rows else []
    with progress_bar("items") as bar:
        watcher = StageWatcher(bar)
        if str(data) == DEMO:
            from calmctl.reproducing.stand_in import find_stand_in, make_stand_in, planned_stand_in, stand_in_table

            chosen = [choose_rows(stand_in_table(name, runs), keys) for name in names]
            world = find_stand_in(demo_root, runs)
            made = world is not None
            if world is None:
                world = planned_stand_in(demo_root, runs) if dry_run else make_stand_in(demo_root, runs, watcher)
        else:
            from calmctl.reproducing.published import published_table
            from calmctl.reproducing.world import folder_world

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
