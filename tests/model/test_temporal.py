import numpy as np
import pytest
import torch

from calmctl.errors import BadInput, CheckpointError
from calmctl.model.heads.meanp import FrameLSTM, FrameTransformer
from calmctl.model.weights import load_backbone


def numbers(module):
    return {name: tensor.detach().double().numpy() for name, tensor in module.state_dict().items()}


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def lstm_by_hand(w, frames):
    """Hochreiter and Schmidhuber's cell with a forget gate, frame by frame: frames [F, D] -> [F, D]."""
    hidden = cell = np.zeros(frames.shape[1])
    seen = []
    for frame in frames:
        gates = w["lstm.weight_ih_l0"] @ frame + w["lstm.bias_ih_l0"]
        gates = gates + w["lstm.weight_hh_l0"] @ hidden + w["lstm.bias_hh_l0"]
        enter, forget, new, leave = np.split(gates, 4)
        cell = sigmoid(forget) * cell + sigmoid(enter) * np.tanh(new)
        hidden = sigmoid(leave) * np.tanh(cell)
        seen.append(frame + hidden)
    return np.stack(seen)


def norm(x, w, name):
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5) * w[f"{name}.weight"] + w[f"{name}.bias"]


def transformer_by_hand(w, frames, heads, layers):
    """Pre-LN layers without a mask: frames [F, D] -> [F, D]."""
    x = frames + w["positions"][: len(frames)]
    width = frames.shape[1] // heads
    for number in range(layers):
        p = f"layers.{number}."
        q, k, v = np.split(norm(x, w, f"{p}ln_1") @ w[f"{p}attn.in_proj_weight"].T + w[f"{p}attn.in_proj_bias"], 3, -1)
        parts = []
        for head in range(heads):
            s = slice(head * width, (head + 1) * width)
            logits = np.exp(q[:, s] @ k[:, s].T / np.sqrt(width))
            parts.append(logits / logits.sum(-1, keepdims=True) @ v[:, s])
        x = x + np.concatenate(parts, -1) @ w[f"{p}attn.out_proj.weight"].T + w[f"{p}attn.out_proj.bias"]
        inner = norm(x, w, f"{p}ln_2") @ w[f"{p}mlp.c_fc.weight"].T + w[f"{p}mlp.c_fc.bias"]
        x = x + (inner * sigmoid(1.702 * inner)) @ w[f"{p}mlp.c_proj.weight"].T + w[f"{p}mlp.c_proj.bias"]
    return frames + x


@pytest.mark.parametrize("n_frames", [1, 5])
def test_the_lstm_is_its_formula(n_frames, trained):
    torch.manual_seed(0)
    module, frames = trained(FrameLSTM(8).double()), torch.randn(3, n_frames, 8).double()
    expected = [lstm_by_hand(numbers(module), video) for video in frames.numpy()]
    np.testing.assert_allclose(module(frames).detach().numpy(), expected, atol=1e-12)


@pytest.mark.parametrize(("n_frames", "heads", "layers"), [(1, 1, 1), (5, 2, 3), (3, 4, 2)])
@pytest.mark.parametrize("training", [True, False])
def test_the_transformer_is_its_formula(n_frames, heads, layers, training, trained):
    torch.manual_seed(0)
    module = trained(FrameTransformer(16, 5, layers, heads=heads).double()).train(training)
    frames = torch.randn(3, n_frames, 16).double()
    expected = [transformer_by_hand(numbers(module), video, heads, layers) for video in frames.numpy()]
    with torch.set_grad_enabled(training):
        found = module(frames).detach().numpy()
    np.testing.assert_allclose(found, expected, atol=1e-12)


def test_both_see_the_order_of_frames(trained):
    torch.manual_seed(0)
    frames = torch.randn(2, 4, 16)
    for module in (FrameLSTM(16), FrameTransformer(16, 4, 1)):
        mean, reversed_mean = (trained(module)(each).mean(1) for each in (frames, frames.flip(1)))
        assert (mean - reversed_mean).abs().max() > 1e-3


def test_parameter_counts_at_full_size():
    """12 d^2 + 13 d a layer, and the positions; four gates of 2 d^2 + 2 d together."""
    count = lambda module: sum(p.numel() for p in module.parameters())  # noqa: E731
    assert count(FrameTransformer(512, 12)) == 4 * (12 * 512**2 + 13 * 512) + 12 * 512 == 12_609_536 + 12 * 512
    assert count(FrameLSTM(512)) == 4 * (2 * 512**2 + 2 * 512) == 2_101_248


def test_a_random_start_has_clips_scale():
    torch.manual_seed(0)
    layer = FrameTransformer(256, 12, 4).layers[0]
    for parameter, expected in (
        (layer.attn.in_proj_weight, 1 / 16),
        (layer.attn.out_proj.weight, 1 / 16 / 8**0.5),
        (layer.mlp.c_fc.weight, 1 / 16 / 2**0.5),
        (layer.mlp.c_proj.weight, 1 / 16 / 8**0.5),
    ):
        assert parameter.std().item() == pytest.approx(expected, rel=0.02)


def test_starting_from_the_text_tower_copies_it_and_shares_nothing():
    torch.manual_seed(0)
    backbone = load_backbone("demo-clip", None)
    module = FrameTransformer(128, 4, 2)
    module.start_from(backbone)
    blocks = backbone.clip.transformer.resblocks
    frames = torch.randn(3, 4, 128)
    own, theirs = module(frames), frames + backbone.clip.positional_embedding[:4]
    for block in blocks:
        theirs = block(theirs)
    torch.testing.assert_close(own, frames + theirs)
    with torch.no_grad():
        blocks[0].mlp.c_fc.weight.zero_()
    assert module.layers[0].mlp.c_fc.weight.abs().max() > 0


@pytest.mark.parametrize(
    ("module", "parts"),
    [
        (
            FrameTransformer(128, 4, 3),
            ["has 2 layers and head.layers asks for 3", "head.init=random, or head.layers=2"],
        ),
        (FrameTransformer(64, 4, 1), ["is 128 wide and its features are 64", "set head.init=random"]),
        (FrameTransformer(128, 40, 1), ["has 32 positions and data.frames asks for 40"]),
    ],
)
def test_a_text_tower_that_does_not_fit_is_refused(module, parts):
    with pytest.raises(CheckpointError) as caught:
        module.start_from(load_backbone("demo-clip", None))
    assert all(part in str(caught.value) for part in [*parts, "head.init"])


def test_more_frames_than_positions_are_refused():
    with pytest.raises(BadInput, match="positions of 4 frames and was given 5"):
        FrameTransformer(16, 4, 1)(torch.randn(2, 5, 16))
    with pytest.raises(BadInput, match="3 attention heads do not divide 16"):
        FrameTransformer(16, 4, 1, heads=3)
