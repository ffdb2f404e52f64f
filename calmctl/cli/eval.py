"""`calmctl eval`: honest numbers of a run, in and out of its domain."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from calmctl.cli.console import note, print_json, printable, progress_bar, readings, stdout
from calmctl.errors import BadInput

if TYPE_CHECKING:
    from calmctl.evaluation.retrieval import Evaluation
    from calmctl.runs.folder import Run

EXAMPLES = """Examples:

calmctl eval                              # the newest run, on its own test set

calmctl eval --cross lsmdc                # the newest run, out of domain

calmctl eval runs/msrvtt-001 --cross didemo --cross lsmdc --root /data

calmctl eval runs/msrvtt-001 --protocol tmass-released    # audit of a leak, not a result

calmctl eval runs/demo-001 --gap --against runs/demo-without-001    # the modality gap

calmctl eval --captions hyp.json --references ref.json    # any system's captions"""


def evaluate(
    run: Annotated[str | None, typer.Argument(help="A run folder; the newest run by default.")] = None,
    cross: Annotated[
        list[str] | None,
        typer.Option(metavar="DATASET[:PROTOCOL]", help="Evaluate on this dataset's test set; repeatable."),
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
    captions: Annotated[
        Path | None, typer.Option(metavar="HYP.json", help="Score these captions instead of a run.")
    ] = None,
    references: Annotated[
        Path | None, typer.Option(metavar="REF.json", help="The references of --captions, by the same ids.")
    ] = None,
    tokenizer: Annotated[str, typer.Option(help="Of captions: ptb (CoreNLP's), ptb-python or none.")] = "ptb",
    calibration: Annotated[
        bool, typer.Option("--calibration", help="Instead: does its uncertainty know its errors on validation?")
    ] = False,
    html: Annotated[Path | None, typer.Option(metavar="PAGE", help="With --calibration: also write a page.")] = None,
    gap: Annotated[
        bool, typer.Option("--gap", help="Instead: how far sentences and clips lie apart, before training and after.")
    ] = False,
    against: Annotated[
        list[str] | None, typer.Option(metavar="RUN", help="With --gap: another run beside it; repeatable.")
    ] = None,
    runs: Annotated[Path, typer.Option(help="Folder of runs.")] = Path("runs"),
    as_json: Annotated[bool, typer.Option("--json", help="Print the results as JSON.")] = False,
) -> None:
    """Evaluate a run: retrieval both ways, or captions, with confidence intervals, beside the paper's numbers."""
    if captions is not None or references is not None:
        if run is not None or cross:
            raise BadInput("--captions scores a file, not a run; leave out the run and --cross")
        from calmctl.cli.caption_scores import score_caption_files

        score_caption_files(
            captions, references, tokenizer=tokenizer, require_complete=require_complete, as_json=as_json
        )
        return
    from calmctl.runs.folder import find_run

    chosen = find_run(run, runs)  # before torch is imported, which takes seconds: most mistakes are here
    if calibration and gap:
        raise BadInput("--gap and --calibration are two questions; ask one after the other")
    if calibration:
        _calibrate(chosen, weights, cross, device, html, as_json)
        return
    if against and not gap:
        raise BadInput("--against belongs to --gap; evaluate one run after the other")
    if html is not None:
        raise BadInput("--html belongs to --calibration; --json prints the results of an evaluation")
    from calmctl.device import choose_device
    from calmctl.evaluation.retrieval import SCORERS
    from calmctl.evaluation.runs import SYSTEMS, TestSet, evaluate_run, own_test_set

    scorer = next((known for known in SCORERS if known == protocol), None)
    if scorer is None:
        raise BadInput(f"--protocol {protocol} is not known; use one of {', '.join(SCORERS)}")
    if weights not in SYSTEMS:
        raise BadInput(f"--weights {weights} is not known; use one of {', '.join(SYSTEMS)}")
    if run is None:
        note(f"evaluating the newest run, {printable(str(chosen.folder))}")
    recipe = chosen.recipe()
    if cross:
        tests = [
            TestSet(name, root, annotations, videos, protocol or None, features)
            for name, _, protocol in (each.partition(":") for each in cross)
        ]
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
    if gap:
        if scorer != "leak-free":
            raise BadInput(f"--gap compares features and no scores: leave out --protocol {protocol}")
        from calmctl.cli.gap import show_gap

        others = [find_run(name, runs) for name in against or []]
        show_gap([chosen, *others], tests, which=weights, split=split, device=device, as_json=as_json)
        return
    if recipe.task == "caption":
        if scorer != "leak-free":
            raise BadInput(f"--protocol {protocol} is about retrieval; {chosen.folder} is a captioning run")
        from calmctl.cli.eval_captions import evaluate_captioner

        evaluate_captioner(
            chosen,
            tests,
            weights=weights,
            split=split,
            tokenizer=tokenizer,
            device=device,
            require_complete=require_complete,
            as_json=as_json,
        )
        return
    with progress_bar("clips") as bar:
        evaluations = evaluate_run(
            chosen,
            tests,
            which=weights,
            split=split,
            scorer=scorer,
            device=choose_device(device),
            require_complete=require_complete,
            progress=readings(bar),
        )
    _print(evaluations, str(chosen.folder), as_json)


def _calibrate(run: Run, weights: str, cross: list[str] | None, device: str, html: Path | None, as_json: bool) -> None:
    from calmctl.cli.calibration import show_calibration

    if weights not in ("best", "last") or cross:
        raise BadInput(
            "--calibration looks at the validation split of the run's own dataset, with --weights best or last"
        )
    show_calibration(run, which=weights, split="val", device=device, html=html, as_json=as_json)


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
        notes = {evaluation.result.dataset: list(evaluation.notes) for evaluation in evaluations}
        print_json(
            {"run": run, "results": results_json(results), "left_out": left_out, "notes": notes, **environment()}
        )
        return
    stdout().print(retrieval_table(results))
    for evaluation in evaluations:
        for text in evaluation.notes:
            note(f"[yellow]{printable(evaluation.result.dataset)}: {text}[/]")
    print_left_out(left_out)
