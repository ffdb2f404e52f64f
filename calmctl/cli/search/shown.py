"""What `calmctl search` shows on a terminal of 80 columns, and what it does with hits: open, cut out, list."""

from __future__ import annotations

from typing import TYPE_CHECKING

from calmctl.cli.console import Sheet, note, print_text, printable, stdout
from calmctl.errors import BadInput, VideoError
from calmctl.explain.words import percent
from calmctl.words import counted

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from calmctl.search.exact import Recall
    from calmctl.search.results import Answer, Found, Hit, Ranked, Shared


NEAREST = 3
"""Clips shown where none matches (our choice)."""


def print_found(result: Found) -> None:
    """Print every query's hits; where nothing matches, the nearest ones apart."""
    out = stdout()
    for answer in result.answers:
        out.print(f"[bold]{printable(answer.query)}[/]")
        matches = [hit for hit in answer.hits if hit.confidence is None or hit.confidence.match]
        others = [hit for hit in answer.hits if hit.confidence is not None and not hit.confidence.match]
        if matches:
            out.print(_hits(matches))
            if others:
                out.print(f"[dim]of the best {len(answer.hits)} the last {len(others)} do not match[/]")
        elif others:
            out.print(f"no {result.unit} of {result.clips:,} matches; the nearest, which are no answer:")
            out.print(_hits(others[:NEAREST]))
        out.print("")
    out.print(
        f"[dim]{counted(result.clips, result.unit)} of {printable(str(result.collection))}\n"
        f"{printable(result.method)}[/]"
    )
    if result.confidence is not None:
        out.print(f"[dim]{printable(result.confidence)}[/]")
    out.print(f"[dim]by {printable(result.seeker)}[/]")


def _hits(hits: Sequence[Hit]) -> Sheet:
    from calmctl.search.sheet import moment

    table = _table("clip", "when")
    for hit in hits:
        name = str(hit.file) if hit.file is not None else hit.clip
        table.add_row(str(hit.rank), f"{hit.score:z.3f}", printable(name), moment(hit))
        if hit.base_score is not None:
            table.add_row("", "", f"[dim]{hit.base_score:z.3f} before re-ranking[/]", "")
        if hit.confidence is not None:
            table.add_row("", "", f"[dim]{percent(hit.confidence.chance)} of other sentences do as well here[/]", "")
        if hit.neighbours:
            table.add_row("", "", f"[dim]and {counted(hit.neighbours, 'window')} beside it[/]", "")
        if hit.shared is not None:
            table.add_row("", "", _anchors(hit.shared), "")
    return table


def print_sentences(video: str, ranked: Sequence[Ranked]) -> None:
    """Print the sentences of one clip."""
    out = stdout()
    out.print(f"[bold]{printable(video)}[/]", soft_wrap=True)
    table = _table("sentence")
    for each in ranked:
        table.add_row(str(each.rank), f"{each.score:z.3f}", printable(each.sentence))
        if each.base_score is not None:
            table.add_row("", "", f"[dim]{each.base_score:z.3f} before re-ranking[/]")
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
    named = ", ".join(f"{printable(each.anchor)} {percent(each.share)}" for each in shared)
    return f"[dim]{named or 'no anchor in common'}[/]"


def _table(*columns: str) -> Sheet:
    table = Sheet(header_style="dim")
    table.add_column("", justify="right")
    table.add_column("score")
    for number, column in enumerate(columns):
        table.add_column(column, overflow="fold", no_wrap=number > 0, ratio=1 if number == 0 else None)
    return table


# What is done with hits.


def print_paths(result: Found) -> None:
    """Print the paths of hits that match, a line each and each once, as they are: they go into a pipe."""
    hits = [hit for answer in result.answers for hit in answer.hits if hit.confidence is None or hit.confidence.match]
    for path in dict.fromkeys(str(hit.file) for hit in hits if hit.file is not None):
        print_text(f"{path}\n")
    if unknown := sum(hit.file is None for hit in hits):
        note(f"{counted(unknown, 'hit')} without a known file; say where clips lie with --videos")


def cut_out(result: Found, folder: Path) -> None:
    """Write the hits that match into files of their own, and name those that cannot be."""
    from calmctl.search.cut import cut

    for answer in result.answers:
        for hit in answer.hits:
            if hit.confidence is not None and not hit.confidence.match:
                continue
            try:
                note(f"wrote {printable(str(cut(hit, folder)))}")
            except (BadInput, VideoError) as fault:
                note(f"[bold red]!! not cut:[/] {printable(str(fault))}")


PLAYERS = {"mpv": "--start={}", "vlc": "--start-time={}", "ffplay": "-ss {}"}
"""Players that can be told a second, in the order in which they are looked for."""


def open_hit(answer: Answer) -> None:
    """Start a player at the best hit that matches.

    Raises:
        BadInput: There is none, its file is not known, or there is no player.
    """
    import shutil
    import subprocess

    hits = [hit for hit in answer.hits if hit.confidence is None or hit.confidence.match]
    if not hits or hits[0].file is None:
        raise BadInput("there is nothing to open: " + ("its file is not known" if hits else "nothing matches"))
    player = next(filter(None, map(shutil.which, PLAYERS)), None)
    if player is None:
        raise BadInput(f"--open needs a player that starts at a second: {', '.join(PLAYERS)}; none is on PATH")
    name = next(name for name in PLAYERS if shutil.which(name) == player)
    at = PLAYERS[name].format(f"{hits[0].start_s:.2f}").split()
    # An absolute path: a file may be called like an option.
    command = [player, *at, str(hits[0].file.resolve())]
    subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    note(f"opened {printable(str(hits[0].file))} at {hits[0].start_s:.1f} s with {name}")
