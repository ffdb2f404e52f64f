"""The modality gap against transcriptions of its definitions, pair by pair."""

import itertools
import math

import numpy as np
import pytest
import torch

from calmctl.errors import BadInput
from calmctl.evaluation.gap import (
    PENALTY,
    divergences,
    fit_logistic,
    measure_gap,
    modality_accuracy,
    one_sentence_per_clip,
)
from calmctl.source.encoding import EncodedSplit

N, D, K = 24, 5, 7


def features(seed: int = 0, shift: float = 0.0) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    texts, videos = (torch.randn(N, D, generator=generator, dtype=torch.float64) for _ in range(2))
    log_s, log_v = (torch.randn(N, K, generator=generator, dtype=torch.float64).log_softmax(1) for _ in range(2))
    return texts, texts * 0.5 + videos + shift, log_s, log_v


def test_every_number_against_its_definition() -> None:
    texts, videos, log_s, log_v = features()
    gap = measure_gap(texts, videos, log_s, log_v)
    t = [[x / math.dist(row, [0] * D) for x in row] for row in texts.tolist()]
    v = [[x / math.dist(row, [0] * D) for x in row] for row in videos.tolist()]
    centroids = [[sum(row[d] for row in rows) / N for d in range(D)] for rows in (t, v)]
    assert gap.centroid_distance.value == pytest.approx(math.dist(*centroids))
    assert gap.alignment.value == pytest.approx(sum(math.dist(a, b) ** 2 for a, b in zip(t, v, strict=True)) / N)
    for rows, found in ((t, gap.uniformity_texts), (v, gap.uniformity_videos)):
        pairs = [math.exp(-2 * math.dist(a, b) ** 2) for a, b in itertools.permutations(rows, 2)]
        assert found.value == pytest.approx(math.log(sum(pairs) / len(pairs)))
    kl = [
        [sum(math.exp(s) * (s - w) for s, w in zip(ls, lv, strict=True)) for lv in log_v.tolist()]
        for ls in log_s.tolist()
    ]
    assert divergences(log_s, log_v).tolist() == [pytest.approx(row) for row in kl]
    assert gap.divergence_matched.value == pytest.approx(sum(kl[i][i] for i in range(N)) / N)
    others = [kl[i][j] for i in range(N) for j in range(N) if i != j]
    assert gap.divergence_unmatched.value == pytest.approx(sum(others) / len(others))
    assert (gap.n_clips, gap.n_anchors) == (N, K)


def test_intervals_are_those_of_resampled_clips() -> None:
    """A slow bootstrap that copies clips, and leaves out pairs of a clip with its own copy."""
    texts, videos, log_s, log_v = features()
    gap = measure_gap(texts, videos, log_s, log_v, seed=3)
    t, v = (torch.nn.functional.normalize(each, dim=1).numpy() for each in (texts, videos))
    counts = np.random.default_rng(3).multinomial(N, np.full(N, 1 / N), size=1000)
    distance, uniformity = [], []
    for count in counts:
        clips = np.repeat(np.arange(N), count)
        distance.append(np.linalg.norm(t[clips].mean(0) - v[clips].mean(0)))
        squared = ((t[clips][:, None] - t[clips][None]) ** 2).sum(-1)
        different = clips[:, None] != clips[None]
        uniformity.append(np.log(np.exp(-2 * squared)[different].mean()))
    for values, found in ((distance, gap.centroid_distance), (uniformity, gap.uniformity_texts)):
        low, high = np.quantile(values, [0.025, 0.975])
        assert (found.interval.low, found.interval.high) == (pytest.approx(low), pytest.approx(high))


def test_the_classifier_is_where_newtons_method_ends() -> None:
    texts, videos, *_ = features(shift=0.4)
    both = np.hstack([torch.cat([texts, videos]).numpy(), np.ones((2 * N, 1))])
    target = np.array([1.0] * N + [0.0] * N)
    ridge = PENALTY * np.diag([1.0] * D + [0.0])
    weights = np.zeros(D + 1)
    for _ in range(50):
        probability = 1 / (1 + np.exp(-both @ weights))
        gradient = both.T @ (probability - target) / (2 * N) + ridge @ weights
        hessian = (both.T * (probability * (1 - probability))) @ both / (2 * N) + ridge
        weights = weights - np.linalg.solve(hessian, gradient)
    assert np.abs(gradient).max() < 1e-12
    assert fit_logistic(torch.cat([texts, videos]), N).numpy() == pytest.approx(weights, abs=1e-6)


def test_separability_is_held_out() -> None:
    apart = features(shift=50.0)
    assert float(modality_accuracy(*apart[:2]).mean()) == 1.0
    generator = torch.Generator().manual_seed(1)
    # Many dimensions, few clips: a classifier judged by what it was fitted on would be right every time.
    noise = [torch.randn(40, 200, generator=generator, dtype=torch.float64) for _ in range(2)]
    told = modality_accuracy(*noise)
    assert 0.3 < float(told.mean()) < 0.7
    fitted = fit_logistic(torch.cat(noise), 40)
    assert (torch.cat([noise[0], torch.ones(40, 1)], 1) @ fitted > 0).all()


def test_sides_that_are_the_same_are_told_by_tossing_a_coin() -> None:
    texts = features()[0]
    assert modality_accuracy(texts, texts).tolist() == [0.5] * N


def test_a_rotation_of_both_changes_nothing() -> None:
    texts, videos, log_s, log_v = features(shift=0.3)
    rotation = torch.linalg.qr(torch.randn(D, D, generator=torch.Generator().manual_seed(2), dtype=torch.float64))[0]
    before = measure_gap(texts, videos, log_s, log_v).to_json()
    after = measure_gap(texts @ rotation, videos @ rotation, log_s, log_v).to_json()
    for name, value in before.items():
        assert after[name] == pytest.approx(value, abs=1e-6), name


def test_one_sentence_a_clip_takes_the_first_and_skips_clips_without() -> None:
    owners = np.array([*range(3, 14), 3, 0])
    texts = torch.arange(13.0)[:, None].expand(13, D)
    encoded = EncodedSplit(texts, torch.zeros(15, 2, D), owners, tuple(map(str, range(15))), ("x",) * 13)
    videos = torch.arange(15.0)[:, None].expand(15, D)
    chosen, clips = one_sentence_per_clip(encoded, texts, videos)
    assert clips[:, 0].tolist() == [0, *range(3, 14)]
    assert chosen[:, 0].tolist() == [12, *range(11)]
    few = EncodedSplit(texts[:9], torch.zeros(15, 2, D), np.arange(9), tuple(map(str, range(15))), ("x",) * 9)
    with pytest.raises(BadInput, match="at least 10"):
        one_sentence_per_clip(few, texts[:9], videos)
