import math
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from calmctl.anchors.distribution import entropy
from calmctl.model.losses import direct_alignment_loss, free_bits_kl, kl_to_standard_normal, reconstruction_loss


def log_distributions(batch: int, anchors: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (3 * torch.randn(batch, anchors, generator=generator, dtype=torch.float64)).log_softmax(-1)


@given(st.integers(1, 6), st.integers(2, 9), st.integers(0, 10_000))
def test_reconstruction_is_at_least_the_targets_entropy(batch, anchors, seed):
    log_s, log_s_hat = log_distributions(batch, anchors, seed), log_distributions(batch, anchors, seed + 1)
    assert reconstruction_loss(log_s_hat, log_s) >= entropy(log_s).mean() - 1e-12
    torch.testing.assert_close(reconstruction_loss(log_s, log_s), entropy(log_s).mean())


def test_kl_of_the_prior_is_zero_and_other_values_match_torch():
    zero = torch.zeros(3, 4, dtype=torch.float64)
    assert kl_to_standard_normal(zero, zero) == 0
    mean, logvar = torch.randn(3, 4, dtype=torch.float64), torch.randn(3, 4, dtype=torch.float64)
    q = torch.distributions.Normal(mean, (0.5 * logvar).exp())
    p = torch.distributions.Normal(zero, torch.ones_like(zero))
    reference = torch.distributions.kl_divergence(q, p).sum(-1).mean()
    torch.testing.assert_close(kl_to_standard_normal(mean, logvar), reference)
    torch.testing.assert_close(kl_to_standard_normal(mean, logvar, "mean"), reference / 4)


def test_free_bits_ask_nothing_of_a_unit_below_them():
    torch.manual_seed(0)
    mean, logvar = torch.randn(5, 3, dtype=torch.float64), torch.randn(5, 3, dtype=torch.float64)
    mean[:, 0], logvar[:, 0] = 0.1, 0.0  # 0.005 nats
    units = [
        sum(0.5 * (float(mean[b, i]) ** 2 + math.exp(logvar[b, i]) - float(logvar[b, i]) - 1) for b in range(5)) / 5
        for i in range(3)
    ]
    average = partial(torch.mean, dim=0)
    loss = free_bits_kl(mean, logvar, 0.02, average, "sum")
    assert float(loss) == pytest.approx(sum(max(0.02, unit) for unit in units)) and units[0] < 0.02 < units[1]
    assert float(free_bits_kl(mean, logvar, 0.02, average, "mean")) == pytest.approx(float(loss) / 3)
    torch.testing.assert_close(free_bits_kl(mean, logvar, 0.0, average, "sum"), kl_to_standard_normal(mean, logvar))
    mean.requires_grad_()
    free_bits_kl(mean, logvar, 0.02, average, "sum").backward()
    assert float(mean.grad[:, 0].abs().max()) == 0 and float(mean.grad[:, 1].abs().min()) > 0


def test_direct_losses_against_sums_written_out():
    log_s, log_v = log_distributions(4, 5, 0), log_distributions(4, 5, 1)
    s, v = log_s.exp().numpy(), log_v.exp().numpy()
    rows = range(4)
    import numpy as np

    expected = {
        "kl": np.mean([sum(s[b] * np.log(s[b] / v[b])) for b in rows]),
        "ce": np.mean([-sum(s[b] * np.log(v[b])) for b in rows]),
        "mse": np.mean([sum((s[b] - v[b]) ** 2) for b in rows]),
    }
    for kind, value in expected.items():
        assert float(direct_alignment_loss(kind, log_v, log_s)) == pytest.approx(value, rel=1e-12)
    assert float(direct_alignment_loss("kl", log_s, log_s)) == pytest.approx(0, abs=1e-15)
