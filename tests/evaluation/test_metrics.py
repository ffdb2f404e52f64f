"""Retrieval metrics against hand-made matrices, every order of ties, and torchmetrics."""

from collections.abc import Sequence
from itertools import permutations
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calmctl.errors import BadInput, RunFailed
from calmctl.evaluation import metrics
from calmctl.evaluation.metrics import (
    DIRECTIONS,
    Direction,
    rank_queries,
    retrieval_metrics,
    text_to_video,
    video_to_text,
)


def brute_force(candidates: Sequence[float], targets: set[int], k: int) -> tuple[float, float]:
    """Mean hit at k and mean rank of the first target over every order in which a sort may leave equals."""
    hits, ranks = [], []
    for order in permutations(range(len(candidates))):
        listing = sorted(order, key=lambda index: -candidates[index])  # stable: equals stay in `order`
        rank = 1 + min(listing.index(target) for target in targets)
        hits.append(float(rank <= k))
        ranks.append(rank)
    return float(np.mean(hits)), float(np.mean(ranks))


def queries(scores: np.ndarray, owners: list[int], direction: Direction) -> list[tuple[list[float], set[int]]]:
    """Each query's candidate scores and targets, spelt out from the definitions with plain loops."""
    if direction == "text_to_video":
        return [(list(row), {owner}) for row, owner in zip(scores, owners, strict=True)]
    clips = sorted(set(owners))
    if direction == "video_to_text_plain":
        return [(list(scores[:, clip]), {text for text, owner in enumerate(owners) if owner == clip}) for clip in clips]
    result = []
    for position, clip in enumerate(clips):
        best = [max(scores[text, clip] for text, owner in enumerate(owners) if owner == other) for other in clips]
        result.append((best, {position}))
    return result


@st.composite
def problems(draw: st.DrawFn, levels: int = 3, most: int = 5) -> tuple[np.ndarray, list[int]]:
    """Few score levels, so that ties abound; texts and videos unrelated in number."""
    n_texts, n_videos = draw(st.integers(1, most)), draw(st.integers(1, most))
    owners = draw(st.lists(st.integers(0, n_videos - 1), min_size=n_texts, max_size=n_texts))
    values = draw(st.lists(st.integers(0, levels - 1), min_size=n_texts * n_videos, max_size=n_texts * n_videos))
    return np.array(values, np.float32).reshape(n_texts, n_videos) / levels, owners


@settings(deadline=None, max_examples=60)
@given(problems(), st.sampled_from(DIRECTIONS))
def test_ties_are_the_average_over_every_order(problem: tuple[np.ndarray, list[int]], direction: Direction) -> None:
    scores, owners = problem
    ranks = rank_queries(scores, owners, direction)
    spelt_out = queries(scores, owners, direction)
    assert len(ranks.ranks()) == len(spelt_out)
    for k in (1, 2, 3, 5):
        expected = [brute_force(candidates, targets, k) for candidates, targets in spelt_out]
        np.testing.assert_allclose(ranks.recall(k), [hit for hit, _ in expected], atol=1e-12)
        np.testing.assert_allclose(ranks.ranks(), [rank for _, rank in expected], atol=1e-12)


@settings(deadline=None, max_examples=60)
@given(problems(), st.sampled_from(DIRECTIONS))
def test_optimistic_and_pessimistic_are_the_extremes(
    problem: tuple[np.ndarray, list[int]], direction: Direction
) -> None:
    scores, owners = problem
    ranks = rank_queries(scores, owners, direction)
    for number, (candidates, targets) in enumerate(queries(scores, owners, direction)):
        best = max(candidates[target] for target in targets)
        wrong = [value for index, value in enumerate(candidates) if index not in targets]
        first = 1 + sum(value > best for value in wrong)
        last = 1 + sum(value >= best for value in wrong)
        assert ranks.ranks("optimistic")[number] == first
        assert ranks.ranks("pessimistic")[number] == last
        assert first <= ranks.ranks()[number] <= last
        for k in (1, 2, 5):
            assert ranks.recall(k, "optimistic")[number] == (first <= k)
            assert ranks.recall(k, "pessimistic")[number] == (last <= k)


@settings(deadline=None)
@given(problems(levels=4, most=12), st.sampled_from(DIRECTIONS))
def test_recall_grows_with_k_and_ends_at_one(problem: tuple[np.ndarray, list[int]], direction: Direction) -> None:
    ranks = rank_queries(*problem, direction)
    recalls = np.stack([ranks.recall(k) for k in range(1, ranks.n_candidates + 1)])
    assert (np.diff(recalls, axis=0) >= -1e-12).all()
    assert (recalls >= 0).all() and (recalls <= 1).all()
    np.testing.assert_allclose(recalls[-1], 1.0, atol=1e-12)
    # The mean of a rank is the sum of the chances that it is above k: ties R@K and MnR to each other.
    np.testing.assert_allclose(ranks.ranks(), 1 + (1 - recalls[:-1]).sum(axis=0), atol=1e-9)


@settings(deadline=None)
@given(problems(levels=4, most=12), st.sampled_from(DIRECTIONS), st.randoms(use_true_random=False))
def test_the_order_of_captions_and_clips_does_not_matter(
    problem: tuple[np.ndarray, list[int]], direction: Direction, random: Any
) -> None:
    scores, owners = problem
    texts, videos = list(range(scores.shape[0])), list(range(scores.shape[1]))
    random.shuffle(texts)
    random.shuffle(videos)
    shuffled = scores[np.ix_(texts, videos)]
    new_owners = [videos.index(owners[text]) for text in texts]
    before = rank_queries(scores, owners, direction).metrics()
    after = rank_queries(shuffled, new_owners, direction).metrics()
    for name in ("r1", "r5", "r10", "mdr", "mnr"):
        assert getattr(before, name) == pytest.approx(getattr(after, name), abs=1e-9)


@settings(deadline=None)
@given(problems(levels=4, most=12), st.sampled_from(DIRECTIONS))
def test_only_the_order_of_scores_matters(problem: tuple[np.ndarray, list[int]], direction: Direction) -> None:
    scores, owners = problem
    one = rank_queries(scores, owners, direction).metrics()
    assert rank_queries(np.exp(3 * scores.astype(np.float64)) - 7, owners, direction).metrics() == one
    assert rank_queries(scores.astype(np.float16), owners, direction).metrics() == one


def test_hand_made_matrix_with_more_clips_than_captions() -> None:
    scores = [
        [0.9, 0.1, 0.2, 0.3],  # owner 0: rank 1
        [0.8, 0.5, 0.1, 0.6],  # owner 1: rank 3
        [0.2, 0.3, 0.4, 0.4],  # owner 2: tied with clip 3: rank 1.5
    ]
    got = text_to_video(scores, [0, 1, 2])
    assert got.r1 == pytest.approx(100 * 1.5 / 3)
    assert (got.r5, got.r10) == (100.0, 100.0)
    assert (got.mdr, got.mnr) == (1.5, pytest.approx((1 + 3 + 1.5) / 3))
    assert (got.n_queries, got.n_candidates) == (3, 4)
    back = video_to_text(scores, [0, 1, 2])  # clip 3 has no caption: neither a query nor a candidate
    assert (back.n_queries, back.n_candidates) == (3, 3)
    assert (back.r1, back.mnr) == (100.0, 1.0)


def test_hand_made_matrix_with_several_captions_a_clip() -> None:
    owners = [0, 0, 0, 1]
    scores = np.array([[0.9, 0.8], [0.7, 0.6], [0.1, 0.2], [0.8, 0.5]])
    # Clip 1: its own caption 0.5; clip 0's best 0.8 (grouped: rank 2); in plain, 0.8 and 0.6 are above: rank 3.
    assert video_to_text(scores, owners).mnr == (1 + 2) / 2
    assert rank_queries(scores, owners, "video_to_text_plain").metrics().mnr == (1 + 3) / 2
    assert rank_queries(scores, owners, "video_to_text_plain").metrics().n_candidates == 4
    # Every caption is a query: captions 1, 2, 3, 4 rank 1, 1, 2, 2.
    assert text_to_video(scores, owners).mnr == 1.5


def test_constant_scores_are_chance() -> None:
    got = text_to_video(np.zeros((40, 20)), np.arange(40) % 20)
    assert (got.r1, got.r5, got.r10) == pytest.approx((5.0, 25.0, 50.0))
    assert (got.mdr, got.mnr) == (10.5, 10.5)
    assert text_to_video(np.zeros((40, 20)), np.arange(40) % 20, "optimistic").r1 == 100.0
    assert text_to_video(np.zeros((40, 20)), np.arange(40) % 20, "pessimistic").r10 == 0.0


def test_all_own_captions_tied_in_plain_video_to_text() -> None:
    # Two own captions among five equals: the first of them is expected at (5 + 1) / (2 + 1) = 2.
    scores, owners = np.zeros((5, 3)), [0, 0, 1, 2, 2]
    ranks = rank_queries(scores, owners, "video_to_text_plain")
    np.testing.assert_allclose(ranks.ranks(), [2.0, 3.0, 2.0])
    np.testing.assert_allclose(ranks.recall(1), [0.4, 0.2, 0.4])


def test_torchmetrics_agrees_where_nothing_ties() -> None:
    import torch  # here, because torchmetrics takes long to import
    from torchmetrics.functional.retrieval import retrieval_hit_rate, retrieval_reciprocal_rank

    rng = np.random.default_rng(0)
    scores = rng.random((60, 23)).astype(np.float32)  # positive: torchmetrics takes others as irrelevant
    owners = rng.integers(0, 23, 60)
    ranks = rank_queries(scores, owners)
    for k in (1, 5, 10):
        theirs = [
            float(retrieval_hit_rate(torch.tensor(row), torch.arange(23) == int(owner), top_k=k))
            for row, owner in zip(scores, owners, strict=True)
        ]
        np.testing.assert_array_equal(ranks.recall(k), theirs)
    reciprocal = [
        float(retrieval_reciprocal_rank(torch.tensor(row), torch.arange(23) == int(owner)))
        for row, owner in zip(scores, owners, strict=True)
    ]
    np.testing.assert_allclose(1 / ranks.ranks(), reciprocal, rtol=1e-6)
    plain = rank_queries(scores, owners, "video_to_text_plain")
    for k in (1, 5, 10):
        theirs = [
            float(retrieval_hit_rate(torch.tensor(scores[:, clip]), torch.tensor(owners == clip), top_k=k))
            for clip in plain.clips
        ]
        np.testing.assert_array_equal(plain.recall(k), theirs)


def test_blocks_do_not_change_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(1)
    scores = rng.integers(0, 9, (50, 17)).astype(np.float32)
    owners = rng.integers(0, 17, 50)
    whole = retrieval_metrics(scores, owners)
    for size in (1, 40, 130):
        monkeypatch.setattr(metrics, "_BLOCK_ELEMENTS", size)
        assert retrieval_metrics(scores, owners) == whole


def test_all_directions_at_once() -> None:
    scores = np.random.default_rng(2).standard_normal((9, 5))
    owners = [0, 1, 2, 3, 4, 0, 1, 2, 3]
    assert retrieval_metrics(scores, owners) == {
        "text_to_video": text_to_video(scores, owners),
        "video_to_text": video_to_text(scores, owners),
        "video_to_text_plain": rank_queries(scores, owners, "video_to_text_plain").metrics(),
    }


def test_nan_scores_are_refused_by_name() -> None:
    scores = np.zeros((4, 3))
    scores[2, 1] = np.nan
    for direction in DIRECTIONS:
        with pytest.raises(RunFailed, match="the score of caption 2 with clip 1 is NaN"):
            rank_queries(scores, [0, 1, 2, 0], direction)


@pytest.mark.parametrize(
    ("scores", "owners", "said"),
    [
        (np.zeros(3), [0, 0, 0], r"scores must be numbers \[N_t, N_v\]"),
        (np.zeros((0, 3)), [], "scores must be numbers"),
        (np.zeros((2, 3), dtype=complex), [0, 1], "scores must be numbers"),
        (np.zeros((2, 3)), [0], "owners must be one clip index for each of the 2 captions"),
        (np.zeros((2, 3)), [0.0, 1.0], "owners must be one clip index"),
        (np.zeros((2, 3)), [0, 3], r"owners\[1\] is 3, but there are 3 clips"),
        (np.zeros((2, 3)), [-1, 0], r"owners\[0\] is -1"),
    ],
)
def test_shapes_that_do_not_fit(scores: np.ndarray, owners: list[int], said: str) -> None:
    with pytest.raises(BadInput, match=said):
        rank_queries(scores, owners)


def test_unknown_direction() -> None:
    with pytest.raises(BadInput, match="no direction 'sideways'"):
        rank_queries(np.zeros((1, 1)), [0], "sideways")  # type: ignore[arg-type]
