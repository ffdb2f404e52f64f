"""`calmctl data`: what a dataset needs, and whether it is all there."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from calmctl.cli import console as options
from calmctl.cli.console import Group, Sheet, note, print_json, printable, progress_bar, readings, stdout
from calmctl.errors import BadInput

if TYPE_CHECKING:
    from calmctl.data.check import CheckReport
    from calmctl.model.backbone import Tokens

CHECK_EXAMPLES = """Examples:

calmctl data check msrvtt --root /data

calmctl data check msrvtt --root /data --protocol full --decode

calmctl data check msvd --annotations lists --videos YouTubeClips --json

calmctl data check my-videos --decode

calmctl data check my-videos --backbone ViT-B-16"""

WHERE_EXAMPLES = """Examples:

calmctl data where

calmctl data where didemo"""

_SURELY_READ = 75  # characters: as many tokens at most, and CLIP reads 77 with its two marks
_COLOUR = {"ok": "green", "unused": "dim", "note": "cyan", "missing": "yellow", "wrong": "red"}

app = typer.Typer(
    cls=Group,
    no_args_is_help=True,
    help="Check what a dataset needs and where it is looked for.",
    epilog="Examples:  calmctl data where msrvtt    calmctl data check msrvtt --root /data",
)


@app.command(epilog=CHECK_EXAMPLES)
def check(
    dataset: Annotated[str, typer.Argument(metavar="DATASET|FOLDER", help="A dataset, or a folder of videos.")],
    root: Annotated[
        Path | None, typer.Option(help="Folder that holds the dataset; data by default.", show_default=False)
    ] = None,
    protocol: Annotated[str | None, typer.Option(help="The dataset's protocol, e.g. 9k.")] = None,
    annotations: Annotated[Path | None, typer.Option(help="Folder of annotation files, when not under root.")] = None,
    videos: Annotated[Path | None, typer.Option(help="Folder of clips, when not under root.")] = None,
    decode: Annotated[bool, typer.Option("--decode", help="Also decode every clip that is there.")] = False,
    workers: Annotated[int | None, options.WORKERS(help="Processes that decode; one a core.")] = None,
    timeout_s: Annotated[float, options.TIMEOUT_S("--timeout", help="Seconds one clip may take.")] = 120.0,
    backbone: Annotated[
        str | None, typer.Option(metavar="MODEL", help="Whose text tower reads the captions; CLIP's 77 tokens.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print all of it as JSON.")] = False,
) -> None:
    """Say what of a dataset is there, what is missing and who has it.

    Compares what is read with the published splits: counts, and the digest of clips and captions. Names what lies there
    without being read.

    Exit code 0: complete, as published, and nothing lost. 1: something is missing, differs, cannot be read or, with
    --decode, does not decode. 2: bad usage, or a file so malformed that nothing can be said.
    """
    from calmctl.data.check import check_dataset

    name, root = _named(dataset, root, annotations is not None and videos is not None)
    with progress_bar("clips") as bar:
        report = check_dataset(
            name,
            root,
            protocol=protocol,
            annotations=annotations,
            videos=videos,
            decode=decode,
            workers=workers,
            timeout_s=timeout_s,
            progress=readings(bar),
            cut_captions=partial(_cut_captions, backbone),
        )
    if as_json:
        print_json(report.as_json())
    else:
        _print(report)
    if not report.complete:
        raise typer.Exit(1)


def _cut_captions(backbone: str | None, captions: Sequence[str]) -> str | None:
    """On captions that the text tower of `backbone`, or CLIP's, would not read to their end."""
    if backbone is None and all(len(text) < _SURELY_READ and text.isascii() and "&" not in text for text in captions):
        return None  # the tokenizer's library takes seconds to load
    return _tokens(backbone or "ViT-B-32").cut(captions)


@cache
def _tokens(backbone: str) -> Tokens:
    from calmctl.model.weights import load_tokens

    return load_tokens(backbone)


def _named(dataset: str, root: Path | None, given_apart: bool) -> tuple[str, Path | None]:
    """The dataset that is meant, and its root."""
    from calmctl.data.registry import DATASETS, require_dataset_or_folder

    if dataset in DATASETS:
        return dataset, root if root or given_apart else Path("data")
    require_dataset_or_folder(dataset)
    if root is not None:
        raise BadInput(f"--root belongs to a dataset; {dataset} is a folder itself")
    return "folder", Path(dataset)


def _print(report: CheckReport) -> None:

    from calmctl.cli.console import print_left_out

    table = Sheet(show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold", max_width=38)
    table.add_column(overflow="fold")
    part = ""
    for finding in report.findings:
        if finding.part != part:
            part = finding.part
            table.add_row("", f"[bold]{part + 's' if part in ('annotation file', 'split') else part}[/]", "")
        colour = _COLOUR[finding.state]
        table.add_row(f"[{colour}]{finding.state}[/]", printable(finding.name), printable(finding.text))
    stdout().print(f"[bold]{' '.join(word for word in (report.dataset, report.protocol) if word)}[/]")
    stdout().print(table)
    states = {finding.state for finding in report.findings}
    faults = [
        words for state, words in (("missing", "not complete"), ("wrong", "not as it should be")) if state in states
    ]
    verdict = " and ".join(faults) or "complete"
    stdout().print(f"{verdict}; where files belong: calmctl data where {report.dataset}")
    print_left_out({"not read": dict(report.unread)}, noun="place")
    print_left_out({f"{split}, no file": dict(clips) for split, clips in report.missing.items()})
    print_left_out({f"{split}, not decodable": dict(clips) for split, clips in (report.undecodable or {}).items()})
    if report.undecodable is None:
        note("[dim]clips were looked for, not opened; --decode opens them[/]")


@app.command(epilog=WHERE_EXAMPLES)
def where(
    dataset: Annotated[str | None, typer.Argument(help="One dataset; all of them by default.")] = None,
) -> None:
    """Explain which files a dataset needs, what they are called, who gives them out and where they belong."""
    from calmctl.data.check import explain_dataset, kept_for_searches, overview

    text = (
        explain_dataset(dataset) if dataset else "\n\n".join(part for part in (overview(), kept_for_searches()) if part)
    )
    stdout().print(text, markup=False, soft_wrap=True)
