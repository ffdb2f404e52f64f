"""UATVR against a transcription of its formulas in numpy, one pair at a time, and against pinned numbers.

The pinned numbers were computed from the published definition apart from this code; S(shape, a, c) fills a tensor with
c sin(a + 0.7 n) in the order of its entries.
"""

import math

import numpy as np
import pytest
import torch

from calmctl.errors import BadInput
from calmctl.model.heads import uatvr, wti
from calmctl.model.heads.meanp import FrameTransformer
from calmctl.model.heads.uatvr import (
    TokenGaussian,
    UATVRHead,
    gaussian_samples,
    multiple_instance_loss,
    pooled,
    prior_divergence,
)

DIM, FRAMES, WORDS = 32, 6, 9


def make(dim=DIM, frames=FRAMES, words=WORDS, layers=2, heads=4, **keys):
    torch.manual_seed(0)
    return UATVRHead(FrameTransformer(dim, frames, layers, heads=heads), words, **keys)


@pytest.fixture
def head(trained):
    return trained(make().double(), step=0.1)


def features(lengths, n_videos, n_frames=FRAMES, seed=1):
    """Texts with `lengths` words each and rows of zeros behind them, and videos."""
    torch.manual_seed(seed)
    texts = torch.zeros(len(lengths), 1 + max(lengths), DIM).double()
    for row, length in enumerate(lengths):
        texts[row, : 1 + length] = torch.randn(1 + length, DIM)
    return texts, torch.randn(n_videos, n_frames, DIM).double()


def wave(*shape, start, scale=1.0):
    count = math.prod(shape)
    return scale * torch.sin(start + 0.7 * torch.arange(count, dtype=torch.float64)).view(*shape)


# --- the formulas, written again ------------------------------------------------------------------------------


def softmax(x):
    e = np.exp(x - x.max())
    return e / e.sum()


def norm(x, w, b):
    return (x - x.mean()) / np.sqrt(((x - x.mean()) ** 2).mean() + 1e-5) * w + b


def layers_by_hand(head, tokens):
    """The shared layers over a sequence [n, D] that has no padding."""
    for layer in head.temporal.layers:
        w = {name: tensor.detach().numpy() for name, tensor in layer.state_dict().items()}
        seen = np.stack([norm(row, w["ln_1.weight"], w["ln_1.bias"]) for row in tokens])
        q, k, v = np.split(seen @ w["attn.in_proj_weight"].T + w["attn.in_proj_bias"], 3, axis=1)
        width = tokens.shape[1] // layer.attn.num_heads
        mixed = np.empty_like(tokens)
        for start in range(0, tokens.shape[1], width):
            part = slice(start, start + width)
            for i in range(len(tokens)):
                mixed[i, part] = softmax(k[:, part] @ q[i, part] / np.sqrt(width)) @ v[:, part]
        tokens = tokens + mixed @ w["attn.out_proj.weight"].T + w["attn.out_proj.bias"]
        inner = np.stack([norm(row, w["ln_2.weight"], w["ln_2.bias"]) for row in tokens])
        inner = inner @ w["mlp.c_fc.weight"].T + w["mlp.c_fc.bias"]
        inner = inner / (1 + np.exp(-1.702 * inner))
        tokens = tokens + inner @ w["mlp.c_proj.weight"].T + w["mlp.c_proj.bias"]
    return tokens


def side_by_hand(head, rows, positions, extra, weight):
    out = layers_by_hand(head, np.concatenate([rows + positions[: len(rows)], extra]))
    out[: len(rows)] += rows
    unit = out / np.sqrt((out**2).sum(1, keepdims=True))
    first, last = weight[0], weight[2]
    hidden = np.maximum(unit @ first.weight.detach().numpy().T + first.bias.detach().numpy(), 0)
    return unit, softmax(hidden @ last.weight.detach().numpy()[0] + last.bias.item())


def scores_by_hand(head, texts, frames):
    own = {name: tensor.detach().numpy() for name, tensor in head.state_dict().items()}
    scores = np.empty((len(texts), len(frames)))
    for t, text in enumerate(texts.numpy()):
        words = text[1:][(text[1:] != 0).any(-1)]
        x, a = side_by_hand(head, words, own["word_positions"], own["extra_words"], head.word_weight)
        for v, video in enumerate(frames.numpy()):
            y, b = side_by_hand(head, video, own["temporal.positions"], own["extra_frames"], head.frame_weight)
            cosines = x @ y.T
            scores[t, v] = 0.5 * (a @ cosines.max(1) + b @ cosines.max(0))
    return scores


# --- scores ---------------------------------------------------------------------------------------------------


def test_both_forms_are_the_formula(head):
    texts, frames = features([9, 7, 4, 3, 6], 3)
    expected = scores_by_hand(head, texts, frames)
    task = head.similarities(texts, frames, torch.arange(5) % 3)[0]
    assert (task.name, task.weight) == ("task", 1.0)
    np.testing.assert_allclose(task.matrix.detach().numpy(), expected, atol=1e-12)
    np.testing.assert_allclose(head.score(texts, head.video_table(frames)).numpy(), expected, atol=1e-12)


def test_a_score_depends_on_no_padding_and_on_no_other_pair(head):
    texts, frames = features([7, 4, 3, 6], 5)
    table = head.video_table(frames)
    whole = head.score(texts, table)
    padded = torch.cat([texts, torch.zeros(4, 2, DIM).double()], dim=1)
    torch.testing.assert_close(head.score(padded, table), whole, rtol=0, atol=1e-14)
    short = head.score(texts[1:3, :5], head.video_table(frames[[4, 0]]))
    torch.testing.assert_close(short, whole[1:3][:, [4, 0]], rtol=0, atol=1e-14)


def test_a_pad_is_nobodys_nearest_word():
    words = torch.tensor([[[1.0, 0], [0, 1], [0, 0]]]).double()
    frame = -torch.ones(1, 1, 2).double() / 2**0.5
    shares, whole = torch.tensor([[0.5, 0.5, 0]]).double(), torch.ones(1, 1).double()
    real = torch.tensor([[True, True, False]])
    assert wti.interaction(words, shares, frame, whole, real).item() == pytest.approx(-(0.5**0.5), abs=1e-12)
    counted = torch.ones_like(real)
    assert wti.interaction(words, shares, frame, whole, counted).item() == pytest.approx(-(0.5**0.5) / 2, abs=1e-12)


def test_many_pairs_are_scored_in_blocks(head, monkeypatch):
    texts, frames = features([2, 6, 3, 4, 1, 5, 2], 11)
    whole = head.score(texts, head.video_table(frames))
    monkeypatch.setattr(wti, "_PAIRS_PER_BLOCK", {"cpu": 9})
    torch.testing.assert_close(head.score(texts, head.video_table(frames)), whole, rtol=0, atol=1e-13)


def test_fewer_frames_than_positions(head):
    texts, frames = features([4, 2], 2, n_frames=4)
    expected = scores_by_hand(head, texts, frames)
    np.testing.assert_allclose(head.score(texts, head.video_table(frames)).numpy(), expected, atol=1e-12)


def test_what_does_not_fit_is_refused(head):
    table = head.video_table(torch.randn(2, FRAMES, DIM))
    with pytest.raises(BadInput, match="the uatvr head compares words"):
        head.score(torch.randn(2, DIM), table)
    with pytest.raises(BadInput, match="positions of 9 words and was given 11"):
        head.score(torch.randn(2, 12, DIM), table)
    with pytest.raises(BadInput, match="positions of 6 frames and was given 7"):
        head.video_table(torch.randn(2, 7, DIM))


# --- counts and starts ----------------------------------------------------------------------------------------


def test_parameters_are_the_published_ones():
    head = make(512, 12, 77, layers=4, heads=8)
    count = sum(p.numel() for p in head.parameters())
    gaussians = sum(p.numel() for p in head.probability.parameters())
    assert (count, count - gaussians) == (15_286_786, 13_183_490)
    one = head.probability["words"]
    pie = (one.mean_attention, one.mean_attended, one.mean_norm)
    assert sum(p.numel() for part in pie for p in part.parameters()) == 395_008
    assert sum(p.numel() for p in one.parameters()) - 395_008 == 656_640
    bare = make(512, 12, 77, layers=4, heads=8, samples=0)
    assert sum(p.numel() for p in bare.parameters()) == 13_183_490


def test_a_fresh_heads_losses_have_the_expected_size():
    """In closed form L_KL / B is about 1 + 512 / 7 = 74.14 a side's pair; samples drown the means in noise."""
    torch.manual_seed(0)
    gaussian = TokenGaussian(512)
    real = torch.ones(64, 12, dtype=torch.bool)
    sides = []
    for _ in range(2):
        tokens = torch.nn.functional.normalize(torch.randn(64, 12, 512), dim=-1)
        mean, log_std = gaussian(tokens, pooled(tokens, real), real)
        sides.append((gaussian_samples(mean, log_std, 7), log_std))
    assert 60 < multiple_instance_loss(sides[0][0], sides[1][0]).item() < 76
    divergence = sum(prior_divergence(samples, log_std) for samples, log_std in sides).item() / 64
    assert 70 < divergence < 79


# --- the Gaussians --------------------------------------------------------------------------------------------


def test_a_gaussian_is_the_pinned_one():
    tokens = wave(2, 3, 8, start=0.1)
    gaussian = TokenGaussian(8).double()
    with torch.no_grad():
        gaussian.mean_attention[0].weight.copy_(wave(4, 8, start=0.2, scale=0.5))
        gaussian.mean_attention[2].weight.copy_(wave(1, 4, start=0.3, scale=0.5))
        gaussian.mean_attended.weight.copy_(wave(8, 8, start=0.4, scale=0.5))
        gaussian.mean_attended.bias.copy_(wave(8, start=0.5, scale=0.5))
        gaussian.mean_norm.weight.copy_(1 + wave(8, start=0.6, scale=0.5))
        gaussian.mean_norm.bias.copy_(wave(8, start=0.7, scale=0.5))
        gaussian.std_attention[0].weight.copy_(wave(4, 8, start=0.8, scale=0.5))
        gaussian.std_attention[2].weight.copy_(wave(1, 4, start=0.9, scale=0.5))
        gaussian.std_attended.weight.copy_(wave(8, 8, start=1.0, scale=0.5))
        gaussian.std_attended.bias.copy_(wave(8, start=1.1, scale=0.5))
        gaussian.std_pooled.weight.copy_(wave(8, 8, start=1.2, scale=0.5))
        gaussian.std_pooled.bias.copy_(wave(8, start=1.3, scale=0.5))
    real = torch.ones(2, 3, dtype=torch.bool)
    mean, log_std = gaussian(tokens, pooled(tokens, real), real)
    expected = torch.tensor([-0.001603929111, 0.388089501695, 0.599677469859], dtype=torch.float64)
    torch.testing.assert_close(mean[0, :3], expected, rtol=0, atol=1e-10)
    assert mean[1, 0].item() == pytest.approx(-0.617082082346, abs=1e-11)
    expected = torch.tensor([1.305253675687, 2.826336158541, 3.058571829709], dtype=torch.float64)
    torch.testing.assert_close(log_std[0, :3], expected, rtol=0, atol=1e-10)
    assert log_std.sum().item() == pytest.approx(2.022288684002, abs=1e-10)


def test_padding_takes_no_part_in_a_gaussian():
    gaussian = TokenGaussian(8).double()
    tokens, real = torch.randn(2, 5, 8).double(), torch.tensor([[True] * 3 + [False] * 2] * 2)
    whole = gaussian(tokens, pooled(tokens, real), real)
    cut = gaussian(tokens[:, :3], pooled(tokens[:, :3], real[:, :3]), real[:, :3])
    for ours, theirs in zip(whole, cut, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-14)


def test_losses_are_the_pinned_ones():
    videos, texts = wave(2, 2, 3, start=0.1), wave(2, 2, 3, start=0.2)
    assert multiple_instance_loss(videos, texts).item() == pytest.approx(1.749829791029, abs=1e-11)
    log_stds = wave(2, 3, start=0.3, scale=0.2), wave(2, 3, start=0.4, scale=0.2)
    divergence = prior_divergence(videos, log_stds[0]) + prior_divergence(texts, log_stds[1])
    assert divergence.item() == pytest.approx(0.774884002598, abs=1e-11)


def test_samples_that_say_nothing_cost_the_logarithm_of_all_and_one_sample_is_infonce():
    zeros = torch.zeros(5, 7, 4).double()
    assert multiple_instance_loss(zeros, zeros).item() == pytest.approx(math.log(35), abs=1e-12)
    torch.manual_seed(0)
    videos, texts = torch.randn(5, 1, 4).double(), torch.randn(5, 1, 4).double()
    products, own = videos[:, 0] @ texts[:, 0].T, torch.arange(5)
    plain = torch.nn.functional.cross_entropy
    expected = (plain(products, own) + plain(products.T, own)) / 2
    assert multiple_instance_loss(videos, texts).item() == pytest.approx(expected.item(), abs=1e-12)


def test_the_start_token_and_extra_tokens_are_not_pooled(head, monkeypatch):
    """The words' Gaussian pools what stands between them, and attends to the start token too."""
    texts, frames = features([4, 2, 5], 3)
    seen = []
    monkeypatch.setattr(uatvr, "pooled", lambda tokens, real: seen.append(real.clone()) or pooled(tokens, real))
    head.similarities(texts, frames, torch.arange(3))
    words, clips = seen
    assert words.tolist() == [[n in range(1, length) for n in range(5)] for length in (4, 2, 5)]
    assert clips.all() and clips.shape == (3, FRAMES)


def test_gaussians_change_no_score_and_hear_nothing_of_the_task(head):
    texts, frames = features([4, 2, 6], 3)
    before = head.score(texts, head.video_table(frames))
    with torch.no_grad():
        for parameter in head.probability.parameters():
            parameter += torch.randn_like(parameter)
    assert torch.equal(head.score(texts, head.video_table(frames)), before)
    task, mil, kl = head.similarities(texts, frames, torch.arange(3))
    task.matrix.square().sum().backward(retain_graph=True)
    assert all(p.grad is None for p in head.probability.parameters())
    (mil.weight * mil.value + kl.weight * kl.value).backward()
    for name, parameter in head.named_parameters():
        # A shift of all weights before a softmax changes nothing.
        assert name.endswith("weight.2.bias") or parameter.grad.abs().max() > 0, name
