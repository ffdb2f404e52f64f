"""seqLSTM and seqTransf: the temporal layers have tests of their own (tests/model/test_temporal.py)."""

import numpy as np
import pytest
import torch

from calmctl.model.heads.meanp import FrameTransformer, MeanPoolHead, SeqLSTMHead, SeqTransfHead

HEADS = {
    "seqlstm": lambda: SeqLSTMHead(16),
    "seqtransf": lambda: SeqTransfHead(FrameTransformer(16, 5, 2, heads=2)),
}


@pytest.mark.parametrize("name", HEADS)
def test_both_forms_are_mean_pooling_of_what_the_layers_give(name, trained):
    torch.manual_seed(0)
    head = trained(HEADS[name]().double())
    assert head.name == name
    texts, frames = torch.randn(6, 16).double(), torch.randn(3, 5, 16).double()
    seen = head.temporal(frames).detach().numpy()
    expected = np.empty((6, 3))
    for t, text in enumerate(texts.numpy()):
        for v, video in enumerate(seen):
            mean = np.mean([frame / np.sqrt(frame @ frame) for frame in video], axis=0)
            expected[t, v] = text @ mean / np.sqrt((text @ text) * (mean @ mean))
    (only,) = head.similarities(texts, frames, torch.arange(6) % 3)
    assert (only.name, only.weight) == ("task", 1.0)
    np.testing.assert_allclose(only.matrix.detach().numpy(), expected, atol=1e-12)
    np.testing.assert_allclose(head.score(texts, head.video_table(frames)).numpy(), expected, atol=1e-12)


@pytest.mark.parametrize("name", HEADS)
def test_gradients_reach_every_parameter_and_scoring_keeps_no_graph(name):
    torch.manual_seed(1)
    head = HEADS[name]()
    texts, frames = torch.randn(3, 16, requires_grad=True), torch.randn(3, 5, 16, requires_grad=True)
    (only,) = head.similarities(texts, frames, torch.arange(3))
    only.matrix.square().sum().backward()
    assert texts.grad.abs().max() > 0 and frames.grad.abs().amax(dim=(0, 2)).min() > 0
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in head.parameters())
    table = head.video_table(frames)
    assert not head.score(texts, table).requires_grad and table["video"].shape == (3, 16)


@pytest.mark.parametrize("name", HEADS)
def test_autocast_changes_nothing(name, trained):
    torch.manual_seed(2)
    head, texts, frames = trained(HEADS[name]()), torch.randn(3, 16), torch.randn(2, 5, 16)
    (full,) = head.similarities(texts, frames, torch.tensor([0, 1, 1]))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        (mixed,) = head.similarities(texts, frames, torch.tensor([0, 1, 1]))
    assert torch.equal(full.matrix, mixed.matrix)


def test_only_heads_that_see_the_order_learn_it():
    """Two clips with the same frames in opposite orders, and a sentence each: meanP cannot tell them apart."""
    torch.manual_seed(3)
    forward = torch.randn(1, 5, 16)
    frames, texts = torch.cat([forward, forward.flip(1)]), torch.randn(2, 16)

    def loss_after_training(head):
        optimizer = torch.optim.Adam([*head.parameters(), texts.requires_grad_()], lr=1e-2)
        for _ in range(60):
            loss = torch.nn.functional.cross_entropy(
                20 * head.similarities(texts, frames, torch.arange(2))[0].matrix, torch.arange(2)
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return loss.item()

    assert loss_after_training(MeanPoolHead()) == pytest.approx(np.log(2), abs=1e-4)
    for make in HEADS.values():
        assert loss_after_training(make()) < 0.1
