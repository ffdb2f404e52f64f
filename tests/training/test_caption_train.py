"""Training captioners: what a run leaves, resuming, stores, and what is refused."""

import json
import math
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType

import pytest
import torch

from calmctl.errors import CheckpointError, DatasetError, RecipeError
from calmctl.runs.checkpoint import load_captioner, load_run
from calmctl.runs.identity import require_unseen, weights_lineage
from calmctl.runs.run import find_run
from calmctl.tensors import load_tensors, save_tensors
from calmctl.training.prepare import prepare
from calmctl.training.train import plan_training, train

CPU = torch.device("cpu")
SMALL = ("task=caption", "caption.width=32", "caption.heads=2", "caption.ffn=32", "caption.vocabulary=train")


def test_a_run_leaves_scores_and_captions_behind(captioner):
    run = captioner.run
    assert captioner.validation[-1]["score"] == captioner.validation[-1]["cider"]
    record = json.loads(run.results.read_text())
    assert [each["system"] for each in record["test"]] == ["best on validation", "last epoch"]
    best = record["test"][0]
    assert best["scores"]["tokenizer"] == "ptb-python" and best["scores"]["meteor"] is None
    assert "no Java in this test" in best["scores"]["meteor_reason"]
    assert best["search"] == {"method": "beam", "beam": 5, "length_penalty": 1.0}
    assert len(best["captions"]) == 6 and all(each["references"] for each in best["captions"].values())
    steps = [json.loads(line) for line in run.log.read_text().splitlines()]
    first, last = steps[0], next(step for step in reversed(steps) if "task" in step)
    assert first["loss"] == pytest.approx(first["task"] + first["rec"] + 0.1 * first["kl"], rel=1e-5)
    assert last["token_accuracy"] > 0.95 > first["token_accuracy"]
    assert load_tensors(run.weights("slim"), what="test")[1]["trained_on"] == ["folder"]
    assert load_captioner(run, "slim", CPU).anchors is None
    with pytest.raises(CheckpointError, match="calmctl caption --run"):
        load_run(run, "best", CPU)


@pytest.mark.usefixtures("no_java")
def test_a_captioner_resumes_bit_for_bit(tiny_recipe, tmp_path, stop_at, killed):
    recipe = tiny_recipe(*SMALL, "optim.save_every=2", "optim.batch_size=30")
    whole = train(recipe, tmp_path / "a")
    with pytest.raises(killed):
        train(recipe, tmp_path / "b", watcher=stop_at(3))
    stopped = find_run("tiny-001", tmp_path / "b")
    resumed = train(stopped.recipe_to_resume(), tmp_path / "b", resume=stopped)
    assert resumed.validation == whole.validation
    ours, theirs = (load_tensors(each.run.weights("last"), what="test")[0] for each in (whole, resumed))
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []


@pytest.mark.usefixtures("no_java")
@pytest.mark.parametrize(
    "overrides",
    [
        ["caption.tied=true", "caption.loss=symmetric", "caption.init_tokens=random", "optim.precision=bf16"],
        ["alignment.kind=none", "data.cache=none", "caption.encoder_layers=2", "caption.beam=1"],
    ],
)
def test_other_captioners_train(tiny_recipe, tmp_path, overrides):
    trained = train(tiny_recipe(*SMALL, "optim.epochs=1", *overrides), tmp_path)
    assert all(math.isfinite(value) for value in trained.validation[0].values())
    assert load_captioner(trained.run, "last", CPU).captioner.output is None or "caption.tied=true" not in overrides


COCAP = (
    "caption.system=cocap",
    "caption.decoder_layers=1",
    "data.compressed.gops=2",
    "data.compressed.pictures=3",
    "data.compressed.reencode=true",
)


@pytest.mark.usefixtures("no_java")
@pytest.mark.parametrize(
    "overrides",
    [
        [
            "backbone.freeze=true",
            "backbone.adapter=linear",
            "data.cache=none",
            "data.augment=crop-flip",
            "optim.epochs=1",
        ],
        ["backbone.freeze=true", "alignment.kind=none", "data.compressed.vectors=none"],
    ],
)
def test_cocap_trains_from_files_and_resumes_bit_for_bit(tiny_recipe, tmp_path, stop_at, killed, overrides):
    recipe = tiny_recipe(*SMALL, *COCAP, "optim.batch_size=30", *overrides)
    whole = train(recipe, tmp_path / "a")
    assert len(whole.results[0].captions) == 6 and not whole.left_out.get("train")
    with pytest.raises(killed):
        train(recipe, tmp_path / "b", watcher=stop_at(2))
    stopped = find_run("tiny-001", tmp_path / "b")
    resumed = train(stopped.recipe_to_resume(), tmp_path / "b", resume=stopped)
    ours, theirs = (load_tensors(each.run.weights("last"), what="test")[0] for each in (whole, resumed))
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []


@pytest.mark.usefixtures("no_java")
def test_cocap_without_reencoding_has_no_clip_and_says_the_command(tiny_recipe, tmp_path):
    recipe = tiny_recipe(*SMALL, *COCAP, "data.compressed.reencode=false")
    with pytest.raises(DatasetError, match="calmctl data reencode ROOT OUT"):
        train(recipe, tmp_path)


@pytest.mark.usefixtures("no_java")
def test_semsynan_trains_and_resumes_bit_for_bit(tiny_recipe, tmp_path, stop_at, killed, monkeypatch):
    english = ModuleType("textblob.en")  # the package is an extra
    english.tag = lambda text: [(word, "VBG" if word.endswith("ing") else "NN") for word in text.split()]
    package = ModuleType("textblob")
    package.__spec__ = ModuleSpec("textblob", None)  # by which it is looked for before any work
    monkeypatch.setitem(sys.modules, "textblob", package)
    monkeypatch.setitem(sys.modules, "textblob.en", english)
    keys = ("caption.system=semsynan", "caption.concepts=20", "optim.batch_size=30", "optim.save_every=2")
    recipe = tiny_recipe(*SMALL, *keys)
    whole = train(recipe, tmp_path / "a")
    about = json.loads(whole.run.about.read_text())
    test_words = {word for each in whole.results[0].references.values() for text in each for word in text.split()}
    assert len(about["concepts"]) == 20 and not set(about["concepts"]) <= test_words
    assert load_captioner(whole.run, "slim", CPU).anchors is None
    with pytest.raises(killed):
        train(recipe, tmp_path / "b", watcher=stop_at(3))
    stopped = find_run("tiny-001", tmp_path / "b")
    resumed = train(stopped.recipe_to_resume(), tmp_path / "b", resume=stopped)
    ours, theirs = (load_tensors(each.run.weights("last"), what="test")[0] for each in (whole, resumed))
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []


def test_a_plan_tells_cocap(tiny_recipe):
    summary = plan_training(tiny_recipe(*SMALL, *COCAP))["summary"]
    assert "CoCap, 2 groups of 3 pictures, quarter-pel vectors and residuals, 1 layers of 32" in summary["head"]


def test_a_plan_tells_the_captioner(tiny_recipe):
    summary = plan_training(tiny_recipe(*SMALL))["summary"]
    assert summary["data"] == "demo captioning"
    assert "captioner, 1 + 3 layers of 32" in summary["head"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["backbone.freeze=true"], "could change nothing here.*captions"),
        (["optim.lr_backbone=0"], "could change nothing here"),
        (["backbone.freeze=true", "backbone.adapter=linear", "optim.lr_head=0"], "could change nothing here"),
        (["caption.width=30", "caption.heads=4"], "caption.width: 30 must be a multiple of caption.heads: 4"),
        (["caption.smoothing=1"], "caption.smoothing"),
    ],
)
def test_recipes_that_cannot_work_are_refused(tiny_recipe, overrides, message):
    with pytest.raises(RecipeError, match=message):
        tiny_recipe("task=caption", *overrides)


def test_a_protocol_without_all_references_is_refused(tiny_recipe):
    with pytest.raises(DatasetError, match=r"data\.protocol=captioning"):
        prepare(tiny_recipe(*SMALL, "data.protocol=retrieval"))


def test_weights_that_saw_the_test_clips_are_refused(tmp_path):
    seen, unseen = tmp_path / "seen.safetensors", tmp_path / "unseen.safetensors"
    save_tensors(seen, {"x": torch.zeros(1)}, {"trained_on": ["demo", "msrvtt 9k"]})
    save_tensors(unseen, {"x": torch.zeros(1)}, {"trained_on": ["msrvtt 7k"]})
    assert weights_lineage(str(seen)) == ("demo", "msrvtt 9k")
    assert weights_lineage("openai") == weights_lineage(None) == ()
    with pytest.raises(CheckpointError, match=r"1,990 of the 2,990 test clips.*data\.protocol=7k"):
        require_unseen(weights_lineage(str(seen)), "msrvtt", "full", what="the weights")
    require_unseen(weights_lineage(str(unseen)), "msrvtt", "full", what="the weights")
    require_unseen(weights_lineage(str(seen)), "msvd", "", what="the weights")
