"""Text-conditioned frame pooling: the cross-attention block of X-Pool and T-MASS (docs/science.md, The heads)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from calmctl.errors import BadInput


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

        Scoring does not need it: see `calmctl.model.exact`.
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
        output: Tensor = self.output_norm(z + self.dropout(self.linear(z)))
        return output


def pooled_cosines(texts: Tensor, pooled: Tensor) -> Tensor:
    """cos(t_i, V(v_j|t_i)) of texts [N_t, D] and pooled videos [N_v, N_t, D], as [N_t, N_v]."""
    dots: Tensor = torch.einsum("td,vtd->tv", texts, pooled)
    lengths: Tensor = torch.linalg.vector_norm(texts, dim=-1)[:, None] * torch.linalg.vector_norm(pooled, dim=-1).T
    return dots / lengths.clamp_min(torch.finfo(dots.dtype).tiny)
