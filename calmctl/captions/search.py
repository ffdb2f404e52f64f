"""A caption decoder as steps of a search: with a key-value cache, or computing every prefix anew."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from calmctl.model.captioner import CaptionDecoder


class CachedSteps:
    """Computes each new token only; what earlier tokens left in the attentions is kept."""

    def __init__(self, captioner: CaptionDecoder, memory: Tensor) -> None:
        """Begin sentences for memory [N, F, width]."""
        self._captioner = captioner
        self._device = memory.device
        # The same captions as without: benchmarks/caption.py compares both, and measures what it saves.
        self._cache = captioner.start_cache(memory)

    def advance(self, tokens: Tensor) -> Tensor:
        """Append `tokens` [N]; returns log-probabilities [N, V]."""
        return next_log_probs(self._captioner, self._captioner.step(tokens.to(self._device), self._cache))

    def select(self, rows: Tensor) -> None:
        """Go on with sentences `rows` [M]."""
        self._cache.select(rows)


def next_log_probs(captioner: CaptionDecoder, logits: Tensor) -> Tensor:
    """Log-probabilities [N, V] of the next token; the start mark, which never comes next, has none."""
    # A sentence's log-probability is a sum over its tokens, for which 16 bits have too few digits.
    logits = logits if logits.dtype == torch.float64 else logits.float()
    logits = logits.index_fill(1, torch.tensor(captioner.vocabulary.start, device=logits.device), -torch.inf)
    return logits.log_softmax(dim=1)


# How a caption is found among all sentences: beam search, the greedy path, or a draw. Knows no model.


class Steps(Protocol):
    """A batch of sentences that are being written, one row each."""

    def advance(self, tokens: Tensor) -> Tensor:
        """Append `tokens` [N] to the sentences; returns the log-probabilities [N, V] of what comes next."""
        ...

    def select(self, rows: Tensor) -> None:
        """Go on with sentences `rows` [M], in that order; a sentence may be taken several times."""
        ...


@dataclass(frozen=True, slots=True)
class Hypotheses:
    """The best sentence found for each of B clips.

    Attributes:
        tokens: [B, T], filled up with `end`; no start mark.
        lengths: Tokens of each, the end mark counted where there is one, [B].
        log_probs: Sum of the log-probabilities of those tokens, [B].
    """

    tokens: Tensor
    lengths: Tensor
    log_probs: Tensor


def beam_search(
    steps: Steps, clips: int, *, start: int, end: int, beam: int, max_tokens: int, length_penalty: float
) -> Hypotheses:
    """The sentence with the highest log p / length^`length_penalty` that a beam search meets.

    In each step every clip keeps the `beam` likeliest unfinished sentences. A sentence ends where its end mark is
    among the clip's `beam` likeliest continuations; the best of those by the score above is kept, ties going to the
    earlier one. A sentence of `max_tokens` tokens ends there, with or without its end mark. The search of a clip is
    over when none of its unfinished sentences can still win: a log-probability only falls, so
    log p / max_tokens^length_penalty bounds what may come.

    Args:
        steps: `clips` sentences, all empty.
        clips: B.
        start: Number of the mark before a sentence.
        end: Number of the mark behind it.
        beam: Unfinished sentences per clip.
        max_tokens: The longest sentence.
        length_penalty: 0 or more; 0 compares log-probabilities as they are.
    """
    log_next = steps.advance(torch.full((clips,), start))
    device, vocabulary = log_next.device, log_next.shape[1]
    best_score = torch.full((clips,), -torch.inf, device=device, dtype=log_next.dtype)
    best_log_prob = best_score.clone()
    best_length = torch.zeros(clips, dtype=torch.long, device=device)
    best_tokens = torch.full((clips, max_tokens), end, device=device)
    # Unfinished sentences: first only the empty one, which is one row per clip.
    alive = torch.zeros(clips, 1, device=device, dtype=log_next.dtype)
    written = torch.empty(clips, 1, 0, dtype=torch.long, device=device)
    first_row = torch.arange(clips, device=device)[:, None]
    for length in range(1, max_tokens + 1):
        total = alive[:, :, None] + log_next.view(clips, -1, vocabulary)
        # Ended now: an unfinished sentence with an end mark behind it; at the last length, any sentence. An end that
        # nothing speaks for is none: weighed all the same, it wins where raw sums are compared, since every further
        # token costs (of a CLIP4Caption on the drawn world the empty caption, whose end mark was the fourteenth).
        if length == max_tokens:
            ending = total.flatten(1)
        else:
            ends = total[:, :, end].clone()
            # What ends never goes on, so it takes no place in the beam.
            total[:, :, end] = -torch.inf
            alive, chosen = total.flatten(1).topk(min(beam, total[0].numel()), dim=1)
            likelier = (torch.cat([alive, ends], dim=1)[:, None] > ends[:, :, None]).sum(dim=2)
            ending = ends.masked_fill(likelier >= beam, -torch.inf)
        log_prob, which = ending.max(dim=1)
        score = log_prob / length**length_penalty
        beam_of, token = (which // vocabulary, which % vocabulary) if length == max_tokens else (which, end)
        better = score > best_score
        sentence = written[torch.arange(clips, device=device), beam_of]
        best_tokens[better, : length - 1] = sentence[better]
        best_tokens[better, length - 1 :] = end
        best_tokens[better, length - 1] = (torch.zeros_like(which) + token)[better]
        best_score = torch.where(better, score, best_score)
        best_log_prob = torch.where(better, log_prob, best_log_prob)
        best_length = torch.where(better, length, best_length)
        if length == max_tokens or bool((alive[:, 0] / max_tokens**length_penalty <= best_score).all()):
            break
        parent, token = chosen // vocabulary, chosen % vocabulary
        steps.select((first_row * written.shape[1] + parent).flatten())
        written = torch.cat([written[first_row, parent], token[:, :, None]], dim=2)
        log_next = steps.advance(token.flatten())
    return Hypotheses(best_tokens[:, :length], best_length, best_log_prob)


def follow(
    steps: Steps, clips: int, choose: Callable[[Tensor], Tensor], *, start: int, end: int, max_tokens: int
) -> Hypotheses:
    """One sentence per clip, token by token: `choose` maps log-probabilities [B, V] to tokens [B]."""
    log_next = steps.advance(torch.full((clips,), start))
    log_probs = log_next.new_zeros(clips)
    lengths = torch.zeros(clips, dtype=torch.long, device=log_next.device)
    unfinished = torch.ones(clips, dtype=torch.bool, device=log_next.device)
    written = []
    for _ in range(max_tokens):
        token = torch.where(unfinished, choose(log_next), end)
        log_probs = log_probs + log_next.gather(1, token[:, None])[:, 0] * unfinished
        lengths = lengths + unfinished
        written.append(token)
        unfinished = unfinished & (token != end)
        if len(written) == max_tokens or not unfinished.any():
            break
        log_next = steps.advance(token)
    return Hypotheses(torch.stack(written, dim=1), lengths, log_probs)


def greedy(log_probs: Tensor) -> Tensor:
    """The likeliest token of each row of [B, V]."""
    return log_probs.argmax(dim=1)


def sampler(temperature: float, generator: torch.Generator) -> Callable[[Tensor], Tensor]:
    """Draws tokens from p^(1 / `temperature`), renormalised; 1 draws from the model itself."""

    def draw(log_probs: Tensor) -> Tensor:
        # On the CPU, where the generator is: a seed means the same draws on every device.
        sharpened = (log_probs.cpu() / temperature).softmax(dim=1)
        return torch.multinomial(sharpened, 1, generator=generator)[:, 0].to(log_probs.device)

    return draw
