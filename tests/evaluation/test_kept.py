"""Evaluations in a run's folder, and two of them compared, against a bootstrap written out query by query."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from calmctl.errors import BadInput, RunFailed
from calmctl.evaluation.metrics import rank_all, rank_queries
from calmctl.evaluation.result import Labels, retrieval_result
from calmctl.evaluation.retrieval import Evaluation, Retrieval
from calmctl.evaluation.runs import compare, evaluate_run, keep
from calmctl.files import sha256_file
from calmctl.runs.run import Run
from calmctl.source.base import SourceSpec
from calmctl.source.encoding import EncodedSplit

GOLDEN = Path(__file__).parents[1] / "golden"
OWNERS = np.repeat(np.arange(30), 2)


def evaluation(seed: int, *, noise: float = 1.0, ids: str = "clip", scorer: str = "leak-free") -> Evaluation:
    rng = np.random.default_rng(seed)
    scores = noise * rng.standard_normal((60, 30))
    scores[np.arange(60), OWNERS] += 1.0
    names = tuple(f"{ids}{n}" for n in range(30))
    captions = tuple(f"caption {n}" for n in range(60))
    encoded = EncodedSplit(torch.zeros(60, 4), torch.zeros(30, 2, 4), OWNERS, names, captions)
    ranks = rank_all(scores, OWNERS)
    result = retrieval_result(ranks, Labels(dataset="demo", protocol="retrieval", scorer=scorer))
    return Evaluation(result, scores, encoded, ranks)


def test_an_evaluation_is_kept_with_each_query_s_rank(tmp_path):
    run, made = Run(tmp_path / "run"), evaluation(0)
    run.folder.mkdir()
    run.weights("best").write_bytes(b"weights")
    path = keep(run, "best", made)
    assert path == tmp_path / "run/evals/demo-retrieval-test-best.json"
    record = json.loads(path.read_text())
    assert record["weights_sha256"] == sha256_file(run.weights("best")) and record["packages"]["torch"]
    assert record["result"] == json.loads(json.dumps(made.result.to_json()))
    ranks = record["ranks"]["text_to_video"]
    own = made.scores[np.arange(60), OWNERS]
    assert ranks["greater"] == [int((row > mine).sum()) for row, mine in zip(made.scores, own, strict=True)]
    assert ranks["clips"] == OWNERS.tolist() and record["clips"][OWNERS[5]] == "clip2"
    assert keep(run, "best", evaluation(0, scorer="dual-softmax")).name == "demo-retrieval-test-best-dual-softmax.json"
    again = json.loads((run.evals / "demo-retrieval-test-best-dual-softmax.json").read_text())
    assert list(again["ranks"]) == ["text_to_video"], "the other direction is ranked by other scores"


def test_what_is_kept_names_the_weights_that_were_evaluated(tmp_path):
    """A training that goes on has put others in their place by then."""
    run, made = Run(tmp_path / "run"), evaluation(0)
    run.folder.mkdir()
    run.weights("best").write_bytes(b"later weights")
    labels = replace(made.result.labels, card=replace(made.result.labels.card, weights="0" * 64))
    path = keep(run, "best", replace(made, result=replace(made.result, labels=labels)))
    assert json.loads(path.read_text())["weights_sha256"] == "0" * 64
    shutil.rmtree(run.folder)
    with pytest.raises(RunFailed, match="has been removed"):
        keep(run, "best", made)
    assert not run.folder.exists()


def test_weights_that_change_while_they_are_read_give_no_number(tmp_path):
    run = Run(shutil.copytree(GOLDEN / "runs/frozen-001", tmp_path / "run"))

    class Overtaken(Retrieval):
        def load(self, run, which, device):
            model, weights = super().load(run, which, device), run.weights(which)
            shutil.copy(weights, tmp_path / "later")
            (tmp_path / "later").replace(weights)  # as a training does after its next epoch
            return model

    test = SourceSpec("demo", None, features=GOLDEN / "features/demo")
    with pytest.raises(RunFailed, match="its training goes on; evaluate again"):
        evaluate_run(run, [test], Overtaken(), device=torch.device("cpu"))
    assert evaluate_run(run, [test], Retrieval(), device=torch.device("cpu"))


def test_two_runs_are_compared_on_the_same_queries():
    first, second = evaluation(1, noise=1.5), evaluation(2, noise=0.5)
    found = compare(first, second)["text_to_video"]["r1"]
    hits = [rank_queries(each.scores, OWNERS).recall(1) for each in (first, second)]
    change = 100 * (hits[1] - hits[0])
    assert found.difference == pytest.approx(change.mean())
    by_clip = np.array([change[clip == OWNERS].mean() for clip in range(30)])
    drawn = [by_clip[np.random.default_rng(n).integers(0, 30, 30)].mean() for n in range(2000)]
    low, high = np.quantile(drawn, [0.025, 0.975])
    # The interval counts one clip more, which did not change: it lies nearer 0 than the resampled one.
    assert (found.interval.low, found.interval.high) == pytest.approx((low, high), abs=4)
    assert found.interval.low > 0 and found.n_clusters == 30


def test_runs_that_saw_other_clips_are_not_paired():
    with pytest.raises(BadInput, match="other clips or captions"):
        compare(evaluation(1), evaluation(2, ids="other"))
