"""A caption decoder as steps of a search: with a key-value cache, or computing every prefix anew."""

from __future__ import annotations

import torch
from torch import Tensor

from calmctl.model.captioner import Captioner


class CachedSteps:
    """Computes each new token only; what earlier tokens left in the attentions is kept."""

    def __init__(self, captioner: Captioner, memory: Tensor) -> None:
        """Begin sentences for memory [N, F, width]."""
        self._captioner = captioner
        self._device = memory.device
        self._cache = captioner.start_cache(memory)

    def advance(self, tokens: Tensor) -> Tensor:
        """Append `tokens` [N]; returns log-probabilities [N, V]."""
        return next_log_probs(self._captioner, self._captioner.step(tokens.to(self._device), self._cache))

    def select(self, rows: Tensor) -> None:
        """Go on with sentences `rows` [M]."""
        self._cache.select(rows)


class PlainSteps:
    """Computes every prefix from its beginning; what `CachedSteps` is measured against."""

    def __init__(self, captioner: Captioner, memory: Tensor) -> None:
        """Begin sentences for memory [N, F, width]."""
        self._captioner = captioner
        self._memory = memory
        self._tokens = torch.empty(len(memory), 0, dtype=torch.long, device=memory.device)

    def advance(self, tokens: Tensor) -> Tensor:
        """Append `tokens` [N]; returns log-probabilities [N, V]."""
        self._tokens = torch.cat([self._tokens, tokens.to(self._memory.device)[:, None]], dim=1)
        return next_log_probs(self._captioner, self._captioner(self._tokens, self._memory)[:, -1])

    def select(self, rows: Tensor) -> None:
        """Go on with sentences `rows` [M]."""
        self._tokens, self._memory = self._tokens[rows], self._memory[rows]


def next_log_probs(captioner: Captioner, logits: Tensor) -> Tensor:
    """Log-probabilities [N, V] of the next token; the start mark, which never comes next, has none."""
    logits = logits if logits.dtype == torch.float64 else logits.float()
    logits = logits.index_fill(1, torch.tensor(captioner.vocabulary.start, device=logits.device), -torch.inf)
    return logits.log_softmax(dim=1)
