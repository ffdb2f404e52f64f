import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from calmctl.anchors.distribution import entropy
from calmctl.model.losses import direct_alignment_loss, kl_to_standard_normal, reconstruction_loss


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
