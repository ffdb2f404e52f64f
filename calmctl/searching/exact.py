"""Exact search: every clip scored by the head itself, streamed; the best scored once more in float64."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from calmctl.model.adapter import FeatureAdapter
from calmctl.model.heads.base import FusionHead, ProbedHead
from calmctl.searching.index import Progress, SearchIndex
from calmctl.searching.mapped import MappedFrames
from calmctl.searching.products import products_with
from calmctl.searching.scorers import FrameReader, Scorer, adapted

CLIPS_PER_BLOCK = 8192
"""Clips scored at once: much smaller blocks would spend their time on calls."""
MOST_PRODUCTS = 1 << 22
"""Products with frames held at once, 16 MB: with many queries, blocks hold fewer clips."""
MOST_SCORES = 1 << 26
"""Scores held at once, 256 MB: many queries over many clips go in parts."""
_MARGIN = 2e-5  # float32 scores are off by less (tests/searching/test_exact.py): who may be among the best is kept


@dataclass(frozen=True, slots=True)
class Best:
    """The best clips of one query: positions [k] in the index, and float64 scores [k], descending."""

    positions: tuple[int, ...]
    scores: tuple[float, ...]


class Judge:
    """The head in float64 on the CPU, which has the last word on a few clips."""

    def __init__(self, head: FusionHead, adapter: FeatureAdapter | None) -> None:
        self._head: Any = deepcopy(head).cpu().double().eval() if isinstance(head, nn.Module) else head
        self._adapter = None if adapter is None else deepcopy(adapter).cpu().double()

    @torch.inference_mode()
    def scores(self, texts: Tensor, frames: Tensor) -> np.ndarray:
        """Scores float64 [N_t, n] of texts and of frames [n, F, D] as the store has them."""
        texts = texts.cpu().double()
        parts = [self._part(texts, adapted(part.double(), self._adapter)) for part in torch.split(frames.cpu(), 256)]
        found: np.ndarray = torch.cat(parts, 1).numpy()
        return found

    def _part(self, texts: Tensor, frames: Tensor) -> Tensor:
        scores: Tensor
        if isinstance(self._head, ProbedHead):
            scores = self._head.score_directly(texts, frames)
        else:
            scores = self._head.score(texts, self._head.video_table(frames))
        return scores


def search_exact(
    index: SearchIndex,
    scorer: Scorer,
    judge: Judge,
    texts: Tensor,
    top: int,
    *,
    block: int | None = None,
    progress: Progress | None = None,
) -> list[Best]:
    """The `top` best clips of every text, by the head's own scores over all clips.

    The answer is that of float64 arithmetic on the stored features, ties in the store's order: it depends neither on
    blocks nor on which other texts are asked.

    Args:
        index: The clips.
        scorer: What the index was opened with.
        judge: The same model's.
        texts: Texts as `AlignedModel.encode_texts` gives them, [N_t, ...].
        top: k; all clips where there are fewer.
        block: Clips at once; None for what suits the scorer.
        progress: Called with clips done and clips in all, over all parts of the texts.
    """
    at_once = max(1, MOST_SCORES // max(1, len(index.frames)))
    parts = torch.split(texts, at_once) if len(texts) else ()
    found: list[Best] = []
    for number, part in enumerate(parts):

        def tell(done: int, before: int = number) -> None:
            if progress is not None:
                progress(before * len(index.frames) + done, len(parts) * len(index.frames))

        scores = _all_scores(index, scorer, part, block, tell)
        found += [
            select(index, judge, text, row, np.arange(len(row)), top) for text, row in zip(part, scores, strict=True)
        ]
    return found


def select(index: SearchIndex, judge: Judge, text: Tensor, scores: np.ndarray, positions: np.ndarray, top: int) -> Best:
    """The best of some clips, from their float32 scores [n]: those near the top are scored again in float64."""
    top = min(top, len(scores))
    if not top:
        return Best((), ())
    least = np.partition(scores, len(scores) - top)[len(scores) - top]
    near = np.sort(positions[scores >= least - _MARGIN])
    exact = np.concatenate(
        [judge.scores(text[None], index.frames.rows(near[i : i + 1024]))[0] for i in range(0, len(near), 1024)]
    )
    # Copies of one clip score the same but for the last bits, which must not decide.
    order = np.lexsort((near, -exact.round(12)))[:top]
    return Best(tuple(near[order].tolist()), tuple(exact[order].tolist()))


@torch.inference_mode()
def _all_scores(
    index: SearchIndex, scorer: Scorer, texts: Tensor, block: int | None, tell: Callable[[int], None]
) -> np.ndarray:
    """Float32 scores [N_t, N] of all clips."""
    frames, device = index.frames, scorer.device
    prepared = scorer.prepare(texts.to(device))
    step = block or CLIPS_PER_BLOCK
    scores = np.empty((len(texts), len(frames)), np.float32)
    for start, stop, products in _products(frames, scorer, prepared, step, block, tell):
        # What frames give is found for many blocks at once and scored block by block.
        for low in range(start, stop, step):
            high = min(low + step, stop)
            some = None if products is None else products[:, low - start : high - start]
            table = index.table(slice(low, high), device)
            scores[:, low:high] = scorer.score(prepared, some, table).cpu().numpy()
            if products is None:
                tell(high)
    return scores


def _products(
    frames: MappedFrames, scorer: Scorer, prepared: Any, step: int, block: int | None, tell: Callable[[int], None]
) -> Iterator[tuple[int, int, Tensor | None]]:
    """Clips `start` to `stop`, some `step`s of them, with their products; without, where the scorer reads no frames."""
    if not isinstance(scorer, FrameReader):
        yield 0, len(frames), None
        return
    directions = scorer.directions(prepared)
    multiply = products_with(frames, directions, block)
    fit = MOST_PRODUCTS // (len(directions) * frames.n_frames)
    at_once = max(1, fit if fit < step else fit - fit % step)
    for start in range(0, len(frames), at_once):
        stop = min(start + at_once, len(frames))
        yield start, stop, multiply(start, stop, tell)
