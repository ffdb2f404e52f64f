"""The recipe's keys as a table: name, default, what may be set, meaning."""

from __future__ import annotations

import json
import types
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Lt
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from calmctl.errors import RecipeError
from calmctl.recipe.load import nearest_keys
from calmctl.recipe.schema import Recipe


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
    keys = list(_keys(Recipe))
    if only is None:
        return keys
    chosen = [key for key in keys if f"{key.name}.".startswith(f"{only}.")]
    if not chosen:
        near = nearest_keys(only)
        sections = ", ".join(dict.fromkeys(key.name.partition(".")[0] for key in keys if "." in key.name))
        hint = f"did you mean {' or '.join(near)}?" if near else f"the sections are {sections}"
        raise RecipeError(f"there is no key or section {only!r}; {hint}")
    return chosen


def _keys(model: type[BaseModel], prefix: str = "") -> Iterator[Key]:
    for name, field in model.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from _keys(kind, f"{prefix}{name}.")
        else:
            needed = field.default is PydanticUndefined
            default = "(needed)" if needed else json.dumps(field.default).strip('"')
            values = _values(Annotated[kind, *field.metadata] if field.metadata else kind)
            yield Key(f"{prefix}{name}", default, values, field.description or "")


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
