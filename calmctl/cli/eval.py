"""`calmctl eval`: honest numbers of a run, in and out of its domain."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from calmctl.cli.console import note, print_json, progress_bar, stdout
from calmctl.errors import BadInput

if TYPE_CHECKING:
    from calmctl.evaluation.retrieval import Evaluation

EXAMPLES = """Examples:

calmctl eval                              # the newest run, on its own test set

calmctl eval --cross lsmdc                # the newest run, out of domain

calmctl eval runs/msrvtt-001 --cross didemo --cross lsmdc --root /data

calmctl eval runs/msrvtt-001 --protocol tmass-released    # audit of a leak, not a result"""


def evaluate(
    run: Annotated[str | None, typer.Argument(help="A run folder; the newest run by default.")] = None,
    cross: Annotated[
        list[str] | None, typer.Option(metavar="DATASET", help="Evaluate on this dataset's test set; repeatable.")
    ] = None,
    root: Annotated[Path | None, typer.Option(help="Where the datasets of --cross lie.")] = None,
    annotations: Annotated[Path | None, typer.Option(help="Folder of annotation files, when not under root.")] = None,
    videos: Annotated[Path | None, typer.Option(help="Folder of clips, when not under root.")] = None,
    features: Annotated[Path | None, typer.Option(help="Evaluate on this feature store instead of videos.")] = None,
    weights: Annotated[str, typer.Option(help="best (on validation), last, or slim.")] = "best",
    split: Annotated[str, typer.Option(help="test or val.")] = "test",
    protocol: Annotated[str, typer.Option(help="leak-free; or, labelled: dual-softmax, tmass-released.")] = "leak-free",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
    require_complete: Annotated[
        bool, typer.Option("--require-complete", help="Missing or broken clips are an error.")
    ] = False,
    runs: Annotated[Path, typer.Option(help="Folder of runs.")] = Path("runs"),
    as_json: Annotated[bool, typer.Option("--json", help="Print the results as JSON.")] = False,
) -> None:
    """Evaluate a run: retrieval both ways with confidence intervals, beside the paper's numbers."""
    from calmctl.runs.folder import find_run

    chosen = find_run(run, runs)  # before torch is imported, which takes seconds: most mistakes are here
    from calmctl.device import choose_device
    from calmctl.evaluation.retrieval import SCORERS
    from calmctl.evaluation.runs import SYSTEMS, TestSet, evaluate_run, own_test_set

    scorer = next((known for known in SCORERS if known == protocol), None)
    if scorer is None:
        raise BadInput(f"--protocol {protocol} is not known; use one of {', '.join(SCORERS)}")
    if weights not in SYSTEMS:
        raise BadInput(f"--weights {weights} is not known; use one of {', '.join(SYSTEMS)}")
    if run is None:
        note(f"evaluating the newest run, {chosen.folder}")
    recipe = chosen.recipe()
    if cross:
        tests = [TestSet(name, root, annotations, videos, None, features) for name in cross]
    else:
        own = own_test_set(recipe)
        tests = [
            TestSet(
                own.dataset,
                root or own.root,
                annotations or own.annotations,
                videos or own.videos,
                own.protocol,
                features or own.features,
            )
        ]
    with progress_bar("clips") as bar:
        tasks: dict[str, object] = {}

        def progress(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bar.add_task(what, total=total, note="")
            bar.update(tasks[what], completed=done)  # type: ignore[arg-type]

        evaluations = evaluate_run(
            chosen,
            tests,
            which=weights,
            split=split,
            scorer=scorer,
            device=choose_device(device),
            require_complete=require_complete,
            progress=progress,
        )
    _print(evaluations, str(chosen.folder), as_json)


def _print(evaluations: list[Evaluation], run: str, as_json: bool) -> None:
    from calmctl.cli.train import print_left_out
    from calmctl.evaluation.tables import results_json, retrieval_table
    from calmctl.provenance import environment

    results = [evaluation.result for evaluation in evaluations]
    left_out = {
        evaluation.result.dataset: {entry.id: entry.reason for entry in evaluation.encoded.left_out}
        for evaluation in evaluations
    }
    if as_json:
        print_json({"run": run, "results": results_json(results), "left_out": left_out, **environment()})
        return
    stdout().print(retrieval_table(results))
    print_left_out(left_out)
