"""Why a pair has its score: the frames' weights, and the anchors' parts of the cosine."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from calmctl.anchors.distribution import entropy
from calmctl.explain.explainer import Explainer, SeenVideo
from calmctl.model.heads.base import Compared

_LEAST_SINGULAR = 1e-3


@dataclass(frozen=True, slots=True)
class ScoredPair(Compared):
    """One score taken apart: `score` = sum over m of shares_m text_m . video_m, of unit vectors.

    Attributes:
        score: The head's own score.
        cosines: The cosine of each frame with the sentence, as the backbone gives them, [F].
    """

    score: float = field(kw_only=True)
    cosines: Tensor = field(kw_only=True)


@torch.inference_mode()
def score_pair(head: Any, text: Tensor, frames: Tensor) -> ScoredPair:
    """Score one text, [D] or [1 + L, D] as the head reads it, against one video's frames [F, D]; kept on the CPU."""
    if not hasattr(head, "explain"):
        raise TypeError(f"no explanation is known for the head {head.name}")
    device = next(iter(head.parameters()), text).device
    text, frames = text.to(device).float(), frames.to(device).float()
    compared: Compared = head.explain(text, frames)
    query, pooled = (F.normalize(vector.double(), dim=-1) for vector in (compared.text, compared.video))
    shares = compared.shares.double()
    # Heads that read words get the sentence's own feature first, then one of each word.
    sentence = text[0] if head.reads == "words" else text
    cosines = F.normalize(frames, dim=-1) @ F.normalize(sentence, dim=-1)
    return ScoredPair(
        shares=shares.cpu(),
        text=query.cpu(),
        video=pooled.cpu(),
        weights=compared.weights.cpu(),
        conditioned=compared.conditioned,
        score=float(shares @ (query * pooled).sum(-1)),
        cosines=cosines.cpu(),
    )


@dataclass(frozen=True, slots=True)
class Directions:
    """An orthonormal direction for every anchor.

    Attributes:
        shared: The direction that all anchors have in common, [D].
        own: One direction for each anchor, [K, D], orthonormal and orthogonal to `shared`.
        centred: The anchors at unit length without their shared part, [K, D]; neither unit nor orthogonal.
    """

    shared: Tensor
    own: Tensor
    centred: Tensor


def anchor_directions(anchors: Tensor) -> Directions:
    """Directions of anchors [K, D]: the orthonormal ones nearest to them (Lowdin's symmetric choice; ours here).

    CLIP's features crowd in a narrow cone, so any anchor looks alike to any sentence: what they share is taken
    out first. No anchor is preferred to another, unlike in Gram-Schmidt. Anchors that say the same, up to
    1e-3 of the largest singular value, share a direction, and `own` is then orthonormal on what is left.
    """
    unit = F.normalize(anchors.double(), dim=-1)
    shared = F.normalize(unit.mean(0), dim=-1)
    centred = unit - (unit @ shared)[:, None] * shared
    # The polar factor of the anchors is the orthonormal set nearest to them (Lowdin, 1950).
    left, singular, right = torch.linalg.svd(centred, full_matrices=False)
    kept = singular > _LEAST_SINGULAR * singular.max()
    return Directions(shared, left[:, kept] @ right[kept], centred)


@dataclass(frozen=True, slots=True)
class ScoreParts:
    """A cosine as a sum: `shared` + `anchors`.sum() + `rest`.

    Attributes:
        shared: From the direction that all anchors share.
        anchors: From each anchor's own direction, [K]: the product of the next two where there is one product
            (`ScoredPair`). It is positive where both sides have more of the anchor than usual, and where both
            have less.
        text: The text side along each anchor's own direction, [K]; of several products, their mean by share.
        video: The video side, [K].
        rest: From what no anchor covers.
    """

    shared: float
    anchors: Tensor
    text: Tensor
    video: Tensor
    rest: float


def split_score(pair: ScoredPair, directions: Directions) -> ScoreParts:
    """The anchors' contributions to a score; exact: the parts add up to it."""
    shared = float(pair.shares @ ((pair.text @ directions.shared) * (pair.video @ directions.shared)))
    text, video = pair.text @ directions.own.T, pair.video @ directions.own.T  # [M, K]
    anchors = pair.shares @ (text * video)
    # By subtraction: the parts add up to the score whatever rounding does.
    rest = pair.score - shared - float(anchors.sum())
    return ScoreParts(shared, anchors, pair.shares @ text, pair.shares @ video, rest)


def project_out(features: Tensor, anchors: Tensor) -> Tensor:
    """Features [..., D] without the space spanned by `anchors` [n, D]: as if nobody could see them."""
    # An SVD rather than QR: two of the anchors may be the same.
    _, singular, right = torch.linalg.svd(anchors.double(), full_matrices=False)
    basis = right[singular > _LEAST_SINGULAR * singular.max()]
    wide = features.double()
    left: Tensor = wide - (wide @ basis.T) @ basis
    return left.to(features.dtype)


# When: the anchors over a video's seconds, which the paper's mean over frames loses.


SEGMENTS = 6
LEAST_PEAK = 0.01


@dataclass(frozen=True, slots=True)
class Stretch:
    """A stretch of the video.

    Attributes:
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
    segments: tuple[Stretch, ...]

    def strongest(self, count: int) -> list[int]:
        """The anchors with the highest peaks on the timeline, highest first; besides the first, none below 1 %."""
        peaks = self.video.max(dim=0).values
        order: list[int] = peaks.argsort(descending=True, stable=True)[:count].tolist()
        return [k for place, k in enumerate(order) if place == 0 or float(peaks[k]) >= LEAST_PEAK]


@torch.inference_mode()
def timeline(explainer: Explainer, seen: SeenVideo, text: Tensor) -> Timeline:
    """The timeline of a video, held against one sentence's features [D]."""
    # Each instant as a clip of one frame: Eq. 7 of that frame alone.
    log_p = explainer.log_v(seen.instants[:, None])
    cosines = F.normalize(seen.instants, dim=-1) @ F.normalize(text, dim=-1)
    # A segment without an instant would have no distribution.
    count = min(SEGMENTS, len(seen.instants_s))
    edges = np.linspace(seen.start_s, seen.end_s, count + 1)
    segments = []
    for i in range(count):
        # Centres of equal intervals, at least one for each stretch: none lies on an edge's wrong side.
        inside = np.flatnonzero((seen.instants_s >= edges[i]) & (seen.instants_s <= edges[i + 1]))
        segments.append(
            Stretch(
                start_s=float(edges[i]),
                end_s=float(edges[i + 1]),
                video=explainer.log_v(seen.instants[inside]).exp(),
                cosine=float(cosines[inside].mean()),
            )
        )
    return Timeline(seen.instants_s, log_p.exp(), entropy(log_p), cosines, tuple(segments))
