"""The referee: ranks block by block against ranks of a whole matrix, vectors against formulas, ids against mistakes."""

from itertools import permutations
from math import log2
from pathlib import Path

import numpy as np
import pytest

from calmctl.errors import BadInput, RunFailed
from calmctl.evaluation.metrics import DIRECTIONS, rank_all
from calmctl.evaluation.result import Labels
from calmctl.referee import scores as referee
from calmctl.referee.rank_files import format_ranks, is_ranks, read_ranks
from calmctl.referee.score_files import Pairs
from calmctl.referee.scores import (
    Embeddings,
    Match,
    Matrix,
    differences,
    judge_scores,
    match,
    rank_scores,
)

PARTS = ("greater", "equal", "targets", "clips")


def matched(owners: np.ndarray, n_videos: int) -> Match:
    texts, videos = ([f"{side}{n}" for n in range(count)] for side, count in (("t", len(owners)), ("v", n_videos)))
    return match((len(owners), n_videos), Pairs("pairs", {t: videos[o] for t, o in zip(texts, owners, strict=True)}),
                 texts, videos)  # fmt: skip


@pytest.mark.parametrize("seed", range(20))
def test_ranks_of_blocks_are_those_of_the_matrix(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the block, also where it cuts the captions of a clip in two; ties, clips without captions."""
    rng = np.random.default_rng(seed)
    n_texts, n_videos = rng.integers(2, 30), rng.integers(2, 12)
    scores = np.round(rng.normal(size=(n_texts, n_videos)), rng.integers(0, 3)).astype(np.float32)
    owners = rng.integers(0, n_videos, n_texts)
    monkeypatch.setattr(referee, "_BLOCK_ELEMENTS", int(rng.integers(1, 90)))
    ranks, captions = rank_scores(Matrix(scores), np.arange(n_texts), owners)
    for direction, wanted in rank_all(scores, owners).items():
        assert all(np.array_equal(getattr(ranks[direction], part), getattr(wanted, part)) for part in PARTS), direction
        assert ranks[direction].n_candidates == wanted.n_candidates
    for text, owner in enumerate(owners):  # of each caption, who stands before it in its own clip's column
        column = scores[:, owner]
        assert captions.greater[text] == sum(column > column[text])
        assert captions.equal[text] == sum(column == column[text]) - 1


def test_rows_are_taken_where_they_lie_and_either_way_round() -> None:
    rng = np.random.default_rng(0)
    scores, owners, rows = rng.normal(size=(9, 4)), np.array([0, 1, 3, 3]), np.array([7, 2, 0, 5])
    wanted = rank_all(scores[rows], owners)
    for given in (Matrix(scores), Matrix(scores.T, transposed=True), Matrix(-scores, distances=True),
                  Matrix(np.asfortranarray(-scores.T), transposed=True, distances=True)):  # fmt: skip
        assert given.shape == (9, 4)
        ranks, _ = rank_scores(given, rows, owners)
        assert all(np.array_equal(ranks[d].greater, wanted[d].greater) for d in DIRECTIONS)


def ndcg(relevant: list[bool], k: int = 10) -> float:
    gain = sum(1 / log2(2 + place) for place, each in enumerate(relevant[:k]) if each)
    return gain / sum(1 / log2(2 + place) for place in range(min(k, sum(relevant))))


@pytest.mark.parametrize("seed", range(6))
def test_gains_and_reciprocal_ranks_over_all_orders_of_ties(seed: int) -> None:
    """nDCG@10 and MRR in float64 by listing every order in which a sort may leave equals."""
    rng = np.random.default_rng(seed)
    scores, owners = rng.integers(0, 3, size=(6, 4)).astype(np.float64), np.array([0, 0, 1, 2, 2, 2])
    verdict = judge_scores(Matrix(scores), matched(owners, 4), Labels(scorer="given"))
    for direction in DIRECTIONS:
        gains, reciprocals = [], []
        queries = range(6) if direction == "text_to_video" else (0, 1, 2)
        for query in queries:
            if direction == "text_to_video":
                listed, targets = list(scores[query]), {int(owners[query])}
            elif direction == "video_to_text_plain":
                listed, targets = list(scores[:, query]), set(np.flatnonzero(owners == query).tolist())
            else:
                listed, targets = [max(scores[owners == group, query]) for group in range(3)], {query}
            orders = [sorted(o, key=lambda n: -listed[n]) for o in permutations(range(len(listed)))]
            gains.append(np.mean([ndcg([each in targets for each in order]) for order in orders]))
            firsts = [min(order.index(target) for target in targets) for order in orders]
            reciprocals.append(np.mean([1 / (1 + first) for first in firsts]))
        found, intervals = verdict.further(direction)
        assert found.ndcg10 == pytest.approx(100 * np.mean(gains), abs=1e-9)
        assert found.mrr == pytest.approx(100 * np.mean(reciprocals), abs=1e-9)
        assert found.r50 == 100.0
        assert all(bound is not None and 0 <= bound.low <= bound.high <= 100 for bound in intervals.values())


def test_what_stands_behind_the_tenth_gains_nothing() -> None:
    scores = -np.abs(np.arange(60)[None] - np.zeros((60, 1)))  # every row: column 0 first, column 59 last
    verdict = judge_scores(Matrix(scores), matched(np.arange(60), 60), Labels(scorer="given"))
    found, _ = verdict.further("text_to_video")
    assert found.ndcg10 == pytest.approx(100 * sum(1 / log2(2 + place) for place in range(10)) / 60)
    assert found.mrr == pytest.approx(100 * sum(1 / (1 + place) for place in range(60)) / 60)
    assert found.r50 == pytest.approx(100 * 50 / 60)


def test_similarities_of_vectors_are_their_formulas(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(1)
    texts, videos = rng.normal(size=(7, 5)).astype(np.float32), rng.normal(size=(6, 5)).astype(np.float32)
    monkeypatch.setattr(referee, "_TILE_ELEMENTS", 12)
    rows = np.array([3, 0, 6])
    dots = texts.astype(float) @ videos.T.astype(float)
    lengths = np.linalg.norm(texts.astype(float), axis=1)[:, None] * np.linalg.norm(videos.astype(float), axis=1)
    for scores, wanted in ((Embeddings(texts, videos, "dot"), dots), (Embeddings(texts, videos), dots / lengths)):
        assert scores.block(rows) == pytest.approx(wanted[rows], rel=1e-6)
        assert scores.pairs(rows, np.array([1, 5, 1])) == pytest.approx(wanted[rows, [1, 5, 1]], rel=1e-6)


def test_late_interaction_is_the_mean_over_words_of_the_best_frame() -> None:
    rng = np.random.default_rng(2)
    words, frames = rng.normal(size=(4, 3, 5)), rng.normal(size=(6, 2, 5))
    words[1, 2] = frames[3, 1] = 0.0  # filled up: a text of two words, a video of one frame
    unit = lambda vector: vector / np.linalg.norm(vector)  # noqa: E731
    wanted = np.zeros((4, 6))
    for t in range(4):
        for v in range(6):
            best = [max(unit(w) @ unit(f) for f in frames[v] if f.any()) for w in words[t] if w.any()]
            wanted[t, v] = np.mean(best)
    scores = Embeddings(words, frames)
    assert scores.block(np.arange(4)) == pytest.approx(wanted, rel=1e-6)
    assert scores.pairs(np.arange(4), np.array([3, 3, 0, 1])) == pytest.approx(wanted[range(4), [3, 3, 0, 1]], rel=1e-6)
    one = Embeddings(words[:, :1], frames[:, 0])  # several against one
    assert one.block(np.arange(4))[2, 1] == pytest.approx(unit(words[2, 0]) @ unit(frames[1, 0]), rel=1e-6)


def test_equal_vectors_tie_wherever_they_stand() -> None:
    rng = np.random.default_rng(3)
    texts, videos = rng.normal(size=(40, 96)).astype(np.float32), rng.normal(size=(1001, 96)).astype(np.float32)
    videos[1000] = videos[500] = videos[0]
    block = Embeddings(texts, videos).block(np.arange(40))
    assert np.array_equal(block[:, 0], block[:, 500]) and np.array_equal(block[:, 0], block[:, 1000])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda texts, videos: videos.__setitem__(4, 0.0), "vector of video 4 .*all zeros"),
        (lambda texts, videos: texts.__setitem__((2, 1), np.nan), "vector of text 2 .*not finite"),
        (lambda texts, videos: texts.__setitem__((2, 1), np.inf), "vector of text 2 .*not finite"),
    ],
)
def test_a_vector_without_direction_is_named(change, message: str) -> None:
    texts, videos = np.ones((3, 4)), np.ones((5, 4))
    change(texts, videos)
    with pytest.raises(BadInput, match=message):
        Embeddings(texts, videos)


def test_vectors_of_two_spaces_are_refused() -> None:
    with pytest.raises(BadInput, match="not of one space"):
        Embeddings(np.ones((3, 4)), np.ones((3, 5)))


# Who is who.


def test_ids_find_their_rows_in_any_order() -> None:
    pairs = Pairs("pairs.csv", {"a": "x", "b": "y", "c": "x"})
    found = match((4, 3), pairs, ["c", "spare", "a", "b"], ["z", "y", "x"])
    assert found.rows.tolist() == [2, 3, 0] and found.owners.tolist() == [2, 1, 2]
    assert [*found.notes] == ["1 column of no pair is a candidate as well", "1 row of no pair is not asked"]


def test_without_ids_numbers_count_or_else_the_order_of_the_pairs() -> None:
    assert match((2, 3), Pairs("p", {"0": "2", "1": "0"})).owners.tolist() == [2, 0]
    found = match((3, 2), Pairs("p", {"a": "x", "b": "y", "c": "x"}))
    assert found.owners.tolist() == [0, 1, 0] and len(found.notes) == 2


def test_what_cannot_be_asked_is_counted() -> None:
    found = match((2, 2), Pairs("p", {"a": "x", "b": "y", "c": "z"}), ["a", "c"], ["x", "y"])
    assert [each.kind for each in found.suspicions] == ["missing queries"]
    assert "2 queries of 3" in found.suspicions[0].text and "1 text and 1 video" in found.suspicions[0].text
    protocol = Pairs("msrvtt 9k", {"a": "x", "b": "y"}, ("x", "y", "z"))
    other = match((2, 3), protocol, ["a", "b"], ["x", "y", "w"]).suspicions
    assert [each.kind for each in other] == ["other candidates"] and "1 are missing, 1 are others" in other[0].text


@pytest.mark.parametrize(
    ("shape", "texts", "videos", "message"),
    [
        ((2, 3), ["x", "y"], ["a", "b", "c"], "transposed: its rows have the ids of videos"),
        ((2, 3), None, None, "transposed: p has 3 texts and 2 videos"),
        ((3, 2), ["1", "2", "3"], ["4", "5"], "no pair of p is in the scores"),
    ],
)
def test_what_does_not_fit_is_a_sentence(shape, texts, videos, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        match(shape, Pairs("p", {"a": "x", "b": "y", "c": "x"}), texts, videos)


def test_nan_leaves_no_ranks_and_is_named() -> None:
    scores = np.random.default_rng(0).normal(size=(4, 3))
    scores[2, 1] = np.nan
    with pytest.raises(RunFailed, match=r"1 score of 12 is NaN, in 1 row \(t2\) and 1 column \(v1\)"):
        judge_scores(Matrix(scores), matched(np.array([0, 1, 2, 0]), 3), Labels(scorer="given"))


# Ranks on disk, and two systems.


def verdict_of(seed: int, order: np.ndarray | None = None):
    rng = np.random.default_rng(7)
    owners = np.repeat(np.arange(30), 2)
    scores = np.round(rng.normal(size=(60, 31)), 1)
    scores[np.arange(60), owners] += 1 + np.random.default_rng(seed).normal(size=60)
    found = matched(owners, 31)
    if order is not None:  # the same scores in another order of rows and columns
        columns = order[order < 31]
        ids = [f"v{each}" for each in columns]
        scores = scores[order][:, columns]
        found = match((60, 31), Pairs("p", {f"t{t}": f"v{o}" for t, o in enumerate(owners)}),
                      [f"t{each}" for each in order], ids)  # fmt: skip
    return judge_scores(Matrix(scores), found, Labels(system="mine", scorer="given"))


@pytest.mark.parametrize("suffix", [".json", ".csv"])
def test_kept_ranks_give_the_same_numbers(suffix: str, tmp_path: Path) -> None:
    verdict, file = verdict_of(1), tmp_path / f"ranks{suffix}"
    file.write_text(format_ranks(verdict, suffix))
    again = read_ranks(file)
    assert is_ranks(file) and again.result.metrics == verdict.result.metrics
    assert again.result.intervals == verdict.result.intervals
    assert all(again.further(direction) == verdict.further(direction) for direction in DIRECTIONS)
    assert all(each.difference == 0 for by in differences(verdict, again).values() for each in by.values())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (('"calmctl_ranks": 1', '"calmctl_ranks": 2'), "these are no ranks"),
        (('"text_to_video"', '"sideways"'), "no ranks of text_to_video"),
        (('"n_candidates": 31', '"n_candidates": 1'), "more stand before"),
        (('"greater": [', '"greater": [-1,'), "no lists of whole numbers"),
        (('"greater": [', '"greater": [NaN,'), "it has a number that is nan"),
        (('"texts": [', '"texts": ["extra",'), "do not fit one another"),
    ],
)
def test_ranks_that_are_none_are_refused(change: tuple[str, str], message: str, tmp_path: Path) -> None:
    file = tmp_path / "ranks.json"
    text = format_ranks(verdict_of(1), ".json")
    assert change[0] in text
    file.write_text(text.replace(*change, 1))
    with pytest.raises(BadInput, match=message):
        read_ranks(file)


def test_systems_are_paired_by_ids_whatever_their_order() -> None:
    first, second = verdict_of(1), verdict_of(2)
    order = np.random.default_rng(5).permutation(60)
    straight, crossed = differences(first, second), differences(first, verdict_of(2, order))
    for direction in DIRECTIONS:
        for name, each in straight[direction].items():
            assert crossed[direction][name].difference == pytest.approx(each.difference)
    metrics = [each.result.metrics["text_to_video"] for each in (first, second)]
    assert straight["text_to_video"]["r1"].difference == pytest.approx(metrics[0].r1 - metrics[1].r1)
    further = [each.further("video_to_text_plain")[0] for each in (first, second)]
    assert straight["video_to_text_plain"]["ndcg10"].difference == pytest.approx(further[0].ndcg10 - further[1].ndcg10)


def test_other_queries_cannot_be_paired() -> None:
    less = judge_scores(Matrix(np.eye(5)), matched(np.arange(5), 5), Labels(scorer="given"))
    with pytest.raises(BadInput, match="cannot be paired"):
        differences(verdict_of(1), less)
