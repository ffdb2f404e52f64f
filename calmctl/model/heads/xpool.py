"""X-Pool: a deterministic text against its text-conditioned pooling of the frames (docs/science.md, The heads)."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from calmctl.model.exact import mixture_cosines, pooling_table, score_in_blocks
from calmctl.model.heads.base import VideoTable, WeightedSimilarity
from calmctl.model.pooling import TextConditionedPooling, pooled_cosines
from calmctl.model.precision import full_precision

_PAIRS_PER_BLOCK = 1 << 15


class XPoolHead(nn.Module):
    """Scores cos(t, V(v|t)). Computes in the type of its own weights: `head.double()` gives float64.

    Args:
        dim: D.
        heads: Attention heads of the pooling block.
        dropout: On the last linear branch of the pooling block, in training.
    """

    name = "xpool"

    def __init__(self, dim: int, heads: int = 1, dropout: float = 0.3) -> None:
        super().__init__()
        self.pooling = TextConditionedPooling(dim, heads, dropout)

    def similarities(self, texts: Tensor, frames: Tensor, paired: Tensor) -> list[WeightedSimilarity]:
        """Cosines [B_t, B_v] of texts [B_t, D] and frames [B_v, F, D]; `paired` plays no part."""
        with full_precision(texts.device):
            texts, frames = self._cast(texts), self._cast(frames)
            return [WeightedSimilarity("task", 1.0, pooled_cosines(texts, self.pooling(texts, frames)))]

    @torch.no_grad()
    def video_table(self, frames: Tensor) -> VideoTable:
        """The `pooling_table` of frames [N_v, F, D]."""
        with full_precision(frames.device):
            return pooling_table(self.pooling, self._cast(frames))

    @torch.no_grad()
    def score(self, texts: Tensor, table: VideoTable) -> Tensor:
        """Exact cosines [N_t, N_v]; dropout never applies."""
        with full_precision(texts.device):
            block = partial(mixture_cosines, self.pooling)
            return score_in_blocks(block, self.pooling, self._cast(texts), table, _PAIRS_PER_BLOCK)

    def _cast(self, features: Tensor) -> Tensor:
        return features.to(self.pooling.query.weight.dtype)
