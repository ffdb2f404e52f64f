"""The tokens a caption decoder writes: CLIP's byte pairs, all of them or those of the training captions."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from calmctl.model.backbone import Backbone

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
        """Take the CLIP `ids` [V]; raises `CheckpointError` where the backbone's tokenizer is not CLIP's."""
        self._bpe = backbone.bpe
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
    seen = {bpe.sot_token_id, bpe.eot_token_id}
    for caption in captions:
        seen.update(bpe.encode(caption))
    return torch.tensor(sorted(seen))
