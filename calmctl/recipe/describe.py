"""The recipe's keys as a table: name, default, meaning."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from calmctl.recipe.schema import Recipe


@dataclass(frozen=True, slots=True)
class Key:
    """One key: its dotted name, its default as YAML would write it, and what it does."""

    name: str
    default: str
    description: str


def describe_keys(model: type[BaseModel] = Recipe, prefix: str = "") -> Iterator[Key]:
    """Every key that holds a value, in the schema's order."""
    for name, field in model.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from describe_keys(kind, f"{prefix}{name}.")
        else:
            needed = field.default is PydanticUndefined
            default = "(needed)" if needed else json.dumps(field.default).strip('"')
            yield Key(f"{prefix}{name}", default, field.description or "")
