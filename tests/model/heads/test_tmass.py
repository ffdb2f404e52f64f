import numpy as np
import pytest
import torch
import torch.nn.functional as F

from calmctl.errors import BadInput
from calmctl.model.heads.tmass import TMassHead
from calmctl.model.heads.xpool import XPoolHead


def features(n_texts, n_videos, n_frames, dim=16, seed=0):
    torch.manual_seed(seed)
    return torch.randn(n_texts, dim).double(), torch.randn(n_videos, n_frames, dim).double()


@torch.no_grad()
def independent_scores(head, texts, frames):
    """Scores [N_t, N_v] with fresh noise for every pair and trial: pairs do not share their luck."""
    generator = torch.Generator().manual_seed(0)
    pooled = head.eval().pooling(texts, frames)  # scoring never drops anything out
    scores = texts.new_empty(len(texts), len(frames))
    for video, its_frames in enumerate(frames):
        radii = head.radius(texts, its_frames.expand(len(texts), -1, -1))
        trials = [texts]
        if head.trials:
            noise = [head.noise.sample(*texts.shape, generator=generator).to(texts) for _ in range(head.trials)]
            trials = [texts + each * radii for each in noise]
        scores[:, video] = torch.stack([F.cosine_similarity(each, pooled[video], dim=-1) for each in trials]).amax(0)
    return scores


def test_parameter_count():
    assert sum(p.numel() for p in TMassHead(512, 12).parameters()) == 1_316_352 + 6_656


@pytest.mark.parametrize("noise", ["uniform", "normal"])
@pytest.mark.parametrize("paired", [[2, 0, 1], [2, 0, 0, 1, 2], [1]])
def test_training_similarities_are_the_formula(formulas, trained, noise, paired):
    """The loss text by text: one sample each, moved by the radius of its own video, and the support."""
    head = trained(TMassHead(16, 5, noise=noise, noise_std=0.4, support_weight=0.8).double()).eval()
    texts, frames = features(len(paired), 3, 5)
    torch.manual_seed(11)
    draw = torch.rand_like if noise == "uniform" else lambda x: 0.4 * torch.randn_like(x)
    eps = draw(texts).numpy()
    torch.manual_seed(11)
    task, support = head.similarities(texts, frames, torch.tensor(paired))
    assert [(s.name, s.weight) for s in (task, support)] == [("task", 1.0), ("support", 0.8)]

    t, f = texts.numpy(), frames.numpy()
    pooled = [[formulas.pool(head.pooling, text, video) for text in t] for video in f]
    for i, own in enumerate(paired):
        radius = formulas.radius(head.radius, t[i], f[own])
        mean = np.mean(pooled[own], axis=0)
        direction = (mean - t[i]) / np.sqrt(((mean - t[i]) ** 2).sum())
        for j in range(3):
            sampled = formulas.cos(t[i] + eps[i] * radius, pooled[j][i])
            supported = formulas.cos(t[i] + direction * radius, pooled[j][i])
            assert task.matrix[i, j].item() == pytest.approx(sampled, abs=1e-12)
            assert support.matrix[i, j].item() == pytest.approx(supported, abs=1e-12)


def test_support_is_left_out_at_weight_zero():
    texts, frames = features(3, 3, 4)
    (only,) = TMassHead(16, 4, support_weight=0).similarities(texts, frames, torch.arange(3))
    assert only.name == "task"


@pytest.mark.parametrize("heads", [1, 4])
@pytest.mark.parametrize("noise", ["uniform", "normal"])
def test_score_is_the_best_trial_of_the_shared_bank(formulas, trained, noise, heads):
    head = TMassHead(16, 5, heads, noise=noise, noise_std=0.7, trials=6, noise_seed=3)
    head = trained(head.double(), step=0.2)
    texts, frames = features(7, 4, 5)
    bank = head.noise_bank().numpy()
    assert bank.shape == (6, 16)
    scores = head.score(texts, head.video_table(frames))
    for i, text in enumerate(texts.numpy()):
        for j, video in enumerate(frames.numpy()):
            pooled = formulas.pool(head.pooling, text, video)
            radius = formulas.radius(head.radius, text, video)
            best = max(formulas.cos(text + eps * radius, pooled) for eps in bank)
            assert scores[i, j].item() == pytest.approx(best, abs=1e-12)


def test_float32_agrees_with_float64_at_full_size(trained):
    head = trained(TMassHead(512, 12), step=0.02)
    torch.manual_seed(0)
    texts = 0.4 * torch.randn(40, 512)
    frames = 0.4 * (torch.randn(20, 1, 512) + 0.5 * torch.randn(20, 12, 512))
    single = head.score(texts, head.video_table(frames))
    assert single.dtype == torch.float32
    double = head.double().score(texts, head.video_table(frames))
    assert double.dtype == torch.float64
    assert (single - double).abs().max() < 2e-6


def test_without_trials_the_text_itself_is_scored_as_in_xpool(trained):
    head = trained(TMassHead(16, 4, trials=0).double())
    xpool = XPoolHead(16).double()
    xpool.pooling.load_state_dict(head.pooling.state_dict())
    texts, frames = features(5, 3, 4)
    expected = xpool.score(texts, xpool.video_table(frames))
    torch.testing.assert_close(head.score(texts, head.video_table(frames)), expected, rtol=0, atol=0)
    torch.testing.assert_close(independent_scores(head, texts, frames), expected)


def test_noise_bank_depends_on_its_seed_alone():
    head = TMassHead(16, 4, trials=3, noise_seed=5)
    torch.manual_seed(0)
    bank = head.noise_bank()
    torch.rand(7)
    assert torch.equal(bank, head.noise_bank())
    assert torch.equal(bank.double(), TMassHead(16, 4, trials=3, noise_seed=5).double().noise_bank())
    assert not torch.equal(bank, TMassHead(16, 4, trials=3, noise_seed=6).noise_bank())


def test_scoring_leaves_the_default_generator_alone():
    head = TMassHead(16, 4)
    texts, frames = features(3, 3, 4)
    torch.manual_seed(9)
    expected = torch.rand(4)
    torch.manual_seed(9)
    head.score(texts, head.video_table(frames))
    assert torch.equal(torch.rand(4), expected)


def test_independent_noise_has_the_same_law(trained):
    """Over many seeds, one pair's score has the same mean and spread with shared and with fresh noise."""
    head = trained(TMassHead(16, 4, trials=4).double())
    texts, frames = features(1, 1, 4)
    shared = []
    for seed in range(600):
        head.noise_seed = seed
        shared.append(head.score(texts, head.video_table(frames)).item())
    fresh = independent_scores(head, texts.expand(600, -1), frames).flatten().numpy()
    assert len(np.unique(fresh)) == 600
    error = np.sqrt((np.var(shared) + np.var(fresh)) / 600)
    assert abs(np.mean(shared) - np.mean(fresh)) < 4 * error
    assert np.std(shared) == pytest.approx(np.std(fresh), rel=0.15)


def test_a_batch_of_one_behaves():
    head = TMassHead(16, 4)
    texts, frames = features(1, 1, 4)
    for each in head.similarities(texts, frames, torch.zeros(1, dtype=torch.long)):
        assert each.matrix.shape == (1, 1) and each.matrix.isfinite().all()
    assert head.score(texts, head.video_table(frames)).shape == (1, 1)


def test_gradients_reach_every_parameter():
    torch.manual_seed(4)
    head = TMassHead(16, 4)
    texts, frames = torch.randn(3, 16, requires_grad=True), torch.randn(3, 4, 16, requires_grad=True)
    sum(s.matrix.square().sum() for s in head.similarities(texts, frames, torch.arange(3))).backward()
    assert texts.grad.isfinite().all() and frames.grad.isfinite().all()
    for name, parameter in head.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        assert name == "pooling.key.bias" or parameter.grad.abs().max() > 1e-7, name


def test_another_number_of_frames_is_refused():
    head = TMassHead(16, 4)
    for call in (head.video_table, lambda frames: head.similarities(torch.randn(2, 16), frames, torch.arange(2))):
        with pytest.raises(BadInput, match="built for 4 frames a video and was given 5"):
            call(torch.randn(2, 5, 16))
