"""Alignment of V_p and S_p: CALM's evidence bound and the plain losses of Table 7.

All take distributions as logarithms [B, K], sum over anchors, and average over the batch
(docs/science.md, reading 14).
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from calmctl.anchors.distribution import kl_divergence


def reconstruction_loss(log_s_hat: Tensor, log_s: Tensor) -> Tensor:
    """L_rec = - sum_k S_p(k) log S_hat(k), batch mean (Eq. 12); at least the entropy of S_p."""
    return -(log_s.exp() * log_s_hat).sum(dim=-1).mean()


def kl_to_standard_normal(mean: Tensor, logvar: Tensor, reduction: Literal["sum", "mean"] = "sum") -> Tensor:
    """L_KL = 1/2 sum_i (mu_i^2 + sigma_i^2 - log sigma_i^2 - 1), batch mean (Eq. 15).

    `reduction` "mean" divides by the latent dimension d, which Eq. 15 does not.
    """
    terms = 0.5 * (mean.square() + logvar.exp() - logvar - 1)
    return (terms.sum(dim=-1) if reduction == "sum" else terms.mean(dim=-1)).mean()


def direct_alignment_loss(kind: Literal["kl", "ce", "mse"], log_v: Tensor, log_s: Tensor) -> Tensor:
    """Table 7's discriminative rows, batch mean (docs/science.md, reading 23).

    kl: KL(S_p || V_p). ce: - sum_k S_p(k) log V_p(k). mse: sum_k (S_p(k) - V_p(k))^2; the paper gives no
    reduction, the sum over anchors is our choice as for the others.
    """
    match kind:
        case "kl":
            return kl_divergence(log_s, log_v).mean()
        case "ce":
            return -(log_s.exp() * log_v).sum(dim=-1).mean()
        case "mse":
            return (log_s.exp() - log_v.exp()).square().sum(dim=-1).mean()
