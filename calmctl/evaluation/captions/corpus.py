"""BLEU, ROUGE-L and CIDEr by pycocoevalcap's own scorers, with what a bootstrap over clips needs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Doubles = NDArray[np.float64]
_MAX_N = 4
N_BLEU_COUNTS = 2 + 2 * _MAX_N


@dataclass(frozen=True, slots=True)
class Bleu:
    """Corpus BLEU.

    Attributes:
        scores: BLEU-1 to BLEU-4.
        segments: The same of each segment, [N, 4].
        counts: What corpus BLEU is made of, [N, 10]: length, closest reference length, n-grams that match for
            n = 1..4, n-grams for n = 1..4.
    """

    scores: tuple[float, float, float, float]
    segments: Doubles
    counts: Doubles


def bleu(hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> Bleu:
    """BLEU with the closest reference length, from tokens with blanks between."""
    from pycocoevalcap.bleu.bleu_scorer import BleuScorer

    # The class Bleu around this one prints to stdout and keeps the counts to itself.
    scorer = BleuScorer(n=_MAX_N)
    for hypothesis, captions in zip(hypotheses, references, strict=True):
        scorer += (hypothesis, list(captions))
    (bleu1, bleu2, bleu3, bleu4), segments = scorer.compute_score(option="closest", verbose=0)
    counts = []
    for each in scorer.ctest:
        length = each["testlen"]
        _, closest = min((abs(reference - length), reference) for reference in each["reflen"])
        counts.append([length, closest, *each["correct"], *each["guess"]])
    return Bleu((bleu1, bleu2, bleu3, bleu4), np.array(segments).T, np.array(counts, dtype=np.float64))


def bleu_of_counts(counts: Doubles) -> Doubles:
    """BLEU-1 to BLEU-4 [R, 4] of sums of `Bleu.counts` [R, 10].

    Papineni et al., BLEU (ACL 2002), with the small constants that pycocoevalcap adds against 0 / 0.
    """
    length, closest = counts[:, 0], counts[:, 1]
    matches, ngrams = counts[:, 2 : 2 + _MAX_N], counts[:, 2 + _MAX_N :]
    precisions = np.cumprod((matches + 1e-15) / (ngrams + 1e-9), axis=1)
    ratio = (length + 1e-15) / (closest + 1e-9)
    brevity = np.exp(np.minimum(0.0, 1.0 - 1.0 / ratio))
    return np.asarray(precisions ** (1.0 / np.arange(1, _MAX_N + 1)) * brevity[:, None])


def rouge_l(hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> Doubles:
    """ROUGE-L (beta 1.2) of each segment, [N]; the score of all is their mean."""
    from pycocoevalcap.rouge.rouge import Rouge

    return np.asarray(Rouge().compute_score(*_by_number(hypotheses, references))[1], dtype=np.float64)


def cider(hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> Doubles:
    """CIDEr (CIDEr-D: n = 4, sigma 6, document frequencies from these references) of each segment, [N].

    The score of all is their mean; 10 would be the highest possible.
    """
    from pycocoevalcap.cider.cider import Cider

    return np.asarray(Cider().compute_score(*_by_number(hypotheses, references))[1], dtype=np.float64)


def _by_number(
    hypotheses: Sequence[str], references: Sequence[Sequence[str]]
) -> tuple[dict[int, list[str]], dict[int, list[str]]]:
    return dict(enumerate(map(list, references))), {number: [each] for number, each in enumerate(hypotheses)}
