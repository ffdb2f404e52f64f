"""Outcomes of a captioning run: the numbers of its own results, and what can be compared clip by clip."""

import json
from typing import TYPE_CHECKING

import pytest
import torch

from calmctl.reproduce import outcomes
from calmctl.reproduce.filled import fill
from calmctl.reproduce.outcomes import outcomes_of
from calmctl.reproduce.rows import Row, Table
from calmctl.source.base import SourceSpec

if TYPE_CHECKING:
    from calmctl.training.train import Trained


@pytest.mark.usefixtures("no_java")
def test_a_captioner_in_a_table(captioner: "Trained", monkeypatch: pytest.MonkeyPatch) -> None:
    run = captioner.run
    test = SourceSpec.of(run.recipe().data)
    (outcome,) = outcomes_of(run, [test], torch.device("cpu"))
    told = json.loads(run.results.read_text())["test"][0]["scores"]
    assert outcome.numbers["bleu4"] == pytest.approx(100 * told["bleu4"])
    assert outcome.numbers["meteor"] is None  # there is no Java
    assert outcome.sums.means["cider"] == pytest.approx(100 * told["cider"])
    assert outcome.sums.means["rouge_l"] == pytest.approx(100 * told["rouge_l"])
    # Read from the run's folder, also by tables in which the same place was a test set of retrieval before.
    monkeypatch.setattr(outcomes, "_measure", lambda *_: pytest.fail("measured again"))
    (again,) = outcomes_of(run, [test], torch.device("cpu"), digests={("retrieval", test): "another"})
    assert (again.numbers, again.sums.clips) == (outcome.numbers, outcome.sums.clips)
    rows = (
        Row("none", "plain", "msrvtt-caption", tests=("folder",)),
        Row("calm", "  with CALM", "msrvtt-caption", (), ("folder",), "none", {"folder": {"cider": 59.3}}),
    )
    measured = {row.key: {"folder": [outcome, outcome]} for row in rows}
    folders = {row.key: [str(run.folder)] * 2 for row in rows}
    filled = fill(Table("table4", "", rows), measured, folders, data="x", seeds=(24, 25), overrides=(), left_out={})
    line = filled.blocks[0].lines[1]
    assert filled.headline == "cider" and line.gains["cider"].difference == 0 and line.numbers["meteor"] is None
    assert line.paper_gap is not None and line.paper_gap.exceeds_noise is None


@pytest.mark.parametrize("edit", ["number", "list", "nothing", "not JSON"])
def test_an_outcome_that_was_edited_is_measured_again(tmp_path, edit):
    content = {"weights": "w", "test_set": "t", "numbers": {"r1": 12.5}}
    path = tmp_path / "outcomes-demo.json"
    written = {**content, "sha256": outcomes._digest(content)}
    texts = {"number": json.dumps(written).replace("12.5", "92.5"), "list": "[]", "nothing": "", "not JSON": "{"}
    path.write_text(texts[edit])
    assert outcomes._read(path, "w", "t") is None
