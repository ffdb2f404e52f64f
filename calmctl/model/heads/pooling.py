"""Text-conditioned frame pooling: the cross-attention block of X-Pool and T-MASS (docs/science.md, The heads)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from calmctl.errors import BadInput
from calmctl.model.heads.base import Probes, VideoTable


class TextConditionedPooling(nn.Module):
    """Pools every video's frames once per text: V(v|t), [N_t, D] x [N_v, F, D] -> [N_v, N_t, D].

    With a = LN1(t) and b = LN1(f), the same norm on both sides:

        w(v,t,:) = softmax over frames of (Wk b + bk).(Wq a + bq) / sqrt(D / heads)
        z        = LN2(Wo (sum_f w_f (Wv b_f + bv)) + bo)
        V(v|t)   = LN3(z + dropout(Wl z + bl))

    Every matrix starts as the identity and every bias as zero. There is no temporal position: the order of
    the frames does not matter. 1,316,352 parameters at D = 512, whatever the number of heads.

    Args:
        dim: D.
        heads: Attention heads; must divide `dim` (the reference has one).
        dropout: Probability on the last linear branch only.
    """

    def __init__(self, dim: int, heads: int = 1, dropout: float = 0.3) -> None:
        super().__init__()
        if heads < 1 or dim % heads:
            raise BadInput(f"{heads} attention heads do not divide {dim} dimensions; choose a divisor of {dim}")
        self.dim, self.heads = dim, heads
        self.input_norm = nn.LayerNorm(dim)
        self.query, self.key, self.value, self.out, self.linear = (nn.Linear(dim, dim) for _ in range(5))
        self.pooled_norm = nn.LayerNorm(dim)
        self.output_norm = nn.LayerNorm(dim)
        self.dropout = nn.Dropout(dropout)
        for layer in (self.query, self.key, self.value, self.out, self.linear):
            nn.init.eye_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, texts: Tensor, frames: Tensor) -> Tensor:
        """Dense form for training: [N_t, D], [N_v, F, D] -> [N_v, N_t, D], a D x D product for every pair.

        Scoring does not need it: see `pooling_table`.
        """
        normed = self.input_norm(frames)
        queries = torch.unflatten(self.query(self.input_norm(texts)), -1, (self.heads, -1))
        keys = torch.unflatten(self.key(normed), -1, (self.heads, -1))
        values = torch.unflatten(self.value(normed), -1, (self.heads, -1))
        logits = torch.einsum("vfhe,the->vthf", keys, queries) * (self.dim // self.heads) ** -0.5
        # Attention weights sum to one within a head, so Wo and its bias commute with the weighted sum: they are
        # applied to the frames, once, instead of to every pair.
        out = self.out.weight.view(self.dim, self.heads, -1)
        values = torch.einsum("vfhe,dhe->vhfd", values, out) + self.out.bias / self.heads
        z = self.pooled_norm(logits.softmax(-1).flatten(2) @ values.flatten(1, 2))
        return self.output_norm(z + self.dropout(self.linear(z)))


def pooled_cosines(texts: Tensor, pooled: Tensor) -> Tensor:
    """cos(t_i, V(v_j|t_i)) of texts [N_t, D] and pooled videos [N_v, N_t, D], as [N_t, N_v]."""
    dots: Tensor = torch.einsum("td,vtd->tv", texts, pooled)
    lengths: Tensor = torch.linalg.vector_norm(texts, dim=-1)[:, None] * torch.linalg.vector_norm(pooled, dim=-1).T
    return dots / lengths.clamp_min(torch.finfo(dots.dtype).tiny)


# Exact scores of text-conditioned pooling, without a D x D product per (text, video) pair.
#
# A pooled vector is a convex combination of n = heads x F vectors u that depend on the video alone; LN2, the
# linear layer and LN3 then only scale it and add two more fixed vectors. So every V(v|t) lies in the span of
# n + 2 vectors of the video (its basis), its length is a quadratic form in the n + 2 coefficients, and a pair
# costs 2 n + 2 dot products of length D, all of them plain matrix products over many pairs (docs/scoring.md).
#
# Intermediate tensors are [N_v, n, N_t], texts last, as the products leave them: reductions over n then run
# along contiguous memory.


# Enough for matrix products at full speed, leaving room for several videos.
_TEXTS_PER_BLOCK = {"cpu": 256, "cuda": 1024}


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
    """V(v|t) itself, [N_v, D, N_t]: D numbers per pair, for small blocks only."""
    return table["basis"].mT @ mixture.coefficients


def attended(pooling: TextConditionedPooling, text: Queries, table: VideoTable) -> tuple[Tensor, Tensor]:
    """V(v|t), [D], of one text and one video, and the frames' attention, [F], the mean over its heads."""
    mixture = mix(pooling, text, table)
    # The coefficients are the attention weights, stretched by LN2 and LN3 alike.
    stretched = mixture.coefficients[0, :-2, 0].view(pooling.heads, -1)
    return pooled_vectors(mixture, table)[0, :, 0], (stretched / stretched.sum(-1, keepdim=True)).mean(0)


def score_in_blocks(
    score_block: Callable[[Queries, VideoTable], Tensor],
    pooling: TextConditionedPooling,
    texts: Tensor,
    table: VideoTable,
    pairs: int,
) -> Tensor:
    """Scores [N_t, N_v] from a function that gives [n_v, n_t] for a block of about `pairs` pairs.

    Blocks bound the memory, whatever the caller asks for. They keep it within a processor's cache, or are large enough
    for a GPU not to wait for the next one to be told.
    """
    n_texts, n_videos = len(texts), len(table["keys"])
    scores = texts.new_empty(n_texts, n_videos)
    text_step = max(1, min(n_texts, _TEXTS_PER_BLOCK.get(texts.device.type, 256), pairs))
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


# Scores of text-conditioned pooling from two dot products with every frame: what makes millions of clips searchable.
#
# A `pooling_table` has F + 2 vectors and F keys of a video, computed from its frames once and read for every text: more
# than twice the numbers of the frames themselves. But keys and basis vectors are linear in the normalised frames, and a
# linear map can as well be applied to the other side of a dot product. Here it is applied to the text, once for all
# videos: what a text needs of a frame are its dot products with two vectors, its *probes* (per attention head). Videos
# then need, beside their frames as they are in the feature store, only what does not depend on a text: the deviation of
# each frame, and the quadratic and linear forms of LN2, LN3 and the last norm (docs/search.md).


def probe_table(pooling: TextConditionedPooling, frames: Tensor) -> VideoTable:
    """What scores need of a video beside its frames, whatever the text: frames [N_v, F, D].

    Returns:
        deviation [N_v, F], one over each frame's standard deviation (LN1); quadratic [N_v, 3, n, n] and linear
        [N_v, 3, n], the forms in the attention weights that give the variance before LN2 and LN3, and the length.
    """
    table = basis_table(pooling, pooling.input_norm(frames))
    pooled, linear, output = table["gram_pooled"], table["gram_linear"], table["gram_output"]
    n = pooled.shape[-1]
    variance = frames.var(-1, correction=0)
    return {
        "deviation": (variance + pooling.input_norm.eps).rsqrt(),
        "quadratic": torch.stack([pooled, linear[:, :n, :n], output[:, :n, :n]], 1),
        "linear": torch.stack([linear[:, :n, n], output[:, :n, n], output[:, :n, n + 1]], 1),
    }


def text_probes(pooling: TextConditionedPooling, texts: Tensor) -> Probes:
    """The text side: texts [N_t, D] -> the directions that frames are multiplied with, and what a text adds itself."""
    heads, dim = pooling.heads, pooling.dim
    norm1, norm3 = pooling.input_norm, pooling.output_norm
    before = pooling.linear(pooling.pooled_norm.bias) + pooling.pooled_norm.bias  # LN2's bias and the last layer's
    before = before - before.mean()
    offset, shift = before * norm3.weight, norm3.bias
    queries = pooling.query(norm1(texts)).view(len(texts), heads, -1) * (dim // heads) ** -0.5
    keys = torch.einsum("the,hed->thd", queries, pooling.key.weight.view(heads, -1, dim))

    # t . B(f) with every map of B applied to t instead, from the last one back to the first.
    back = texts * norm3.weight
    back = back - back.mean(-1, keepdim=True)  # every norm subtracts a mean: it can be subtracted on this side
    back = (back + back @ pooling.linear.weight) * pooling.pooled_norm.weight
    back = back - back.mean(-1, keepdim=True)
    through = (back @ pooling.out.weight).view(len(texts), heads, -1)
    values = torch.einsum("the,hed->thd", through, pooling.value.weight.view(heads, -1, dim))
    constant = torch.einsum("the,he->th", through, pooling.value.bias.view(heads, -1))
    constant = constant + (back @ pooling.out.bias)[:, None] / heads + values @ norm1.bias

    directions = torch.cat([keys, values], 1) * norm1.weight
    directions = directions - directions.mean(-1, keepdim=True)
    own = torch.stack([texts @ offset, texts @ shift, texts.norm(dim=-1)], 1)
    shared = torch.stack([before @ before / dim, offset @ offset, offset @ shift, shift @ shift])
    return Probes(directions, torch.cat([constant, own, shared.expand(len(texts), -1)], 1))


def probed_cosines(pooling: TextConditionedPooling, probes: Probes, dots: Tensor, table: VideoTable) -> Tensor:
    """cos(t, V(v|t)), [N_t, N_v], of `text_probes` and a `probe_table`.

    `dots` has every frame's dot product with every probe, [N_t, 2 heads, N_v, F].
    """
    heads = pooling.heads
    n_texts, _, n_videos, n_frames = dots.shape
    dots = dots * table["deviation"]
    weights = dots[:, :heads].softmax(-1)
    constant = probes.own[:, :heads]
    by_offset, by_shift, length, before2, offset2, both, shift2 = (
        column[:, None] for column in probes.own[:, heads:].T
    )
    along = (weights * (dots[:, heads:] + constant[..., None, None])).sum((1, 3))  # [N_t, N_v]
    w = weights.permute(2, 1, 3, 0).reshape(n_videos, heads * n_frames, n_texts)
    products = (table["quadratic"].flatten(1, 2) @ w).view(n_videos, 3, -1, n_texts)
    quadratic = products.mul_(w[:, None]).sum(2).permute(1, 2, 0)  # [3, N_t, N_v]
    linear = (table["linear"] @ w).permute(1, 2, 0)

    r = (quadratic[0] + pooling.pooled_norm.eps).rsqrt()  # LN2
    r3 = (r * (r * quadratic[1] + 2 * linear[0]) + before2 + pooling.output_norm.eps).rsqrt()  # LN3
    scale = r3 * r
    dot = scale * along + r3 * by_offset + by_shift
    square = scale * (scale * quadratic[2] + 2 * (r3 * linear[1] + linear[2]))
    square = square + r3 * (r3 * offset2 + 2 * both) + shift2
    tiny = torch.finfo(dot.dtype).tiny
    return dot / (square.clamp_min(tiny).sqrt() * length).clamp_min(tiny)
