"""A run read again: by its folder, by a copy that has less, and by the one file that is given away."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch

from calmctl.errors import CheckpointError, RunFailed, RunNotFound
from calmctl.evaluation.retrieval import Retrieval
from calmctl.evaluation.runs import evaluate_run, labels_of
from calmctl.explain.explainer import explain_with_run
from calmctl.model.spec import CLIP_PIXELS
from calmctl.recipe import Recipe, recipe_from_dict
from calmctl.runs.checkpoint import load_run
from calmctl.runs.identity import run_identity
from calmctl.runs.run import Run, find_run
from calmctl.source.base import SourceSpec
from calmctl.source.source import recipe_source
from calmctl.tensors import load_tensors, read_metadata, save_tensors
from calmctl.training.train import train

CPU = torch.device("cpu")
TOWER = {"layers": 1, "width": 32}
CONFIG = {
    "embed_dim": 32,
    "vision_cfg": {**TOWER, "image_size": [24, 40], "patch_size": 8, "head_width": 16},
    "text_cfg": {**TOWER, "context_length": 24, "vocab_size": 49408, "heads": 2},
    "preprocess_cfg": {
        "mean": [0.5, 0.5, 0.5],
        "std": [0.1, 0.5, 0.5],
        "interpolation": "bilinear",
        "resize_mode": "squash",
    },
}


@pytest.fixture(scope="module")
def finished(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Recipe, Run]:
    """A run over a small backbone that wants other pixels than CLIP's and rectangles, its config gone after it."""
    config = tmp_path_factory.mktemp("config") / "wide.json"
    config.write_text(json.dumps(CONFIG))
    values = request.getfixturevalue("tiny_recipe_values")(request.getfixturevalue("tiny_world"))
    recipe = recipe_from_dict(values, overrides=[f"backbone.model={config}", "optim.epochs=1"])
    run = train(recipe, tmp_path_factory.mktemp("runs")).run
    config.unlink()
    return recipe, run


@pytest.fixture
def given(finished: tuple[Recipe, Run], tmp_path: Path) -> Path:
    """The slim file alone, elsewhere, under another name."""
    return Path(shutil.copy(finished[1].weights("slim"), tmp_path / "given.safetensors"))


def test_a_run_scores_the_same_before_and_after_a_reload(finished):
    recipe, run = finished
    (validation,) = json.loads(run.results.read_text())["validation"]  # by the model in memory
    for which in ("best", "last", "slim"):
        (found,) = evaluate_run(run, [SourceSpec.of(recipe.data)], Retrieval(), which=which, split="val", device=CPU)
        metrics = found.result.to_json()["metrics"]["text_to_video"]
        assert (metrics["r1"], metrics["mnr"]) == (validation["t2v_r1"], validation["t2v_mnr"]), which
    assert load_run(run, "best", CPU).backbone.spec.mean == (0.5, 0.5, 0.5)


def test_what_the_backbone_is_stands_beside_all_weights(finished):
    _, run = finished
    began = json.loads(run.about.read_text())["backbone"]
    states = [read_metadata(path, what="test")["backbone"] for path in sorted(run.folder.glob("*.safetensors"))]
    assert len(states) == 4, "best, last, slim, state"
    for state in states:
        assert state["image_size"] == [24, 40] and state["resize"] == "squash" and state["std"] == [0.1, 0.5, 0.5]
        assert state["parameters_sha256"] != began["parameters_sha256"], "the towers were trained"
        assert {**state, "parameters_sha256": 0} == {**began, "parameters_sha256": 0}


def test_a_resume_refuses_another_reading(finished, tmp_path):
    recipe, run = finished
    copy = Run(shutil.copytree(run.folder, tmp_path / run.folder.name))
    copy.results.unlink()
    config = Path(recipe.backbone.model)
    config.write_text(json.dumps(CONFIG | {"preprocess_cfg": CONFIG["preprocess_cfg"] | {"mean": [0.4, 0.4, 0.4]}}))
    try:
        with pytest.raises(CheckpointError, match=r"mean \(0\.5, 0\.5, 0\.5\), and that of its recipe now has \(0\.4"):
            train(recipe, tmp_path, resume=copy)
    finally:
        config.unlink()


def test_the_slim_file_is_a_run_by_itself(finished, given):
    _, run = finished
    own, alone = load_run(run, "slim", CPU), find_run(str(given), Path("nowhere"))
    other = load_run(alone, "best", CPU)
    assert all(torch.equal(a, b) for a, b in zip(own.state_dict().values(), other.state_dict().values(), strict=True))
    assert alone.anchors() == run.anchors() and alone.task == "retrieval"
    explainer = explain_with_run(alone, CPU)
    assert explainer.name == f"{given} (best on validation)" and "slim export" in explainer.notes[0]
    with pytest.raises(CheckpointError, match="is an export"):
        load_run(alone, "last", CPU)
    with pytest.raises(RunFailed, match="is an export and cannot go on"):
        alone.recipe_to_resume()


def test_the_slim_file_says_what_it_was_made_of(finished, given):
    recipe, run = finished
    alone, begun = find_run(str(given), Path("nowhere")), run_identity(run)
    told = run_identity(alone)
    assert told.train == begun.train.lean() and (told.recipe, told.vocabulary) == (begun.recipe, begun.vocabulary)
    assert alone.anchors().digest == told.vocabulary
    assert alone.trained_on == run.trained_on and alone.trained_on.clips == begun.train.clips
    record = recipe_source(recipe).record("train")
    (concern, *_) = labels_of(alone, "best", SourceSpec.of(recipe.data), record).concerns
    assert f"{begun.train.clips} of {begun.train.clips} train clips were trained on" in concern


def test_a_folder_with_slim_weights_only_is_a_run(finished, given, tmp_path):
    _, run = finished
    bare = tmp_path / "runs/bare"
    bare.mkdir(parents=True)
    shutil.copy(given, bare / "slim.safetensors")
    assert load_run(find_run("bare", tmp_path / "runs"), "best", CPU).backbone.spec.model == "wide"
    for name in ("recipe.json", "vocabulary.yaml"):
        shutil.copy(run.folder / name, bare)
    assert type(find_run("bare", tmp_path / "runs")) is Run
    assert load_run(find_run(None, tmp_path / "runs"), "best", CPU).vae is None


def test_nothing_that_is_given_away_names_a_place(finished):
    recipe, run = finished
    with run.weights("slim").open("rb") as file:
        header = file.read(int.from_bytes(file.read(8), "little")).decode()
    assert str(recipe.data.root) not in header and not re.search(r'\\"/|: */', header)
    for which in ("best", "last", "state"):
        assert not re.search(r'"/', json.dumps(read_metadata(run.weights(which), what="test")))


def test_weights_that_are_no_run(finished, tmp_path):
    _, run = finished
    path = Path(shutil.copy(run.weights("last"), tmp_path / "last.safetensors"))
    with pytest.raises(RunNotFound, match="is no run by itself"):
        find_run(str(path), Path("nowhere"))


def test_a_run_from_before_is_read_as_it_was_trained(finished, tmp_path):
    recipe, run = finished
    copy = Run(shutil.copytree(run.folder, tmp_path / "old"))
    (tmp_path / "wide.json").write_text(json.dumps({**CONFIG, "preprocess_cfg": None}))
    keys = recipe.backbone.model_copy(update={"model": str(tmp_path / "wide.json")})
    copy.recipe_file.write_text(recipe.model_copy(update={"backbone": keys}).model_dump_json())
    state, metadata = load_tensors(copy.weights("best"), what="test")
    old = {"model": "wide", "activation": "gelu", "weights": None, "image_size": 24, "dim": 32, "context_length": 24}
    del metadata["identity"]
    save_tensors(copy.weights("best"), state, metadata | {"backbone": old})
    assert load_run(copy, "best", CPU).backbone.spec.pixels == CLIP_PIXELS  # for no tag, training took these
