import pytest
import torch
import torch.nn.functional as F

from calmctl.errors import BadInput
from calmctl.model.heads.pooling import TextConditionedPooling, pooled_cosines


@pytest.mark.parametrize("heads", [1, 8])
def test_parameter_count(heads):
    assert sum(p.numel() for p in TextConditionedPooling(512, heads).parameters()) == 1_316_352


@pytest.mark.parametrize(("n_texts", "n_videos", "n_frames", "heads"), [(5, 3, 12, 1), (2, 4, 1, 1), (3, 2, 5, 4)])
def test_forward_is_the_formula(formulas, trained, n_texts, n_videos, n_frames, heads):
    torch.manual_seed(1)
    pooling = trained(TextConditionedPooling(32, heads).double()).eval()
    texts, frames = torch.randn(n_texts, 32).double(), torch.randn(n_videos, n_frames, 32).double()
    pooled = pooling(texts, frames)
    assert pooled.shape == (n_videos, n_texts, 32)
    for v in range(n_videos):
        for t in range(n_texts):
            expected = torch.from_numpy(formulas.pool(pooling, texts[t].numpy(), frames[v].numpy()))
            torch.testing.assert_close(pooled[v, t], expected, rtol=0, atol=1e-12)


def test_identity_initialised_block():
    """At the start: with Wl = I and no dropout, LN3(2 LN2(softmax pooling of LN1))."""
    torch.manual_seed(2)
    texts, frames = torch.randn(4, 16).double(), torch.randn(3, 6, 16).double()
    a, b = F.layer_norm(texts, (16,)), F.layer_norm(frames, (16,))
    weights = torch.einsum("vfd,td->vtf", b, a).div(16**0.5).softmax(-1)
    expected = F.layer_norm(2 * F.layer_norm(weights @ b, (16,)), (16,))
    torch.testing.assert_close(TextConditionedPooling(16, dropout=0.0).double()(texts, frames), expected)


def test_dropout_acts_on_the_last_linear_branch_alone(formulas, trained):
    torch.manual_seed(3)
    pooling = trained(TextConditionedPooling(16, dropout=1.0).double()).train()
    text, frames = torch.randn(16).double(), torch.randn(4, 16).double()
    expected = formulas.pool(pooling, text.numpy(), frames.numpy(), linear_branch=False)
    torch.testing.assert_close(pooling(text[None], frames[None])[0, 0], torch.from_numpy(expected))


def test_frame_order_does_not_matter(trained):
    torch.manual_seed(4)
    pooling = trained(TextConditionedPooling(16).double()).eval()
    texts, frames = torch.randn(2, 16).double(), torch.randn(2, 5, 16).double()
    torch.testing.assert_close(pooling(texts, frames), pooling(texts, frames[:, [3, 1, 4, 0, 2]]))


def test_gradients_reach_every_parameter_and_both_inputs(trained):
    torch.manual_seed(5)
    pooling = trained(TextConditionedPooling(16, heads=2))
    texts, frames = torch.randn(3, 16, requires_grad=True), torch.randn(2, 4, 16, requires_grad=True)
    pooled_cosines(texts, pooling(texts, frames)).square().sum().backward()
    for name, parameter in [*pooling.named_parameters(), ("texts", texts), ("frames", frames)]:
        if name == "key.bias":  # adds the same to every frame's logit: the softmax cannot see it
            torch.testing.assert_close(parameter.grad, torch.zeros(16), rtol=0, atol=1e-6)
        else:
            assert parameter.grad.abs().max() > 1e-6, name


def test_heads_must_divide_the_width():
    with pytest.raises(BadInput, match="3 attention heads do not divide 16"):
        TextConditionedPooling(16, heads=3)


def test_pooled_cosines_are_cosines(formulas):
    torch.manual_seed(6)
    texts, pooled = torch.randn(3, 8).double(), torch.randn(2, 3, 8).double()
    found = pooled_cosines(texts, pooled)
    for t in range(3):
        for v in range(2):
            assert found[t, v].item() == pytest.approx(formulas.cos(texts[t].numpy(), pooled[v, t].numpy()), abs=1e-14)
