"""Losses of a caption's tokens (docs/captioning.md)."""

from __future__ import annotations

import math
from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from calmctl.anchors.distribution import at_least_float32

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
