"""Exact search against brute force in float64, whatever the head, the adapter and the blocks."""

from copy import deepcopy
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor

from calmctl.model.backbone import FeatureAdapter
from calmctl.model.build import build_head
from calmctl.recipe import recipe_from_dict
from calmctl.search import exact
from calmctl.search.exact import Judge, search_exact
from calmctl.search.rows import searched_rows
from calmctl.search.scorers import FrameScorer, ProbeScorer, TableScorer, adapted, choose_scorer, open_index, products

CPU, SHAPE = torch.device("cpu"), (4, 16)
HEADS = ["meanp", "xpool", "t-mass", "seqlstm", "seqtransf", "emcl", "wti", "uatvr"]


def make_head(kind: str, dim: int = 16, frames: int = 4):
    torch.manual_seed(3)
    values = {
        "name": "x",
        "data": {"dataset": "demo", "frames": frames},
        "head": {"kind": kind, "init": "random", "layers": 1},
    }
    backbone = SimpleNamespace(dim=dim, spec=SimpleNamespace(activation="gelu", context_length=8))
    head = build_head(recipe_from_dict(values), backbone).eval()
    with torch.no_grad():
        for parameter in head.parameters():
            parameter += (0.2 if dim < 100 else 0.02) * torch.randn_like(parameter)
    return head


def make_adapter() -> FeatureAdapter:
    torch.manual_seed(4)
    adapter = FeatureAdapter(16)
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    return adapter


def make_texts(head, n: int) -> Tensor:
    torch.manual_seed(5)
    if head.reads == "words":
        texts = torch.randn(n, 4, 16)
        texts[0, 3:] = 0  # a shorter sentence
        return texts
    return torch.randn(n, 16)


def brute_force(head, adapter, texts: Tensor, features: dict[str, Tensor], top: int) -> list[list[tuple[str, float]]]:
    """The head in float64 on all clips at once, sorted."""
    head, adapter = deepcopy(head).double(), None if adapter is None else deepcopy(adapter).double()
    frames = adapted(torch.stack(list(features.values())).double(), adapter)
    with torch.no_grad():
        scores = head.score(texts.double(), head.video_table(frames)).numpy()
    orders = [np.argsort(-row.round(12), kind="stable")[:top] for row in scores]
    ids = list(features)
    return [[(ids[k], row[k]) for k in order] for row, order in zip(scores, orders, strict=True)]


def found(store, head, adapter, texts, top, block=None):
    scorer = choose_scorer(head, adapter, CPU, SHAPE)
    index = open_index(store, searched_rows(store), scorer)
    best = search_exact(index, scorer, Judge(head, adapter), texts, top, block=block)
    return [[(index.frames.ids[p], s) for p, s in zip(each.positions, each.scores, strict=True)] for each in best]


@pytest.mark.parametrize("with_adapter", [False, True], ids=["bare", "adapter"])
@pytest.mark.parametrize("kind", HEADS)
def test_the_answer_is_that_of_brute_force(kind, with_adapter, write_store, drawn):
    head, adapter, features = make_head(kind), make_adapter() if with_adapter else None, drawn(23)
    store = write_store(features)
    texts = make_texts(head, 3)
    expected = brute_force(head, adapter, texts, features, 7)
    for block in (None, 1, 4, 23):
        answer = found(store, head, adapter, texts, 7, block)
        assert [[key for key, _ in each] for each in answer] == [[key for key, _ in each] for each in expected]
        for ours, theirs in zip(answer, expected, strict=True):
            assert [s for _, s in ours] == pytest.approx([s for _, s in theirs], abs=1e-10)


def test_each_way_of_scoring_is_chosen_by_what_it_reads():
    chosen = {kind: type(choose_scorer(make_head(kind, 512, 12), None, CPU, (12, 512))) for kind in HEADS}
    assert chosen.pop("xpool") is ProbeScorer and set(chosen.values()) == {TableScorer}


def test_copies_of_a_clip_come_in_the_stores_order_whatever_the_blocks(write_store, drawn):
    one = drawn(1)["clip000"]
    features = {f"clip{number:03d}": one.clone() for number in range(17)} | drawn(2, first=50)
    store, head = write_store(features), make_head("xpool")
    query = one.mean(0)[None]
    answers = [found(store, head, None, query, 6, block) for block in (None, 1, 2, 3, 5, 16)]
    assert all(answer == answers[0] for answer in answers)
    copies = [key for key, _ in answers[0][0] if key < "clip050"]
    assert copies == [f"clip{number:03d}" for number in range(len(copies))] and len(copies) >= 4


def test_more_hits_than_clips_and_no_query(write_store, drawn):
    store, head = write_store(drawn(3)), make_head("xpool")
    assert [len(each) for each in found(store, head, None, make_texts(head, 2), 99)] == [3, 3]
    assert found(store, head, None, make_texts(head, 2)[:0], 5) == []


def test_many_queries_go_in_parts(write_store, drawn, monkeypatch):
    features, head = drawn(12), make_head("xpool")
    store, texts = write_store(features), make_texts(make_head("xpool"), 7)
    whole = found(store, head, None, texts, 3)
    monkeypatch.setattr(exact, "MOST_SCORES", 30)
    told = []
    scorer = choose_scorer(head, None, CPU, SHAPE)
    index = open_index(store, searched_rows(store), scorer)
    best = search_exact(index, scorer, Judge(head, None), texts, 3, progress=lambda *step: told.append(step))
    assert [[index.frames.ids[p] for p in each.positions] for each in best] == [[k for k, _ in each] for each in whole]
    assert told[-1] == ("scoring clips", 48, 48)
    assert [done for _, done, _ in told] == sorted(done for _, done, _ in told)


@pytest.mark.parametrize("kind", HEADS)
def test_float32_scores_stay_within_the_margin_at_full_size(kind):
    head = make_head(kind, 512, 12)
    torch.manual_seed(6)
    frames = torch.randn(6, 1, 512) * 0.4 + torch.randn(6, 12, 512) * 0.2
    texts = torch.randn(3, 5, 512) * 0.4 if head.reads == "words" else torch.randn(3, 512) * 0.4
    scorer = choose_scorer(head, None, CPU, (12, 512))
    prepared = scorer.prepare(texts)
    dots = products(frames, scorer.directions(prepared)) if isinstance(scorer, FrameScorer) else None
    scores = scorer.score(prepared, dots, scorer.table(frames)).double().numpy()
    assert np.abs(scores - Judge(head, None).scores(texts, frames)).max() < exact._MARGIN / 4
