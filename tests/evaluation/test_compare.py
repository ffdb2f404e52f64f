"""Kept evaluations beside one another: pairing, seeds, and tables for papers."""

import json

import numpy as np
import pytest
import torch

from calmctl.errors import BadInput
from calmctl.evaluation.card import Card
from calmctl.evaluation.compare import compare_kept, find_kept, latex, markdown, read_kept
from calmctl.evaluation.metrics import rank_all
from calmctl.evaluation.result import Labels, retrieval_result
from calmctl.evaluation.retrieval import Evaluation
from calmctl.evaluation.runs import keep
from calmctl.evaluation.statistics import differences_over_seeds, paired_differences
from calmctl.recipe import recipe_from_dict
from calmctl.runs.run import create_run
from calmctl.source.encoding import EncodedSplit

CLIPS = 30
OWNERS = np.repeat(np.arange(CLIPS), 2)


def evaluated(
    root, name, seed, *, signal=1.0, ids="clip", left_out=0, weights=b"weights", run=None, recipe=(), frames=12
):
    """A run whose kept evaluation ranks by noise with a signal."""
    if run is None:
        values = {"name": name, "data": {"dataset": "demo"}}
        run = create_run(root, recipe_from_dict(values, overrides=[f"seed={seed}", *recipe]))
    run.weights("best").write_bytes(weights)
    rng = np.random.default_rng(seed)
    scores = rng.standard_normal((2 * CLIPS, CLIPS))
    scores[np.arange(2 * CLIPS), OWNERS] += signal
    names, captions = tuple(f"{ids}{n}" for n in range(CLIPS)), tuple(f"caption {n}" for n in range(2 * CLIPS))
    encoded = EncodedSplit(torch.zeros(60, 4), torch.zeros(CLIPS, 2, 4), OWNERS, names, captions)
    ranks = rank_all(scores, OWNERS)
    card = Card(frames=frames)
    labels = Labels(dataset="demo", protocol="retrieval", test_set={"digest": ids}, card=card)
    evaluation = Evaluation(retrieval_result(ranks, labels, left_out=left_out), scores, encoded, ranks)
    return run, evaluation, read_kept(run, keep(run, "best", evaluation))


def test_two_runs_differ_as_their_ranks_do(tmp_path):
    first, second = evaluated(tmp_path, "a", 1), evaluated(tmp_path, "b", 2, signal=2.0, recipe=["head.kind=meanp"])
    comparison = compare_kept([first[2], second[2]])
    one, other = comparison.systems
    assert (comparison.clips, comparison.captions, comparison.left_out) == (CLIPS, 2 * CLIPS, 0)
    for way in ("text_to_video", "video_to_text"):
        by_hand = paired_differences(first[1].ranks[way], second[1].ranks[way])
        for metric in ("r1", "r5", "r10", "mnr"):
            ours = other.differences[way][metric]
            assert ours.difference == pytest.approx(by_hand[metric].difference)
            assert ours.p_value == pytest.approx(by_hand[metric].p_value)
            assert one.metrics[way][metric].mean == getattr(first[1].result.metrics[way], metric)
        own = second[1].result.intervals[way]
        assert other.intervals[way]["r1"] == own.r1, "the interval that eval printed"
    assert not one.differences and comparison.recipe == {"head.kind": ["t-mass", "meanp"]}
    assert any("another seed differs as well" in caveat for caveat in comparison.caveats)


def test_runs_that_differ_in_the_seed_alone_are_one_system(tmp_path):
    three = [evaluated(tmp_path, "a", seed) for seed in (1, 2, 3)]
    two = [evaluated(tmp_path, "b", seed, signal=2.0, recipe=["optim.epochs=9"]) for seed in (1, 2)]
    mixed = [three[0], two[0], three[1], two[1], three[2]]
    comparison = compare_kept([each[2] for each in mixed])
    one, other = comparison.systems
    assert (one.seeds, other.seeds) == ((1, 2, 3), (1, 2)) and one.name == "a-001 and 2 other seeds"
    values = [each[1].result.metrics["text_to_video"].r1 for each in three]
    assert one.metrics["text_to_video"]["r1"].mean == pytest.approx(np.mean(values))
    assert one.metrics["text_to_video"]["r1"].std == pytest.approx(np.std(values, ddof=1))
    bounds = one.intervals["text_to_video"].values()
    assert all(0 <= each.low <= each.high for each in bounds) and one.intervals["text_to_video"]["r10"].high <= 100
    sums = [[each[2].sums["text_to_video"] for each in group] for group in (three, two)]
    assert other.differences["text_to_video"] == differences_over_seeds(*sums)
    assert comparison.recipe == {"optim.epochs": [5, 9]} and not comparison.caveats


def test_other_clips_are_refused(tmp_path):
    first, second = evaluated(tmp_path, "a", 1), evaluated(tmp_path, "b", 2, ids="other")
    with pytest.raises(BadInput, match=r"a-001 and .*b-001 were tested on other clips or captions"):
        compare_kept([first[2], second[2]])
    with pytest.raises(BadInput, match="at least two"):
        compare_kept([first[2]])


def test_another_protocol_on_the_same_queries_is_told(tmp_path):
    first, second = evaluated(tmp_path, "a", 1), evaluated(tmp_path, "b", 2, frames=4)
    (told,) = [each for each in compare_kept([first[2], second[2]]).caveats if "protocol" in each]
    assert told == "the protocol of a-001 and b-001 differs: frames a clip: 12 and 4"
    again = evaluated(tmp_path, "c", 3)
    comparison = compare_kept([first[2], again[2]])
    assert not any("protocol of" in each for each in comparison.caveats)
    assert comparison.card == first[1].result.card.column and comparison.card in markdown(comparison)


def test_an_evaluation_of_other_weights_is_not_taken(tmp_path):
    run, _, kept = evaluated(tmp_path, "a", 1)
    found = find_kept(run, "demo", "retrieval", split="test", weights="best")
    assert found is not None and found.path == kept.path
    assert find_kept(run, "demo", "retrieval", split="val", weights="best") is None
    assert find_kept(run, "demo-shifted", "retrieval", split="test", weights="best") is None
    run.weights("best").write_bytes(b"it went on")
    assert find_kept(run, "demo", "retrieval", split="test", weights="best") is None


def test_every_evaluation_is_kept(tmp_path):
    run, _, first = evaluated(tmp_path, "a", 1)
    _, _, again = evaluated(tmp_path, "a", 1, run=run)
    _, _, moved = evaluated(tmp_path, "a", 1, run=run, ids="other")
    _, _, later = evaluated(tmp_path, "a", 1, run=run, weights=b"it went on")
    _, _, other = evaluated(tmp_path, "a", 1, run=run, weights=b"it went on", frames=4)
    assert first.path == again.path, "the same weights on the same clips"
    names = ["demo-retrieval-test-best.json", *(f"demo-retrieval-test-best-{n}.json" for n in (2, 3, 4))]
    assert [each.path.name for each in (first, moved, later, other)] == names
    assert [each.is_current for each in (first, moved, later, other)] == [False, False, True, True]
    for like in (later, other):
        found = find_kept(run, "demo", "retrieval", split="test", weights="best", like=like)
        assert found is not None and found.path == like.path, "by the same protocol"


def test_the_wrong_clip_that_a_sentence_likes_best_is_kept(tmp_path):
    _, evaluation, kept = evaluated(tmp_path, "a", 1)
    for query, rival in enumerate(kept.record["rivals"]):
        others = np.delete(np.arange(CLIPS), OWNERS[query])
        assert rival == others[evaluation.scores[query, others].argmax()]


def test_tables_for_papers_say_what_they_are_of(tmp_path):
    first = evaluated(tmp_path, "a_b.c", 1, left_out=2)
    second = evaluated(tmp_path, "b", 2, signal=2.0, left_out=2, recipe=["head.kind=meanp"])
    comparison = compare_kept([first[2], second[2]])
    text = latex(comparison)
    assert r"a\_b.c-001" in text and text.count(r"\toprule") == text.count(r"\bottomrule") == 1
    assert "2 clips of the test set are missing" in text and "demo retrieval, test split: 60 captions, 30 clips" in text
    width = text.count("r", text.index("{l"), text.index("}\n", text.index("{l"))) + 1
    rows = [line for line in text.splitlines() if line.endswith(r"\\") and "multicolumn" not in line]
    assert len(rows) == 5 and all(row.count("&") == width - 1 for row in rows)
    assert "95 \\%" in text and not any(line.startswith("-") for line in text.splitlines())
    page = markdown(comparison)
    assert page.count("| a_b.c-001 |") == 2 and "2 clips of the test set are missing" in page
    difference = comparison.systems[1].differences["text_to_video"]["r1"]
    assert f"{difference.difference:+.1f} ({difference.interval.low:+.1f} to" in page


def test_rows_are_one_a_number(tmp_path):
    comparison = compare_kept([evaluated(tmp_path, "a", 1)[2], evaluated(tmp_path, "b", 2, recipe=["seed=5"])[2]])
    rows = comparison.rows()
    assert len(rows) == len(comparison.systems) * 3 * 5
    assert json.dumps(comparison.to_json()) and len({tuple(row) for row in rows}) == 1, "one header serves all rows"


def test_a_damaged_file_is_a_sentence(tmp_path):
    run, _, kept = evaluated(tmp_path, "a", 1)
    kept.path.write_text("[]")
    with pytest.raises(BadInput, match=r"no evaluation that calmctl kept; .*calmctl eval"):
        read_kept(run, kept.path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda record: record["ranks"]["text_to_video"].pop("n_candidates"), "numbers cannot be read .KeyError"),
        (lambda record: record["ranks"]["text_to_video"]["greater"].pop(), "numbers cannot be read .ValueError"),
        (lambda record: record.update(clips=[]), "numbers cannot be read .[A-Z]"),
        (lambda record: record["result"]["metrics"].clear(), "numbers cannot be read .KeyError"),
        (lambda record: record["result"].update(intervals={"text_to_video": {"r1": {"x": 1}}}), "cannot be read .Type"),
        (lambda record: record.update(weights="../../elsewhere"), "no evaluation that calmctl kept"),
    ],
)
def test_numbers_that_somebody_changed_are_a_sentence(tmp_path, change, message):
    run, _, kept = evaluated(tmp_path, "a", 1)
    record = json.loads(kept.path.read_text())
    change(record)
    kept.path.write_text(json.dumps(record))
    with pytest.raises(BadInput, match=message):
        read_kept(run, kept.path)
