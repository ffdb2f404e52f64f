"""Probability distributions over anchors, and what is measured on them. All in float32 or better."""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor


def anchor_log_probabilities(features: Tensor, anchors: Tensor, temperature: float | Tensor) -> Tensor:
    """log softmax_k(tau * cos(feature, p_k)): the logarithm of V_p or S_p (Eq. 6, 7).

    Args:
        features: [..., D], raw; sentence features, or the mean frame features of clips.
        anchors: P, [K, D].
        temperature: tau, multiplied with the cosines (docs/science.md, reading 1).

    Returns:
        [..., K]; its exponential sums to one. The logarithm is kept because every loss needs it.
    """
    features, anchors = at_least_float32(features), at_least_float32(anchors)
    cosines = F.normalize(features, dim=-1) @ F.normalize(anchors, dim=-1).T
    return (temperature * cosines).log_softmax(dim=-1)


def mean_frame_feature(frames: Tensor, mode: Literal["raw", "normalized"] = "raw") -> Tensor:
    """The mean over frames that V_p is taken from (Eq. 7): [..., F, D] -> [..., D].

    "raw" averages the features as they are; "normalized" gives every frame length one before (row 6).
    """
    frames = at_least_float32(frames)
    return (F.normalize(frames, dim=-1) if mode == "normalized" else frames).mean(dim=-2)


def video_log_probabilities(
    frames: Tensor,
    anchors: Tensor,
    temperature: float | Tensor,
    *,
    video: Literal["mean", "frames"] = "mean",
    frame_mean: Literal["raw", "normalized"] = "raw",
) -> Tensor:
    """log V_p, [..., K], of frame features [..., F, D] and anchors P [K, D].

    "mean" is the distribution of the mean frame feature (Eq. 7), "frames" the mean of the frames' own
    distributions (docs/science.md, reading 28); `frame_mean` is of no account there.
    """
    if video == "mean":
        return anchor_log_probabilities(mean_frame_feature(frames, frame_mean), anchors, temperature)
    own = anchor_log_probabilities(frames, anchors, temperature)
    return own.logsumexp(dim=-2) - math.log(frames.shape[-2])


def entropy(log_p: Tensor) -> Tensor:
    """Entropy in nats of distributions given as logarithms: [..., K] -> [...]."""
    return -(log_p.exp() * log_p).sum(dim=-1)


def kl_divergence(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(p || q) in nats of distributions given as logarithms: [..., K] -> [...]."""
    return (log_p.exp() * (log_p - log_q)).sum(dim=-1)


def at_least_float32(tensor: Tensor) -> Tensor:
    """Half precision as float32; float64 stays what it is."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()
