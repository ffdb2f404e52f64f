"""`calmctl eval` of a captioning run."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

from calmctl.cli.console import print_json, printable, progress_bar, readings, stdout
from calmctl.errors import BadInput

if TYPE_CHECKING:
    from calmctl.evaluation.runs import TestSet
    from calmctl.runs.folder import Run


def evaluate_captioners(
    runs: list[Run],
    tests: list[TestSet],
    *,
    weights: str,
    split: str,
    tokenizer: str,
    device: str,
    require_complete: bool,
    as_json: bool,
) -> None:
    """Caption the test sets with runs, score the captions, print and keep both, and compare the first with the others.

    Raises:
        CalmError: As `evaluate_caption_run`.
    """
    from calmctl.cli.caption_view import print_evaluations
    from calmctl.cli.console import print_left_out
    from calmctl.cli.eval import keep_evaluations, print_differences
    from calmctl.device import choose_device
    from calmctl.evaluation.caption_runs import evaluate_caption_run
    from calmctl.evaluation.captioning import compare_captions
    from calmctl.evaluation.captions.scorer import TOKENIZER_CHOICES
    from calmctl.provenance import environment

    choice = next((known for known in TOKENIZER_CHOICES if known == tokenizer), None)
    if choice is None:
        raise BadInput(f"--tokenizer {tokenizer} is not known; use one of {', '.join(TOKENIZER_CHOICES)}")
    evaluated = []
    with progress_bar("clips") as bar:
        for run in runs:
            evaluated.append(
                evaluate_caption_run(
                    run,
                    tests,
                    which=weights,
                    split=split,
                    tokenizer=choice,
                    device=choose_device(device),
                    require_complete=require_complete,
                    progress=readings(bar),
                )
            )
    first, *others = evaluated
    left_out = {each.result.dataset: {clip.id: clip.reason for clip in each.left_out} for each in first}
    differences = [
        (theirs.result, run, compare_captions(theirs, each))
        for run, other in zip(runs[1:], others, strict=True)
        for each, theirs in zip(first, other, strict=True)
    ]
    if as_json:
        compared = [
            {
                "dataset": theirs.dataset,
                "against": str(run.folder),
                "caveats": list(theirs.caveats),
                **{name: asdict(each) for name, each in found.items()},
            }
            for theirs, run, found in differences
        ]
        record = {"run": str(runs[0].folder), "results": [each.to_json() for each in first], "left_out": left_out}
        print_json({**record, **({"differences": compared} if compared else {}), **environment()})
    else:
        for run, evaluations in zip(runs, evaluated, strict=True):
            if len(runs) > 1:
                stdout().print(f"[bold]{printable(str(run.folder))}[/]")
            print_evaluations(evaluations)
        for theirs, run, found in differences:
            print_differences(f"{theirs.dataset}, times 100", runs[0], run, found, ("CIDEr", "ROUGE-L"))
    print_left_out(left_out)
    keep_evaluations(runs, weights, evaluated)
