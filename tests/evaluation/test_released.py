import pytest
import torch

from calmctl.errors import BadInput
from calmctl.evaluation.retrieval import score_all, score_tmass_released
from calmctl.model.heads.tmass import TMassHead


def problem(n, dim=16, frames=4, trials=5, seed=0):
    torch.manual_seed(seed)
    head = TMassHead(dim, frames, trials=trials).double()
    with torch.no_grad():
        for parameter in head.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    return head.eval(), torch.randn(n, dim).double(), torch.randn(n, frames, dim).double()


@pytest.mark.parametrize("trials", [0, 1, 5])
def test_formula(trials):
    """docs/protocols.md, written as the released code proceeds: choose the trial, then pool with the owner."""
    head, texts, frames = problem(9, trials=trials)
    owners = torch.tensor([4, 0, 8, 1, 7, 3, 2, 6, 5])
    found = score_tmass_released(head, texts, frames, owners)
    cos = torch.nn.functional.cosine_similarity
    with torch.no_grad():
        for o in range(9):
            for i in range(9):
                cloud = texts[o] + head.noise_bank() * head.radius(texts[o : o + 1], frames[i : i + 1])
                right = head.pooling(texts[o : o + 1], frames[i : i + 1])[0, 0]
                chosen = cloud[cos(cloud, right, dim=-1).argmax()]
                owned = texts[owners == i]
                leaked = head.pooling(owned, frames[i : i + 1])[0, 0]
                torch.testing.assert_close(found[o, i], cos(chosen, leaked, dim=0), rtol=0, atol=1e-12)


def test_more_videos_than_one_block():
    head, texts, frames = problem(150)
    owners = torch.randperm(150)
    whole = score_tmass_released(head, texts, frames, owners)
    correct = score_all(head, texts, frames)
    own = (torch.arange(150), owners)
    torch.testing.assert_close(whole[own], correct[own])  # on true pairs both agree
    assert (whole - correct).abs().max() > 0.05


def test_it_follows_the_ground_truth_it_is_told():
    head, texts, frames = problem(6)
    first = score_tmass_released(head, texts, frames, torch.arange(6))
    other = score_tmass_released(head, texts, frames, torch.tensor([1, 0, 2, 3, 4, 5]))
    changed = (first - other).abs().amax(0) > 1e-6
    assert changed.tolist() == [True, True, False, False, False, False]


def test_it_finds_what_is_not_there():
    """Untrained weights and random features: nothing to retrieve, and the released protocol retrieves it."""
    torch.manual_seed(0)
    n = 300
    head, texts, frames = TMassHead(64, 12), torch.randn(n, 64), torch.randn(n, 12, 64)
    truth = torch.arange(n)
    honest = (score_all(head, texts, frames).argmax(1) == truth).float().mean()
    released = (score_tmass_released(head, texts, frames, truth).argmax(1) == truth).float().mean()
    assert honest < 0.02 < 0.10 < released


@pytest.mark.parametrize(
    ("n_texts", "n_videos", "owners"), [(4, 3, [0, 1, 2, 0]), (3, 4, [0, 1, 2]), (3, 3, [0, 0, 2]), (2, 2, [1, 2])]
)
def test_refused_without_exactly_one_caption_a_video(n_texts, n_videos, owners):
    head, texts, frames = problem(5)
    with pytest.raises(BadInput, match=f"here {n_texts} texts meet {n_videos} videos"):
        score_tmass_released(head, texts[:n_texts], frames[:n_videos], torch.tensor(owners))
