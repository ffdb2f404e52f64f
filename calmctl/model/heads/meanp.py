"""Mean pooling: CLIP4Clip's meanP, and what its seqLSTM and seqTransf end in (docs/science.md, The heads)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from calmctl.model.heads.base import VideoTable, WeightedSimilarity
from calmctl.model.precision import full_precision


class MeanPoolHead(nn.Module):
    """L2-normalises every frame, averages, L2-normalises; a score is the cosine with the text.

    Args:
        temporal: Layers that the frames [N_v, F, D] pass before; None for meanP, which has no parameters.
    """

    name = "meanp"
    reads = "sentences"
    rows_are_independent = True

    def __init__(self, temporal: nn.Module | None = None) -> None:
        super().__init__()
        self.temporal = temporal

    def similarities(self, texts: Tensor, frames: Tensor, paired: Tensor) -> list[WeightedSimilarity]:
        """Cosines [B_t, B_v] of texts [B_t, D] and frames [B_v, F, D]; `paired` plays no part."""
        with full_precision(texts.device):
            return [WeightedSimilarity("task", 1.0, F.normalize(self._cast(texts), dim=-1) @ self._video(frames).T)]

    @torch.no_grad()
    def video_table(self, frames: Tensor) -> VideoTable:
        """One unit vector a video: {"video": [N_v, D]}."""
        with full_precision(frames.device):
            return {"video": self._video(frames)}

    @torch.no_grad()
    def score(self, texts: Tensor, table: VideoTable) -> Tensor:
        """Cosines [N_t, N_v]."""
        with full_precision(texts.device):
            texts = texts.to(table["video"].dtype)
            return F.normalize(texts, dim=-1) @ table["video"].T

    def _video(self, frames: Tensor) -> Tensor:
        frames = self._cast(frames)
        return mean_video(frames if self.temporal is None else self.temporal(frames))

    def _cast(self, features: Tensor) -> Tensor:
        """To the type of the weights; without any, float64 stays and all else becomes float32."""
        weight = next(self.parameters(), None)
        if weight is not None:
            return features.to(weight.dtype)
        return features if features.dtype == torch.float64 else features.float()


def mean_video(frames: Tensor) -> Tensor:
    """The unit vector of a video: frames [N_v, F, D] -> [N_v, D]."""
    return F.normalize(F.normalize(frames, dim=-1).mean(1), dim=-1)
