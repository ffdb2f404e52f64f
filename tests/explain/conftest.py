"""A small trained run, and a browser."""

from collections.abc import Callable, Iterator
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="session")
def trained(
    tiny_world: Path, tiny_recipe_values: "Callable[[Path], dict[str, Any]]", tmp_path_factory: pytest.TempPathFactory
):
    """A run on the tiny world with every part of CALM."""
    from calmctl.recipe import recipe_from_dict
    from calmctl.training.train import train

    recipe = recipe_from_dict(tiny_recipe_values(tiny_world), overrides=["optim.epochs=1", "backbone.model=demo-clip"])
    return train(recipe, tmp_path_factory.mktemp("explained")).run


@pytest.fixture(scope="session")
def explainer(trained):
    import torch

    from calmctl.explain.explainer import explain_with_run

    return explain_with_run(trained, torch.device("cpu"))


@pytest.fixture(scope="session")
def collection(explainer):
    from calmctl.explain.collection import open_collection

    return open_collection(explainer, "test")


@pytest.fixture(scope="session")
def seen(explainer, collection):
    """The first test clip, as an explanation looks at it."""
    from calmctl.explain.explainer import see_video

    clip = collection.clips[collection.encoded.ids[0]]
    return see_video(explainer, clip, instants=9, pictures=True)


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A headless Chromium; skips where there is none."""
    here = Path(__file__).parent / "browser.py"
    spec = spec_from_file_location("browser", here)
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    if reason := module.missing():
        pytest.skip(reason)
    with module.chromium(tmp_path_factory.mktemp("browser") / "chromedriver.log") as started:
        yield started
