import math

import pytest
import torch

from calmctl.model.vae import LAYOUTS, CrossModalVAE


def parameters(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize(
    ("layout", "count"), [("A", 416_925), ("B", 383_901), ("C", 409_757), ("D", 398_109), ("D2", 464_797)]
)
def test_parameter_counts_of_the_specification(layout, count):
    assert parameters(CrossModalVAE(157, layout=layout)) == count


def test_the_default_with_its_offsets_fits_the_papers_budget():
    added = parameters(CrossModalVAE(157)) + 157 * 512
    assert added == 497_309
    assert f"{(152_600_322 + added) / 1e6:.1f}" == "153.1"


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("input", ["probability", "log", "scaled"])
def test_shapes_and_normalisation(layout, input):
    vae = CrossModalVAE(7, latent=5, layout=layout, input=input).double().eval()
    log_v = torch.randn(3, 7, dtype=torch.float64).log_softmax(-1)
    posterior = vae.posterior(log_v)
    assert posterior.mean.shape == posterior.logvar.shape == (3, 5)
    log_s_hat = vae.decode(posterior.mean)
    torch.testing.assert_close(log_s_hat.exp().sum(-1), torch.ones(3, dtype=torch.float64))


def test_forward_against_a_transcription_in_float64():
    torch.manual_seed(0)
    vae = CrossModalVAE(6, latent=4, layout="A").double().eval()
    log_v = torch.randn(5, 6, dtype=torch.float64).log_softmax(-1)
    weights = {name: tensor.numpy() for name, tensor in vae.state_dict().items()}
    v = log_v.exp().numpy()
    h = (v @ weights["trunk.0.weight"].T + weights["trunk.0.bias"]).clip(min=0)
    mu = h @ weights["mean.0.weight"].T + weights["mean.0.bias"]
    hidden = (mu @ weights["decoder.0.weight"].T + weights["decoder.0.bias"]).clip(min=0)
    logits = hidden @ weights["decoder.3.weight"].T + weights["decoder.3.bias"]
    posterior = vae.posterior(log_v)
    torch.testing.assert_close(posterior.mean, torch.from_numpy(mu))
    torch.testing.assert_close(vae.decode(posterior.mean), torch.from_numpy(logits).log_softmax(-1))


def test_samples_have_the_posteriors_moments():
    torch.manual_seed(0)
    vae = CrossModalVAE(6, latent=2).eval()
    posterior = vae.posterior(torch.randn(1, 6).log_softmax(-1))
    drawn = torch.stack([posterior.sample() for _ in range(20_000)])
    torch.testing.assert_close(drawn.mean(0), posterior.mean, atol=0.03, rtol=0)
    torch.testing.assert_close(drawn.var(0), posterior.logvar.exp(), atol=0.05, rtol=0.05)


def test_variances_are_clamped():
    vae = CrossModalVAE(4, latent=3, logvar_limit=2.0).eval()
    torch.nn.init.constant_(vae.logvar[-1].bias, 50.0)
    assert float(vae.posterior(torch.zeros(1, 4).log_softmax(-1)).logvar.detach().max()) == 2.0
    assert math.isfinite(float(vae.posterior(torch.zeros(1, 4).log_softmax(-1)).sample().detach().sum()))
