"""`calmctl eval`: honest numbers of a run, in and out of its domain."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from calmctl.cli import options
from calmctl.cli.console import loading, note, print_json, print_left_out, printable, progress_bar, readings, stdout
from calmctl.cli.results import find_named, find_others, print_differences, print_evaluations
from calmctl.device import choose_device
from calmctl.errors import BadInput, RunFailed
from calmctl.files import SCORES, require_output, write_output
from calmctl.runtime import environment

if TYPE_CHECKING:
    from calmctl.captions.evaluate import CaptionEvaluation
    from calmctl.evaluation.result import RetrievalResult
    from calmctl.evaluation.retrieval import Evaluation
    from calmctl.evaluation.runs import Task
    from calmctl.runs.run import Run


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
    from calmctl.runs.run import WEIGHTS

    chosen = find_named(run, runs, "evaluating")
    others = find_others(against, runs, chosen)
    if scorer is not None:
        options.one_of(SCORERS, "--scorer", scorer)
    options.one_of(WEIGHTS, "--weights", weights)
    options.one_of(("test", "val"), "--split", split)
    recipe = chosen.recipe()
    captions = recipe.task == "caption"
    # What is wrong with the arguments is said before torch is imported, which takes seconds.
    options.check_cross(recipe, cross, features)
    if captions and scorer not in (None, "leak-free"):
        raise BadInput(f"--scorer {scorer} is about retrieval; {chosen.folder} is a captioning run")
    if save_scores is not None:
        _check_save(save_scores, recipe.task, len(others), len(cross or []))
    if not features and (cross or recipe.data.features is None):
        options.check_places(recipe, cross, root, annotations, videos)
    every = [chosen, *others]
    loading(", ".join(str(each.folder) for each in every))
    tests = options.test_sets(recipe, cross, root, annotations, videos, features)
    from calmctl.evaluation.runs import evaluate_run

    task = _captioning(tokenizer) if captions else _retrieval(scorer)
    with progress_bar("clips") as bar:
        evaluated = [
            evaluate_run(
                each,
                tests,
                task,
                which=weights,
                split=split,
                device=choose_device(device),
                require_complete=require_complete,
                progress=readings(bar),
            )
            for each in every
        ]
    if save_scores is not None:
        write_output(save_scores, evaluated[0][0].saved(), SCORES)
    _print(every, evaluated, captions, as_json)
    keep_evaluations(every, weights, evaluated)


def _retrieval(scorer: str | None) -> Task[Any, Any]:
    from calmctl.evaluation.retrieval import SCORERS, Retrieval

    return Retrieval(None if scorer is None else options.one_of(SCORERS, "--scorer", scorer))


def _captioning(tokenizer: str) -> Task[Any, Any]:
    from calmctl.captions.evaluate import Captioning
    from calmctl.captions.score import TOKENIZER_CHOICES

    return Captioning(options.one_of(TOKENIZER_CHOICES, "--tokenizer", tokenizer))


def _check_save(path: Path, task: str, others: int, crossed: int) -> None:
    """Refuse, before anything is loaded, what --save-scores cannot write."""
    if task == "caption":
        raise BadInput("--save-scores is about retrieval: a captioner has no scores of pairs")
    if others or crossed > 1:
        raise BadInput("--save-scores writes the scores of one run on one test set; leave the others out")
    if path.suffix.lower() != ".npz":
        raise BadInput(f"--save-scores {path}: scores are written as .npz; name such a file")
    require_output(path, SCORES)


def _print(runs: Sequence[Run], evaluated: Sequence[Sequence[Any]], captions: bool, as_json: bool) -> None:
    """Print evaluations of runs of one task on the same test sets, and what the first has more than each other."""
    from calmctl.captions.evaluate import compare_captions
    from calmctl.evaluation.runs import compare

    first = evaluated[0]
    left_out = {
        each.result.labels.dataset: {clip.id: clip.reason for clip in (each if captions else each.encoded).left_out}
        for each in first
    }
    compare_two: Callable[[Any, Any], Any] = compare_captions if captions else compare
    differences = [
        (theirs.result, str(run.folder), compare_two(theirs, mine))
        for run, evaluations in zip(runs[1:], evaluated[1:], strict=True)
        for mine, theirs in zip(first, evaluations, strict=True)
    ]
    own = str(runs[0].folder)
    if as_json:
        compared = [
            {"dataset": result.labels.dataset, "against": other, "caveats": list(result.caveats), **_plain(each)}
            for result, other, each in differences
        ]
        results = [each.to_json() for each in (first if captions else _results(first))]
        notes = {} if captions else {"notes": {each.result.labels.dataset: list(each.notes) for each in first}}
        record = {"run": own, "results": results, "left_out": left_out, **notes}
        print_json({**record, **({"differences": compared} if compared else {}), **environment()})
    else:
        for run, evaluations in zip(runs, evaluated, strict=True):
            if len(runs) > 1:
                stdout().print(f"[bold]{printable(str(run.folder))}[/]")
            (print_evaluations if captions else _print_retrieval)(evaluations)
        for result, other, each in differences:
            dataset = result.labels.dataset
            if captions:
                print_differences(f"{dataset}, times 100", own, other, each, ("CIDEr", "ROUGE-L"))
                continue
            # Tables have the released convention of video to text; JSON has both.
            for way in ("text_to_video", "video_to_text"):
                if way in each:
                    names = ("R@1", "R@5", "R@10", "MdR", "MnR")
                    print_differences(f"{dataset}, {way.replace('_', ' ')}", own, other, each[way], names)
    print_left_out(left_out)


def _plain(differences: Mapping[str, Any]) -> dict[str, Any]:
    """Differences by metric, or by direction and metric, as plain data."""
    return {name: _plain(each) if isinstance(each, Mapping) else asdict(each) for name, each in differences.items()}


def _results(evaluations: Sequence[Evaluation]) -> list[RetrievalResult]:
    return [result for each in evaluations for result in each.results]


def _print_retrieval(evaluations: Sequence[Evaluation]) -> None:
    from calmctl.evaluation.tables import retrieval_table

    stdout().print(retrieval_table(_results(evaluations)))
    for each in evaluations:
        for text in each.notes:
            note(f"[yellow]{printable(each.result.labels.dataset)}: {text}[/]")


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
