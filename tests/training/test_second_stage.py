"""A second stage on the tiny world: trained around a finished run, evaluated, searched with, and refused."""

import json
import math
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from calmctl.cli.main import app
from calmctl.data.registry import load_dataset
from calmctl.errors import BadInput, RecipeError, RunFailed, RunNotFound
from calmctl.evaluation.retrieval import Retrieval, score_split
from calmctl.evaluation.runs import evaluate_run
from calmctl.model.weights import load_backbone
from calmctl.recipe import recipe_from_dict
from calmctl.runs.checkpoint import load_run
from calmctl.runs.identity import weights_identity
from calmctl.runs.run import find_run
from calmctl.source.base import SourceSpec
from calmctl.store.extract import extract
from calmctl.training.prepare import prepare
from calmctl.training.train import train

CPU = torch.device("cpu")
SECOND = ("name=second", "head.kind=diffusionret", "alignment.kind=none", "head.diffusion_steps=8", "head.candidates=4")


@pytest.fixture(scope="module")
def stages(tiny_world, tiny_recipe_values, tmp_path_factory):
    """DiffusionRet from videos, both stages; and a second stage of X-Pool with an adapter on a store, with CALM."""
    root = tmp_path_factory.mktemp("stages")
    short = ("optim.epochs=1", "optim.batch_size=30")
    wti = ("head.layers=1", "head.hidden=2", *short)

    def run(*overrides):
        return train(recipe_from_dict(tiny_recipe_values(tiny_world), overrides=overrides), root).run

    first = run("name=first", "head.kind=wti", "alignment.kind=none", *wti)
    second = run(*SECOND, f"head.from_run={first.folder}", *wti)
    towers = first.weights("slim")
    backbone = load_backbone(first.recipe().backbone.model, str(towers))
    extract(load_dataset("demo", tiny_world), backbone, root / "store", n_frames=2)
    stored = (f"data.features={root / 'store'}", "data.cache=none", "backbone.adapter=linear", *short)
    frozen = run("name=frozen", f"backbone.weights={towers}", *stored)
    on_store = ("head.base=xpool", "head.base_alignment=vae", *stored)
    reranked = run(*SECOND, f"head.from_run={frozen.folder}", *on_store)
    return SimpleNamespace(first=first, second=second, frozen=frozen, reranked=reranked, wti=wti, on_store=on_store)


def calmctl(*arguments):
    result = CliRunner().invoke(app, [str(each) for each in arguments])
    assert result.exit_code == 0, (result.output, result.exception)
    return result


def test_nothing_of_the_first_stage_changes(stages):
    for first, second in ((stages.first, stages.second), (stages.frozen, stages.reranked)):
        before, after = (load_run(run, "best", CPU) for run in (first, second))
        ours = after.state_dict()
        for name, tensor in before.state_dict().items():
            if name.startswith(("anchors.", "vae.")):
                continue
            assert torch.equal(tensor, ours[f"head.base.{name[5:]}" if name.startswith("head.") else name]), name
        log = [json.loads(line) for line in second.log.read_text().splitlines()]
        assert all(math.isfinite(line["gen_t2v"] + line["gen_v2t"]) for line in log if "loss" in line)
        assert "lr_head" in log[0] and "lr_backbone" not in log[0]
    prepared = prepare(stages.second.recipe())
    trained = {name for name, parameter in prepared.model.named_parameters() if parameter.requires_grad}
    assert trained and all(name.startswith(("head.t2v.", "head.v2t.")) for name in trained)


@pytest.mark.parametrize("kind", ["second", "reranked"])
@pytest.mark.parametrize("which", ["best", "slim"])
def test_a_second_stage_is_evaluated_by_itself_and_says_both_numbers(stages, kind, which, tmp_path):
    """Without its first stage; the base's numbers are those of the first stage's own evaluation."""
    run = find_run(str(shutil.copytree(getattr(stages, kind).folder, tmp_path / "alone")), tmp_path)
    first = {"second": stages.first, "reranked": stages.frozen}[kind]
    test = SourceSpec.of(run.recipe().data)
    (found,) = evaluate_run(run, [test], Retrieval(), which=which, device=CPU)
    (alone,) = evaluate_run(first, [test], Retrieval(), device=CPU)
    assert found.result.labels.scorer == "re-ranked (list-wise over 4)" and found.base.labels.scorer == "leak-free"
    assert found.base.metrics == alone.result.metrics
    assert found.result.paper_method == {"second": "DiffusionRet", "reranked": ""}[kind] and not found.base.paper_method
    assert any("other query" in each and "re-ranked" in each for each in found.result.caveats)
    scores = alone.scores
    term = found.scores - scores
    for row, added in zip(scores, term, strict=True):
        best = np.argsort(-row, kind="stable")[:4]
        least, most = 1 / (1 + 3 * math.e**2), math.e**2 / (math.e**2 + 3)
        assert (added[best] > least - 1e-6).all() and (added[best] < most + 1e-6).all()
        assert added[np.setdiff1d(np.arange(len(row)), best)].tolist() == [0.0] * (len(row) - 4)
    (plain,) = evaluate_run(run, [test], Retrieval("leak-free"), which=which, device=CPU)
    assert plain.base is None and plain.result.metrics == alone.result.metrics
    np.testing.assert_array_equal(plain.scores, score_split(load_run(run, which, CPU), plain.encoded))
    with pytest.raises(BadInput, match=r"head\.kind=diffusionret; this run's head is"):
        evaluate_run(first, [test], Retrieval("re-ranked"), device=CPU)


def test_an_export_of_it_is_a_run_by_itself(stages, tmp_path):
    """Without the name of a folder of this machine, and with the same starts of the walk."""
    alone = find_run(str(shutil.copy(stages.second.weights("slim"), tmp_path / "slim.safetensors")), tmp_path)
    assert alone.recipe().head.from_run == "first-001" and alone.recipe().head.base == "wti"
    ours, theirs = load_run(alone, "best", CPU), load_run(stages.second, "best", CPU)
    assert torch.equal(ours.head.starts, theirs.head.starts)
    assert all(torch.equal(each, theirs.state_dict()[name]) for name, each in ours.state_dict().items())


def test_an_interrupted_one_ends_as_the_unbroken_one(stages, killed, stop_at, tmp_path):
    recipe = stages.second.recipe()
    recipe = recipe.model_copy(update={"optim": recipe.optim.model_copy(update={"save_every": 1})})
    with pytest.raises(killed):
        train(recipe, tmp_path, watcher=stop_at(1))
    begun = find_run("second-001", tmp_path)
    resumed = train(recipe, tmp_path, resume=begun).run
    ours, theirs = (load_run(run, "last", CPU).state_dict() for run in (resumed, stages.second))
    assert all(torch.equal(each, theirs[name]) for name, each in ours.items())


def test_validation_goes_by_the_reranked_scores_and_logs_the_bases(stages):
    (line,) = json.loads(stages.second.results.read_text())["validation"]
    assert line["score"] == line["t2v_r1"] - 1e-6 * line["t2v_mnr"] and 0 <= line["base_t2v_r1"] <= 100
    tests = json.loads(stages.second.results.read_text())["test"]
    assert [each["scorer"] for each in tests] == ["re-ranked (list-wise over 4)", "leak-free"] * 2


def test_what_was_trained_on_is_known_through_the_first_stage(stages):
    identity = weights_identity(stages.second.weights("slim"))
    (first,) = identity.ancestors
    assert first.dataset == "demo" and identity.start_file and not identity.unknown
    other = weights_identity(stages.reranked.weights("slim"))
    assert len(other.ancestors) == 2  # of its first stage, and of the towers that this one started from


def test_eval_and_search_show_both(stages, tiny_world, tmp_path):
    result = calmctl("eval", stages.second.folder, "--against", stages.first.folder)
    for line in ("!! scorer: re-ranked (list-wise over 4)", "re-ranked", "minus"):
        assert line in result.output
    shown = json.loads(calmctl("eval", stages.second.folder, "--json").stdout)
    assert [each["scorer"] for each in shown["results"]] == ["re-ranked (list-wise over 4)", "leak-free"]
    kept = sorted(path.name for path in stages.second.evals.glob("[!.]*"))
    assert kept == ["demo-retrieval-test-best-re-ranked.json"]
    assert json.loads((stages.second.evals / kept[0]).read_text())["base"]["scorer"] == "leak-free"

    (tmp_path / "clips").mkdir()
    for number, clip in enumerate(sorted((tiny_world / "clips").glob("test*.mp4"))):
        shutil.copy(clip, tmp_path / "clips" / f"{number}.mp4")
    keys = ("--in", tmp_path / "clips", "--cache", tmp_path / "cache", "--json", "--top", 6)
    answers = {}
    for run in (stages.first, stages.second):
        found = json.loads(calmctl("search", "a red circle", "--run", run.folder, *keys).stdout)
        answers[run], method = found["answers"][0]["hits"], found["method"]
    assert "its best 4 re-ranked (list-wise)" in method
    base, new = ({hit["clip"]: hit for hit in answers[run]} for run in (stages.first, stages.second))
    assert base.keys() == new.keys() and all("base_score" not in hit for hit in base.values())
    assert {key: hit["score"] for key, hit in base.items()} == pytest.approx(
        {key: hit["base_score"] for key, hit in new.items()}
    )
    ranked = [hit["clip"] for hit in answers[stages.first]]
    assert {hit["clip"] for hit in answers[stages.second][:4]} == set(ranked[:4])
    assert [hit["clip"] for hit in answers[stages.second][4:]] == ranked[4:]
    added = [hit["score"] - hit["base_score"] for hit in answers[stages.second]]
    assert sum(added) == pytest.approx(1) and added[4:] == [0, 0]
    text = calmctl("search", "a red circle", "--run", stages.second.folder, *keys[:4], "--top", 2).output
    assert text.count("before re-ranking") == 2
    (tmp_path / "lines.txt").write_text("a red circle\na blue square\n")
    clip = tmp_path / "clips" / "0.mp4"
    lines = json.loads(
        calmctl("search", "captions", tmp_path / "lines.txt", clip, "--run", stages.second.folder, "--json").stdout
    )
    assert sum(each["score"] - each["base_score"] for each in lines["sentences"]) == pytest.approx(1)


def test_another_first_stage_than_the_recipe_says_is_refused(stages, tiny_recipe, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def second(*overrides, of=stages.first):
        return prepare(tiny_recipe(*SECOND, f"head.from_run={of.folder}", *overrides))

    with pytest.raises(BadInput, match=r"first-001 was trained with head\.layers=1 head\.hidden=2; set that"):
        second()
    with pytest.raises(BadInput, match=r"was trained with data\.frames=2; set"):
        second(*stages.wti, "data.frames=3")
    with pytest.raises(BadInput, match=r"was trained with backbone\.model=tiny-clip\.json; set"):
        second(*stages.wti, "backbone.model=ViT-B-32-quickgelu")
    with pytest.raises(BadInput, match=r"head\.base=xpool head\.base_alignment=vae backbone\.adapter=linear"):
        second(of=stages.frozen)
    with pytest.raises(BadInput, match=r"is a second stage itself; name the first: .*first-001"):
        second(of=stages.second)
    with pytest.raises(RunNotFound, match="no run at nowhere or runs/nowhere"):
        prepare(tiny_recipe(*SECOND, "head.from_run=nowhere"))
    copy = find_run(str(shutil.copytree(stages.first.folder, tmp_path / "begun")), tmp_path)
    copy.results.unlink()
    with pytest.raises(RunFailed, match=r"begun is not finished.*calmctl train --resume"):
        second(*stages.wti, of=copy)


def test_recipes_that_mean_nothing_are_refused(tiny_recipe):
    with pytest.raises(RecipeError, match=r"diffusionret is the second stage of a finished run"):
        tiny_recipe("head.kind=diffusionret", "alignment.kind=none")
    with pytest.raises(RecipeError, match=r"alignment\.kind: vae could change nothing here: diffusionret trains its"):
        tiny_recipe("head.kind=diffusionret", "head.from_run=first", "backbone.adapter=linear")
    with pytest.raises(RecipeError, match=r"head\.from_run: first would not be used"):
        tiny_recipe("head.from_run=first", "alignment.kind=none")
    with pytest.raises(RecipeError, match=r"head\.base: wti reads words, and a feature store"):
        tiny_recipe(*SECOND, "head.from_run=first", "data.features=store", "data.cache=none")
    assert tiny_recipe(*SECOND, "head.from_run=first").frozen


def test_it_says_which_stage_it_starts_from(stages, tmp_path, monkeypatch):
    monkeypatch.chdir(Path(__file__).parents[2])
    recipe = tmp_path / "second.yaml"
    recipe.write_text(json.dumps(stages.second.recipe().model_dump(mode="json")))
    found = json.loads(calmctl("train", recipe, "--dry-run", "--json").stdout)
    assert "first-001" in json.dumps(found) and "random weights" not in json.dumps(found)
