"""The caption head: frame features -> linear -> transformer encoder -> transformer decoder (docs/captioning.md)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from calmctl.model.caption_vocabulary import CaptionVocabulary
from calmctl.model.transformer import DecoderLayer, EncoderLayer, KeysValues
from calmctl.recipe.schema import CaptionSection

INIT_STD = 0.02
"""Standard deviation of new embeddings; CLIP's own token embeddings started with the same."""


@dataclass(slots=True)
class Cache:
    """What a half-written batch of N captions has computed so far.

    Attributes:
        memory: Each layer's keys and values of the encoded frames; computed once.
        past: Each layer's keys and values of the tokens so far.
        length: How many tokens those are.
    """

    memory: list[KeysValues]
    past: list[KeysValues | None]
    length: int = 0

    def select(self, rows: Tensor) -> None:
        """Keep captions `rows` [M], in that order; a caption may be kept several times."""
        self.memory = [(keys[rows], values[rows]) for keys, values in self.memory]
        self.past = [None if kv is None else (kv[0][rows], kv[1][rows]) for kv in self.past]


class Captioner(nn.Module):
    """Encoder and decoder over frame features.

    Attributes:
        vocabulary: The tokens it writes.
        max_tokens: The longest caption in tokens, its end mark counted.
    """

    token_ids: Tensor

    def __init__(self, keys: CaptionSection, dim: int, frames: int, vocabulary: CaptionVocabulary) -> None:
        """Make the layers for features [N, `frames`, `dim`].

        Args:
            keys: Sizes; the recipe's schema explains them.
            dim: D.
            frames: F.
            vocabulary: The tokens to write.
        """
        super().__init__()
        self.vocabulary = vocabulary
        self.max_tokens = keys.max_tokens
        self.register_buffer("token_ids", vocabulary.ids)  # a checkpoint tells by it what its rows stand for
        sizes = (keys.width, keys.heads, keys.ffn, keys.dropout)
        self.visual = nn.Linear(dim, keys.width)
        self.frame_position = nn.Parameter(torch.empty(frames, keys.width))
        self.encoder = nn.ModuleList(EncoderLayer(*sizes) for _ in range(keys.encoder_layers))
        self.memory_norm = nn.LayerNorm(keys.width)
        self.tokens = nn.Embedding(len(vocabulary), keys.width)
        self.token_position = nn.Parameter(torch.empty(keys.max_tokens, keys.width))
        self.decoder: Any = nn.ModuleList(DecoderLayer(*sizes) for _ in range(keys.decoder_layers))
        self.output_norm = nn.LayerNorm(keys.width)
        # Tied, the output has no weights of its own, only a bias.
        self.output = None if keys.tied else nn.Linear(keys.width, len(vocabulary), bias=False)
        self.output_bias = nn.Parameter(torch.zeros(len(vocabulary)))
        self.dropout = nn.Dropout(keys.dropout)
        self._initialise()

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for weight in (self.frame_position, self.token_position, self.tokens.weight):
            nn.init.normal_(weight, std=INIT_STD)
        if self.output is not None:
            nn.init.normal_(self.output.weight, std=INIT_STD)

    @torch.no_grad()
    def start_from(self, embedding: Tensor) -> None:
        """Take the tokens' rows of CLIP's token embeddings [V_clip, W_clip] as a start, input and output alike.

        Where the widths differ, a random orthogonal map takes one space into the other, which keeps the angles
        between tokens where the decoder is the wider one (our choice); the scale becomes that of new embeddings.
        """
        rows = embedding[self.token_ids.to(embedding.device)].float().to(self.tokens.weight.device)
        width = self.tokens.embedding_dim
        if rows.shape[1] != width:
            rows = rows @ nn.init.orthogonal_(torch.empty(rows.shape[1], width)).to(rows.device)
        rows = rows * (INIT_STD / rows.std())
        self.tokens.weight.copy_(rows)
        if self.output is not None:
            self.output.weight.copy_(rows)

    def encode(self, frames: Tensor) -> Tensor:
        """The decoder's memory [N, F, width] of frame features [N, F, D]."""
        x = self.dropout(self.visual(frames) + self.frame_position)
        for layer in self.encoder:
            x = layer(x)
        memory: Tensor = self.memory_norm(x)
        return memory

    def forward(self, tokens: Tensor, memory: Tensor) -> Tensor:
        """Logits [N, T, V] of the token after each prefix of `tokens` [N, T], for memory [N, F, width]."""
        x = self._embed(tokens, 0)
        for layer, encoded in zip(self.decoder, self._memory_keys_values(memory), strict=True):
            x, _ = layer(x, encoded)
        return self._logits(x)

    def start_cache(self, memory: Tensor) -> Cache:
        """An empty cache for captions of `memory` [N, F, width]."""
        return Cache(self._memory_keys_values(memory), [None] * len(self.decoder))

    def step(self, tokens: Tensor, cache: Cache) -> Tensor:
        """Logits [N, V] after the newest `tokens` [N], the earlier ones being in `cache`, which grows by them."""
        x = self._embed(tokens[:, None], cache.length)
        for number, layer in enumerate(self.decoder):
            x, cache.past[number] = layer(x, cache.memory[number], cache.past[number])
        cache.length += 1
        return self._logits(x)[:, -1]

    def _memory_keys_values(self, memory: Tensor) -> list[KeysValues]:
        return [layer.memory_attention.keys_values(memory) for layer in self.decoder]

    def _embed(self, tokens: Tensor, first: int) -> Tensor:
        embedded: Tensor = self.tokens(tokens) + self.token_position[first : first + tokens.shape[1]]
        out: Tensor = self.dropout(embedded)
        return out

    def _logits(self, x: Tensor) -> Tensor:
        weight = self.tokens.weight if self.output is None else self.output.weight
        return F.linear(self.output_norm(x), weight, self.output_bias)
