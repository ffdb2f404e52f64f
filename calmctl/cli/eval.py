"""`calmctl eval`: honest numbers of a run, in and out of its domain."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from calmctl.cli.console import Sheet, loading, note, print_json, printable, progress_bar, readings, stdout
from calmctl.errors import BadInput, RunFailed
from calmctl.words import counted

if TYPE_CHECKING:
    from calmctl.captions.evaluate import CaptionEvaluation
    from calmctl.evaluation.retrieval import Evaluation
    from calmctl.evaluation.statistics import PairedDifference
    from calmctl.runs.run import Run
    from calmctl.source.base import SourceSpec


PROTOCOLS = ("leak-free", "tmass-released", "dual-softmax")

EXAMPLES = """Examples:

calmctl eval                              # the newest run, on its own test set

calmctl eval --cross lsmdc                # the newest run, out of domain

calmctl eval runs/msrvtt-001 --cross didemo --cross lsmdc --root /data

calmctl eval runs/demo-001 --against runs/demo-without-001    # the paired difference

calmctl eval runs/msrvtt-001 --protocol tmass-released    # audit of a leak, not a result

calmctl eval runs/demo-001 --gap --against runs/demo-without-001    # the modality gap

calmctl eval --captions hyp.json --references ref.json    # any system's captions"""

_DATA, _INSTEAD, _HOW = "Where the test sets are", "Instead", "How"


def evaluate(
    run: Annotated[str | None, typer.Argument(help="A run; the pinned or the newest one by default.")] = None,
    cross: Annotated[
        list[str] | None, typer.Option(metavar="DATASET[:PROTOCOL]", help="Test on this dataset; repeatable.")
    ] = None,
    against: Annotated[
        list[str] | None, typer.Option(metavar="RUN", help="Compare with this run, on the same queries; repeatable.")
    ] = None,
    root: Annotated[Path | None, typer.Option(help="Where the datasets of --cross lie.", rich_help_panel=_DATA)] = None,
    annotations: Annotated[
        Path | None, typer.Option(help="Folder of annotation files, when not under root.", rich_help_panel=_DATA)
    ] = None,
    videos: Annotated[
        Path | None, typer.Option(help="Folder of clips, when not under root.", rich_help_panel=_DATA)
    ] = None,
    features: Annotated[
        list[Path] | None,
        typer.Option(metavar="STORE", help="A feature store instead; one a --cross.", rich_help_panel=_DATA),
    ] = None,
    split: Annotated[str, typer.Option(help="test or val.", rich_help_panel=_DATA)] = "test",
    require_complete: Annotated[
        bool, typer.Option("--require-complete", help="A clip left out is an error.", rich_help_panel=_DATA)
    ] = False,
    weights: Annotated[str, typer.Option(help="best (on validation), last, or slim.", rich_help_panel=_HOW)] = "best",
    protocol: Annotated[
        str,
        typer.Option(help="leak-free; or, labelled: dual-softmax, tmass-released.", rich_help_panel=_HOW),
    ] = "leak-free",
    tokenizer: Annotated[
        str, typer.Option(help="Of captions: ptb (CoreNLP's), ptb-python or none.", rich_help_panel=_HOW)
    ] = "ptb",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.", rich_help_panel=_HOW)] = "auto",
    runs: Annotated[Path, typer.Option(help="Folder of runs.", rich_help_panel=_HOW)] = Path("runs"),
    captions: Annotated[
        Path | None, typer.Option(metavar="HYP.json", help="Score these captions.", rich_help_panel=_INSTEAD)
    ] = None,
    references: Annotated[
        Path | None, typer.Option(metavar="REF.json", help="Their references, by id.", rich_help_panel=_INSTEAD)
    ] = None,
    calibration: Annotated[
        bool, typer.Option("--calibration", help="Does it know when it is wrong?", rich_help_panel=_INSTEAD)
    ] = False,
    html: Annotated[
        Path | None, typer.Option(metavar="PAGE", help="With --calibration: a page.", rich_help_panel=_INSTEAD)
    ] = None,
    gap: Annotated[
        bool, typer.Option("--gap", help="How far sentences and clips lie apart.", rich_help_panel=_INSTEAD)
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the results as JSON.")] = False,
) -> None:
    """Evaluate a run: retrieval both ways, or captions, with confidence intervals, beside the paper's numbers.

    Results are kept in RUN/evals, each query's rank with them.
    """
    if captions is not None or references is not None:
        if run is not None or cross:
            raise BadInput("--captions scores a file, not a run; leave out the run and --cross")

        score_caption_files(
            captions, references, tokenizer=tokenizer, require_complete=require_complete, as_json=as_json
        )
        return
    from calmctl.data.registry import protocol_for, resolve
    from calmctl.device import check_device
    from calmctl.runs.run import WEIGHTS, describe_choice, find_run

    chosen = find_run(run, runs)
    others = [find_run(name, runs) for name in against or []]
    check_device(device)
    if calibration and gap:
        raise BadInput("--gap and --calibration are two questions; ask one after the other")
    if calibration:
        _calibrate(chosen, weights, cross, device, html, as_json)
        return
    if html is not None:
        raise BadInput("--html belongs to --calibration; --json prints the results of an evaluation")
    if protocol not in PROTOCOLS:
        raise BadInput(f"--protocol {protocol} is not known; use one of {', '.join(PROTOCOLS)}")
    if weights not in WEIGHTS:
        raise BadInput(f"--weights {weights} is not known; use one of {', '.join(WEIGHTS)}")
    if split not in ("test", "val") and not (gap and split == "train"):
        raise BadInput(f"--split {split} is not known; use test or val, or with --gap also train")
    recipe = chosen.recipe()
    crossed = [(name, wanted or None) for name, _, wanted in (each.partition(":") for each in cross or [])]
    for name, wanted in crossed:
        resolve(name, protocol_for(recipe.task, name, wanted))
    if features and len(features) != max(1, len(crossed)):
        raise BadInput(
            f"{len(features)} x --features and {len(crossed)} x --cross: a feature store is of one data set; give "
            "one --features for each --cross, in their order"
        )
    for other in others:
        if other.task != chosen.task:
            raise BadInput(f"{chosen.folder} and {other.folder} are runs of two tasks, which share no number")
    if recipe.task == "caption" and protocol != "leak-free":
        raise BadInput(f"--protocol {protocol} is about retrieval; {chosen.folder} is a captioning run")
    if gap and protocol != "leak-free":
        raise BadInput(f"--gap compares features and no scores: leave out --protocol {protocol}")
    if run is None:
        note(f"evaluating {printable(describe_choice(chosen))}, {printable(str(chosen.trained_on))}")
    loading(", ".join(str(each.folder) for each in (chosen, *others)))
    from calmctl.source.base import SourceSpec

    if crossed:
        stores: list[Path | None] = [*features] if features else [None] * len(crossed)
        tests = [
            SourceSpec(name, root, annotations, videos, wanted, store)
            for (name, wanted), store in zip(crossed, stores, strict=True)
        ]
    else:
        own = SourceSpec.of(recipe.data)
        tests = [
            SourceSpec(
                own.dataset,
                root or own.root,
                annotations or own.annotations,
                videos or own.videos,
                own.protocol,
                features[0] if features else own.features,
            )
        ]
    if gap:
        from calmctl.cli.diagnose import show_gap

        show_gap([chosen, *others], tests, which=weights, split=split, device=device, as_json=as_json)
    elif recipe.task == "caption":
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
        _evaluate([chosen, *others], tests, weights, split, protocol, device, require_complete, as_json)


def _evaluate(
    runs: list[Run],
    tests: list[SourceSpec],
    weights: str,
    split: str,
    protocol: str,
    device: str,
    require_complete: bool,
    as_json: bool,
) -> None:
    """Evaluate retrieval runs on the same test sets, print and keep the results, compare the first with others."""
    from calmctl.cli.console import print_left_out
    from calmctl.device import choose_device
    from calmctl.evaluation.retrieval import SCORERS, Retrieval
    from calmctl.evaluation.runs import compare, evaluate_run
    from calmctl.evaluation.tables import results_json, retrieval_table
    from calmctl.runtime import environment

    evaluated = []
    with progress_bar("clips") as bar:
        for run in runs:
            evaluated.append(
                evaluate_run(
                    run,
                    tests,
                    Retrieval(next(known for known in SCORERS if known == protocol)),
                    which=weights,
                    split=split,
                    device=choose_device(device),
                    require_complete=require_complete,
                    progress=readings(bar),
                )
            )
    first, *others = evaluated
    left_out = {each.result.labels.dataset: {clip.id: clip.reason for clip in each.encoded.left_out} for each in first}
    differences = [
        (theirs.result, run, compare(theirs, each))
        for run, other in zip(runs[1:], others, strict=True)
        for each, theirs in zip(first, other, strict=True)
    ]
    if as_json:
        results = results_json([each.result for each in first])
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
            stdout().print(retrieval_table([each.result for each in evaluations]))
            for each in evaluations:
                for text in each.notes:
                    note(f"[yellow]{printable(each.result.labels.dataset)}: {text}[/]")
        for theirs, run, by_direction in differences:
            for direction in ("text_to_video", "video_to_text"):
                if (found := by_direction.get(direction)) is None:
                    continue
                way = direction.replace("_", " ")
                print_differences(
                    f"{theirs.labels.dataset}, {way}", runs[0], run, found, ("R@1", "R@5", "R@10", "MdR", "MnR")
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


def print_differences(
    what: str, run: Run, other: Run, found: Mapping[str, PairedDifference], names: Sequence[str]
) -> None:
    """Print one run minus another on the same queries, within 60 columns."""
    out, table = stdout(), Sheet(header_style="dim")
    out.print(f"[bold]{printable(what)}[/]: {printable(str(run.folder))} minus {printable(str(other.folder))}")
    table.add_column("")
    for heading in ("difference", "95 % interval", "p"):
        table.add_column(heading, justify="right")
    for name, each in zip(names, found.values(), strict=True):
        interval = f"{each.interval.low:+.1f} to {each.interval.high:+.1f}"
        table.add_row(name, f"{each.difference:+.1f}", interval, f"{each.p_value:.3f}")
    out.print(table)
    clips = next(iter(found.values())).n_clusters
    out.print(f"[dim]paired over {counted(clips, 'clip')}; one run each: seeds differ as well[/]\n")


def _calibrate(run: Run, weights: str, cross: list[str] | None, device: str, html: Path | None, as_json: bool) -> None:
    from calmctl.cli.diagnose import show_calibration

    if weights not in ("best", "last") or cross:
        raise BadInput(
            "--calibration looks at the validation split of the run's own dataset, with --weights best or last"
        )
    loading(str(run.folder))
    show_calibration(run, which=weights, split="val", device=device, html=html, as_json=as_json)


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
    from calmctl.cli.caption import print_evaluations
    from calmctl.cli.console import print_left_out
    from calmctl.device import choose_device
    from calmctl.evaluation.runs import evaluate_run
    from calmctl.runtime import environment

    choice = next((known for known in TOKENIZER_CHOICES if known == tokenizer), None)
    if choice is None:
        raise BadInput(f"--tokenizer {tokenizer} is not known; use one of {', '.join(TOKENIZER_CHOICES)}")
    evaluated = []
    with progress_bar("clips") as bar:
        for run in runs:
            evaluated.append(
                evaluate_run(
                    run,
                    tests,
                    Captioning(choice),
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
            print_differences(f"{theirs.labels.dataset}, times 100", runs[0], run, found, ("CIDEr", "ROUGE-L"))
    print_left_out(left_out)
    keep_evaluations(runs, weights, evaluated)


# `calmctl eval --captions HYP.json --references REF.json`: any system's captions, scored.


def score_caption_files(
    captions: Path | None, references: Path | None, *, tokenizer: str, require_complete: bool, as_json: bool
) -> None:
    """Score a file of captions against a file of references and print the result.

    Raises:
        CalmError: As the readers and `score_captions`.
    """
    if captions is None or references is None:
        raise BadInput(
            "--captions and --references go together: calmctl eval --captions HYP.json --references REF.json"
        )
    from calmctl.captions.files import read_hypotheses, read_references
    from calmctl.captions.score import TOKENIZER_CHOICES, CaptionResult, caption_table, score_captions
    from calmctl.runtime import environment

    choice = next((known for known in TOKENIZER_CHOICES if known == tokenizer), None)
    if choice is None:
        raise BadInput(f"--tokenizer {tokenizer} is not known; use one of {', '.join(TOKENIZER_CHOICES)}")
    known = read_references(references)
    hypotheses = read_hypotheses(captions, known)
    with progress_bar("captions") as bar:
        scores = score_captions(
            hypotheses,
            known,
            tokenizer=choice,
            require_complete=require_complete,
            progress=readings(bar),
        )
    result = CaptionResult(scores, name=captions.name)
    if as_json:
        print_json({"captions": str(captions), "references": str(references), **result.to_json(), **environment()})
    else:
        stdout().print(caption_table([result]))
