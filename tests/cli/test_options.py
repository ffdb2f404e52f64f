"""Numbers on the command line and in recipes: every one has a range, and what lies outside it is a sentence."""

import math
import typing
from collections.abc import Iterator
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import annotated_types
import pytest
import typer
from pydantic import BaseModel
from typer.models import OptionInfo
from typer.testing import CliRunner

from calmctl.cli import options
from calmctl.cli.main import app
from calmctl.errors import RecipeError
from calmctl.recipe import Recipe, recipe_from_dict

MINIMAL = {"name": "x", "data": {"dataset": "demo"}}


def functions(group: Any) -> Iterator[Any]:
    for command in group.commands.values():
        yield from functions(command) if hasattr(command, "commands") else [command.callback.__wrapped__]


def numeric_options() -> Iterator[tuple[str, OptionInfo]]:
    for command in functions(typer.main.get_command(app)):
        for name, hint in get_type_hints(command, include_extras=True).items():
            if get_origin(hint) is Annotated and {int, float} & {get_args(hint)[0], *get_args(get_args(hint)[0])}:
                yield f"{command.__name__} {name}", get_args(hint)[1]


def test_every_number_on_the_command_line_has_a_range() -> None:
    found = dict(numeric_options())
    assert len(found) > 20
    without = [name for name, option in found.items() if option.min is None or option.max is None]
    assert not without
    assert all(math.isfinite(option.max) for option in found.values())


def numeric_keys(section: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, list[Any]]]:
    """Keys that take a number, with every limit that pydantic keeps to."""
    for name, field in section.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from numeric_keys(kind, f"{prefix}{name}.")
            continue
        for part, limits in parts(kind, list(field.metadata)):
            if part in (int, float):
                yield f"{prefix}{name}", limits


def parts(kind: Any, limits: list[Any]) -> Iterator[tuple[Any, list[Any]]]:
    if get_origin(kind) is Annotated:
        inner, *more = get_args(kind)
        found = [each for one in more for each in getattr(one, "metadata", [one])]
        yield from parts(inner, [*limits, *found])
    elif get_origin(kind) in (typing.Union, type(int | None), tuple):
        for each in get_args(kind):
            yield from parts(each, limits)
    else:
        yield kind, limits


def test_every_number_of_a_recipe_has_a_range() -> None:
    found = list(numeric_keys(Recipe))
    assert len(found) > 40
    for key, limits in found:
        low = [each for each in limits if isinstance(each, annotated_types.Ge | annotated_types.Gt)]
        high = [each for each in limits if isinstance(each, annotated_types.Le | annotated_types.Lt)]
        assert low and high, key


@pytest.mark.parametrize(
    "arguments",
    [
        *(["extract", "x", "--timeout", value] for value in ("inf", "nan", "1e10", "1e300", "0", "-1")),
        *(["data", "check", "x", "--timeout", value] for value in ("inf", "nan", "1e300", "0.001")),
        *(["caption", "x", "--segment-s", value] for value in ("inf", "nan", "1e300", "0")),
        *(["caption", "x", "--temperature", value] for value in ("inf", "nan", "1e300", "1e-40", "0")),
        *(["caption", "x", "--length-penalty", value] for value in ("inf", "1e308", "-1")),
        *(["caption", "x", "--seed", value] for value in ("99999999999999999999999", "-1", "9223372036854775808")),
        *(["caption", "x", "--beam", value] for value in ("1000000", "0")),
        *(["search", "a", "--window", value] for value in ("inf", "nan", "0")),
        *(["search", "a", "--window", "5", "--stride", value] for value in ("inf", "nan", "0")),
        ["search", "a", "--approximate", "--candidates", "99999999999999999999999"],
        ["search", "a", "--top", "99999999999999999999999"],
        ["reproduce", "table1", "--dry-run", "--seeds", "100000000"],
        ["demo", "--seed", "-1"],
        ["anchors", "show", "charades", "--count", "5", "--seed", "-1"],
        ["anchors", "show", "charades", "--count", "-1"],
        ["diagnose", "failures", "--top", "0"],
        ["extract", "x", "--frames", "1000000000"],
        ["extract", "x", "--workers", "1000000000"],
        ["extract", "x", "--ray", "1000000000"],
    ],
    ids=" ".join,
)
def test_a_number_out_of_range_is_a_sentence(arguments: list[str]) -> None:
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2 and isinstance(result.exception, SystemExit)
    assert f"Invalid value for '{arguments[-2]}'" in result.output


def test_nan_is_no_number_for_any_command_line_library() -> None:
    with pytest.raises(typer.BadParameter, match="no number"):
        options._number(float("nan"))
    assert (options._number(None), options._number(1.5), options._number(3)) == (None, 1.5, 3)


@pytest.mark.parametrize(
    "override",
    [
        *(f"seed={value}" for value in (-1, 2**63, 2**64, 10**26)),
        *(f"data.timeout_s={value}" for value in (".inf", "1e300", "1e10", "0")),
        "data.val_seed=-1",
        "anchors.subset_seed=-1",
        "caption.beam=1000000",
        "caption.length_penalty=1e308",
        "data.frames=1000000000",
        "data.workers=100000000",
        "optim.eps=1e-300",
        "alignment.logvar_limit=1e6",
        "optim.epochs=1000000000000",
    ],
)
def test_a_key_out_of_range_is_a_sentence_that_names_it(override: str) -> None:
    key = override.partition("=")[0]
    with pytest.raises(RecipeError, match=rf"{key}.* should be|{key}.*finite|{key}.*valid"):
        recipe_from_dict(MINIMAL, overrides=[override])
