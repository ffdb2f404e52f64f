"""The anchor bank (Eq. 4, 5) and probability distributions over anchors (Eq. 6, 7), in float32 or better."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn


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
    # A clip of two things keeps two peaks this way, where the mean of its features may lie near a third anchor.
    own = anchor_log_probabilities(frames, anchors, temperature)
    return own.logsumexp(dim=-2) - math.log(frames.shape[-2])


def fit_temperature(cosines: Tensor, target: float) -> float:
    """The tau at which softmax_k(tau * cosine) has a mean entropy of `target` nats (our choice, reading 1).

    Args:
        cosines: Of features with the anchors, [N, K].
        target: In nats, between 0 and log K.

    Raises:
        ValueError: No tau up to 10,000 gives this entropy: it is not below log K, or anchors lie on one another.
    """
    cosines, low, high = cosines.double(), 0.0, 1e4

    def mean_entropy(tau: float) -> float:
        return float(entropy((tau * cosines).log_softmax(dim=-1)).mean())

    if not mean_entropy(high) < target < math.log(cosines.shape[-1]):
        raise ValueError(f"entropies from {mean_entropy(high):.2f} to {math.log(cosines.shape[-1]):.2f} nats")
    # The entropy falls as tau rises, so halving the interval finds the one tau; 60 times is more than float64 resolves.
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if mean_entropy(middle) > target else (low, middle)
    return (low + high) / 2


def entropy(log_p: Tensor) -> Tensor:
    """Entropy in nats of distributions given as logarithms: [..., K] -> [...]."""
    return -(log_p.exp() * log_p).sum(dim=-1)


def kl_divergence(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(p || q) in nats of distributions given as logarithms: [..., K] -> [...]."""
    return (log_p.exp() * (log_p - log_q)).sum(dim=-1)


def at_least_float32(tensor: Tensor) -> Tensor:
    """Half precision as float32; float64 stays what it is."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


EncodeMode = Literal["gradient", "no-gradient", "refresh", "frozen"]


class AnchorBank(nn.Module):
    """P = CLIP_s(prompts) + e, with the prompts' token ids as constants.

    Attributes:
        tokens: Token ids of the K prompts, [K, L], padded to the longest prompt, not to the context length.
        position: e, [K, D], learned ("positional embedding" in the paper).
    """

    tokens: Tensor
    encoded: Tensor
    age: Tensor

    def __init__(
        self,
        tokens: Tensor,
        dim: int,
        *,
        encode: EncodeMode = "gradient",
        refresh_every: int = 100,
        position_std: float = 0.02,
    ) -> None:
        """Make a bank of `len(tokens)` anchors of width `dim`.

        Args:
            tokens: [K, L].
            dim: D.
            encode: "gradient" re-encodes the prompts in every call with gradient, "no-gradient" without,
                "refresh" every `refresh_every` training calls, "frozen" once (docs/science.md, reading 4).
            refresh_every: Calls in training mode between two encodings.
            position_std: e_k ~ N(0, position_std^2); 0 starts at zero (row 5).
        """
        super().__init__()
        self.encode = encode
        self.refresh_every = refresh_every
        # No weights: vocabulary.yaml beside them says the prompts, and its digest is compared when they are loaded.
        self.register_buffer("tokens", tokens, persistent=False)
        self.position = nn.Parameter(torch.randn(len(tokens), dim) * position_std)
        # Encoded prompts outlive a step in two modes only; there they belong to the state of a run.
        keeps = encode in ("refresh", "frozen")
        self.register_buffer("encoded", torch.zeros(len(tokens), dim), persistent=keeps)
        self.register_buffer("age", torch.tensor(-1), persistent=keeps)

    def prompts(self, encode_text: Callable[[Tensor], Tensor]) -> Tensor:
        """CLIP_s(prompts), [K, D]; `encode_text` maps token ids [K, L] to features [K, D].

        The anchors are these plus `position` (Eq. 5).
        """
        if self.encode == "gradient":
            return encode_text(self.tokens)
        with torch.no_grad():
            if self.encode == "no-gradient":
                return encode_text(self.tokens)
            due = self.encode == "refresh" and self.training and int(self.age) >= self.refresh_every
            if int(self.age) < 0 or due:
                self.encoded.copy_(encode_text(self.tokens))
                self.age.zero_()
            # Only steps of training count, so that an evaluation in between does not bring the next encoding forward.
            if self.training:
                self.age += 1
        return self.encoded
