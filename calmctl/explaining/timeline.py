"""When: the anchors over a video's seconds, which the paper's mean over frames loses."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from calmctl.anchors.distribution import entropy
from calmctl.explaining.explainer import Explainer
from calmctl.explaining.video import SeenVideo

SEGMENTS = 6
LEAST_PEAK = 0.01


@dataclass(frozen=True, slots=True)
class Segment:
    """A stretch of the video.

    Attributes:
        start_s: Its start in seconds.
        end_s: Its end.
        video: V_p of its own mean feature, [K]: Eq. 7 over this stretch alone.
        cosine: The mean cosine of its frames with the sentence.
    """

    start_s: float
    end_s: float
    video: Tensor
    cosine: float


@dataclass(frozen=True, slots=True)
class Timeline:
    """Distributions over the K anchors at T instants.

    Attributes:
        instants_s: Seconds by the file's own clock, [T].
        video: The distribution of each frame alone, [T, K].
        entropy: Its entropy in nats, [T].
        cosines: The cosine of each frame with the sentence, [T].
        segments: Equal stretches, in order.
    """

    instants_s: np.ndarray
    video: Tensor
    entropy: Tensor
    cosines: Tensor
    segments: tuple[Segment, ...]

    def strongest(self, count: int) -> list[int]:
        """The anchors with the highest peaks on the timeline, highest first; besides the first, none below 1 %."""
        peaks = self.video.max(dim=0).values
        order: list[int] = peaks.argsort(descending=True, stable=True)[:count].tolist()
        return [k for place, k in enumerate(order) if place == 0 or float(peaks[k]) >= LEAST_PEAK]


@torch.inference_mode()
def timeline(explainer: Explainer, seen: SeenVideo, text: Tensor) -> Timeline:
    """The timeline of a video, held against one sentence's features [D]."""
    log_p = explainer.log_v(seen.instants[:, None])
    cosines = F.normalize(seen.instants, dim=-1) @ F.normalize(text, dim=-1)
    count = min(SEGMENTS, len(seen.instants_s))
    edges = np.linspace(seen.start_s, seen.end_s, count + 1)
    segments = []
    for i in range(count):
        # Centres of equal intervals, at least one for each stretch: none lies on an edge's wrong side.
        inside = np.flatnonzero((seen.instants_s >= edges[i]) & (seen.instants_s <= edges[i + 1]))
        segments.append(
            Segment(
                start_s=float(edges[i]),
                end_s=float(edges[i + 1]),
                video=explainer.log_v(seen.instants[inside]).exp(),
                cosine=float(cosines[inside].mean()),
            )
        )
    return Timeline(seen.instants_s, log_p.exp(), entropy(log_p), cosines, tuple(segments))
