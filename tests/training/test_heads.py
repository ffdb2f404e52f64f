"""Every head trains, is evaluated, taken up again and explained on the tiny world."""

import json

import numpy as np
import pytest
import torch

from calmctl.errors import BadInput, RecipeError
from calmctl.evaluation.retrieval import score_split
from calmctl.explain.calibration import calibrate
from calmctl.explain.collection import find_failures, open_collection
from calmctl.explain.explainer import explain_with_run
from calmctl.model.build import build_model
from calmctl.model.calm import Batch
from calmctl.recipe import recipe_from_dict
from calmctl.runs.checkpoint import load_run
from calmctl.source.encoding import encode_captions, encode_split, stream_frames
from calmctl.source.source import recipe_source
from calmctl.training.optim import build_optimizer, set_learning_rate
from calmctl.training.prepare import recipe_vocabulary
from calmctl.training.train import train

CPU = torch.device("cpu")
STEPS = 25
WIDE = "backbone.model=demo-clip"  # 16 channels do not learn 12 clips by heart in so few steps
HEADS = ("seqlstm", "seqtransf", "xpool", "t-mass", "emcl", "wti", "uatvr")


@pytest.fixture(scope="module")
def clips(tiny_world, tiny_recipe_values):
    """The training split of the tiny world, and its 12 clips' frames."""
    recipe = recipe_from_dict(tiny_recipe_values(tiny_world), overrides=[WIDE])
    split = recipe_source(recipe).split("train")
    return split, list(stream_frames(split, build_model(recipe, recipe_vocabulary(recipe)), recipe.data))


@pytest.mark.parametrize("kind", HEADS)
def test_a_head_learns_the_tiny_world(kind, tiny_recipe, clips):
    """Two sentences a clip; then the scorer finds the clips by them, by chance it would be 1 of 12."""
    split, frames = clips
    recipe = tiny_recipe(WIDE, f"head.kind={kind}", "head.layers=2", "alignment.kind=none", "optim.mask_same_clip=true")
    torch.manual_seed(0)
    model = build_model(recipe, recipe_vocabulary(recipe)).train()
    optimizer = build_optimizer(model, recipe.optim)
    assert {"head", "backbone"} == {group["name"] for group in optimizer.param_groups}
    set_learning_rate(optimizer, 0.5)
    told = [pair for pair in range(60) if pair % 5 < 2]
    owners = torch.tensor(split.owners)[told]
    tokens = model.backbone.tokenize([split.captions[pair] for pair in told])
    batch = Batch(tokens, torch.from_numpy(np.stack(frames))[owners], owners)
    losses = []
    for _ in range(STEPS):
        loss = model(batch).total
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0], losses

    model.eval()
    encoded = encode_split(model, split, frames)
    scores = score_split(model, encoded)
    assert (scores.argmax(1) == encoded.owners)[told].mean() > 0.5
    few = model.head.score(encoded.texts[3:5], model.head.video_table(encoded.frames[2:9]))
    np.testing.assert_allclose(few.numpy(), scores[3:5, 2:9], atol=2e-6)
    assert model.sentences(encoded.texts).shape == (60, 128)


@pytest.mark.parametrize(
    ("kind", "more"),
    [("wti", ("backbone.freeze=true", "backbone.adapter=linear")), ("emcl", ("anchors.video=frames",))],
)
def test_a_run_from_training_to_explanation(kind, more, tiny_recipe, tmp_path):
    recipe = tiny_recipe(WIDE, f"head.kind={kind}", "head.layers=1", "optim.epochs=1", "optim.batch_size=60", *more)
    run = train(recipe, tmp_path).run
    assert json.loads(run.results.read_text())["test"][0]["scorer"] == "leak-free"
    explainer = explain_with_run(run, CPU)
    collection = open_collection(explainer, "test")
    assert calibrate(explainer, collection).clips == 6
    assert all(np.isfinite(each.rest) for each in find_failures(explainer, collection, 2).worst)
    encoded = collection.encoded
    with torch.no_grad():
        log_s, log_v = explainer.model.distributions(encoded.texts, encoded.frames)
    torch.testing.assert_close(explainer.log_s(encoded.texts), log_s)
    torch.testing.assert_close(explainer.log_v(encoded.frames), log_v)
    if kind == "emcl":
        assert load_run(run, "slim", CPU).head.operator.abs().max() > 0


def test_words_do_not_depend_on_what_is_encoded_beside_them(tiny_recipe, monkeypatch):
    from calmctl.source import encoding

    recipe = tiny_recipe(WIDE, "head.kind=wti", "head.layers=1", "backbone.adapter=linear")
    model = build_model(recipe, recipe_vocabulary(recipe)).eval()
    torch.nn.init.normal_(model.adapter.texts.bias)
    captions = ("a red circle", "a blue square moves to the right over a large green triangle", "one")
    whole = encode_captions(model, captions)
    assert whole.shape == (3, 1 + 14, 128)
    assert (whole[0, 1 + 5 :] == 0).all() and (whole[0, : 1 + 5] != 0).any(-1).all()
    torch.testing.assert_close(whole[:, 0], whole[torch.arange(3), torch.tensor([5, 14, 3])])  # the end token
    monkeypatch.setattr(encoding, "TEXTS_PER_BATCH", 1)
    torch.testing.assert_close(encode_captions(model, captions), whole, rtol=1e-4, atol=1e-5)
    sentences = build_model(tiny_recipe(WIDE, "backbone.adapter=linear"), recipe_vocabulary(recipe)).eval()
    sentences.load_state_dict({k: v for k, v in model.state_dict().items() if not k.startswith("head.")}, strict=False)
    torch.testing.assert_close(model.sentences(whole), encode_captions(sentences, captions), rtol=1e-4, atol=1e-5)


def test_words_of_a_feature_store_are_refused(tiny_recipe):
    with pytest.raises(RecipeError, match=r"head\.kind: wti reads words.*data\.features=null backbone\.freeze=true"):
        tiny_recipe("head.kind=wti", "data.features=store", "backbone.adapter=linear", "data.cache=none")
    recipe = tiny_recipe("head.kind=wti", "head.layers=1")
    model = build_model(recipe, recipe_vocabulary(recipe))
    with pytest.raises(BadInput, match="a feature store holds sentences only"):
        model.encode_texts(torch.randn(3, 128))
