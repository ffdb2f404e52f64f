"""Gradient caching: the same losses and gradients, with less in memory."""

from copy import deepcopy

import pytest
import torch
from torch import nn

from calmctl.errors import RecipeError
from calmctl.model.backbone import encode_in_chunks, split_preprocess

HEADS = ("meanp", "seqlstm", "seqtransf", "xpool", "t-mass", "t-mass-support", "emcl", "emcl-gaussian", "wti", "uatvr")
NAMES = [
    *(f"{head} {kind}" for head in HEADS for kind in ("none", "vae", "kl", "ce", "mse")),
    *("diffusionret wti", "diffusionret meanp"),
    *("mask", "both directions", "frames", "temperature", "adapter"),
    *("caption smoothed 3", "caption symmetric 3", "caption none", "caption both", "caption kl"),
]


@pytest.mark.parametrize("name", NAMES)
def test_the_step_is_the_same_in_chunks(name, alike):
    plain = alike.alone(name)
    chunked = alike.alone(name, "optim.chunk=4")
    assert plain.keys() == chunked.keys() and any("grad" in key for key in plain)
    for key, value in plain.items():
        torch.testing.assert_close(chunked[key], value, rtol=1e-10, atol=1e-12, msg=key)


def test_towers_see_few_rows_at_a_time_and_each_of_them_twice(alike):
    model = alike.build(["head.kind=xpool", "optim.chunk=4"])
    seen = []
    model.backbone.clip.visual.transformer.register_forward_pre_hook(lambda module, inputs: seen.append(len(inputs[0])))
    model(alike.batch_of(model, slice(None))).total.backward()
    assert seen == [8, 4, 4, 8]  # frames, two a pair; then again, the last chunk first


def test_the_second_pass_draws_what_the_first_one_drew():
    dropout, weight = nn.Dropout(0.5), torch.ones(1, requires_grad=True)
    rows = torch.rand(64, 3)
    features = encode_in_chunks(lambda part: dropout(part * weight), rows, 5)
    torch.rand(7)
    features.sum().backward()
    torch.testing.assert_close(weight.grad, features.sum()[None].detach())


def test_mixed_precision_is_replayed(alike):
    gradients = []
    for more in ([], ["optim.chunk=2"], ["optim.chunk=2", "backbone.checkpoint_activations=true"]):
        model = alike.build(["head.kind=xpool", *more]).float()
        model.normalise = split_preprocess(model.backbone)[1]
        with torch.autocast("cpu", dtype=torch.bfloat16):
            total = model(alike.batch_of(model, slice(None))).total
        total.backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    plain, *others = gradients
    for other in others:  # sums over chunks round differently in bfloat16, and only there
        assert torch.nn.functional.cosine_similarity(plain, other, dim=0) > 0.9995
        assert (other - plain).norm() < 0.03 * plain.norm()


def test_nothing_is_encoded_twice_without_a_gradient():
    calls = []

    def encode(part):
        calls.append(len(part))
        return part

    with torch.no_grad():
        encode_in_chunks(encode, torch.ones(6, 2), 2)
    assert calls == [6]


def test_batch_normalisation_is_refused(alike, monkeypatch):
    backbone = deepcopy(alike._backbone())
    backbone.clip.visual.norm = nn.BatchNorm2d(3)
    monkeypatch.setattr(alike, "_backbone", lambda: backbone)
    alike.build([])
    with pytest.raises(RecipeError, match=r"optim\.chunk encodes parts of a batch"):
        alike.build(["optim.chunk=2"])
