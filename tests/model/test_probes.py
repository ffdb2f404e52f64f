"""Probed scores against the exact ones in float64, which are tested against the dense form elsewhere."""

import pytest
import torch

from calmctl.model.heads.base import ProbedHead
from calmctl.model.heads.meanp import MeanPoolHead
from calmctl.model.heads.xpool import XPoolHead


def trained_like(dim: int, heads: int) -> XPoolHead:
    torch.manual_seed(heads)
    head = XPoolHead(dim, heads).double().eval()
    with torch.no_grad():
        for parameter in head.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    return head


@pytest.mark.parametrize(("heads", "frames", "texts", "videos"), [(1, 12, 5, 7), (1, 1, 1, 3), (4, 5, 3, 2)])
def test_probed_scores_are_the_heads_scores(heads: int, frames: int, texts: int, videos: int) -> None:
    head = trained_like(32, heads)
    t = torch.randn(texts, 32, dtype=torch.float64) + 0.5
    f = torch.randn(videos, frames, 32, dtype=torch.float64) - 0.3
    expected = head.score(t, head.video_table(f))
    probes = head.text_probes(t)
    dots = torch.einsum("tpd,vfd->tpvf", probes.directions, f)
    assert torch.allclose(head.score_probed(probes, dots, head.probe_table(f)), expected, atol=1e-12, rtol=0)
    in_32 = head.float()
    probes = in_32.text_probes(t.float())
    dots = torch.einsum("tpd,vfd->tpvf", probes.directions, f.float())
    assert torch.allclose(in_32.score_probed(probes, dots, in_32.probe_table(f.float())).double(), expected, atol=2e-6)


def test_a_table_of_probes_is_smaller_than_the_frames() -> None:
    table = XPoolHead(512).probe_table(torch.randn(2, 12, 512))
    assert sum(part[0].numel() for part in table.values()) < 12 * 512 / 10


def test_only_heads_that_have_probes_say_so() -> None:
    assert isinstance(XPoolHead(8), ProbedHead) and not isinstance(MeanPoolHead(), ProbedHead)
