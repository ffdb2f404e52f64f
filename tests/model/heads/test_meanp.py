import numpy as np
import torch

from calmctl.model.heads.meanp import MeanPoolHead


def by_hand(texts, frames):
    scores = np.empty((len(texts), len(frames)))
    for t, text in enumerate(texts):
        for v, video in enumerate(frames):
            mean = np.mean([frame / np.sqrt(frame @ frame) for frame in video], axis=0)
            scores[t, v] = text @ mean / np.sqrt((text @ text) * (mean @ mean))
    return scores


def test_both_forms_are_the_formula():
    rng = np.random.default_rng(0)
    texts, frames = rng.normal(size=(5, 8)), rng.normal(size=(3, 4, 8)) * rng.uniform(1, 9, size=(3, 4, 1))
    head = MeanPoolHead()
    t, f = torch.from_numpy(texts), torch.from_numpy(frames)
    (only,) = head.similarities(t, f, torch.tensor([0, 1, 2, 0, 1]))
    assert (only.name, only.weight) == ("task", 1.0)
    np.testing.assert_allclose(only.matrix.numpy(), by_hand(texts, frames), atol=1e-14)
    np.testing.assert_allclose(head.score(t, head.video_table(f)).numpy(), by_hand(texts, frames), atol=1e-14)


def test_types():
    texts, frames = torch.randn(2, 8), torch.randn(3, 4, 8)
    head = MeanPoolHead()
    assert list(head.parameters()) == []
    for given, expected in [
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ]:
        scores = head.score(texts.to(given), head.video_table(frames.to(given)))
        assert scores.dtype == expected and scores.shape == (2, 3)


def test_autocast_does_not_shorten_the_cosines():
    torch.manual_seed(0)
    texts, frames = torch.randn(4, 64), torch.randn(4, 3, 64)
    (full,) = MeanPoolHead().similarities(texts, frames, torch.arange(4))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        (mixed,) = MeanPoolHead().similarities(texts, frames, torch.arange(4))
    assert torch.equal(full.matrix, mixed.matrix)


def test_gradients_flow_to_the_backbone():
    texts, frames = torch.randn(3, 8, requires_grad=True), torch.randn(3, 2, 8, requires_grad=True)
    (only,) = MeanPoolHead().similarities(texts, frames, torch.arange(3))
    only.matrix.diagonal().sum().backward()
    assert texts.grad.abs().min(dim=1).values.max() > 0 and frames.grad.abs().amax(dim=(1, 2)).min() > 0
