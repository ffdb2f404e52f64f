"""Reading a recipe: YAML, overrides, and every mistake told in one sentence each."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from calmctl.errors import RecipeError
from calmctl.recipe.schema import Recipe
from calmctl.yaml_strict import load_yaml, parse_yaml

MOST_BYTES = 256 * 1024
"""A larger file is no recipe (our choice; one with every key has 5 KiB)."""
MOST_FAULTS = 20
"""So many are told at once (our choice)."""


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
        value = parse_yaml(text, where=f"override {key}", error=RecipeError)
        values = _with(values, key.strip().split("."), value, override)
    by = {override.partition("=")[0].strip(): f"override {override!r}" for override in overrides}
    try:
        # Through JSON, where a list may be a tuple; strict types all the same. What is not JSON is no recipe.
        return Recipe.model_validate_json(json.dumps(values, ensure_ascii=False).encode("utf-8"))
    except UnicodeEncodeError as fault:  # JSON can write one half of a character without the other
        near = fault.object[max(0, fault.start - 60) : fault.start]
        raise RecipeError(f"{where}: half a character (a surrogate) stands behind {near!r}; write it whole") from None
    except (TypeError, ValueError) as fault:
        if not isinstance(fault, ValidationError):
            raise RecipeError(f"{where}: a value is not a string, number, list or mapping ({fault})") from None
        sentences = _sentences(fault, where, by)
        told = list(islice(sentences, MOST_FAULTS))
        more = [f"{where}: and more; mend these first"] if next(sentences, None) else []
        raise RecipeError("\n".join([*told, *more])) from None


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
        where = next((told for name, told in overrides.items() if f"{key}.".startswith(f"{name}.")), file)
        match error["type"]:
            case "extra_forbidden":
                yield f"{where}: unknown key {_short(key)}; {_nearest(location)}"
            case "missing":
                yield f"{where}: {key} is missing; every recipe needs it"
            case "value_error":
                said = str(error["ctx"]["error"])  # begins with the key that is at fault
                yield f"{overrides.get(said.partition(':')[0], where)}: {said}"
            case _:
                # Behind the key, a location may name the alternative of a union that was tried.
                while key not in known and "." in key:
                    key = key.rpartition(".")[0]
                says = error["msg"].lower().removeprefix("input ")
                alternatives.setdefault(f"{where}: {key} = {_short(repr(error['input']))}", []).append(says)
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

    Whoever writes `lr` gets the three rates, and whoever writes the paper's `alpha` the key that is described so.
    """
    every = list(recipe_keys())
    section, _, word = wrong.rpartition(".")
    own = [key for key in every if key.rpartition(".")[0] == section]
    if near := difflib.get_close_matches(wrong, own, n=1, cutoff=0.6):
        return near
    if elsewhere := [key for key in every if key.rpartition(".")[2] == word]:
        return elsewhere[:1]
    if begin := [key for key in every if word and key.rpartition(".")[2].startswith(f"{word}_")]:
        return sorted(begin, key=lambda key: not key.endswith("_head"))
    if near := difflib.get_close_matches(wrong, every, n=1, cutoff=0.5):
        return near
    return [key for key, said in _descriptions(Recipe) if re.search(rf"\b{re.escape(word)}\b", said) and word][:3]


def _descriptions(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, str]]:
    for name, field in model.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            yield from _descriptions(inner, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", field.description or ""


def recipe_keys(model: type[BaseModel] = Recipe, prefix: str = "") -> Iterable[str]:
    """Every key of a recipe, dotted, in the schema's order."""
    for name, field in model.model_fields.items():
        inner = field.annotation
        yield f"{prefix}{name}"
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            yield from recipe_keys(inner, f"{prefix}{name}.")
