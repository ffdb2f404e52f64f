"""`calmctl demo`: the whole tool on a drawn world."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from calmctl.cli import console as options
from calmctl.cli.caption import EXAMPLES_SHOWN, examples_table
from calmctl.cli.console import BarWatcher, Sheet, loading, print_json, print_next, progress_bar, stdout

if TYPE_CHECKING:
    from calmctl.demo import Demo

DATA = Path("data/demo")
EXAMPLES = """Examples:

calmctl demo

calmctl demo --seed 1 --json"""


def demo(
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Recipe keys to change in all trainings.")
    ] = None,
    data: Annotated[Path, typer.Option(help="Folder for the drawn clips.")] = DATA,
    runs: Annotated[Path, typer.Option(help="Folder for the runs.")] = Path("runs"),
    seed: Annotated[int, options.SEED(help="Seed of the trainings.")] = 24,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Draw a captioned video world, train on it with and without CALM, and evaluate in and out of domain.

    Needs no download and no GPU. Interrupted and given again, it goes on where it was.
    """
    loading("the model library")
    from calmctl.demo import run_demo
    from calmctl.files import read_json
    from calmctl.reproduce.work import reproducing

    with progress_bar("items") as bar, reproducing(runs):
        done = run_demo(data, runs, seed=seed, overrides=overrides or [], watcher=_StageWatcher(bar))
    if as_json:
        print_json(read_json(done.report, what="demo report"))
    else:
        _print(done, data)


class _StageWatcher(BarWatcher):
    """Says each stage on a line of its own."""

    def stage(self, text: str) -> None:
        """Print the stage, also where stderr is no terminal."""
        self._bar.console.print(f"[bold]{text}[/]", soft_wrap=True)


def _print(done: Demo, data: Path) -> None:
    run, without = (shlex.quote(str(done.systems[number].run.folder)) for number in (2, 1))
    options = "" if data == DATA else f" --root {shlex.quote(str(data))}"

    table = Sheet(title="text to video, R@1 with its 95 % interval", title_justify="left")
    table.add_column("")
    for result in done.systems[0].results:
        table.add_column(f"{'→ ' if result.dataset != 'demo' else ''}{result.dataset}", justify="right")
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
        f"\n{first.n_queries} test captions, {first.n_candidates} clips each; chance is "
        f"{100 / first.n_candidates:z.1f} %. Leak-free scorer, best epoch on validation.",
    )
    for test, difference in zip(("in domain", "out of domain"), done.differences, strict=True):
        out.print(
            f"CALM's loss, {test}: R@1 {difference.difference:+z.1f} points, 95 % interval over clips "
            f"{difference.interval.low:+z.1f} to {difference.interval.high:+z.1f}."
        )
    out.print(
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
        f"calmctl eval {run} --cross demo-shifted{options}",
        f"calmctl eval {run} --against {without}{options}",
        f"calmctl explain {shlex.quote(str(done.clip.path))} {shlex.quote(done.sentence)} --run {run}",
        f'calmctl search "a red circle" --in {shlex.quote(str(done.clip.path.parent))} --run {run}',
        "calmctl train recipes/demo.yaml --dry-run" + (f" data.root={shlex.quote(str(data))}" if options else ""),
    )
