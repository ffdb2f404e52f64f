"""Result tables: what is shown, what is labelled, and that it fits."""

import io
import json
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from calmctl.evaluation.metrics import rank_all, rank_queries
from calmctl.evaluation.result import Labels, RetrievalResult, retrieval_result
from calmctl.evaluation.tables import retrieval_table


def result(n: int = 60, seed: int = 0, captions: int = 1, **options: Any) -> RetrievalResult:
    rng = np.random.default_rng(seed)
    owners = np.repeat(np.arange(n), captions)
    scores = rng.standard_normal((len(owners), n))
    scores[np.arange(len(owners)), owners] += 2
    names = Labels.__dataclass_fields__.keys() & options.keys()
    labels = Labels(**{"dataset": "msrvtt", "published": True, **{name: options.pop(name) for name in names}})
    return retrieval_result(rank_all(scores, owners), labels, **{"replicates": 100, **options})


def render(*results: RetrievalResult) -> str:
    console = Console(file=io.StringIO(), width=80)
    console.print(retrieval_table(results))
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_a_result_holds_metrics_of_every_direction() -> None:
    got = result(20, captions=3, dataset="msvd")
    assert (got.n_clips, got.n_captions) == (20, 60)
    assert got.metrics["text_to_video"].n_queries == 60
    assert got.metrics["video_to_text"].n_candidates == 20
    assert got.metrics["video_to_text_plain"].n_candidates == 60
    intervals = got.intervals["text_to_video"]
    assert intervals is not None
    assert intervals.n_clusters == 20
    assert intervals.r1.low <= got.metrics["text_to_video"].r1 <= intervals.r1.high


def test_the_table_shows_numbers_intervals_and_the_paper() -> None:
    got = result(trained_on="msrvtt", trained_protocol="9k", protocol="9k", system="last")
    text = render(got)
    metrics, intervals = got.metrics["text_to_video"], got.intervals["text_to_video"]
    assert intervals is not None
    assert "trained on msrvtt 9k, last" in text
    assert f"{metrics.r1:.1f}" in text and f"{metrics.mnr:.1f}" in text
    assert f"{intervals.r5.low:.1f}\u2013{intervals.r5.high:.1f}" in text
    (paper,) = [line for line in text.splitlines() if "paper: CALM" in line]
    assert paper.split() == ["paper:", "CALM", "50.8", "77.5", "85.8", "11.7"]
    assert "!!" not in text


def test_out_of_domain_is_marked_and_has_its_own_row_of_the_paper() -> None:
    text = render(
        result(dataset="msrvtt", trained_on="didemo", protocol="7k"),
        result(dataset="lsmdc", trained_on="didemo", paper_method="T-MASS"),
        result(dataset="demo-shifted", trained_on="demo"),
    )
    assert "→ msrvtt 7k" in text and "→ lsmdc" in text and "→ demo-shifted" in text
    assert "41.7        66.5        79.0                      16.0" in text
    assert "paper: T-MASS          20.4" in text
    assert text.count("paper: CALM") == 1


@pytest.mark.parametrize(
    "options",
    [
        {"protocol": "full", "trained_on": "msrvtt", "trained_protocol": "full"},
        {"split": "val", "trained_on": "msrvtt"},
        {"trained_on": "msrvtt", "paper_method": ""},
        {"trained_on": ""},
        {"trained_on": "msrvtt", "published": False},
        {"trained_on": "msrvtt", "left_out": 1},
        {"dataset": "msvd", "trained_on": "msrvtt"},
    ],
)
def test_numbers_that_are_not_the_papers_stand_alone(options: dict[str, Any]) -> None:
    got = result(**options)
    assert got.paper is None
    assert "paper" not in render(got)


@pytest.mark.parametrize(
    ("options", "in_block", "at_foot"),
    [
        ({"scorer": "tmass-released"}, "!! scorer: tmass-released", "!! tmass-released: this scorer saw the answers"),
        ({"scorer": "dual-softmax"}, "!! scorer: dual-softmax", "!! dual-softmax: re-ranked with the whole set"),
        ({"scorer": "mine"}, "!! scorer: mine", "!! mine: not the default scorer"),
        ({"left_out": 40}, "!! 40 clips left out", "!! msrvtt: 40 of 100 clips left out"),
        ({"split": "val"}, "!! val split", "!! msrvtt: the val split, not the test set"),
    ],
)
def test_whatever_is_not_the_default_is_loud(options: dict[str, Any], in_block: str, at_foot: str) -> None:
    got = result(trained_on="msrvtt", **options)
    text = render(got)
    assert in_block in text
    assert at_foot in " ".join(text.split())
    if "scorer" in options:
        assert "!! text → video" in text and "!! video → text" in text
    assert len(got.to_json()["caveats"]) == 1


def test_the_table_fits_80_columns_with_large_numbers() -> None:
    rng = np.random.default_rng(0)
    owners = rng.integers(0, 3000, 3000)
    big = retrieval_result(
        rank_all(rng.standard_normal((3000, 3000), np.float32), owners), Labels(dataset="msrvtt"), replicates=100
    )
    one = result(1, dataset="folder")
    lines = render(big, one, result(system="best-on-validation", left_out=3, scorer="tmass-released")).splitlines()
    assert max(map(len, lines)) <= 80
    assert not any("…" in line for line in lines)


def test_one_clip_shows_numbers_without_an_interval() -> None:
    got = result(1, dataset="folder")
    assert got.intervals["text_to_video"] is None
    assert "100.0" in render(got)
    assert "interval" not in render(got)


def test_json_is_plain_and_complete() -> None:
    got = result(trained_on="msrvtt", left_out=2, scorer="dual-softmax", captions=2)
    data = json.loads(json.dumps(got.to_json(), allow_nan=False))
    assert data["metrics"]["video_to_text_plain"]["n_candidates"] == 120
    assert data["intervals"]["text_to_video"]["r1"]["low"] <= data["metrics"]["text_to_video"]["r1"]
    assert data["paper"] is None, "not beside a test set with gaps"
    assert result(trained_on="msrvtt").to_json()["paper"]["r1"] == 50.8
    assert data["scorer"] == "dual-softmax"
    assert len(data["caveats"]) == 2
    assert data["left_out"] == 2


def test_metrics_of_a_result_are_those_of_the_ranks() -> None:
    rng = np.random.default_rng(4)
    scores, owners = rng.standard_normal((30, 10)), rng.integers(0, 10, 30)
    got = retrieval_result(rank_all(scores, owners), Labels(dataset="x"), replicates=100)
    for direction, metrics in got.metrics.items():
        assert metrics == rank_queries(scores, owners, direction).metrics()


def test_what_stands_against_a_number_is_in_table_and_json() -> None:
    got = result(trained_on="msrvtt", published=False, concerns=("trained on 12 of 9,000 training clips",))
    assert "!! trained on 12 of 9,000 training clips" in render(got)
    data = got.to_json()
    assert data["caveats"] == ["trained on 12 of 9,000 training clips"]
    assert (data["paper"], data["published"]) == (None, False)
    json.dumps(data)
