"""Exact scores of text-conditioned pooling, without a D x D product per (text, video) pair.

A pooled vector is a convex combination of n = heads x F vectors u that depend on the video alone; LN2, the
linear layer and LN3 then only scale it and add two more fixed vectors. So every V(v|t) lies in the span of
n + 2 vectors of the video (its basis), its length is a quadratic form in the n + 2 coefficients, and a pair
costs 2 n + 2 dot products of length D, all of them plain matrix products over many pairs (docs/scoring.md).

Intermediate tensors are [N_v, n, N_t], texts last, as the products leave them: reductions over n then run
along contiguous memory.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from calmctl.model.heads.base import VideoTable
from calmctl.model.pooling import TextConditionedPooling

_TEXTS_PER_BLOCK = 256  # enough for matrix products at full speed, and leaves room for several videos


@dataclass(frozen=True, slots=True)
class Queries:
    """What scoring needs of a block of texts, computed once for all videos.

    Attributes:
        columns: The texts t, [D, N_t].
        standardised: The same with mean 0 and variance 1, [D, N_t]: LN1 without its affine part.
        lengths: |t|, [N_t].
    """

    columns: Tensor
    standardised: Tensor
    lengths: Tensor


@dataclass(frozen=True, slots=True)
class Mixture:
    """V(v|t) for all pairs of a block, in the coordinates of each video's basis.

    Attributes:
        coefficients: [N_v, n + 2, N_t]; V(v|t) is their sum over the basis, never formed here.
        dots: t . V(v|t), [N_v, N_t].
        norms: |V(v|t)|, [N_v, N_t].
    """

    coefficients: Tensor
    dots: Tensor
    norms: Tensor


def pooling_table(pooling: TextConditionedPooling, frames: Tensor) -> VideoTable:
    """What a video contributes to every score: frames [N_v, F, D] -> n keys, n + 2 basis vectors, their Grams.

    All that the text side applies to a text before it meets a key (LN1's affine part, Wq, bq, the division by
    sqrt(D / heads)) is folded into the keys, so that a logit is the dot product of a key with the text,
    standardised to mean 0 and variance 1.

    Returns:
        keys [N_v, heads, F, D], key_bias [N_v, heads, F], basis [N_v, n + 2, D], and three Gram matrices whose
        quadratic forms are the variance before LN2 (gram_pooled [N_v, n, n]), the variance before LN3
        (gram_linear [N_v, n + 1, n + 1]) and the squared norm of V (gram_output [N_v, n + 2, n + 2]).
    """
    heads, dim = pooling.heads, pooling.dim
    norm1 = pooling.input_norm
    normed = norm1(frames)

    wq = (pooling.query.weight * norm1.weight).view(heads, -1, dim) * (dim // heads) ** -0.5
    bq = pooling.query(norm1.bias).view(heads, -1) * (dim // heads) ** -0.5
    wk, bk = _split(pooling.key, heads)
    keys = _project(normed, wq.mT @ wk, _apply(wq.mT, bk))
    key_bias = torch.einsum("vfc,hc->vhf", normed, _apply(wk.mT, bq)) + (bq * bk).sum(-1)[:, None]
    return {"keys": keys, "key_bias": key_bias} | basis_table(pooling, normed)


def basis_table(pooling: TextConditionedPooling, normed: Tensor) -> VideoTable:
    """The part of `pooling_table` behind the attention weights, from frames behind LN1, [N_v, F, D]."""
    heads, dim = pooling.heads, pooling.dim
    norm2, norm3 = pooling.pooled_norm, pooling.output_norm

    # LN2 and LN3 subtract the mean over D of what they are given: the weights that make it do so here, once.
    # Attention weights sum to one within each head, so the heads share the bias of the output projection.
    wv, bv = _split(pooling.value, heads)
    wo = _centred(pooling.out.weight).view(dim, heads, -1).transpose(0, 1)
    pooled = _project(normed, wo @ wv, _apply(wo, bv) + _centred(pooling.out.bias) / heads).flatten(1, 2)
    linear = torch.eye(dim, dtype=normed.dtype, device=normed.device) + pooling.linear.weight

    n_videos, n, _ = pooled.shape
    before_norm3 = pooled.new_empty(n_videos, n + 1, dim)
    before_norm3[:, :n] = F.linear(pooled, _centred(linear) * norm2.weight)
    before_norm3[:, n] = _centred(linear @ norm2.bias + pooling.linear.bias)
    basis = pooled.new_empty(n_videos, n + 2, dim)
    torch.mul(before_norm3, norm3.weight, out=basis[:, :-1])
    basis[:, -1] = norm3.bias
    return {
        "basis": basis,
        "gram_pooled": pooled @ pooled.mT / dim,
        "gram_linear": before_norm3 @ before_norm3.mT / dim,
        "gram_output": basis @ basis.mT,
    }


def prepare_texts(pooling: TextConditionedPooling, texts: Tensor) -> Queries:
    """The text side of scoring: texts [N_t, D]."""
    standardised = F.layer_norm(texts, texts.shape[-1:], eps=pooling.input_norm.eps)
    return Queries(texts.T.contiguous(), standardised.T.contiguous(), texts.norm(dim=-1))


def mix(pooling: TextConditionedPooling, texts: Queries, table: VideoTable) -> Mixture:
    """V(v|t) of all pairs of texts and a `pooling_table`, as coefficients, dots and norms."""
    n_videos, heads, n_frames, dim = table["keys"].shape
    n = heads * n_frames
    logits = (table["keys"].reshape(-1, dim) @ texts.standardised).view(n_videos, heads, n_frames, -1)
    weights = logits.add_(table["key_bias"][..., None]).softmax(2).flatten(1, 2)

    c = weights.new_empty(n_videos, n + 2, weights.shape[-1])
    lengthen = (_quadratic(table["gram_pooled"], weights) + pooling.pooled_norm.eps).rsqrt_()  # LN2
    torch.mul(weights, lengthen[:, None], out=c[:, :n])
    c[:, n] = 1
    before_norm3 = c[:, : n + 1]
    lengthen = (_quadratic(table["gram_linear"], before_norm3) + pooling.output_norm.eps).rsqrt_()  # LN3
    before_norm3.mul_(lengthen[:, None])
    c[:, n + 1] = 1
    # The clamp lets a V of zeros score 0 instead of NaN.
    norms = _quadratic(table["gram_output"], c).clamp_min_(torch.finfo(c.dtype).tiny).sqrt_()
    basis_dots = (table["basis"].reshape(-1, dim) @ texts.columns).view_as(c)
    return Mixture(c, basis_dots.mul_(c).sum(1), norms)


def mixture_cosines(pooling: TextConditionedPooling, texts: Queries, table: VideoTable) -> Tensor:
    """cos(t, V(v|t)) of all pairs, [N_v, N_t]."""
    mixture = mix(pooling, texts, table)
    return mixture.dots / (mixture.norms * texts.lengths).clamp_min_(torch.finfo(mixture.dots.dtype).tiny)


def pooled_vectors(mixture: Mixture, table: VideoTable) -> Tensor:
    """V(v|t) itself, [N_v, D, N_t]: D numbers a pair, for small blocks only."""
    return table["basis"].mT @ mixture.coefficients


def score_in_blocks(
    score_block: Callable[[Queries, VideoTable], Tensor],
    pooling: TextConditionedPooling,
    texts: Tensor,
    table: VideoTable,
    pairs: int,
) -> Tensor:
    """Scores [N_t, N_v] from a function that gives [n_v, n_t] for a block of about `pairs` pairs.

    Blocks bound the memory, whatever the caller asks for, and keep it within a processor's cache.
    """
    n_texts, n_videos = len(texts), len(table["keys"])
    scores = texts.new_empty(n_texts, n_videos)
    text_step = max(1, min(n_texts, _TEXTS_PER_BLOCK, pairs))
    video_step = max(1, pairs // text_step)
    for i in range(0, n_texts, text_step):
        block_texts = prepare_texts(pooling, texts[i : i + text_step])
        for j in range(0, n_videos, video_step):
            block = {name: tensor[j : j + video_step] for name, tensor in table.items()}
            scores[i : i + text_step, j : j + video_step] = score_block(block_texts, block).T
    return scores


def _split(layer: nn.Linear, heads: int) -> tuple[Tensor, Tensor]:
    """A layer's weight [heads, D / heads, D] and bias [heads, D / heads], by the head its outputs belong to."""
    return layer.weight.view(heads, -1, layer.in_features), layer.bias.view(heads, -1)


def _apply(weight: Tensor, vector: Tensor) -> Tensor:
    """[heads, m, k] times [heads, k] -> [heads, m]."""
    return (weight @ vector[..., None]).squeeze(-1)


def _project(frames: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """A linear map of every head: [N_v, F, D] by [heads, D, D] and [heads, D] -> [N_v, heads, F, D]."""
    return torch.einsum("vfc,hdc->vhfd", frames, weight).contiguous().add_(bias[:, None])


def _centred(x: Tensor) -> Tensor:
    """Minus the mean over the first axis: the outputs of a weight, or the entries of a vector."""
    return x - x.mean(0)


def _quadratic(gram: Tensor, c: Tensor) -> Tensor:
    """c^T Gram c for every video and text: [N_v, m, m], [N_v, m, N_t] -> [N_v, N_t]."""
    return torch.bmm(gram, c).mul_(c).sum(1)
