"""Why a pair has its score: the frames' weights, and the anchors' parts of the cosine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from calmctl.model.exact import mix, pooled_vectors, prepare_texts
from calmctl.model.heads.meanp import MeanPoolHead, mean_video
from calmctl.model.heads.tmass import TMassHead
from calmctl.model.heads.xpool import XPoolHead

_LEAST_SINGULAR = 1e-3


@dataclass(frozen=True, slots=True)
class ScoredPair:
    """One score taken apart: `score` = `text` . `video`, both unit vectors.

    Attributes:
        score: The head's own score, a cosine.
        text: What the head compared on the text side, [D]: the sentence, or T-MASS's winning sample of its cloud.
        video: What it compared on the video side, [D]: the pooled frames.
        weights: The share of each frame in the pooling, [F], summing to 1; the attention of a text-conditioned
            head (the mean over its attention heads), 1 / F under mean pooling.
        conditioned: Whether those weights depend on the sentence.
        cosines: The cosine of each frame with the sentence, [F].
    """

    score: float
    text: Tensor
    video: Tensor
    weights: Tensor
    conditioned: bool
    cosines: Tensor


@torch.inference_mode()
def score_pair(head: Any, text: Tensor, frames: Tensor) -> ScoredPair:
    """Score one text [D] against one video's frames [F, D] and keep what the score is made of, on the CPU."""
    device = next(iter(head.parameters()), text).device
    text, frames = text.to(device).float(), frames.to(device).float()
    if isinstance(head, MeanPoolHead):
        asked, pooled = text, mean_video(frames[None])[0]
        weights = torch.full((len(frames),), 1 / len(frames))
    elif isinstance(head, XPoolHead | TMassHead):
        table = head.video_table(frames[None])
        queries = prepare_texts(head.pooling, text[None])
        mixture = mix(head.pooling, queries, table)
        pooled = pooled_vectors(mixture, table)[0, :, 0]
        # The coefficients are the attention weights, stretched by LN2 and LN3 alike.
        stretched = mixture.coefficients[0, :-2, 0].view(head.pooling.heads, -1)
        weights = (stretched / stretched.sum(-1, keepdim=True)).mean(0)
        asked = text
        if isinstance(head, TMassHead):
            bank = head.noise_bank().to(device)
            best = int(head.trial_cosines(bank, queries, table)[0, :, 0].argmax())
            asked = text + bank[best] * head.radius(text[None], frames[None])[0]
    else:
        raise TypeError(f"no explanation is known for the head {head.name}")
    asked, pooled = F.normalize(asked.double(), dim=-1), F.normalize(pooled.double(), dim=-1)
    cosines = F.normalize(frames, dim=-1) @ F.normalize(text, dim=-1)
    return ScoredPair(
        score=float(asked @ pooled),
        text=asked.cpu(),
        video=pooled.cpu(),
        weights=weights.cpu(),
        conditioned=not isinstance(head, MeanPoolHead),
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
    left, singular, right = torch.linalg.svd(centred, full_matrices=False)
    kept = singular > _LEAST_SINGULAR * singular.max()
    return Directions(shared, left[:, kept] @ right[kept], centred)


@dataclass(frozen=True, slots=True)
class Split:
    """A cosine as a sum: `shared` + `anchors`.sum() + `rest`.

    Attributes:
        shared: From the direction that all anchors share.
        anchors: From each anchor's own direction, [K]: the product of the next two. It is positive where both
            sides have more of the anchor than usual, and where both have less.
        text: The text side along each anchor's own direction, [K].
        video: The video side, [K].
        rest: From what no anchor covers.
    """

    shared: float
    anchors: Tensor
    text: Tensor
    video: Tensor
    rest: float


def split_score(pair: ScoredPair, directions: Directions) -> Split:
    """The anchors' contributions to a score; exact: the parts add up to it."""
    shared = float((directions.shared @ pair.text) * (directions.shared @ pair.video))
    text, video = directions.own @ pair.text, directions.own @ pair.video
    anchors = text * video
    return Split(shared, anchors, text, video, pair.score - shared - float(anchors.sum()))


def project_out(features: Tensor, anchors: Tensor) -> Tensor:
    """Features [..., D] without the space spanned by `anchors` [n, D]: as if nobody could see them."""
    # An SVD rather than QR: two of the anchors may be the same.
    _, singular, right = torch.linalg.svd(anchors.double(), full_matrices=False)
    basis = right[singular > _LEAST_SINGULAR * singular.max()]
    wide = features.double()
    left: Tensor = wide - (wide @ basis.T) @ basis
    return left.to(features.dtype)
