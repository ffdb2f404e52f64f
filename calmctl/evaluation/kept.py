"""Evaluations that are kept in a run's folder, each query's rank with them, and two runs compared on the same queries.

    runs/NAME/evals/DATASET[-PROTOCOL]-SPLIT-WEIGHTS[-SCORER].json

A number alone cannot be compared with another: whether two runs differ is a question about the queries that both
answered (docs/protocols.md). So the ranks are kept; the last evaluation of a kind replaces the one before.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from calmctl.errors import BadInput
from calmctl.evaluation.bootstrap import PairedDifference, paired_differences
from calmctl.evaluation.captioning import CaptionEvaluation
from calmctl.evaluation.metrics import DIRECTIONS, Direction, Ranks, rank_queries
from calmctl.evaluation.retrieval import Evaluation
from calmctl.evaluation.seeds import ClipSums, differences_over_seeds
from calmctl.files import sha256_file, write_json
from calmctl.provenance import environment
from calmctl.runs.folder import Run

CAPTION_METRICS = ("cider", "rouge_l")
"""Metrics that are means over clips; BLEU and METEOR are not, so a difference of clips says nothing about theirs."""


def keep(run: Run, which: str, evaluation: Evaluation | CaptionEvaluation) -> Path:
    """Write an evaluation of the weights `which` into the folder of `run`. Raises `RunFailed` where it cannot."""
    result = evaluation.result
    scorer = evaluation.result.scorer if isinstance(evaluation, Evaluation) else "leak-free"
    words = [result.dataset, result.protocol, result.split, which, "" if scorer == "leak-free" else scorer]
    path = run.evals / f"{'-'.join(word for word in words if word)}.json"
    record: dict[str, Any] = {
        "run": str(run.folder),
        "weights": which,
        "weights_sha256": sha256_file(run.weights(which)),
        "result": result.to_json(),
    }
    if isinstance(evaluation, Evaluation):
        encoded = evaluation.encoded
        record |= {"clips": list(encoded.ids), "captions": list(encoded.captions), "owners": encoded.owners.tolist()}
        record["ranks"] = {direction: _plain(ranks) for direction, ranks in ranks_of(evaluation).items()}
    else:
        record["captions"] = {clip: caption.text for clip, caption in evaluation.captions.items()}
        record["clip_scores"] = {metric: evaluation.result.scores.segments[metric] for metric in CAPTION_METRICS}
    write_json(path, {**record, **environment()})
    return path


def ranks_of(evaluation: Evaluation) -> dict[Direction, Ranks]:
    """Where each query's target stands, by direction; re-ranked scores are those of sentences as queries alone."""
    directions = DIRECTIONS if evaluation.result.scorer != "dual-softmax" else DIRECTIONS[:1]
    return {each: rank_queries(evaluation.scores, evaluation.encoded.owners, each) for each in directions}


def compare(first: Evaluation, second: Evaluation) -> Mapping[Direction, Mapping[str, PairedDifference]]:
    """`second` minus `first` by direction and metric, paired over clips.

    Raises:
        BadInput: They did not answer the same queries among the same clips.
    """
    one, other = first.encoded, second.encoded
    same = one.ids == other.ids and one.captions == other.captions and np.array_equal(one.owners, other.owners)
    if not same:
        raise BadInput(
            f"{first.result.dataset}: the two runs were tested on other clips or captions ({len(one.ids)} clips and "
            f"{len(one.captions)} captions, {len(other.ids)} and {len(other.captions)}): they cannot be paired"
        )
    before, after = ranks_of(first), ranks_of(second)
    return {each: paired_differences(before[each], after[each]) for each in before if each in after}


def compare_captions(first: CaptionEvaluation, second: CaptionEvaluation) -> Mapping[str, PairedDifference]:
    """`second` minus `first` of `CAPTION_METRICS`, times 100, paired over clips.

    Raises:
        BadInput: They did not caption the same clips, or were scored by other references.
    """
    if first.references != second.references:
        raise BadInput(f"{first.result.dataset}: the two runs captioned other clips: they cannot be paired")
    return differences_over_seeds([_sums(first)], [_sums(second)])


def _sums(evaluation: CaptionEvaluation) -> ClipSums:
    segments = evaluation.result.scores.segments
    clips = tuple(segments["cider"])
    sums = np.array([[100.0 * segments[metric][clip] for metric in CAPTION_METRICS] for clip in clips])
    return ClipSums(clips, CAPTION_METRICS, sums, np.ones(len(clips)))


def _plain(ranks: Ranks) -> dict[str, Any]:
    columns = {"greater": ranks.greater, "equal": ranks.equal, "targets": ranks.targets, "clips": ranks.clips}
    return {name: column.tolist() for name, column in columns.items()} | {"n_candidates": ranks.n_candidates}
