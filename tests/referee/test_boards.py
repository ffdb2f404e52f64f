"""Leaderboards: our nDCG, recall and hits are those of mteb's and pytrec_eval's own code, and its result files."""

import json
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from calmctl.cli.main import app
from calmctl.evaluation.metrics import Ranks
from calmctl.evaluation.result import Labels
from calmctl.referee.rank_files import board_metrics, format_board
from calmctl.referee.score_files import Pairs
from calmctl.referee.scores import Matrix, judge_scores, match

DEPTHS = (1, 3, 5, 10, 20)


def drawn(seed: int, captions: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Scores without ties, also in the float32 that trec_eval reads, and whose each caption is."""
    rng = np.random.default_rng(seed)
    owners = np.repeat(np.arange(len(captions)), captions)
    places = rng.permutation(len(owners) * len(captions)).reshape(len(owners), len(captions))
    places[np.arange(len(owners)), owners] += rng.integers(0, places.size, len(owners)) * 2
    scores = np.argsort(np.argsort(places, axis=None, kind="stable")).reshape(places.shape) / 1024
    assert len(np.unique(scores.astype(np.float32))) == scores.size
    return scores, owners


def verdict(scores: np.ndarray, owners: np.ndarray) -> Any:
    pairs = Pairs("pairs", {str(n): str(owner) for n, owner in enumerate(owners.tolist())})
    return judge_scores(Matrix(scores), match(scores.shape, pairs), Labels(scorer="given"))


def trec(scores: np.ndarray, owners: np.ndarray, direction: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Right answers and results by query, as both libraries take them."""
    texts, videos = [f"t{n}" for n in range(len(scores))], [f"v{n}" for n in range(scores.shape[1])]
    if direction == "text_to_video":
        right = {text: {videos[owner]: 1} for text, owner in zip(texts, owners, strict=True)}
        return right, {t: dict(zip(videos, row.tolist(), strict=True)) for t, row in zip(texts, scores, strict=True)}
    right = {v: {texts[t]: 1 for t in np.flatnonzero(owners == n)} for n, v in enumerate(videos)}
    return right, {v: dict(zip(texts, scores[:, n].tolist(), strict=True)) for n, v in enumerate(videos)}


SIZES = [(1,) * 30, (1, 2, 3, 5, 8, 1), (20,) * 5]


@pytest.mark.parametrize("direction", ["text_to_video", "video_to_text"])
@pytest.mark.parametrize("captions", SIZES)
def test_numbers_are_those_of_trec_eval(captions: tuple[int, ...], direction: Any) -> None:
    pytrec_eval = pytest.importorskip("pytrec_eval", reason="pytrec_eval is not installed")
    scores, owners = drawn(len(captions), captions)
    right, results = trec(scores, owners, direction)
    wanted = {f"{name}.{','.join(map(str, DEPTHS))}" for name in ("ndcg_cut", "recall", "success", "P", "map_cut")}
    theirs = list(pytrec_eval.RelevanceEvaluator(right, wanted).evaluate(results).values())
    ours = board_metrics(verdict(scores, owners), direction, DEPTHS)
    for k in DEPTHS:
        for name, their_name in (("ndcg", "ndcg_cut"), ("recall", "recall"), ("hit", "success"), ("precision", "P")):
            assert ours[f"{name}@{k}"] == pytest.approx(np.mean([q[f"{their_name}_{k}"] for q in theirs]), abs=1e-9)
        if direction == "text_to_video":
            assert ours[f"map@{k}"] == pytest.approx(np.mean([q[f"map_cut_{k}"] for q in theirs]), abs=1e-9)


@pytest.mark.parametrize("direction", ["text_to_video", "video_to_text"])
@pytest.mark.parametrize("captions", SIZES)
def test_numbers_are_those_of_mteb_which_reads_our_file(captions: tuple[int, ...], direction: Any) -> None:
    metrics = pytest.importorskip("mteb._evaluators.retrieval_metrics", reason="mteb is not installed")
    scores, owners = drawn(7 + len(captions), captions)
    right, results = trec(scores, owners, direction)
    depths = (1, 3, 5, 10, 20, 100, 1000)
    theirs = metrics.calculate_retrieval_scores(results, right, depths)
    ours = board_metrics(verdict(scores, owners), direction, depths)
    for k in depths:
        each = [q for q in theirs.all_scores.values()]
        assert ours[f"ndcg@{k}"] == pytest.approx(np.mean([q[f"ndcg_cut_{k}"] for q in each]), abs=1e-9)
        assert ours[f"hit@{k}"] == pytest.approx(theirs.hit_rate[f"HitRate@{k}"], abs=1e-5), "theirs are rounded"
        assert ours[f"recall@{k}"] == pytest.approx(theirs.recall[f"Recall@{k}"], abs=1e-5)
        assert ours[f"mrr@{k}"] == pytest.approx(theirs.mrr[f"MRR@{k}"], abs=1e-9)
    from mteb.results import TaskResult

    record = json.loads(format_board(verdict(scores, owners), "mteb", "MSVDT2V", direction))
    read = TaskResult.model_validate(record)
    assert read.scores["test"][0]["main_score"] == pytest.approx(theirs.ndcg["NDCG@10"], abs=1e-5)
    keys = {key for key in record["scores"]["test"][0] if "_at_" in key}
    known = metrics.make_score_dict(
        ndcg=theirs.ndcg, _map=theirs.map, recall=theirs.recall, precision=theirs.precision, mrr=theirs.mrr,
        naucs={}, naucs_mrr={}, hit_rate=theirs.hit_rate, task_scores={},
    )  # fmt: skip
    assert keys <= set(known)


def test_reciprocal_ranks_are_cut_fairly() -> None:
    """Over all orders of the equals: what stands behind the first k counts nothing."""
    for greater, equal, targets in ((0, 0, 1), (1, 3, 1), (0, 3, 2), (2, 2, 3), (3, 1, 2), (4, 0, 2)):
        ranks = Ranks(*(np.array([each]) for each in (greater, equal, targets, 0)), n_candidates=12)
        orders = set(permutations([False] * equal + [True] * targets))
        firsts = [greater + 1 + order.index(True) for order in orders]
        for k in (1, 2, 3, 5, 12, 99):
            expected = np.mean([1 / first if first <= k else 0.0 for first in firsts])
            assert ranks.reciprocal(k)[0] == pytest.approx(expected), (greater, equal, targets, k)
        assert ranks.reciprocal()[0] == pytest.approx(ranks.reciprocal(12)[0])


def test_the_command_prints_result_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    scores, owners = drawn(3, (1,) * 40)
    np.save("s.npy", scores)
    Path("pairs.csv").write_text("text_id,video_id\n" + "".join(f"{n},{o}\n" for n, o in enumerate(owners)))
    base = ["score", "matrix", "s.npy", "--pairs", "pairs.csv"]
    run = CliRunner()
    board = json.loads(run.invoke(app, [*base, "--format", "mmeb"]).stdout)
    plain = json.loads(run.invoke(app, [*base, "--json"]).stdout)
    assert board["hit@1"] == pytest.approx(plain["metrics"]["text_to_video"]["r1"] / 100)
    assert board["ndcg_linear@10"] == pytest.approx(plain["further"]["text_to_video"]["ndcg10"] / 100)
    assert (board["num_pred"], board["num_data"]) == (40, 40) and board["calmctl_card"]["queries"] == 40
    mteb = json.loads(
        run.invoke(app, [*base, "--format", "mteb", "--mteb-task", "T", "--direction", "video_to_text"]).stdout
    )
    assert mteb["task_name"] == "T" and mteb["scores"]["test"][0]["hf_subset"] == "default"
    for wrong, message in (
        (["--format", "mteb"], "say of which task"),
        (["--format", "x"], "--format x is not known"),
        (["--format", "mmeb", "--json"], "leave --against and --json out"),
        (["--direction", "up"], "--direction up is not known"),
    ):
        assert message in str(run.invoke(app, [*base, *wrong]).exception)


def test_embeddings_against_embeddings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    videos = rng.normal(size=(60, 16))
    for name, noise in (("good", 1.0), ("bad", 3.0)):
        np.save(f"{name}-t.npy", videos + noise * rng.normal(size=(60, 16)))
    np.save("v.npy", videos)
    Path("pairs.csv").write_text("text_id,video_id\n" + "".join(f"{n},{n}\n" for n in range(60)))
    base = ["score", "embeddings", "good-t.npy", "v.npy", "--pairs", "pairs.csv", "--json", "--against"]
    found = json.loads(CliRunner().invoke(app, [*base, "bad-t.npy,v.npy"]).stdout)
    assert found["differences"][0]["text_to_video"]["r1"]["difference"] > 10
    assert "with a comma between them" in str(CliRunner().invoke(app, [*base, "bad-t.npy"]).exception)
