"""What `calmctl reproduce` shows: the plan before, the work meanwhile, the tables after."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.text import Text

from calmctl.cli.console import BarWatcher, Sheet, printable, stderr, stdout
from calmctl.counting import counted

if TYPE_CHECKING:
    from calmctl.reproducing.estimate import Cost
    from calmctl.reproducing.reproduce import Plan
    from calmctl.reproducing.table import Block, Filled
    from calmctl.reproducing.work import Job
    from calmctl.runs.folder import Run

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
    from calmctl.reproducing import cells

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
    from calmctl.training.plan import spoken

    memory = "" if cost.memory_bytes is None else f", memory up to {cost.memory_bytes / 2**30:z.1f} GiB"
    out.print(f"time for the rest: about {spoken(cost.seconds)}{memory} (from {printable(cost.how)})")


def _grid(block: Block, *, stand_in: bool) -> Sheet:
    from calmctl.reproducing import cells

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
