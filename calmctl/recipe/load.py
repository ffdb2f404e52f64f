"""Recipes: the shipped ones by name, YAML and overrides read strictly, every key in a table."""

from __future__ import annotations

import difflib
import json
import os
import re
import types
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Lt
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from calmctl.errors import RecipeError
from calmctl.files import shipped_folder
from calmctl.recipe.schema import Recipe
from calmctl.yaml_strict import load_yaml, parse_yaml

# Reading a recipe: YAML, overrides, and every mistake told in one sentence each.


MOST_BYTES = 256 * 1024
"""A larger file is no recipe (our choice; one with every key has 5 KiB)."""
MOST_FAULTS = 20
"""So many are told at once (our choice)."""


_PLAIN_MESSAGES = {
    "model_type": "should hold keys and values",
    "tuple_type": "should be a list",
    "string_unicode": "holds half a character (a surrogate); write it whole",
}
"""What pydantic says in words of Python."""
_SYMBOLS = {"alpha": "alignment.kl_weight", "tau": "anchors.temperature", "d": "alignment.latent"}
"""The paper's letters that are keys here."""


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read the recipe at `path` and apply overrides such as `optim.epochs=2`.

    Raises:
        RecipeError: All faults at once, each with its file and key and the nearest valid key.
    """
    values = load_yaml(path, what="recipe", error=RecipeError, most_bytes=MOST_BYTES)
    if not isinstance(values, dict):
        raise RecipeError(f"recipe: {path} must hold keys and values, such as 'name: my-run'")
    return recipe_from_dict(values, where=str(path), overrides=overrides)


def recipe_from_dict(values: dict[str, Any], *, where: str = "recipe", overrides: Sequence[str] = ()) -> Recipe:
    """Validate `values` as a recipe; `where` names their origin in messages. Raises `RecipeError`."""
    for override in overrides:
        key, sign, text = override.partition("=")
        if not sign or not key.strip():
            raise RecipeError(f"override {override!r} must look like key=value, such as optim.epochs=2")
        # By the reader of recipe files, so that `1e-5`, `no` and `null` mean the same on the command line.
        value = parse_yaml(text, where=f"override {key}", error=RecipeError)
        values = _with(values, key.strip().split("."), value, override)
    # Whoever mistypes an override must not look for the fault in the file.
    origins = {override.partition("=")[0].strip(): f"override {override!r}" for override in overrides}
    try:
        return Recipe.model_validate(values)
    except ValidationError as fault:
        sentences = _sentences(fault, where, origins)
        shown = list(islice(sentences, MOST_FAULTS))
        more = [f"{where}: and more; mend these first"] if next(sentences, None) else []
        raise RecipeError("\n".join([*shown, *more])) from None


def _with(values: dict[str, Any], keys: list[str], value: Any, override: str) -> dict[str, Any]:
    """A copy of `values` in which the nested `keys` hold `value`."""
    head, *rest = keys
    if not rest:
        return {**values, head: value}
    inner = values.get(head) or {}
    if not isinstance(inner, dict):
        raise RecipeError(f"override {override!r}: {head} is a value, not a section")
    return {**values, head: _with(inner, rest, value, override)}


def _sentences(fault: ValidationError, file: str, overrides: Mapping[str, str]) -> Iterator[str]:
    """What is wrong, one sentence a fault; `overrides` by key take the blame for what they say."""
    known = set(recipe_keys())
    alternatives: dict[str, list[str]] = {}
    for error in fault.errors(include_url=False):
        location = [str(part) for part in error["loc"]]
        key = ".".join(location)
        where = next((origin for name, origin in overrides.items() if f"{key}.".startswith(f"{name}.")), file)
        match error["type"]:
            case "extra_forbidden" | "invalid_key":
                yield f"{where}: unknown key {_short(key)}; {_nearest(location)}"
            case "missing":
                yield f"{where}: {key} is missing; every recipe needs it"
            case "value_error":
                message = str(error["ctx"]["error"])  # begins with the key that is at fault
                yield f"{overrides.get(message.partition(':')[0], where)}: {message}"
            case _:
                # Behind the key, a location may name the alternative of a union that was tried.
                while key not in known and "." in key:
                    key = key.rpartition(".")[0]
                message = _PLAIN_MESSAGES.get(error["type"], error["msg"].lower().removeprefix("input "))
                what = f"{key} = " if key else ""
                alternatives.setdefault(f"{where}: {what}{_short(repr(error['input']))}", []).append(message)
    for what, reasons in alternatives.items():
        yield f"{what} {' or '.join(reasons)}"


def _short(text: str) -> str:
    return text if len(text) <= 200 else f"{text[:200]}..."


def _nearest(location: list[str]) -> str:
    """The valid keys nearest to an unknown one, in words."""
    wrong, section = ".".join(location), ".".join(location[:-1])
    near = nearest_keys(wrong)
    own = [key for key in recipe_keys() if key.rpartition(".")[0] == section]
    return f"did you mean {' or '.join(near)}?" if near else f"{section or 'a recipe'} knows {', '.join(own)}"


def nearest_keys(wrong: str) -> list[str]:
    """The valid keys that `wrong` may mean: in its own section first, then anywhere, then by what a key does.

    Whoever writes `lr` gets the three rates, and whoever writes the paper's `alpha`, in whatever section, `kl_weight`.
    """
    every = list(recipe_keys())
    section, _, word = wrong.rpartition(".")
    if word in _SYMBOLS:
        return [_SYMBOLS[word]]
    own = [key for key in every if key.rpartition(".")[0] == section]
    # Every step is weaker than the one before: a near spelling in the right section is a slip of the finger, a word
    # of a description only a guess. The cutoffs are our choice.
    if near := difflib.get_close_matches(wrong, own, n=1, cutoff=0.6):
        return near
    if elsewhere := [key for key in every if key.rpartition(".")[2] == word]:
        return elsewhere[:1]
    if begin := [key for key in every if word and key.rpartition(".")[2].startswith(f"{word}_")]:
        return sorted(begin, key=lambda key: not key.endswith("_head"))
    if near := difflib.get_close_matches(wrong, every, n=1, cutoff=0.5):
        return near
    described = ((key, field.description or "") for key, field in _fields(Recipe) if not _section(field))
    return [key for key, text in described if re.search(rf"\b{re.escape(word)}\b", text) and word][:3]


def recipe_keys() -> Iterable[str]:
    """Every key of a recipe, sections too, dotted, in the schema's order."""
    return (key for key, _ in _fields(Recipe))


def _fields(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    for name, field in model.model_fields.items():
        yield f"{prefix}{name}", field
        if section := _section(field):
            yield from _fields(section, f"{prefix}{name}.")


def _section(field: FieldInfo) -> type[BaseModel] | None:
    kind = field.annotation
    return kind if isinstance(kind, type) and issubclass(kind, BaseModel) else None


# The recipes that come with the package.


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
    # Other folders are meant as they stand: a typo in a path of one's own must not start a shipped recipe instead.
    plain = path.parent in (Path("."), Path("recipes"))
    if plain and path.suffix in ("", ".yaml") and path.name.removesuffix(".yaml") in known:
        return known[path.name.removesuffix(".yaml")]
    near = difflib.get_close_matches(path.name.removesuffix(".yaml"), known, n=1, cutoff=0.5)
    hint = f"did you mean recipes/{near[0]}.yaml?" if near else "calmctl recipes list lists the shipped ones"
    raise RecipeError(f"recipe: {name_or_path} does not exist; {hint}")


# The recipe's keys as a table: name, default, what may be set, meaning.


@dataclass(frozen=True, slots=True)
class Key:
    """One key: its dotted name, its default as YAML would write it, what it takes, and what it does."""

    name: str
    default: str
    values: str
    description: str


def describe_keys(only: str | None = None) -> list[Key]:
    """Every key that holds a value, in the schema's order; those of a section, or of one key, where that is asked for.

    Raises:
        RecipeError: There is neither a section nor a key called `only`.
    """
    keys = [_key(name, field) for name, field in _fields(Recipe) if not _section(field)]
    if only is None:
        return keys
    chosen = [key for key in keys if f"{key.name}.".startswith(f"{only}.")]
    if not chosen:
        near = nearest_keys(only)
        sections = ", ".join(dict.fromkeys(key.name.partition(".")[0] for key in keys if "." in key.name))
        hint = f"did you mean {' or '.join(near)}?" if near else f"the sections are {sections}"
        raise RecipeError(f"there is no key or section {only!r}; {hint}")
    return chosen


def _key(name: str, field: FieldInfo) -> Key:
    # JSON writes true, null and [0.9, 0.999] as YAML does: what is shown can be pasted into a recipe.
    default = "(needed)" if field.is_required() else json.dumps(field.default).strip('"')
    values = _values(Annotated[field.annotation, *field.metadata] if field.metadata else field.annotation)
    return Key(name, default, values, field.description or "")


def _values(kind: Any) -> str:
    """What a type takes, in words: "none | linear", "whole number > 0", "true | false"."""
    origin, parts = get_origin(kind), get_args(kind)
    if origin is Annotated:
        base, *bounds = parts
        limits = [
            f"{sign} {getattr(bound, name):g}"
            for bound in bounds
            for of, sign, name in ((Gt, ">", "gt"), (Ge, ">=", "ge"), (Lt, "<", "lt"))
            if isinstance(bound, of)
        ]
        nested = [_values(Annotated[base, *bound.metadata]) for bound in bounds if getattr(bound, "metadata", None)]
        return nested[0] if nested else f"{_values(base)} {', '.join(limits)}".strip()
    if origin is Literal:
        return " | ".join(map(str, parts))
    if origin in (Union, types.UnionType):
        return " | ".join(map(_values, parts))
    if origin is tuple:
        return f"[{', '.join(map(_values, parts))}]"
    return {bool: "true | false", int: "whole number", float: "number", str: "text"}.get(kind, "null")
