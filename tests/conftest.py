"""Fixtures that every test may use."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from calmctl.recipe import Recipe


# A deadline a single example would be a timed test, and these machines are shared.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real annotation files and clips, where one is at hand."""
    folder = os.environ.get("CALMCTL_REAL_DATA")
    if not folder:
        pytest.skip("CALMCTL_REAL_DATA is not set: no real data to read")
    path = Path(folder)
    assert path.is_dir(), f"CALMCTL_REAL_DATA={folder} is not a folder"
    return path


@pytest.fixture(scope="session")
def tiny_world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A demo world of 12 / 6 / 6 clips and 6 shifted ones."""
    root = tmp_path_factory.mktemp("world")
    from calmctl.data.demo import generate_demo
    from calmctl.data.demo_world import DemoCounts

    generate_demo(root, counts=DemoCounts(train=12, val=6, test=6, shifted=6))
    return root


def _tiny_values(root: Path) -> dict[str, Any]:
    return {
        "name": "tiny",
        "device": "cpu",
        "data": {
            "dataset": "demo",
            "root": str(root),
            "frames": 2,
            "augment": "none",
            "cache": "memory",
            "workers": 1,
        },
        "backbone": {"model": "demo-clip", "weights": None},
        "anchors": {"vocabulary": "shapes@1", "subset": 5},
        "head": {"kind": "xpool"},
        "optim": {"epochs": 2, "batch_size": 20, "lr_backbone": 1e-3, "lr_head": 1e-3, "log_every": 1},
    }


@pytest.fixture(scope="session")
def tiny_recipe_values() -> "Callable[[Path], dict[str, Any]]":
    """The keys of a recipe that trains on the tiny world in seconds."""
    return _tiny_values


@pytest.fixture
def tiny_recipe(tiny_world: Path) -> "Callable[..., Recipe]":
    """Makes such a recipe, with overrides."""
    from calmctl.recipe import recipe_from_dict

    return lambda *overrides: recipe_from_dict(_tiny_values(tiny_world), overrides=overrides)
