"""The protocol card: what must agree before two numbers stand in one column."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from calmctl.cli.main import app
from calmctl.data.benchmark import Annotated, split_digest
from calmctl.errors import BadInput
from calmctl.evaluation.card import COMPARED, NAMES, Card, cards_in, list_facts
from calmctl.evaluation.metrics import rank_all
from calmctl.evaluation.paper import RETRIEVAL
from calmctl.evaluation.result import Labels, retrieval_result
from calmctl.referee.score_files import Pairs
from calmctl.referee.scores import Matrix, judge_scores, match

FULL = Card(
    dataset="msrvtt",
    protocol="9k",
    split="test",
    list_digest="a" * 64,
    queries=1000,
    candidates=1000,
    captions=(1, 1),
    left_out=0,
    frames=12,
    reader="decord 0.6.0, av 16",
    files="b" * 64,
    pixels="224 x 224, shortest, bicubic",
    scorer="leak-free",
    selection="best on validation",
    weights="c" * 64,
    trained_on="msrvtt 9k",
    seeds=(0, 1),
)
OTHERS = {
    "dataset": "didemo", "protocol": "full", "split": "val", "list_digest": "d" * 64, "queries": 879, "candidates": 995,
    "captions": (1, 20), "left_out": 3, "frames": 32, "reader": "av 15", "files": "e" * 64, "pixels": "256 x 256",
    "scorer": "dual-softmax", "selection": "last epoch", "weights": "f" * 64, "trained_on": "lsmdc", "seeds": (7,),
}  # fmt: skip


def test_every_field_has_a_name_and_survives_json() -> None:
    assert tuple(NAMES) == tuple(Card.__dataclass_fields__) == tuple(OTHERS)
    for card in (FULL, Card()):
        assert Card.from_json(json.loads(json.dumps(card.to_json())), "x") == card
    assert Card.from_json({**FULL.to_json(), "a later key": 1}, "x") == FULL
    for name, wrong in (("queries", "many"), ("queries", True), ("captions", [1.5, 2]), ("dataset", 3), ("seeds", 1)):
        with pytest.raises(BadInput, match=f"the card's {name} is no"):
            Card.from_json({name: wrong}, "x")


@pytest.mark.parametrize("name", NAMES)
def test_each_field_but_the_systems_own_keeps_two_numbers_apart(name: str) -> None:
    other = replace(FULL, **{name: OTHERS[name]})
    assert FULL.digest != other.digest
    if name in ("dataset", "protocol"):  # another name of the same list is the same test
        assert not FULL.differences(other) and FULL.column == other.column
        FULL_, other = replace(FULL, list_digest=None), replace(other, list_digest=None)
        assert [each.partition(":")[0] for each in FULL_.differences(other)] == [NAMES[name]]
        assert FULL_.column != other.column
        return
    apart = name in COMPARED
    assert [each.partition(":")[0] for each in FULL.differences(other)] == ([NAMES[name]] if apart else [])
    assert (FULL.column != other.column) == apart


def test_what_one_does_not_know_is_named_and_is_no_difference() -> None:
    for name in COMPARED:
        less = replace(FULL, **{name: None})
        assert FULL.differences(less) == less.differences(FULL) == ()
        assert FULL.unknown(less) == (NAMES[name],)
    ids = replace(FULL, list_digest="ids " + "d" * 64)
    assert not FULL.differences(ids), "a list of ids and one of sentences cannot be compared"
    assert replace(ids, list_digest="ids x").differences(ids)


def test_the_list_is_digested_alike_in_any_order_and_layout() -> None:
    ids, captions, owners = ["a", "b", "c"], ["one", "two", "three", "four"], [0, 0, 1, 2]
    told = list_facts(ids, captions, owners)
    assert told["captions"] == (1, 2)
    order = [2, 0, 1]
    again = list_facts([ids[k] for k in order], captions[::-1], [order.index(o) for o in owners[::-1]])
    assert again == told
    pairs = [(ids[o], c) for c, o in zip(captions, owners, strict=True)]
    assert told["list_digest"] == split_digest(Annotated(ids, pairs)), "that of the published split"
    assert list_facts(ids, ["one", "two", "three", "fo ur"], owners) != told


def test_a_result_fills_in_what_it_knows() -> None:
    owners = np.array([0, 0, 1, 2])
    labels = Labels(dataset="msvd", trained_on="msvd", scorer="dual-softmax", card=Card(frames=12))
    result = retrieval_result(rank_all(np.eye(3)[owners], owners), labels, left_out=4, intervals=False)
    card = result.card
    assert (card.queries, card.candidates, card.left_out, card.scorer) == (4, 3, 4, "dual-softmax")
    assert (card.dataset, card.frames, card.trained_on, card.reader) == ("msvd", 12, "msvd", None)
    assert result.to_json()["card"] == card.to_json() and "card" not in result.labels.to_json()


def test_the_papers_row_stands_beside_the_same_frames_alone() -> None:
    assert {row.card.queries for row in RETRIEVAL} == {1000, 1004} and {row.card.frames for row in RETRIEVAL} == {12}
    owners = np.arange(1000)
    ranks = rank_all(np.eye(1000, dtype=np.float32), owners)
    names = {"dataset": "msrvtt", "protocol": "9k", "trained_on": "msrvtt", "trained_protocol": "9k"}
    for frames, stands in ((12, True), (None, True), (24, False)):
        labels = Labels(**names, published=True, card=Card(frames=frames))
        result = retrieval_result(ranks, labels, intervals=False)
        assert (result.paper is not None) == stands
        assert ("12 frames a clip, and this 24" in result.paper_apart) == (not stands)


def test_pairs_with_sentences_have_the_digest_of_the_split_and_ids_say_that_they_are_ids() -> None:
    videos = {"0": "a", "1": "b"}
    sentences = {"0": "one", "1": "two"}
    known = match((2, 2), Pairs("msrvtt 9k", videos, ("a", "b"), sentences=sentences), None, ["b", "a"])
    verdict = judge_scores(Matrix(np.eye(2)), known, Labels(scorer="given"))
    assert verdict.result.card.list_digest == list_facts(["a", "b"], ["one", "two"], [0, 1])["list_digest"]
    unnamed = match((2, 2), Pairs("pairs.csv", videos), None, ["a", "b"])
    assert unnamed.tested["list_digest"].startswith("ids ")


def test_the_command_shows_one_and_holds_two_against_each_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, card in (("a", FULL), ("b", replace(FULL, frames=32, weights="0" * 64)), ("c", FULL)):
        Path(f"{name}.json").write_text(json.dumps({"results": [{"system": "S", "card": card.to_json()}]}))
    alone = CliRunner().invoke(app, ["card", "a.json"])
    assert alone.exit_code == 0 and "1 to 1" not in alone.output
    assert "aaaaaaaaaaaa" in alone.output and "a" * 13 not in alone.output
    apart = CliRunner().invoke(app, ["card", "a.json", "b.json"])
    assert apart.exit_code == 1
    assert "No column may have both: frames a clip: 12 and 32." in " ".join(apart.output.split())
    same = CliRunner().invoke(app, ["card", "a.json", "c.json"])
    assert same.exit_code == 0 and "They may stand in one column." in same.output
    told = json.loads(CliRunner().invoke(app, ["card", "a.json", "b.json", "--json"]).output)
    assert told["differences"] == [{"of": ["a.json, S", "b.json, S"], "differs": ["frames a clip: 12 and 32"]}]
    assert told["cards"][0]["digest"] == FULL.digest


@pytest.mark.parametrize(("content", "message"), [("{}", "no protocol card"), ("{", "cannot be read as JSON")])
def test_files_without_cards(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(BadInput, match=message):
        list(cards_in(tmp_path / "x.json"))
    with pytest.raises(BadInput, match="holds no protocol card"):
        list(cards_in(tmp_path))
    with pytest.raises(BadInput, match="cards are read from JSON"):
        list(cards_in(tmp_path / "ranks.csv"))
