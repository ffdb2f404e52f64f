"""Whether a confidence knows when an answer is wrong: plain statistics, without torch.

Everywhere `confidence` [N] is any number that grows with trust, `correct` [N] lies in [0, 1], and equal
confidences count as the average over all their orders.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Doubles = NDArray[np.float64]
Integers = NDArray[np.int64]

LEVEL = 0.95
_REPLICATES = 1000
_FOLDS = 5
_BINS = 10


@dataclass(frozen=True, slots=True)
class RiskCoverage:
    """Answering only the most trusted share of the queries.

    Attributes:
        coverage: Shares answered, 1/N to 1, [N].
        risk: The share of errors among those answered, [N] (El-Yaniv and Wiener, JMLR 2010).
        area: Its mean over all coverages; the lower the better. A confidence that knows nothing gets the
            error rate.
        best: The area of a confidence that puts every error last.
    """

    coverage: Doubles
    risk: Doubles
    area: float
    best: float


@dataclass(frozen=True, slots=True)
class Reliability:
    """Probabilities against what happened.

    Attributes:
        predicted: Mean predicted probability of each bin, ascending, [bins].
        observed: Share of correct answers of each bin.
        counts: Queries of each bin.
        error: Expected calibration error: the mean distance of the two, weighted by the counts.
    """

    predicted: Doubles
    observed: Doubles
    counts: Integers
    error: float


def risk_coverage(confidence: Doubles, correct: Doubles) -> RiskCoverage:
    """The risk-coverage curve and its area."""
    errors = _averaged_over_ties(confidence, 1.0 - correct)
    order = np.argsort(-confidence, kind="stable")
    counts = np.arange(1, len(errors) + 1)
    risk = np.cumsum(errors[order]) / counts
    best = np.cumsum(np.sort(1.0 - correct)) / counts
    return RiskCoverage(counts / len(errors), risk, float(risk.mean()), float(best.mean()))


def separation(confidence: Doubles, correct: Doubles) -> float | None:
    """AUROC: how often a right answer is trusted more than a wrong one, 0.5 is chance; None without both kinds.

    A query that is right with weight w counts as w right ones and 1 - w wrong ones.
    """
    right, wrong = float(correct.sum()), float((1.0 - correct).sum())
    if right == 0 or wrong == 0:
        return None
    values, place = np.unique(confidence, return_inverse=True)
    right_at = np.bincount(place, weights=correct, minlength=len(values))
    wrong_at = np.bincount(place, weights=1.0 - correct, minlength=len(values))
    below = np.cumsum(wrong_at) - wrong_at
    return float((right_at * (below + 0.5 * wrong_at)).sum() / (right * wrong))


def separation_interval(
    confidence: Doubles, correct: Doubles, clips: Integers, *, seed: int = 0
) -> tuple[float, float] | None:
    """Percentile bootstrap interval of `separation`; the queries of one clip are resampled together."""
    _, cluster = np.unique(clips, return_inverse=True)
    members = [np.flatnonzero(cluster == c) for c in range(cluster.max() + 1)]
    random = np.random.default_rng(seed)
    drawn = []
    for _ in range(_REPLICATES):
        rows = np.concatenate([members[c] for c in random.integers(len(members), size=len(members))])
        found = separation(confidence[rows], correct[rows])
        if found is not None:
            drawn.append(found)
    if len(drawn) < _REPLICATES / 2:  # nearly all right, or nearly all wrong: nothing to tell apart
        return None
    low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def calibrated(confidence: Doubles, correct: Doubles, clips: Integers, *, seed: int = 0) -> Doubles:
    """Probabilities of being right, [N], by isotonic regression on the other folds.

    Clips are dealt into folds, and each fold is predicted from the others: a map fitted to the queries that
    judge it would look calibrated whatever it was given.
    """
    names = np.unique(clips)
    folds = min(_FOLDS, len(names))
    if folds < 2:
        return np.full(len(correct), correct.mean())
    dealt = dict(zip(names, np.random.default_rng(seed).permutation(len(names)) % folds, strict=True))
    fold = np.array([dealt[clip] for clip in clips])
    found = np.empty(len(correct))
    for each in range(folds):
        here = fold == each
        levels, values = isotonic(confidence[~here], correct[~here])
        found[here] = np.interp(confidence[here], levels, values)
    return found


def isotonic(x: Doubles, y: Doubles) -> tuple[Doubles, Doubles]:
    """The non-decreasing function of x nearest to y in squares: its values at the distinct x, ascending.

    Pool adjacent violators (Ayer et al., 1955).
    """
    levels, place = np.unique(x, return_inverse=True)
    weights = np.bincount(place).astype(float)
    means = np.bincount(place, weights=y) / weights
    blocks: list[list[float]] = []  # value, weight, how many levels
    for mean, weight in zip(means, weights, strict=True):
        blocks.append([mean, weight, 1])
        while len(blocks) > 1 and blocks[-2][0] > blocks[-1][0]:
            value, heavy, many = blocks.pop()
            last = blocks[-1]
            last[0] = (last[0] * last[1] + value * heavy) / (last[1] + heavy)
            last[1] += heavy
            last[2] += many
    return levels, np.repeat([b[0] for b in blocks], [int(b[2]) for b in blocks])


def reliability(probability: Doubles, correct: Doubles) -> Reliability:
    """The reliability diagram of probabilities in [0, 1], in bins of equal width."""
    where = np.minimum((probability * _BINS).astype(int), _BINS - 1)
    counts = np.bincount(where, minlength=_BINS)
    used = counts > 0
    predicted = np.bincount(where, weights=probability, minlength=_BINS)[used] / counts[used]
    observed = np.bincount(where, weights=correct, minlength=_BINS)[used] / counts[used]
    error = float((counts[used] * np.abs(predicted - observed)).sum() / len(correct))
    return Reliability(predicted, observed, counts[used].astype(np.int64), error)


def _averaged_over_ties(confidence: Doubles, values: Doubles) -> Doubles:
    _, place = np.unique(confidence, return_inverse=True)
    means = np.bincount(place, weights=values) / np.bincount(place)
    return np.asarray(means[place], dtype=np.float64)
