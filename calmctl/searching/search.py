"""Searching a collection with sentences, or with a clip."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random

import numpy as np
import torch
from torch import Tensor

from calmctl.counting import counted
from calmctl.data.samples import Clip
from calmctl.errors import BadInput
from calmctl.evaluation.encoding import encode_captions
from calmctl.explaining.distributions import compare, worth_saying
from calmctl.explaining.explainer import Explainer
from calmctl.model.heads.base import FusionHead
from calmctl.model.heads.meanp import MeanPoolHead
from calmctl.searching.answers import Answer, Found, Hit, Shared
from calmctl.searching.approximate import CANDIDATES, Graph, open_graph, search_two_stage
from calmctl.searching.collection import Collection
from calmctl.searching.exact import Best, Judge, search_exact
from calmctl.searching.index import SearchIndex, open_index
from calmctl.searching.recall import Recall, measure_recall
from calmctl.searching.scorers import Scorer, choose_scorer
from calmctl.searching.seeker import Seeker
from calmctl.searching.times import times_of

Progress = Callable[[str, int, int], None]
_SHARED = 3


class Search:
    """A seeker over a collection; tables are made when they are first needed."""

    def __init__(self, seeker: Seeker, collection: Collection, progress: Progress | None = None) -> None:
        self.seeker, self.collection = seeker, collection
        self._progress = progress
        self._scorer, self._judge, self._index = self._open(seeker.model.head)
        self._graph: Graph | None = None

    def __len__(self) -> int:
        return len(self._index.frames)

    @property
    def _size(self) -> str:
        return counted(len(self), self.collection.unit)

    def sentences(
        self, queries: Sequence[str], top: int, *, approximate: bool = False, candidates: int = CANDIDATES
    ) -> Found:
        """The `top` best clips of every sentence.

        Args:
            queries: Sentences.
            top: Clips a sentence; all of them where there are fewer.
            approximate: Look only at what the first stage proposes.
            candidates: How many that are.

        Raises:
            BadInput: `approximate` without usearch.
        """
        texts = self._texts(queries)
        if approximate:
            best = self._two_stage(texts, top, candidates)
            some = min(max(top, candidates), len(self))
            method = f"two-stage: the {some:,} of {self._size} nearest by mean pooling (usearch), then the head"
        else:
            best = self._exact(texts, top)
            method = f"exact: the head's score of all {self._size}"
        return self._found(queries, best, method, texts)

    def similar(self, clip: Clip, top: int) -> Found:
        """The `top` clips that look most like a video: heads compare sentences with videos, so mean pooling does it.

        The same file in the collection is no answer. Raises `VideoError` where the clip cannot be decoded.
        """
        head = MeanPoolHead()
        scorer, judge, index = self._open(head)
        frames = self.seeker.adapted(self.seeker.video(clip, index.frames.n_frames))
        query = head.video_table(frames)["video"].cpu()
        own = {key for key, each in self.collection.clips.items() if _same(each.path, clip.path)}
        (best,) = search_exact(index, scorer, judge, query, top + len(own), progress=self._telling("scoring clips"))
        kept = [(p, s) for p, s in zip(best.positions, best.scores, strict=True) if index.frames.ids[p] not in own]
        chosen = Best(tuple(p for p, _ in kept[:top]), tuple(s for _, s in kept[:top]))
        return self._found(
            [str(clip.path)],
            [chosen],
            f"exact: cosines of mean-pooled frames, {self._size}",
            None,
        )

    def recall(self, queries: Sequence[str], *, candidates: int = CANDIDATES, at: int = 10) -> Recall:
        """How much of the exact answers the first stage keeps. Raises `BadInput` without usearch."""
        texts = self._texts(queries)
        sentences = self.seeker.model.sentences(texts)
        return measure_recall(self._exact(texts, at), self.graph, sentences, candidates=candidates, at=at)

    def sampled_captions(self, count: int = 100) -> list[str]:
        """Some of the captions that came with the clips, the same ones each time, to measure with.

        Raises:
            BadInput: The clips have none.
        """
        store = self.collection.store
        captions = sorted({caption for split in store.splits for caption in store.split(split).captions})
        if not captions:
            raise BadInput("--recall needs sentences: the clips have no captions; give some with --queries FILE")
        return Random(0).sample(captions, min(count, len(captions)))

    @property
    def graph(self) -> Graph:
        """The first stage, made when it is first needed."""
        if self._graph is None:
            store, shards, adapter = self.collection.store, self.collection.shards, self.seeker.model.adapter
            self._graph = open_graph(store, shards, self._index, adapter, self._telling("building the graph"))
        return self._graph

    def _open(self, head: FusionHead) -> tuple[Scorer, Judge, SearchIndex]:
        model, store = self.seeker.model, self.collection.store
        shape = (store.header.n_frames, store.dim)
        scorer = choose_scorer(head, model.adapter, self.seeker.device, shape)
        index = open_index(store, self.collection.shards, scorer, self._telling("indexing clips"))
        return scorer, Judge(head, model.adapter), index

    def _texts(self, queries: Sequence[str]) -> Tensor:
        return encode_captions(self.seeker.model, tuple(queries), self.seeker.device)

    def _exact(self, texts: Tensor, top: int) -> list[Best]:
        return search_exact(self._index, self._scorer, self._judge, texts, top, progress=self._telling("scoring clips"))

    def _two_stage(self, texts: Tensor, top: int, candidates: int) -> list[Best]:
        sentences = self.seeker.model.sentences(texts)
        return search_two_stage(
            self._index, self._scorer, self._judge, self.graph, texts, sentences, top, candidates=candidates
        )

    def _telling(self, what: str) -> Callable[[int, int], None] | None:
        tell = self._progress
        return None if tell is None else lambda done, total: tell(what, done, total)

    def _found(self, queries: Sequence[str], best: Sequence[Best], method: str, texts: Tensor | None) -> Found:
        frames, collection = self._index.frames, self.collection
        times = times_of(collection, frames, sorted({p for each in best for p in each.positions}))
        answers = []
        for number, (query, each) in enumerate(zip(queries, best, strict=True)):
            shared = self._shared(None if texts is None else texts[number], each.positions)
            hits = []
            for rank, (position, score) in enumerate(zip(each.positions, each.scores, strict=True)):
                key = frames.ids[position]
                clip, (start_s, end_s, begins_s) = collection.clips.get(key), times[position]
                path = clip.path if clip else None
                anchors = shared[rank] if shared else None
                hits.append(Hit(rank + 1, score, key, path, start_s, end_s, anchors, begins_s))
            answers.append(Answer(query, tuple(hits)))
        size, unit = len(frames), collection.unit
        return Found(self.seeker.name, collection.name, size, unit, method, tuple(answers), collection.left_out)

    @torch.inference_mode()
    def _shared(self, text: Tensor | None, positions: Sequence[int]) -> list[tuple[Shared, ...]] | None:
        explainer = self.seeker.explainer
        if explainer is None or text is None or not positions:
            return None
        frames = self.seeker.adapted(self._index.frames.rows(np.array(positions))).cpu()
        return [shared_anchors(explainer, text, each) for each in frames]


def shared_anchors(explainer: Explainer, text: Tensor, frames: Tensor) -> tuple[Shared, ...]:
    """The anchors that a text and frame features [F, D], both behind any adapter, have most in common."""
    shared = compare(explainer.log_v(frames), explainer.log_s(text)).shared
    labels = explainer.vocabulary.texts
    return tuple(Shared(labels[k], float(shared[k])) for k in worth_saying(shared, _SHARED))


def _same(one: Path, other: Path) -> bool:
    try:
        return one.samefile(other)
    except OSError:
        return False
