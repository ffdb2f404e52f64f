"""`calmctl eval` of a captioning run."""

from __future__ import annotations

from typing import TYPE_CHECKING

from calmctl.cli.console import print_json, progress_bar, readings
from calmctl.errors import BadInput

if TYPE_CHECKING:
    from calmctl.evaluation.captioning import CaptionEvaluation
    from calmctl.evaluation.runs import TestSet
    from calmctl.runs.folder import Run


def evaluate_captioner(
    run: Run,
    tests: list[TestSet],
    *,
    weights: str,
    split: str,
    tokenizer: str,
    device: str,
    require_complete: bool,
    as_json: bool,
) -> None:
    """Caption the test sets with a run, score the captions and print both.

    Raises:
        CalmError: As `evaluate_caption_run`.
    """
    from calmctl.device import choose_device
    from calmctl.evaluation.caption_runs import evaluate_caption_run
    from calmctl.evaluation.captions.scorer import TOKENIZER_CHOICES

    choice = next((known for known in TOKENIZER_CHOICES if known == tokenizer), None)
    if choice is None:
        raise BadInput(f"--tokenizer {tokenizer} is not known; use one of {', '.join(TOKENIZER_CHOICES)}")
    with progress_bar("clips") as bar:
        evaluations = evaluate_caption_run(
            run,
            tests,
            which=weights,
            split=split,
            tokenizer=choice,
            device=choose_device(device),
            require_complete=require_complete,
            progress=readings(bar),
        )
    _print(evaluations, str(run.folder), as_json)


def _print(evaluations: list[CaptionEvaluation], run: str, as_json: bool) -> None:
    from calmctl.cli.caption_view import print_evaluations
    from calmctl.cli.train import print_left_out
    from calmctl.provenance import environment

    left_out = {each.result.dataset: {entry.id: entry.reason for entry in each.left_out} for each in evaluations}
    if as_json:
        results = [each.to_json() for each in evaluations]
        print_json({"run": run, "results": results, "left_out": left_out, **environment()})
        return
    print_evaluations(evaluations)
    print_left_out(left_out)
