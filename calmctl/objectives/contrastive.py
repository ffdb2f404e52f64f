"""The symmetric cross-entropy of text-video retrieval (docs/science.md, The heads)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from calmctl.model.heads.base import WeightedSimilarity


def contrastive_loss(
    similarity: Tensor,
    scale: Tensor | float,
    *,
    paired: Tensor | None = None,
    same_clip: Tensor | None = None,
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
    similarities: Sequence[WeightedSimilarity],
    scale: Tensor | float,
    *,
    paired: Tensor | None = None,
    same_clip: Tensor | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """A head's loss: the weighted sum of the `contrastive_loss` of its matrices (L_ce + lambda L_sup for T-MASS).

    Returns:
        The sum, and each matrix's loss before weighting, by name.
    """
    parts = {
        each.name: contrastive_loss(each.matrix, scale, paired=paired, same_clip=same_clip) for each in similarities
    }
    return torch.stack([each.weight * parts[each.name] for each in similarities]).sum(), parts
