"""CLIP's text transformer, written out so that it computes what is read, and nothing twice.

It is causal, so three things need not be computed: what stands behind a sentence's end, what the last block makes of
any token but the one that is read, and a beginning that other sentences of the pass have as well. CALM's prompts begin
alike ("The content of ...") and are much shorter than the longest: of the 2,198 places of Charades' 157 prompts, 632
are left. Training only: the last bits differ from those of the whole transformer, which evaluations keep.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


def is_written_out(clip: Any) -> bool:
    """Whether the blocks of `clip`'s text tower are CLIP's own, which this module computes."""
    blocks = clip.transformer.resblocks
    return all(
        type(block).__name__ == "ResidualAttentionBlock" and type(block.attn) is nn.MultiheadAttention
        for block in blocks
    )


def whole(clip: Any, tokens: Tensor) -> Tensor:
    """The text transformer's outputs [N, L, W] of token ids [N, L], all of them."""
    # Written out: open_clip's own adds all of its positions, and so wants every sentence at full length.
    hidden, mask = _embedded(clip, tokens)
    return clip.transformer(hidden, attn_mask=mask)


def at_ends(clip: Any, tokens: Tensor) -> Tensor:
    """The same at the end tokens alone, [N, W]: the last block computes one token a sentence."""
    hidden, mask = _embedded(clip, tokens)
    *blocks, last = clip.transformer.resblocks
    for block in blocks:
        hidden = _kept_or_not(clip, block, hidden, None, None, mask)
    ends = torch.arange(len(tokens), device=tokens.device), tokens.argmax(dim=1)
    normed = last.ln_1(hidden)
    attended = last.attn(normed[ends][:, None], normed, normed, need_weights=False, key_padding_mask=_behind(tokens))[0]
    return _finished(last, hidden[ends], attended[:, 0])


def _embedded(clip: Any, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """What the text transformer reads, [N, L, W], and its causal mask [L, L]."""
    length = tokens.shape[1]
    return clip.token_embedding(tokens) + clip.positional_embedding[:length], clip.attn_mask[:length, :length]


def _behind(tokens: Tensor) -> Tensor:
    """Which places [N, L] are behind a sentence's end token, which has CLIP's largest id."""
    return torch.arange(tokens.shape[1], device=tokens.device) > tokens.argmax(dim=1)[:, None]


def _kept_or_not(clip: Any, block: Callable[..., Tensor], *inputs: Any) -> Tensor:
    if clip.transformer.grad_checkpointing:
        return checkpoint(block, *inputs, use_reentrant=False)
    return block(*inputs)


def _finished(block: Any, x: Tensor, attended: Tensor) -> Tensor:
    """What a block makes of its input and of what its attention gave."""
    x = x + block.ls_1(attended)
    return x + block.ls_2(block.mlp(block.ln_2(x)))


class Beginnings:
    """The distinct beginnings of N sentences: two that agree up to a token have one row up to there.

    Attributes:
        tokens, columns: The last token of each beginning and its place in the sentence, [R].
        rows: The beginning at each place of each sentence, [N, L]; any behind its end.
        first: For each beginning a place where it stands, as a number of N L places, [R].
        ends: The beginnings that are whole sentences, [N].
    """

    def __init__(self, tokens: Tensor) -> None:
        """Of token ids [N, L]."""
        n, length = tokens.shape
        inside = ~_behind(tokens)
        self.rows = torch.zeros_like(tokens)
        before, count, most = torch.zeros_like(tokens[:, 0]), 0, int(tokens.max()) + 1
        for column in range(length):
            there = torch.nonzero(inside[:, column]).flatten()
            # A beginning is the one before it and its last token, in one number.
            ours = before[there] * most + tokens[there, column]
            keys, which = torch.unique(ours, return_inverse=True)
            before[there] = self.rows[there, column] = count + which
            count += len(keys)
        places = torch.nonzero(inside.flatten()).flatten()
        # The first place, whatever the order in which places are visited: results must not hang on it.
        self.first = torch.full((count,), n * length).scatter_reduce(0, self.rows.flatten()[places], places, "amin")
        self.tokens, self.columns = tokens.flatten()[self.first], self.first % length
        self.ends = self.rows[torch.arange(n), tokens.argmax(dim=1)]

    def spread(self, x: Tensor) -> Tensor:
        """Rows [R, ...] as places of sentences, [N, L, ...]."""
        return x.index_select(0, self.rows.flatten()).view(*self.rows.shape, *x.shape[1:])


def of_beginnings(clip: Any, beginnings: Beginnings, read: Tensor | None = None) -> Tensor:
    """The outputs of every beginning, [R, W], or of those whose numbers `read` [Q] has, [Q, W]."""
    x = clip.token_embedding(beginnings.tokens) + clip.positional_embedding[beginnings.columns]
    *blocks, last = clip.transformer.resblocks
    for block in blocks:
        x = _kept_or_not(clip, _block, block, x, beginnings, None)
    return _kept_or_not(clip, _block, last, x, beginnings, read)


def _block(block: Any, x: Tensor, beginnings: Beginnings, read: Tensor | None) -> Tensor:
    attn, first = block.attn, beginnings.first
    projected = beginnings.spread(F.linear(block.ln_1(x), attn.in_proj_weight, attn.in_proj_bias))
    if read is not None:
        x, first = x[read], first[read]
    # Sentence by sentence: that repeats scores of common beginnings, which is little beside the products around it.
    q, k, v = projected.view(*projected.shape[:2], 3, attn.num_heads, -1).permute(2, 0, 3, 1, 4)
    attended = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2).flatten(0, 1)
    return _finished(block, x, attn.out_proj(attended.index_select(0, first)))
