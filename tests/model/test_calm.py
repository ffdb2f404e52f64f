"""CALM composed, on a tiny backbone: losses against a float64 transcription, and where gradients go."""

import json

import numpy as np
import pytest
import torch

from calmctl.anchors.shipped import resolve_vocabulary
from calmctl.errors import BadInput
from calmctl.model.build import build_model
from calmctl.model.calm import Batch, CalmModel
from calmctl.model.openclip import open_clip
from calmctl.recipe import recipe_from_dict
from calmctl.training.prepare import recipe_vocabulary


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


def test_a_temperature_is_fitted_to_the_training_captions():
    captions = [f"a {colour} {shape}" for colour in ("red", "green", "blue") for shape in ("circle", "star", "box")]
    model = make("anchors.temperature=auto", "anchors.entropy=1.5")
    before = torch.get_rng_state()
    model.choose_temperature(captions)
    assert model.training and torch.equal(before, torch.get_rng_state())  # the start of a training hangs on its seed
    model.eval()
    with torch.no_grad():
        texts = model.encode_texts(model.backbone.tokenize(captions))
        anchors = model.anchor_features()
    cosines = torch.nn.functional.normalize(texts, dim=1) @ torch.nn.functional.normalize(anchors, dim=1).T
    share = (model.temperature() * cosines).softmax(1).double()
    assert float(-(share * share.log()).sum(1).mean()) == pytest.approx(1.5, abs=1e-4)
    assert "auto_temperature" in model.state_dict() and "auto_temperature" not in make().state_dict()
    assert make("anchors.temperature=auto", "alignment.kind=none").temperature() == 100.0  # it has no anchors
    impossible = make("anchors.temperature=auto", "anchors.entropy=4")
    with pytest.raises(BadInput, match=r"no tau gives S_p a mean entropy of 4 nats .* to 3\.87 nats"):
        impossible.choose_temperature(captions)


def test_free_bits_and_a_warm_up_of_alpha_change_the_sum_and_not_what_is_told():
    torch.manual_seed(3)
    plain = make("alignment.free_bits=0")(batch())
    torch.manual_seed(3)
    model = make("alignment.free_bits=0.5")
    model.kl_factor = 0.25
    losses = model(batch())
    assert losses.parts["kl"] == plain.parts["kl"] and losses.parts["rec"] == plain.parts["rec"]
    # The VAE of the start is near its prior: no unit has half a nat, so that all 256 are free.
    expected = losses.parts["task"] + losses.parts["rec"] + 0.25 * 0.1 * 256 * 0.5
    assert losses.total.item() == pytest.approx(expected.item(), rel=1e-6)


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


@pytest.mark.parametrize("kind", ["vae", "kl"])
@pytest.mark.parametrize("direction", ["video-to-text", "both"])
def test_both_directions_are_the_formula(kind, direction, monkeypatch):
    """The second direction has the roles of S_p and V_p swapped, and a VAE of its own."""
    model = make(f"alignment.kind={kind}", f"alignment.direction={direction}").eval()
    monkeypatch.setattr(torch, "randn_like", torch.zeros_like)  # z = mu
    parts = {name: value.item() for name, value in model(batch()).parts.items()}
    expected = parts["task"]
    for suffix, vae in (("", model.vae), ("_reverse", model.reverse_vae)):
        if suffix and direction == "video-to-text":
            assert vae is None and not any(name.endswith("_reverse") for name in parts)
            continue
        log_s, log_v = (each.detach().double() for each in model.distributions(batch().texts, batch().frames))
        given, wanted = (log_s, log_v) if suffix else (log_v, log_s)
        if kind == "kl":
            own = (wanted.exp() * (wanted - given)).sum(1).mean().item()
            assert parts[f"align_kl{suffix}"] == pytest.approx(own, rel=1e-4)
        else:
            posterior = vae.double().posterior(given)
            rec = -(wanted.exp() * vae.decode(posterior.mean)).sum(1).mean().item()
            kl = 0.5 * (posterior.mean**2 + posterior.logvar.exp() - posterior.logvar - 1).sum(1).mean().item()
            assert (parts[f"rec{suffix}"], parts[f"kl{suffix}"]) == pytest.approx((rec, kl), rel=1e-4)
            own = rec + 0.1 * kl
        expected += own
    assert parts["loss"] == pytest.approx(expected, rel=1e-5)


def test_the_second_direction_teaches_the_sentence_though_targets_are_detached():
    for direction, teaches in (("video-to-text", False), ("both", True)):
        model, data = make(f"alignment.direction={direction}"), batch()
        data.texts.requires_grad_()
        losses = model(data)
        task_only = torch.autograd.grad(losses.parts["task"], data.texts, retain_graph=True)[0]
        whole = torch.autograd.grad(losses.total, data.texts)[0]
        assert model.teaches_sentences == teaches
        assert torch.allclose(whole, task_only, atol=1e-7) != teaches


def test_frames_own_distributions_are_averaged():
    mean, frames = make(), make("anchors.video=frames")
    texts, clips = batch().texts, batch().frames
    with torch.no_grad():
        anchors = frames.anchor_features()
        cosines = torch.nn.functional.cosine_similarity(clips[:, :, None].double(), anchors.double(), dim=-1)
        expected = (100 * cosines).softmax(-1).mean(1)
        log_s, log_v = frames.distributions(texts, clips)
        torch.testing.assert_close(log_v.exp().double(), expected, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(log_v.exp().sum(-1), torch.ones(4))
        assert torch.equal(log_s, mean.distributions(texts, clips)[0])
        assert (log_v - mean.distributions(texts, clips)[1]).abs().max() > 0.01
        # With equal frames the two are the same.
        still = clips[:, :1].expand(-1, 3, -1)
        torch.testing.assert_close(frames.distributions(texts, still)[1], mean.distributions(texts, still)[1])


def test_a_warm_up_scales_the_alignment_loss_alone():
    model = make().eval()
    for factor in (0.0, 0.25, 1.0):
        model.alignment_factor = factor
        torch.manual_seed(2)
        parts = {name: value.item() for name, value in model(batch()).parts.items()}
        expected = parts["task"] + factor * (parts["rec"] + 0.1 * parts["kl"])
        assert parts["loss"] == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    "override",
    [
        "alignment.latent=32",
        "anchors.temperature=learned",
        "anchors.encode=frozen",
        "anchors.encode=refresh",
        "anchors.encode=no-gradient",
    ],
)
def test_limits_of_the_paper_are_keys(override):
    model = make(override)
    model(batch()).total.backward()
    assert model.anchors.position.grad.abs().max() > 0
    if "latent" in override:
        assert model.vae.mean[0].out_features == 32
    if "learned" in override:
        assert model.log_temperature.grad.abs() > 0
    if "encode" in override:
        # Without gradient through the prompts, the text tower hears of sentences only, and here they are features.
        assert model.backbone.clip.text_projection.grad is None
    else:
        assert model.backbone.clip.text_projection.grad.abs().max() > 0


def test_a_vocabulary_of_a_thousand_labels(tmp_path):
    """As many as ImageNet-1k has, from a plain list; each label is a row of the anchors."""
    labels = tmp_path / "labels.txt"
    labels.write_text("\n".join(f"label number {k}" for k in range(1000)))
    recipe = recipe_from_dict(
        {"name": "x", "data": {"dataset": "demo", "frames": 3}, "backbone": {"model": "demo-clip", "weights": None}},
        overrides=[f"anchors.vocabulary={labels}", "head.kind=meanp", "alignment.direction=both"],
    )
    model = build_model(recipe, recipe_vocabulary(recipe))
    losses = model(batch())
    losses.total.backward()
    assert model.anchors.position.shape == (1000, 128) and losses.total.isfinite()
    assert model.vae.decoder[-1].out_features == model.reverse_vae.decoder[-1].out_features == 1000


@pytest.mark.parametrize(
    ("name", "dim", "kind"), [("ViT-L-14", 768, "seqtransf"), ("RN50", 1024, "xpool"), ("ViT-B-16", 512, "wti")]
)
def test_other_backbones(name, dim, kind, tmp_path):
    """Any architecture open_clip has, in its own widths; of its layers one, for time and memory."""
    config = open_clip.get_model_config(name)
    for tower in ("vision_cfg", "text_cfg"):
        if isinstance(config[tower]["layers"], int):
            config[tower]["layers"] = 1
    thin = tmp_path / f"{name}-thin.json"
    thin.write_text(json.dumps(config))
    recipe = recipe_from_dict(
        {"name": "x", "data": {"dataset": "demo", "frames": 3}, "backbone": {"model": str(thin), "weights": None}},
        overrides=["anchors.vocabulary=shapes@1", "anchors.subset=3", f"head.kind={kind}", "head.layers=1"],
    )
    model = build_model(recipe, recipe_vocabulary(recipe))
    size, _ = model.backbone.spec.image_size
    frames = torch.zeros(2, 3, size, size, 3, dtype=torch.uint8)
    losses = model(Batch(model.backbone.tokenize(["a dog", "a cat runs"]), frames, torch.arange(2)))
    assert model.anchors.position.shape == (3, dim) and losses.total.isfinite()


def test_prompts_are_padded_to_their_longest_and_features_do_not_know():
    """A causal tower pooled at the end token: 77 tokens give the features that a few give."""
    model = make().eval()
    vocabulary = resolve_vocabulary("shapes@1")
    full = model.backbone.tokens(list(vocabulary.prompts))
    own = model.anchors.tokens
    assert own.shape[1] < full.shape[1] == 32
    assert (own != 0).any(0).all() and (full[:, own.shape[1] :] == 0).all()
    unit = torch.nn.functional.normalize
    for precision, most in ((torch.float32, 1e-6), (torch.float64, 1e-12)):
        model.to(precision)
        with torch.no_grad():
            short, long = (model.backbone.encode_text(tokens) for tokens in (own, full))
            theirs = model.backbone.clip.encode_text(full)
        torch.testing.assert_close(unit(short), unit(long), rtol=0, atol=most)
        torch.testing.assert_close(unit(short), unit(theirs), rtol=0, atol=most)
