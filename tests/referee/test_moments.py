"""Moments: metrics against brute force, files of all forms, and the commands."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from calmctl.cli.main import app
from calmctl.errors import BadInput, DatasetError
from calmctl.referee.moments import (
    AP_IOUS,
    Answers,
    TimedQuery,
    Truth,
    average_precision,
    overlaps,
    own_videos,
    read_answers,
    read_truth,
    score_moments,
)

SPAN = st.tuples(st.integers(0, 12), st.integers(1, 8)).map(lambda pair: (float(pair[0]), float(pair[0] + pair[1])))


def iou_by_counting(one: tuple[float, float], other: tuple[float, float]) -> float:
    """Of spans between whole seconds: seconds in both over seconds in any."""
    ours, theirs = (set(range(int(a), int(b))) for a, b in (one, other))
    return len(ours & theirs) / len(ours | theirs)


def ap_by_area(found: list[Any], true: list[Any], threshold: float) -> float:
    """The area below the precision-recall curve, whose precision at a recall is the best at it or beyond."""
    left, hits = list(true), []
    for span in found:
        fitting = [(iou_by_counting(span, each), -k, each) for k, each in enumerate(left)]
        fitting = [each for each in fitting if each[0] >= threshold]
        hits.append(bool(fitting))
        if fitting:
            left.remove(max(fitting)[2])
    points = [(sum(hits[:n]) / len(true), sum(hits[:n]) / n) for n in range(1, len(hits) + 1)]
    area, before = 0.0, 0.0
    for recall in sorted({recall for recall, _ in points if recall > 0}):
        area += (recall - before) * max(p for r, p in points if r >= recall)
        before = recall
    return area


@given(st.lists(SPAN, max_size=6), st.lists(SPAN, min_size=1, max_size=3, unique=True))
def test_every_metric_is_that_of_brute_force(found: list[Any], true: list[Any]) -> None:
    ious = overlaps(found, true)
    expected = [[iou_by_counting(one, other) for other in true] for one in found]
    assert ious.shape == (len(found), len(true))
    assert np.allclose(ious, np.array(expected).reshape(ious.shape))
    for threshold in (0.3, 0.5, 0.75):
        assert average_precision(ious, threshold) == pytest.approx(ap_by_area(found, true, threshold))
    truth = Truth("t", None, (TimedQuery("0", "s", "v", tuple(true)),))
    means = score_moments(Answers("a", {"0": tuple(found)}), truth).means()
    for k in (1, 5):
        for iou in (0.5, 0.7):
            hit = any(max(row) >= iou for row in expected[:k])
            assert means[f"R@{k} IoU {iou:g}"] == 100.0 * hit
    assert means["mIoU"] == pytest.approx(100 * (max(expected[0]) if expected else 0))
    assert means["mAP"] == pytest.approx(100 * np.mean([ap_by_area(found, true, each) for each in AP_IOUS]))


def test_an_empty_span_overlaps_nothing() -> None:
    assert overlaps([(2.0, 2.0)], [(1.0, 3.0), (2.0, 2.0)]).tolist() == [[0.0, 0.0]]


def test_didemos_own_metrics_take_the_three_annotators_that_agree_best() -> None:
    spans = ((0.0, 5.0), (0.0, 5.0), (0.0, 10.0), (25.0, 30.0))
    truth = Truth("t", "didemo", (TimedQuery("0", "s", "v", spans),), annotators=True)
    found = ((0.0, 5.0), (0.0, 10.0), (5.0, 10.0))
    means = score_moments(Answers("a", {"0": found}), truth).means()
    # Ranks 1, 1, 2 of the best three: their mean is 4/3; overlaps 1, 1, 1/2.
    assert (means["DiDeMo R@1"], means["DiDeMo R@5"]) == (0.0, 100.0)
    assert means["DiDeMo mIoU"] == pytest.approx(100 * 2.5 / 3)
    assert score_moments(Answers("a", {"0": found[1:]}), truth).means()["DiDeMo R@5"] == 0.0, "a moment never named"


def test_what_is_not_answered_is_missed_and_told() -> None:
    truth = Truth("t", None, tuple(TimedQuery(str(n), f"s{n}", f"v{n % 2}", ((0.0, 5.0),)) for n in range(4)), 2)
    result = score_moments(Answers("a", {"0": ((0.0, 5.0),), "2": ()}), truth)
    assert result.means()["R@1 IoU 0.7"] == 25.0 and result.answered == 1
    assert result.notes == (
        "3 queries without an answer: missed in every metric",
        "2 sentences of t without a time not asked",
    )
    assert result.card.queries == 4 and result.card.left_out == 2
    better = score_moments(Answers("b", {str(n): ((0.0, 5.0),) for n in range(4)}), truth)
    assert better.minus(result)["mIoU"].difference == pytest.approx(75.0)
    with pytest.raises(BadInput, match="other queries"):
        better.minus(score_moments(Answers("b", {}), Truth("u", None, truth.queries[:3])))


QV = [
    {"qid": 7, "query": "a dog runs", "vid": "x_0.0_9.0", "duration": 9, "relevant_windows": [[0, 4], [6, 8]]},
    {"qid": 9, "query": "a cat", "vid": "y", "duration": 9, "relevant_windows": []},
]


def write(path: Path, content: Any) -> Path:
    rows = content if isinstance(content, str) else "".join(json.dumps(row) + "\n" for row in content)
    path.write_text(rows)
    return path


def test_timed_sentences_of_every_form(tmp_path: Path) -> None:
    truth = read_truth(write(tmp_path / "val.jsonl", QV))
    assert [query.spans for query in truth.queries] == [((0.0, 4.0), (6.0, 8.0))] and truth.untimed == 1
    assert read_truth(write(tmp_path / "val.json", json.dumps(QV))).queries == truth.queries
    charades = read_truth(write(tmp_path / "charades_sta_test.txt", "AO8RW 0.5 6.9##a person sits.\n"))
    assert charades.queries == (TimedQuery("0", "a person sits.", "AO8RW", ((0.5, 6.9),)),)
    didemo = [{"video": "a@N0_1.mov", "description": "first", "times": [[0, 0], [1, 2]]}]
    found = read_truth(write(tmp_path / "test_data.json", json.dumps(didemo)))
    assert found.annotators and found.queries[0].spans == ((0.0, 5.0), (5.0, 15.0))
    for ids, known in (((70, 80), ("70", "80")), ((70, 70), ("0", "1"))):  # one that stands twice names no row
        rows = [didemo[0] | {"annotation_id": number, "description": f"d{number}"} for number in ids]
        numbered = read_truth(write(tmp_path / "test_data.json", json.dumps(rows)))
        assert tuple(query.id for query in numbered.queries) == known
    anet = {"v_a": {"duration": 9, "timestamps": [[0, 3], [5, 4]], "sentences": [" one", "two"]}}
    found = read_truth(write(tmp_path / "val_1.json", json.dumps(anet)))
    assert (len(found.queries), found.untimed, found.dataset) == (1, 1, "activitynet")


def test_answers_are_found_by_qid_or_by_video_and_sentence_and_sorted_by_score(tmp_path: Path) -> None:
    truth = read_truth(write(tmp_path / "val.jsonl", QV))
    rows = [
        {"qid": 7, "pred_relevant_windows": [[6, 8, 0.2], [0, 4, 0.9], [1, 2, 0.9]]},
        {"qid": 9, "pred_relevant_windows": []},
    ]
    answers = read_answers(write(tmp_path / "a.jsonl", rows), truth)
    assert answers.spans == {"7": ((0.0, 4.0), (1.0, 2.0), (6.0, 8.0))}
    assert answers.notes == ("1 row of no timed query not scored",)
    named = [{"query": "a dog runs", "vid": "x_0.0_9.0", "pred_relevant_windows": [[1, 2]]}]
    assert read_answers(write(tmp_path / "b.jsonl", named), truth).spans == {"7": ((1.0, 2.0),)}
    with pytest.raises(DatasetError, match="answered twice"):
        read_answers(write(tmp_path / "c.jsonl", rows + rows[:1]), truth)
    with pytest.raises(BadInput, match="not one row answers"):
        read_answers(write(tmp_path / "d.jsonl", rows[1:]), truth)


def test_a_qid_that_is_one_off_is_found_out(tmp_path: Path) -> None:
    """Rows numbered from 1 would answer the next query each, and nothing but low numbers would tell."""
    truth = read_truth(write(tmp_path / "charades_sta_test.txt", "AA 0 5##One sits.\nBB 0 5##Two run.\nBB 6 9##It.\n"))
    row = {"qid": 0, "vid": "AA.mp4", "query": "one  sits.", "pred_relevant_windows": [[0, 5]]}
    assert set(read_answers(write(tmp_path / "a.jsonl", [row]), truth).spans) == {"0"}
    for wrong in ({"qid": 1}, {"vid": "BB"}, {"query": "two run."}):
        with pytest.raises(DatasetError, match="and the row is of another; rows are numbered from 0"):
            read_answers(write(tmp_path / "a.jsonl", [row | wrong]), truth)
    named = {"vid": "videos/BB.avi", "query": "It.", "pred_relevant_windows": []}
    assert set(read_answers(write(tmp_path / "a.jsonl", [named]), truth).spans) == {"2"}


@pytest.mark.parametrize("window", ["[1]", "[2, 1]", '["0", 1]', "[0, NaN]", "[0, 1, 2, 3]", "{}", "[0, true]"])
def test_windows_that_are_none(tmp_path: Path, window: str) -> None:
    truth = read_truth(write(tmp_path / "val.jsonl", QV))
    with pytest.raises(DatasetError):
        read_answers(write(tmp_path / "a.jsonl", f'{{"qid": 7, "pred_relevant_windows": [{window}]}}\n'), truth)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.csv", "a,b\n", "read from .jsonl, .json and .txt"),
        ("x.jsonl", '{"qid": 1, "vid": "v"}\n', "no 'query'"),
        ("x.jsonl", '{"qid": 1, "vid": "v", "query": "q", "relevant_windows": [[0]]}\n', "a start and an end"),
        ("x.jsonl", json.dumps(QV[1]) + "\n", "not one of its sentences has a time"),
        ("x.jsonl", (json.dumps(QV[0]) + "\n") * 2, "two queries have one qid"),
        ("x.txt", "nothing\n", "expected VIDEO START END##SENTENCE"),
    ],
)
def test_malformed_truth(tmp_path: Path, name: str, content: str, message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        read_truth(write(tmp_path / name, content))


def test_the_video_of_a_query_goes_by_its_name_alone() -> None:
    truth = Truth(
        "t", None, (TimedQuery("0", "s", "AO8RW", ((0.0, 1.0),)), TimedQuery("1", "s", "none", ((0.0, 1.0),)))
    )
    assert own_videos(truth, ["Charades_v1/AO8RW", "b"]) == {"AO8RW": "Charades_v1/AO8RW"}
    assert own_videos(truth, ["AO8RW.mp4"]) == {"AO8RW": "AO8RW.mp4"}


def test_the_command_scores_and_compares(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write(Path("t.txt"), "".join(f"V{n} {n} {n + 4}##sentence {n}\n" for n in range(6)))
    for name, late in (("good", 0), ("late", 2)):
        rows = [{"qid": n, "pred_relevant_windows": [[n + late, n + 4 + late, 1.0]]} for n in range(6)]
        write(Path(f"{name}.jsonl"), rows)
    told = json.loads(
        CliRunner().invoke(app, ["score", "moments", "good.jsonl", "t.txt", "--against", "late.jsonl", "--json"]).output
    )
    assert told["metrics"]["R@1 IoU 0.5"]["value"] == 100.0 and told["card"]["dataset"] == "charades-sta"
    assert told["differences"][0]["mIoU"]["difference"] == pytest.approx(100 * (1 - 2 / 6))
    shown = CliRunner().invoke(app, ["score", "moments", "late.jsonl", "t.txt"])
    assert shown.exit_code == 0 and "R@5 IoU 0.7" in shown.output and max(map(len, shown.output.splitlines())) <= 80
    assert math.isclose(
        json.loads(CliRunner().invoke(app, ["score", "moments", "late.jsonl", "t.txt", "--json"]).output)["metrics"][
            "mIoU"
        ]["value"],
        100 / 3,
    )
