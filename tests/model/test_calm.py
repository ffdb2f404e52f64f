"""CALM composed, on a tiny backbone: losses against a float64 transcription, and where gradients go."""

import numpy as np
import pytest
import torch

from calmctl.anchors.shipped import resolve_vocabulary
from calmctl.model.aligned import Batch
from calmctl.model.build import build_model
from calmctl.model.calm import CalmModel
from calmctl.recipe import recipe_from_dict


def make(*overrides: str) -> CalmModel:
    torch.manual_seed(0)
    values = {
        "name": "x",
        "data": {"dataset": "demo", "frames": 3},
        "backbone": {"model": "demo-clip", "weights": None},
        "anchors": {"vocabulary": "shapes@1"},
        "head": {"kind": "meanp"},
    }
    return build_model(recipe_from_dict(values, overrides=overrides), resolve_vocabulary("shapes@1"))


def batch(size: int = 4) -> Batch:
    generator = torch.Generator().manual_seed(1)
    return Batch(
        torch.randn(size, 128, generator=generator),
        torch.randn(size, 3, 128, generator=generator),
        torch.arange(size),
    )


def transcription(model: CalmModel, data: Batch) -> dict[str, float]:
    """Section 11.1 of the methods, steps 3 to 7, in numpy float64, with z = mu."""

    def unit(x):
        return x / np.linalg.norm(x, axis=-1, keepdims=True)

    def softmax(x):
        e = np.exp(x - x.max(-1, keepdims=True))
        return e / e.sum(-1, keepdims=True)

    with torch.no_grad():
        anchors = model.anchor_features().double().numpy()
    w = {name: tensor.double().numpy() for name, tensor in model.vae.state_dict().items()}
    v = softmax(100 * unit(data.frames.double().numpy().mean(1)) @ unit(anchors).T)
    s = softmax(100 * unit(data.texts.double().numpy()) @ unit(anchors).T)
    h = np.maximum(v @ w["trunk.0.weight"].T + w["trunk.0.bias"], 0)
    mu, lv = (h @ w[f"{x}.0.weight"].T + w[f"{x}.0.bias"] for x in ("mean", "logvar"))
    hidden = np.maximum(mu @ w["decoder.0.weight"].T + w["decoder.0.bias"], 0)
    s_hat = softmax(hidden @ w["decoder.3.weight"].T + w["decoder.3.bias"])
    return {
        "rec": float(-(s * np.log(s_hat)).sum(1).mean()),
        "kl": float(0.5 * (mu**2 + np.exp(lv) - lv - 1).sum(1).mean()),
        "entropy_s": float(-(s * np.log(s)).sum(1).mean()),
        "kl_s_v": float((s * np.log(s / v)).sum(1).mean()),
    }


def test_losses_against_a_transcription(monkeypatch):
    model = make().eval()
    monkeypatch.setattr(torch, "randn_like", torch.zeros_like)  # z = mu
    losses = model(batch())
    ours = {name: value.item() for name, value in (losses.parts | losses.diagnostics).items()}
    for name, expected in transcription(model, batch()).items():
        assert ours[name] == pytest.approx(expected, rel=2e-4), name
    assert ours["loss"] == pytest.approx(ours["task"] + ours["rec"] + 0.1 * ours["kl"], rel=1e-6)


def test_weights_of_the_parts():
    model = make("alignment.weight=0.5", "alignment.kl_weight=0.2")
    torch.manual_seed(3)
    losses = model(batch())
    parts = {name: value.item() for name, value in losses.parts.items()}
    assert parts["loss"] == pytest.approx(parts["task"] + 0.5 * (parts["rec"] + 0.2 * parts["kl"]), rel=1e-6)


@pytest.mark.parametrize("detached", [True, False])
def test_no_gradient_reaches_the_sentence_through_a_detached_target(detached):
    model = make(f"alignment.detach_target={str(detached).lower()}")
    data = batch()
    data.texts.requires_grad_()
    log_s, _ = model.distributions(data.texts, data.frames)
    model.backbone.requires_grad_(False)
    losses = model(Batch(data.texts, data.frames, data.clips))
    task_only = torch.autograd.grad(losses.parts["task"], data.texts, retain_graph=True)[0]
    whole = torch.autograd.grad(losses.total, data.texts)[0]
    assert torch.allclose(whole, task_only, atol=1e-7) == detached
    assert log_s.requires_grad


def test_alignment_reaches_anchors_vae_and_video_but_not_without_calm():
    losses = (model := make())(batch())
    losses.total.backward()
    for name in ("anchors.position", "vae.trunk.0.weight", "backbone.clip.text_projection"):
        assert dict(model.named_parameters())[name].grad.abs().max() > 0, name
    plain = make("alignment.kind=none")
    assert plain.anchors is None and plain.vae is None
    assert set(plain(batch()).parts) == {"task", "loss"}


def test_video_side_uses_the_mean_frame_not_the_text_conditioned_video():
    model = make("head.kind=xpool").eval()
    data = batch()
    other = Batch(torch.roll(data.texts, 1, 0), data.frames, data.clips)
    _, ours = model.distributions(data.texts, data.frames)
    _, theirs = model.distributions(other.texts, other.frames)
    assert torch.equal(ours, theirs)


def test_two_temperatures():
    model = make("anchors.temperature=10", "anchors.video_temperature=1").eval()
    log_s, log_v = model.distributions(batch().texts, batch().frames)
    assert log_s.exp().max() > log_v.exp().max()


def test_pixels_are_normalised_as_the_backbones_own_transform_does():
    model = make().eval()
    frames = np.random.default_rng(0).integers(0, 256, (2, 3, 48, 48, 3), dtype=np.uint8)
    with torch.no_grad():
        ours = model.encode_frames(torch.from_numpy(frames))
        pixels = torch.stack([model.backbone.preprocess(clip) for clip in frames])
        torch.testing.assert_close(ours, model.backbone.encode_frames(pixels))


def test_adapter_starts_as_the_identity():
    plain, adapted = make(), make("backbone.adapter=linear")
    data = batch()
    torch.testing.assert_close(plain.encode_frames(data.frames), adapted.encode_frames(data.frames))
    torch.testing.assert_close(plain.encode_texts(data.texts), adapted.encode_texts(data.texts))
