"""Captions of clips from their frame features."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from calmctl.captioning.search import Found, beam_search, follow, greedy, sampler
from calmctl.captioning.steps import CachedSteps, PlainSteps
from calmctl.model.caption import CaptionModel
from calmctl.recipe.schema import CaptionSection

CLIPS_PER_BATCH = 64
# So many sentences at once, one for each beam of a clip, hold a few hundred megabytes of log-probabilities.
_MOST_SENTENCES = 5 * CLIPS_PER_BATCH


@dataclass(frozen=True, slots=True)
class Search:
    """How captions are found.

    Attributes:
        beam: Beams; 1 is the greedy path.
        length_penalty: Beams are compared by log p / length^this.
        temperature: Draw each token from p^(1 / this) instead of searching; None: search.
        seed: Of the draws.
        cached: Use the key-value cache; without it the captions are the same and take longer.
    """

    beam: int = 5
    length_penalty: float = 1.0
    temperature: float | None = None
    seed: int = 0
    cached: bool = True

    @classmethod
    def of(cls, keys: CaptionSection) -> Search:
        """The search a recipe asks for."""
        return cls(keys.beam, keys.length_penalty)

    def describe(self) -> dict[str, Any]:
        """What a result records of it."""
        if self.temperature is not None:
            return {"method": "sampling", "temperature": self.temperature, "seed": self.seed}
        if self.beam == 1:
            return {"method": "greedy"}
        return {"method": "beam", "beam": self.beam, "length_penalty": self.length_penalty}

    def __str__(self) -> str:
        """The same in words, such as "beam 5, length penalty 1"."""
        if self.temperature is not None:
            return f"sampling, temperature {self.temperature:g}, seed {self.seed}"
        return "greedy" if self.beam == 1 else f"beam {self.beam}, length penalty {self.length_penalty:g}"


@dataclass(frozen=True, slots=True)
class Caption:
    """One generated sentence.

    Attributes:
        text: The sentence, lower case as CLIP's tokens are.
        log_prob: Log-probability of its tokens under the model, at temperature 1.
        n_tokens: How many they are, the end mark counted where there is one.
    """

    text: str
    log_prob: float
    n_tokens: int


@torch.inference_mode()
def caption_features(model: CaptionModel, frames: Tensor, search: Search) -> list[Caption]:
    """Captions of clips with frame features [N, F, D], as `model.encode_frames` gives them."""
    generator = torch.Generator().manual_seed(search.seed)
    device = next(model.captioner.parameters()).device
    found: list[Caption] = []
    searched = search.beam if search.temperature is None else 1
    size = min(CLIPS_PER_BATCH, max(1, _MOST_SENTENCES // searched))
    for first in range(0, len(frames), size):
        found += _batch(model, frames[first : first + size].to(device), search, generator)
    return found


def _batch(model: CaptionModel, frames: Tensor, search: Search, generator: torch.Generator) -> Iterator[Caption]:
    captioner = model.captioner
    memory = captioner.encode(frames)
    steps = CachedSteps(captioner, memory) if search.cached else PlainSteps(captioner, memory)
    start, end = captioner.vocabulary.start, captioner.vocabulary.end
    if search.beam > 1 and search.temperature is None:
        found = beam_search(
            steps,
            len(frames),
            start=start,
            end=end,
            beam=search.beam,
            max_tokens=captioner.max_tokens,
            length_penalty=search.length_penalty,
        )
    else:
        choose = greedy if search.temperature is None else sampler(search.temperature, generator)
        found = follow(steps, len(frames), choose, start=start, end=end, max_tokens=captioner.max_tokens)
    return _captions(model, found)


def _captions(model: CaptionModel, found: Found) -> Iterator[Caption]:
    rows = zip(found.tokens.tolist(), found.lengths.tolist(), found.log_probs.tolist(), strict=True)
    for tokens, length, log_prob in rows:
        yield Caption(model.captioner.vocabulary.decode(tokens[:length]), log_prob, length)
