"""Filling a table: numbers, differences and stars from outcomes that are made up here."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from calmctl.evaluation.card import Card
from calmctl.evaluation.statistics import QUERY_METRICS, ClipSums, PairedDifference, differences_over_seeds
from calmctl.reproduce import filled as cells
from calmctl.reproduce.filled import Filled, as_markdown, fill
from calmctl.reproduce.outcomes import Outcome
from calmctl.reproduce.reproduce import write_table
from calmctl.reproduce.rows import Row, Table
from calmctl.runtime import environment

N = 400


def outcome(hits: np.ndarray, dataset: str = "msrvtt", leak: float | None = None, published: bool = True) -> Outcome:
    """One query a clip, right where `hits` is 1 and second where it is 0."""
    sums = np.stack([100.0 * hits, 100.0 * np.ones(N), 100.0 * np.ones(N), 2.0 - hits], axis=1)
    made = ClipSums(tuple(map(str, range(N))), QUERY_METRICS, sums, np.ones(N))
    numbers = {**made.means, "mdr": float(np.median(2 - hits))}
    return Outcome(dataset, "9k", "msrvtt", numbers, made, N, 0, "leak-free", published, leak, (), Card())


def hits(share: float, seed: int) -> np.ndarray:
    return (np.random.default_rng(seed).random(N) < share).astype(float)


def table(**changes: object) -> Table:
    paper = {"msrvtt": {"r1": 50.0, "r5": 80.0}}
    rows = (
        Row("base", "a baseline", "msrvtt", tests=("msrvtt",), paper=paper),
        Row("better", "  with CALM", "msrvtt", (), ("msrvtt",), "base", {"msrvtt": {"r1": 52.0}}),
        Row("same", "hardly other", "msrvtt", (), ("msrvtt",), "base"),
    )
    return Table("table9", "A table", rows, **changes)  # type: ignore[arg-type]


@pytest.fixture
def filled() -> Filled:
    base = [hits(0.5, seed) for seed in range(3)]
    measured = {
        "base": {"msrvtt": [outcome(each, leak=60.0 + i) for i, each in enumerate(base)]},
        "better": {"msrvtt": [outcome(np.maximum(each, hits(0.3, 9))) for each in base]},
        "same": {"msrvtt": [outcome(each) for each in reversed(base)]},
    }
    runs = {key: [f"runs/{key}-{i}" for i in range(3)] for key in measured}
    return fill(table(), measured, runs, data="data", seeds=(24, 25, 26), overrides=("optim.epochs=1",), left_out={})


def test_numbers_are_mean_and_spread_over_seeds(filled: Filled) -> None:
    (block,) = filled.blocks
    values = [100 * float(hits(0.5, seed).mean()) for seed in range(3)]
    spread = block.lines[0].numbers["r1"]
    assert spread is not None
    assert spread.values == pytest.approx(values)
    assert (spread.mean, spread.std) == (pytest.approx(np.mean(values)), pytest.approx(np.std(values, ddof=1)))
    assert cells.number(spread) == f"{np.mean(values):.1f} ± {np.std(values, ddof=1):.1f}"


def test_stars_are_for_what_exceeds_chance(filled: Filled) -> None:
    base, better, same = filled.blocks[0].lines
    assert not base.gains and cells.gain(base, interval=False) == ""
    assert not better.gains["r1"].within_noise and cells.gain(better, interval=False).endswith("*")
    assert same.gains["r1"].difference == pytest.approx(0) and "*" not in cells.gain(same, interval=True)
    assert filled.comparisons == 2
    assert "of 2 such differences at most 0.1 would be starred" in " ".join(cells.legend(filled))
    sums = [outcome(hits(0.5, seed)).sums for seed in range(3)]
    again: PairedDifference = differences_over_seeds(sums, sums[::-1])["r1"]
    assert same.gains["r1"] == again


def test_the_papers_number_stands_beside_ours(filled: Filled) -> None:
    base, better, same = filled.blocks[0].lines
    assert base.paper_gap is not None and better.paper_gap is not None and same.paper_gap is None
    assert base.numbers["r1"] is not None
    assert base.paper_gap.difference == pytest.approx(base.numbers["r1"].mean - 50.0)
    assert base.paper_gap.exceeds_noise is False and better.paper_gap.exceeds_noise is True  # about 65 against 52
    assert better.paper_gain == pytest.approx(2.0) and cells.paper(base) == "50.0"


def test_a_stand_in_is_never_put_beside_the_paper() -> None:
    measured = {"base": {"msrvtt": [outcome(hits(0.5, 1))]}}
    made = fill(
        table(stand_in=True), measured, {"base": ["r"]}, data="demo", seeds=(24,), overrides=(), left_out={"x": "y"}
    )
    (line,) = made.blocks[0].lines
    assert line.paper_gap is None and line.numbers["r1"] is not None and line.numbers["r1"].std is None
    assert "Not here: x: y." in list(cells.legend(made))


def test_one_seed_gives_no_verdict() -> None:
    """An interval over clips, but neither a star nor a p: seeds may differ by more."""
    measured = {
        "base": {"msrvtt": [outcome(hits(0.3, 0))]},
        "better": {"msrvtt": [outcome(np.maximum(hits(0.3, 0), hits(0.9, 9)))]},
    }
    runs = {key: [f"runs/{key}"] for key in measured}
    made = fill(table(), measured, runs, data="data", seeds=(24,), overrides=(), left_out={})
    better = made.blocks[0].lines[1]
    assert better.gains["r1"].interval.low > 20 and "*" not in cells.gain(better, interval=True)
    assert better.paper_gap is not None and abs(better.paper_gap.difference) > 20 and "*" not in cells.paper_gap(better)
    assert better.to_json()["gains"]["r1"]["exceeds_noise"] is None is better.to_json()["paper_gap"]["exceeds_noise"]
    assert "One seed: nothing is starred" in " ".join(cells.legend(made))
    page = as_markdown(made, "calmctl reproduce table9", environment())
    assert ", p 0" not in page and cells.gain(better, interval=True) in page


def test_the_leak_is_labelled_an_audit(filled: Filled) -> None:
    line = filled.blocks[0].lines[0]
    assert line.leak_r1 is not None and line.leak_r1.mean == pytest.approx(61.0)
    text = " ".join(cells.legend(filled))
    assert "AUDIT, NOT A RESULT" in text
    page = as_markdown(filled, "calmctl reproduce table9", environment())
    assert "leak: audit" in page and "61.0 ± 1.0" in page and "AUDIT" in page


def test_everything_is_plain_data_too(filled: Filled) -> None:
    record = json.loads(json.dumps(filled.to_json(), allow_nan=False))
    line = record["blocks"][0]["lines"][1]
    assert line["gains"]["r1"]["exceeds_noise"] is True and len(line["runs"]) == 3
    assert record["overrides"] == ["optim.epochs=1"] and record["seeds"] == [24, 25, 26]
    page = as_markdown(filled, "calmctl reproduce table9", environment())
    widths = {row.count("|") for row in page.splitlines() if row.startswith("|")}
    assert len(widths) == 1 and "    calmctl reproduce table9" in page


def test_the_papers_numbers_stand_beside_its_own_data_alone() -> None:
    base, better = hits(0.5, 0), hits(0.6, 1)
    measured = {"base": {"msrvtt": [outcome(base)]}, "better": {"msrvtt": [outcome(better, published=False)]}}
    runs = {key: [f"runs/{key}"] for key in measured}
    (block,) = fill(table(), measured, runs, data="data", seeds=(24,), overrides=(), left_out={}).blocks
    first, second = block.lines
    assert first.paper and first.paper_gap is not None
    assert (second.paper, second.paper_gap, second.paper_gain) == ({}, None, None)


def test_a_table_of_other_seeds_or_rows_is_written_beside_the_first(filled: Filled, tmp_path: Path) -> None:
    def written(which: Filled) -> str:
        return write_table(which, tmp_path, "calmctl reproduce table9")[0].name

    fewer = replace(filled, blocks=tuple(replace(block, lines=block.lines[:2]) for block in filled.blocks))
    others = (replace(filled, seeds=(24,)), replace(filled, overrides=()), fewer)
    assert written(filled) == "table9.json"
    assert [written(other) for other in others] == ["table9-2.json", "table9-3.json", "table9-4.json"]
    assert written(filled) == "table9.json" and written(fewer) == "table9-4.json", "the same is measured again"
    assert json.loads((tmp_path / "table9.json").read_text())["seeds"] == [24, 25, 26]
