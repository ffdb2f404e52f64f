"""Whether anything matches: p-values, the share that is kept, and the table of null scores beside a store."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from calmctl.errors import BadInput
from calmctl.model.heads.meanp import MeanPoolHead
from calmctl.search.confidence import (
    NullBank,
    NullScorer,
    Rule,
    anchor_phrases,
    captions_of,
    sentences_of_others,
)
from calmctl.search.rows import searched_rows
from calmctl.search.scorers import TableScorer, open_index

CPU = torch.device("cpu")


def bank(scores: np.ndarray, owners: list[str | None] | None = None) -> NullBank:
    n, k = scores.shape
    sentences = sentences_of_others([f"s{i}" for i in range(k)], "a file")
    if owners is not None:
        sentences = type(sentences)(sentences.texts, tuple(owners), "captions", True)
    return NullBank(sentences, scores.astype(np.float32), [f"c{i}" for i in range(n)])


def test_the_shares_are_those_of_counting():
    random = np.random.default_rng(0)
    scores = random.normal(size=(7, 40)).round(1)
    owners: list[str | None] = [f"c{i}" if i < 7 else None for i in range(40)]
    asked = np.sort(random.normal(1.5, 1, 5).round(1))[::-1]
    judged = bank(scores, owners).judge(Rule(), [3, 1, 2, 0, 4], asked.tolist())
    others = np.array([[c != i for i in range(40)] for c in range(7)])
    for position, score, found in zip([3, 1, 2, 0, 4], asked, judged, strict=True):
        best = [max(scores[c, k] for c in range(7) if others[c, k]) for k in range(40)]
        least = score - 1e-4
        assert found.chance == pytest.approx((1 + sum(b >= least for b in best)) / 41)
        own = [scores[position, k] for k in range(40) if others[position, k]]
        assert found.rank == pytest.approx((1 + sum(b >= least for b in own)) / (1 + len(own)))
        assert found.match == (found.chance <= 0.05)


@pytest.mark.parametrize("level", [0.05, 0.2])
def test_what_is_kept_is_benjamini_and_hochbergs(level):
    random = np.random.default_rng(1)
    null, n = random.normal(size=(30, 50)), 30
    asked = np.sort(np.r_[random.normal(5, 1, 4), random.normal(size=26)])[::-1]
    judged = bank(null).judge(Rule("fdr", level), list(range(30)), asked.tolist())
    p = np.array([(1 + (null.astype(np.float32) >= np.float32(s)).sum()) / (1 + null.size) for s in asked])
    kept = max((r for r in range(1, n + 1) if p[r - 1] <= level * r / n), default=0)
    assert 0 < kept < n
    assert [each.match for each in judged] == [True] * kept + [False] * (n - kept)


def test_questions_like_the_sentences_are_answered_wrongly_as_often_as_is_said():
    # Exchangeable by construction: the share of wrong answers is within four standard errors of what is promised.
    random = np.random.default_rng(2)
    wrong, rounds = 0, 2000
    for _ in range(rounds):
        clips = random.normal(size=(8, 1))
        drawn = clips + random.normal(size=(8, 40))  # clips differ in how well they fit anything
        best = drawn[:, -1].max()
        wrong += bank(drawn[:, :-1]).judge(Rule("any", 0.1), [0], [best])[0].match
    assert wrong / rounds <= 0.1 + 4 * (0.1 * 0.9 / rounds) ** 0.5
    assert wrong / rounds >= 0.1 - 4 * (0.1 * 0.9 / rounds) ** 0.5, "and no less: it is not only careful"


def test_too_few_sentences_are_refused_with_the_number_that_is_needed():
    few = bank(np.zeros((3, 18)))
    with pytest.raises(BadInput, match=r"0\.05 needs 19 sentences .* there are 18"):
        few.require(Rule())
    bank(np.zeros((3, 19))).require(Rule())
    with pytest.raises(BadInput, match="--calibrate FILE"):
        bank(np.zeros((1, 1)), ["c0"])


def test_phrases_of_anchors_are_different_and_always_the_same():
    labels = ["a cat", "a dog", "a tree", "a car", "a hat", "a cup", "a boat", "a house", "a kite"]
    first = anchor_phrases(labels)
    assert first == anchor_phrases(labels) and len(set(first.texts)) == len(first.texts) == 400
    assert all(len(set(text.split(", "))) == 3 for text in first.texts) and not first.promised
    assert "not guaranteed" in first.says
    assert len(anchor_phrases(["a", "b"]).texts) == 2


def test_null_scores_lie_beside_the_store_and_follow_it(write_store: Callable, drawn: Callable):
    store = write_store(drawn(12), captions=["a thing"] * 3)
    texts, scorer = torch.randn(4, 16), TableScorer(MeanPoolHead(), None, CPU)
    sentences = sentences_of_others(["a", "b", "c", "d"], "x")
    null = NullScorer(scorer, sentences, texts, store.header.backbone)
    index = open_index(store, searched_rows(store), null)
    assert index.made == 12 and index.not_kept is None
    frames = torch.stack([drawn(12)[key] for key in index.frames.ids])
    expected = MeanPoolHead().score(texts, MeanPoolHead().video_table(frames)).T
    np.testing.assert_allclose(index.columns["null"], expected.numpy(), atol=1e-6)
    assert open_index(store, searched_rows(store), null).made == 0
    more = write_store(drawn(14))
    assert open_index(more, searched_rows(more), null).made < 14, "shards that stayed are not computed again"
    other = NullScorer(scorer, sentences_of_others(["a", "b", "c", "e"], "x"), texts, store.header.backbone)
    assert other.key != null.key


def test_captions_of_a_store_know_their_clip(write_store: Callable, drawn: Callable):
    assert captions_of(write_store(drawn(3))) is None
    found = captions_of(write_store(drawn(3), captions=["one", "two"]))
    assert found is not None and found.texts == ("one",) and found.owners == ("clip000",), "one a clip"
    assert found.promised
