"""Why a pair has its score: the frames' weights, and the anchors' parts of the cosine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from calmctl.anchors.distribution import entropy
from calmctl.explain.explainer import Explainer, SeenVideo
from calmctl.model.heads.base import VideoTable
from calmctl.model.heads.emcl import EMCLHead, frame_weights
from calmctl.model.heads.meanp import MeanPoolHead
from calmctl.model.heads.pooling import mix, pooled_vectors, prepare_texts
from calmctl.model.heads.tmass import TMassHead
from calmctl.model.heads.wti import TokenInteractionHead, is_word
from calmctl.model.heads.xpool import XPoolHead

_LEAST_SINGULAR = 1e-3


@dataclass(frozen=True, slots=True)
class ScoredPair:
    """One score taken apart: `score` = sum over m of shares_m text_m . video_m, of unit vectors.

    There is one product, M = 1, but for the interaction of words and frames, where each word meets its nearest
    frame, and each frame its nearest word.

    Attributes:
        score: The head's own score.
        shares: The weight of each product, [M], summing to 1.
        text: What the head compared on the text side, [M, D]: the sentence, T-MASS's winning sample of its cloud,
            EMCL's moved sentence, or words.
        video: What it compared on the video side, [M, D]: the pooled frames, or frames.
        weights: The share of each frame in the score, [F], summing to 1; the attention of a text-conditioned
            head (the mean over its attention heads), 1 / F under mean pooling.
        conditioned: Whether those weights depend on the sentence.
        cosines: The cosine of each frame with the sentence, as the backbone gives them, [F].
    """

    score: float
    shares: Tensor
    text: Tensor
    video: Tensor
    weights: Tensor
    conditioned: bool
    cosines: Tensor


@torch.inference_mode()
def score_pair(head: Any, text: Tensor, frames: Tensor) -> ScoredPair:
    """Score one text, [D] or [1 + L, D] as the head reads it, against one video's frames [F, D]; kept on the CPU."""
    if not isinstance(head, MeanPoolHead | EMCLHead | TokenInteractionHead | XPoolHead | TMassHead):
        raise TypeError(f"no explanation is known for the head {head.name}")
    device = next(iter(head.parameters()), text).device
    text, frames = text.to(device).float(), frames.to(device).float()
    shares = torch.ones(1, device=device)
    table = head.video_table(frames[None])
    if isinstance(head, MeanPoolHead):
        asked, pooled = text, table["video"][0]
        weights = torch.full((len(frames),), 1 / len(frames))
    elif isinstance(head, EMCLHead):
        weights = frame_weights(text[None], table["frames"])[0, :, 0]
        asked, pooled = head.moved(text), weights @ table["moved"][0]
    elif isinstance(head, TokenInteractionHead):
        shares, asked, pooled, weights = _interactions(head, text, table)
    else:
        asked, pooled, weights = _text_conditioned(head, text, frames, table)
    asked, pooled = (F.normalize(each.double().view(len(shares), -1), dim=-1) for each in (asked, pooled))
    shares = shares.double()
    sentence = text[0] if head.reads == "words" else text
    cosines = F.normalize(frames, dim=-1) @ F.normalize(sentence, dim=-1)
    return ScoredPair(
        score=float(shares @ (asked * pooled).sum(-1)),
        shares=shares.cpu(),
        text=asked.cpu(),
        video=pooled.cpu(),
        weights=weights.cpu(),
        conditioned=not isinstance(head, MeanPoolHead),
        cosines=cosines.cpu(),
    )


def _text_conditioned(
    head: XPoolHead | TMassHead, text: Tensor, frames: Tensor, table: VideoTable
) -> tuple[Tensor, Tensor, Tensor]:
    """What is compared, [D] each, and the frames' attention [F]."""
    queries = prepare_texts(head.pooling, text[None])
    mixture = mix(head.pooling, queries, table)
    # The coefficients are the attention weights, stretched by LN2 and LN3 alike.
    stretched = mixture.coefficients[0, :-2, 0].view(head.pooling.heads, -1)
    weights = (stretched / stretched.sum(-1, keepdim=True)).mean(0)
    asked = text
    if isinstance(head, TMassHead):
        bank = head.noise_bank().to(text.device)
        best = int(head.trial_cosines(bank, queries, table)[0, :, 0].argmax())
        asked = text + bank[best] * head.radius(text[None], frames[None])[0]
    return asked, pooled_vectors(mixture, table)[0, :, 0], weights


def _interactions(head: TokenInteractionHead, text: Tensor, table: VideoTable) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Shares [M], words and frames [M, D] of all products, M = words + frames, and the frames' shares [F]."""
    n_words = int(is_word(text[1:]).sum())
    words, word_weights = (each[0] for each in head.weighted_words(text[None, : 1 + n_words])[:2])
    frames, by_frame = table["frames"][0], table["weights"][0]
    cosines = words @ frames.T
    nearest_frame, nearest_word = cosines.argmax(1), cosines.argmax(0)
    weights = 0.5 * by_frame.index_add(0, nearest_frame, word_weights)
    return (
        0.5 * torch.cat([word_weights, by_frame]),
        torch.cat([words, words[nearest_word]]),
        torch.cat([frames[nearest_frame], frames]),
        weights,
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


def split_score(pair: ScoredPair, directions: Directions) -> Split:
    """The anchors' contributions to a score; exact: the parts add up to it."""
    shared = float(pair.shares @ ((pair.text @ directions.shared) * (pair.video @ directions.shared)))
    text, video = pair.text @ directions.own.T, pair.video @ directions.own.T  # [M, K]
    anchors = pair.shares @ (text * video)
    rest = pair.score - shared - float(anchors.sum())
    return Split(shared, anchors, pair.shares @ text, pair.shares @ video, rest)


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
