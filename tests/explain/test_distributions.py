import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from calmctl.explain.anchors import compare, reconstruct, without
from calmctl.model.vae import CrossModalVAE


def log_probabilities(seed: int, k: int = 6, spread: float = 2.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (spread * torch.randn(k, generator=generator, dtype=torch.float64)).log_softmax(-1)


def test_comparison_against_sums_written_out():
    log_v, log_s = log_probabilities(1), log_probabilities(2)
    found = compare(log_v, log_s)
    v, s = np.exp(log_v.numpy()), np.exp(log_s.numpy())
    assert found.divergence == pytest.approx(sum(a * math.log(a / b) for a, b in zip(s, v, strict=True)), abs=1e-12)
    assert found.video_entropy == pytest.approx(-sum(b * math.log(b) for b in v), abs=1e-12)
    assert found.text_entropy == pytest.approx(-sum(a * math.log(a) for a in s), abs=1e-12)
    assert found.overlap == pytest.approx(1 - 0.5 * sum(abs(a - b) for a, b in zip(s, v, strict=True)), abs=1e-12)
    assert float(found.parts.sum()) == pytest.approx(found.divergence)


def test_equal_distributions_share_everything():
    log_p = log_probabilities(3)
    found = compare(log_p, log_p)
    assert found.overlap == pytest.approx(1) and found.divergence == pytest.approx(0)


def test_an_anchor_without_mass_in_the_sentence_costs_nothing():
    log_s = torch.tensor([0.0, -torch.inf], dtype=torch.float64)
    log_v = torch.tensor([0.25, 0.75], dtype=torch.float64).log()
    assert compare(log_v, log_s).divergence == pytest.approx(math.log(4))


@given(hnp.arrays(np.float64, 7, elements=st.floats(-8, 8)), st.sets(st.integers(0, 6), max_size=5))
def test_without_is_the_softmax_over_the_other_anchors(logits, removed):
    kept = [k for k in range(7) if k not in removed]
    found = without(torch.from_numpy(logits).log_softmax(-1), sorted(removed))
    expected = np.exp(logits[kept]) / np.exp(logits[kept]).sum()
    np.testing.assert_allclose(found.exp().numpy(), expected, rtol=1e-9)


@pytest.fixture
def vae() -> CrossModalVAE:
    torch.manual_seed(5)
    return CrossModalVAE(6, latent=4).eval()


def test_reconstruction_against_the_vae_itself(vae):
    log_v, log_s = log_probabilities(1).float(), log_probabilities(2).float()
    found = reconstruct(vae, log_v, log_s)
    with torch.no_grad():
        posterior = vae.posterior(log_v[None])
        hat = vae.decode(posterior.mean)[0].double()
        knowing_nothing = vae.decode(torch.zeros(1, 4))[0].double()
    s = log_s.double().exp()
    after = float((s * (log_s.double() - hat)).sum())
    before = float((s * (log_s.double() - log_v.double())).sum())
    assert found.divergence == pytest.approx(after)
    assert found.closed == pytest.approx(1 - after / before)
    assert found.prior_divergence == pytest.approx(float((s * (log_s.double() - knowing_nothing)).sum()))
    # KL(q || N(0, I)) from torch's own distributions.
    q = torch.distributions.Normal(posterior.mean[0], (0.5 * posterior.logvar[0]).exp())
    prior = torch.distributions.Normal(torch.zeros(4), torch.ones(4))
    kl = torch.distributions.kl_divergence(q, prior).detach()
    assert found.kl == pytest.approx(float(kl.sum()), rel=1e-5)
    assert found.active == int((kl > 0.01).sum()) and found.units == 4
    entropies = (q.entropy() - prior.entropy()).sum()
    assert found.posterior_entropy == pytest.approx(float(entropies.detach()), abs=1e-5)
    assert 0 < found.spread < 1


def test_reconstruction_is_the_same_every_time(vae):
    log_v, log_s = log_probabilities(1), log_probabilities(2)
    assert reconstruct(vae, log_v, log_s).spread == reconstruct(vae, log_v, log_s).spread


def test_nothing_to_close_between_equals(vae):
    log_p = log_probabilities(1)
    assert reconstruct(vae, log_p, log_p).closed is None
