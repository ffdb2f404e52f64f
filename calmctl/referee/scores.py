"""The referee: any system's scores or embeddings, ranked and measured by the code that measures ours.

Scores are looked at a block of rows at a time, once; ranks are kept, never the matrix, so that 100,000 texts and as
many videos need no more memory than their embeddings and one block. The same pass gathers what `suspicions` looks at.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, Protocol, get_args

import numpy as np

from calmctl.data.annotations import shown
from calmctl.errors import BadInput, RunFailed
from calmctl.evaluation.card import list_facts
from calmctl.evaluation.metrics import DIRECTIONS, Direction, FurtherMetrics, Ranks, further_metrics, ndcg_of_captions
from calmctl.evaluation.result import Labels, RetrievalResult, retrieval_result
from calmctl.evaluation.statistics import (
    Interval,
    PairedDifference,
    mean_interval,
    paired_differences,
    paired_mean,
    recall_interval,
)
from calmctl.referee.score_files import Array, Pairs
from calmctl.referee.suspicions import (
    FEWEST_CLIPS,
    Doubles,
    Integers,
    Survey,
    Suspicion,
    compare_with_embeddings,
    look,
    look_at_norms,
    possible_alignments,
)
from calmctl.words import Progress, counted

Similarity = Literal["cosine", "dot"]
SIMILARITIES: tuple[Similarity, ...] = get_args(Similarity)
_BLOCK_ELEMENTS = 1 << 23  # scores of a block of rows: 32 MB in float32
_TILE_ELEMENTS = 1 << 22  # products of vectors at a time, in float64


class Scores(Protocol):
    """Scores of texts and videos that need not be in memory."""

    @property
    def shape(self) -> tuple[int, int]:
        """Texts and videos."""
        ...

    def block(self, rows: Integers) -> Array:
        """The scores of the texts `rows` [B], [B, N_v]."""
        ...

    def pairs(self, rows: Integers, columns: Integers) -> Array:
        """Of each text of `rows` [N] the score with the video of `columns` [N]: to the bit those of `block`."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class Matrix:
    """Scores as they stand in an array, mapped or in memory.

    Attributes:
        array: [N_t, N_v], or the other way round.
        transposed: Whether its rows are videos.
        distances: Whether a low number is a good one.
    """

    array: Array
    transposed: bool = False
    distances: bool = False

    @property
    def shape(self) -> tuple[int, int]:
        """Texts and videos."""
        n_texts, n_videos = self.array.shape
        return (n_videos, n_texts) if self.transposed else (n_texts, n_videos)

    def block(self, rows: Integers) -> Array:
        """As `Scores`."""
        in_order = len(rows) > 0 and rows[-1] - rows[0] == len(rows) - 1 and bool((np.diff(rows) == 1).all())
        which = slice(int(rows[0]), int(rows[-1]) + 1) if in_order else rows  # a slice reads no more than it needs
        return self._numbers(self.array[:, which].T if self.transposed else self.array[which])

    def pairs(self, rows: Integers, columns: Integers) -> Array:
        """As `Scores`."""
        return self._numbers(self.array[columns, rows] if self.transposed else self.array[rows, columns])

    def _numbers(self, values: Array) -> Array:
        if values.dtype.kind != "f":
            values = values.astype(np.float64)
        elif values.itemsize < 4:
            values = values.astype(np.float32)
        return -values if self.distances else np.asarray(values)


class Embeddings:
    """Scores that are computed from vectors when they are asked for.

    One vector a side [N, D], or several [N, L, D]: then the score of a pair is the mean over the text's vectors of the
    best over the video's (late interaction); vectors of zeros only fill up. Products are taken in float64 and rounded
    to float32, so that equal vectors give equal scores whatever block they fall into, which products in float32 do not.
    """

    def __init__(self, texts: Array, videos: Array, similarity: Similarity = "cosine") -> None:
        """Raises `BadInput` where the vectors of the two sides have other lengths, or one is unusable."""
        if texts.shape[-1] != videos.shape[-1]:
            raise BadInput(
                f"texts have vectors of {texts.shape[-1]} numbers and videos of {videos.shape[-1]}: they are not of "
                f"one space ({list(texts.shape)}, {list(videos.shape)})"
            )
        self._sides = texts, videos
        self.unit = similarity == "cosine"
        self.norms = {side: _norms(each, side, unit=self.unit) for side, each in (("text", texts), ("video", videos))}
        self._late = texts.ndim == 3 or videos.ndim == 3

    @property
    def shape(self) -> tuple[int, int]:
        """Texts and videos."""
        return len(self._sides[0]), len(self._sides[1])

    def block(self, rows: Integers) -> Array:
        """As `Scores`."""
        scores = np.empty((len(rows), self.shape[1]), np.float32)
        several = self._sides[1].shape[1] if self._sides[1].ndim == 3 else 1
        chunk = max(1, _TILE_ELEMENTS // self._sides[0][0].size)
        for first in range(0, len(rows), chunk):
            texts = self._vectors(0, rows[first : first + chunk])
            width = max(1, _TILE_ELEMENTS // (several * max(texts[..., 0].size, texts.shape[-1])))
            for start in range(0, self.shape[1], width):
                columns = np.arange(start, min(start + width, self.shape[1]))
                scores[first : first + chunk, columns] = self._scores(texts, self._vectors(1, columns))
        return scores

    def pairs(self, rows: Integers, columns: Integers) -> Array:
        """As `Scores`, but for rounding in one of a hundred million."""
        scores = np.empty(len(rows), np.float32)
        for start in range(0, len(rows), 1024):
            some = slice(start, start + 1024)
            texts, videos = self._vectors(0, rows[some]), self._vectors(1, columns[some])
            if self._late:
                scores[some] = [self._scores(t[None], v[None])[0, 0] for t, v in zip(texts, videos, strict=True)]
            else:
                scores[some] = np.einsum("nd,nd->n", texts, videos)
        return scores

    def _vectors(self, side: int, which: Integers) -> Doubles:
        vectors = self._sides[side][which].astype(np.float64)
        if self.unit and vectors.ndim == 2:
            vectors /= self.norms["video" if side else "text"][which, None]
        elif self.unit:
            lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
            vectors /= np.where(lengths > 0, lengths, 1.0)  # what only fills up stays zero
        return vectors

    def _scores(self, texts: Doubles, videos: Doubles) -> Doubles:
        if not self._late:
            return np.asarray(texts @ videos.T)
        texts, videos = (each if each.ndim == 3 else each[:, None] for each in (texts, videos))
        products = np.einsum("tld,vfd->tvlf", texts, videos, optimize=True)
        best = np.where(np.asarray(videos.any(-1))[None, :, None], products, -np.inf).max(-1)  # [t, v, l]
        there = np.asarray(texts.any(-1))[:, None]
        return np.asarray(np.where(there, best, 0.0).sum(-1) / there.sum(-1))


def _norms(vectors: Array, side: str, *, unit: bool) -> Doubles:
    """The length of each text's or video's vector, of several their mean."""
    norms = np.empty(len(vectors))
    for start in range(0, len(vectors), 4096):
        some = np.asarray(vectors[start : start + 4096], dtype=np.float64)
        lengths = np.asarray(np.linalg.norm(some, axis=-1), dtype=np.float64)
        if some.ndim == 3:
            lengths = lengths.sum(1) / np.maximum((lengths > 0).sum(1), 1)
        unusable = {"is not finite": np.asarray(~np.isfinite(lengths)), "is all zeros": np.asarray(lengths == 0)}
        for what, bad in unusable.items():
            if np.any(bad) and (unit or what != "is all zeros"):
                raise BadInput(
                    f"the vector of {side} {start + int(bad.argmax())} (and of {int(bad.sum()) - 1} others near it) "
                    f"{what}: it has no {'direction' if unit else 'scores'}; compute it again or leave it out"
                )
        norms[start : start + 4096] = lengths
    return norms


# Who is who.


@dataclass(frozen=True, slots=True, eq=False)
class Match:
    """Queries found in a matrix.

    Attributes:
        rows: The row of each query, [N].
        owners: The column of its video, [N].
        text_ids: Of the queries.
        video_ids: Of all columns.
        suspicions: What the ids already tell.
        notes: What was taken for granted.
        tested: What a `Card` says of the list: digested with its sentences where the pairs have them, else by ids.
    """

    rows: Integers
    owners: Integers
    text_ids: tuple[str, ...]
    video_ids: tuple[str, ...]
    suspicions: tuple[Suspicion, ...] = ()
    notes: tuple[str, ...] = ()
    tested: Mapping[str, Any] = field(default_factory=dict)


def match(
    shape: tuple[int, int],
    pairs: Pairs,
    text_ids: Sequence[str] | None = None,
    video_ids: Sequence[str] | None = None,
) -> Match:
    """Find the queries of `pairs` among the rows, and their videos among the columns.

    Without ids, rows and columns are what their numbers from 0 say, or where the pairs have other names, what stands
    there in the order of the pairs.

    Raises:
        BadInput: Nothing fits, or the matrix is transposed.
    """
    notes: list[str] = []
    wanted = tuple(dict.fromkeys(pairs.videos.values())) if pairs.candidates is None else pairs.candidates
    if (text_ids is None or video_ids is None) and shape[0] != shape[1] and shape == (len(wanted), len(pairs.videos)):
        raise _transposed(shape, f"{pairs.name} has {len(pairs.videos):,} texts and {len(wanted):,} videos")
    names = []
    for given, expected, count, side in (
        (text_ids, pairs.videos, shape[0], "row"),
        (video_ids, wanted, shape[1], "column"),
    ):
        numbers = tuple(map(str, range(count)))
        if given is None and not set(numbers) & set(expected) and len(expected) == count:
            given = tuple(expected)
            notes.append(f"no ids: {side}s are taken in the order of {pairs.name}")
        names.append(tuple(given) if given is not None else numbers)
    rows_of, columns_of = ({name: n for n, name in enumerate(side)} for side in names)
    also = {} if pairs.also is None or set(rows_of) & set(pairs.videos) else pairs.also
    known = {also.get(name, name): row for name, row in rows_of.items()}
    queries = [(known[text], columns_of[video], text) for text, video in pairs.videos.items()
               if text in known and video in columns_of]  # fmt: skip
    if not queries:
        if set(rows_of) & set(wanted) and set(columns_of) & {*pairs.videos, *(pairs.also or ())}:
            raise _transposed(shape, "its rows have the ids of videos, and its columns those of texts")
        raise BadInput(
            f"no pair of {pairs.name} is in the scores {list(shape)}, and it has {len(pairs.videos):,} texts and "
            f"{len(wanted):,} videos: their rows are called {_some(names[0])} and their columns "
            f"{_some(names[1])}, the pairs {_some([f'{t} - {v}' for t, v in list(pairs.videos.items())[:3]])}; name "
            "them alike, or give --text-ids and --video-ids"
        )
    suspicions: list[Suspicion] = []
    if lost := len(pairs.videos) - len(queries):
        videos_lost = len({*pairs.videos.values()} - set(columns_of))
        suspicions.append(
            Suspicion(
                "missing queries",
                f"{counted(lost, 'query')} of {len(pairs.videos):,} in {pairs.name} cannot be asked, because "
                f"{counted(len(set(pairs.videos) - set(known)), 'text')} and {counted(videos_lost, 'video')} have no "
                "scores: this is a number for another set of queries",
                {"queries": lost, "videos": videos_lost},
            )
        )
    extra, absent = len(set(columns_of) - set(wanted)), len(set(wanted) - set(columns_of))
    if pairs.candidates is not None and (extra or absent):
        suspicions.append(
            Suspicion(
                "other candidates",
                f"{pairs.name} ranks {counted(len(wanted), 'video')}, and these scores {len(columns_of):,} "
                f"({absent:,} are missing, {extra:,} are others): fewer candidates make retrieval easier, and others "
                "make it another test",
                {"expected": len(wanted), "found": len(columns_of), "missing": absent, "others": extra},
            )
        )
    elif extra:
        notes.append(
            f"{counted(extra, 'column')} of no pair {'is a candidate' if extra == 1 else 'are candidates'} as well"
        )
    if spare := shape[0] - len(queries):
        notes.append(f"{counted(spare, 'row')} of no pair {'is' if spare == 1 else 'are'} not asked")
    rows, owners = (np.array([each[side] for each in queries], dtype=np.int64) for side in (0, 1))
    sentences = pairs.sentences
    asked = [text if sentences is None else sentences[text] for *_, text in queries]
    tested = list_facts(names[1], asked, owners.tolist())
    if sentences is None:
        tested["list_digest"] = f"ids {tested['list_digest']}"
    ids = tuple(each[2] for each in queries)
    return Match(rows, owners, ids, names[1], tuple(suspicions), tuple(notes), tested)


def _transposed(shape: tuple[int, int], why: str) -> BadInput:
    return BadInput(f"the matrix {list(shape)} is transposed: {why}; rows must be texts: give --transpose")


def _some(names: Sequence[str]) -> str:
    return ", ".join(shown(each) for each in names[:3]) + (", ..." if len(names) > 3 else "")


# One pass.


def rank_scores(
    scores: Scores, rows: Integers, owners: Integers, survey: Survey | None = None, progress: Progress | None = None
) -> tuple[dict[Direction, Ranks], Ranks]:
    """The ranks of every direction, as `rank_all` gives them of a matrix in memory, in one pass over blocks of rows.

    Args:
        scores: The scores.
        rows: The row of each query, [N].
        owners: The column of its video, [N].
        survey: Takes every block in as well.
        progress: Told of the rows after every block.

    Returns:
        The ranks by direction; and of each caption its place among all captions as its own clip ranks them.
    """
    n_texts, n_videos = len(rows), scores.shape[1]
    order = np.argsort(owners, kind="stable")  # all captions of a clip follow one another: groups end within blocks
    own = scores.pairs(rows, owners)
    clips, starts, sizes = np.unique(owners[order], return_index=True, return_counts=True)
    best = np.maximum.reduceat(own[order], starts)  # of each clip with captions
    greater, equal = np.zeros((2, n_texts), np.int64)
    plain_greater, plain_equal, greater_groups, equal_groups = np.zeros((4, len(clips)), np.int64)
    caption_greater, caption_equal = np.zeros((2, n_texts), np.int64)
    several = len(clips) < n_texts
    open_group: Array | None = None  # best scores so far of the captions of a clip that the last block cut in two
    step = max(1, _BLOCK_ELEMENTS // max(n_videos, n_texts if several else 1))
    for start in range(0, n_texts, step):
        texts = order[start : start + step]
        block = np.array(scores.block(rows[texts]))
        block[np.arange(len(texts)), owners[texts]] = own[texts]
        if survey is not None:
            survey.add(texts, block)
        greater[texts] = (block > own[texts, None]).sum(1)
        equal[texts] = (block == own[texts, None]).sum(1) - 1
        queries = block[:, clips]
        plain_greater += (queries > best).sum(0)
        plain_equal += (queries == best).sum(0)
        if several:
            by_caption = block[:, owners]
            caption_greater += (by_caption > own).sum(0)
            caption_equal += (by_caption == own).sum(0)
        mine = owners[texts]
        firsts = np.flatnonzero(np.concatenate([[True], mine[1:] != mine[:-1]]))
        groups = np.maximum.reduceat(queries, firsts, axis=0)
        if open_group is not None and mine[0] == owners[order[start - 1]]:
            groups[0] = np.maximum(groups[0], open_group)
        elif open_group is not None:
            groups = np.concatenate([open_group[None], groups])
        done = start + len(texts) == n_texts
        closed = groups if done else groups[:-1]
        open_group = None if done else groups[-1]
        greater_groups += (closed > best).sum(0)
        equal_groups += (closed == best).sum(0)
        if progress is not None:
            progress("scoring and ranking rows", start + len(texts), n_texts)
    targets = np.add.reduceat((own[order] == np.repeat(best, sizes)).astype(np.int64), starts)
    one = np.ones(len(clips), np.int64)
    ranks: dict[Direction, Ranks] = {
        "text_to_video": Ranks(greater, equal, np.ones(n_texts, np.int64), owners, n_videos),
        "video_to_text": Ranks(greater_groups, equal_groups - 1, one, clips, len(clips)),
        "video_to_text_plain": Ranks(plain_greater, plain_equal - targets, targets, clips, n_texts),
    }
    if not several:  # each caption is its clip's only one
        caption_greater[order], caption_equal[order] = plain_greater, plain_equal
    return ranks, Ranks(caption_greater, caption_equal - 1, np.ones(n_texts, np.int64), owners, n_texts)


# The verdict.


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What the referee says of scores.

    Attributes:
        result: The usual numbers.
        ranks: By direction.
        captions: Of each caption, its place among all captions as its own clip ranks them.
        text_ids: Of the queries.
        video_ids: Of the candidates.
        suspicions: What is likely wrong; None where ranks alone were there, in which nothing can be looked for.
        notes: What was taken for granted, and what could not be looked at.
    """

    result: RetrievalResult
    ranks: Mapping[Direction, Ranks]
    captions: Ranks
    text_ids: tuple[str, ...]
    video_ids: tuple[str, ...]
    suspicions: tuple[Suspicion, ...] | None = None
    notes: tuple[str, ...] = ()

    def values(self, direction: Direction) -> dict[str, Doubles]:
        """Each query's share of nDCG@10 and MRR, in percent."""
        ranks = self.ranks[direction]
        plain = direction == "video_to_text_plain"
        gains = ndcg_of_captions(self.captions) if plain else ranks.gains()
        return {"ndcg10": 100.0 * gains, "mrr": 100.0 * ranks.reciprocal()}

    def further(self, direction: Direction) -> tuple[FurtherMetrics, dict[str, Interval | None]]:
        """R@50, nDCG@10 and MRR with their intervals over clips."""
        ranks, values = self.ranks[direction], self.values(direction)
        metrics = further_metrics(ranks, values["ndcg10"] / 100.0)
        intervals = {name: mean_interval(each, ranks.clips) for name, each in values.items()}
        return metrics, {"r50": recall_interval(ranks, 50), **intervals}

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        further = {}
        for direction in DIRECTIONS:
            metrics, intervals = self.further(direction)
            bounds = {name: None if each is None else asdict(each) for name, each in intervals.items()}
            further[direction] = {**asdict(metrics), "intervals": bounds}
        return {
            **self.result.to_json(),
            "further": further,
            "suspicions": None if self.suspicions is None else [asdict(each) for each in self.suspicions],
            "notes": list(self.notes),
        }


def examine(
    scores: Scores, matched: Match, *, embeddings: Embeddings | None = None, progress: Progress | None = None
) -> tuple[dict[Direction, Ranks], Ranks, list[Suspicion], list[str]]:
    """The ranks of `rank_scores`, all that is likely wrong, and what cannot be told; arguments as in `judge_scores`.

    Raises:
        BadInput: The embeddings are of other numbers of texts and videos than the matrix.
    """
    if embeddings is not None and embeddings.shape != scores.shape:
        raise BadInput(
            f"the embeddings are of {embeddings.shape[0]:,} texts and {embeddings.shape[1]:,} videos, the matrix "
            f"is {list(scores.shape)}; give those that it was computed from"
        )
    alternatives = possible_alignments(matched.rows, matched.owners, matched.text_ids, matched.video_ids)
    survey = Survey(matched.owners, scores.shape[1], alternatives)
    ranks, captions = rank_scores(scores, matched.rows, matched.owners, survey, progress)
    suspicions = [*matched.suspicions, *look(survey, matched.text_ids, matched.video_ids)]
    if isinstance(scores, Embeddings) and not scores.unit:
        suspicions += look_at_norms(scores.norms)
    if embeddings is not None:

        def recomputed(texts: Integers, videos: Integers) -> Doubles:
            return np.asarray(embeddings.block(matched.rows[texts])[:, videos], dtype=np.float64)

        suspicions = [each for each in suspicions if each.kind != "leak"]  # which can now be said for certain
        suspicions += compare_with_embeddings(survey, recomputed)
    untold = []
    if len(ranks["video_to_text"].clips) < FEWEST_CLIPS:
        untold.append(f"fewer than {FEWEST_CLIPS} clips: whether ids and signs are right cannot be told from scores")
    elif embeddings is None and isinstance(scores, Matrix) and survey.advantage is None:
        untold.append(
            "whether the scorer knew the true pairs cannot be told from these scores alone, which do not predict one "
            "another; give --text-embeddings and --video-embeddings, if they are products of vectors"
        )
    return ranks, captions, suspicions, untold


def judge_scores(
    scores: Scores,
    matched: Match,
    labels: Labels,
    *,
    embeddings: Embeddings | None = None,
    progress: Progress | None = None,
) -> Verdict:
    """Rank, measure and look for what is wrong.

    Args:
        scores: A matrix, or embeddings.
        matched: Who is who.
        labels: What the numbers are of.
        embeddings: Of the same texts and videos as a matrix, to compute its scores again.
        progress: Told of the rows.

    Raises:
        BadInput: As `examine`.
        RunFailed: A score is NaN: there are no ranks; the message says which.
    """
    ranks, captions, suspicions, untold = examine(scores, matched, embeddings=embeddings, progress=progress)
    if nan := next((each for each in suspicions if each.kind == "nan"), None):
        raise RunFailed(f"no ranks can be made: {nan.text}")
    card = replace(labels.card, **matched.tested)
    concerns = (*labels.concerns, *(each.text for each in matched.suspicions))
    return Verdict(
        result=retrieval_result(ranks, replace(labels, card=card, concerns=concerns)),
        ranks=ranks,
        captions=captions,
        text_ids=matched.text_ids,
        video_ids=matched.video_ids,
        suspicions=tuple(suspicions),
        notes=(*matched.notes, *untold),
    )


def differences(first: Verdict, second: Verdict) -> dict[Direction, dict[str, PairedDifference]]:
    """`first` minus `second` by direction and metric, paired over clips.

    Raises:
        BadInput: They did not answer the same queries among the same candidates.
    """
    other = {text: place for place, text in enumerate(second.text_ids)}
    asked = [{each.video_ids[clip] for clip in each.ranks["video_to_text"].clips.tolist()} for each in (first, second)]
    if set(other) != set(first.text_ids) or asked[0] != asked[1]:
        raise BadInput(
            f"the two have other queries or candidates ({len(first.text_ids):,} queries and {len(first.video_ids):,} "
            f"videos, {len(second.text_ids):,} and {len(second.video_ids):,}): they cannot be paired; score both with "
            "the same pairs"
        )
    column = {video: place for place, video in enumerate(first.video_ids)}
    columns = np.array([column.get(video, -1) for video in second.video_ids])
    by_direction: dict[Direction, dict[str, PairedDifference]] = {}
    for direction in DIRECTIONS:
        before, after = second.ranks[direction], first.ranks[direction]
        clips = columns[before.clips]
        # The order of the first: by its queries, or by its clips.
        order = np.array([other[t] for t in first.text_ids]) if direction == "text_to_video" else np.argsort(clips)
        before = Ranks(
            before.greater[order], before.equal[order], before.targets[order], clips[order], before.n_candidates
        )
        values = {name: each[order] for name, each in second.values(direction).items()}
        extra = {"r50": (100.0 * before.recall(50), 100.0 * after.recall(50))}
        extra |= {name: (values[name], each) for name, each in first.values(direction).items()}
        by_direction[direction] = paired_differences(before, after)
        by_direction[direction] |= {name: paired_mean(name, *each, after.clips) for name, each in extra.items()}
    return by_direction


def differences_json(differences: Mapping[Direction, Mapping[str, PairedDifference]]) -> dict[str, Any]:
    """Plain data."""
    return {way: {name: asdict(each) for name, each in by_metric.items()} for way, by_metric in differences.items()}
