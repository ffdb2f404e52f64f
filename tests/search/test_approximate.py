"""The first stage only proposes: with enough candidates two stages are the exact search."""

import sys

import numpy as np
import pytest
import torch

from calmctl.errors import BadInput
from calmctl.model.heads.xpool import XPoolHead
from calmctl.search.exact import Judge, measure_recall, open_graph, require_usearch, search_exact, search_two_stage
from calmctl.search.rows import searched_rows
from calmctl.search.scorers import choose_scorer, open_index


@pytest.fixture
def search(write_store):
    """Two-stage and exact answers, as lists of ids, over a store of some features."""
    pytest.importorskip("usearch")
    torch.manual_seed(0)
    head = XPoolHead(16).eval()
    with torch.no_grad():
        for parameter in head.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    texts = torch.randn(5, 16)

    def answers(features, candidates, **options):
        store = write_store(features, **options)
        rows, scorer, judge = (
            searched_rows(store),
            choose_scorer(head, None, torch.device("cpu"), (4, 16)),
            Judge(head, None),
        )
        index = open_index(store, rows, scorer)
        graph = open_graph(store, rows, index, None)
        two = search_two_stage(index, scorer, judge, graph, texts, texts, 4, candidates=candidates)
        one = search_exact(index, scorer, judge, texts, 4)
        recall = measure_recall(one, graph, texts, candidates=candidates, at=4)
        named = [[(index.frames.ids[p], s) for p, s in zip(b.positions, b.scores, strict=True)] for b in (*two, *one)]
        return named[:5], named[5:], recall, graph

    return answers


def test_all_clips_as_candidates_are_the_exact_answer(search, drawn):
    two, one, recall, graph = search(drawn(40), 40)
    assert two == one and graph.made == 40
    assert (recall.kept, recall.queries, recall.at) == (1.0, 5, 4) and 0 < recall.first <= 1


def test_few_candidates_lose_hits_and_the_recall_says_how_many(search, drawn):
    two, one, recall, _ = search(drawn(40), 6)
    kept = np.mean([len({k for k, _ in a} & {k for k, _ in b}) / 4 for a, b in zip(two, one, strict=True)])
    assert recall.kept == pytest.approx(kept) and recall.kept < 1 and recall.candidates == 6


@pytest.mark.parametrize(("asked", "passed_on"), [(1, 4), (99, 9)])
def test_the_recall_tells_the_candidates_that_there_were(search, drawn, asked, passed_on):
    recall = search(drawn(9), asked)[2]
    assert (recall.at, recall.candidates) == (4, passed_on)


def test_the_graph_follows_its_store(search, drawn):
    features = drawn(22)
    assert search(features, 22)[3].made == 22
    assert search(features, 22)[3].made == 0
    features |= drawn(4, first=22)
    two, one, _, graph = search(features, 99)
    assert two == one and graph.made == 4
    fewer = {key: value for key, value in features.items() if key not in ("clip001", "clip013")}
    two, one, _, _ = search(fewer, 99)
    assert two == one and not {"clip001", "clip013"} & {key for answer in two for key, _ in answer}
    fewer["clip002"] = fewer["clip002"].flip(-1)
    two, one, _, graph = search(fewer, 99, again=[0])
    assert two == one and graph.made == 4


def test_a_damaged_graph_is_made_again(search, drawn):
    features = drawn(9)
    graph = search(features, 9)[3]
    graph.path.write_bytes(b"no graph")
    two, one, _, graph = search(features, 9)
    assert two == one and graph.made == 9


def test_without_usearch_the_way_to_it_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "usearch.index", None)
    with pytest.raises(BadInput, match=r"pip install 'calmctl\[index\]'"):
        require_usearch()
