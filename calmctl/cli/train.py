"""`calmctl train`: a recipe in, a run folder and a table out."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from calmctl.cli.console import (
    BarWatcher,
    Sheet,
    loading,
    note,
    print_json,
    print_left_out,
    print_next,
    printable,
    progress_bar,
    stdout,
)
from calmctl.errors import BadInput

if TYPE_CHECKING:
    from calmctl.recipe import Recipe
    from calmctl.training.train import Trained

EXAMPLES = """Examples:

calmctl train recipes/didemo.yaml

calmctl train recipes/msrvtt.yaml data.root=/data/msrvtt head.kind=xpool optim.epochs=2

calmctl train recipes/msrvtt.yaml --dry-run

calmctl train --resume runs/msrvtt-001

torchrun --nproc-per-node 4 -m calmctl train recipes/msrvtt.yaml"""


def train(
    recipe: Annotated[str | None, typer.Argument(help="A recipe file, or a shipped recipe's name.")] = None,
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Keys to change, such as optim.epochs=2.")
    ] = None,
    resume: Annotated[Path | None, typer.Option(help="Go on with this unfinished run.", metavar="RUN")] = None,
    runs: Annotated[Path, typer.Option(help="Folder for new runs.")] = Path("runs"),
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Resolve everything, decode one batch, print the plan, train nothing.")
    ] = False,
    tensorboard: Annotated[bool, typer.Option("--tensorboard", help="Also write TensorBoard files.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Train a recipe end to end from videos, or on extracted features, and test the result."""
    from calmctl.anchors.shipped import resolve_vocabulary
    from calmctl.data.registry import protocol_for, resolve
    from calmctl.device import check_device
    from calmctl.recipe import load_recipe, resolve_recipe
    from calmctl.runs.run import find_run

    if (recipe is None) == (resume is None):
        raise BadInput("give a recipe or --resume RUN, one of the two; for example: calmctl train recipes/demo.yaml")
    former = find_run(str(resume), runs) if resume else None
    if former is not None:
        resolved = former.recipe_to_resume()
    else:
        resolved = load_recipe(resolve_recipe(str(recipe)), overrides or [])
        from calmctl.model.spec import check_backbone

        check_backbone(resolved.backbone.model, resolved.backbone.weights)
    check_device(resolved.device)
    resolve_vocabulary(resolved.anchors.vocabulary)
    resolve(resolved.data.dataset, protocol_for(resolved.task, resolved.data.dataset, resolved.data.protocol))
    loading("the model library")
    if dry_run:
        start = f"--resume {resume}" if resume else shlex.join([str(recipe), *(overrides or [])])
        _print_plan(resolved, f"calmctl train {start}", as_json)
        return
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:  # or every process repeats torch's advice to programmers
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    # After the recipe's own mistakes: torch takes seconds.
    from calmctl.training.distributed import joined
    from calmctl.training.train import train as run_train

    with joined(resolved.device) as world:
        if world.rank > 0:  # the first process speaks for all
            run_train(resolved, runs, resume=former, world=world)
            return
        with progress_bar("items") as bar:
            watcher = BarWatcher(bar)
            trained = run_train(
                resolved,
                runs,
                resume=former,
                tensorboard=tensorboard,
                watcher=watcher,
                progress=watcher.reading,
                world=world,
            )
            trained.run.drop_state()
    _print_trained(trained, as_json)


def _print_plan(recipe: Recipe, command: str, as_json: bool) -> None:
    from calmctl.training.train import plan_training

    plan = plan_training(recipe)
    if as_json:
        print_json(plan)
        return
    table = Sheet(show_header=False)
    table.add_column(no_wrap=True)
    table.add_column()
    for key, value in plan["summary"].items():
        table.add_row(key, printable(value))
    for sentence in plan["notes"]:
        table.add_row("note", printable(sentence))
    stdout().print(table)
    for caveat in plan["caveats"]:
        stdout().print(f"[bold red]!! {printable(caveat)}[/]", soft_wrap=True)
    print_left_out(plan["left_out"])
    note("nothing was trained")
    print_next(command)


def _print_trained(trained: Trained, as_json: bool) -> None:
    from calmctl.captions.evaluate import CaptionEvaluation
    from calmctl.cli.caption import print_evaluations
    from calmctl.evaluation.result import RetrievalResult
    from calmctl.evaluation.tables import retrieval_table

    if as_json:
        print_json(
            {
                "run": str(trained.run.folder),
                "validation": trained.validation,
                "test": [result.to_json() for result in trained.results],
                "left_out": trained.left_out,
            }
        )
        return
    if retrieval := [result for result in trained.results if isinstance(result, RetrievalResult)]:
        stdout().print(retrieval_table(retrieval))
    if captioned := [result for result in trained.results if isinstance(result, CaptionEvaluation)]:
        print_evaluations(captioned)
    print_left_out(trained.left_out)
    folder = trained.run.folder
    if not trained.results:
        note("[yellow]the data has no test split: there are no test numbers[/], the best epoch is that on validation")
    stdout().print(
        f"run      {folder}\nweights  {trained.run.weights('best')}\n"
        f"slim     {trained.run.weights('slim')} (all that inference needs)",
        markup=False,
        soft_wrap=True,
    )
    print_next(f"calmctl eval {shlex.quote(str(folder))}")
