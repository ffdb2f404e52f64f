import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.rouge.rouge import Rouge

from calmctl.captions import files as corpus

SENTENCES = st.lists(st.sampled_from(["a", "man", "dog", "is", "riding", "bike"]), max_size=8).map(" ".join)
PAIRS = st.lists(st.tuples(SENTENCES, st.lists(SENTENCES, min_size=1, max_size=3)), min_size=1, max_size=5).filter(
    lambda pairs: any(line for _, captions in pairs for line in captions)  # Cider fails where no reference has a word
)


def grams(line: str, n: int) -> Counter[tuple[str, ...]]:
    words = line.split()
    return Counter(tuple(words[start : start + n]) for start in range(len(words) - n + 1))


def plain_bleu(hypotheses: list[str], references: list[list[str]], max_n: int) -> float:
    """Papineni et al. 2002, equation by equation, where nothing is 0 / 0."""
    logs = 0.0
    for n in range(1, max_n + 1):
        clipped = sum(
            min(count, max(grams(each, n)[gram] for each in captions))
            for line, captions in zip(hypotheses, references, strict=True)
            for gram, count in grams(line, n).items()
        )
        logs += math.log(clipped / sum(sum(grams(line, n).values()) for line in hypotheses)) / max_n
    length = sum(len(line.split()) for line in hypotheses)
    closest = sum(
        min((abs(len(each.split()) - len(line.split())), len(each.split())) for each in captions)[1]
        for line, captions in zip(hypotheses, references, strict=True)
    )
    return math.exp(logs) * min(1.0, math.exp(1 - closest / length))


def test_bleu_is_papinenis() -> None:
    hypotheses = ["a man is riding a bike on the road", "the dog runs on the grass there"]
    references = [
        ["a man is riding a red bike", "a man is on a bike on the road"],
        ["the dog runs on grass", "a dog runs"],
    ]
    found = corpus.bleu(hypotheses, references)
    assert found.scores == pytest.approx([plain_bleu(hypotheses, references, n) for n in range(1, 5)], rel=1e-7)
    assert found.scores[3] > 0.3


@given(PAIRS)
def test_scores_are_those_of_pycocoevalcap(pairs: list[tuple[str, list[str]]]) -> None:
    hypotheses, references = [list(each) for each in zip(*pairs, strict=True)]
    asked = dict(enumerate(references)), {number: [each] for number, each in enumerate(hypotheses)}
    bleu = corpus.bleu(hypotheses, references)
    theirs_all, theirs = Bleu(4).compute_score(*asked, verbose=0)
    assert list(bleu.scores) == theirs_all
    assert bleu.segments.T.tolist() == theirs
    rouge_all, rouge = Rouge().compute_score(*asked)
    assert corpus.rouge_l(hypotheses, references).tolist() == rouge.tolist()
    assert corpus.rouge_l(hypotheses, references).mean() == rouge_all
    cider_all, cider = Cider().compute_score(*asked)
    assert corpus.cider(hypotheses, references).tolist() == cider.tolist()
    assert corpus.cider(hypotheses, references).mean() == cider_all


@given(PAIRS)
def test_bleu_is_made_of_its_counts(pairs: list[tuple[str, list[str]]]) -> None:
    hypotheses, references = [list(each) for each in zip(*pairs, strict=True)]
    found = corpus.bleu(hypotheses, references)
    assert found.counts.shape == (len(pairs), corpus.N_BLEU_COUNTS)
    of_all = corpus.bleu_of_counts(found.counts.sum(axis=0, keepdims=True))
    np.testing.assert_allclose(of_all[0], found.scores, rtol=1e-9, atol=1e-15)
    np.testing.assert_allclose(corpus.bleu_of_counts(found.counts), found.segments, rtol=1e-9, atol=1e-15)


def test_nothing_is_printed(capfd: pytest.CaptureFixture[str]) -> None:
    corpus.bleu(["a dog"], [["a dog"]])
    corpus.rouge_l(["a dog"], [["a dog"]])
    corpus.cider(["a dog"], [["a dog"]])
    assert capfd.readouterr() == ("", "")
