"""A linear map behind each tower: what trains where the towers do not (our choice)."""

from __future__ import annotations

from torch import nn


class FeatureAdapter(nn.Module):
    """x + Wx + b on frame and on sentence features, W = b = 0 at first (our choice).

    On frozen features it is what the alignment loss can change.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.frames = nn.Linear(dim, dim)
        self.texts = nn.Linear(dim, dim)
        for parameter in self.parameters():
            nn.init.zeros_(parameter)
