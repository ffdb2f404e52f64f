"""Caption losses against their formulas, token by token in float64."""

import math

import numpy as np
import pytest
import torch

from calmctl.model.losses import caption_loss

PAD = -1
TARGETS = torch.tensor([[2, 0, 4], [1, PAD, PAD]])


def by_hand(logits: torch.Tensor, kind: str, smoothing: float) -> float:
    total, count = 0.0, 0
    for row, targets in zip(logits.double().numpy(), TARGETS.tolist(), strict=True):
        for z, y in zip(row, targets, strict=True):
            if y == PAD:
                continue
            p = np.exp(z) / np.exp(z).sum()
            if kind == "smoothed":
                q = (1 - smoothing) * np.eye(len(p))[y] + smoothing / len(p)
                total += -float((q * np.log(p)).sum())
            else:
                label = np.maximum(np.eye(len(p))[y], 1e-4)
                total += 0.5 * -math.log(p[y]) + 0.5 * -float((p * np.log(label)).sum())
            count += 1
    return total / count


@pytest.mark.parametrize(("kind", "smoothing"), [("smoothed", 0.1), ("smoothed", 0.0), ("symmetric", 0.1)])
def test_losses_are_their_formulas(kind, smoothing):
    logits = 2 * torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(0))
    loss = caption_loss(logits, TARGETS, kind, smoothing=smoothing, pad=PAD)
    assert float(loss) == pytest.approx(by_hand(logits, kind, smoothing), rel=1e-5)


@pytest.mark.parametrize("kind", ["smoothed", "symmetric"])
def test_padding_gets_no_gradient(kind):
    logits = torch.randn(2, 3, 5, requires_grad=True)
    caption_loss(logits, TARGETS, kind, smoothing=0.1, pad=PAD).backward()
    assert logits.grad is not None
    assert torch.equal(logits.grad.abs().sum(-1) > 0, TARGETS != PAD)
