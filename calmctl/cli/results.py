"""The runs that commands ask, and results that several of them print."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from calmctl.cli.console import Sheet, note, print_json, print_left_out, printable, progress_bar, readings, stdout
from calmctl.errors import BadInput, RunNotFound
from calmctl.runtime import environment
from calmctl.words import counted

if TYPE_CHECKING:
    from calmctl.captions.evaluate import CaptionEvaluation
    from calmctl.evaluation.statistics import PairedDifference
    from calmctl.explain.collection import Collection
    from calmctl.explain.explainer import Explainer
    from calmctl.referee.moments import MomentResult
    from calmctl.runs.run import Run


def find_named(name: str | None, runs: Path, doing: str, *, task: str | None = None, drawn: bool | None = None) -> Run:
    """The run of that name; of None the pinned or newest one, and a note on which it is.

    Args:
        name: What was given.
        runs: Folder of runs.
        doing: What the note says is done with it, such as "evaluating".
        task: "retrieval" or "caption"; None for either.
        drawn: Whether the clips are the demo's drawn shapes; None where that does not matter.

    Raises:
        RunNotFound: There is none.
    """
    from calmctl.runs.run import describe_choice, find_run

    run = find_run(name, runs, task=task, drawn=drawn)
    if name is None:
        note(f"{doing} {printable(describe_choice(run))}, {printable(str(run.trained_on))}")
    return run


def find_others(names: Iterable[str] | None, runs: Path, run: Run) -> list[Run]:
    """The runs that `run` is compared with. Raises `BadInput` where one is of the other task."""
    from calmctl.runs.run import find_run

    others = [find_run(name, runs) for name in names or ()]
    for other in others:
        if other.task != run.task:
            raise BadInput(f"{run.folder} and {other.folder} are runs of two tasks, which share no number")
    return others


def choose_run(name: str | None, runs: Path, drawn: bool, doing: str, *, task: str = "retrieval") -> Run:
    """`find_named` for clips that are at hand, and a warning where the run knows only others.

    Of None it is the pinned run, or else the newest that was trained on such clips.
    """
    run = find_named(name, runs, f"{doing} with", task=task, drawn=drawn)
    # Said of a named run as well: one of drawn shapes has described holiday videos without a word.
    if warning := run.trained_on.warning(drawn):
        note(f"[bold red]!! {printable(str(run.folder))}: {printable(warning)}[/]")
    return run


def run_or_backbone(name: str | None, runs: Path, drawn: bool, doing: str) -> Run | None:
    """`choose_run`, or None for the bare backbone, where nobody named a run and there is none."""
    try:
        return choose_run(name, runs, drawn, doing)
    except RunNotFound as fault:
        # A run that was named and is not there is never replaced by another one.
        if name is not None:
            raise
        note(f"{printable(str(fault))}\n{doing} with the bare backbone")
        return None


def print_caveats(caveats: Iterable[str]) -> None:
    """Print on stdout what must be said of numbers."""
    for caveat in caveats:
        stdout().print(f"[bold red]!! {printable(caveat)}[/]")


class Result(Protocol):
    """What a command finds."""

    def to_json(self) -> Any:
        """As plain data."""


R = TypeVar("R", bound=Result)


def print_result(result: R, show: Callable[[R], None], as_json: bool, page: Path | None = None) -> None:
    """Print a result as JSON or as `show` does it, and say to which page it was written."""
    if as_json:
        print_json(result.to_json())
    else:
        show(result)
    if page is not None:
        note(f"wrote {printable(str(page))}")


EXAMPLES_SHOWN = 3


def print_evaluations(evaluations: Sequence[CaptionEvaluation]) -> None:
    """Print scores beside the paper's, how captions were found, and the first captions beside the true ones."""
    from calmctl.captions.score import caption_table

    out = stdout()
    out.print(caption_table([evaluation.result for evaluation in evaluations]))
    out.print(f"[dim]captions found by {', '.join(dict.fromkeys(str(e.search) for e in evaluations))}[/]\n")
    # Examples of one test set are enough to see what the captioner says.
    for evaluation in evaluations[:1]:
        out.print(examples_table(evaluation, EXAMPLES_SHOWN))


def examples_table(evaluation: CaptionEvaluation, count: int) -> Sheet:
    """The captions of the first `count` clips of an evaluation beside one true sentence each."""
    # One true sentence is enough to hold a caption against; all of them are in --json.
    table = Sheet("clip", "caption", "one of its true captions")
    for clip, caption in list(evaluation.captions.items())[:count]:
        table.add_row(printable(clip), printable(caption.text), printable(evaluation.references[clip][0]))
    return table


def print_differences(
    what: str, one: str, other: str, differences: Mapping[str, PairedDifference], names: Sequence[str]
) -> None:
    """Print one system minus another on the same queries, within 60 columns."""
    out, table = stdout(), Sheet("", numbers=["difference", "95 % interval", "p"], header_style="dim")
    out.print(f"[bold]{printable(what)}[/]: {printable(one)} minus {printable(other)}")
    for name, each in zip(names, differences.values(), strict=True):
        interval = f"{each.interval.low:+.1f} to {each.interval.high:+.1f}"
        table.add_row(name, f"{each.difference:+.1f}", interval, f"{each.p_value:.3f}")
    out.print(table)
    clips = next(iter(differences.values())).n_clusters
    out.print(f"[dim]paired over {counted(clips, 'clip')}; one run each: seeds differ as well[/]\n")


def open_with_progress(explainer: Explainer, split: str) -> Collection:
    """Encode a split of the explainer's run under a progress bar."""
    from calmctl.explain.collection import open_collection

    with progress_bar("clips") as bar:
        collection = open_collection(explainer, split, readings(bar))
    print_left_out({split: {entry.id: entry.reason for entry in collection.encoded.left_out}})
    return collection


def print_moments(result: MomentResult, others: Sequence[tuple[str, MomentResult]], as_json: bool) -> None:
    """Print moments with their intervals, and what `result` has more than each of the others."""
    compared = [(name, result.minus(other)) for name, other in others]
    if as_json:
        plain = [{"against": name, **{metric: asdict(e) for metric, e in each.items()}} for name, each in compared]
        print_json({**result.to_json(), **({"differences": plain} if plain else {}), **environment()})
        return
    out, intervals = stdout(), result.intervals()
    table = Sheet("", result.truth.name, "95 % interval", header_style="dim")
    for name, value in result.means().items():
        bound = intervals[name]
        table.add_row(name, f"{value:.1f}", "" if bound is None else f"{bound.low:.1f} to {bound.high:.1f}")
    queries = counted(len(result.truth.queries), "query")
    out.print(printable(f"{result.system}: {queries}, each of its own video"), style="bold")
    out.print(table)
    for text in result.notes:
        note(f"[yellow]{printable(text)}[/]")
    for name, each in compared:
        print_differences(result.truth.name, result.system, name, each, list(each))
