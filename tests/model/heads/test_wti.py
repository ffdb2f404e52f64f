import numpy as np
import pytest
import torch

from calmctl.errors import BadInput
from calmctl.model.heads import wti
from calmctl.model.heads.meanp import FrameTransformer
from calmctl.model.heads.wti import TokenInteractionHead

DIM, FRAMES = 16, 5


@pytest.fixture
def head(trained):
    torch.manual_seed(0)
    return trained(TokenInteractionHead(FrameTransformer(DIM, FRAMES, 1, heads=2)).double())


def features(lengths, n_videos, seed=1, longest=None):
    """Texts with `lengths` words each, and videos."""
    torch.manual_seed(seed)
    texts = torch.zeros(len(lengths), 1 + (longest or max(lengths)), DIM).double()
    for row, length in enumerate(lengths):
        texts[row, : 1 + length] = torch.randn(1 + length, DIM)
    return texts, torch.randn(n_videos, FRAMES, DIM).double()


def by_hand(head, texts, frames):
    """The formula, pair by pair."""
    w = {name: tensor.detach().numpy() for name, tensor in head.state_dict().items()}
    seen = head.temporal(frames).detach().numpy()

    def shares(x, name):
        hidden = np.maximum(x @ w[f"{name}.0.weight"].T + w[f"{name}.0.bias"], 0)
        e = np.exp(hidden @ w[f"{name}.2.weight"][0] + w[f"{name}.2.bias"])
        return e / e.sum()

    scores = np.empty((len(texts), len(frames)))
    for t, text in enumerate(texts.numpy()):
        words = text[1:][(text[1:] != 0).any(-1)]
        for v, video in enumerate(seen):
            cosines = words @ video.T
            cosines = cosines / np.sqrt((words**2).sum(1))[:, None] / np.sqrt((video**2).sum(1))
            a, b = shares(words, "word_weight"), shares(video, "frame_weight")
            scores[t, v] = 0.5 * (a @ cosines.max(1) + b @ cosines.max(0))
    return scores


def test_perceptrons_start_as_the_references_do():
    head = TokenInteractionHead(FrameTransformer(64, FRAMES, 1, heads=2))
    for part in (head.word_weight, head.frame_weight):
        assert part[0].weight.std().item() == pytest.approx(0.02, rel=0.05)
        assert part[0].weight.abs().max() > 0.05  # normal: a uniform law of this width ends at 0.035
        assert not part[0].bias.any() and not part[2].bias.any()


def test_both_forms_are_the_formula(head):
    texts, frames = features([4, 1, 7, 3], 3)
    expected = by_hand(head, texts, frames)
    (only,) = head.similarities(texts, frames, torch.arange(4) % 3)
    assert (only.name, only.weight) == ("task", 1.0)
    np.testing.assert_allclose(only.matrix.detach().numpy(), expected, atol=1e-12)
    np.testing.assert_allclose(head.score(texts, head.video_table(frames)).numpy(), expected, atol=1e-12)


def test_padding_takes_no_part(head):
    """Even where every true cosine is negative, so that a padded row's 0 would be the largest."""
    texts, frames = features([3, 5], 1)
    frames = frames[:, :1] + 0.1 * frames
    opposite = -head.temporal(frames).detach().mean((0, 1))
    texts[:, 1:] = (opposite + 0.1 * texts[:, 1:]) * (texts[:, 1:] != 0)
    padded = torch.cat([texts, torch.zeros(2, 9, DIM)], dim=1)
    table = head.video_table(frames)
    expected = by_hand(head, texts, frames)
    assert (expected < 0).all()
    np.testing.assert_allclose(head.score(padded, table).numpy(), expected, atol=1e-12)
    np.testing.assert_allclose(head.score(padded[1:], table).numpy(), expected[1:], atol=1e-12)


def test_many_pairs_are_scored_in_blocks(head, monkeypatch):
    texts, frames = features([2, 6, 3, 4, 1, 5, 2], 11)
    whole = head.score(texts, head.video_table(frames))
    monkeypatch.setattr(wti, "_PAIRS_PER_BLOCK", {"cpu": 9})
    torch.testing.assert_close(head.score(texts, head.video_table(frames)), whole, rtol=0, atol=1e-13)


def test_sentence_features_are_refused(head):
    for call in (
        lambda: head.score(torch.randn(2, DIM), head.video_table(torch.randn(2, FRAMES, DIM))),
        lambda: head.similarities(torch.randn(2, DIM), torch.randn(2, FRAMES, DIM), torch.arange(2)),
    ):
        with pytest.raises(BadInput, match="compares words"):
            call()


def test_gradients_reach_every_parameter(head):
    texts, frames = features([4, 2, 6], 3)
    head.similarities(texts.requires_grad_(), frames, torch.arange(3))[0].matrix.square().sum().backward()
    for name, parameter in head.named_parameters():
        # A shift of all weights before a softmax changes nothing.
        assert name.endswith("weight.2.bias") or parameter.grad.abs().max() > 0, name
    assert texts.grad.isfinite().all() and texts.grad[1, 3:].abs().max() == 0
