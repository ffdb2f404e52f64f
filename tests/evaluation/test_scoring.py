import inspect

import numpy as np
import pytest
import torch

from calmctl.errors import BadInput
from calmctl.evaluation.retrieval import score_all, score_dense
from calmctl.model.heads.base import FusionHead
from calmctl.model.heads.emcl import EMCLHead
from calmctl.model.heads.meanp import FrameTransformer, MeanPoolHead, SeqLSTMHead, SeqTransfHead
from calmctl.model.heads.tmass import TMassHead
from calmctl.model.heads.xpool import XPoolHead

DIM, FRAMES = 24, 5
HEADS = {
    "meanp": MeanPoolHead,
    "xpool": lambda: XPoolHead(DIM),
    "xpool, 3 heads": lambda: XPoolHead(DIM, heads=3),
    "t-mass": lambda: TMassHead(DIM, FRAMES),
    "t-mass, normal": lambda: TMassHead(DIM, FRAMES, noise="normal", noise_std=0.5),
    "t-mass, no trials": lambda: TMassHead(DIM, FRAMES, trials=0),
    "seqlstm": lambda: SeqLSTMHead(DIM),
    "seqtransf": lambda: SeqTransfHead(FrameTransformer(DIM, FRAMES, 1)),
    "emcl": lambda: used(EMCLHead(FrameTransformer(DIM, FRAMES, 1), bases=4)),
}


def used(head):
    """An EMCL head after a training step: before, it has no reconstruction."""
    head.similarities(*features(6, 4, seed=3), torch.arange(6) % 4)
    return head


@pytest.fixture(params=HEADS)
def head(request):
    torch.manual_seed(0)
    head = HEADS[request.param]()
    with torch.no_grad():
        for parameter in head.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    return head


def features(n_texts, n_videos, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n_texts, DIM, generator=generator), torch.randn(n_videos, FRAMES, DIM, generator=generator)


def recall_at_1(scores):
    """Share of texts whose own video, the one of the same number, scores highest; percent."""
    return 100 * (scores.argmax(1) == torch.arange(len(scores))).float().mean().item()


@pytest.mark.parametrize(("text_chunk", "video_chunk"), [(1, 1), (3, 4), (7, 2), (1000, 1000)])
def test_streamed_scores_equal_the_dense_ones(head, text_chunk, video_chunk):
    """Streamed in blocks of any size, with N_t != N_v."""
    texts, frames = features(7, 11)
    scores = score_all(head, texts, frames, text_chunk=text_chunk, video_chunk=video_chunk)
    assert scores.shape == (7, 11) and scores.dtype == torch.float32 and scores.device.type == "cpu"
    head.double()
    texts, frames = texts.double(), frames.double()
    if isinstance(head, XPoolHead | TMassHead):
        dense = score_dense(head, texts, frames)
    else:  # formulas pair by pair are in the heads' own tests; here it is the blocks that count
        dense = torch.stack([
            torch.stack([head.score(text[None], head.video_table(video[None]))[0, 0] for video in frames])
            for text in texts
        ])  # fmt: skip
    assert (scores - dense).abs().max() < 1e-6


def test_float64_weights_and_features_give_float64(head):
    texts, frames = features(7, 11)
    scores = score_all(head.double(), texts.double(), frames.double(), text_chunk=3, video_chunk=4)
    assert scores.dtype == torch.float64
    whole = score_all(head, texts.double(), frames.double())
    torch.testing.assert_close(scores, whole, rtol=0, atol=1e-13)


def test_nothing_can_tell_the_scorer_who_belongs_to_whom():
    """Texts, videos and weights are all that scoring is given."""
    assert list(inspect.signature(FusionHead.score).parameters) == ["self", "texts", "table"]
    assert list(inspect.signature(FusionHead.video_table).parameters) == ["self", "frames"]
    assert list(inspect.signature(score_all).parameters) == [
        *("head", "texts", "frames"),
        *("text_chunk", "video_chunk", "device", "progress"),
    ]


def test_reordering_texts_and_videos_reorders_the_scores(head):
    """Which text stands beside which video (the ground truth of a square split) leaves every pair's score alone."""
    texts, frames = features(9, 9)
    scores = score_all(head, texts, frames)
    rows, columns = torch.randperm(9), torch.randperm(9)
    again = score_all(head, texts[rows], frames[columns])
    torch.testing.assert_close(again, scores[rows][:, columns], rtol=0, atol=1e-6)


def test_a_caption_and_a_video_change_only_their_own_scores(head):
    texts, frames = features(7, 11)
    scores = score_all(head, texts, frames)
    texts[4] = torch.randn(DIM)
    changed = (score_all(head, texts, frames) - scores).abs() > 1e-6
    assert changed[4].all() and not changed[[0, 1, 2, 3, 5, 6]].any()
    frames[2] = torch.randn(FRAMES, DIM)
    changed = (score_all(head, features(7, 11)[0], frames) - scores).abs() > 1e-6
    assert changed[:, 2].all() and changed.sum() == 7


@pytest.mark.parametrize("name", ["meanp", "xpool", "t-mass"])
def test_random_features_retrieve_by_chance_only(name):
    """400 texts, 400 videos: chance is R@1 = 0.25 %, one text; five or more have a probability of 0.4 %."""
    torch.manual_seed(0)
    texts, frames = features(400, 400, seed=5)
    assert recall_at_1(score_all(HEADS[name](), texts, frames)) <= 1.0


def test_progress_reaches_the_total():
    calls = []
    texts, frames = features(5, 7)
    score_all(
        MeanPoolHead(),
        texts,
        frames,
        text_chunk=2,
        video_chunk=4,
        progress=lambda what, done, total, *_: calls.append((done, total)),
    )
    assert [total for _, total in calls] == [35] * 6
    assert [done for done, _ in calls] == [8, 16, 20, 26, 32, 35]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_features_that_are_not_numbers_are_refused(value):
    texts, frames = features(5, 7)
    frames[3, 1, 2] = frames[5, 0, 0] = value
    with pytest.raises(BadInput, match="2 of 7 videos are not finite numbers, the first at row 3"):
        score_all(MeanPoolHead(), texts, frames)
    with pytest.raises(BadInput, match="1 of 5 texts are not finite numbers, the first at row 0"):
        score_all(MeanPoolHead(), texts.index_fill(0, torch.tensor(0), value), frames[:2])
