"""Runs and stores that an earlier package wrote are read, and the commands answer as they did then."""

import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest


def _load(path: Path) -> ModuleType:
    """`commands.py`, which also runs as a program."""
    spec = importlib.util.spec_from_file_location("golden_commands", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


commands = _load(Path(__file__).with_name("commands.py"))
EXPECTED = Path(__file__).with_name("expected")


@pytest.fixture(scope="module")
def place(tiny_world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return commands.make_place(tmp_path_factory.mktemp("golden"), tiny_world)


@pytest.mark.parametrize("name", commands.COMMANDS)
def test_answers_stay(name: str, place: Path) -> None:
    agree(commands.answer(name, place), commands.steady(json.loads((EXPECTED / f"{name}.json").read_text())), at=name)


def test_names_and_shapes_stay() -> None:
    """Those of the committed files, which a package must go on writing (tests/training, tests/data/test_store)."""
    told = json.loads((EXPECTED / "shapes.json").read_text())
    assert {name: commands.shapes(commands.HERE / name) for name in told} == told


def agree(ours: Any, expected: Any, *, at: str) -> None:
    """Equal, but for digits that another processor gives otherwise."""
    if isinstance(expected, dict):
        assert isinstance(ours, dict), at
        # A later package knows more keys of a recipe; those that it knew keep their values.
        assert sorted(ours.keys() & expected.keys() if ".recipe" in at else ours) == sorted(expected), at
        for key, value in expected.items():
            agree(ours[key], value, at=f"{at}.{key}")
    elif isinstance(expected, list):
        assert isinstance(ours, list) and len(ours) == len(expected), at
        for number, (one, other) in enumerate(zip(ours, expected, strict=True)):
            agree(one, other, at=f"{at}[{number}]")
    elif isinstance(expected, float):
        assert ours == pytest.approx(expected, rel=1e-3, abs=1e-4), at
    else:
        assert ours == expected, at
