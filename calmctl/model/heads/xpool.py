"""X-Pool: a deterministic text against its text-conditioned pooling of the frames (docs/science.md, The heads)."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from calmctl.model.backbone import full_precision
from calmctl.model.heads import pooling
from calmctl.model.heads.base import Compared, Probes, VideoTable, WeightedSimilarity

# Sixteen times T-MASS's blocks, which hold D numbers per pair where these hold three times the frames.
_PAIRS_PER_BLOCK = {"cpu": 1 << 15, "cuda": 1 << 20}


class XPoolHead(nn.Module):
    """Scores cos(t, V(v|t)). Computes in the type of its own weights: `head.double()` gives float64.

    Args:
        dim: D.
        heads: Attention heads of the pooling block.
        dropout: On the last linear branch of the pooling block, in training.
    """

    name = "xpool"
    reads = "sentences"
    rows_are_independent = True

    def __init__(self, dim: int, heads: int = 1, dropout: float = 0.3) -> None:
        super().__init__()
        self.pooling = pooling.TextConditionedPooling(dim, heads, dropout)

    def similarities(self, texts: Tensor, frames: Tensor, paired: Tensor) -> list[WeightedSimilarity]:
        """Cosines [B_t, B_v] of texts [B_t, D] and frames [B_v, F, D]; `paired` plays no part."""
        with full_precision(texts.device):
            texts, frames = self._cast(texts), self._cast(frames)
            return [WeightedSimilarity("task", 1.0, pooling.pooled_cosines(texts, self.pooling(texts, frames)))]

    @torch.no_grad()
    def video_table(self, frames: Tensor) -> VideoTable:
        """The `pooling_table` of frames [N_v, F, D]."""
        with full_precision(frames.device):
            return pooling.pooling_table(self.pooling, self._cast(frames))

    @torch.no_grad()
    def score(self, texts: Tensor, table: VideoTable) -> Tensor:
        """Exact cosines [N_t, N_v]; dropout never applies."""
        with full_precision(texts.device):
            # Not the form of training: that takes a D x D product for every pair. `score_dense` keeps it for tests to
            # compare.
            block = partial(pooling.mixture_cosines, self.pooling)
            pairs = _PAIRS_PER_BLOCK.get(texts.device.type, 1 << 15)
            return pooling.score_in_blocks(block, self.pooling, self._cast(texts), table, pairs)

    @torch.no_grad()
    def explain(self, text: Tensor, frames: Tensor) -> Compared:
        """The sentence and the frames pooled for it."""
        pooled, weights = pooling.attended(
            self.pooling, pooling.prepare_texts(self.pooling, text[None]), self.video_table(frames[None])
        )
        return Compared(text.new_ones(1), text[None], pooled[None], weights)

    @torch.no_grad()
    def score_directly(self, texts: Tensor, frames: Tensor) -> Tensor:
        """The cosines of `score` by the formula as it reads, [N_t, N_v]; in evaluation mode."""
        with full_precision(texts.device):
            texts, frames = self._cast(texts), self._cast(frames)
            # For the few clips that a search looks at last: a tenth of the time that their tables would take to make.
            return pooling.pooled_cosines(texts, self.pooling(texts, frames))

    @torch.no_grad()
    def probe_table(self, frames: Tensor) -> VideoTable:
        """The `pooling.probe_table` of frames [N_v, F, D]."""
        with full_precision(frames.device):
            return pooling.probe_table(self.pooling, self._cast(frames))

    @torch.no_grad()
    def text_probes(self, texts: Tensor) -> Probes:
        """The `pooling.text_probes` of texts [N_t, D]."""
        with full_precision(texts.device):
            return pooling.text_probes(self.pooling, self._cast(texts))

    @torch.no_grad()
    def score_probed(self, probes: Probes, dots: Tensor, table: VideoTable) -> Tensor:
        """The cosines of `score`, [N_t, N_v], from dot products with the frames."""
        with full_precision(dots.device):
            return pooling.probed_cosines(self.pooling, probes, dots, table)

    def _cast(self, features: Tensor) -> Tensor:
        # The weights decide, so that tests can score in float64 and tell rounding from a mistake.
        return features.to(self.pooling.query.weight.dtype)
