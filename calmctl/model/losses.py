"""Losses as functions of tensors: contrastive, the alignment of V_p and S_p, and a caption's tokens."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from calmctl.anchors.distribution import at_least_float32, kl_divergence
from calmctl.model.heads.base import Similarity, WeightedSimilarity


def contrastive_loss(
    similarity: Tensor, scale: Tensor | float, *, paired: Tensor | None = None, same_clip: Tensor | None = None
) -> Tensor:
    """Half the cross-entropy of finding each text's video, plus half that of finding each video's text.

        L = 1/2 [ mean_i -log softmax_j(s * sim(i, :))_p(i)  +  mean_i -log softmax_k(s * sim(:, p(i)))_i ]

    Both means run over the texts, so that a video with several texts counts once for each of them; with one
    text a video, p the identity, this is the formula of the reference.

    Args:
        similarity: Cosines [B_t, B_v].
        scale: s, exp(logit_scale).
        paired: p, [B_t]: each text's own video; default: text i belongs to video i.
        same_clip: Bool [B_t, B_v], true where a text describes the same clip as a column shows. Such pairs are
            no negatives then, except that a text's own pair stays its positive. Default: nothing is masked, as
            in the reference.

    Returns:
        The scalar loss; 0 for a batch of one.
    """
    texts = torch.arange(len(similarity), device=similarity.device)
    own = texts if paired is None else paired
    by_text = scale * similarity
    by_video = by_text.T[own]  # row i: all texts against the video of text i
    if same_clip is not None:
        others = same_clip.clone()
        others[texts, own] = False
        by_text = by_text.masked_fill(others, -torch.inf)
        other_texts = same_clip.T[own]
        other_texts[texts, texts] = False
        by_video = by_video.masked_fill(other_texts, -torch.inf)
    return (F.cross_entropy(by_text, own) + F.cross_entropy(by_video, texts)) / 2


def task_loss(
    similarities: Sequence[Similarity],
    scale: Tensor | float,
    *,
    paired: Tensor | None = None,
    same_clip: Tensor | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """A head's loss: the weighted sum of the `contrastive_loss` of its matrices (L_ce + lambda L_sup for T-MASS).

    Losses that a head gives as such are added with their weights (UATVR's `mil` and `kl_prob`).

    Returns:
        The sum, and each summand before weighting, by name.
    """
    parts = {
        term.name: contrastive_loss(term.matrix, scale, paired=paired, same_clip=same_clip)
        if isinstance(term, WeightedSimilarity)
        else term.value
        for term in similarities
    }
    return torch.stack([term.weight * parts[term.name] for term in similarities]).sum(), parts


# Alignment of V_p and S_p: CALM's evidence bound and the plain losses of Table 7.
#
# All take distributions as logarithms [B, K], sum over anchors, and average over the batch
# (docs/science.md, reading 14).


def reconstruction_loss(log_s_hat: Tensor, log_s: Tensor) -> Tensor:
    """L_rec = - sum_k S_p(k) log S_hat(k), batch mean (Eq. 12); at least the entropy of S_p."""
    return -(log_s.exp() * log_s_hat).sum(dim=-1).mean()


def kl_to_standard_normal(mean: Tensor, logvar: Tensor, reduction: Literal["sum", "mean"] = "sum") -> Tensor:
    """L_KL = 1/2 sum_i (mu_i^2 + sigma_i^2 - log sigma_i^2 - 1), batch mean (Eq. 15).

    `reduction` "mean" divides by the latent dimension d, which Eq. 15 does not.
    """
    terms = 0.5 * (mean.square() + logvar.exp() - logvar - 1)
    return (terms.sum(dim=-1) if reduction == "sum" else terms.mean(dim=-1)).mean()


def free_bits_kl(
    mean: Tensor,
    logvar: Tensor,
    free_bits: float,
    average: Callable[[Tensor], Tensor],
    reduction: Literal["sum", "mean"],
) -> Tensor:
    """L_KL that asks nothing of a unit below `free_bits` nats (Kingma et al., 2016; reading 31).

        sum_i max( free_bits, batch mean of 1/2 (mu_i^2 + sigma_i^2 - log sigma_i^2 - 1) )

    `average` is the batch mean [B, d] -> [d], over all processes of the training: the maximum behind it is not linear.
    `reduction` as for `kl_to_standard_normal`.
    """
    units = average(0.5 * (mean.square() + logvar.exp() - logvar - 1)).clamp(min=free_bits)
    return units.sum() if reduction == "sum" else units.mean()


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


LABEL_FLOOR = 1e-4
"""What the zeros of a one-hot label become inside the logarithm of the reverse cross-entropy (docs/captioning.md)."""


def caption_loss(
    logits: Tensor, targets: Tensor, kind: Literal["smoothed", "symmetric"], *, smoothing: float, pad: int
) -> Tensor:
    """The loss of logits [N, T, V] for the tokens `targets` [N, T], a mean over all tokens but padding.

        smoothed:   - sum_v q_v log p_v,  q_v = (1 - s) [v = y] + s / V       (s = `smoothing`; 0: plain)
        symmetric:  1/2 (- log p_y)  +  1/2 (- sum_v p_v log q_v),  q the one-hot label, 0 clamped to 1e-4

    The second half of "symmetric" is the reverse cross-entropy; it equals -log(1e-4) (1 - p_y), which is how it
    is computed. `smoothing` has no part in it.
    """
    logits = at_least_float32(logits)
    if kind == "smoothed":
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=pad, label_smoothing=smoothing)
    forward = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=pad, reduction="none")
    reverse = -math.log(LABEL_FLOOR) * (1 - (-forward).exp())
    # Padding has forward = 0, so p_y = 1 there and both halves vanish: only the count must leave it out.
    return 0.5 * (forward + reverse).sum() / (targets != pad).sum().clamp(min=1)
