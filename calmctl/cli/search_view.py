"""What `calmctl search` shows on a terminal of 80 columns."""

from __future__ import annotations

from typing import TYPE_CHECKING

from calmctl.cli.console import Sheet, printable, stdout
from calmctl.counting import counted

if TYPE_CHECKING:
    from collections.abc import Sequence

    from calmctl.searching.answers import Found, Shared
    from calmctl.searching.recall import Recall
    from calmctl.searching.sentences import Ranked


def print_found(found: Found) -> None:
    """Print every query's hits."""
    from calmctl.searching.sheet import moment

    out = stdout()
    for answer in found.answers:
        out.print(f"[bold]{printable(answer.query)}[/]")
        table = _table("clip", "when")
        for hit in answer.hits:
            name = str(hit.file) if hit.file is not None else hit.clip
            table.add_row(str(hit.rank), f"{hit.score:z.3f}", printable(name), moment(hit))
            if hit.neighbours:
                table.add_row("", "", f"[dim]and {counted(hit.neighbours, 'window')} beside it[/]", "")
            if hit.shared is not None:
                table.add_row("", "", _anchors(hit.shared), "")
        out.print(table, "")
    out.print(
        f"[dim]{counted(found.clips, found.unit)} of {printable(str(found.collection))}\n{printable(found.method)}[/]"
    )
    out.print(f"[dim]by {printable(found.seeker)}[/]")


def print_sentences(video: str, ranked: Sequence[Ranked]) -> None:
    """Print the sentences of one clip."""
    out = stdout()
    out.print(f"[bold]{printable(video)}[/]", soft_wrap=True)
    table = _table("sentence")
    for each in ranked:
        table.add_row(str(each.rank), f"{each.score:z.3f}", printable(each.sentence))
        if each.shared is not None:
            table.add_row("", "", _anchors(each.shared))
    out.print(table)


def print_recall(recall: Recall) -> None:
    """Print what the first stage keeps."""
    out = stdout()
    out.print(
        f"recall@{recall.at} of the first stage over {recall.queries} queries: [bold]{100 * recall.kept:z.1f} %[/]\n"
        f"(share of the exact best {recall.at} among its {recall.candidates:,} candidates; "
        f"its own best {recall.at} alone would hold {100 * recall.first:z.1f} %)"
    )


def _anchors(shared: Sequence[Shared]) -> str:
    from calmctl.explaining.words import percent

    named = ", ".join(f"{printable(each.anchor)} {percent(each.share)}" for each in shared)
    return f"[dim]{named or 'no anchor in common'}[/]"


def _table(*columns: str) -> Sheet:
    table = Sheet(header_style="dim")
    table.add_column("", justify="right")
    table.add_column("score")
    for number, column in enumerate(columns):
        table.add_column(column, overflow="fold", no_wrap=number > 0, ratio=1 if number == 0 else None)
    return table
