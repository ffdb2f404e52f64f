"""Numbers that tell whether the alignment is alive (docs/science.md)."""

from __future__ import annotations

import torch
from torch import Tensor

from calmctl.anchors.distribution import entropy, kl_divergence
from calmctl.model.vae import Posterior

ACTIVE_UNIT_VARIANCE = 0.01
"""A latent unit is active where the variance of mu_i over the batch exceeds this."""


@torch.no_grad()
def alignment_diagnostics(
    log_s: Tensor, log_v: Tensor, reconstruction: Tensor | None, posterior: Posterior | None
) -> dict[str, Tensor]:
    """Entropies, peaks and divergences of S_p and V_p [B, K], and the VAE's activity, as scalars.

    `rec_excess` is L_rec - H(S_p) = KL(S_p || S_hat), the reducible part; `mean_predictor_excess` is the
    same for the batch mean of S_p. A VAE that does not get below the latter ignores its input.
    """
    entropy_s = entropy(log_s).mean()
    numbers = {
        "entropy_s": entropy_s,
        "entropy_v": entropy(log_v).mean(),
        "peak_s": log_s.max(dim=-1).values.exp().mean(),
        "peak_v": log_v.max(dim=-1).values.exp().mean(),
        "kl_s_v": kl_divergence(log_s, log_v).mean(),
    }
    if reconstruction is not None and posterior is not None:
        log_mean = log_s.logsumexp(dim=0) - torch.tensor(float(len(log_s))).log()
        numbers["rec_excess"] = reconstruction - entropy_s
        numbers["mean_predictor_excess"] = kl_divergence(log_s, log_mean).mean()
        active = posterior.mean.var(dim=0, unbiased=False) > ACTIVE_UNIT_VARIANCE
        numbers["active_units"] = active.sum().float()
        numbers["posterior_sigma"] = (0.5 * posterior.logvar).exp().mean()
    return numbers
