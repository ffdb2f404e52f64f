"""The dense form of text-conditioned scoring: D x D work for every pair, kept as the yardstick of the exact one."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from calmctl.model.heads.tmass import TMassHead
from calmctl.model.heads.xpool import XPoolHead
from calmctl.model.pooling import pooled_cosines


@torch.no_grad()
def score_dense(
    head: XPoolHead | TMassHead,
    texts: Tensor,
    frames: Tensor,
    *,
    text_chunk: int = 512,
    video_chunk: int = 32,
) -> Tensor:
    """Scores [N_t, N_v] by the formulas as they are written, `text_chunk` x `video_chunk` pairs at a time.

    Pools with the training form of the pooling block; T-MASS tries every vector of the head's noise bank in
    turn. Texts and frames must have the head's own type.
    """
    training = head.training
    head.eval()
    try:
        scores = texts.new_empty(len(texts), len(frames))
        for i in range(0, len(texts), text_chunk):
            for j in range(0, len(frames), video_chunk):
                block = _score(head, texts[i : i + text_chunk], frames[j : j + video_chunk])
                scores[i : i + text_chunk, j : j + video_chunk] = block
        return scores
    finally:
        head.train(training)


def _score(head: XPoolHead | TMassHead, texts: Tensor, frames: Tensor) -> Tensor:
    pooled = head.pooling(texts, frames)
    if isinstance(head, XPoolHead) or head.trials == 0:
        return pooled_cosines(texts, pooled)
    cosines = torch.einsum("td,vfd->vtf", F.normalize(texts, dim=-1), F.normalize(frames, dim=-1))
    radii = head.radius.linear(cosines).exp()
    best = texts.new_full((len(frames), len(texts)), -torch.inf)
    for noise in head.noise_bank().to(texts.device):
        best = torch.maximum(best, F.cosine_similarity(texts + noise * radii, pooled, dim=-1))
    return best.T
