"""`calmctl reproduce`: a table of the paper, from runs to numbers; `calmctl demo`: all of calmctl on a drawn world."""

from __future__ import annotations

import math
import shlex
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from calmctl.cli import options
from calmctl.cli.console import (
    BarWatcher,
    Sheet,
    loading,
    print_json,
    print_next,
    print_plain,
    printable,
    progress_bar,
    stderr,
    stdout,
)
from calmctl.cli.results import EXAMPLES_SHOWN, examples_table
from calmctl.device import choose_device
from calmctl.errors import BadInput, CalmError, RunFailed
from calmctl.runtime import command_line
from calmctl.words import METRIC_NAMES, counted

if TYPE_CHECKING:
    from calmctl.reproduce.demo import Demo
    from calmctl.reproduce.effect_result import Effect
    from calmctl.reproduce.filled import Block, Filled
    from calmctl.reproduce.reproduce import Plan
    from calmctl.reproduce.work import Cost


# Typed out: the rows' module imports the recipes' schema, which no help needs.
TABLES = ("table1", "table2", "table3", "table4", "table5", "table6", "table7", "ablations")
EFFECT = "effect"
DEMO = "demo"

DEMO_DATA = Path("data/demo")
STUDY_DATA = Path("data/demo-study")

EXAMPLES = options.examples(
    "calmctl reproduce table1 --dry-run",
    "calmctl reproduce table1 table6 table7 --data demo     # no download, no GPU",
    "calmctl reproduce table7 --data /data --seeds 5 optim.precision=bf16",
    "calmctl reproduce table1 --data /data --skip-missing --rows t-mass,t-mass+calm",
    "calmctl reproduce ablations --data demo --json",
    "calmctl reproduce effect --data demo --small  # does the loss help? an hour",
)
DEMO_EXAMPLES = options.examples("calmctl demo", "calmctl demo --seed 1 --json")


def reproduce(
    tables: Annotated[
        list[str],
        typer.Argument(
            metavar="TABLE... [KEY=VALUE]...", help=f"{', '.join(TABLES)}, {EFFECT}; recipe keys for all rows."
        ),
    ],
    data: Annotated[
        Path, typer.Option(metavar="FOLDER|demo", help="Folder of the data sets' folders, or demo.")
    ] = Path("data"),
    seeds: Annotated[int | None, options.SEEDS(help="Runs of each row; 3, and 8 of effect.")] = None,
    rows: Annotated[
        str | None, typer.Option(metavar="KEY,KEY", help="These rows alone, and those they are compared with.")
    ] = None,
    skip_missing: Annotated[
        bool, typer.Option("--skip-missing", help="Leave out rows and test sets whose data is missing.")
    ] = False,
    dry_run: options.DryRun = False,
    as_json: options.Json = False,
    small: Annotated[
        bool, typer.Option("--small", help="effect: fewer heads, losses and dials, for two cores.")
    ] = False,
    jobs: Annotated[
        int | None, options.WORKERS(help="Runs at once; one, and of effect one per core (ten on a GPU).")
    ] = None,
    minutes: Annotated[
        float | None, options.SECONDS(help="effect: begin no run after so many minutes.", metavar="MINUTES")
    ] = None,
    demo_root: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help=f"Of --data demo: folder of its clips; {DEMO_DATA}, and {STUDY_DATA} of effect.",
            rich_help_panel=options.DATA,
            show_default=False,
        ),
    ] = None,
    device: options.Device = "auto",
    runs: options.Runs = Path("runs/reproduce"),
) -> None:
    """Run a table of the paper, beside the paper's numbers.

    Our numbers are means over seeds with their spread; differences that are more than chance are marked.

    Finished runs are used again, interrupted ones go on. Tables are also written as JSON and Markdown.

    effect is the study of whether CALM's loss helps, on the drawn world (docs/results.md).
    """
    names = [word for word in tables if "=" not in word]
    # A device is a recipe key like any other, and trainings get it as one.
    overrides = tuple(word for word in tables if "=" in word) + ((f"device={device}",) if device != "auto" else ())
    unknown = [name for name in names if name not in (*TABLES, EFFECT)]
    if unknown or not names:
        known = ", ".join((*TABLES, EFFECT))
        raise BadInput(f"{f'there is no {unknown[0]}; ' if unknown else ''}name one or more of {known}")
    if EFFECT in names:
        if len(names) > 1 or str(data) != DEMO or rows or skip_missing:
            raise BadInput("effect is a study of its own, on the drawn world: calmctl reproduce effect --data demo")
        study(small, seeds, jobs, minutes, demo_root or STUDY_DATA, runs, overrides, device, dry_run, as_json)
        return
    if small or minutes is not None:
        raise BadInput("--small and --minutes are for: calmctl reproduce effect --data demo")
    seeds, processes, demo_root = seeds or 3, jobs or 1, demo_root or DEMO_DATA
    loading("the model library")
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
                cost = Cost(None, None, missing) if plan.missing or not world_exists else estimate(plan.jobs, processes)
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
        print_plan(plan, estimate(plan.jobs, processes), world_exists=True, to_stderr=True)
        work_off(plan.jobs, runs, processes=processes, watcher=watcher)
        told = watcher.reading
        filled = measure(plan, runs, seeds=seeds, overrides=overrides, device=where, processes=processes, progress=told)
        # Stands in the Markdown, so that whoever reads the table can make it again.
        command = shlex.join(["calmctl", *command_line()])
        files = [path for table in filled for path in write_table(table, runs, command)]
    if as_json:
        print_json([table_to_json(table) for table in filled])
    else:
        print_tables(filled)
        print_plain("\n".join(["", *(f"wrote {path}" for path in files)]))


# The study of CALM's loss.


def study(
    small: bool,
    seeds: int | None,
    processes: int | None,
    minutes: float | None,
    root: Path,
    runs: Path,
    overrides: tuple[str, ...],
    device: str,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Run `reproduce.effect`, as far as it is not done, and print what it result."""
    started = time.monotonic()
    loading("the model library")
    from calmctl.data.demo_world import STUDY
    from calmctl.files import read_json
    from calmctl.reproduce import effect, effect_result
    from calmctl.reproduce.work import reproducing
    from calmctl.video.pool import available_cores

    where = choose_device(device)
    grid = effect.SMALL if small else effect.Grid()
    grid = replace(grid, seeds=seeds or grid.seeds)
    at_once = processes or (10 if where.type == "cuda" else available_cores())
    rates, whole = effect.rate_jobs(grid), effect.study_jobs(grid, effect.RATES[0], dict.fromkeys(grid.losses, 1.0))
    count = len(rates) + len(effect.weight_jobs(grid, effect.RATES[0])) + len(whole)
    if dry_run:
        taken = effect.seconds_a_run(runs)
        time_ = "not measured: no run is finished" if taken is None else f"about {taken * count / at_once / 60:.0f} min"
        plan = {"runs": count, "at_once": at_once, "seconds_a_run": taken}
        shown = f"{counted(count, 'fine-tuning')}, {at_once} at once on {where}: {time_}"
        print_json(plan) if as_json else stdout().print(shown)
        return
    until = math.inf if minutes is None else started + 60 * minutes
    with progress_bar("items") as bar, reproducing(runs):
        watcher = StageWatcher(bar)
        recipe = rates[0].recipe((*overrides, f"data.root={root}"))
        world = effect.find_world(runs, root, STUDY, recipe, watcher)
        run = partial(
            effect.run_jobs, folder=runs, world=world, overrides=overrides, device=where, processes=at_once, until=until
        )
        bare = effect.zero_shot(world, overrides, where)
        watcher.stage("the learning rate, and the weights of the losses, on validation")
        done = run(rates, watcher=watcher)
        if len(done) == len(rates):
            rate = effect.choose_rate(done)
            done |= run(effect.weight_jobs(grid, rate), watcher=watcher)
        if len(done) < count - len(whole):
            raise RunFailed("--minutes is over before the choice is made; give the same command again: it goes on")
        weights = effect.choose_weights(grid, done)
        watcher.stage(f"the study: {counted(grid.seeds, 'seed')}")
        done |= run(effect.study_jobs(grid, rate, weights), watcher=watcher)
        result = effect_result.evaluate_study(grid, rate, weights, done, bare, overrides)
        files = effect_result.write_study(result, runs, shlex.join(["calmctl", *command_line()]))
    if as_json:
        print_json(read_json(files[0], what="a study"))
        return
    out = stdout()
    for title, effects in (("By dial, averaged over heads", result.by_dial), ("Averaged over both", result.overall)):
        for test in effect.TESTS:
            out.print(Text(f"\n{title}, {effect_result.PLACES[test]}", style="bold"))
            out.print(_effects_grid([each for each in effects if each.test == test]))
    out.print()
    for line in effect_result.legend(result):
        out.print(Text(line, style="dim"))
    print_plain("\n".join(["", *(f"wrote {path}" for path in files)]))


def _effects_grid(effects: Sequence[Effect]) -> Sheet:
    grid = Sheet(padding=(0, 1, 0, 0), header_style="bold")
    metrics = list(dict.fromkeys(each.metric for each in effects))
    for name in ("dial", "loss", *(METRIC_NAMES.get(metric, "KL") for metric in metrics)):
        grid.add_column(name, justify="left" if name == "loss" else "right", no_wrap=True)
    for dial in dict.fromkeys(each.dial for each in effects):
        here = {(each.loss, each.metric): each for each in effects if each.dial == dial}
        losses = list(dict.fromkeys(loss for loss, _ in here))
        grid.add_row(dial, "none", *(f"{here[losses[0], metric].base:.2f}" for metric in metrics))
        for loss in losses:
            some = [here[loss, metric] for metric in metrics]
            grid.add_row("", loss, *(f"{e.difference:+z.2f} ± {e.half:.2f}{e.star or ' '}" for e in some))
    return grid


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
        out.print("The demo world is not made yet: it is drawn and its features are extracted first, in minutes.")
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
        says = each.says if each.present or world_exists else "is made first"
        grid.add_row(mark, printable(each.what), printable(says))
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
    names = [METRIC_NAMES[metric] for metric in metrics]
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
    # The recipes' own.
    seed: options.Seed = 24,
    as_json: options.Json = False,
    root: options.Root = None,
    runs: options.Runs = Path("runs"),
) -> None:
    """Draw a world of captioned clips, fine-tune a small CLIP on it.

    It trains without CALM's loss and with it, and tests in domain and out of it. Needs no download and no GPU.

    Clips are drawn into data/demo, or into --root. Interrupted and given again, it goes on where it was.
    """
    folder = root or DEMO_DATA
    loading("the model library")
    from calmctl.files import read_json
    from calmctl.reproduce.demo import run_demo
    from calmctl.reproduce.work import reproducing

    with progress_bar("items") as bar, reproducing(runs):
        done = run_demo(folder, runs, seed=seed, overrides=overrides or [], watcher=BarWatcher(bar))
    if as_json:
        print_json(read_json(done.report, what="demo report"))
    else:
        print_demo(done)


def print_demo(done: Demo) -> None:
    """Print what the demo found, and what can be done next, within 80 columns."""
    table = Sheet(title="text to video: R@1 with its 95 % interval, and KL of true pairs in nats", title_justify="left")
    table.add_column("")
    for result in done.systems[0].results:
        dataset = result.labels.dataset
        table.add_column("in domain" if dataset == "demo" else "out of domain", justify="right")
        for name in ("R@5", "MnR", "KL"):
            table.add_column(name, justify="right")
    for system in done.systems:
        cells = []
        for result, divergence in zip(system.results, system.divergences, strict=True):
            numbers, interval = result.metrics["text_to_video"], result.intervals["text_to_video"]
            spread = f" ({interval.r1.low:z.0f}-{interval.r1.high:z.0f})" if interval else ""
            cells += [f"{numbers.r1:z.1f}{spread}", f"{numbers.r5:z.1f}", f"{numbers.mnr:z.1f}", f"{divergence:z.2f}"]
        table.add_row(system.name, *cells)
    out = stdout()
    out.print()
    out.print(table)
    first = done.systems[0].results[0].metrics["text_to_video"]
    out.print(
        f"\n{counted(first.n_queries, 'test caption')}, {counted(first.n_candidates, 'clip')} each; chance is "
        f"{100 / first.n_candidates:z.1f} %. Leak-free scorer, best epoch on validation. KL: of a true caption's "
        "distribution over the anchors from its clip's, which is what CALM's loss asks for.",
    )
    out.print(f"{done.verdict}\n")
    scores = done.captions.result.scores
    out.print(examples_table(done.captions, EXAMPLES_SHOWN))
    out.print(
        f"\nCIDEr {100 * scores.cider:z.1f}, BLEU-4 {100 * scores.bleu4:z.1f} over {scores.n} test clips "
        f"(calmctl eval {done.captioner.folder} has all).\n"
    )
    for system in done.systems:
        out.print(f"{system.name:17} {system.run.folder if system.run else 'demo-clip drawn-2, ships'}", soft_wrap=True)
    out.print(f"{'captioner':17} {done.captioner.folder}", soft_wrap=True)
    out.print(f"{'all numbers':17} {done.report}", soft_wrap=True)
    out.print(f"{'a page to look at':17} {done.page}\n", soft_wrap=True)
    print_next(*done.commands)
