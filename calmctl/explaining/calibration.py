"""Can it be trusted: the posterior's uncertainty as a confidence, against plain alternatives (issue 5, part 4)."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from calmctl.anchors.distribution import kl_divergence
from calmctl.evaluation.metrics import rank_queries
from calmctl.explaining.collection import Collection, collection_scores
from calmctl.explaining.explainer import Explainer
from calmctl.explaining.reliability import (
    Doubles,
    Integers,
    Reliability,
    RiskCoverage,
    calibrated,
    reliability,
    risk_coverage,
    separation,
    separation_interval,
)
from calmctl.model.vae import CrossModalVAE

FEWEST_QUERIES = 30
_CLIPS_PER_BATCH = 4096

SIGNALS = {
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
        verdict: In words.
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
        run: The run.
        dataset, split: What was searched.
        queries, clips: How many sentences searched how many clips.
        accuracy: R@1, in [0, 1].
        signals: The candidates, the plain one first.
        conclusion: One sentence for a person.
    """

    run: str
    dataset: str
    split: str
    queries: int
    clips: int
    accuracy: float
    signals: tuple[Signal, ...]
    conclusion: str

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        found: dict[str, Any] = _plain(asdict(self))
        return found


def calibrate(explainer: Explainer, collection: Collection) -> Calibration:
    """Search the collection with each of its captions and see which confidence knows the errors."""
    encoded = collection.encoded
    scores = collection_scores(explainer, encoded.texts, encoded.frames)
    correct = rank_queries(scores, encoded.owners).recall(1)
    found = confidences(explainer, encoded.texts, encoded.frames, scores)
    signals = tuple(_signal(name, each, correct, encoded.owners) for name, each in found.items())
    return Calibration(
        run=explainer.name,
        dataset=collection.dataset,
        split=collection.split,
        queries=len(correct),
        clips=scores.shape[1],
        accuracy=float(correct.mean()),
        signals=signals,
        conclusion=_conclusion(signals, len(correct)),
    )


@torch.inference_mode()
def confidences(explainer: Explainer, texts: Tensor, frames: Tensor, scores: np.ndarray) -> dict[str, Doubles]:
    """Every signal of `SIGNALS` that the explainer has, for each text [N_t], the higher the surer."""
    best = torch.from_numpy(scores.argmax(axis=1))
    top = np.sort(scores, axis=1)[:, -2:]
    margin = top[:, 1] - top[:, 0] if scores.shape[1] > 1 else np.zeros(len(scores))
    log_s, log_v = explainer.log_s(texts), explainer.log_v(frames)
    found = {"score margin": margin.astype(np.float64)}
    if explainer.vae is not None:
        log_hat, posterior_entropy = _through(explainer.vae, log_v)
        found["posterior"] = -posterior_entropy[best].double().numpy()
        found["reconstruction"] = -kl_divergence(log_s, log_hat[best]).double().numpy()
    found["anchor divergence"] = -kl_divergence(log_s, log_v[best]).double().numpy()
    return found


def _through(vae: CrossModalVAE, log_v: Tensor) -> tuple[Tensor, Tensor]:
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
