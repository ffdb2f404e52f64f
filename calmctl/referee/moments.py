"""Moment retrieval: where in its own video a sentence is answered, held against timed sentences.

R@k at an IoU: one of the first k spans overlaps a true one by so much. mIoU: the overlap of the first. mAP as
QVHighlights has it: over IoUs 0.5, 0.55 ... 0.95, of the first ten, each true span found once, precision interpolated.
Of several true spans any will do, but in DiDeMo's own metrics, which take the mean over the best three annotators
(Hendricks et al. 2017).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calmctl.data.annotations import clip_name, expect, field, read_json_file, read_rows, shown, span_of
from calmctl.data.benchmark import Annotated, split_digest
from calmctl.data.registry import BENCHMARKS
from calmctl.errors import BadInput, DatasetError
from calmctl.evaluation.card import Card
from calmctl.evaluation.statistics import Interval, PairedDifference, mean_interval, paired_mean
from calmctl.samples import Span
from calmctl.words import counted

IOUS = (0.5, 0.7)
DEPTHS = (1, 5)
AP_IOUS = tuple(round(0.5 + 0.05 * step, 2) for step in range(10))
AP_DEPTH = 10
"""Spans of a query that mAP looks at, as QVHighlights' own code does."""
_AGREED = 3  # DiDeMo: the annotators of a sentence that agree best
Doubles = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class TimedQuery:
    """A sentence, its video, and the spans of it that answer.

    Attributes:
        id: Its qid, DiDeMo's annotation_id, or the number of its row from 0.
        sentence: The sentence.
        video: Name of its video.
        spans: In seconds; several where the moment is shown several times, or several annotators marked one.
    """

    id: str
    sentence: str
    video: str
    spans: tuple[Span, ...]


@dataclass(frozen=True, slots=True)
class Truth:
    """Timed sentences of a file.

    Attributes:
        name: Of the file.
        dataset: As in `Card`; None where nobody knows.
        queries: Those with at least one span.
        untimed: How many have none.
        annotators: Whether the spans of a query are several annotators' answers, as in DiDeMo.
        id_of: The video that a file's name means, where that is not the name without its suffix.
    """

    name: str
    dataset: str | None
    queries: tuple[TimedQuery, ...]
    untimed: int = 0
    annotators: bool = False
    id_of: Callable[[str], str] | None = None


def read_truth(path: Path) -> Truth:
    """Timed sentences: QVHighlights' JSONL, Charades-STA's .txt, DiDeMo's list or ActivityNet Captions' object in JSON.

    Raises:
        DatasetError: It is malformed, of another kind, or has no time.
    """
    suffix = path.suffix.lower()
    content = read_json_file(path) if suffix == ".json" else None
    first = content[0] if isinstance(content, list) and content else None
    if suffix == ".jsonl" or (isinstance(first, dict) and "relevant_windows" in first):
        truth = _qvhighlights(path)
    elif suffix == ".txt":
        truth = _of_benchmark(path, "charades-sta", "")
    elif suffix == ".json":
        listed = isinstance(content, list) and not (isinstance(first, dict) and "sentences" in first)
        truth = _of_benchmark(path, *(("didemo", "moments") if listed else ("activitynet", "moments")))
    else:
        raise DatasetError(f"{path}: timed sentences are read from .jsonl, .json and .txt files")
    if not truth.queries:
        raise DatasetError(
            f"{path}: not one of its sentences has a time; it must hold the true spans, as relevant_windows, and the "
            "answers stand in a file of their own, which is named first"
        )
    return truth


def _of_benchmark(path: Path, name: str, protocol: str) -> Truth:
    read = BENCHMARKS[name].protocols[protocol].read
    annotated = read("test", {"test_data.json": path})
    ids = _own_ids(path, len(annotated.captions)) if name == "didemo" else None
    queries = [
        TimedQuery(ids[number] if ids else str(number), sentence, video, tuple(spans))
        for number, ((video, sentence), spans) in enumerate(zip(annotated.captions, annotated.moments, strict=True))
    ]
    timed = tuple(query for query in queries if query.spans)
    return Truth(path.name, name, timed, len(queries) - len(timed), name == "didemo", BENCHMARKS[name].id_of)


def _own_ids(path: Path, count: int) -> list[str] | None:
    """DiDeMo's annotation_id of each row; None unless all have one of their own."""
    rows = read_json_file(path)
    ids = [str(row.get("annotation_id", "")) for row in rows if isinstance(row, dict)]
    return ids if len({*ids} - {""}) == len(rows) == count else None


def _qvhighlights(path: Path) -> Truth:
    queries: list[TimedQuery] = []
    for place, row in read_rows(path, ("qid", "query", "vid", "relevant_windows")):
        spans = [
            span_of(each, f"{place}.relevant_windows") for each in expect(row.get("relevant_windows", []), list, place)
        ]
        number = row.get("qid", len(queries))
        queries.append(
            TimedQuery(str(number), field(row, "query", place), field(row, "vid", place), tuple(s for s in spans if s))
        )
    if len({query.id for query in queries}) < len(queries):
        raise DatasetError(f"{path}: two queries have one qid; give each its own")
    timed = tuple(query for query in queries if query.spans)
    return Truth(path.name, None, timed, len(queries) - len(timed))


# What a system answered.


@dataclass(frozen=True, slots=True)
class Answers:
    """Spans that a system gave, the best first.

    Attributes:
        name: Of the system or its file.
        spans: By query id; a query without an entry was not answered.
        notes: What was taken for granted.
    """

    name: str
    spans: Mapping[str, tuple[Span, ...]]
    notes: tuple[str, ...] = ()


def read_answers(path: Path, truth: Truth) -> Answers:
    """Answers as QVHighlights' evaluation takes them.

    A row is {"qid": ..., "query": ..., "vid": ..., "pred_relevant_windows": [[start, end, score], ...]}. It
    is found by its qid, or where it has none by video and sentence; of a sentence that stands twice for one video the
    answers are those of both. Spans with a score are put in its order, and of equal ones the first comes first.

    Raises:
        DatasetError: It is malformed, answers one query twice, or says of a qid another video or sentence.
        BadInput: Not one row answers a query of `truth`.
    """
    by_name: dict[tuple[str, str], list[str]] = {}
    for query in truth.queries:
        by_name.setdefault((query.video, query.sentence), []).append(query.id)
    known, videos = {query.id: query for query in truth.queries}, {query.video for query in truth.queries}
    spans: dict[str, tuple[Span, ...]] = {}
    others = 0
    for place, row in read_rows(path, ("qid", "query", "vid", "pred_relevant_windows")):
        number, sentence = row.get("qid"), row.get("query")
        video = row.get("vid") if isinstance(row.get("vid"), str) else None
        if video is not None and video not in videos:  # the name of its file
            video = truth.id_of(PurePosixPath(video).name) if truth.id_of else clip_name(video)
        asked = [str(number)] if type(number) in (int, str) else by_name.get((video, sentence), [])  # type: ignore[arg-type]
        asked = [each for each in asked if each in known]
        for query in (known[each] for each in asked):
            # Numbers are easily one off, and every metric would then be a little too low without a word.
            other = isinstance(sentence, str) and _plain(sentence) != _plain(query.sentence)
            if other or video not in (None, query.video):
                raise DatasetError(
                    f"{place}: the qid {shown(query.id)} is {shown(query.sentence)} of {shown(query.video)} in "
                    f"{truth.name}, and the row is of another; rows are numbered from 0 there, unless they have a qid "
                    "or annotation_id; or leave qid out, and vid and query find it"
                )
        others += not asked
        answer = _ranked(field(row, "pred_relevant_windows", place, list), place)
        for each in asked:
            if each in spans:
                raise DatasetError(f"{place}: the query {shown(each)} is answered twice")
            spans[each] = answer
    if not spans:
        raise BadInput(f"{path}: not one row answers a query of {truth.name}; give each the qid, or the vid and query")
    notes = (f"{counted(others, 'row')} of no timed query not scored",) if others else ()
    return Answers(path.name, spans, notes)


def _plain(sentence: str) -> str:
    return " ".join(sentence.split()).casefold()


def _ranked(rows: list[Any], place: str) -> tuple[Span, ...]:
    scored: list[tuple[float, Span]] = []
    for row in rows:
        numbers = [each for each in expect(row, list, place) if type(each) in (int, float) and math.isfinite(each)]
        if len(numbers) != len(row) or len(row) not in (2, 3) or numbers[1] < numbers[0]:
            raise DatasetError(f"{place}: expected [start, end] or [start, end, score], found {shown(str(row))}")
        scored.append((numbers[2] if len(numbers) == 3 else 0.0, (float(numbers[0]), float(numbers[1]))))
    return tuple(span for _, span in sorted(scored, key=lambda each: -each[0]))


# The metrics.


def overlaps(predicted: Sequence[Span], true: Sequence[Span]) -> Doubles:
    """Intersection over union of every predicted and every true span, [P, G]; 0 of two empty ones."""
    starts, ends = (np.array([each[side] for each in predicted], dtype=np.float64)[:, None] for side in (0, 1))
    true_starts, true_ends = (np.array([each[side] for each in true], dtype=np.float64)[None] for side in (0, 1))
    shared = np.clip(np.minimum(ends, true_ends) - np.maximum(starts, true_starts), 0.0, None)
    union = (ends - starts) + (true_ends - true_starts) - shared
    return np.asarray(np.divide(shared, union, out=np.zeros_like(shared), where=union > 0))


def average_precision(ious: Doubles, threshold: float) -> float:
    """One query's average precision, from its overlaps [P, G], predicted spans in their order.

    Each true span counts once, for the first predicted one that has it as the one it overlaps most of those left.
    Precision is the best at that recall or beyond.
    """
    free = np.ones(ious.shape[1], dtype=bool)
    hits = []
    for row in ious:
        open_ = np.where(free & (row >= threshold), row, -1.0)
        best = int(open_.argmax()) if len(open_) else 0
        hits.append(bool(len(open_)) and open_[best] >= 0)
        if hits[-1]:
            free[best] = False
    right = np.cumsum(hits)
    precision = right / np.arange(1, len(hits) + 1) if hits else np.empty(0)
    precisions = [float(precision[place:].max()) for place, hit in enumerate(hits) if hit]
    return sum(precisions) / int(ious.shape[1])


@dataclass(frozen=True, slots=True, kw_only=True)
class MomentResult:
    """Moments of one system on one file of timed sentences, in percent.

    Attributes:
        truth: What they were held against.
        system: What was scored.
        values: Each query's share of every metric, [N], in the order of the truth.
        answered: How many queries had any span.
        notes: What must be said.
    """

    truth: Truth
    system: str
    values: Mapping[str, Doubles]
    answered: int
    notes: tuple[str, ...] = ()

    @property
    def videos(self) -> NDArray[np.int64]:
        """A number for the video of each query, by which queries are resampled together."""
        return np.unique([query.video for query in self.truth.queries], return_inverse=True)[1].astype(np.int64)

    def means(self) -> dict[str, float]:
        """Every metric over all queries; one that was not answered counts as missed."""
        return {name: float(each.mean()) for name, each in self.values.items()}

    def intervals(self) -> dict[str, Interval | None]:
        """95 % intervals over videos."""
        return {name: mean_interval(each, self.videos) for name, each in self.values.items()}

    @property
    def card(self) -> Card:
        """How these numbers were made; candidates are the spans of a query's own video."""
        queries = self.truth.queries
        pairs = [(query.video, query.sentence) for query in queries]
        return Card(
            dataset=self.truth.dataset,
            protocol=None if self.truth.dataset is None else "moments",
            list_digest=split_digest(Annotated([video for video, _ in pairs], pairs)),
            queries=len(queries),
            left_out=self.truth.untimed,
            scorer="IoU with any true span, within the query's own video",
        )

    def minus(self, other: MomentResult) -> dict[str, PairedDifference]:
        """`self` minus `other` by metric, paired over videos. Raises `BadInput` where they have other queries."""
        if [query.id for query in self.truth.queries] != [query.id for query in other.truth.queries]:
            raise BadInput("the two have other queries; score both against the same file")
        return {name: paired_mean(name, other.values[name], each, self.videos) for name, each in self.values.items()}

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        intervals = self.intervals()
        return {
            "truth": self.truth.name,
            "system": self.system,
            "queries": len(self.truth.queries),
            "answered": self.answered,
            "metrics": {
                name: {"value": value, "interval": None if (i := intervals[name]) is None else [i.low, i.high]}
                for name, value in self.means().items()
            },
            "notes": list(self.notes),
            "card": self.card.to_json(),
        }


def score_moments(answers: Answers, truth: Truth) -> MomentResult:
    """Hold spans against the true ones; a query without an answer is missed, and counted."""
    names = [f"R@{k} IoU {iou:g}" for iou in IOUS for k in DEPTHS]
    names += ["mIoU", "mAP", *(f"mAP@{iou:g}" for iou in (0.5, 0.75))]
    names += ["DiDeMo R@1", "DiDeMo R@5", "DiDeMo mIoU"] if truth.annotators else []
    rows = []
    for query in truth.queries:
        predicted = answers.spans.get(query.id, ())
        ious = overlaps(predicted, query.spans)
        best = ious.max(1) if len(predicted) else np.empty(0)
        row = [float(any(best[:k] >= iou)) for iou in IOUS for k in DEPTHS]
        row.append(float(best[0]) if len(best) else 0.0)
        by_iou = {iou: average_precision(ious[:AP_DEPTH], iou) for iou in AP_IOUS}
        row += [sum(by_iou.values()) / len(by_iou), by_iou[0.5], by_iou[0.75]]
        if truth.annotators:
            row += _didemo(predicted, query.spans, ious)
        rows.append(row)
    values = 100.0 * np.array(rows, dtype=np.float64)
    lost = len(truth.queries) - sum(bool(answers.spans.get(query.id)) for query in truth.queries)
    notes = [*answers.notes]
    if lost:
        notes.append(f"{counted(lost, 'query')} without an answer: missed in every metric")
    if truth.untimed:
        notes.append(f"{counted(truth.untimed, 'sentence')} of {truth.name} without a time not asked")
    return MomentResult(
        truth=truth,
        system=answers.name,
        values={name: values[:, column] for column, name in enumerate(names)},
        answered=len(truth.queries) - lost,
        notes=tuple(notes),
    )


def _didemo(predicted: Sequence[Span], spans: Sequence[Span], ious: Doubles) -> list[float]:
    """Rank of exactly the annotators' spans, and overlap of the first: means over the three annotators best for it."""
    places = sorted(predicted.index(each) + 1 if each in predicted else math.inf for each in spans)[:_AGREED]
    rank = sum(places) / len(places)
    first = np.sort(ious[0])[-_AGREED:].mean() if len(predicted) else 0.0
    return [float(rank <= 1), float(rank <= 5), float(first)]


# Which video of a collection a query means.


def own_videos(truth: Truth, names: Iterable[str]) -> dict[str, str]:
    """The video of a collection, of those in `names` (paths, with or without a suffix), that each query's is."""
    by_id: dict[str, str] = {}
    for name in names:
        base = PurePosixPath(name).name
        for key in {truth.id_of(base)} if truth.id_of else {base, PurePosixPath(name).stem}:
            by_id.setdefault(key, name)
    return {query.video: by_id[query.video] for query in truth.queries if query.video in by_id}
