"""Mean pooling without parameters: CLIP4Clip's meanP (docs/science.md, The heads)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from calmctl.model.heads.base import VideoTable, WeightedSimilarity
from calmctl.model.precision import full_precision


class MeanPoolHead(nn.Module):
    """L2-normalises every frame, averages, L2-normalises; a score is the cosine with the text."""

    name = "meanp"

    def similarities(self, texts: Tensor, frames: Tensor, paired: Tensor) -> list[WeightedSimilarity]:
        """Cosines [B_t, B_v] of texts [B_t, D] and frames [B_v, F, D]; `paired` plays no part."""
        with full_precision(texts.device):
            texts, frames = _at_least_float32(texts), _at_least_float32(frames)
            return [WeightedSimilarity("task", 1.0, F.normalize(texts, dim=-1) @ mean_video(frames).T)]

    @torch.no_grad()
    def video_table(self, frames: Tensor) -> VideoTable:
        """One unit vector a video: {"video": [N_v, D]}."""
        return {"video": mean_video(_at_least_float32(frames))}

    @torch.no_grad()
    def score(self, texts: Tensor, table: VideoTable) -> Tensor:
        """Cosines [N_t, N_v]."""
        with full_precision(texts.device):
            texts = texts.to(table["video"].dtype)
            return F.normalize(texts, dim=-1) @ table["video"].T


def mean_video(frames: Tensor) -> Tensor:
    """The unit vector of a video: frames [N_v, F, D] -> [N_v, D]."""
    return F.normalize(F.normalize(frames, dim=-1).mean(1), dim=-1)


def _at_least_float32(features: Tensor) -> Tensor:
    return features if features.dtype == torch.float64 else features.float()
