"""What captions and their scores look like on a terminal of 80 columns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from calmctl.cli.console import Sheet, printable, stdout

if TYPE_CHECKING:
    from calmctl.captioning.generate import Caption
    from calmctl.captioning.segments import Segment
    from calmctl.evaluation.captioning import CaptionEvaluation

EXAMPLES_SHOWN = 3


def print_evaluations(evaluations: Sequence[CaptionEvaluation]) -> None:
    """Print scores beside the paper's, how captions were found, and the first captions beside the true ones."""
    from calmctl.evaluation.captions.table import caption_table

    out = stdout()
    out.print(caption_table([evaluation.result for evaluation in evaluations]))
    out.print(f"[dim]captions found by {', '.join(dict.fromkeys(str(e.search) for e in evaluations))}[/]\n")
    for evaluation in evaluations[:1]:
        out.print(examples_table(evaluation, EXAMPLES_SHOWN))


def examples_table(evaluation: CaptionEvaluation, count: int) -> Sheet:
    """The captions of the first `count` clips of an evaluation beside one true sentence each."""
    table = _table("clip", "caption", "one of its true captions")
    for clip, caption in list(evaluation.captions.items())[:count]:
        table.add_row(printable(clip), printable(caption.text), printable(evaluation.references[clip][0]))
    return table


def print_captions(captions: Sequence[tuple[str, Caption]]) -> None:
    """Print (name of a video, its caption) with log-probabilities."""
    table = _table("video", "caption")
    table.add_column("log p", justify="right")
    for video, caption in captions:
        table.add_row(printable(video), printable(caption.text), f"{caption.log_prob:z.2f}")
    stdout().print(table)


def print_segments(video: str, segments: Sequence[Segment]) -> None:
    """Print the captions of one video's segments."""
    from calmctl.captioning.segments import timestamp

    table = _table("from", "to", "caption")
    table.title = printable(video)
    table.title_justify = "left"
    table.add_column("log p", justify="right")
    for segment in segments:
        caption = segment.caption
        times = (timestamp(segment.start_s), timestamp(segment.end_s))
        table.add_row(*times, printable(caption.text), f"{caption.log_prob:z.2f}")
    stdout().print(table)


def _table(*columns: str) -> Sheet:

    table = Sheet()
    for column in columns:
        table.add_column(column, overflow="fold")
    return table
