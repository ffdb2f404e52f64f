"""Two-stage search: a graph over mean-pooled features proposes clips, the head's own score decides among them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from calmctl.data.store import FeatureStore
from calmctl.errors import BadInput, RunFailed
from calmctl.files import write_bytes
from calmctl.model.adapter import FeatureAdapter
from calmctl.model.heads.meanp import mean_video
from calmctl.searching.exact import Best, Judge, select
from calmctl.searching.index import Progress, SearchIndex
from calmctl.searching.mapped import ShardRows
from calmctl.searching.marks import (
    About,
    cache_folder,
    described,
    generation,
    made_here,
    read_about,
    remove_stale,
    require_whole,
    write_about,
)
from calmctl.searching.products import products
from calmctl.searching.scorers import FrameReader, Scorer, adapted, table_key

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
        file = made_here(folder, old, _GRAPH)
        if file == path:
            graph = _restore(usearch, file, index.frames.dim, view=True)
            if graph is not None and _holds(graph, wanted):
                return Graph(graph, wanted, path, 0, None)
        graph = None if file is None or file == path else _restore(usearch, file, index.frames.dim, view=False)
        known = {name: stat.mark for name, stat in old.shards.items()} if old and graph is not None else {}
        changed = [shard.name for shard in shards if known.get(shard.name) != stats[shard.name].mark]
        if graph is None:
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
                    progress(made, total)
        if not_kept is None:
            try:
                write_bytes(path, graph.save())
                write_about(folder, About(key=key, shards=stats, files={_GRAPH: described(path)}))
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
    directions = scorer.directions(prepared) if isinstance(scorer, FrameReader) else None
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
            "--approximate and --recall need the usearch package: pip install 'calmctl[index]'; "
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
