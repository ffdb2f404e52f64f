"""Calibration, failures and coverage: what is said of a whole split."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from calmctl.anchors.distribution import anchor_log_probabilities
from calmctl.errors import VocabularyError
from calmctl.evaluation.metrics import rank_queries
from calmctl.evaluation.retrieval import score_split
from calmctl.explain import calibration
from calmctl.explain.calibration import calibrate, confidences
from calmctl.explain.collection import find_failures
from calmctl.explain.coverage import coverage, needed, suggested_vocabulary

CPU = torch.device("cpu")


def test_confidences_are_those_of_the_clip_that_came_first(explainer, collection):
    encoded = collection.encoded
    scores = score_split(explainer.model, encoded)
    found = confidences(explainer, encoded.texts, encoded.frames, scores)
    assert list(found) == ["score margin", "posterior", "reconstruction", "anchor divergence"]
    best = scores[0].argmax()
    first, second = np.sort(scores[0])[::-1][:2]
    assert found["score margin"][0] == pytest.approx(float(first - second))
    with torch.no_grad():
        posterior = explainer.vae.posterior(explainer.log_v(encoded.frames[best])[None])
        log_s, log_hat = explainer.log_s(encoded.texts[0]), explainer.vae.decode(posterior.mean)[0]
    q = torch.distributions.Normal(posterior.mean, (0.5 * posterior.logvar).exp())
    prior = torch.distributions.Normal(torch.tensor(0.0), torch.tensor(1.0))
    assert found["posterior"][0] == pytest.approx(float((prior.entropy() - q.entropy()).sum()), abs=1e-3)
    expected = -float((log_s.exp() * (log_s - log_hat)).sum())
    assert found["reconstruction"][0] == pytest.approx(expected, abs=1e-5)


def test_calibration_of_a_tiny_split_says_that_it_is_tiny(explainer, collection):
    found = calibrate(explainer, collection)
    assert found.queries == len(collection.encoded.captions) and "too few" in found.conclusion
    assert {signal.verdict for signal in found.signals} == {"too few queries to tell"}
    json.dumps(found.to_json(), allow_nan=False)


def made_up(monkeypatch, explainer, collection, posterior, margin):
    """A calibration of 120 queries whose confidences and answers are given."""
    encoded = collection.encoded
    random = np.random.default_rng(0)
    correct = random.random(120) < 0.6
    scores = np.zeros((120, 2), np.float32)
    scores[np.arange(120), np.where(correct, 0, 1)] = 1
    many = replace(
        encoded,
        texts=encoded.texts[:1].expand(120, -1),
        owners=np.zeros(120, dtype=np.int64),
        captions=tuple(f"caption {i}" for i in range(120)),
        frames=encoded.frames[:2],
        ids=encoded.ids[:2],
    )
    # Each query on a clip of its own, for the resampling.
    found = {"score margin": margin(correct, random), "posterior": posterior(correct, random)}
    monkeypatch.setattr(calibration, "collection_scores", lambda *_: scores)
    monkeypatch.setattr(calibration, "confidences", lambda *_: found)
    interval = calibration.separation_interval
    monkeypatch.setattr(
        calibration, "separation_interval", lambda confidence, right, clips: interval(confidence, right, np.arange(120))
    )
    return calibrate(explainer, replace(collection, encoded=many))


def knows(correct, random):
    return correct + 0.5 * random.normal(size=len(correct))


def guesses(correct, random):
    return random.normal(size=len(correct))


def test_a_posterior_that_knows_errors_is_said_to(monkeypatch, explainer, collection):
    found = made_up(monkeypatch, explainer, collection, knows, guesses)
    assert [signal.verdict for signal in found.signals] == ["does not predict errors", "predicts errors"]
    assert "predicts errors (AUROC 0.9" in found.conclusion and "better than the plain score margin" in found.conclusion


def test_a_posterior_that_guesses_is_said_to(monkeypatch, explainer, collection):
    found = made_up(monkeypatch, explainer, collection, guesses, knows)
    assert "uncertainty does not predict errors here" in found.conclusion
    assert found.conclusion.endswith("the plain score margin predicts them.")


def test_a_posterior_that_is_surest_when_wrong_is_said_to(monkeypatch, explainer, collection):
    found = made_up(monkeypatch, explainer, collection, lambda *a: -knows(*a), guesses)
    assert "runs against errors here" in found.conclusion


def test_failures_against_the_evaluation(explainer, collection):
    encoded = collection.encoded
    scores = score_split(explainer.model, encoded)
    ranks = rank_queries(scores, encoded.owners).ranks()
    found = find_failures(explainer, collection, 3)
    assert found.failed == int((ranks > 1).sum()) and len(found.worst) == min(3, found.failed)
    assert [each.rank for each in found.worst] == sorted(ranks[ranks > 1], reverse=True)[:3]
    for each in found.worst:
        query = encoded.captions.index(each.query)
        own = int(encoded.owners[query])
        assert each.right.clip == encoded.ids[own] and each.query in [c for c in encoded.captions]
        others = np.delete(np.arange(scores.shape[1]), own)
        confusing = others[scores[query, others].argmax()]
        assert each.confusing.clip == encoded.ids[confusing]
        assert each.confusing.score >= each.right.score
    json.dumps(found.to_json(), allow_nan=False)


def test_the_lead_is_the_sum_of_its_parts(explainer, collection):
    from calmctl.explain import collection as failures

    everything = replace(explainer)
    found = [f for f in find_failures(everything, collection, 9).worst]
    assert found
    # With as many pulls as anchors the parts add up to the lead.
    original, failures._PULLS = failures._PULLS, len(explainer.vocabulary)
    try:
        for each in find_failures(everything, collection, 9).worst:
            lead = each.confusing.score - each.right.score
            assert sum(p.value for p in each.pulled) + each.shared + each.rest == pytest.approx(lead, abs=1e-5)
    finally:
        failures._PULLS = original


def test_needed_is_the_fewest_that_hold_the_share():
    p = torch.tensor([[0.5, 0.3, 0.15, 0.05], [0.95, 0.05, 0.0, 0.0], [0.25, 0.25, 0.25, 0.25]])
    assert needed(p).int().tolist() == [[1, 1, 1, 0], [1, 0, 0, 0], [1, 1, 1, 1]]


def test_coverage_finds_unused_and_twin_anchors(explainer, collection):
    """A world where anchor 0 is everything, anchor 1 is its double and the others are never near."""
    encoded = collection.encoded
    dim = encoded.texts.shape[-1]
    generator = torch.Generator().manual_seed(0)
    base = torch.zeros(dim)
    base[0] = 1.0
    texts = base + 0.3 * torch.randn(40, dim, generator=generator) / dim**0.5
    frames = base + 0.3 * torch.randn(40, 2, dim, generator=generator) / dim**0.5
    anchors = -torch.nn.functional.normalize(base + torch.randn(5, dim, generator=generator) / dim**0.5, dim=-1)
    anchors[0] = base
    anchors[1] = base + 1e-4 * torch.randn(dim, generator=generator)
    world = replace(
        collection,
        encoded=replace(
            encoded,
            texts=texts,
            frames=frames,
            owners=np.arange(40),
            ids=tuple(map(str, range(40))),
            captions=("x",) * 40,
        ),
    )
    found = coverage(replace(explainer, anchors=anchors), world)
    labels = explainer.vocabulary.texts
    assert found.never == labels[2:]
    assert {found.twins[0].kept, found.twins[0].dropped} == set(labels[:2])
    assert len(found.suggested) == 1 and found.kept_mass == pytest.approx(0.5, abs=0.05)
    mass = anchor_log_probabilities(texts, anchors, explainer.temperature).exp().mean(0)
    by_label = {use.label: use for use in found.anchors}
    assert by_label[labels[0]].text_mass == pytest.approx(float(mass[0]), abs=1e-6)
    assert sum(use.video_mass for use in found.anchors) == pytest.approx(1)
    assert found.effective == pytest.approx(2, abs=0.05)
    with pytest.raises(VocabularyError, match="only 1 anchor"):
        suggested_vocabulary(found, explainer.vocabulary)


def test_the_suggestion_is_a_vocabulary(explainer, collection):
    own = explainer.vocabulary
    found = replace(coverage(explainer, collection), suggested=(own.labels[0].id, own.labels[3].id))
    vocabulary = suggested_vocabulary(found, own)
    assert vocabulary.texts == (own.texts[0], own.texts[3]) and vocabulary.prompt == own.prompt
    assert vocabulary.name == f"{own.name}-demo" and "2 of 5 labels" in vocabulary.note
