"""Sentences into the tokens that a text tower reads: all of a sentence as text, and how many do not fit."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from calmctl.counting import counted

# CLIP's tokenizer turns these into its own marks wherever they stand, and a text tower pools at the first end mark.
_MARK = re.compile(r"<(?=(?:start|end)_of_text>)", re.IGNORECASE)
_AT_ONCE = 4096


class Tokens:
    """A backbone's tokenizer.

    Attributes:
        tokenizer: open_clip's; one of CLIP's kind reads `<end_of_text>` inside a sentence as text.
        context_length: Tokens the text tower reads, the two marks counted.
    """

    def __init__(self, tokenizer: Any, context_length: int) -> None:
        from open_clip.tokenizer import SimpleTokenizer

        self.tokenizer = tokenizer
        self.context_length = context_length
        self._of_clip = isinstance(tokenizer, SimpleTokenizer)
        if self._of_clip:
            # Behind its own clean-up, which makes such a mark of "&lt;end_of_text&gt;" too. A blank behind the bracket
            # changes no other token: byte pairs never go from punctuation on into letters.
            tokenizer.clean_fn = partial(_without_marks, tokenizer.clean_fn)

    def __call__(self, sentences: Sequence[str]) -> Tensor:
        """Token ids [N, context_length]; what does not fit is cut, and the end mark stands last."""
        tokens: Tensor = self.tokenizer(list(sentences))
        return tokens

    def longer(self, sentences: Sequence[str]) -> int:
        """How many sentences have more tokens than the text tower reads, by the tokenizer's own count."""
        # Cleaning makes no ASCII text without entities longer, and a token has at least one character.
        times = Counter(s for s in sentences if len(s) > self.context_length - 3 or not s.isascii() or "&" in s)
        candidates = list(times)
        if self._of_clip:
            return sum(times[s] for s in candidates if len(self.tokenizer.encode(s)) + 2 > self.context_length)
        n = 0
        for start in range(0, len(candidates), _AT_ONCE):
            some = candidates[start : start + _AT_ONCE]
            # One place more: where the sentence ends before, that place is padding and the others are the same.
            wider: Tensor = self.tokenizer(some, context_length=self.context_length + 1)
            cut = (wider[:, : self.context_length] != self(some)).any(dim=1)
            n += sum(times[some[place]] for place in torch.nonzero(cut).flatten().tolist())
        return n

    def cut(self, sentences: Sequence[str], noun: str = "caption") -> str | None:
        """A sentence about those that are not read to their end, None where all are."""
        n = self.longer(sentences)
        if not n:
            return None
        return (
            f"{n:,} of {counted(len(sentences), noun)} {'is' if n == 1 else 'are'} longer than {self.context_length} "
            "tokens; the rest is not read"
        )


def _without_marks(clean: Callable[[str], str], text: str) -> str:
    return _MARK.sub("< ", clean(text))
