import numpy as np
import pytest
import torch
import torch.nn.functional as F

from calmctl.explain.score import anchor_directions, project_out, score_pair, split_score
from calmctl.model.heads.emcl import EMCLHead
from calmctl.model.heads.meanp import FrameTransformer, MeanPoolHead, SeqLSTMHead, SeqTransfHead
from calmctl.model.heads.tmass import TMassHead
from calmctl.model.heads.uatvr import UATVRHead
from calmctl.model.heads.wti import TokenInteractionHead
from calmctl.model.heads.xpool import XPoolHead

DIM, FRAMES, ANCHORS = 16, 5, 7


def features(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, DIM, generator=torch.Generator().manual_seed(seed))


def shaken(head):
    """A head whose weights are no identities."""
    torch.manual_seed(3)
    for parameter in head.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    return head.eval()


def moving(head):
    """An EMCL head that has seen two batches."""
    for seed in (5, 6):
        head.train().similarities(features(seed, 4), features(seed + 2, 4, FRAMES), torch.arange(4))
    return head.eval()


def layers():
    return FrameTransformer(DIM, FRAMES, 1, heads=2)


HEADS = [
    MeanPoolHead(),
    shaken(XPoolHead(DIM)),
    shaken(XPoolHead(DIM, heads=2)),
    shaken(TMassHead(DIM, FRAMES, trials=8)),
    shaken(TMassHead(DIM, FRAMES, trials=0)),
    shaken(SeqLSTMHead(DIM)),
    shaken(SeqTransfHead(layers())),
    moving(shaken(EMCLHead(layers(), bases=4, start="gaussian"))),
    shaken(TokenInteractionHead(layers())),
    shaken(UATVRHead(layers(), 6)),
]
NAMES = ["meanp", "xpool", "xpool-2-heads", "t-mass", "t-mass-no-noise", "seqlstm", "seqtransf", "emcl", "wti", "uatvr"]


def text_for(head):
    """One text as the head reads it: of four words, and two rows of padding."""
    if head.reads == "sentences":
        return features(1)
    return torch.cat([features(1, 5), torch.zeros(2, DIM)])


@pytest.mark.parametrize("head", HEADS, ids=NAMES)
def test_the_explained_score_is_the_head_s_own(head):
    text, frames = text_for(head), features(2, FRAMES)
    pair = score_pair(head, text, frames)
    own = float(head.score(text[None], head.video_table(frames[None])))
    assert pair.score == pytest.approx(own, abs=2e-6)
    assert float(pair.shares @ (pair.text * pair.video).sum(-1)) == pytest.approx(pair.score, abs=1e-12)
    assert float(pair.weights.sum()) == pytest.approx(1, abs=1e-6)
    assert float(pair.shares.sum()) == pytest.approx(1, abs=1e-6)
    torch.testing.assert_close(pair.cosines, F.cosine_similarity(frames, features(1) if text.dim() == 1 else text[0]))


def test_attention_weights_against_the_formula():
    """w_f = softmax((Wk b_f + bk) . (Wq a + bq) / sqrt(D)), docs/science.md, The heads, head by head."""
    for head in HEADS[1:3]:
        pooling = head.pooling
        text, frames = features(1), features(2, FRAMES)
        a, b = pooling.input_norm(text), pooling.input_norm(frames)
        query = pooling.query(a).view(pooling.heads, -1)
        keys = pooling.key(b).view(FRAMES, pooling.heads, -1)
        logits = torch.einsum("fhe,he->hf", keys, query) * (DIM // pooling.heads) ** -0.5
        expected = logits.softmax(-1).mean(0).detach()
        torch.testing.assert_close(score_pair(head, text, frames).weights, expected, atol=1e-5, rtol=1e-4)


def test_an_unknown_head_is_refused():
    with pytest.raises(TypeError, match="no explanation"):
        score_pair(type("Odd", (torch.nn.Module,), {"name": "odd"})(), features(1), features(2, FRAMES))


def test_the_parts_add_up_to_the_score():
    directions = anchor_directions(features(4, ANCHORS))
    for head in HEADS:
        pair = score_pair(head, text_for(head), features(2, FRAMES))
        split = split_score(pair, directions)
        assert split.shared + float(split.anchors.sum()) + split.rest == pytest.approx(pair.score, abs=1e-12)
        if len(pair.shares) == 1:
            torch.testing.assert_close(split.anchors, split.text * split.video)
    # With as many directions as dimensions, nothing is left over: the anchors' parts are not only what is missing.
    for head in HEADS:
        pair = score_pair(head, text_for(head), features(2, FRAMES))
        assert split_score(pair, anchor_directions(features(4, 3 * DIM))).rest == pytest.approx(0, abs=1e-9)


def test_directions_are_the_nearest_orthonormal_ones():
    """Orthonormal, orthogonal to the shared direction, and closer to the anchors than any rotation of them."""
    found = anchor_directions(features(4, ANCHORS))
    own = found.own
    # The centred anchors add up to a multiple of nothing: their rank is one below their number.
    projector = own.T @ own
    np.testing.assert_allclose(projector @ projector, projector, atol=1e-9)
    assert float(torch.trace(projector)) == pytest.approx(ANCHORS - 1, abs=1e-9)
    np.testing.assert_allclose(own @ found.shared, 0, atol=1e-9)
    distance = (own - found.centred).norm()
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        small = 0.3 * torch.randn(ANCHORS, ANCHORS, generator=generator, dtype=torch.float64)
        rotation = torch.linalg.matrix_exp(small - small.T)
        assert (rotation @ own - found.centred).norm() >= distance - 1e-9


def test_directions_survive_anchors_that_are_the_same():
    anchors = features(4, ANCHORS)
    anchors[1] = anchors[0]
    found = anchor_directions(anchors)
    torch.testing.assert_close(found.own[0], found.own[1])
    assert torch.isfinite(found.own).all()


def test_project_out_leaves_nothing_along_the_anchors():
    anchors, frames = features(4, 3), features(2, FRAMES)
    left = project_out(frames, anchors)
    assert float((left @ F.normalize(anchors, dim=-1).T).abs().max()) < 1e-5
    torch.testing.assert_close(project_out(left, anchors), left, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(project_out(frames, anchors[[0, 0]]), project_out(frames, anchors[:1]))
