"""Every hostile input of this folder is counted; the counts are printed at the end of the tests."""

from collections.abc import Callable

import pytest
import torch


@pytest.fixture
def refused(record_property: Callable[[str, object], None]) -> Callable[[str], None]:
    """Call it with the kind of a hostile input once that has been refused or made harmless."""
    return lambda kind: record_property("hostile", kind)


@pytest.fixture(scope="session")
def run(request, tmp_path_factory):
    """A run with weights, good ones."""
    from calmctl.anchors.shipped import resolve_vocabulary
    from calmctl.anchors.vocabulary import save_vocabulary
    from calmctl.model.build import build_model
    from calmctl.recipe import recipe_from_dict
    from calmctl.runs.checkpoint import load_run, save_weights
    from calmctl.runs.run import create_run

    recipe = recipe_from_dict(request.getfixturevalue("tiny_recipe_values")(request.getfixturevalue("tiny_world")))
    made = create_run(tmp_path_factory.mktemp("runs"), recipe)
    save_vocabulary(resolve_vocabulary("shapes@1"), made.vocabulary)
    model = build_model(recipe, resolve_vocabulary("shapes@1"))
    save_weights(made.weights("best"), model, slim=False, about={"trained_on": ["demo"]})
    assert load_run(made, "best", torch.device("cpu"))
    return made
