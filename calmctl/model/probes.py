"""Scores of text-conditioned pooling from two dot products with every frame: what makes millions of clips searchable.

`calmctl.model.exact` reads F + 2 vectors and F keys of a video for every text, which were computed from its frames
once: more than twice the numbers of the frames themselves. But keys and basis vectors are linear in the normalised
frames, and a linear map can as well be applied to the other side of a dot product. Here it is applied to the text,
once for all videos: what a text needs of a frame are its dot products with two vectors, its *probes* (per attention
head). Videos then need, beside their frames as they are in the feature store, only what does not depend on a text:
the deviation of each frame, and the quadratic and linear forms of LN2, LN3 and the last norm (docs/search.md).
"""

from __future__ import annotations

import torch
from torch import Tensor

from calmctl.model.exact import basis_table
from calmctl.model.heads.base import Probes, VideoTable
from calmctl.model.pooling import TextConditionedPooling


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
    """cos(t, V(v|t)), [N_t, N_v].

    Args:
        pooling: The block.
        probes: `text_probes` of N_t texts.
        dots: Every frame's dot product with every probe, [N_t, 2 heads, N_v, F].
        table: `probe_table` of N_v videos.
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
    scores: Tensor = dot / (square.clamp_min(tiny).sqrt() * length).clamp_min(tiny)
    return scores
