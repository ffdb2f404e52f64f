"""Exact search: every clip scored by the head itself, streamed; the best scored once more in float64."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from calmctl.errors import BadInput, RunFailed
from calmctl.files import write_bytes
from calmctl.model.backbone import FeatureAdapter
from calmctl.model.heads.base import FusionHead, ProbedHead, Reranker
from calmctl.model.heads.meanp import mean_video
from calmctl.search.rows import (
    About,
    MappedFrames,
    ShardRows,
    cache_folder,
    file_stat,
    generation,
    read_about,
    remove_stale,
    require_whole,
    trusted_file,
    write_about,
)
from calmctl.search.scorers import (
    FrameScorer,
    Scorer,
    SearchIndex,
    adapted,
    products,
    products_with,
    table_key,
)
from calmctl.store.store import FeatureStore
from calmctl.words import Progress

CLIPS_PER_BLOCK = 8192
"""Clips scored at once: much smaller blocks would spend their time on calls."""
MOST_PRODUCTS = 1 << 22
"""Products with frames held at once, 16 MB: with many queries, blocks hold fewer clips."""
MOST_SCORES = 1 << 26
"""Scores held at once, 256 MB: many queries over many clips go in parts."""
_MARGIN = 2e-5  # float32 scores are off by less (tests/search/test_exact.py): who may be among the best is kept


@dataclass(frozen=True, slots=True)
class Best:
    """The best clips of one query: positions [k] in the index, and float64 scores [k], descending."""

    positions: tuple[int, ...]
    scores: tuple[float, ...]


class Judge:
    """The head in float64 on the CPU, which has the last word on a few clips."""

    def __init__(self, head: FusionHead, adapter: FeatureAdapter | None) -> None:
        # A copy, because the model goes on in float32 where it is.
        self._whole: Any = deepcopy(head).cpu().double().eval() if isinstance(head, nn.Module) else head
        self._head = scoring_head(self._whole)
        self._adapter = None if adapter is None else deepcopy(adapter).cpu().double()

    @torch.inference_mode()
    def scores(self, texts: Tensor, frames: Tensor) -> np.ndarray:
        """Scores float64 [N_t, n] of texts and of frames [n, F, D] as the store has them."""
        texts = texts.cpu().double()
        parts = [self._part(texts, adapted(part.double(), self._adapter)) for part in torch.split(frames.cpu(), 256)]
        found: np.ndarray = torch.cat(parts, 1).numpy()
        return found

    @torch.inference_mode()
    def reranked(self, texts: Tensor, frames: Tensor, scores: np.ndarray, *, by_text: bool = True) -> np.ndarray:
        """Scores float64 [N_t, n] of a head that re-ranks, from those of `scores`; arguments likewise."""
        rerank = self._whole.rerank_videos if by_text else self._whole.rerank_texts
        frames = adapted(frames.cpu().double(), self._adapter)
        found: np.ndarray = rerank(texts.cpu().double(), frames, torch.from_numpy(scores)).numpy()
        return found

    def _part(self, texts: Tensor, frames: Tensor) -> Tensor:
        scores: Tensor
        if isinstance(self._head, ProbedHead):
            # For a few clips the formula as it reads takes a tenth of the time of making their tables (measured).
            scores = self._head.score_directly(texts, frames)
        else:
            scores = self._head.score(texts, self._head.video_table(frames))
        return scores


def scoring_head(head: Any) -> Any:
    """The head whose scores a search goes by: where a head re-ranks, its first stage."""
    return head.base if isinstance(head, Reranker) else head


def rerank(index: SearchIndex, judge: Judge, text: Tensor, best: Best, candidates: int) -> Best:
    """The best clips of one query with the first `candidates` in a new order, and the rest behind them as they are."""
    positions, scores = np.array(best.positions[:candidates]), np.array(best.scores[:candidates])
    if not len(positions):
        return best
    new = judge.reranked(text[None], index.frames.rows(positions), scores[None])[0]
    order = np.lexsort((positions, -new.round(12)))
    return Best(
        (*positions[order].tolist(), *best.positions[candidates:]), (*new[order].tolist(), *best.scores[candidates:])
    )


def search_exact(
    index: SearchIndex,
    scorer: Scorer,
    judge: Judge,
    texts: Tensor,
    top: int,
    *,
    block: int | None = None,
    progress: Progress | None = None,
    among: np.ndarray | None = None,
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
        progress: Told of the clips, over all parts of the texts.
        among: Positions of the clips that may be found, ascending; None for all.
    """
    at_once = max(1, MOST_SCORES // max(1, len(index.frames)))
    parts = torch.split(texts, at_once) if len(texts) else ()
    found: list[Best] = []
    for number, part in enumerate(parts):

        def tell(done: int, before: int = number) -> None:
            if progress is not None:
                progress("scoring clips", before * len(index.frames) + done, len(parts) * len(index.frames))

        scores = all_scores(index, scorer, part, block, tell)
        positions = np.arange(len(index.frames)) if among is None else among
        found += [
            select(index, judge, text, row[positions], positions, top) for text, row in zip(part, scores, strict=True)
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
def all_scores(
    index: SearchIndex, scorer: Scorer, texts: Tensor, block: int | None, tell: Callable[[int], None]
) -> np.ndarray:
    """Float32 scores [N_t, N] of all clips; `tell` hears of the clips."""
    frames, device = index.frames, scorer.device
    prepared = scorer.prepare(texts.to(device))
    step = block or CLIPS_PER_BLOCK
    scores = np.empty((len(texts), len(frames)), np.float32)
    for start, stop, found in _products(frames, scorer, prepared, step, block, tell):
        # What frames give is found for many blocks at once and scored block by block.
        for low in range(start, stop, step):
            high = min(low + step, stop)
            some = None if found is None else found[:, low - start : high - start]
            table = index.table(slice(low, high), device)
            scores[:, low:high] = scorer.score(prepared, some, table).cpu().numpy()
            if found is None:
                tell(high)
    return scores


def _products(
    frames: MappedFrames, scorer: Scorer, prepared: Any, step: int, block: int | None, tell: Callable[[int], None]
) -> Iterator[tuple[int, int, Tensor | None]]:
    """Clips `start` to `stop`, some `step`s of them, with their products; without, where the scorer reads no frames."""
    if not isinstance(scorer, FrameScorer):
        yield 0, len(frames), None
        return
    directions = scorer.directions(prepared)
    multiply = products_with(frames, directions, block)
    fit = MOST_PRODUCTS // (len(directions) * frames.n_frames)
    at_once = max(1, fit if fit < step else fit - fit % step)
    for start in range(0, len(frames), at_once):
        stop = min(start + at_once, len(frames))
        yield start, stop, multiply(start, stop, tell)


# Two-stage search: a graph over mean-pooled features proposes clips, the head's own score decides among them.


CANDIDATES = 1000
"""Clips that the first stage passes on (our choice; docs/search.md measures it)."""

_GRAPH = "means"
_ROW_BITS = 20  # a key of the graph is a shard's number, then so many bits for the row in it


class Graph:
    """A usearch HNSW graph over the mean-pooled unit vectors of clips, float16, on disk and read by memory map.

    Attributes:
        made: Clips that this opening added; the others were there.
        path: Its file.
        not_kept: Why it is in memory alone, or None.
    """

    def __init__(self, index: Any, keys: np.ndarray, path: Path, made: int, not_kept: str | None) -> None:
        """Use `open_graph`."""
        self._index, self._keys = index, keys
        self.path, self.made, self.not_kept = path, made, not_kept

    def __len__(self) -> int:
        return len(self._keys)

    def candidates(self, sentence: Tensor, count: int) -> np.ndarray:
        """Positions, ascending, of the clips whose mean-pooled features are nearest to a sentence feature [D]."""
        if not len(self._keys):
            return np.empty(0, np.int64)
        # A walk through the graph keeps no more clips than it expands, so as many as are asked for must be.
        self._index.expansion_search = max(64, count)
        query = F.normalize(sentence.float(), dim=-1).cpu().numpy()
        found = self._index.search(query, min(count, len(self._keys))).keys
        return np.sort(np.searchsorted(self._keys, found.astype(np.int64)))


def open_graph(
    store: FeatureStore,
    shards: Sequence[ShardRows],
    index: SearchIndex,
    adapter: FeatureAdapter | None,
    progress: Progress | None = None,
    on_wait: Callable[[], None] = lambda: None,
) -> Graph:
    """Open the graph over a store's clips, made or brought up to date first where that is needed.

    Raises:
        BadInput: usearch is not installed.
        StoreError: A shard is damaged.
    """
    usearch = require_usearch()
    key = table_key("mean-pooled graph", None, adapter)
    keys = [_keys(shard.group, shard.rows) for shard in shards]
    wanted = np.concatenate(keys)
    with cache_folder(store, key, on_wait) as (folder, not_kept):
        old = read_about(folder, key)
        stats = require_whole(store, shards, old.shards if old else {})
        path = folder / f"means-{generation(shards)}.usearch"
        file = trusted_file(folder, old, _GRAPH)
        if file == path:
            graph = _restore(usearch, file, index.frames.dim, view=True)
            # The name tells the generation, and the keys that the file holds it.
            if graph is not None and _holds(graph, wanted):
                return Graph(graph, wanted, path, 0, None)
        graph = None if file is None or file == path else _restore(usearch, file, index.frames.dim, view=False)
        known = {name: stat.mark for name, stat in old.shards.items()} if old and graph is not None else {}
        changed = [shard.name for shard in shards if known.get(shard.name) != stats[shard.name].mark]
        if graph is None:
            # Inner products of unit vectors are cosines.
            graph = usearch.Index(ndim=index.frames.dim, metric="ip", dtype="f16")
        else:
            kept = [some for shard, some in zip(shards, keys, strict=True) if shard.name not in changed]
            present = np.asarray(graph.keys[:]).astype(np.int64)
            gone = np.setdiff1d(present, np.concatenate([np.empty(0, np.int64), *kept]))
            if len(gone):
                graph.remove(gone.astype(np.uint64))
        made, total = 0, sum(len(shard.rows) for shard in shards if shard.name in changed)
        for shard, some, (start, stop) in zip(shards, keys, pairwise(index.frames.starts.tolist()), strict=True):
            if shard.name in changed:
                graph.add(some.astype(np.uint64), _means(adapter, index, start, stop))
                made += stop - start
                if progress is not None:
                    progress("building the graph", made, total)
        if not_kept is None:
            try:
                write_bytes(path, graph.save())
                write_about(folder, About(key=key, shards=stats, files={_GRAPH: file_stat(path)}))
                remove_stale(folder, "means-*.usearch", {path})
                graph = usearch.Index.restore(str(path), view=True)
            except RunFailed as fault:
                not_kept = str(fault)
        return Graph(graph, wanted, path, made, not_kept)


def search_two_stage(
    index: SearchIndex,
    scorer: Scorer,
    judge: Judge,
    graph: Graph,
    texts: Tensor,
    sentences: Tensor,
    top: int,
    *,
    candidates: int = CANDIDATES,
) -> list[Best]:
    """The `top` best clips of every text among the candidates that the graph proposes.

    Args:
        index: The clips.
        scorer: What the index was opened with.
        judge: The same model's.
        graph: Over the same clips.
        texts: Texts as `AlignedModel.encode_texts` gives them, [N_t, ...].
        sentences: The sentence features in them, [N_t, D].
        top: k; fewer where there are fewer clips.
        candidates: Clips that the first stage passes on; at least `top` are.
    """
    found = []
    for text, sentence in zip(texts, sentences, strict=True):
        positions = graph.candidates(sentence, max(top, candidates))
        found.append(select(index, judge, text, score_rows(index, scorer, text, positions), positions, top))
    return found


@torch.inference_mode()
def score_rows(index: SearchIndex, scorer: Scorer, text: Tensor, positions: np.ndarray) -> np.ndarray:
    """Float32 scores [n] of one text and the clips at `positions` [n]."""
    device = scorer.device
    prepared = scorer.prepare(text[None].to(device))
    directions = scorer.directions(prepared) if isinstance(scorer, FrameScorer) else None
    parts = [np.empty(0, np.float32)]
    for start in range(0, len(positions), 512):
        some = positions[start : start + 512]
        found = None if directions is None else products(index.frames.rows(some).to(device), directions)
        parts.append(scorer.score(prepared, found, index.table(some, device))[0].cpu().numpy())
    return np.concatenate(parts)


def require_usearch() -> Any:
    """The usearch package's index module. Raises `BadInput` saying how to get it."""
    try:
        return import_module("usearch.index")
    except ImportError:
        raise BadInput(
            "--approximate and search recall need the usearch package: pip install 'calmctl[index]'; "
            "without them the search is exact and needs nothing"
        ) from None


@torch.inference_mode()
def _means(adapter: FeatureAdapter | None, index: SearchIndex, start: int, stop: int) -> np.ndarray:
    """Mean-pooled unit vectors [n, D] of consecutive clips."""
    device = torch.device("cpu") if adapter is None else adapter.frames.weight.device
    frames = adapted(index.frames.block(start, stop).to(device), adapter)
    means: np.ndarray = mean_video(frames).cpu().numpy()
    return means


def _keys(group: int, rows: Sequence[int]) -> np.ndarray:
    return np.array(rows, np.int64) + (group << _ROW_BITS)


def _restore(usearch: Any, path: Path, dim: int, *, view: bool) -> Any:
    """The graph in a file that was written here; None where it is none after all."""
    try:
        graph = usearch.Index.restore(str(path), view=view)
    except (ValueError, RuntimeError):
        return None
    return graph if graph is not None and graph.ndim == dim else None


def _holds(graph: Any, keys: np.ndarray) -> bool:
    """Whether a graph has exactly these clips."""
    return np.array_equal(np.sort(np.asarray(graph.keys[:]).astype(np.int64)), keys)


# How much of the exact answer the first stage of a two-stage search keeps.


@dataclass(frozen=True, slots=True)
class Recall:
    """The first stage against the exact answer.

    Attributes:
        at: k of recall@k.
        queries: How many queries it is the mean of.
        candidates: Clips that the first stage passes on.
        kept: Share of the exact best `at` clips that are among them: the two-stage answer holds exactly these.
        first: Share that would be left if the first stage's own best `at` were the answer.
    """

    at: int
    queries: int
    candidates: int
    kept: float
    first: float


def measure_recall(exact: Sequence[Best], graph: Graph, sentences: Tensor, *, candidates: int, at: int = 10) -> Recall:
    """Compare the graph's candidates of every query with its exact answer.

    Args:
        exact: The exact best `at` of every query.
        graph: The first stage.
        sentences: Sentence features [N_t, D] of the same queries.
        candidates: Clips that the first stage is to pass on: as in a search, at least `at`, and at most all.
        at: k.
    """
    candidates = min(max(at, candidates), len(graph))
    kept, first = [], []
    for best, sentence in zip(exact, sentences, strict=True):
        kept.append(_share(best, graph.candidates(sentence, candidates)))
        first.append(_share(best, graph.candidates(sentence, at)))
    return Recall(at, len(kept), candidates, float(np.mean(kept)), float(np.mean(first)))


def _share(best: Best, positions: np.ndarray) -> float:
    return len(set(best.positions) & set(positions.tolist())) / max(1, len(best.positions))
