"""`calmctl recipes`: list, show and copy the shipped recipes."""

from __future__ import annotations

import os
import re
import shlex
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from calmctl.cli.console import Group, Sheet, note, print_json, print_next, print_text, printable, stdout
from calmctl.errors import RecipeError
from calmctl.files import read_regular

app = typer.Typer(
    cls=Group,
    no_args_is_help=True,
    help="List, show and copy the shipped recipes.",
    epilog="Examples:\n\ncalmctl recipes list\n\ncalmctl recipes keys optim\n\ncalmctl recipes cp msrvtt mine.yaml",
)
Name = Annotated[str, typer.Argument(help="A shipped recipe's name, or a path.", metavar="RECIPE")]


@app.command("list", epilog="Examples:\n\ncalmctl recipes list")
def list_() -> None:
    """List the shipped recipes with what each does."""
    from calmctl.recipe import list_recipes

    table = Sheet()
    table.add_column("recipe", no_wrap=True)
    table.add_column("what it does")
    for path in list_recipes():
        first = path.read_text(encoding="utf-8").splitlines()[0]
        table.add_row(path.stem, first.removeprefix("#").strip())
    stdout().print(table)


@app.command(epilog="Examples:\n\ncalmctl recipes show didemo\n\ncalmctl recipes show didemo --resolved")
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


@app.command(epilog="Examples:\n\ncalmctl recipes keys\n\ncalmctl recipes keys optim\n\ncalmctl recipes keys head.kind")
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


@app.command(epilog="Examples:\n\ncalmctl recipes cp msrvtt mine.yaml")
def cp(
    recipe: Name, target: Annotated[Path, typer.Argument(help="The new file; it must not exist.", metavar="TARGET")]
) -> None:
    """Copy a recipe to a file of your own."""
    from calmctl.files import write_bytes
    from calmctl.recipe import resolve_recipe

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
