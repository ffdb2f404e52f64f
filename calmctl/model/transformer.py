"""Pre-LN transformer layers whose decoder can be run token by token, with a key-value cache."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

KeysValues = tuple[Tensor, Tensor]
"""Keys and values of one attention, [N, heads, length, width / heads] each."""


class Attention(nn.Module):
    """Multi-head scaled dot-product attention."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.out = nn.Linear(width, width)

    def keys_values(self, source: Tensor) -> KeysValues:
        """Keys and values of what is attended to, [N, length, width]."""
        return self._split(self.key(source)), self._split(self.value(source))

    def forward(self, x: Tensor, keys_values: KeysValues, *, causal: bool = False) -> Tensor:
        """Attend from `x` [N, T, width]; `causal`: query i sees keys up to i only."""
        attended = F.scaled_dot_product_attention(self._split(self.query(x)), *keys_values, is_causal=causal)
        projected: Tensor = self.out(attended.transpose(1, 2).flatten(2))
        return projected

    def _split(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:2], self.heads, -1).transpose(1, 2)


def feed_forward(width: int, inner: int) -> nn.Sequential:
    """Two linear layers with a GELU between them."""
    return nn.Sequential(nn.Linear(width, inner), nn.GELU(), nn.Linear(inner, width))


class EncoderLayer(nn.Module):
    """x + attention(LN x), then + feed-forward(LN x); dropout behind each branch."""

    def __init__(self, width: int, heads: int, ffn: int, dropout: float) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.ffn_norm = nn.LayerNorm(width)
        self.ffn = feed_forward(width, ffn)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, F, width] to the same shape."""
        normed = self.attention_norm(x)
        x = x + self.dropout(self.attention(normed, self.attention.keys_values(normed)))
        out: Tensor = x + self.dropout(self.ffn(self.ffn_norm(x)))
        return out


class DecoderLayer(nn.Module):
    """Causal self-attention, attention to the memory, feed-forward; all pre-LN with dropout behind."""

    def __init__(self, width: int, heads: int, ffn: int, dropout: float) -> None:
        super().__init__()
        self.self_norm = nn.LayerNorm(width)
        self.self_attention = Attention(width, heads)
        self.memory_norm = nn.LayerNorm(width)
        self.memory_attention = Attention(width, heads)
        self.ffn_norm = nn.LayerNorm(width)
        self.ffn = feed_forward(width, ffn)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, memory: KeysValues, past: KeysValues | None = None) -> tuple[Tensor, KeysValues]:
        """One layer on tokens [N, T, width].

        Args:
            x: The tokens; with `past`, only the newest one, T = 1.
            memory: Keys and values of the encoded frames, from `memory_attention.keys_values`.
            past: Keys and values of all earlier tokens.

        Returns:
            The layer's output [N, T, width], and keys and values of all tokens so far.
        """
        normed = self.self_norm(x)
        seen = self.self_attention.keys_values(normed)
        if past is not None:
            seen = (torch.cat([past[0], seen[0]], dim=2), torch.cat([past[1], seen[1]], dim=2))
        # A single newest token may look at everything there is, so only whole sentences need the mask.
        x = x + self.dropout(self.self_attention(normed, seen, causal=past is None))
        x = x + self.dropout(self.memory_attention(self.memory_norm(x), memory))
        return x + self.dropout(self.ffn(self.ffn_norm(x))), seen
