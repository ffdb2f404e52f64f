"""The shape of the package: who may import whom, and how large a file and a room may get (scripts/house.py)."""

import importlib.util
import sys
from collections import Counter
from pathlib import Path
from types import ModuleType

import pytest

REPOSITORY = Path(__file__).parents[1]

FOUNDATION = {"errors", "files", "yaml_strict", "words", "samples", "runtime", "tensors", "device", "parallel"}
"""Files at the top that any room may import; they import nothing but one another."""

MAY_IMPORT = {
    "recipe": set(),
    "anchors": set(),
    "video": set(),
    "data": {"video"},
    "model": {"anchors", "recipe", "video"},
    "runs": {"anchors", "data", "model", "recipe"},
    "store": {"data", "model", "runs", "video"},
    "source": {"data", "model", "recipe", "store", "video"},
    "evaluation": {"anchors", "data", "model", "recipe", "runs", "source"},
    "captions": {"data", "evaluation", "model", "recipe", "runs", "source", "video"},
    "explain": {"anchors", "data", "evaluation", "model", "recipe", "runs", "source", "video"},
    "search": {"data", "evaluation", "explain", "model", "recipe", "runs", "source", "store", "video"},
    "training": {"anchors", "captions", "evaluation", "model", "recipe", "runs", "source"},
    "reproduce": {
        "anchors", "captions", "data", "evaluation", "model", "recipe", "runs", "source", "store", "training",
    },
}  # fmt: skip
"""The direction of docs/architecture.md: a room, and the rooms it may import, inside functions too."""


def _house() -> ModuleType:
    spec = importlib.util.spec_from_file_location("house", REPOSITORY / "scripts/house.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["house"] = module
    spec.loader.exec_module(module)
    return module


house = _house()


@pytest.fixture(scope="module")
def modules() -> dict[str, "house.Module"]:
    return house.read_package()


def test_nobody_leads_back_to_himself(modules: dict[str, "house.Module"]) -> None:
    assert house.cycles({name: module.imports for name, module in modules.items()}) == []
    assert house.cycles(house.room_edges(modules)) == []


def test_a_cycle_would_be_found() -> None:
    assert house.cycles({"a": {"b"}, "b": {"c"}, "c": {"a", "d"}, "d": set()}) == [["a", "b", "c"]]


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_rooms_import_in_one_direction(room: str, modules: dict[str, "house.Module"]) -> None:
    edges = house.room_edges(modules)
    assert room in edges, f"there is no room {room}"
    assert edges[room] - FOUNDATION <= MAY_IMPORT[room]


def test_the_foundation_carries_and_is_not_carried(modules: dict[str, "house.Module"]) -> None:
    for name in FOUNDATION:
        assert house.room_edges(modules).get(name, set()) <= FOUNDATION


def test_files_are_chapters(modules: dict[str, "house.Module"]) -> None:
    long = {name: module.lines for name, module in modules.items() if module.lines > 550}
    assert long == {}
    rooms = Counter(name.rsplit(".", 1)[0] for name in modules)
    del rooms["calmctl"]  # the foundation's files and the rooms themselves
    assert {room: count for room, count in rooms.items() if count > 14} == {}
