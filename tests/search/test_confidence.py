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


def bank(scores: np.ndarray, owners: list[str | None] | None = None, promised: bool = True) -> NullBank:
    n, k = scores.shape
    sentences = sentences_of_others([f"s{i}" for i in range(k)], "a file")
    if owners is not None or not promised:
        owned = tuple(owners or sentences.owners)
        sentences = type(sentences)(sentences.texts, owned, "captions", promised)
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


def above_expected(null: np.ndarray, asked: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Null scores [n, K] and a question's [n], each less the best that a regression on mean and deviation expects."""
    rest, own = np.sort(null, 0)[:-1], np.sort(asked)[:-1]
    design = np.array([[1.0, column.mean(), column.std()] for column in rest.T])
    slopes = np.linalg.solve(design.T @ design, design.T @ null.max(0))
    return null - design @ slopes, asked - np.array([1.0, own.mean(), own.std()]) @ slopes


@pytest.mark.parametrize("kind", ["any", "fdr"])
def test_phrases_must_be_beaten_as_they_are_and_by_their_spread(kind):
    random = np.random.default_rng(3)
    null = (random.normal(size=(25, 60)) * random.uniform(0.5, 1.5, 60)).astype(np.float32)
    asked = np.r_[random.normal(4, 1, 3), 1.2 * random.normal(size=22)].astype(np.float32)
    order = np.argsort(-asked)
    phrases = bank(null, promised=False)
    assert phrases.sample.tolist() == list(range(25)), "all clips of a folder"
    judged = phrases.judge(Rule(kind, 0.1), order.tolist(), asked[order].tolist(), asked[phrases.sample])
    shifted, own = above_expected(null.astype(np.float64), asked.astype(np.float64))
    best = [np.array([(1 + (each.max(0) >= s - 1e-4).sum()) / 61 for s in scores])
            for each, scores in ((null, asked[order]), (shifted, own[order]))]  # fmt: skip
    assert [each.chance for each in judged] == pytest.approx(np.maximum(*best))
    pooled = [np.array([(1 + (each >= s - 1e-4).sum()) / 1501 for s in scores])
              for each, scores in ((null, asked[order]), (shifted, own[order]))]  # fmt: skip
    p = np.maximum(*pooled)
    kept = max((r for r in range(26) if r and p[r - 1] <= 0.1 * r / 25), default=0)
    expected = int((np.maximum(*best) <= 0.1).sum()) if kind == "any" else kept
    assert 0 < expected < 25 and sum(each.match for each in judged) == expected


def test_a_sentence_that_says_more_than_phrases_do_is_no_answer_by_that():
    # Nothing is answered. Phrases move scores by 0.5 to 1.2, questions by 1.2: their best stand out among the phrases'.
    random = np.random.default_rng(4)
    shown, raw, rounds = 0, 0, 400
    for _ in range(rounds):
        null = random.normal(size=(30, 80)) * random.uniform(0.5, 1.2, 80)
        asked = 1.2 * random.normal(size=30)
        best = [int(asked.argmax())], [asked.max()]
        phrases = bank(null, promised=False)
        shown += phrases.judge(Rule("any", 0.1), *best, asked.astype(np.float32))[0].match
        raw += bank(null).judge(Rule("any", 0.1), *best)[0].match
    assert shown / rounds <= 0.1 + 4 * (0.1 * 0.9 / rounds) ** 0.5 < raw / rounds


def test_a_few_clips_of_a_large_collection_tell_the_spread():
    random = np.random.default_rng(5)
    large = bank(random.normal(size=(900, 20)), promised=False)
    assert len(set(large.sample.tolist())) == 512 and max(large.sample) < 900
    assert large.sample.tolist() == bank(random.normal(size=(900, 20)), promised=False).sample.tolist()
    for n in (1, 2):  # folders too small to have a spread
        few = bank(random.normal(size=(n, 20)), promised=False)
        asked = np.zeros(n, np.float32)
        assert 0 < few.judge(Rule("any", 0.1), [0], [0.0], asked)[0].chance <= 1


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
    labels = ["cat", "dog", "tree", "car", "hat", "cup", "boat", "house", "kite", "ball", "bird", "horse"]
    first = anchor_phrases(labels)
    assert first == anchor_phrases(labels) and len(set(first.texts)) == len(first.texts) == 400
    assert all(len(set(text.split(", "))) == 6 for text in first.texts) and not first.promised
    assert "not guaranteed" in first.says
    assert sorted(anchor_phrases(["a", "b"]).texts) == ["a", "b"] and not anchor_phrases([]).texts
    few = anchor_phrases(labels[:5]).texts
    assert len(few) == 20 and all(len(text.split(", ")) == 2 for text in few), "not all of them in each"


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
