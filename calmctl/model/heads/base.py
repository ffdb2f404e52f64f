"""The one interface that every fusion head has."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


@dataclass(frozen=True, slots=True)
class WeightedSimilarity:
    """A [B_t, B_v] matrix of cosines and its weight in the task loss.

    Attributes:
        name: "task" for the main matrix, else the name of the auxiliary loss ("support").
        weight: The factor of its symmetric cross-entropy.
        matrix: Cosines [B_t, B_v].
    """

    name: str
    weight: float
    matrix: Tensor


VideoTable = dict[str, Tensor]
"""What a head keeps of the videos for scoring: tensors whose first axis is the video axis, [N_v, ...]."""


class FusionHead(Protocol):
    """A fusion head scores texts [N_t, D] against the frames of videos [N_v, F, D].

    Inputs are the backbone's raw projected features (not L2-normalised). Scoring sees a text, a video and
    the weights, and nothing else: no argument says which text belongs to which video.
    """

    name: str

    def similarities(self, texts: Tensor, frames: Tensor, paired: Tensor) -> list[WeightedSimilarity]:
        """Training: the cosine matrices whose symmetric cross-entropies are the task loss.

        Args:
            texts: [B_t, D].
            frames: [B_v, F, D].
            paired: [B_t], the index in `frames` of each text's own video (T-MASS takes its radius from it).
        """
        ...

    def video_table(self, frames: Tensor) -> VideoTable:
        """Everything scoring needs of the videos, computed once: a dict of [N_v, ...] tensors."""
        ...

    def score(self, texts: Tensor, table: VideoTable) -> Tensor:
        """Exact scores [N_t, N_v] in float32, or in float64 where the inputs are."""
        ...
