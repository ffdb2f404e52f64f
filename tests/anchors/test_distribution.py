import numpy as np
import torch

from calmctl.anchors.distribution import (
    AnchorBank,
    anchor_log_probabilities,
    entropy,
    kl_divergence,
    mean_frame_feature,
)


def test_distribution_against_a_transcription():
    rng = np.random.default_rng(0)
    features, anchors = rng.normal(size=(3, 8)), rng.normal(size=(5, 8))
    cosines = (features @ anchors.T) / np.outer(np.linalg.norm(features, axis=1), np.linalg.norm(anchors, axis=1))
    expected = np.exp(100 * cosines) / np.exp(100 * cosines).sum(1, keepdims=True)
    ours = anchor_log_probabilities(torch.from_numpy(features), torch.from_numpy(anchors), 100.0)
    np.testing.assert_allclose(ours.exp().numpy(), expected, rtol=1e-9)
    np.testing.assert_allclose(ours.exp().sum(-1).numpy(), 1)


def test_half_precision_inputs_are_computed_in_float32():
    features, anchors = torch.randn(3, 8).bfloat16(), torch.randn(5, 8).bfloat16()
    assert anchor_log_probabilities(features, anchors, 100.0).dtype == torch.float32
    assert mean_frame_feature(torch.randn(2, 3, 8).half()).dtype == torch.float32


def test_frame_means():
    frames = torch.randn(2, 3, 8, dtype=torch.float64)
    torch.testing.assert_close(mean_frame_feature(frames), frames.mean(1))
    unit = frames / frames.norm(dim=-1, keepdim=True)
    torch.testing.assert_close(mean_frame_feature(frames, "normalized"), unit.mean(1))


def test_entropy_and_divergence():
    uniform = torch.zeros(1, 4).log_softmax(-1)
    torch.testing.assert_close(entropy(uniform), torch.tensor([4.0]).log())
    assert kl_divergence(uniform, uniform).abs().max() == 0


def encoder(calls: list[int], weight: torch.Tensor):
    def encode(tokens: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        return tokens.float() @ weight

    return encode


def bank(mode: str, **keys) -> AnchorBank:
    return AnchorBank(torch.arange(6).view(3, 2), 4, encode=mode, **keys)


def test_encoding_modes():
    weight = torch.randn(2, 4, requires_grad=True)
    for mode, expected_calls, has_gradient in [
        ("gradient", 5, True),
        ("no-gradient", 5, False),
        ("refresh", 3, False),
        ("frozen", 1, False),
    ]:
        calls: list[int] = []
        anchors = bank(mode, refresh_every=2).train()
        for _ in range(5):
            prompts = anchors.prompts(encoder(calls, weight))
        assert (len(calls), prompts.requires_grad) == (expected_calls, has_gradient), mode


def test_evaluation_does_not_age_the_anchors():
    calls: list[int] = []
    anchors = bank("refresh", refresh_every=1).eval()
    for _ in range(4):
        anchors.prompts(encoder(calls, torch.ones(2, 4)))
    assert len(calls) == 1


def test_position_starts_small_or_at_zero():
    torch.manual_seed(0)
    big = AnchorBank(torch.zeros(157, 5, dtype=torch.long), 512)
    assert big.position.numel() == 80_384
    assert abs(float(big.position.detach().std()) - 0.02) < 5e-4
    assert float(bank("gradient", position_std=0.0).position.detach().abs().max()) == 0
