"""Searching a collection with sentences, with its clips, or with a clip from elsewhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from random import Random

import numpy as np
import torch
from torch import Tensor

from calmctl.errors import BadInput
from calmctl.explain.anchors import compare, worth_saying
from calmctl.explain.explainer import Explainer
from calmctl.model.heads.base import FusionHead, Reranker
from calmctl.model.heads.meanp import MeanPoolHead
from calmctl.samples import Clip
from calmctl.search.collection import WAITING, Collection, Times, Wanted, times_of, wanted_positions
from calmctl.search.confidence import (
    Confidence,
    NullBank,
    NullScorer,
    NullSentences,
    Rule,
    anchor_phrases,
    captions_of,
)
from calmctl.search.exact import (
    CANDIDATES,
    Best,
    Graph,
    Judge,
    Recall,
    all_scores,
    measure_recall,
    open_graph,
    rerank,
    score_rows,
    scoring_head,
    search_exact,
    search_two_stage,
    select,
)
from calmctl.search.model import BARE_FRAMES, SearchModel
from calmctl.search.results import Answer, Found, Hit, Ranked, Shared, Term
from calmctl.search.scorers import Scorer, SearchIndex, choose_scorer, open_index
from calmctl.source.encoding import encode_captions
from calmctl.words import Progress, counted

_SHARED = 3


class Search:
    """A search model over a collection; tables are made when they are first needed.

    Attributes:
        not_kept: Why tables could not be kept for the next search, or None.
    """

    def __init__(self, seeker: SearchModel, collection: Collection, progress: Progress | None = None) -> None:
        self.seeker, self.collection = seeker, collection
        self._progress = progress
        self.not_kept: str | None = None
        self._scorer, self._judge, self._index = self._open(seeker.model.head)
        self._graph: Graph | None = None
        self._means: tuple[Scorer, Judge, SearchIndex] | None = None
        self._bank: NullBank | None = None
        self._times: dict[int, Times] = {}

    def __len__(self) -> int:
        return len(self._index.frames)

    @property
    def _size(self) -> str:
        return counted(len(self), self.collection.unit)

    def only(self, wanted: Wanted) -> np.ndarray:
        """The positions of wanted clips, for `among`. Raises `BadInput` where there is none."""
        return wanted_positions(self.collection, self._index.frames, wanted, self._progress)

    def measure_all(self) -> None:
        """Know the length of every clip, so that no answer waits for a decoder; remembered beside the features."""
        self._times = times_of(self.collection, self._index.frames, range(len(self)), self._progress)

    def end_progress(self) -> None:
        """Tell nobody of the work any more: the bar of the start is gone when later questions come."""
        self._progress = None

    @property
    def ids(self) -> tuple[str, ...]:
        """The clips that are searched, by position."""
        return self._index.frames.ids

    def sentences(
        self,
        queries: Sequence[str],
        top: int,
        *,
        approximate: bool = False,
        candidates: int = CANDIDATES,
        rule: Rule | None = None,
        among: np.ndarray | None = None,
    ) -> Found:
        """The `top` best clips of every sentence.

        Args:
            queries: Sentences.
            top: Clips a sentence; all of them where there are fewer.
            approximate: Look only at what the first stage proposes.
            candidates: How many that are.
            rule: When a hit is said to match; None where that is not asked.
            among: Positions of the clips that may be found, ascending; None for all. An exact search alone knows it.

        Raises:
            BadInput: `approximate` without usearch, or too few null sentences for the rule.
        """
        texts, head = self._texts(queries), self.seeker.model.head
        asked = self._asked(max(top, head.candidates) if isinstance(head, Reranker) else top)
        if approximate:
            best = self._two_stage(texts, asked, candidates)
            some = min(max(asked, candidates), len(self))
            method = f"two-stage: the {some:,} of {self._size} nearest by mean pooling (usearch), then the head"
        else:
            best = self._exact(texts, asked, among)
            searched = self._size if among is None else f"the {len(among):,} of {self._size} that were asked for"
            method = f"exact: the head's score of all {searched}"
        if not isinstance(head, Reranker):
            return self._found(queries, best, top, method, texts, rule=rule)
        before = [dict(zip(each.positions, each.scores, strict=True)) for each in best]
        pairs = zip(texts, best, strict=True)
        best = [rerank(self._index, self._judge, text, each, head.candidates) for text, each in pairs]
        method += f"; its best {min(head.candidates, len(self))} re-ranked (list-wise)"
        return self._found(queries, best, top, method, texts, before, rule)

    def within(self, queries: Sequence[tuple[str, str]], top: int) -> list[list[tuple[float, float, float]]]:
        """The best windows of one video each: start and end by its own clock, in seconds, and score, the best first.

        Windows that overlap or adjoin a better one are the same moment, as in every search of windows.

        Args:
            queries: Sentences, each with the file, by its id, that it is asked of.
            top: Windows a query.

        Raises:
            BadInput: Whole clips are searched, which have no moments.
        """
        if self.collection.unit == "clip":
            raise BadInput(
                f"{self.collection.name} has whole clips, and moments are windows: name a folder of videos with "
                "--window, or the store that a search with --window has kept of one (below features/search)"
            )
        of_video = self._by_file
        head, found = self.seeker.model.head, []
        texts = self._texts([sentence for sentence, _ in queries])
        for number, (text, (_, video)) in enumerate(zip(texts, queries, strict=True)):
            positions = np.array(of_video.get(video, ()), dtype=np.int64)
            best = Best((), ())
            if len(positions):
                scores = score_rows(self._index, self._scorer, text, positions)
                best = select(self._index, self._judge, text, scores, positions, len(positions))
                if isinstance(head, Reranker):
                    best = rerank(self._index, self._judge, text, best, head.candidates)
            kept, _ = self._moments(best, top)
            windows = [self.collection.windows[self._index.frames.ids[position]] for position in kept.positions]
            found.append(
                [
                    ((each.begins_s or 0.0) + each.start_s, (each.begins_s or 0.0) + (each.end_s or 0.0), score)
                    for each, score in zip(windows, kept.scores, strict=True)
                ]
            )
            if self._progress is not None:
                self._progress("asking videos", number + 1, len(queries))
        return found

    def similar(self, clip: Clip, top: int) -> Found:
        """The `top` clips that look most like a video: heads compare sentences with videos, so mean pooling does it.

        The same file in the collection is no answer. Raises `VideoError` where the clip cannot be decoded.
        """
        frames = self.seeker.adapted(self.seeker.video(clip, self._index.frames.n_frames))
        # By file, not by id: the clip came by a path.
        own = {key for key, each in self.collection.clips.items() if _same(each.path, clip.path)}
        return self._alike(str(clip.path), frames, {n for n, key in enumerate(self.ids) if key in own}, top, None)

    def like(self, position: int, top: int, among: np.ndarray | None = None) -> Found:
        """The same for a clip of the collection, which is not decoded again."""
        frames = self.seeker.adapted(self._index.frames.rows(np.array([position])))
        return self._alike(self.ids[position], frames, self._same_moment(position), top, among)

    def combined(self, terms: Sequence[Term], top: int, among: np.ndarray | None = None) -> Found:
        """The `top` best clips by a weighted sum: "like this clip, but at night, and no people".

        A head's scores of sentences and the cosines of clips have scales of their own, so each term is first brought
        to mean 0 and deviation 1 over the collection (our choice).

        Args:
            terms: What is asked for; a clip of a term, and a window beside it, is no answer.
            top: Clips.
            among: As in `sentences`.
        """
        total = np.zeros(len(self), np.float64)
        for term in terms:
            if term.text is not None:
                scores = all_scores(self._index, self._scorer, self._texts([term.text]), None, lambda _: None)[0]
            else:
                assert term.position is not None
                scorer, _, index = self._mean_pooled()
                frames = self.seeker.adapted(self._index.frames.rows(np.array([term.position])))
                scores = all_scores(index, scorer, _pooled(frames), None, lambda _: None)[0]
            deviation = float(scores.std(dtype=np.float64))
            if deviation > 0:
                total += term.weight * (scores.astype(np.float64) - scores.mean(dtype=np.float64)) / deviation
        allowed = np.setdiff1d(
            np.arange(len(self)) if among is None else among,
            sorted(n for term in terms if term.position is not None for n in self._same_moment(term.position)),
        ).astype(np.int64)
        order = allowed[np.lexsort((allowed, -total[allowed].round(12)))][: self._asked(top)]
        best = Best(tuple(order.tolist()), tuple(total[order].tolist()))
        named = (self.ids[term.position] if term.position is not None else str(term.text) for term in terms)
        query = " ".join(f"{term.weight:+g} ({name})" for term, name in zip(terms, named, strict=True))
        return self._found([query], [best], top, "a weighted sum of scores, each with deviation 1", None)

    def line(self, position: int, text: str) -> list[tuple[int, float]]:
        """Every window of a clip's file and its score under a sentence, in the order of time."""
        own = self._file_of(position)
        texts = self._texts([text])
        scores = self._judge.scores(texts, self._index.frames.rows(np.array(own)))[0]
        return list(zip(own, scores.tolist(), strict=True))

    def when(self, position: int) -> Times:
        """Start and end of a clip by its file's clock, and when its first frame is shown."""
        if position not in self._times:
            self._times |= times_of(self.collection, self._index.frames, [position])
        return self._times[position]

    def shared(self, position: int, text: str) -> tuple[Shared, ...] | None:
        """The anchors that a clip of the collection and a sentence share most; None without anchors."""
        why = self._shared(self._texts([text])[0], [position])
        return None if why is None else why[0]

    def open_bank(self, sentences: NullSentences | None = None) -> NullBank:
        """Make ready to say that nothing matches; computed once a collection, and brought up to date like tables.

        Args:
            sentences: The null sentences; None for captions of the collection, or else phrases of the model's anchors.

        Raises:
            BadInput: There are neither.
        """
        if self._bank is None or sentences is not None:
            store = self.collection.store
            chosen = sentences or captions_of(store) or anchor_phrases(self.seeker.labels)
            if not chosen.texts:
                raise BadInput(
                    "neither captions nor anchors to compare with are at hand; give sentences with --calibrate FILE"
                )
            scorer = NullScorer(self._scorer, chosen, self._texts(chosen.texts), store.header.backbone)
            index = open_index(store, self.collection.shards, scorer, self._progress, self._waiting)
            self.not_kept = self.not_kept or index.not_kept
            self._bank = NullBank(chosen, index.columns["null"], index.frames.ids)
        return self._bank

    def _same_moment(self, position: int) -> set[int]:
        """A clip and the windows that overlap or adjoin it."""
        if self.collection.unit != "window" or self.ids[position] not in self.collection.windows:
            return {position}
        windows, ids = self.collection.windows, self.ids
        return {n for n in self._file_of(position) if _neighbours(windows[ids[n]], windows[ids[position]])}

    @cached_property
    def _by_file(self) -> dict[str, list[int]]:
        """The positions of every file's windows in the order of time, listed once: there may be 100,000."""
        windows, found = self.collection.windows, dict[str, list[int]]()
        for position, key in enumerate(self.ids):
            if key in windows:
                found.setdefault(key.rpartition("#t=")[0], []).append(position)
        for own in found.values():
            own.sort(key=lambda n: windows[self.ids[n]].start_s)
        return found

    def _file_of(self, position: int) -> list[int]:
        """The positions of all windows of a window's file; of a whole clip, itself."""
        key = self.ids[position]
        return self._by_file[key.rpartition("#t=")[0]] if key in self.collection.windows else [position]

    def _alike(self, name: str, frames: Tensor, own: set[int], top: int, among: np.ndarray | None) -> Found:
        scorer, judge, index = self._mean_pooled()
        # So many more, because so many are taken out below.
        asked = self._asked(top) + len(own)
        (best,) = search_exact(index, scorer, judge, _pooled(frames), asked, progress=self._progress, among=among)
        kept = [(p, s) for p, s in zip(best.positions, best.scores, strict=True) if p not in own]
        chosen = Best(tuple(p for p, _ in kept), tuple(s for _, s in kept))
        return self._found([name], [chosen], top, f"exact: cosines of mean-pooled frames, {self._size}", None)

    def _mean_pooled(self) -> tuple[Scorer, Judge, SearchIndex]:
        if self._means is None:
            self._means = self._open(MeanPoolHead())
        return self._means

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
            raise BadInput("search recall needs sentences: the clips have no captions; give some with --queries FILE")
        return Random(0).sample(captions, min(count, len(captions)))

    @property
    def graph(self) -> Graph:
        """The first stage, made when it is first needed."""
        if self._graph is None:
            store, shards, adapter = self.collection.store, self.collection.shards, self.seeker.model.adapter
            self._graph = open_graph(store, shards, self._index, adapter, self._progress, self._waiting)
            self.not_kept = self.not_kept or self._graph.not_kept
        return self._graph

    def _open(self, head: FusionHead) -> tuple[Scorer, Judge, SearchIndex]:
        model, store = self.seeker.model, self.collection.store
        shape = (store.header.n_frames, store.dim)
        scorer = choose_scorer(scoring_head(head), model.adapter, self.seeker.device, shape)
        index = open_index(store, self.collection.shards, scorer, self._progress, self._waiting)
        self.not_kept = self.not_kept or index.not_kept
        return scorer, Judge(head, model.adapter), index

    def _texts(self, queries: Sequence[str]) -> Tensor:
        return encode_captions(self.seeker.model, queries)

    def _exact(self, texts: Tensor, top: int, among: np.ndarray | None = None) -> list[Best]:
        progress = self._progress
        return search_exact(self._index, self._scorer, self._judge, texts, top, progress=progress, among=among)

    def _two_stage(self, texts: Tensor, top: int, candidates: int) -> list[Best]:
        sentences = self.seeker.model.sentences(texts)
        return search_two_stage(
            self._index, self._scorer, self._judge, self.graph, texts, sentences, top, candidates=candidates
        )

    def _waiting(self) -> None:
        if self._progress is not None:
            self._progress(WAITING, 0, 1)

    def _asked(self, top: int) -> int:
        """How many clips hold the `top` best moments: each may have all its neighbours before the next one."""
        if self.collection.unit != "window":
            return top
        return min(len(self), top * (1 + self._most_neighbours))

    @cached_property
    def _most_neighbours(self) -> int:
        """The largest number of windows that one of them can have as neighbours, on both its sides together."""
        most = 0
        for own in self._by_file.values():
            windows = [self.collection.windows[self.ids[n]] for n in own]
            starts = np.array([window.start_s for window in windows])
            ends = np.sort(np.array([window.end_s or np.inf for window in windows]))
            behind = np.searchsorted(starts, ends + 1e-6, side="right") - np.arange(1, len(starts) + 1)
            most = max(most, 2 * int(behind.max()))
        return most

    def _moments(self, best: Best, top: int) -> tuple[Best, list[int]]:
        """The `top` best of which none is a neighbour of a better one, and how many neighbours each had."""
        if self.collection.unit != "window":
            return Best(best.positions[:top], best.scores[:top]), [0] * min(top, len(best.positions))
        kept: list[tuple[int, float, Clip]] = []
        beside: list[int] = []
        for position, score in zip(best.positions, best.scores, strict=True):
            clip = self.collection.windows[self._index.frames.ids[position]]
            near = next((n for n, (_, _, better) in enumerate(kept) if _neighbours(clip, better)), None)
            if near is not None:
                beside[near] += 1
            elif len(kept) < top:
                kept.append((position, score, clip))
                beside.append(0)
        return Best(tuple(position for position, _, _ in kept), tuple(score for _, score, _ in kept)), beside

    def _found(
        self,
        queries: Sequence[str],
        scored: Sequence[Best],
        top: int,
        method: str,
        texts: Tensor | None,
        before: Sequence[Mapping[int, float]] | None = None,
        rule: Rule | None = None,
    ) -> Found:
        """Every query's best moments; `before` has the scores before re-ranking, by position."""
        bank = None if rule is None else self.open_bank()
        if bank is not None and rule is not None:
            bank.require(rule)
        frames, collection = self._index.frames, self.collection
        moments = [self._moments(each, top) for each in scored]
        best = [each for each, _ in moments]
        # Of what is shown alone: some files have to be measured, each in a process of its own.
        shown = sorted({p for each in best for p in each.positions} - self._times.keys())
        self._times |= times_of(collection, frames, shown)
        answers = []
        for number, (query, each) in enumerate(zip(queries, best, strict=True)):
            shared = self._shared(None if texts is None else texts[number], each.positions)
            hits = []
            first_stage = [s if before is None else before[number][p] for p, s in zip(*_of(each), strict=True)]
            sampled = None
            if bank is not None and texts is not None and len(bank.sample):
                sampled = score_rows(self._index, self._scorer, texts[number], bank.sample)
            judged = _judged(bank, rule, each.positions, first_stage, sampled)
            beside = moments[number][1]
            for rank, (position, score) in enumerate(zip(each.positions, each.scores, strict=True)):
                key = frames.ids[position]
                clip, (start_s, end_s, begins_s) = collection.clips.get(key), self._times[position]
                path = clip.path if clip else None
                why = shared[rank] if shared else None
                first = None if before is None else before[number][position]
                sure = judged[rank] if judged else None
                hits.append(
                    Hit(rank + 1, score, key, path, start_s, end_s, why, beside[rank], begins_s, first, sure, position)
                )
            answers.append(Answer(query, tuple(hits)))
        size, unit = len(frames), collection.unit
        says = None if bank is None else f"{rule}; measured with {bank.sentences.says}"
        return Found(self.seeker.name, collection.name, size, unit, method, tuple(answers), collection.left_out, says)

    @torch.inference_mode()
    def _shared(self, text: Tensor | None, positions: Sequence[int]) -> list[tuple[Shared, ...]] | None:
        explainer = self.seeker.explainer
        if explainer is None or text is None or not positions:
            return None
        frames = self.seeker.adapted(self._index.frames.rows(np.array(positions))).cpu()
        return [shared_anchors(explainer, text, each) for each in frames]


def _pooled(frames: Tensor) -> Tensor:
    """The mean-pooled unit vectors [n, D] of frames [n, F, D]."""
    return MeanPoolHead().video_table(frames)["video"].cpu()


def _of(best: Best) -> tuple[tuple[int, ...], tuple[float, ...]]:
    return best.positions, best.scores


def _judged(
    bank: NullBank | None,
    rule: Rule | None,
    positions: Sequence[int],
    scores: Sequence[float],
    sampled: np.ndarray | None,
) -> list[Confidence] | None:
    """The confidence of hits in their order, from scores of one scale for all queries: those before re-ranking."""
    if bank is None or rule is None:
        return None
    order = sorted(range(len(scores)), key=lambda n: -scores[n])
    judged = bank.judge(rule, [positions[n] for n in order], [scores[n] for n in order], sampled)
    placed = dict(zip(order, judged, strict=True))
    return [placed[n] for n in range(len(scores))]


def shared_anchors(explainer: Explainer, text: Tensor, frames: Tensor) -> tuple[Shared, ...]:
    """The anchors that a text and frame features [F, D], both behind any adapter, have most in common."""
    shared = compare(explainer.log_v(frames), explainer.log_s(text)).shared
    labels = explainer.vocabulary.texts
    return tuple(Shared(labels[k], float(shared[k])) for k in worth_saying(shared, _SHARED))


def _neighbours(one: Clip, other: Clip) -> bool:
    """Whether two windows of a file overlap or adjoin."""
    if one.path != other.path:
        return False
    # Windows that adjoin share one instant, up to rounding.
    begin, end = max(one.start_s or 0.0, other.start_s or 0.0), min(one.end_s or np.inf, other.end_s or np.inf)
    return bool(begin <= end + 1e-6)


def _same(one: Path, other: Path) -> bool:
    try:
        return one.samefile(other)
    except OSError:
        return False


# The other direction: which of some sentences a clip is.


def rank_sentences(seeker: SearchModel, clip: Clip, sentences: Sequence[str], top: int) -> list[Ranked]:
    """The `top` best of some sentences for a clip, by the head's own score.

    Scores of one clip under many sentences are on one scale for that clip only: a list of sentences that all miss
    has a best one too. Raises `VideoError` where the clip cannot be decoded.
    """
    frames = seeker.video(clip, seeker.n_frames or BARE_FRAMES)
    texts = encode_captions(seeker.model, sentences)
    # In float64 at once: for one clip no tables are made.
    judge = Judge(seeker.model.head, seeker.model.adapter)
    first = scores = judge.scores(texts, frames)[:, 0]
    reranks = isinstance(seeker.model.head, Reranker)
    if reranks:
        scores = judge.reranked(texts, frames, first[:, None], by_text=False)[:, 0]
    order = np.lexsort((np.arange(len(scores)), -scores.round(12)))[:top].tolist()
    features = seeker.adapted(frames)[0].cpu()
    explainer = seeker.explainer
    return [
        Ranked(
            rank,
            float(scores[number]),
            sentences[number],
            None if explainer is None else shared_anchors(explainer, texts[number], features),
            float(first[number]) if reranks else None,
        )
        for rank, number in enumerate(order, start=1)
    ]
