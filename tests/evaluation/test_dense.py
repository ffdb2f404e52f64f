import pytest
import torch
import torch.nn.functional as F

from calmctl.evaluation.retrieval import score_dense
from calmctl.model.heads.tmass import TMassHead
from calmctl.model.heads.xpool import XPoolHead


@pytest.mark.parametrize("chunks", [(2, 3), (100, 100)])
@pytest.mark.parametrize("trials", [None, 0, 3])
def test_pair_by_pair(trials, chunks):
    torch.manual_seed(0)
    head = XPoolHead(8, dropout=0.5) if trials is None else TMassHead(8, 4, dropout=0.5, trials=trials)
    head = head.double()
    texts, frames = torch.randn(5, 8).double(), torch.randn(7, 4, 8).double()
    assert head.training
    scores = score_dense(head, texts, frames, text_chunk=chunks[0], video_chunk=chunks[1])
    assert head.training  # and dropout stayed out of it
    head.eval()
    with torch.no_grad():
        for i, text in enumerate(texts):
            for j, video in enumerate(frames):
                pooled = head.pooling(text[None], video[None])[0, 0]
                moved = text[None]
                if trials:
                    moved = text + head.noise_bank() * head.radius(text[None], video[None])
                best = F.cosine_similarity(moved, pooled, dim=-1).max()
                torch.testing.assert_close(scores[i, j], best, rtol=0, atol=1e-12)
