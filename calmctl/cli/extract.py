"""`calmctl extract`: clips and captions in, a feature store out."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from calmctl.cli import options
from calmctl.cli.console import (
    facts_sheet,
    loading,
    note,
    print_left_out,
    print_next,
    print_plain,
    printable,
    progress_bar,
    readings,
    stdout,
)
from calmctl.cli.results import print_result
from calmctl.device import choose_device
from calmctl.errors import BadInput
from calmctl.runtime import require_packages
from calmctl.words import counted

if TYPE_CHECKING:
    from calmctl.samples import Dataset, LeftOut
    from calmctl.store.extract import ExtractReport
    from calmctl.store.writer import MergeReport


# OpenAI's weights were trained with QuickGELU; the plain ViT-B-32 would run them with another activation.
MODEL, FRAMES = "ViT-B-32-quickgelu", 12

EXAMPLES = options.examples(
    "calmctl extract msrvtt --root /data",
    "calmctl extract my-videos --captions captions.csv",
    "calmctl extract clips --backbone ViT-B-16 --backbone-weights b16.safetensors",
    "calmctl extract my-videos --run runs/msrvtt-001      # to search with that run",
    "calmctl extract lsmdc --root /data --shard 3/16 --out parts/3",
    "calmctl extract --merge parts/* --out features/lsmdc",
    "calmctl extract lsmdc --root /data --ray 8 --workers 16",
)


def extract(
    sources: Annotated[list[str], typer.Argument(metavar="DATASET|FOLDER", help="A data set, or a folder of videos.")],
    out: Annotated[
        Path | None,
        typer.Option(metavar="STORE", help="The feature store; features/NAME by default.", show_default=False),
    ] = None,
    as_json: options.Json = False,
    root: options.Root = None,
    annotations: options.Annotations = None,
    videos: options.Videos = None,
    captions: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Captions of a folder: CSV, JSON, JSONL, parquet.", rich_help_panel=options.DATA
        ),
    ] = None,
    protocol: options.Protocol = None,
    run: options.Run = None,
    backbone: options.Backbone = None,
    weights: options.BackboneWeights = None,
    frames: Annotated[
        int | None, options.FRAMES(help="Frames of a clip; 12, or the run's.", panel=options.MODEL)
    ] = None,
    half: Annotated[
        bool,
        typer.Option("--half", help="Store float16: half the size, rounded.", rich_help_panel=options.MODEL),
    ] = False,
    workers: options.Workers = None,
    timeout_s: options.Timeout = 120.0,
    shard: Annotated[
        str | None,
        typer.Option(metavar="I/N", help="Do part I of N, for a job array.", rich_help_panel=options.RUNNING),
    ] = None,
    ray: Annotated[int, options.ACTORS(help=r"Use N actors of Ray (calmctl\[cluster]).", panel=options.RUNNING)] = 0,
    merge: Annotated[
        bool, typer.Option("--merge", help="Merge such parts (stores) into --out.", rich_help_panel=options.RUNNING)
    ] = False,
    retry: Annotated[
        bool, typer.Option("--retry", help="Try clips again that did not decode.", rich_help_panel=options.RUNNING)
    ] = False,
    strict: Annotated[
        bool, typer.Option("--strict", help="A missing or broken clip is an error.", rich_help_panel=options.RUNNING)
    ] = False,
    device: options.Device = "auto",
    runs: options.Runs = Path("runs"),
) -> None:
    """Decode and encode clips once, into a feature store.

    What is there already is skipped: after an interruption, run the same command again.

    Damaged shards and clips whose file has changed are made again; what does not decode is listed.

    Without --run and --backbone, OpenAI's CLIP ViT-B/32 encodes.
    """
    from calmctl.runs.run import find_run

    if merge:
        # Before all else: merging reads stores and needs no model.
        _merge([Path(source) for source in sources], out, as_json)
        return
    if len(sources) != 1:
        raise BadInput(f"extract takes one dataset or folder, got {len(sources)}; to merge stores, add --merge")
    part = _shard(shard)
    if ray:
        require_packages(["ray"], extra="cluster", what="--ray")
    from calmctl.data.registry import require_dataset_or_folder

    require_dataset_or_folder(sources[0])  # before what backbones need: numpy and more take an eighth of a second
    from calmctl.model.published import usual_weights
    from calmctl.model.spec import check_backbone

    # For its refusal: a run and a bare backbone exclude each other.
    options.is_bare(run, backbone, weights)
    model = backbone or MODEL
    weights = weights or usual_weights(model)
    chosen = find_run(run, runs) if run is not None else None
    if chosen is None:
        check_backbone(model, weights)  # before torch and open_clip, which take seconds
    dataset = _load(sources[0], root, annotations, videos, captions, protocol)
    recipe = chosen.recipe() if chosen else None
    named = chosen.folder.name if chosen else model
    n_frames = frames or (recipe.data.frames if recipe else FRAMES)
    loading(str(chosen.folder) if chosen else named)

    from calmctl.model.weights import load_backbone
    from calmctl.runs.checkpoint import load_towers
    from calmctl.store.extract import extract as run_extract

    # float32 unless somebody asks: evaluation from the store then equals evaluation from the videos.
    dtype: Literal["float16", "float32"] = "float16" if half else "float32"
    # With Ray this process does not encode, and may have no GPU itself.
    where = device if ray and device != "auto" else choose_device(device)
    encoder = load_towers(chosen) if chosen else load_backbone(model, weights)
    for text in encoder.notes:
        note(printable(text))
    with progress_bar("clips") as bar:
        report = run_extract(
            dataset,
            encoder,
            out or _default_store(sources[0], dataset, named, part),
            n_frames=n_frames,
            dtype=dtype,
            device=where,
            workers=workers,
            timeout_s=timeout_s,
            shard=part,
            retry=retry,
            strict=strict,
            ray_actors=ray,
            progress=readings(bar),
        )
    # What the next command has to be told, where it is not what recipes have anyway.
    used = {
        "backbone.model": (recipe.backbone.model if recipe else model, MODEL),
        "backbone.weights": (str(chosen.weights("best")) if chosen else weights, usual_weights(MODEL)),
        "data.frames": (n_frames, FRAMES),
    }
    keys = [f"{key}={value}" for key, (value, usual) in used.items() if value != usual]
    print_result(report, partial(print_extracted, dataset=dataset, keys=keys), as_json)
    # Every clip was dealt with, and there is nothing to search or to train on.
    if not report.clips_extracted + report.clips_kept and report.undecodable:
        # Behind the table, which says why of each clip.
        note("[bold red]error:[/] no clip could be decoded")
        raise typer.Exit(1)


def _load(
    source: str,
    root: Path | None,
    annotations: Path | None,
    videos: Path | None,
    captions: Path | None,
    protocol: str | None,
) -> Dataset:
    from calmctl.data.registry import DATASETS, load_dataset

    if source in DATASETS and source != "folder":
        if captions is not None:
            raise BadInput(f"--captions belongs to a folder of videos; {source} brings its own (--annotations)")
        if annotations is None or videos is None:
            root = root or Path("data")
        return load_dataset(source, root, protocol=protocol, annotations=annotations, videos=videos)
    if root is not None:
        raise BadInput(f"--root belongs to a data set; {source} is a folder itself")
    if annotations is not None and captions is not None:
        raise BadInput("--captions and --annotations both name a folder's captions; give one")
    # Two names of one file: a folder has captions, a data set has annotations.
    return load_dataset("folder", Path(source), protocol=protocol, annotations=captions or annotations, videos=videos)


def _default_store(source: str, dataset: Dataset, backbone: str, part: tuple[int, int]) -> Path:
    # The backbone's name is in it, because a store takes the features of one backbone alone.
    name = Path(source).resolve().name if dataset.name == "folder" else dataset.name
    words = [name, *([dataset.protocol] if dataset.protocol else []), Path(backbone).stem]
    store = "-".join(words) + (f".{part[0]}of{part[1]}" if part != (1, 1) else "")
    return Path("features") / store


def _shard(text: str | None) -> tuple[int, int]:
    if text is None:
        return 1, 1
    match = re.fullmatch(r"(\d{1,9})/(\d{1,9})", text)
    if match is None or not 1 <= int(match[1]) <= int(match[2]):
        raise BadInput(f"--shard {text}: write part/parts, counted from 1, as in 1/4, 2/4, 3/4, 4/4")
    return int(match[1]), int(match[2])


def _merge(parts: list[Path], out: Path | None, as_json: bool) -> None:
    if out is None:
        raise BadInput("--merge needs --out STORE, the folder for the merged store")

    from calmctl.store.writer import merge_stores

    report = merge_stores(parts, out)
    print_result(report, print_merged, as_json)
    if report.incomplete:
        raise typer.Exit(1)


# What `calmctl extract` shows when it is done.


def print_extracted(report: ExtractReport, dataset: Dataset, keys: Sequence[str]) -> None:
    """Print what an extraction did, notes on its data, what was left out, and what its features are for.

    `keys` name their backbone.
    """
    table = facts_sheet()
    name = " ".join(word for word in (report.dataset, report.protocol) if word)
    part = f", part {report.shard[0]} of {report.shard[1]}" if report.shard != (1, 1) else ""
    table.add_row("store", printable(str(report.store)))
    table.add_row("dataset", f"{name}{part}: " + ", ".join(dataset.splits))
    table.add_row("clips", f"{report.clips_extracted} extracted, {report.clips_kept} there already")
    table.add_row("captions", f"{report.texts_extracted} extracted, {report.texts_kept} there already")
    table.add_row("left out", f"{len(report.undecodable)} not decodable, {len(report.missing)} missing")
    if report.clips_per_s is not None:
        table.add_row("speed", f"{report.clips_per_s:.1f} clips/s")
    for reason in report.redone:
        table.add_row("redone", printable(reason))
    for text in report.notes:
        table.add_row("note", printable(text))
    if report.shard != (1, 1):
        table.add_row("next", "when all parts are there: calmctl extract --merge PARTS --out STORE")
    stdout().print(table)
    print_left_out({"not read": _listed(report.unread)}, noun="place")
    print_left_out({"not decodable": _listed(report.undecodable), "missing": _listed(report.missing)})
    if report.shard == (1, 1):
        # What is printed can be pasted, also where a path holds blanks.
        store = shlex.quote(str(report.store))
        # Only what has these splits can be trained on. Features are frozen, so an adapter is what learns beside the
        # head.
        if dataset.splits.keys() >= {"train", "val"}:
            words = [f"data.features={store}", "backbone.adapter=linear", *map(shlex.quote, keys)]
            print_next(f"calmctl train recipes/{dataset.name}.yaml {' '.join(words)}")
        else:
            print_next(f'calmctl search "a man talking" --in {store}')


def _listed(left_out: tuple[LeftOut, ...]) -> dict[str, str]:
    return {clip.id: clip.reason for clip in left_out}


def print_merged(report: MergeReport) -> None:
    """Print what a merge did, and what is missing for a whole store."""
    print_plain(
        f"{report.store}: {counted(report.clips, 'clip')}, {counted(report.sentences, 'caption')} "
        f"({counted(report.shards_taken, 'shard')} taken over)"
    )
    if report.incomplete:
        note(f"[yellow]not complete: {counted(len(report.incomplete), 'shard')} in none of the parts[/]")
        for line in report.incomplete[:10]:
            note(f"  {printable(line)}")
        note("extract those parts, then merge again with the same command")
