import math

import numpy as np
import pytest
import torch

from calmctl.model.heads.base import WeightedSimilarity
from calmctl.model.losses import contrastive_loss, task_loss


def log_softmax_at(values, index):
    return values[index] - math.log(sum(math.exp(v) for v in values))


def by_hand(similarity, scale, paired, same_clip=None):
    n = len(similarity)
    total = 0.0
    for i in range(n):
        own = paired[i]
        row = {j: scale * similarity[i, j] for j in range(similarity.shape[1])}
        column = {k: scale * similarity[k, own] for k in range(n)}
        if same_clip is not None:
            row = {j: x for j, x in row.items() if j == own or not same_clip[i, j]}
            column = {k: x for k, x in column.items() if k == i or not same_clip[k, own]}
        total -= row[own] - math.log(sum(math.exp(x) for x in row.values()))
        total -= column[i] - math.log(sum(math.exp(x) for x in column.values()))
    return total / (2 * n)


def test_square_batch_is_the_formula():
    similarity = np.random.default_rng(0).uniform(-1, 1, (5, 5))
    rows = np.mean([-log_softmax_at(20 * similarity[i], i) for i in range(5)])
    columns = np.mean([-log_softmax_at(20 * similarity[:, j], j) for j in range(5)])
    found = contrastive_loss(torch.from_numpy(similarity), 20.0)
    assert found.item() == pytest.approx((rows + columns) / 2, abs=1e-12)


def test_several_texts_a_video():
    similarity = np.random.default_rng(1).uniform(-1, 1, (6, 4))
    paired = [3, 0, 0, 2, 3, 3]
    found = contrastive_loss(torch.from_numpy(similarity), 10.0, paired=torch.tensor(paired))
    assert found.item() == pytest.approx(by_hand(similarity, 10.0, paired), abs=1e-12)


def test_captions_of_the_same_clip_are_no_negatives():
    similarity = np.random.default_rng(2).uniform(-1, 1, (4, 4))
    clips = torch.tensor([7, 8, 7, 9])
    same = clips[:, None] == clips
    kept = same.clone()
    found = contrastive_loss(torch.from_numpy(similarity), 10.0, same_clip=same)
    assert found.item() == pytest.approx(by_hand(similarity, 10.0, range(4), same.numpy()), abs=1e-12)
    assert found.item() < contrastive_loss(torch.from_numpy(similarity), 10.0).item()
    assert torch.equal(same, kept)


def test_masking_with_shared_videos():
    similarity = np.random.default_rng(3).uniform(-1, 1, (4, 3))
    paired = [0, 0, 1, 2]
    same = torch.tensor([[1, 0, 0], [1, 0, 0], [0, 1, 1], [0, 1, 1]]).bool()  # videos 1 and 2: one clip twice
    found = contrastive_loss(torch.from_numpy(similarity), 5.0, paired=torch.tensor(paired), same_clip=same)
    assert found.item() == pytest.approx(by_hand(similarity, 5.0, paired, same.numpy()), abs=1e-12)


def test_limits():
    assert contrastive_loss(torch.tensor([[0.3]]), 100.0).item() == 0
    assert contrastive_loss(torch.zeros(8, 8), 100.0).item() == pytest.approx(math.log(8), rel=1e-6)
    assert contrastive_loss(2 * torch.eye(4) - 1, 100.0).item() == pytest.approx(0, abs=1e-6)


def test_gradients_reach_similarity_and_scale():
    similarity = torch.rand(4, 4, requires_grad=True)
    scale = torch.tensor(10.0, requires_grad=True)
    same = torch.tensor([0, 0, 1, 2])[:, None] == torch.tensor([0, 0, 1, 2])
    contrastive_loss(similarity, scale, same_clip=same).backward()
    assert similarity.grad.isfinite().all() and scale.grad.abs() > 0
    assert similarity.grad[0, 1] == 0 and similarity.grad[1, 0] == 0  # masked: neither pulled nor pushed
    assert similarity.grad.diagonal().max() < 0


def test_task_loss_weighs_a_heads_matrices():
    first, second = torch.rand(3, 3), torch.rand(3, 3)
    similarities = [WeightedSimilarity("task", 1.0, first), WeightedSimilarity("support", 0.8, second)]
    total, parts = task_loss(similarities, 7.0)
    assert parts == {"task": contrastive_loss(first, 7.0), "support": contrastive_loss(second, 7.0)}
    assert total.item() == pytest.approx(parts["task"].item() + 0.8 * parts["support"].item(), rel=1e-6)
