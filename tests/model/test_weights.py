"""Weights of backbones: local files, wrong activations, pickles, names that do not exist, no network."""

import hashlib
import json
import zlib
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from calmctl.data.demo_world import VERSION
from calmctl.errors import CheckpointError
from calmctl.model import weights
from calmctl.model.backbone import fingerprint
from calmctl.model.weights import load_backbone, looks_like_openai
from calmctl.tensors import save_tensors


@pytest.fixture(scope="module")
def vit_b32():
    torch.manual_seed(0)
    return load_backbone("ViT-B-32-quickgelu", None)


def test_the_reference_backbone_saved_and_loaded_from_a_file(vit_b32, tmp_path):
    assert sum(p.numel() for p in vit_b32.parameters()) == 151_277_313
    path = tmp_path / "vit.safetensors"
    save_tensors(path, {f"backbone.clip.{n}": t for n, t in vit_b32.clip.state_dict().items()}, {"backbone": {}})
    again = load_backbone("ViT-B-32-quickgelu", str(path)).eval()
    vit_b32.eval()
    tokens = again.tokenize(["a man is talking", "a dog"])
    with torch.inference_mode():
        torch.testing.assert_close(again.encode_text(tokens), vit_b32.encode_text(tokens))
        pixels = torch.randn(1, 2, 3, 224, 224)
        features = again.encode_frames(pixels)
        torch.testing.assert_close(features, vit_b32.encode_frames(pixels))
    assert features.shape == (1, 2, 512)


def test_short_padding_gives_the_features_of_full_padding(vit_b32):
    vit_b32.eval()
    sentences = ["a man is talking", "The content of Holding a laptop", "x"]
    tokens = vit_b32.tokenize(sentences)
    assert tokens.shape[1] < 12
    with torch.inference_mode():
        full = vit_b32.clip.encode_text(vit_b32.tokens(sentences))
        torch.testing.assert_close(vit_b32.encode_text(tokens), full, atol=2e-5, rtol=1e-4)


def test_long_sentences_are_cut_at_the_context_and_keep_their_end_token(vit_b32):
    tokens = vit_b32.tokenize(["word " * 200])
    assert tokens.shape == (1, 77) and tokens[0, -1] == 49407


PIXELS = {
    "mean": [0.5, 0.5, 0.5],
    "std": [0.5, 0.5, 0.5],
    "interpolation": "bilinear",
    "resize_mode": "squash",
}
"""PE-Core's, and nothing like CLIP's."""


def openai_like(state):
    """Marked as OpenAI's release is: float16 numbers, logit scale ln 100."""
    state = {name: tensor.half().float() for name, tensor in state.items()}
    return state | {"logit_scale": torch.tensor(100.0).log()}


def small(tmp_path, quick_gelu: bool):
    config = {
        "preprocess_cfg": PIXELS,
        "embed_dim": 16,
        "quick_gelu": quick_gelu,
        "vision_cfg": {"image_size": 16, "layers": 1, "width": 32, "head_width": 16, "patch_size": 8},
        "text_cfg": {"context_length": 8, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
    }
    path = tmp_path / f"small-{'quick' if quick_gelu else 'plain'}.json"
    path.write_text(json.dumps(config))
    return str(path)


def test_openai_weights_under_the_plain_name_are_caught(tmp_path):
    quick, plain = small(tmp_path, True), small(tmp_path, False)
    state = load_backbone(quick, None).clip.state_dict()
    weights = tmp_path / "bare.safetensors"
    save_file(openai_like(state), weights)
    assert looks_like_openai(openai_like(state)) and not looks_like_openai(state)
    load_backbone(quick, str(weights))
    with pytest.raises(CheckpointError, match="activation quick_gelu and small-plain has gelu"):
        load_backbone(plain, str(weights))
    save_file(state, weights)
    load_backbone(plain, str(weights))


def test_a_checkpoint_of_ours_states_its_activation(tmp_path):
    quick, plain = small(tmp_path, True), small(tmp_path, False)
    backbone = load_backbone(plain, None)
    state = {f"backbone.clip.{name}": tensor for name, tensor in backbone.clip.state_dict().items()}
    path = tmp_path / "ours.safetensors"
    save_tensors(path, {**state, "head.weight": torch.zeros(1)}, {"backbone": fingerprint(backbone)})
    load_backbone(plain, str(path))
    with pytest.raises(CheckpointError, match="features would be silently wrong"):
        load_backbone(quick, str(path))


@pytest.mark.parametrize(
    ("model", "weights", "message"),
    [
        ("ViT-B-32-quikgelu", None, "did you mean ViT-B-32-quickgelu"),
        ("ViT-B32", "openai", r"did you mean ViT-B-32-quickgelu\b(?!.*ViT-B-32,)"),  # ViT-B-32 would be refused next
        ("ViT-B32", "dfn2b", "did you mean ViT-B-32, ViT-B-32-quickgelu"),
        ("roberta-ViT-B-32", None, "package transformers"),
        ("demo-clip", "somewhere/w.safetensors", "somewhere/w.safetensors does not exist"),
        ("ViT-B-32", "openai", "use backbone.model: ViT-B-32-quickgelu"),
        ("ViT-B-32", "nonsense", "neither a file nor a pretrained tag of ViT-B-32"),
        ("demo-clip", "weights.pt", "nothing executable is ever loaded"),
        ("missing.json", None, "does not exist"),
    ],
)
def test_mistakes_are_told(model, weights, message, monkeypatch):
    monkeypatch.setattr("calmctl.model.spec.has_transformers", lambda: False)
    with pytest.raises(CheckpointError, match=message):
        load_backbone(model, weights)


def test_without_a_network_the_ways_out_are_told(hub):
    hub.fault = "503"
    with pytest.raises(
        CheckpointError, match=r"^backbone\.weights: ViT-B-32-quickgelu 'openai' is not .* answers 503.*hf downl"
    ):
        load_backbone("ViT-B-32-quickgelu", "openai")


def test_the_clip_that_ships_is_the_one_on_its_card():
    backbone = load_backbone("demo-clip", "drawn-2")
    folder = Path(weights.__file__).parent / "pretrained"
    card = json.loads((folder / "demo-clip.card.json").read_text())
    digest = hashlib.sha256((folder / "demo-clip.safetensors").read_bytes()).hexdigest()
    assert backbone.spec.weights_sha256 == card["sha256"] == digest
    assert (backbone.spec.tag, backbone.spec.source) == ("drawn-2", "calmctl")
    assert card["world"] == VERSION and all(card["zero_shot"][name]["r1"] > 10 for name in ("demo", "demo-shifted"))
    with pytest.raises(CheckpointError, match=r"neither a file nor a pretrained tag of demo-clip \(tags: drawn-2\)"):
        load_backbone("demo-clip", "openai")


def test_the_clip_that_ships_takes_ten_megabytes_of_the_wheel_at_most():
    content = (Path(weights.__file__).parent / "pretrained" / "demo-clip.safetensors").read_bytes()
    assert len(zlib.compress(content)) < 10e6  # rows of words that nobody uses are zero


def test_weights_of_another_shape_are_told(tmp_path):
    path = tmp_path / "w.safetensors"
    save_file(load_backbone("demo-clip", None).clip.state_dict(), path)
    with pytest.raises(CheckpointError, match=r"does not fit small-quick: \d+ weights missing"):
        load_backbone(small(tmp_path, True), str(path))
    path.write_bytes(b"{}")
    with pytest.raises(CheckpointError, match="not a readable safetensors"):
        load_backbone("demo-clip", str(path))
