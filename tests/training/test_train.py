import json
import math

import numpy as np
import pytest
import torch

from calmctl.errors import CheckpointError, DatasetError, RunFailed, RunNotFound
from calmctl.evaluation.retrieval import score_split
from calmctl.runs.checkpoint import load_run
from calmctl.runs.run import Run, find_run
from calmctl.source.encoding import encode_split, frozen_texts, stream_frames
from calmctl.source.source import recipe_source
from calmctl.tensors import load_tensors
from calmctl.training import loop
from calmctl.training.prepare import prepare
from calmctl.training.train import plan_training, train
from calmctl.words import Watcher

CPU = torch.device("cpu")


def weights_of(run: Run, which: str = "last") -> dict[str, torch.Tensor]:
    return load_tensors(run.weights(which), what="test")[0]


def assert_same_weights(first: Run, second: Run) -> None:
    ours, theirs = weights_of(first), weights_of(second)
    assert ours.keys() == theirs.keys()
    different = [name for name in ours if not torch.equal(ours[name], theirs[name])]
    assert different == []


@pytest.fixture(scope="module")
def finished(request, tmp_path_factory):
    """One finished run with every part of CALM, T-MASS head."""
    from calmctl.recipe import recipe_from_dict

    root = request.getfixturevalue("tiny_world")
    make = request.getfixturevalue("tiny_recipe_values")
    recipe = recipe_from_dict(make(root), overrides=["head.kind=t-mass", "head.support_weight=0.8"])
    return train(recipe, tmp_path_factory.mktemp("runs"))


def test_a_run_leaves_everything_behind(finished):
    run = finished.run
    assert [r.labels.system for r in finished.results] == ["best on validation", "last epoch"]
    assert len(finished.validation) == 2
    about = json.loads(run.about.read_text())
    assert about["data"]["train"] == {"clips": 12, "captions": 60, "left_out": 0}
    assert len(about["validation_ids"]) == 6 and about["vocabulary"]["anchors"] == 5
    assert about["packages"]["torch"] and about["seed"] == 24
    lines = [json.loads(line) for line in run.log.read_text().splitlines()]
    first = lines[0]
    for name in [
        "loss",
        "rec",
        "kl",
        "task",
        "support",
        "entropy_s",
        "entropy_v",
        "peak_s",
        "kl_s_v",
        "rec_excess",
        "mean_predictor_excess",
        "active_units",
        "grad_backbone",
        "grad_head",
        "grad_alignment",
        "lr_head",
        "logit_scale",
    ]:
        assert math.isfinite(first[name]), name
    assert first["rec"] >= first["entropy_s"] - 1e-5
    assert first["loss"] == pytest.approx(
        first["task"] + 0.8 * first["support"] + first["rec"] + 0.1 * first["kl"], rel=1e-5
    )
    assert json.loads(run.results.read_text())["test"][0]["scorer"] == "leak-free"
    assert find_run(None, run.folder.parent).folder == run.folder
    with pytest.raises(RunFailed, match="calmctl eval"):
        run.recipe_to_resume()


def test_inference_needs_neither_anchors_nor_vae(finished):
    recipe = finished.run.recipe()
    split = recipe_source(recipe).split("test")
    slim_names = set(weights_of(finished.run, "slim"))
    assert not any(name.startswith(("anchors.", "vae.")) for name in slim_names)
    scores = []
    for which in ("best", "slim"):
        model = load_run(finished.run, which, CPU)
        assert (model.anchors is None) == (model.vae is None) == (which == "slim")
        encoded = encode_split(model, split, stream_frames(split, model, recipe.data))
        scores.append(score_split(model, encoded))
    np.testing.assert_array_equal(scores[0], scores[1])


def test_training_is_reproducible_and_resumes_bit_for_bit(tiny_recipe, tmp_path, stop_at, killed):
    recipe = tiny_recipe("head.kind=t-mass", "optim.save_every=2")
    whole = train(recipe, tmp_path / "a")
    for stop in (1, 3, 5):
        folder = tmp_path / f"stopped-{stop}"
        with pytest.raises(killed):
            train(recipe, folder, watcher=stop_at(stop))
        run = find_run("tiny-001", folder)
        resumed = train(run.recipe_to_resume(), folder, resume=run)
        assert_same_weights(whole.run, resumed.run)
        assert resumed.validation == whole.validation
        steps = [json.loads(line)["step"] for line in run.log.read_text().splitlines()]
        assert steps == [json.loads(line)["step"] for line in whole.run.log.read_text().splitlines()]


def test_frames_kept_on_disk_change_no_weight_filled_or_not(tiny_recipe, tmp_path, stop_at, killed):
    """A crop for each pair from kept frames: killed while it fills, gone on with what is there, one entry damaged."""
    keys = ("data.augment=crop-flip", "data.short_side=40", f"data.cache_folder={tmp_path / 'kept'}")
    decoded = train(tiny_recipe(*keys, "data.cache=none"), tmp_path / "a")
    recipe = tiny_recipe(*keys, "data.cache=disk", "optim.save_every=2")
    with pytest.raises(killed):
        train(recipe, tmp_path / "b", watcher=stop_at(3))
    kept = sorted((tmp_path / "kept").rglob("*.frames"))
    assert kept
    kept[0].write_bytes(kept[0].read_bytes()[:-1])

    class Heard(Watcher):
        def __init__(self):
            self.stages, self.warnings = [], []

        def stage(self, text):
            self.stages.append(text)

        def warn(self, text):
            self.warnings.append(text)

    run, heard = find_run("tiny-001", tmp_path / "b"), Heard()
    resumed = train(run.recipe_to_resume(), tmp_path / "b", resume=run, watcher=heard)
    assert_same_weights(decoded.run, resumed.run)
    assert resumed.validation == decoded.validation
    assert heard.stages[0].startswith("frames kept: 18 clips of 2 frames in ") and "to come" in heard.stages[0]
    assert heard.warnings == [f"{tmp_path / 'kept'}: the kept frames of 1 clip were damaged and decoded again"]
    counts = json.loads(run.results.read_text())["kept_frames"]
    assert counts["damaged"] == 1 and counts["unkept"] == 0 and counts["read"] > counts["absent"]
    assert len(list((tmp_path / "kept").rglob("*.frames"))) == 18
    plan = plan_training(recipe)["summary"]["frames kept"]
    assert plan == f"18 clips of 2 frames in {tmp_path / 'kept'}: all of them there"


def test_a_signal_saves_and_says_how_to_resume(tiny_recipe, tmp_path, stop_at):
    import os
    import signal

    class Signal(stop_at):
        def step(self, done, total, loss):
            if done == self.at:
                os.kill(os.getpid(), signal.SIGTERM)

    recipe = tiny_recipe()
    with pytest.raises(RunFailed, match=r"after step 2.*calmctl train --resume"):
        train(recipe, tmp_path / "b", watcher=Signal(2))
    run = find_run("tiny-001", tmp_path / "b")
    resumed = train(run.recipe_to_resume(), tmp_path / "b", resume=run)
    assert_same_weights(train(recipe, tmp_path / "a").run, resumed.run)


@pytest.mark.parametrize(
    "overrides",
    [
        ["alignment.kind=none", "head.kind=meanp", "data.captions_per_clip=one"],
        ["alignment.kind=kl", "anchors.temperature=clip"],
        ["alignment.kind=ce", "anchors.encode=refresh", "anchors.refresh_every=2"],
        ["alignment.kind=mse", "anchors.frame_mean=normalized", "alignment.detach_target=false"],
        ["anchors.temperature=learned", "alignment.samples=2", "alignment.layout=D2", "alignment.input=log"],
        ["optim.precision=bf16", "backbone.checkpoint_activations=true", "optim.mask_same_clip=true"],
        ["data.cache=none", "data.augment=crop-flip"],
        ["backbone.freeze=true", "backbone.adapter=linear"],
    ],
)
def test_every_kind_of_recipe_trains(tiny_recipe, tmp_path, overrides):
    recipe = tiny_recipe("optim.epochs=1", *overrides)
    trained = train(recipe, tmp_path)
    assert all(math.isfinite(value) for value in trained.validation[0].values())
    # And what it wrote scores again as it did.
    assert load_run(trained.run, "last", CPU).head.name == recipe.head.kind


def test_frozen_towers_do_not_move_but_the_adapter_does(tiny_recipe, tmp_path):
    recipe = tiny_recipe("optim.epochs=1", "backbone.freeze=true", "backbone.adapter=linear")
    plan_training(recipe)
    torch.manual_seed(recipe.seed)
    from calmctl.anchors.shipped import resolve_vocabulary
    from calmctl.model.build import build_model

    before = build_model(recipe, resolve_vocabulary("shapes@1")).state_dict()
    after = weights_of(train(recipe, tmp_path).run)
    for name, tensor in after.items():
        if name.startswith("backbone.clip.") and name != "backbone.clip.logit_scale":
            assert torch.equal(tensor, before[name]), name
    assert after["adapter.frames.weight"].abs().max() > 0


def test_a_loss_that_is_not_finite_stops_the_run_with_its_clips(tiny_recipe, tmp_path, monkeypatch):
    from calmctl.model import calm

    genuine = calm.task_loss
    calls = []

    def broken(*arguments, **keys):
        total, parts = genuine(*arguments, **keys)
        calls.append(1)
        return (total * float("nan") if len(calls) == 3 else total), parts

    monkeypatch.setattr(calm, "task_loss", broken)
    with pytest.raises(RunFailed) as failure:
        train(tiny_recipe("optim.save_every=1"), tmp_path)
    run = Run(tmp_path / "tiny-001")
    assert load_tensors(run.state, what="test")[1]["step"] == 2
    last = json.loads(run.log.read_text().splitlines()[-1])
    assert (last["step"], last["not_finite"]) == (3, "loss") and math.isnan(last["loss"])
    ids = {clip.id for clip in recipe_source(tiny_recipe()).split("train").clips}
    assert 8 < len(last["clips"]) <= len(ids) and set(last["clips"]) <= ids
    text = str(failure.value)
    named = f"clips {', '.join(last['clips'][:8])} and {len(last['clips']) - 8} more, all of them in log.jsonl"
    assert "the loss of step 3 is not finite" in text and named in text
    assert f"the last good checkpoint is {run.state}" in text


@pytest.mark.parametrize("fault", [DatasetError("no clip"), ValueError("a bug")])
def test_a_start_that_fails_leaves_no_folder(tiny_recipe, tmp_path, monkeypatch, fault):
    """And one that is interrupted does: it is gone on with."""

    def fails(*_):
        raise fault

    monkeypatch.setattr("calmctl.training.prepare.Prepared.batches", fails)
    with pytest.raises(type(fault)):
        train(tiny_recipe(), tmp_path)
    assert list(tmp_path.iterdir()) == []
    fault = KeyboardInterrupt()
    with pytest.raises(RunFailed, match="interrupted"):
        train(tiny_recipe(), tmp_path)
    assert [run.name for run in tmp_path.iterdir()] == ["tiny-001"]


def test_a_gradient_that_is_not_finite_changes_nothing(tiny_recipe, tmp_path, monkeypatch):
    from calmctl.model import calm

    genuine = calm.task_loss

    def broken(*arguments, **keys):
        total, parts = genuine(*arguments, **keys)
        total.register_hook(lambda gradient: gradient * float("inf"))
        return total, parts

    monkeypatch.setattr(calm, "task_loss", broken)
    with pytest.raises(RunFailed, match=r"the gradient of step 1 is not finite .*there is no checkpoint yet"):
        train(tiny_recipe(), tmp_path)


def test_broken_clips_are_listed_and_the_rest_trains(tiny_recipe, tiny_world, tmp_path):
    import shutil

    world = tmp_path / "world"
    shutil.copytree(tiny_world, world)
    source = recipe_source(tiny_recipe(f"data.root={world}"))
    broken = [source.split(name).clips[0] for name in ("train", "val", "test")]
    for clip in broken:
        clip.path.write_bytes(b"this was a video once")
    for cache in ("memory", "none"):
        recipe = tiny_recipe(f"data.root={world}", f"data.cache={cache}", "optim.epochs=1")
        trained = train(recipe, tmp_path / cache)
        assert {name: list(entries) for name, entries in trained.left_out.items() if entries} == {
            name: [clip.id] for name, clip in zip(("train", "val", "test"), broken, strict=True)
        }
        assert trained.results[0].left_out == 1 and trained.results[0].n_clips == 5


def test_words_of_frozen_towers_are_kept_as_long_as_their_sentence(tiny_recipe, tmp_path):
    """A cache changes no number, and does not pad every sentence to the longest of all."""
    keys = (
        "head.kind=wti",
        "head.layers=2",
        "backbone.freeze=true",
        "backbone.adapter=linear",
        "alignment.kind=none",
        "optim.epochs=1",
    )
    losses = []
    for cache in ("memory", "none"):
        run = train(tiny_recipe(*keys, f"data.cache={cache}"), tmp_path / cache).run
        lines = map(json.loads, (run.folder / "log.jsonl").read_text().splitlines())
        losses.append([line["loss"] for line in lines if "loss" in line])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5) and losses[0]

    prepared = prepare(tiny_recipe(*keys, "data.cache=memory"))
    captions = prepared.source.split("train").captions
    tokenize = frozen_texts(prepared.model, captions)
    shortest, longest = min(captions, key=len), max(captions, key=len)
    words = [tokenize([sentence])[0] for sentence in (shortest, longest)]
    assert len(words[0]) < len(words[1]) and all(each.any(-1).all() for each in words)
    both = tokenize([shortest, longest])
    assert torch.equal(both[0, : len(words[0])], words[0]) and not both[0, len(words[0]) :].any()


def test_missing_files_can_be_made_an_error(tiny_recipe, tiny_world, tmp_path):
    import shutil

    world = tmp_path / "world"
    shutil.copytree(tiny_world, world)
    recipe = tiny_recipe(f"data.root={world}")
    recipe_source(recipe).split("train").clips[3].path.unlink()
    assert train(tiny_recipe(f"data.root={world}", "optim.epochs=1"), tmp_path / "runs").left_out["train"]
    with pytest.raises(DatasetError, match="1 clip is missing"):
        train(tiny_recipe(f"data.root={world}", "data.require_complete=true"), tmp_path / "strict")


def test_two_processes_cannot_share_a_run(finished):
    with finished.run.locked(), pytest.raises(RunFailed, match="in use"), finished.run.locked():
        pass


def test_damaged_and_foreign_checkpoints_are_refused(finished, tmp_path):
    import shutil

    copy = Run(tmp_path / "copy")
    shutil.copytree(finished.run.folder, copy.folder)
    content = copy.weights("best").read_bytes()
    copy.weights("best").write_bytes(content[: len(content) // 2])
    with pytest.raises(CheckpointError, match="not a readable safetensors file"):
        load_run(copy, "best", CPU)
    recipe = json.loads(copy.recipe_file.read_text())
    recipe["head"]["kind"] = "meanp"
    copy.recipe_file.write_text(json.dumps(recipe))
    with pytest.raises(CheckpointError, match=r"was not trained with the recipe\.json beside it"):
        load_run(copy, "last", CPU)
    copy.weights("slim").unlink()
    with pytest.raises(CheckpointError, match="does not exist"):
        load_run(copy, "slim", CPU)


def test_without_a_run_the_way_to_one_is_told(tmp_path):
    with pytest.raises(RunNotFound, match="calmctl demo"):
        find_run(None, tmp_path)
    with pytest.raises(RunNotFound, match="nothing-here"):
        find_run("nothing-here", tmp_path)


def test_a_plan_trains_nothing(tiny_recipe, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    plan = plan_training(tiny_recipe())
    assert "(20, 2, 48, 48, 3)" in plan["summary"]["one batch"]
    assert plan["summary"]["steps"].startswith("3 an epoch, 6 in all")
    assert plan["caveats"] == []
    assert list(tmp_path.iterdir()) == []


def test_epoch_order_depends_on_seed_and_epoch_alone():
    from calmctl.source.batches import EpochOrder

    owners = (0, 0, 0, 1, 2, 2, 2, 2, 3, 3)
    order = EpochOrder(owners, 1)
    assert order.of(0) == EpochOrder(owners, 1).of(0) != order.of(1)
    assert sorted(order.of(0)) == list(range(10)) and len(order) == 10
    one = EpochOrder(owners, 1, "one")
    epochs = [one.of(epoch) for epoch in range(2000)]
    assert len(one) == 4 and all(sorted(owners[pair] for pair in pairs) == [0, 1, 2, 3] for pairs in epochs)
    assert one.of(7) == epochs[7]
    # Every caption of a clip is as likely as its others, and every clip to be first: five deviations of 2,000 draws.
    for pair, owner in enumerate(owners):
        p = 1 / owners.count(owner)
        assert abs(sum(pair in pairs for pairs in epochs) - 2000 * p) <= 5 * (2000 * p * (1 - p)) ** 0.5
    for clip in range(4):
        assert abs(sum(owners[pairs[0]] == clip for pairs in epochs) - 500) < 5 * 375**0.5


def test_interruption_handlers_are_put_back():
    import signal

    before = signal.getsignal(signal.SIGTERM)
    with loop._interruptions():
        assert signal.getsignal(signal.SIGTERM) is not before
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_new_run_that_cannot_be_held_leaves_no_folder(tiny_recipe, tmp_path, monkeypatch):
    def no_lock(folder, busy, on_wait=None):
        raise RunFailed("no locks here")

    monkeypatch.setattr("calmctl.runs.run.locked", no_lock)
    with pytest.raises(RunFailed, match="no locks here"):
        train(tiny_recipe(), tmp_path / "runs")
    assert not list((tmp_path / "runs").iterdir())
