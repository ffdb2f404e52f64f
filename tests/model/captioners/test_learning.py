"""Captioners over frame features learn the drawn world: what held-out clips show, and not what others do."""

import random

import numpy as np
import pytest
import torch
from torch import Tensor

from calmctl.anchors.shipped import resolve_vocabulary
from calmctl.captions.generate import CaptionSearch, caption_features
from calmctl.data.demo_drawing import draw
from calmctl.data.demo_world import DemoCounts, plan
from calmctl.model.backbone import Backbone
from calmctl.model.build import build_caption_model
from calmctl.model.calm import Batch
from calmctl.model.captioner import training_vocabulary
from calmctl.model.captioners import semsynan
from calmctl.model.weights import load_backbone
from calmctl.recipe import recipe_from_dict

TRAIN, TEST = slice(0, 120), slice(120, 160)
SYSTEMS = {
    "semsynan": {"system": "semsynan", "width": 48, "concepts": 21},
    # CLIP4Caption's keys, small.
    "clip4caption": {
        "width": 48, "heads": 4, "ffn": 96, "encoder_layers": 2, "decoder_layers": 2, "input_norm": True,
        "output_transform": True, "tied": True,
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def drawn() -> tuple[Backbone, Tensor, list[str]]:
    """The CLIP that ships, features [160, 2, 128] of drawn clips that no codec has seen, and two words about each."""
    torch.manual_seed(0)
    backbone = load_backbone("demo-clip", "drawn-2")
    scenes = [clip.scene for clip in plan(7, DemoCounts(train=120, val=0, test=40, shifted=0))]
    frames = [draw(scene, random.Random(number), shifted=False)[::10] for number, scene in enumerate(scenes)]
    with torch.no_grad():
        features = backbone.encode_frames(torch.stack([backbone.preprocess(clip) for clip in frames]))
    return backbone, features, [f"{scene.colour} {scene.shape}" for scene in scenes]


@pytest.mark.parametrize("system", SYSTEMS)
def test_it_learns_the_drawn_world(system: str, drawn, monkeypatch: pytest.MonkeyPatch) -> None:
    def tag(captions):  # in place of a package that is an extra
        return [list(zip(caption.split(), ("ADJ", "NOUN"), strict=True)) for caption in captions]

    monkeypatch.setattr(semsynan, "tag_captions", tag)
    backbone, features, sentences = drawn
    keys = {**SYSTEMS[system], "max_tokens": 8, "smoothing": 0.0}
    values = {"name": "x", "task": "caption", "data": {"dataset": "demo", "frames": 2}, "caption": keys}
    values |= {"backbone": {"model": "demo-clip", "freeze": True}, "alignment": {"kind": "none"}}
    torch.manual_seed(0)
    tokens = training_vocabulary(backbone, sentences[TRAIN])
    recipe = recipe_from_dict(values)
    model = build_caption_model(recipe, resolve_vocabulary("shapes@1"), tokens, backbone).train()
    if isinstance(model, semsynan.SemSynModel):
        model.learn_from(sentences[TRAIN], range(120))
    words, owners = model.caption_tokens(sentences[TRAIN]), torch.arange(120)
    optimizer = torch.optim.Adam(model.captioner.parameters(), 1e-2)
    losses = []
    for _ in range(40):
        loss = model(Batch(torch.empty(0), features[TRAIN], owners, words)).total
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0], losses
    said = [caption.text.split() for caption in caption_features(model.eval(), features[TEST], CaptionSearch(beam=1))]
    shown = [sentence.split() for sentence in sentences[TEST]]
    right = sum(len(set(mine) & set(clip)) for mine, clip in zip(said, shown, strict=True))
    shuffled = sum(len(set(mine) & set(clip)) for mine, clip in zip(said, [*shown[1:], shown[0]], strict=True))
    assert right > 2 * shuffled and right > 30, (right, shuffled)
    assert np.isfinite(losses).all()
