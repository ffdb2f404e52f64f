"""`calmctl train`: a recipe in, a run folder and a table out; and `calmctl recipes`: what there is to train."""

from __future__ import annotations

import os
import re
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from calmctl.cli import options
from calmctl.cli.console import (
    BarWatcher,
    Sheet,
    facts_sheet,
    loading,
    note,
    print_json,
    print_left_out,
    print_next,
    print_plain,
    print_text,
    printable,
    progress_bar,
    stdout,
)
from calmctl.cli.results import print_caveats, print_evaluations
from calmctl.device import check_device
from calmctl.errors import BadInput, RecipeError
from calmctl.files import read_regular, write_bytes

if TYPE_CHECKING:
    from calmctl.recipe import Recipe
    from calmctl.training.train import Trained

EXAMPLES = options.examples(
    "calmctl train recipes/didemo.yaml",
    "calmctl train recipes/msrvtt.yaml data.root=/data optim.epochs=2",
    "calmctl train recipes/msrvtt.yaml --dry-run",
    "calmctl train --resume runs/msrvtt-001",
    "calmctl train recipes/didemo.yaml --init msrvtt-001",
    "torchrun --nproc-per-node 4 -m calmctl train recipes/msrvtt.yaml",
)


def train(
    recipe: Annotated[str | None, options.RECIPE] = None,
    overrides: options.Overrides = None,
    resume: Annotated[
        str | None,
        typer.Option(help="Go on with this unfinished run.", metavar="RUN", autocompletion=options.complete_run),
    ] = None,
    init: Annotated[
        str | None,
        typer.Option(help="Start from this run's head and towers.", metavar="RUN", autocompletion=options.complete_run),
    ] = None,
    dry_run: options.DryRun = False,
    track: Annotated[
        list[str] | None,
        typer.Option(
            help="Also write to tensorboard, wandb, mlflow or trackio, on this machine; repeatable.", metavar="TRACKER"
        ),
    ] = None,
    as_json: options.Json = False,
    runs: options.Runs = Path("runs"),
) -> None:
    """Train a recipe and test the result.

    End to end from videos, or on extracted features. What can be changed: calmctl recipes keys.

    --dry-run resolves everything, decodes one batch, and measures time and memory.
    """
    from calmctl.anchors.shipped import resolve_vocabulary
    from calmctl.data.registry import protocol_for, resolve
    from calmctl.recipe import load_recipe, resolve_recipe
    from calmctl.runs.run import HUB, RUNS, find_run
    from calmctl.training.trackers import require_trackers

    if (recipe is None) == (resume is None):
        raise BadInput("give a recipe or --resume RUN, one of the two; for example: calmctl train recipes/demo.yaml")
    if init is not None and resume is not None:
        raise BadInput("--resume goes on with a run as it is, and --init begins a new one from it; give one of the two")
    if init is not None:
        begin = find_run(init, runs)
        overrides = [*(overrides or []), f"init_from={begin.name if init.startswith(HUB) else begin.folder}"]
    former = find_run(resume, runs) if resume else None
    if former is not None:
        # The run's own recipe and not the file that it came from, which may have changed since.
        resolved = former.recipe_to_resume()
    else:
        resolved = load_recipe(resolve_recipe(str(recipe)), overrides or [])
        from calmctl.model.spec import check_backbone

        if begun := resolved.head.from_run or resolved.init_from:  # which has its towers
            find_run(begun, RUNS)
        else:
            check_backbone(resolved.backbone.model, resolved.backbone.weights)
    require_trackers(track or ())
    # Device, anchors and data are looked up now: a name that does not exist needs no torch to be refused.
    check_device(resolved.device)
    resolve_vocabulary(resolved.anchors.vocabulary)
    data = resolved.data
    resolve(data.dataset, protocol_for(resolved.task, data.dataset, data.protocol))
    if data.features is None:
        options.require_own_place(resolved)
    loading("the model library")
    if dry_run:
        start = f"--resume {resume}" if resume else shlex.join([str(recipe), *(overrides or [])])
        _print_plan(resolved, f"calmctl train {start}", as_json)
        return
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:  # or every process repeats torch's advice to programmers
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    # After the recipe's own mistakes: torch takes seconds.
    from calmctl.parallel import joined
    from calmctl.training.train import train as run_train

    with joined(resolved.device) as world:
        if world.rank > 0:  # the first process speaks for all
            run_train(resolved, runs, resume=former, track=track or (), world=world)
            return
        with progress_bar("items") as bar:
            watcher = BarWatcher(bar)
            trained = run_train(resolved, runs, resume=former, track=track or (), watcher=watcher, world=world)
            # It served to go on, and the run is finished.
            trained.run.drop_state()
    _print_trained(trained, as_json)


def _print_plan(recipe: Recipe, command: str, as_json: bool) -> None:
    from calmctl.training.train import plan_training

    plan = plan_training(recipe)
    if as_json:
        print_json(plan)
        return
    table = facts_sheet()
    for key, value in plan["summary"].items():
        table.add_row(key, printable(value))
    for sentence in plan["notes"]:
        table.add_row("note", printable(sentence))
    stdout().print(table)
    # What would have to be said of the numbers is said before the hours that they take.
    print_caveats(plan["caveats"])
    print_left_out(plan["left_out"])
    note("nothing was trained")
    print_next(command)


def _print_trained(trained: Trained, as_json: bool) -> None:
    from calmctl.captions.evaluate import CaptionEvaluation
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
    print_plain(
        f"run      {folder}\nweights  {trained.run.weights('best')}\n"
        f"slim     {trained.run.weights('slim')} (all that inference needs)"
    )
    print_next(f"calmctl eval {shlex.quote(str(folder))}")


# `calmctl recipes`: what there is to train, key by key.


recipes = options.Commands(
    "List, show and copy the shipped recipes.",
    "calmctl recipes list",
    "calmctl recipes keys optim",
    "calmctl recipes cp msrvtt mine.yaml",
)
Name = Annotated[str, options.RECIPE]


@recipes.verb("calmctl recipes list", name="list")
def list_() -> None:
    """List the shipped recipes with what each does."""
    from calmctl.recipe import list_recipes

    table = Sheet()
    table.add_column("recipe", no_wrap=True)
    table.add_column("what it does")
    for path in list_recipes():
        # A recipe's first line says what it does.
        first = path.read_text(encoding="utf-8").splitlines()[0]
        table.add_row(path.stem, first.removeprefix("#").strip())
    stdout().print(table)


@recipes.verb("calmctl recipes show didemo", "calmctl recipes show didemo --resolved")
def show(
    recipe: Name,
    resolved: Annotated[bool, typer.Option("--resolved", help="Every key with its value, as JSON.")] = False,
) -> None:
    """Print a recipe; with --resolved, every key with the value it will have."""
    from calmctl.recipe import load_recipe, resolve_recipe

    path = resolve_recipe(recipe)
    if resolved:
        print_json(load_recipe(path).model_dump(mode="json"))
    else:
        print_text(_read(path).decode("utf-8", "backslashreplace"))


@recipes.verb("calmctl recipes keys", "calmctl recipes keys optim", "calmctl recipes keys head.kind")
def keys(
    only: Annotated[str | None, typer.Argument(metavar="SECTION|KEY", help="These alone.", show_default=False)] = None,
) -> None:
    """Print the keys of a recipe: default, values that are allowed, and what each does."""
    from calmctl.recipe.load import describe_keys

    table = Sheet()
    table.add_column("key", no_wrap=True)
    table.add_column("default")
    table.add_column("what it does, and what it may be")
    described = describe_keys(only)
    for key in described:
        table.add_row(key.name, key.default, f"{escape(key.description)} [dim]({escape(key.values)})[/]")
    out = stdout()
    out.print(table)
    if any(re.search(r"\(\d+\)", key.description) for key in described):
        out.print("[dim](18) and the like: rows of docs/science.md, Readings of the paper[/]")


@recipes.verb("calmctl recipes cp msrvtt mine.yaml")
def cp(
    recipe: Name, target: Annotated[Path, typer.Argument(help="The new file; it must not exist.", metavar="TARGET")]
) -> None:
    """Copy a recipe to a file of your own."""
    from calmctl.recipe import resolve_recipe

    # A dangling link counts as there.
    if os.path.lexists(target):
        raise RecipeError(f"{target} exists already; choose another name")
    write_bytes(target, _read(resolve_recipe(recipe)))
    note(f"wrote {printable(str(target))}")
    print_next(f"calmctl train {shlex.quote(str(target))} --dry-run")


def _read(path: Path) -> bytes:
    from calmctl.yaml_strict import MAX_BYTES

    try:
        return read_regular(path, MAX_BYTES)
    except OSError as fault:
        raise RecipeError(f"recipe: cannot read {path}: {fault.strerror or fault}") from None
