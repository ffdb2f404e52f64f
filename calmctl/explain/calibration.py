"""Whether a confidence knows when an answer is wrong: plain statistics, without torch.

Everywhere `confidence` [N] is any number that grows with trust, `correct` [N] lies in [0, 1], and equal
confidences count as the average over all their orders.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from calmctl.anchors.distribution import kl_divergence
from calmctl.evaluation.metrics import rank_queries
from calmctl.evaluation.statistics import REPLICATES, percentiles, resampled_rows
from calmctl.explain.collection import Collection, collection_scores
from calmctl.explain.explainer import Explainer
from calmctl.model.vae import CrossModalVAE

Doubles = NDArray[np.float64]
Integers = NDArray[np.int64]

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
        error: Expected calibration error: the mean distance of the two, weighted by the counts.
    """

    predicted: Doubles
    observed: Doubles
    counts: Integers
    error: float


def risk_coverage(confidence: Doubles, correct: Doubles) -> RiskCoverage:
    """The risk-coverage curve and its area."""
    # Equals share their errors: no order among them makes a curve look better.
    errors = _averaged_over_ties(confidence, 1.0 - correct)
    order = np.argsort(-confidence, kind="stable")
    counts = np.arange(1, len(errors) + 1)
    risk = np.cumsum(errors[order]) / counts
    # What a confidence that knows all would have with these answers: an area is read between this and the error rate.
    best = np.cumsum(np.sort(1.0 - correct)) / counts
    return RiskCoverage(counts / len(errors), risk, float(risk.mean()), float(best.mean()))


def separation(confidence: Doubles, correct: Doubles) -> float | None:
    """AUROC: how often a right answer is trusted more than a wrong one, 0.5 is chance; None without both kinds.

    A query that is right with weight w counts as w right ones and 1 - w wrong ones.
    """
    right, wrong = float(correct.sum()), float((1.0 - correct).sum())
    # One kind alone has no pair to compare.
    if right == 0 or wrong == 0:
        return None
    values, place = np.unique(confidence, return_inverse=True)
    right_at = np.bincount(place, weights=correct, minlength=len(values))
    wrong_at = np.bincount(place, weights=1.0 - correct, minlength=len(values))
    # Equal confidences count half, as if the order among them were tossed.
    below = np.cumsum(wrong_at) - wrong_at
    return float((right_at * (below + 0.5 * wrong_at)).sum() / (right * wrong))


def separation_interval(confidence: Doubles, correct: Doubles, clips: Integers) -> tuple[float, float] | None:
    """Percentile bootstrap interval of `separation`; the queries of one clip are resampled together."""
    resampled = (separation(confidence[rows], correct[rows]) for rows in resampled_rows(clips))
    drawn = [auroc for auroc in resampled if auroc is not None]
    if len(drawn) < REPLICATES / 2:  # nearly all right, or nearly all wrong: nothing to tell apart
        return None
    interval = percentiles(np.array(drawn))
    return interval.low, interval.high


def calibrated(confidence: Doubles, correct: Doubles, clips: Integers) -> Doubles:
    """Probabilities of being right, [N], by isotonic regression on the other folds.

    Clips are dealt into folds, and each fold is predicted from the others: a map fitted to the queries that
    judge it would look calibrated whatever it was given.
    """
    names = np.unique(clips)
    folds = min(_FOLDS, len(names))
    if folds < 2:
        return np.full(len(correct), correct.mean())
    # Clips are dealt, not queries: the sentences of one clip succeed and fail together.
    dealt = dict(zip(names, np.random.default_rng(0).permutation(len(names)) % folds, strict=True))
    fold = np.array([dealt[clip] for clip in clips])
    probabilities = np.empty(len(correct))
    for number in range(folds):
        here = fold == number
        levels, values = isotonic(confidence[~here], correct[~here])
        probabilities[here] = np.interp(confidence[here], levels, values)
    return probabilities


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
    # A probability of 1 belongs to the last bin.
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


# Can it be trusted: the posterior's uncertainty as a confidence, against plain alternatives.


FEWEST_QUERIES = 30
_CLIPS_PER_BATCH = 4096

SIGNALS = {
    # The plain alternative stands first: what a VAE adds is what it adds to this.
    "score margin": "the best clip's score minus the second best's",
    "posterior": "minus the entropy of q(z | V_p) of the best clip: the VAE's certainty",
    "reconstruction": "minus KL(S_p || S_hat) of the best clip: how well the VAE foretells the sentence",
    "anchor divergence": "minus KL(S_p || V_p) of the best clip: the anchors without the VAE",
}


@dataclass(frozen=True, slots=True)
class Signal:
    """One candidate for a confidence.

    Attributes:
        name: A key of `SIGNALS`.
        separation: AUROC of right against wrong answers; None where all are right or all wrong.
        interval: Its 95 % interval, clips resampled.
        risk_coverage: The curve and its area.
        reliability: Of the probabilities that isotonic regression makes of it, cross-fitted over clips.
    """

    name: str
    separation: float | None
    interval: tuple[float, float] | None
    risk_coverage: RiskCoverage
    reliability: Reliability
    verdict: str


@dataclass(frozen=True, slots=True)
class Calibration:
    """How far a run's confidences know its errors, on one split.

    Attributes:
        queries, clips: How many sentences searched how many clips.
        accuracy: R@1, in [0, 1].
        signals: The candidates, the plain one first.
        conclusion: One sentence for a person.
        caveats: What must be said of these numbers, beside that the split may be no test split.
    """

    run: str
    dataset: str
    split: str
    queries: int
    clips: int
    accuracy: float
    signals: tuple[Signal, ...]
    conclusion: str
    caveats: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        plain: dict[str, Any] = _plain(asdict(self))
        return plain


def calibrate(explainer: Explainer, collection: Collection) -> Calibration:
    """Search the collection with each of its captions and see which confidence knows the errors."""
    encoded = collection.encoded
    scores = collection_scores(explainer, encoded.texts, encoded.frames)
    # Between 0 and 1 where scores tie, so all that follows takes shares of right and wrong.
    correct = rank_queries(scores, encoded.owners).recall(1)
    confidences_of = confidences(explainer, encoded.texts, encoded.frames, scores)
    signals = tuple(_signal(name, each, correct, encoded.owners) for name, each in confidences_of.items())
    return Calibration(
        run=explainer.name,
        dataset=collection.dataset,
        split=collection.split,
        queries=len(correct),
        clips=scores.shape[1],
        accuracy=float(correct.mean()),
        signals=signals,
        conclusion=_conclusion(signals, len(correct)),
        caveats=collection.caveats,
    )


@torch.inference_mode()
def confidences(explainer: Explainer, texts: Tensor, frames: Tensor, scores: np.ndarray) -> dict[str, Doubles]:
    """Every signal of `SIGNALS` that the explainer has, for each text [N_t], the higher the surer."""
    # Of the clip that is answered, right or wrong: a confidence that needs the right one is none.
    best = torch.from_numpy(scores.argmax(axis=1))
    top = np.sort(scores, axis=1)[:, -2:]
    margin = top[:, 1] - top[:, 0] if scores.shape[1] > 1 else np.zeros(len(scores))
    log_s, log_v = explainer.log_s(texts), explainer.log_v(frames)
    by_signal = {"score margin": margin.astype(np.float64)}
    if explainer.vae is not None:
        log_hat, posterior_entropy = _vae_outputs(explainer.vae, log_v)
        # It depends on the clip alone and not on the sentence, so nothing in the mathematics says that it should know
        # which sentences fail. Whether it does is measured (docs/explain.md).
        by_signal["posterior"] = -posterior_entropy[best].double().numpy()
        by_signal["reconstruction"] = -kl_divergence(log_s, log_hat[best]).double().numpy()
    by_signal["anchor divergence"] = -kl_divergence(log_s, log_v[best]).double().numpy()
    return by_signal


def _vae_outputs(vae: CrossModalVAE, log_v: Tensor) -> tuple[Tensor, Tensor]:
    """log S_hat [N, K] at the posterior's mean and the posterior's entropy relative to the prior's [N]."""
    device = next(vae.parameters()).device
    hats, entropies = [], []
    for chunk in torch.split(log_v, _CLIPS_PER_BATCH):
        posterior = vae.posterior(chunk.to(device))
        hats.append(vae.decode(posterior.mean).cpu())
        entropies.append(0.5 * posterior.logvar.sum(-1).cpu())
    return torch.cat(hats), torch.cat(entropies)


def _signal(name: str, confidence: Doubles, correct: Doubles, clips: Integers) -> Signal:
    auroc = separation(confidence, correct)
    interval = separation_interval(confidence, correct, clips)
    return Signal(
        name=name,
        separation=auroc,
        interval=interval,
        risk_coverage=risk_coverage(confidence, correct),
        reliability=reliability(calibrated(confidence, correct, clips), correct),
        verdict=_verdict(interval, len(correct)),
    )


def _verdict(interval: tuple[float, float] | None, queries: int) -> str:
    if queries < FEWEST_QUERIES:
        return "too few queries to tell"
    if interval is None:
        return "nothing to tell apart"
    low, high = interval
    if high < 0.5:
        return "predicts errors the wrong way round"
    # An interval that holds 0.5 holds a coin, wherever its middle lies.
    return "predicts errors" if low > 0.5 else "does not predict errors"


def _conclusion(signals: tuple[Signal, ...], queries: int) -> str:
    by_name = {signal.name: signal for signal in signals}
    if queries < FEWEST_QUERIES:
        return f"{queries} queries are too few to tell whether any confidence predicts errors."
    if "posterior" not in by_name:
        return "There is no VAE here, and so no posterior whose uncertainty could be calibrated."
    ours, plain = by_name["posterior"], by_name["score margin"]
    if ours.interval is None or ours.separation is None or plain.separation is None:
        return "Nearly all answers are right, or nearly all wrong: there is nothing to tell apart."
    area, margin = ours.risk_coverage.area, plain.risk_coverage.area
    if ours.verdict != "predicts errors":
        way = "runs against errors here" if "wrong way" in ours.verdict else "does not predict errors here"
        beside = "predicts them" if plain.verdict == "predicts errors" else "is no better guide"
        return f"The posterior's uncertainty {way} (AUROC {ours.separation:z.2f}); the plain score margin {beside}."
    better = "better" if area < margin else "no better"
    return (
        f"The posterior's uncertainty predicts errors (AUROC {ours.separation:z.2f}), {better} than the plain score "
        f"margin (area under risk-coverage {area:z.3f} against {margin:z.3f})."
    )


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return value.tolist() if isinstance(value, np.ndarray) else value
