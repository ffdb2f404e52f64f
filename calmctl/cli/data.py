"""`calmctl data`: what a dataset needs, and whether it is all there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from calmctl.cli import options
from calmctl.cli.console import (
    Sheet,
    loading,
    note,
    print_json,
    print_left_out,
    print_plain,
    printable,
    progress_bar,
    readings,
    stdout,
)
from calmctl.cli.results import print_result
from calmctl.errors import BadInput
from calmctl.words import counted

if TYPE_CHECKING:
    from calmctl.data.check import CheckReport
    from calmctl.model.backbone import Tokens

_SURELY_READ = 75  # characters: as many tokens at most, and CLIP reads 77 with its two marks
_COLOUR = {"ok": "green", "unused": "dim", "note": "cyan", "missing": "yellow", "wrong": "red"}

app = options.Commands(
    "Check what a data set needs and where it is looked for.",
    "calmctl data where msrvtt",
    "calmctl data check msrvtt --root /data",
)


@app.verb(
    "calmctl data check msrvtt --root /data",
    "calmctl data check msrvtt --root /data --protocol full --decode",
    "calmctl data check msvd --annotations lists --videos YouTubeClips --json",
    "calmctl data check my-videos --decode",
)
def check(
    dataset: Annotated[str, typer.Argument(metavar="DATASET|FOLDER", help="A data set, or a folder of videos.")],
    decode: Annotated[bool, typer.Option("--decode", help="Also decode every clip that is there.")] = False,
    as_json: options.Json = False,
    root: options.Root = None,
    annotations: options.Annotations = None,
    videos: options.Videos = None,
    protocol: options.Protocol = None,
    backbone: options.Backbone = None,
    workers: options.Workers = None,
    timeout_s: options.Timeout = 120.0,
) -> None:
    """Say what of a data set is there, what is missing and who has it.

    Compares what is read with the published splits: counts, and the digest of clips and captions.

    Names what lies there unread, and captions that CLIP, or --backbone, does not read to their end.

    Exit code 0: complete, as published. 1: something is missing, differs or cannot be read. 2: bad usage or input.
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
    print_result(report, _print, as_json)
    # A status for scripts: a table that says "missing" is read by people alone.
    if not report.complete:
        raise typer.Exit(1)


def _cut_captions(backbone: str | None, captions: Sequence[str]) -> str | None:
    """On captions that the text tower of `backbone`, or CLIP's, would not read to their end."""
    # Only ASCII is sure: a letter of another script may be two tokens.
    if backbone is None and all(len(text) < _SURELY_READ and text.isascii() and "&" not in text for text in captions):
        return None  # the tokenizer's library takes seconds to load
    return _tokens(backbone or "ViT-B-32").cut(captions)


# Once for all splits: the tokenizer's library takes seconds to load.
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
        raise BadInput(f"--root belongs to a data set; {dataset} is a folder itself")
    return "folder", Path(dataset)


def _print(report: CheckReport) -> None:
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
    faults = {"missing": "not complete", "wrong": "not as it should be"}
    verdict = " and ".join(words for state, words in faults.items() if state in states) or "complete"
    stdout().print(f"{verdict}; where files belong: calmctl data where {report.dataset}")
    for finding in report.findings:
        if finding.command:
            print_plain(finding.command)
    print_left_out({"not read": dict(report.unread)}, noun="place")
    print_left_out({f"{split}, no file": dict(clips) for split, clips in report.missing.items()})
    print_left_out({f"{split}, not decodable": dict(clips) for split, clips in (report.undecodable or {}).items()})
    if report.undecodable is None:
        note("[dim]clips were looked for, not opened; --decode opens them[/]")


@app.verb(
    "calmctl data reencode data/msvd/YouTubeClips data/msvd/reencoded",
    "calmctl data reencode holidays /tmp/holidays --workers 4 --json",
)
def reencode(
    root: Annotated[Path, typer.Argument(metavar="ROOT", help="A folder of videos, with those below it.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Where they go: the same names, with .mp4.")],
    side: Annotated[int, options.SIDE(metavar="PIXELS", help="Short side, even.")] = 240,
    as_json: options.Json = False,
    workers: options.Workers = None,
    timeout_s: options.Timeout = 600.0,
) -> None:
    """Re-encode videos as CoCap reads them: what a codec keeps of motion, exactly.

    H.264 with a key frame every 60 pictures, one reference, no B pictures, no loop filter; without sound.

    What is in OUT already is kept, so a call can be repeated. Train on it with data.videos=OUT.

    Exit code 0: all are there. 1: some could not be re-encoded; they are listed.
    """
    from calmctl.data.reencode import reencode_folder

    if side % 2:
        raise BadInput(f"--side {side}: H.264 needs even sizes; give {side + 1}")
    with progress_bar("clips") as bar:
        done = reencode_folder(root, out, side=side, workers=workers, timeout_s=timeout_s, progress=readings(bar))
    if as_json:
        print_json({"folder": str(out), "side": side, **asdict(done)})
    else:
        before = f", {done.kept:,} there before" if done.kept else ""
        print_plain(f"{out}: {counted(done.made, 'video')} re-encoded{before}")
        print_left_out({"not re-encoded": done.left_out})
    if done.left_out:
        raise typer.Exit(1)


@app.verb(
    "calmctl data frames msrvtt data.root=/data/msrvtt",
    "calmctl data frames recipes/lsmdc.yaml data.cache_gb=800 data.workers=16",
)
def frames(
    recipe: Annotated[str, options.RECIPE],
    overrides: options.Overrides = None,
    as_json: options.Json = False,
) -> None:
    """Decode now what a training keeps: its recipe has data.cache: disk.

    A training fills the same folder in its first epoch. What is there is not decoded again.

    Exit code 0: all are there. 1: some could not be decoded or kept; they are listed.
    """
    from calmctl.recipe import load_recipe, resolve_recipe

    resolved = load_recipe(resolve_recipe(recipe), overrides or [])
    if resolved.data.cache != "disk" or resolved.data.features is not None:
        raise BadInput(f"{recipe}: its training keeps no frames on disk; set data.cache=disk data.features=null")
    loading("the model library")
    from calmctl.source.source import VideoSource
    from calmctl.training.prepare import prepare
    from calmctl.video.cache import in_gb

    prepared = prepare(resolved)
    source = prepared.source
    assert isinstance(source, VideoSource)
    note(f"[dim]{printable(source.keeping(prepared.model))}[/]")
    with progress_bar("clips") as bar:
        undecodable = source.fill(prepared.model, readings(bar))
    cache = source.cache
    assert cache is not None
    if as_json:
        clips = {"clips": dict(cache.counts), "undecodable": undecodable}
        print_json({"folder": str(cache.folder), "bytes": cache.used_bytes, **clips})
    else:
        decoded = cache.counts.total() - cache.counts["read"] - cache.counts["unkept"]
        print_plain(
            f"{cache.folder}: {counted(decoded, 'clip')} decoded, {cache.counts['read']:,} there before; "
            f"{in_gb(cache.used_bytes)}"
        )
        print_left_out({f"{split}, not decodable": clips for split, clips in undecodable.items()})
    for text in cache.warnings():
        note(f"[yellow]{printable(text)}[/]")
    if any(undecodable.values()) or cache.counts["unkept"]:
        raise typer.Exit(1)


@app.verb("calmctl data where", "calmctl data where didemo")
def where(
    dataset: Annotated[
        str | None, typer.Argument(metavar="DATASET", help="One data set; all of them by default.")
    ] = None,
) -> None:
    """Explain which files a data set needs, who gives them out and where they belong."""
    from calmctl.data.check import explain_dataset, kept_for_searches, overview

    stdout().print(explain_dataset(dataset) if dataset else overview(), markup=False)
    if dataset is None and (kept := kept_for_searches()):
        print_plain(f"\n{kept}")


@app.verb(
    "calmctl data unpack MSRVTT_Videos.zip --out data/msrvtt/videos",
    "calmctl data unpack DiDeMo_Videos_mp4_test.tar data/test-*.parquet --out mine",
)
def unpack(
    archives: Annotated[list[Path], typer.Argument(metavar="ARCHIVE...", help=".zip, .tar or parts of one, .parquet.")],
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Folder to write videos and captions.jsonl to.")],
    limit_gb: Annotated[
        float | None, options.Range(0.001, 1e6)(metavar="GB", help="Write no more; three times the archives' size.")
    ] = None,
    as_json: options.Json = False,
) -> None:
    """Unpack the videos of archives, webdataset's too, and the captions beside them.

    What is written is a folder that calmctl reads. Names cannot lead out of it; links and other files stay packed.
    """
    from calmctl.data.packed import unpack as unpack_archives

    most_bytes = None if limit_gb is None else int(limit_gb * 1e9)
    with progress_bar("MB") as bar:
        done = unpack_archives(archives, out, most_bytes=most_bytes, progress=readings(bar))
    if as_json:
        print_json(asdict(done))
        return
    captions = f", {counted(done.captions, 'caption')}" if done.captions else ""
    print_plain(f"{out}: {counted(done.videos, 'video')}, {done.bytes / 1e6:,.1f} MB{captions}")
    if done.others:
        note(f"[dim]not unpacked, neither videos nor texts: {counted(done.others, 'member')}[/]")
    print_left_out({"not unpacked": {each.id: each.reason for each in done.refused}}, noun="member")
