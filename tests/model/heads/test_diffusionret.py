"""DiffusionRet's second stage: what re-ranking may change and what not, and what its losses see."""

import math
from types import SimpleNamespace
from typing import get_args

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from calmctl.model.build import build_head
from calmctl.model.denoiser import frame_shares, judged_texts, judged_videos
from calmctl.model.heads.base import Reranker
from calmctl.model.heads.diffusionret import DiffusionRetHead
from calmctl.model.heads.meanp import FrameTransformer, MeanPoolHead, SeqTransfHead
from calmctl.model.heads.wti import TokenInteractionHead
from calmctl.recipe import recipe_from_dict
from calmctl.recipe.schema import FirstStage, HeadSection

DIM, FRAMES = 16, 3


def make(base=None, seed=5, **keys):
    keys = {"kind": "diffusionret", "candidates": 4, "diffusion_steps": 6, "sample_steps": 6, **keys}
    torch.manual_seed(0)
    head = DiffusionRetHead(base or MeanPoolHead(), DIM, HeadSection(**keys), seed).double().eval()
    with torch.no_grad():
        for parameter in (*head.t2v.parameters(), *head.v2t.parameters()):
            parameter.copy_(0.2 * torch.randn_like(parameter))
    return head


def features(n_texts=7, n_videos=11, seed=1):
    torch.manual_seed(seed)
    return torch.randn(n_texts, DIM).double(), torch.randn(n_videos, FRAMES, DIM).double()


def both(head, texts, frames):
    scores = head.score(texts, head.video_table(frames))
    return scores, head.rerank_videos(texts, frames, scores), head.rerank_texts(texts, frames, scores)


def test_parameters_are_the_published_ones():
    dim = 512
    wti = TokenInteractionHead(FrameTransformer(dim, 12, 4), hidden=2)
    assert sum(p.numel() for p in wti.parameters()) == 13_668_354
    head = DiffusionRetHead(wti, dim, HeadSection(kind="diffusionret"), 0)
    assert sum(p.numel() for p in head.parameters() if p.requires_grad) == 5_250_050
    assert isinstance(head, Reranker) and not isinstance(wti, Reranker) and head.reads == "words"


def test_a_queries_new_scores_are_the_walk_over_its_candidates():
    """Written again for one query at a time, from ranks, pooled frames and the denoiser's own walk."""
    head = make(samples=2, rerank_weight=0.7, rerank_temperature=1.5)
    texts, frames = features()
    scores, videos, found = both(head, texts, frames)
    for t, v in ((0, 0), (3, 7), (6, 10)):
        best = np.argsort(-scores[t].numpy(), kind="stable")[:4].copy()
        seen = torch.stack([(frames[j] @ texts[t]).softmax(0) @ frames[j] for j in best])
        ends = [
            head.t2v.sample(head.t2v.videos(texts[t][None], seen[None]), z[None], head.schedule, 6) for z in head.starts
        ]
        term = 0.7 * torch.stack([(1.5 * end[0]).softmax(0) for end in ends]).mean(0)
        torch.testing.assert_close(videos[t, best], scores[t, best] + term, rtol=0, atol=1e-12)

        best = np.argsort(-scores[:, v].numpy(), kind="stable")[:4].copy()
        seen = torch.stack([(frames[v] @ texts[j]).softmax(0) @ frames[v] for j in best])
        ends = [
            head.v2t.sample(head.v2t.texts(texts[best][None], seen[None]), z[None], head.schedule, 6)
            for z in head.starts
        ]
        term = 0.7 * torch.stack([(1.5 * end[0]).softmax(0) for end in ends]).mean(0)
        torch.testing.assert_close(found[best, v], scores[best, v] + term, rtol=0, atol=1e-12)


@pytest.mark.parametrize("samples", [0, 1, 3])
def test_only_the_candidates_change_and_stay_above_all_others(samples):
    head = make(samples=samples, rerank_weight=1.0)
    texts, frames = features()
    scores, videos, found = both(head, texts, frames)
    least, most = 1 / (1 + 3 * math.e**2), math.e**2 / (math.e**2 + 3)
    for before, after in ((scores, videos), (scores.T, found.T)):
        for row, new in zip(before, after, strict=True):
            best = row.argsort(descending=True)[:4]
            others = np.setdiff1d(np.arange(len(row)), best.numpy())
            term = (new - row)[best]
            assert torch.equal(new[others], row[others]) and new[best].min() > new[others].max()
            assert term.min() >= least - 1e-12 and term.max() <= most + 1e-12
            assert term.sum().item() == pytest.approx(1.0)


def test_no_query_sees_another_and_the_order_of_the_gallery_is_none():
    head = make(samples=0)
    texts, frames = features(40, 11)
    _, videos, found = both(head, texts, frames)
    rows, order = torch.tensor([33, 2, 17]), torch.randperm(11, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(both(head, texts[rows], frames)[1], videos[rows], rtol=0, atol=1e-12)
    torch.testing.assert_close(both(head, texts, frames[order])[1], videos[:, order], rtol=0, atol=1e-12)
    torch.testing.assert_close(both(head, texts, frames[order[:3]])[2], found[:, order[:3]], rtol=0, atol=1e-12)
    seeded = make(samples=1)
    torch.testing.assert_close(both(seeded, texts[rows], frames)[1], both(seeded, texts, frames)[1][rows])
    torch.manual_seed(9)  # the global generator plays no part, the seed does
    assert torch.equal(both(seeded, texts, frames)[1], both(seeded, texts, frames)[1])
    assert not torch.equal(both(make(seed=6), texts, frames)[1], both(seeded, texts, frames)[1])


def test_ties_go_by_the_gallery_and_few_candidates_are_all():
    head = make(samples=0)
    texts, frames = features(1, 6)
    scores = torch.tensor([[0.3, 0.5, 0.3, 0.5, 0.3, 0.3]]).double()
    changed = (head.rerank_videos(texts, frames, scores) != scores)[0]
    assert changed.tolist() == [True, True, True, True, False, False]
    texts, frames = features(1, 2)
    scores, videos, found = both(head, texts, frames)
    assert (videos - scores).sum().item() == pytest.approx(1) and (found - scores).tolist() == [[1.0, 1.0]]


def test_words_are_for_the_base_and_frames_pass_its_layers():
    base = TokenInteractionHead(FrameTransformer(DIM, FRAMES, 1, heads=2), hidden=2).double()
    head, (_, frames) = make(base), features(3)
    words = torch.randn(3, 1 + 4, DIM).double()
    scores, videos, _ = both(head, words, frames)
    assert torch.equal(scores, base.score(words, base.video_table(frames)))
    plain = make(MeanPoolHead())
    expected = plain.rerank_videos(words[:, 0], base.temporal(frames), scores)
    torch.testing.assert_close(videos, expected, rtol=0, atol=1e-12)
    assert head.explain(words[0], frames[0]).shares.sum().item() == pytest.approx(1)


@pytest.mark.parametrize("kind", get_args(FirstStage))
def test_any_head_may_be_the_first_stage(kind):
    """Built as a recipe says, its candidates come in an order of its own scores, and the rest stays."""
    first = {"base": kind, "from_run": "first", "init": "random", "layers": 1, "candidates": 4}
    values = {
        "name": "x",
        "data": {"dataset": "demo", "frames": FRAMES},
        "head": {"kind": "diffusionret", **first},
        "alignment": {"kind": "none"},
    }
    backbone = SimpleNamespace(dim=DIM, spec=SimpleNamespace(activation="gelu", context_length=8))
    torch.manual_seed(0)
    head = build_head(recipe_from_dict(values), backbone).eval()
    assert head.base.name == kind and all("probability" not in name for name in head.state_dict())
    texts, frames = features(5)
    texts = (torch.randn(5, 1 + 4, DIM) if head.reads == "words" else texts).float()
    scores, videos, found = both(head, texts, frames.float())
    assert ((videos != scores).sum(1) == 4).all() and ((found != scores).sum(0) == 4).all()


def test_the_losses_are_those_of_the_denoisers_and_hide_other_rows_of_a_clip():
    head = make(SeqTransfHead(FrameTransformer(DIM, FRAMES, 1, heads=2)), gen_temperature=10.0)
    head.train()
    assert not head.base.training
    texts, frames = features(5, 5)
    clips = torch.tensor([3, 0, 3, 1, 2])
    torch.manual_seed(4)
    found = head.similarities(texts, frames, torch.arange(5), clips)
    torch.manual_seed(4)
    steps = torch.randint(6, (5,))
    noise = [torch.randn(5, 5, dtype=torch.float64) for _ in range(2)]
    hidden = torch.zeros(5, 5, dtype=torch.bool)
    hidden[0, 2] = hidden[2, 0] = True
    seen = head.base.temporal(frames)
    for each, judged, denoiser, drawn in zip(
        found, (judged_videos, judged_texts), (head.t2v, head.v2t), noise, strict=True
    ):
        x = head.schedule.noised(torch.eye(5).double(), drawn, steps)
        out = judged(denoiser, texts, seen, frame_shares(texts, seen), x, steps, hidden)
        assert each.value.item() == pytest.approx(F.cross_entropy(10 * out, torch.arange(5)).item(), rel=1e-12)
        assert math.isfinite(each.value.item())
    assert [(each.name, each.weight) for each in found] == [("gen_t2v", 1.0), ("gen_v2t", 1.0)]
    sum(each.value for each in found).backward()
    assert all(p.grad is None for p in head.base.parameters()) and head.t2v.query.weight.grad.abs().max() > 0


def test_a_batch_of_one_pair_has_nothing_to_choose_from():
    head, (texts, frames) = make(), features(1, 1)
    assert [each.value.item() for each in head.similarities(texts, frames, torch.arange(1))] == [0.0, 0.0]
