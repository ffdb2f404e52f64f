"""CoCap: captions from what a video codec keeps, I pictures with the motion and the residuals behind them.

Shen et al. 2023, "Accurate and Fast Compressed Video Captioning" (ICCV). What differs from the released code is in
docs/science.md; parameter counts are its own.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from calmctl.anchors.distribution import at_least_float32
from calmctl.errors import RecipeError
from calmctl.model.backbone import Backbone
from calmctl.model.calm import AlignedParts
from calmctl.model.captioner import (
    Attention,
    Cache,
    CaptionDecoder,
    CaptionModel,
    CaptionVocabulary,
    KeysValues,
    feed_forward,
    output_transform,
)
from calmctl.recipe.schema import CaptionSection, CompressedSection
from calmctl.video.compressed import CELL, NEUTRAL, CompressedReader

HEADS = 8
"""Of every attention but the caption decoder's."""
INPUT_DROPOUT = 0.2
"""On vectors and residuals, number by number, before anything else sees them."""

# The encoders: small vision transformers over vectors and residuals, and one that puts a group's motion together.


class _Attention(Attention):
    """The same, started as `torch.nn.MultiheadAttention` starts."""

    def __init__(self, width: int) -> None:
        super().__init__(width, HEADS)
        bound = math.sqrt(6 / (4 * width))
        for projection in (self.query, self.key, self.value):
            nn.init.uniform_(projection.weight, -bound, bound)
        for projection in (self.query, self.key, self.value, self.out):
            nn.init.zeros_(projection.bias)

    def to_itself(self, x: Tensor) -> Tensor:
        """Self-attention over [N, T, width]."""
        return self(x, self.keys_values(x))


def _perceptron(width: int) -> nn.Sequential:
    from calmctl.model.openclip import open_clip

    return nn.Sequential(nn.Linear(width, 4 * width), open_clip.transformer.QuickGELU(), nn.Linear(4 * width, width))


class _Block(nn.Module):
    """x + attention(LN x), then + perceptron(LN x)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(width)
        self.attention = _Attention(width)
        self.perceptron_norm = nn.LayerNorm(width)
        self.perceptron = _perceptron(width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention.to_itself(self.attention_norm(x))
        return x + self.perceptron(self.perceptron_norm(x))


class PictureEncoder(nn.Module):
    """CLIP's kind of vision transformer, small: one feature [N, D] a picture of `channels` [N, C, S, S]."""

    def __init__(self, side: int, patch: int, channels: int, width: int, layers: int, dim: int) -> None:
        """Patches of `patch` a side; what remains of `side` at the right and below is not seen."""
        super().__init__()
        scale = width**-0.5
        self.patches = nn.Conv2d(channels, width, patch, stride=patch, bias=False)
        self.token = nn.Parameter(scale * torch.randn(width))
        self.position = nn.Parameter(scale * torch.randn((side // patch) ** 2 + 1, width))
        self.input_norm = nn.LayerNorm(width)
        self.blocks = nn.Sequential(*(_Block(width) for _ in range(layers)))
        self.output_norm = nn.LayerNorm(width)
        self.projection = nn.Parameter(scale * torch.randn(width, dim))

    def forward(self, pictures: Tensor) -> Tensor:
        """Features [N, D]."""
        x = self.patches(pictures.to(self.token.dtype)).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), 1, -1), x], dim=1) + self.position
        x = self.blocks(self.input_norm(x))
        return self.output_norm(x[:, 0]) @ self.projection


class ActionEncoder(nn.Module):
    """A group's motion [M, D] from features of its pictures [M, N, D] and the patches of its I picture [M, P, D]."""

    def __init__(self, dim: int, pictures: int, patch_width: int) -> None:
        super().__init__()
        self.patch_norm = nn.LayerNorm(patch_width)
        self.patch_projection = nn.Parameter(patch_width**-0.5 * torch.randn(patch_width, dim))
        self.position = nn.Embedding(pictures, dim)
        # P and B pictures. Files of ours have none of the second, whose row stays as it starts.
        self.kind = nn.Embedding(2, dim)
        self.self_norm, self.self_attention = nn.LayerNorm(dim), _Attention(dim)
        self.cross_norm, self.seen_norm, self.cross_attention = nn.LayerNorm(dim), nn.LayerNorm(dim), _Attention(dim)
        self.perceptron_norm, self.perceptron = nn.LayerNorm(dim), _perceptron(dim)
        self.output_norm = nn.LayerNorm(dim)

    def forward(self, pictures: Tensor, patches: Tensor) -> Tensor:
        """Features [M, D] of pictures [M, N, D], whose I picture has patches [M, P, width]."""
        seen = self.seen_norm(self.patch_norm(patches) @ self.patch_projection)
        x = pictures + self.position.weight + self.kind.weight[0]
        x = x + self.self_attention.to_itself(self.self_norm(x))
        x = x + self.cross_attention(self.cross_norm(x), self.cross_attention.keys_values(seen))
        x = x + self.perceptron(self.perceptron_norm(x))
        return self.output_norm(x.mean(dim=1))


# The caption decoder: BERT's kind of layers over one sequence, [pictures, motions, words].


class _PostNormLayer(nn.Module):
    """LN(x + attention(x)), then LN(x + perceptron(x)); dropout behind each branch and on the attention's weights."""

    def __init__(self, width: int, heads: int, ffn: int, dropout: float) -> None:
        super().__init__()
        self.attention = Attention(width, heads, dropout)
        self.attention_norm = nn.LayerNorm(width)
        self.ffn = feed_forward(width, ffn)
        self.ffn_norm = nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, keys_values: KeysValues, sees: Tensor | None = None) -> Tensor:
        x = self.attention_norm(x + self.dropout(self.attention(x, keys_values, sees=sees)))
        return self.ffn_norm(x + self.dropout(self.ffn(x)))


class CocapDecoder(CaptionDecoder):
    """Words that attend to pictures, motions and earlier words, in one sequence."""

    place: Tensor

    def __init__(self, keys: CaptionSection, dim: int, gops: int, vocabulary: CaptionVocabulary) -> None:
        """Layers for the I pictures' features [N, `gops`, `dim`], with as many motions behind them or without."""
        super().__init__(vocabulary, keys.max_tokens)
        width = keys.width
        self.gops = gops
        self.visual_input = _input(dim, width, keys.dropout)
        self.tokens = nn.Embedding(len(vocabulary), width)
        self.word_input = _input(width, width, keys.dropout)
        # Motions 0, I pictures 1, words 2.
        self.kind = nn.Embedding(3, width)
        self.register_buffer("place", sinusoid(2 * gops + keys.max_tokens, width), persistent=False)
        self.input_norm = nn.LayerNorm(width)
        self.dropout = nn.Dropout(keys.dropout)
        self.layers: Any = nn.ModuleList(
            _PostNormLayer(width, keys.heads, keys.ffn, keys.dropout) for _ in range(keys.decoder_layers)
        )
        self.output_transform = output_transform(width)
        self.output = None if keys.tied else nn.Linear(width, len(vocabulary), bias=False)
        self.output_bias = nn.Parameter(torch.zeros(len(vocabulary)))

    def encode(self, frames: Tensor) -> Tensor:
        """The visual tokens [N, F, width] of features [N, F, D]: F = G pictures, or with motions 2 G."""
        first = torch.arange(frames.shape[1], device=frames.device) < self.gops
        return self._embedded(self.visual_input(frames), self.kind.weight[first.long()], 0)

    def forward(self, tokens: Tensor, memory: Tensor) -> Tensor:
        """Logits [N, T, V] of the token after each prefix of `tokens` [N, T], for visual tokens [N, F, width]."""
        length, before = tokens.shape[1], memory.shape[1]
        sees = torch.ones(length, before + length, dtype=torch.bool, device=tokens.device).tril(before)
        x = self._words(tokens, before)
        for layer, seen in zip(self.layers, self._visual(memory), strict=True):
            x = layer(x, _joined(seen, layer.attention.keys_values(x)), sees)
        return self._logits(x)

    def start_cache(self, memory: Tensor) -> Cache:
        """An empty cache for captions of visual tokens [N, F, width]."""
        return Cache([*self._visual(memory)], [None] * len(self.layers), length=memory.shape[1])

    def step(self, tokens: Tensor, cache: Cache) -> Tensor:
        """Logits [N, V] after the newest `tokens` [N]; `cache.length` counts the visual tokens too."""
        x = self._words(tokens[:, None], cache.length)
        for number, layer in enumerate(self.layers):
            past, newest = cache.past[number], layer.attention.keys_values(x)
            cache.past[number] = so_far = newest if past is None else _joined(past, newest)
            x = layer(x, _joined(cache.memory[number], so_far))
        cache.length += 1
        return self._logits(x)[:, -1]

    def _visual(self, memory: Tensor) -> list[KeysValues]:
        """Each layer's keys and values of the visual tokens, which see one another and no word."""
        x, seen = memory, []
        for layer in self.layers:
            seen.append(layer.attention.keys_values(x))
            x = layer(x, seen[-1])
        return seen

    def _words(self, tokens: Tensor, first: int) -> Tensor:
        return self._embedded(self.word_input(self.tokens(tokens)), self.kind.weight[2], first)

    def _embedded(self, x: Tensor, kind: Tensor, first: int) -> Tensor:
        return self.dropout(self.input_norm(x + kind + self.place[first : first + x.shape[1]]))

    def _logits(self, x: Tensor) -> Tensor:
        weight = self.tokens.weight if self.output is None else self.output.weight
        return F.linear(self.output_transform(x), weight, self.output_bias)


def _input(dim: int, width: int, dropout: float) -> nn.Sequential:
    """What visual and word features pass before the sequence."""
    return nn.Sequential(nn.LayerNorm(dim), nn.Dropout(dropout), nn.Linear(dim, width), nn.ReLU(), nn.LayerNorm(width))


def _joined(first: tuple[Tensor, ...], second: tuple[Tensor, ...]) -> KeysValues:
    return torch.cat([first[0], second[0]], dim=2), torch.cat([first[1], second[1]], dim=2)


def sinusoid(places: int, width: int) -> Tensor:
    """Sines and cosines of each place, [places, width], of wavelengths from 2 pi to 20,000 pi."""
    rates = torch.exp(-math.log(10_000) * torch.arange(0, width, 2) / width)
    angles = torch.arange(places)[:, None] * rates
    return torch.stack([angles.sin(), angles.cos()], dim=2).flatten(1)[:, :width]


class CocapModel(CaptionModel):
    """A captioner over G I pictures, and G motions where vectors or residuals are read.

    Frame features are [N, G, D] or [N, 2 G, D], I pictures first; V_p is made of those alone.
    """

    def __init__(
        self,
        backbone: Backbone,
        decoder: CaptionDecoder,
        keys: CaptionSection,
        parts: AlignedParts,
        compressed: CompressedSection,
    ) -> None:
        """The encoders have the widths of the vision tower, W and W / 4, and at 224 pixels CoCap's patches.

        Raises:
            CheckpointError: The vision tower is none of CLIP's.
            RecipeError: Its sizes do not do.
        """
        super().__init__(backbone, decoder, keys, parts)
        self.compressed = compressed
        (side, other), width, dim = backbone.spec.image_size, backbone.vision_width, backbone.dim
        if side != other or side % CELL or width % (4 * HEADS) or dim % HEADS:
            raise RecipeError(
                f"caption.system: cocap cuts squares of a multiple of {CELL} pixels, for a vision tower of a width of "
                f"a multiple of {4 * HEADS}; {backbone.spec.model} has {side} x {other} pixels and {width}; use another"
            )
        cells = side // CELL
        self.motion = self.residual = self.action = None
        if compressed.vectors != "none":
            # 7 x 7 and 3 x 3 patches at any size (our choice: the reference knows 224 alone).
            self.motion = PictureEncoder(cells, max(1, round(cells / 7)), 4, width // 4, 2, dim)
        if compressed.residual:
            self.residual = PictureEncoder(side, max(1, round(side * 64 / 224)), 3, width, 2, dim)
        if self.motion is not None or self.residual is not None:
            self.action = ActionEncoder(dim, compressed.pictures, width)
        self.dropout = nn.Dropout(INPUT_DROPOUT)

    def reader(self, n_frames: int) -> CompressedReader:
        """What reads clips for it; a number of frames has no part in it."""
        keys = self.compressed
        return CompressedReader(
            self.backbone.spec.image_size[0], keys.gops, keys.pictures, keys.vectors, keys.residual, keys.reencode
        )

    @property
    def keeps_features(self) -> bool:
        """Motion encoders train also where the towers do not."""
        return False

    def bare_frames(self, frames: Tensor) -> Tensor:
        """Features [N, G or 2 G, D] of clips uint8 [N, G, bytes], before any adapter."""
        if frames.is_floating_point():
            return frames
        clips, gops = frames.shape[:2]
        pictures, vectors, residual = unpack(frames, self.reader(0))
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            context, patches = self.backbone.encode_patches(self.normalise(pictures.flatten(0, 1)))
        context = context.view(clips, gops, -1)
        if self.action is None:
            return context
        moved: Any = 0
        if self.motion is not None:
            moved = moved + self.motion(self.dropout(vectors.flatten(0, 2) / 4))
        if self.residual is not None:
            moved = moved + self.residual(self.dropout(residual.flatten(0, 2) / NEUTRAL - 1))
        action = self.action(moved.view(clips * gops, -1, moved.shape[-1]), patches)
        return torch.cat([at_least_float32(context), at_least_float32(action).view(context.shape)], dim=1)

    def distributions(self, texts: Tensor, frames: Tensor, anchors: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Log S_p and log V_p, [B, K] each; V_p of the I pictures' features."""
        return super().distributions(texts, frames[:, : self.compressed.gops], anchors)


def unpack(packed: Tensor, reader: CompressedReader) -> tuple[Tensor, Tensor, Tensor]:
    """I pictures uint8 [N, G, S, S, 3], vectors int16 [N, G, P, 4, S/4, S/4], residuals uint8 [N, G, P, 3, S, S].

    `packed` is [N, G, bytes]; what the reader does not read has P = 0.
    """
    size, cells, rows = reader.size, reader.size // CELL, packed.shape[:2]
    n_vectors, n_residual = (reader.pictures if length else 0 for length in reader.lengths[1:])
    pictures, vectors, residual = torch.split(packed, list(reader.lengths), dim=2)
    return (
        pictures.reshape(*rows, size, size, 3),
        vectors.contiguous().view(torch.int16).view(*rows, n_vectors, 4, cells, cells),
        residual.reshape(*rows, n_residual, 3, size, size),
    )
