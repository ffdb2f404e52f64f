"""The recipes that come with the package."""

from __future__ import annotations

import difflib
import os
from pathlib import Path

from calmctl.errors import RecipeError
from calmctl.shipped import shipped_folder


def list_recipes() -> list[Path]:
    """All shipped recipes, sorted by name."""
    return sorted(shipped_folder("recipes").glob("*.yaml"))


def resolve_recipe(name_or_path: str) -> Path:
    """The recipe file meant by a path (`recipes/didemo.yaml`) or by a shipped recipe's name (`didemo`).

    A path that does not exist here falls back to the shipped recipe of that file name, so the README's
    commands work in any folder. Raises `RecipeError` naming the nearest shipped recipe.
    """
    path = Path(name_or_path)
    if os.path.isfile(path):  # unlike Path.is_file, also an answer for names that no system takes
        return path
    known = {recipe.stem: recipe for recipe in list_recipes()}
    plain = path.parent in (Path("."), Path("recipes"))
    if plain and path.suffix in ("", ".yaml") and path.name.removesuffix(".yaml") in known:
        return known[path.name.removesuffix(".yaml")]
    near = difflib.get_close_matches(path.name.removesuffix(".yaml"), known, n=1, cutoff=0.5)
    hint = f"did you mean recipes/{near[0]}.yaml?" if near else "calmctl recipes list lists the shipped ones"
    raise RecipeError(f"recipe: {name_or_path} does not exist; {hint}")
