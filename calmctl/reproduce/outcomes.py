"""What a finished run does on its test sets, query by query, measured once and kept in the run's folder."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from calmctl.captions.evaluate import CaptionEvaluation, Captioning, caption_sums
from calmctl.captions.score import CaptionResult
from calmctl.errors import BadInput
from calmctl.evaluation.card import Card
from calmctl.evaluation.result import RetrievalResult
from calmctl.evaluation.retrieval import Evaluation, Retrieval
from calmctl.evaluation.runs import evaluate_run
from calmctl.evaluation.statistics import ClipSums, clip_sums
from calmctl.files import read_json, sha256_bytes, sha256_file, write_json
from calmctl.runs.run import Run
from calmctl.source.base import SourceSpec
from calmctl.source.source import open_source
from calmctl.words import Progress

# The best epoch on validation: the test split chooses nothing.
_WEIGHTS = "best"
# As the paper prints them; of these, captions/evaluate.py has under the same name those that are means over clips.
CAPTION_METRICS = ("bleu4", "meteor", "cider", "rouge_l")


@dataclass(frozen=True, slots=True)
class Outcome:
    """One run on one test set.

    Attributes:
        dataset: Tested on.
        protocol: Its protocol, "" where there is only one.
        trained_on: The dataset that was trained on.
        numbers: Metrics as tables print them; None where one could not be computed.
        sums: Outcomes by clip, of the metrics that are means over queries.
        n_queries: Sentences or, for captions, clips.
        left_out: Clips of the test set that could not be used.
        published: Whether the paper's numbers may stand beside these (`Labels.published`, and no clip left out).
        leak_r1: R@1 of the same weights under the released T-MASS protocol: an audit of a leak. None for other
            heads, and where a clip has several sentences.
        caveats: What must be said wherever the numbers are shown.
    """

    dataset: str
    protocol: str
    trained_on: str
    numbers: dict[str, float | None]
    sums: ClipSums
    n_queries: int
    left_out: int
    scorer: str
    published: bool
    leak_r1: float | None
    caveats: tuple[str, ...]
    card: Card


def outcomes_of(
    run: Run,
    tests: Sequence[SourceSpec],
    device: torch.device,
    progress: Progress | None = None,
    digests: dict[tuple[str, SourceSpec], str] | None = None,
) -> list[Outcome]:
    """Outcomes of the best weights on validation of a finished run, kept in its folder and read from there.

    `digests` tell what the test sets hold, by task, as far as earlier calls have looked; this one adds what it finds.

    Raises:
        CalmError: As `evaluate_run`.
    """
    # Weights and test set by their digests: either may change under its name, and what is kept would be of the
    # former.
    weights_digest, recipe = sha256_file(run.weights(_WEIGHTS)), run.recipe()
    digests = {} if digests is None else digests
    outcomes: dict[str, Outcome] = {}
    for test in tests:
        # A place may hold one test set for retrieval and another for captions.
        if (key := (run.task, test)) not in digests:
            # Of clips, captions and gaps: data that was completed or exchanged is measured again.
            digests[key] = open_source(test, recipe, val=False).record("test").whole
        kept = _read(_file(run, test), weights_digest, digests[key])
        if kept is not None:
            outcomes[test.dataset] = kept
    missing = [test for test in tests if test.dataset not in outcomes]
    if missing:
        for test, outcome in zip(missing, _measure(run, missing, device, progress), strict=True):
            outcomes[test.dataset] = outcome
            content = {"weights": weights_digest, "test_set": digests[run.task, test], **_plain(outcome)}
            write_json(_file(run, test), {**content, "sha256": _digest(content)})
    return [outcomes[test.dataset] for test in tests]


def are_kept(run: Run, tests: Sequence[SourceSpec]) -> bool:
    """Whether a run's folder has outcomes of these test sets; `outcomes_of` looks whether they still hold."""
    return all(_file(run, test).is_file() for test in tests)


def _measure(run: Run, tests: Sequence[SourceSpec], device: torch.device, progress: Progress | None) -> list[Outcome]:
    """The outcomes of a run; without intervals, which tables make of seeds and clips together."""
    if run.task == "caption":
        captions = evaluate_run(run, tests, Captioning(), which=_WEIGHTS, device=device, progress=progress)
        return [_of_captions(each) for each in captions]
    # The audit of T-MASS's leak stands in a column of its own: published rows may have it (docs/protocols.md).
    retrieval = Retrieval(intervals=False, audited=True)
    retrieved = evaluate_run(run, tests, retrieval, which=_WEIGHTS, device=device, progress=progress)
    return [_of_retrieval(each) for each in retrieved]


def _of_retrieval(evaluation: Evaluation) -> Outcome:
    metrics = evaluation.result.metrics["text_to_video"]
    return _outcome(
        evaluation.result,
        numbers={name: float(getattr(metrics, name)) for name in ("r1", "r5", "r10", "mdr", "mnr")},
        sums=clip_sums(evaluation.ranks["text_to_video"], evaluation.encoded.ids),
        n_queries=evaluation.result.n_captions,
        scorer=evaluation.result.labels.scorer,
        leak_r1=evaluation.leak_r1,
    )


def _of_captions(evaluation: CaptionEvaluation) -> Outcome:
    scores = evaluation.result.scores
    values = {name: getattr(scores, name) for name in CAPTION_METRICS}
    return _outcome(
        evaluation.result,
        numbers={name: None if value is None else 100.0 * value for name, value in values.items()},
        sums=caption_sums(evaluation),
        n_queries=scores.n,
        scorer=f"pycocoevalcap {scores.pycocoevalcap}, tokens of {scores.tokenizer}",
        leak_r1=None,
    )


def _outcome(result: RetrievalResult | CaptionResult, **measured: Any) -> Outcome:
    labels = result.labels
    return Outcome(
        dataset=labels.dataset,
        protocol=labels.protocol,
        trained_on=labels.trained_on,
        left_out=result.left_out,
        published=labels.published and not result.left_out,
        caveats=result.caveats,
        card=result.card,
        **measured,
    )


def _file(run: Run, test: SourceSpec) -> Path:
    return run.folder / f"outcomes-{test.dataset}.json"


def _plain(outcome: Outcome) -> dict[str, Any]:
    sums = outcome.sums
    return {
        **{name: getattr(outcome, name) for name in Outcome.__dataclass_fields__ if name not in ("sums", "card")},
        "card": outcome.card.to_json(),
        # A mean alone could not be compared: differences are paired over clips.
        "by_clip": {
            "clips": sums.clips,
            "metrics": sums.metrics,
            "sums": sums.sums.tolist(),
            "queries": sums.sizes.tolist(),
        },
    }


def _digest(content: Mapping[str, Any]) -> str:
    return sha256_bytes(json.dumps(content, sort_keys=True).encode("ascii"))


def _read(path: Path, digest: str, contents: str) -> Outcome | None:
    """The outcome in `path`, if it is of these weights on this test set, and as it was written."""
    try:
        values = read_json(path, what="outcomes of a run")
    except BadInput:
        return None
    if not isinstance(values, dict) or values.pop("sha256", None) != _digest(values):  # edited, or of before
        return None
    if values.pop("weights", None) != digest or values.pop("test_set", None) != contents:
        return None
    by_clip = values.pop("by_clip", None)
    if by_clip is None or {*values, "sums"} != set(Outcome.__dataclass_fields__):  # of another version
        return None
    sums = ClipSums(
        tuple(by_clip["clips"]),
        tuple(by_clip["metrics"]),
        np.array(by_clip["sums"], dtype=np.float64),
        np.array(by_clip["queries"], dtype=np.float64),
    )
    card = Card.from_json(values["card"], str(path))
    return Outcome(**{**values, "caveats": tuple(values["caveats"]), "sums": sums, "card": card})
