"""`calmctl recipes`: list, show and copy the shipped recipes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from calmctl.cli.console import note, print_json, print_text, printable, stdout
from calmctl.errors import RecipeError
from calmctl.files import read_regular

app = typer.Typer(
    no_args_is_help=True,
    help="List, show and copy the shipped recipes.",
    epilog="Examples:  calmctl recipes ls    calmctl recipes show msrvtt    calmctl recipes cp msrvtt mine.yaml",
)
Name = Annotated[str, typer.Argument(help="A shipped recipe's name, or a path.", metavar="RECIPE")]


@app.command(epilog="Example:  calmctl recipes ls")
def ls() -> None:
    """List the shipped recipes with what each does."""
    from rich.table import Table

    from calmctl.recipe import list_recipes

    table = Table("recipe", "what it does", box=None, pad_edge=False)
    for path in list_recipes():
        first = path.read_text(encoding="utf-8").splitlines()[0]
        table.add_row(path.stem, first.removeprefix("#").strip())
    stdout().print(table)


@app.command(epilog="Examples:  calmctl recipes show didemo    calmctl recipes show didemo --resolved")
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


@app.command(epilog="Example:  calmctl recipes keys")
def keys() -> None:
    """Print every key of a recipe with its default and what it does."""
    from rich.markup import escape
    from rich.table import Table

    from calmctl.recipe.describe import describe_keys

    table = Table("key", "default", "what it does", box=None, pad_edge=False)
    for key in describe_keys():
        table.add_row(key.name, key.default, escape(key.description))
    stdout().print(table)


@app.command(epilog="Example:  calmctl recipes cp msrvtt mine.yaml")
def cp(
    recipe: Name, target: Annotated[Path, typer.Argument(help="The new file; it must not exist.", metavar="TARGET")]
) -> None:
    """Copy a recipe to a file of your own."""
    from calmctl.files import write_bytes
    from calmctl.recipe import resolve_recipe

    if os.path.lexists(target):
        raise RecipeError(f"{target} exists already; choose another name")
    write_bytes(target, _read(resolve_recipe(recipe)))
    note(printable(f"wrote {target}; train it with: calmctl train {target}"))


def _read(path: Path) -> bytes:
    from calmctl.yaml_strict import MAX_BYTES

    try:
        return read_regular(path, MAX_BYTES)
    except OSError as fault:
        raise RecipeError(f"recipe: cannot read {path}: {fault.strerror or fault}") from None
