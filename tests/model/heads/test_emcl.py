import numpy as np
import pytest
import torch

from calmctl.model.heads.emcl import EMCLHead, expectation_maximisation
from calmctl.model.heads.meanp import FrameTransformer

DIM, FRAMES = 16, 5


def make(start="released", rebuild="shares", **keys):
    torch.manual_seed(0)
    head = EMCLHead(FrameTransformer(DIM, FRAMES, 1, heads=2), bases=6, steps=9, start=start, rebuild=rebuild, **keys)
    return head.double()


def features(n_texts, n_videos, seed=1):
    torch.manual_seed(seed)
    return torch.randn(n_texts, DIM).double(), torch.randn(n_videos, FRAMES, DIM).double()


def softmax(x, axis=-1):
    e = np.exp(x - x.max(axis, keepdims=True))
    return e / e.sum(axis, keepdims=True)


def em_by_hand(rows, mu, steps, rebuild="shares"):
    """The reconstruction as written, [n, D], with n-vectors as bases: no operator."""
    for _ in range(steps):
        z = softmax(rows.T @ mu)
        columns = z / (1e-6 + z.sum(0))
        mu = rows @ columns
        mu = mu / (1e-6 + np.sqrt((mu**2).sum(0)))
    return mu @ (columns if rebuild == "released" else z).T, mu


def cos(a, b):
    return a @ b / np.sqrt((a @ a) * (b @ b))


def pooled_by_hand(head, texts, frames):
    seen = head.temporal(frames).detach().numpy()
    weights = [[softmax(video @ text / 3) for text in texts.numpy()] for video in seen]
    return np.array([[w @ video for w in row] for row, video in zip(weights, seen, strict=True)])  # [B_v, B_t, D]


@pytest.mark.parametrize("start", ["released", "gaussian"])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("rebuild", ["released", "shares"])
def test_training_similarities_are_the_formula(start, training, rebuild, trained):
    head = trained(make(start, rebuild)).train(training)
    texts, frames = features(4, 3)
    signs = head.basis_signs.clone()
    torch.manual_seed(7)
    (only,) = head.similarities(texts, frames, torch.zeros(4, dtype=torch.long))
    assert (only.name, only.weight) == ("task", 1.0)

    pooled = pooled_by_hand(head, texts, frames)
    rows = np.concatenate([pooled.reshape(-1, DIM), texts.numpy()])
    torch.manual_seed(7)
    mu = signs.expand(len(rows), -1).numpy()
    if start == "gaussian":
        drawn = torch.randn(len(rows), 6, dtype=torch.float64).numpy()
        mu = drawn / np.sqrt((drawn**2).sum(0))
    rebuilt, mu = em_by_hand(rows, mu, 9, rebuild)
    moved = rows + 3 * rebuilt
    moved_pooled, moved_texts = moved[:12].reshape(3, 4, DIM), moved[12:]
    expected = [[cos(moved_texts[t], moved_pooled[v, t]) for v in range(3)] for t in range(4)]
    np.testing.assert_allclose(only.matrix.detach().numpy(), expected, atol=1e-10)
    updated = 0.9 * signs.numpy() + 0.1 * mu.mean(0) if training and start == "released" else signs.numpy()
    np.testing.assert_allclose(head.basis_signs.numpy(), updated, atol=1e-10)


@pytest.mark.parametrize("rebuild", ["released", "shares"])
def test_the_operator_is_the_reconstruction(rebuild):
    rows, _ = features(40, 1)
    start = torch.randn(40, 6).double()
    operator, bases = expectation_maximisation(rows, start, 9, rebuild)
    rebuilt, mu = em_by_hand(rows.numpy(), start.numpy(), 9, rebuild)
    np.testing.assert_allclose((rows @ operator).numpy(), rebuilt, atol=1e-12)
    np.testing.assert_allclose(bases.numpy(), mu, atol=1e-12)
    assert torch.linalg.matrix_rank(operator) <= 6


def test_released_bases_start_alike_but_for_their_signs():
    assert make().basis_signs.abs().sub(1).abs().max() < 1e-3
    rows, _ = features(300, 1)
    rank = [torch.linalg.matrix_rank(expectation_maximisation(rows, start, 9)[0], rtol=1e-3)
            for start in (torch.tensor([[1.0, -1, 1, -1, 1, -1]]).double(), torch.randn(300, 6).double())]  # fmt: skip
    assert rank[0] <= 2 < rank[1]


def test_the_start_is_the_references():
    """Entries x / (1e-6 + |x|) with x of N(0, 2/K)."""
    torch.manual_seed(0)
    head = EMCLHead(FrameTransformer(DIM, FRAMES, 1, heads=2), bases=8000).double()
    torch.manual_seed(0)
    FrameTransformer(DIM, FRAMES, 1, heads=2)  # what is drawn before
    drawn = torch.randn(1, 8000) * np.sqrt(2 / 8000)
    assert drawn.std().item() == pytest.approx(np.sqrt(2 / 8000), rel=0.03)
    torch.testing.assert_close(head.basis_signs, (drawn / (1e-6 + drawn.abs())).double(), rtol=0, atol=1e-7)


def test_what_is_added_is_as_long_as_measured():
    """Of length 10.5, D = 512, K = 32, 32 pairs: 0.13 as released, 16 times that with shares (docs/science.md)."""
    torch.manual_seed(0)
    rows = (torch.randn(32 * 32 + 32, 512) * 10.5 / 512**0.5).double()
    texts = rows[-32:]
    signs = torch.where(torch.randn(1, 32) > 0, 1.0, -1.0).double()
    added = {
        rebuild: (3 * texts @ expectation_maximisation(rows, signs, 9, rebuild)[0]).norm(dim=1).mean().item()
        for rebuild in ("released", "shares")
    }
    assert added["released"] < 0.2
    assert added["shares"] / added["released"] == pytest.approx(16, rel=0.1)


def test_another_order_of_the_batch_changes_rounding_alone():
    head = make(rebuild="released").eval()
    texts, frames = features(6, 6)
    order = torch.tensor([3, 1, 5, 0, 4, 2])
    whole = head.similarities(texts, frames, torch.arange(6))[0].matrix
    other = head.similarities(texts[order], frames[order], torch.arange(6))[0].matrix
    torch.testing.assert_close(other, whole[order][:, order], rtol=0, atol=1e-9)  # float64; in float32 see science.md


def test_scores_use_the_running_mean_of_training_batches_alone(trained):
    head = trained(make()).train()
    operators = []
    for seed in (1, 2):
        texts, frames = features(4, 3, seed)
        pooled = pooled_by_hand(head, texts, frames)
        rows = torch.from_numpy(np.concatenate([pooled.reshape(-1, DIM), texts.numpy()]))
        operators.append(expectation_maximisation(rows, head.basis_signs, 9, "shares")[0].numpy())
        head.similarities(texts, frames, torch.zeros(4, dtype=torch.long))
    operator = 0.9 * operators[0] + 0.1 * operators[1]
    np.testing.assert_allclose(head.operator.numpy(), operator, atol=1e-12)

    head.eval()
    texts, frames = features(7, 4, 3)
    pooled = pooled_by_hand(head, texts, frames)
    moved_texts, moved = texts.numpy() @ (np.eye(DIM) + 3 * operator), pooled @ (np.eye(DIM) + 3 * operator)
    expected = [[cos(moved_texts[t], moved[v, t]) for v in range(4)] for t in range(7)]
    scores = head.score(texts, head.video_table(frames))
    np.testing.assert_allclose(scores.numpy(), expected, atol=1e-12)
    # One pair scored alone: nothing else that is scored plays a part, and scoring changes no weight.
    alone = head.score(texts[5:6], head.video_table(frames[2:3]))
    np.testing.assert_allclose(alone.item(), expected[5][2], atol=1e-12)
    np.testing.assert_allclose(head.operator.numpy(), operator, atol=0)


def test_many_pairs_are_scored_in_blocks(monkeypatch, trained):
    from calmctl.model.heads import emcl

    head = trained(make("gaussian")).train()
    head.similarities(*features(4, 3), torch.zeros(4, dtype=torch.long))
    texts, frames = features(9, 11, 5)
    whole = head.score(texts, head.video_table(frames))
    monkeypatch.setattr(emcl, "_PAIRS_PER_BLOCK", 12)
    torch.testing.assert_close(head.score(texts, head.video_table(frames)), whole, rtol=0, atol=1e-13)


def test_before_any_training_nothing_is_moved():
    head = make()
    texts, frames = features(3, 2)
    pooled = pooled_by_hand(head, texts, frames)
    expected = [[cos(text, video[t]) for video in pooled] for t, text in enumerate(texts.numpy())]
    np.testing.assert_allclose(head.score(texts, head.video_table(frames)).numpy(), expected, atol=1e-12)


def test_the_reconstruction_carries_no_gradient(trained):
    """The gradient is that of the cosines with the reconstruction as a constant."""
    head = trained(make()).eval()
    texts, frames = features(3, 3)
    texts.requires_grad_()
    head.similarities(texts, frames, torch.arange(3))[0].matrix.sum().backward()
    given = texts.grad.clone()

    pooled = (torch.einsum("vfd,td->vtf", head.temporal(frames), texts) / 3).softmax(-1) @ head.temporal(frames)
    rows = torch.cat([pooled.flatten(0, 1), texts]).detach()
    extra = 3 * torch.from_numpy(em_by_hand(rows.numpy(), head.basis_signs.expand(len(rows), -1).numpy(), 9)[0])
    moved_pooled, moved_texts = pooled + extra[:9].view(3, 3, DIM), texts + extra[9:]
    texts.grad = None
    torch.cosine_similarity(moved_texts, moved_pooled, dim=-1).sum().backward()
    torch.testing.assert_close(given, texts.grad, rtol=1e-6, atol=1e-9)


def test_buffers_are_part_of_the_weights():
    head = make().train()
    head.similarities(*features(4, 3), torch.zeros(4, dtype=torch.long))
    again = make()
    again.load_state_dict(head.state_dict())
    texts, frames = features(3, 2, 9)
    assert torch.equal(again.score(texts, again.video_table(frames)), head.score(texts, head.video_table(frames)))
    assert not head.rows_are_independent
