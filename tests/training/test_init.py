"""A training that starts from a run: its towers, adapter and head are the start, and what it saw is remembered."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from calmctl.cli.main import app
from calmctl.errors import BadInput, RecipeError, RunNotFound
from calmctl.recipe import load_recipe
from calmctl.runs.checkpoint import load_captioner, load_run
from calmctl.runs.identity import recipe_digest, run_identity
from calmctl.runs.publish import push_run
from calmctl.runs.run import Run, export_metadata, find_run
from calmctl.training.prepare import prepare

GOLDEN = Path(__file__).parents[1] / "golden"
CPU = torch.device("cpu")
TOLD = (
    "task=caption",
    "caption.width=16",
    "caption.heads=2",
    "caption.ffn=32",
    "caption.decoder_layers=1",
    "caption.vocabulary=train",
)
FROZEN = (
    "data.features=features/demo",
    "backbone.freeze=true",
    "backbone.adapter=linear",
    "anchors.encode=frozen",
    "head.kind=t-mass",
    "head.trials=2",
)


@pytest.fixture
def place(tmp_path: Path, tiny_world: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The committed runs, their store and their recipe, and the world beside them."""
    for name in ("runs", "features"):
        shutil.copytree(GOLDEN / name, tmp_path / name)
    for name in ("tiny-clip.json", "tiny.yaml"):
        shutil.copy(GOLDEN / name, tmp_path)
    (tmp_path / "world").symlink_to(tiny_world)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def recipe(*overrides: str):
    return load_recipe(Path("tiny.yaml"), ["data.root=world", "backbone.weights=null", *overrides])


@pytest.mark.parametrize(
    ("name", "keys", "load"),
    [("tiny-001", (), load_run), ("frozen-001", FROZEN, load_run), ("told-001", TOLD, load_captioner)],
)
def test_the_start_is_the_run_s(place, name, keys, load):
    theirs = load(find_run(name, Path("runs")), "best", CPU).state_dict()
    model = prepare(recipe(f"init_from=runs/{name}", *keys)).model
    ours = model.state_dict()
    taken = [tensor for tensor in theirs if tensor.startswith(("backbone.", "adapter.", "head.", "captioner."))]
    assert taken and all(torch.equal(ours[tensor], theirs[tensor]) for tensor in taken)
    trained = {tensor for tensor, value in model.named_parameters() if value.requires_grad}
    assert any(tensor.startswith("backbone.clip.visual") for tensor in trained) != ("backbone.freeze=true" in keys)
    fresh = [tensor for tensor in theirs if tensor.startswith("vae.") and theirs[tensor].dim() > 1]
    assert fresh and not any(torch.equal(ours[tensor], theirs[tensor]) for tensor in fresh), "the VAE begins anew"


def test_a_run_of_a_hub_is_a_start(place, hub):
    first = find_run("tiny-001", Path("runs"))
    push_run(first, "me/my-model")
    started = recipe("init_from=hf://me/my-model")
    model, theirs = prepare(started).model, load_run(first, "best", CPU)
    assert all(torch.equal(value, model.head.state_dict()[name]) for name, value in theirs.head.state_dict().items())
    assert export_metadata(started, first.anchors())["recipe"]["init_from"] == "hf://me/my-model"


def test_a_frozen_run_s_towers_can_train(place):
    keys = [key for key in FROZEN if "features" not in key and "freeze" not in key and "encode" not in key]
    model = prepare(recipe("init_from=runs/frozen-001", *keys)).model
    assert all(value.requires_grad for name, value in model.named_parameters() if name.startswith("backbone.clip"))


def test_a_training_from_a_run_tells_so(place, monkeypatch):
    arguments = ["train", "tiny.yaml", "name=next", "data.root=world", "--init", "tiny-001", "optim.epochs=1"]
    result = CliRunner().invoke(app, [*arguments, "optim.lr_head=0", "optim.lr_backbone=0", "alignment.kind=none"])
    assert result.exit_code == 0, (result.output, result.exception)
    run, first = Run(Path("runs/next-001")), Run(Path("runs/tiny-001"))
    assert run.recipe().init_from == "runs/tiny-001"
    identity, theirs = run_identity(run), run_identity(first)
    assert identity is not None and theirs is not None
    assert identity.ancestors[-1].ids == theirs.train.ids and len(identity.start_file) == 64
    # Nothing was learned, so its numbers are those that the first had.
    scores = [json.loads((each.results).read_text())["test"][0]["metrics"] for each in (run, first)]
    assert scores[0] == scores[1]
    names = [path.name for path in run.evals.glob("[!.]*")]
    assert names == ["demo-retrieval-test-best.json"], "a training keeps each query's rank"
    exported = export_metadata(run.recipe(), run.anchors())["recipe"]
    assert exported["init_from"] == "tiny-001", "no path of the machine"


def test_a_start_is_part_of_what_a_run_is(place):
    plain = recipe().model_dump(mode="json")
    before = {key: value for key, value in plain.items() if key != "init_from"}  # a recipe.json of before
    assert recipe_digest(plain) == recipe_digest(before)
    begun = recipe_digest({**plain, "init_from": "runs/a"})
    assert begun == recipe_digest({**plain, "init_from": "elsewhere/b"}) != recipe_digest(plain)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("init_from=runs/told-001",), "trained for caption, not for retrieval; .*backbone.weights="),
        (("init_from=runs/frozen-001",), "trained with head.kind=t-mass backbone.adapter=linear; set that"),
        (("init_from=runs/tiny-001", "head.kind=meanp"), "head.kind=xpool"),
        (("init_from=runs/tiny-001", "backbone.model=demo-clip"), "backbone.model=tiny-clip.json"),
        (("init_from=runs/told-001", *TOLD, "caption.width=32"), "weights missing or of another shape"),
    ],
)
def test_what_does_not_fit_is_a_sentence(place, overrides, message):
    with pytest.raises(BadInput, match=message):
        prepare(recipe(*overrides))


def test_mistakes_are_sentences(place):
    with pytest.raises(RunNotFound, match="no run at nowhere"):
        prepare(recipe("init_from=nowhere"))
    second = ("head.kind=diffusionret", "alignment.kind=none", "head.from_run=a", "init_from=b")
    with pytest.raises(RecipeError, match="init_from: b would not be used"):
        recipe(*second)
    both = CliRunner().invoke(app, ["train", "--resume", "tiny-001", "--init", "tiny-001"])
    assert isinstance(both.exception, BadInput) and "one of the two" in str(both.exception)
