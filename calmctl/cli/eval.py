"""`calmctl eval`: honest numbers of a run, in and out of its domain."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from calmctl.cli import options
from calmctl.cli.console import (
    loading,
    note,
    print_differences,
    print_evaluations,
    print_json,
    print_left_out,
    printable,
    progress_bar,
    readings,
    stdout,
)
from calmctl.errors import BadInput, RunFailed

if TYPE_CHECKING:
    from calmctl.captions.evaluate import CaptionEvaluation
    from calmctl.evaluation.retrieval import Evaluation
    from calmctl.runs.run import Run
    from calmctl.source.base import SourceSpec


# As in evaluation/retrieval.py, which imports torch.
SCORERS = ("leak-free", "re-ranked", "tmass-released", "dual-softmax")

EXAMPLES = options.examples(
    "calmctl eval                           # the newest run, on its own test set",
    "calmctl eval --cross lsmdc             # the newest run, out of domain",
    "calmctl eval runs/msrvtt-001 --cross didemo --cross lsmdc --root /data",
    "calmctl eval runs/demo-001 --against runs/demo-without-001",
    "calmctl eval runs/msrvtt-001 --scorer tmass-released    # audit of a leak",
)


def evaluate(
    run: options.RunArgument = None,
    cross: options.Cross = None,
    against: options.Against = None,
    scorer: Annotated[
        str | None,
        typer.Option(help="leak-free, or re-ranked; dual-softmax and tmass-released are labelled.", show_default=False),
    ] = None,
    tokenizer: options.Tokenizer = "ptb",
    as_json: options.Json = False,
    root: options.Root = None,
    annotations: options.Annotations = None,
    videos: options.Videos = None,
    features: options.Features = None,
    split: options.Split = "test",
    require_complete: options.RequireComplete = False,
    save_scores: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write all scores: .npz, for calmctl score matrix.")
    ] = None,
    weights: options.Weights = "best",
    device: options.Device = "auto",
    runs: options.Runs = Path("runs"),
) -> None:
    """Evaluate a run, in and out of its domain.

    Retrieval both ways, or captions, with intervals, beside the paper's numbers.

    Results are kept in RUN/evals, each query's rank with them.
    """
    from calmctl.device import check_device
    from calmctl.runs.run import WEIGHTS, describe_choice, find_run

    chosen = find_run(run, runs)
    others = [find_run(name, runs) for name in against or []]
    check_device(device)
    if scorer is not None:
        options.require_known("--scorer", scorer, SCORERS)
    options.require_known("--weights", weights, WEIGHTS)
    options.require_known("--split", split, ("test", "val"))
    recipe = chosen.recipe()
    # What is wrong with the arguments is said before torch is imported, which takes seconds.
    options.check_cross(recipe, cross, features)
    for other in others:
        if other.task != chosen.task:
            raise BadInput(f"{chosen.folder} and {other.folder} are runs of two tasks, which share no number")
    if recipe.task == "caption" and scorer not in (None, "leak-free"):
        raise BadInput(f"--scorer {scorer} is about retrieval; {chosen.folder} is a captioning run")
    if save_scores is not None:
        _check_save(save_scores, recipe.task, len(others), len(cross or []))
    if not features and (cross or recipe.data.features is None):
        options.check_places(recipe, cross, root, annotations, videos)
    if run is None:
        note(f"evaluating {printable(describe_choice(chosen))}, {printable(str(chosen.trained_on))}")
    loading(", ".join(str(each.folder) for each in (chosen, *others)))
    tests = options.test_sets(recipe, cross, root, annotations, videos, features)
    if recipe.task == "caption":
        evaluate_captioners(
            [chosen, *others],
            tests,
            weights=weights,
            split=split,
            tokenizer=tokenizer,
            device=device,
            require_complete=require_complete,
            as_json=as_json,
        )
    else:
        _evaluate([chosen, *others], tests, weights, split, scorer, device, require_complete, as_json, save_scores)


def _check_save(path: Path, task: str, others: int, crossed: int) -> None:
    """Refuse, before anything is loaded, what --save-scores cannot write."""
    from calmctl.files import SCORES, require_output

    if task == "caption":
        raise BadInput("--save-scores is about retrieval: a captioner has no scores of pairs")
    if others or crossed > 1:
        raise BadInput("--save-scores writes the scores of one run on one test set; leave the others out")
    if path.suffix.lower() != ".npz":
        raise BadInput(f"--save-scores {path}: scores are written as .npz; name such a file")
    require_output(path, SCORES)


def _evaluate(
    runs: list[Run],
    tests: list[SourceSpec],
    weights: str,
    split: str,
    scorer: str | None,
    device: str,
    require_complete: bool,
    as_json: bool,
    save_scores: Path | None,
) -> None:
    """Evaluate retrieval runs on the same test sets, print and keep the results, compare the first with others."""
    from calmctl.device import choose_device
    from calmctl.evaluation.retrieval import SCORERS, Retrieval
    from calmctl.evaluation.runs import compare, evaluate_run
    from calmctl.evaluation.tables import results_json, retrieval_table
    from calmctl.files import SCORES, write_output
    from calmctl.runtime import environment

    evaluated = []
    with progress_bar("clips") as bar:
        for run in runs:
            evaluated.append(
                evaluate_run(
                    run,
                    tests,
                    # The very member of the tuple, so that the type checker knows it for one of four.
                    Retrieval(next((known for known in SCORERS if known == scorer), None)),
                    which=weights,
                    split=split,
                    device=choose_device(device),
                    require_complete=require_complete,
                    progress=readings(bar),
                )
            )
    first, *others = evaluated
    if save_scores is not None:
        write_output(save_scores, first[0].saved(), SCORES)
    left_out = {each.result.labels.dataset: {clip.id: clip.reason for clip in each.encoded.left_out} for each in first}
    differences = [
        (theirs.result, run, compare(theirs, each))
        for run, other in zip(runs[1:], others, strict=True)
        for each, theirs in zip(first, other, strict=True)
    ]
    if as_json:
        results = results_json([each for evaluation in first for each in evaluation.results])
        compared = [
            {
                "dataset": theirs.labels.dataset,
                "against": str(run.folder),
                "caveats": list(theirs.caveats),
                **{way: {name: asdict(each) for name, each in found.items()} for way, found in by_direction.items()},
            }
            for theirs, run, by_direction in differences
        ]
        notes = {each.result.labels.dataset: list(each.notes) for each in first}
        record = {"run": str(runs[0].folder), "results": results, "left_out": left_out, "notes": notes}
        print_json({**record, **({"differences": compared} if compared else {}), **environment()})
    else:
        for run, evaluations in zip(runs, evaluated, strict=True):
            if len(runs) > 1:
                stdout().print(f"[bold]{printable(str(run.folder))}[/]")
            stdout().print(retrieval_table([shown for each in evaluations for shown in each.results]))
            for each in evaluations:
                for text in each.notes:
                    note(f"[yellow]{printable(each.result.labels.dataset)}: {text}[/]")
        for theirs, run, by_direction in differences:
            # Tables have the released convention of video to text; JSON has both.
            for direction in ("text_to_video", "video_to_text"):
                if (found := by_direction.get(direction)) is None:
                    continue
                way = direction.replace("_", " ")
                print_differences(
                    f"{theirs.labels.dataset}, {way}",
                    str(runs[0].folder),
                    str(run.folder),
                    found,
                    ("R@1", "R@5", "R@10", "MdR", "MnR"),
                )
    print_left_out(left_out)
    keep_evaluations(runs, weights, evaluated)


def keep_evaluations(
    runs: Sequence[Run], weights: str, evaluated: Sequence[Sequence[Evaluation | CaptionEvaluation]]
) -> None:
    """Write evaluations into their runs' folders; where that fails the numbers are printed all the same."""
    from calmctl.evaluation.runs import keep

    kept = []
    for run, evaluations in zip(runs, evaluated, strict=True):
        try:
            kept += [keep(run, weights, each) for each in evaluations]
        except RunFailed as fault:  # somebody else's run, say: its numbers are on the screen
            note(f"[yellow]these results are not kept: {printable(str(fault))}[/]")
    if kept:
        note(f"kept with each query's result: {printable(', '.join(map(str, kept)))}")


# `calmctl eval` of a captioning run.


def evaluate_captioners(
    runs: list[Run],
    tests: list[SourceSpec],
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
        CalmError: As `evaluate_run`.
    """
    from calmctl.captions.evaluate import Captioning, compare_captions
    from calmctl.captions.score import TOKENIZER_CHOICES
    from calmctl.device import choose_device
    from calmctl.evaluation.runs import evaluate_run
    from calmctl.runtime import environment

    options.require_known("--tokenizer", tokenizer, TOKENIZER_CHOICES)
    evaluated = []
    with progress_bar("clips") as bar:
        for run in runs:
            evaluated.append(
                evaluate_run(
                    run,
                    tests,
                    Captioning(next(known for known in TOKENIZER_CHOICES if known == tokenizer)),
                    which=weights,
                    split=split,
                    device=choose_device(device),
                    require_complete=require_complete,
                    progress=readings(bar),
                )
            )
    first, *others = evaluated
    left_out = {each.result.labels.dataset: {clip.id: clip.reason for clip in each.left_out} for each in first}
    differences = [
        (theirs.result, run, compare_captions(theirs, each))
        for run, other in zip(runs[1:], others, strict=True)
        for each, theirs in zip(first, other, strict=True)
    ]
    if as_json:
        compared = [
            {
                "dataset": theirs.labels.dataset,
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
            what, names = f"{theirs.labels.dataset}, times 100", ("CIDEr", "ROUGE-L")
            print_differences(what, str(runs[0].folder), str(run.folder), found, names)
    print_left_out(left_out)
    keep_evaluations(runs, weights, evaluated)
