import numpy as np
import pytest
import torch

from calmctl.model.heads.xpool import XPoolHead


@pytest.mark.parametrize(("n_frames", "heads"), [(1, 1), (4, 1), (12, 2)])
def test_both_forms_are_the_formula(formulas, trained, n_frames, heads):
    torch.manual_seed(0)
    head = trained(XPoolHead(16, heads).double()).eval()
    texts, frames = torch.randn(5, 16).double(), torch.randn(3, n_frames, 16).double()
    expected = np.array(
        [[formulas.cos(t, formulas.pool(head.pooling, t, video)) for video in frames.numpy()] for t in texts.numpy()]
    )
    (only,) = head.similarities(texts, frames, torch.zeros(5, dtype=torch.long))
    assert (only.name, only.weight) == ("task", 1.0)
    np.testing.assert_allclose(only.matrix.detach().numpy(), expected, atol=1e-12)
    np.testing.assert_allclose(head.score(texts, head.video_table(frames)).numpy(), expected, atol=1e-12)


def test_training_mode_drops_out_in_training_only(trained):
    torch.manual_seed(1)
    head = trained(XPoolHead(16, dropout=0.5))
    texts, frames = torch.randn(3, 16), torch.randn(3, 4, 16)
    paired = torch.arange(3)
    first, second = (head.train().similarities(texts, frames, paired)[0].matrix for _ in range(2))
    assert not torch.equal(first, second)
    scores = head.score(texts, head.video_table(frames))
    torch.testing.assert_close(scores, head.eval().similarities(texts, frames, paired)[0].matrix.detach())


def test_the_weights_decide_the_type(trained):
    head = trained(XPoolHead(16))
    for features in (torch.bfloat16, torch.float32, torch.float64):
        texts, frames = torch.randn(2, 16).to(features), torch.randn(3, 4, 16).to(features)
        assert head.score(texts, head.video_table(frames)).dtype == torch.float32
    assert head.double().score(texts, head.video_table(frames)).dtype == torch.float64


def test_autocast_changes_nothing(trained):
    torch.manual_seed(2)
    head = trained(XPoolHead(32)).eval()
    texts, frames = torch.randn(3, 32), torch.randn(2, 4, 32)
    paired = torch.tensor([0, 1, 1])
    plain = head.score(texts, head.video_table(frames)), head.similarities(texts, frames, paired)[0].matrix
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = head.score(texts, head.video_table(frames)), head.similarities(texts, frames, paired)[0].matrix
    assert torch.equal(plain[0], mixed[0]) and torch.equal(plain[1], mixed[1])


def test_scoring_keeps_no_graph(trained):
    head = XPoolHead(8)
    table = head.video_table(torch.randn(2, 3, 8, requires_grad=True))
    assert not any(tensor.requires_grad for tensor in table.values())
    assert not head.score(torch.randn(2, 8, requires_grad=True), table).requires_grad
