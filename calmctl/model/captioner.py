"""CALM for captioning: the caption head with its tokens and its transformer, on aligned features."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from calmctl.errors import CheckpointError
from calmctl.model.backbone import Backbone, encode_in_chunks
from calmctl.model.calm import AlignedModel, AlignedParts, Batch, Losses
from calmctl.model.losses import caption_loss
from calmctl.recipe.schema import CaptionSection

# Pre-LN transformer layers whose decoder can be run token by token, with a key-value cache.


KeysValues = tuple[Tensor, Tensor]
"""Keys and values of one attention, [N, heads, length, width / heads] each."""


class Attention(nn.Module):
    """Multi-head scaled dot-product attention; `dropout` acts on its weights."""

    def __init__(self, width: int, heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.heads = heads
        self.dropout = dropout
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.out = nn.Linear(width, width)

    def keys_values(self, source: Tensor) -> KeysValues:
        """Keys and values of what is attended to, [N, length, width]."""
        return self._split(self.key(source)), self._split(self.value(source))

    def forward(
        self, x: Tensor, keys_values: KeysValues, *, causal: bool = False, sees: Tensor | None = None
    ) -> Tensor:
        """Attend from `x` [N, T, width]; `causal`: query i sees keys up to i only; `sees` [T, length]: where True."""
        dropout = self.dropout if self.training else 0.0
        attended = F.scaled_dot_product_attention(
            self._split(self.query(x)), *keys_values, attn_mask=sees, is_causal=causal, dropout_p=dropout
        )
        return self.out(attended.transpose(1, 2).flatten(2))

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
        return x + self.dropout(self.ffn(self.ffn_norm(x)))


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
        so_far = self.self_attention.keys_values(normed)
        if past is not None:
            so_far = (torch.cat([past[0], so_far[0]], dim=2), torch.cat([past[1], so_far[1]], dim=2))
        # A single newest token may look at everything there is, so only whole sentences need the mask.
        x = x + self.dropout(self.self_attention(normed, so_far, causal=past is None))
        x = x + self.dropout(self.memory_attention(self.memory_norm(x), memory))
        return x + self.dropout(self.ffn(self.ffn_norm(x))), so_far


# The tokens a caption decoder writes: CLIP's byte pairs, all of them or those of the training captions.


# CLIP pads with 0, which is the token "!": a loss that ignored it would never learn to write one.
PAD = -1
"""Stands behind the end of shorter captions in a batch; losses ignore it."""

# CLIP splits "isn't", "t-shirt" and "red, blue" into words with spaces between: undone where that is certain.
_JOINED = (
    (re.compile(r" ('(?:s|t|re|ve|m|ll|d))(?![^ ])"), r"\1"),
    (re.compile(r"(?<=\w) - (?=\w)"), "-"),
    (re.compile(r" ([,.!?;:])(?![^ ])"), r"\1"),
)


class CaptionVocabulary:
    """A numbering 0 ... V-1 of CLIP tokens, among them the start and the end of a sentence.

    Attributes:
        ids: The CLIP ids of the V tokens, ascending, [V]; the numbers of the decoder are positions in it.
        start, end: The numbers of the two sentence marks.
    """

    def __init__(self, backbone: Backbone, ids: Tensor) -> None:
        """Take the CLIP `ids` [V].

        Raises `CheckpointError` where the backbone's tokenizer is not CLIP's, or they are no such ids: they come from
        a weights file.
        """
        self._bpe = backbone.bpe
        # Ascending and once each, because the decoder's numbers are places in them.
        known = torch.arange(self._bpe.vocab_size)
        marks = torch.tensor([self._bpe.sot_token_id, self._bpe.eot_token_id])
        if (
            ids.dtype != torch.int64
            or not torch.equal(ids, known[torch.isin(known, ids)])
            or not torch.isin(marks, ids).all()
        ):
            raise CheckpointError("captioner.token_ids are not ids of CLIP's tokens, ascending, with both marks")
        self.ids = ids
        self._number = {int(token): number for number, token in enumerate(ids.tolist())}
        self.start = self._number[self._bpe.sot_token_id]
        self.end = self._number[self._bpe.eot_token_id]

    def __len__(self) -> int:
        return len(self.ids)

    def encode(self, captions: Sequence[str], max_tokens: int) -> Tensor:
        """Start mark, tokens, end mark of each caption: [N, T] with T <= `max_tokens` + 1, padded with `PAD`.

        A caption of more than `max_tokens` tokens, its end mark counted, is cut and gets no end mark: a decoder
        must not learn to stop where a sentence goes on (our choice). Tokens outside the vocabulary are skipped;
        the captions it was made from have none.
        """
        rows = [
            [self.start, *(self._number[t] for t in self._bpe.encode(text) if t in self._number), self.end][
                : max_tokens + 1
            ]
            for text in captions
        ]
        longest = max(map(len, rows), default=1)
        return torch.tensor([row + [PAD] * (longest - len(row)) for row in rows], dtype=torch.long)

    def longer(self, captions: Sequence[str], max_tokens: int) -> int:
        """How many captions `encode` cuts."""
        return sum(len(self._bpe.encode(text)) + 1 > max_tokens for text in captions)

    def decode(self, numbers: Iterable[int]) -> str:
        """The sentence of token numbers, up to an end mark."""
        kept = []
        for number in numbers:
            if number == self.end:
                break
            if number not in (self.start, PAD):
                kept.append(int(self.ids[number]))
        text = " ".join(self._bpe.decode(kept).split())
        for pattern, replacement in _JOINED:
            text = pattern.sub(replacement, text)
        return text


def whole_vocabulary(backbone: Backbone) -> Tensor:
    """The CLIP ids of every token, [V]."""
    return torch.arange(backbone.bpe.vocab_size)


def training_vocabulary(backbone: Backbone, captions: Iterable[str]) -> Tensor:
    """The CLIP ids of the tokens that occur in `captions`, with the sentence marks, ascending, [V]."""
    bpe = backbone.bpe
    # No caption holds the marks, and the decoder writes both.
    used = {bpe.sot_token_id, bpe.eot_token_id}
    for caption in captions:
        used.update(bpe.encode(caption))
    return torch.tensor(sorted(used))


INIT_STD = 0.02
"""Standard deviation of new embeddings; CLIP's own token embeddings started with the same."""


@dataclass(slots=True)
class Cache:
    """What a half-written batch of N captions has computed so far.

    Attributes:
        memory: Each layer's keys and values of the encoded frames, or what else is computed once.
        past: Each layer's keys and values of the tokens so far, or a recurrent cell's state.
        length: How many tokens those are.
    """

    memory: Sequence[tuple[Tensor, ...]]
    past: list[tuple[Tensor, ...] | None]
    length: int = 0

    def select(self, rows: Tensor) -> None:
        """Keep captions `rows` [M], in that order; a caption may be kept several times."""
        self.memory = [tuple(part[rows] for part in each) for each in self.memory]
        self.past = [None if each is None else tuple(part[rows] for part in each) for each in self.past]


class CaptionDecoder(nn.Module, ABC):
    """What writes captions of frame features: the losses and the search know nothing else of it.

    To add one, inherit and write the methods without a body; `build_caption_model` chooses it.

    Attributes:
        max_tokens: The longest caption in tokens, its end mark counted.
        tokens: Their embeddings; a subclass makes them.
        output: Their rows of the output; None where those are the embeddings'.
    """

    token_ids: Tensor
    tokens: nn.Embedding
    output: nn.Linear | None

    def __init__(self, vocabulary: CaptionVocabulary, max_tokens: int) -> None:
        super().__init__()
        self.vocabulary = vocabulary
        self.max_tokens = max_tokens
        self.register_buffer("token_ids", vocabulary.ids)  # a checkpoint tells by it what its rows stand for

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
        # A map between widths changes lengths, and the positions beside them start at INIT_STD.
        rows = rows * (INIT_STD / rows.std())
        self.tokens.weight.copy_(rows)
        if self.output is not None and self.output.weight.shape == rows.shape:
            self.output.weight.copy_(rows)

    @abstractmethod
    def encode(self, frames: Tensor) -> Tensor:
        """What sentences are written from, [N, ...], of frame features [N, F, D]."""

    @abstractmethod
    def forward(self, tokens: Tensor, memory: Tensor) -> Tensor:
        """Logits [N, T, V] of the token after each prefix of `tokens` [N, T], for what `encode` gave."""

    @abstractmethod
    def start_cache(self, memory: Tensor) -> Cache:
        """An empty cache for captions of what `encode` gave."""

    @abstractmethod
    def step(self, tokens: Tensor, cache: Cache) -> Tensor:
        """Logits [N, V] after the newest `tokens` [N], the earlier ones being in `cache`, which grows by them."""


class Captioner(CaptionDecoder):
    """Frame features through a linear layer, a transformer encoder and a transformer decoder (docs/captioning.md)."""

    def __init__(self, keys: CaptionSection, dim: int, frames: int, vocabulary: CaptionVocabulary) -> None:
        """Make the layers for features [N, `frames`, `dim`]; the recipe's schema explains the sizes in `keys`."""
        super().__init__(vocabulary, keys.max_tokens)
        sizes = (keys.width, keys.heads, keys.ffn, keys.dropout)
        # CLIP's projected features are about ten long, far from what a transformer's layers are started for.
        self.feature_norm = nn.LayerNorm(dim) if keys.input_norm else nn.Identity()
        self.visual = nn.Linear(dim, keys.width)
        self.frame_position = nn.Parameter(torch.empty(frames, keys.width))
        self.frame_norm = nn.LayerNorm(keys.width) if keys.input_norm else nn.Identity()
        self.encoder = nn.ModuleList(EncoderLayer(*sizes) for _ in range(keys.encoder_layers))
        self.memory_norm = nn.LayerNorm(keys.width)
        self.tokens = nn.Embedding(len(vocabulary), keys.width)
        self.token_position = nn.Parameter(torch.empty(keys.max_tokens, keys.width))
        self.decoder: Any = nn.ModuleList(DecoderLayer(*sizes) for _ in range(keys.decoder_layers))
        self.output_norm = nn.LayerNorm(keys.width)
        self.output_transform = output_transform(keys.width) if keys.output_transform else nn.Identity()
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

    def encode(self, frames: Tensor) -> Tensor:
        """The decoder's memory [N, F, width] of frame features [N, F, D]."""
        x = self.dropout(self.frame_norm(self.visual(self.feature_norm(frames)) + self.frame_position))
        for layer in self.encoder:
            x = layer(x)
        return self.memory_norm(x)

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
        return self.dropout(self.tokens(tokens) + self.token_position[first : first + tokens.shape[1]])

    def _logits(self, x: Tensor) -> Tensor:
        weight = self.tokens.weight if self.output is None else self.output.weight
        return F.linear(self.output_transform(self.output_norm(x)), weight, self.output_bias)


def output_transform(width: int) -> nn.Sequential:
    """BERT's and UniVL's layers before the output: linear, GELU, LayerNorm."""
    return nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.LayerNorm(width))


class CaptionModel(AlignedModel):
    """CALM for captioning: the aligned features and a caption decoder; one forward pass gives the losses.

    V_p and the decoder's memory are made of the same features, `encode_frames`, so that CALM's loss can change
    captions: through the towers, or on frozen features through the adapter (docs/captioning.md).
    """

    scores_sentences = False

    def __init__(
        self, backbone: Backbone, captioner: CaptionDecoder, keys: CaptionSection, parts: AlignedParts
    ) -> None:
        super().__init__(backbone, parts)
        self.captioner = captioner
        self.caption_keys = keys

    def caption_tokens(self, sentences: Sequence[str]) -> Tensor:
        """The sentences as the decoder's tokens, [N, T]."""
        return self.captioner.vocabulary.encode(sentences, self.captioner.max_tokens)

    def forward(self, batch: Batch) -> Losses:
        """The losses of one step: L_cap + L_rec + alpha L_KL (docs/captioning.md)."""
        if batch.captions is None:
            raise ValueError("a captioning batch needs the captions' tokens")
        return self.losses_of(batch, encode_in_chunks(self.encode_frames, batch.frames, self.chunk))

    def losses_of(self, batch: Batch, frames: Tensor) -> Losses:
        """The same for clips that are encoded, frame features [B, F, D]."""
        assert batch.captions is not None
        # Padding is no row of an embedding. Any token will do in its place: attention is causal, and the loss skips it.
        logits = self.captioner(batch.captions[:, :-1].clamp(min=0), self.captioner.encode(frames))
        keys = self.caption_keys
        with torch.autocast(frames.device.type, enabled=False):
            targets = batch.captions[:, 1:]
            # Weighted by tokens, because the loss is a mean over tokens: parts of a batch have sentences of unequal
            # length.
            count = (self.world.own(targets) != PAD).sum()
            loss = caption_loss(logits, targets, keys.loss, smoothing=keys.smoothing, pad=PAD)
            loss, accuracy = (self.world.mean(mean, count) for mean in (loss, token_accuracy(logits, targets)))
            losses = Losses(loss, {"task": loss}, {"token_accuracy": accuracy})
        if self.aligns:
            # Nothing but the alignment loss reads the sentences here.
            with torch.set_grad_enabled(torch.is_grad_enabled() and self.teaches_sentences):
                texts, anchors = self.texts_and_anchors(batch.texts)
            with torch.autocast(frames.device.type, enabled=False):
                self.add_alignment(texts, frames, losses, anchors)
        losses.parts["loss"] = losses.total
        return losses


@torch.no_grad()
def token_accuracy(logits: Tensor, targets: Tensor) -> Tensor:
    """Share of the tokens `targets` [N, T], without padding, that are the likeliest of logits [N, T, V]."""
    real = targets != PAD
    # Counted and not picked out: a GPU would have to say first how many there are.
    return ((logits.argmax(dim=-1) == targets) & real).sum() / real.sum()
