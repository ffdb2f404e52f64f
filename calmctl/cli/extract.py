"""`calmctl extract`: clips and captions in, a feature store out."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from calmctl.cli import console as options
from calmctl.cli.console import Sheet, loading, note, print_json, print_next, printable, progress_bar, stdout
from calmctl.errors import BadInput
from calmctl.words import counted

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from calmctl.samples import Dataset, LeftOut
    from calmctl.store.extract import ExtractReport
    from calmctl.store.extract import Progress as Step
    from calmctl.store.writer import MergeReport


MODEL, WEIGHTS, FRAMES = "ViT-B-32-quickgelu", "openai", 12

EXAMPLES = """Examples:

calmctl extract msrvtt --root /data

calmctl extract my-videos --captions captions.csv

calmctl extract my-videos --backbone ViT-B-16 --weights b16.safetensors

calmctl extract my-videos --run runs/msrvtt-001    # by its fine-tuned towers, to search with it

calmctl extract lsmdc --root /data --shard 3/16 --out parts/3

calmctl extract --merge parts/* --out features/lsmdc

calmctl extract lsmdc --root /data --ray 8 --workers 16"""

_DATA, _MODEL, _RUN = "Where clips and captions are", "What encodes them", "How it runs"


def extract(
    sources: Annotated[list[str], typer.Argument(metavar="DATASET|FOLDER", help="A dataset, or a folder of videos.")],
    out: Annotated[
        Path | None,
        typer.Option(metavar="STORE", help="The feature store; features/NAME by default.", show_default=False),
    ] = None,
    root: Annotated[Path, typer.Option(help="Folder that holds the dataset.", rich_help_panel=_DATA)] = Path("data"),
    annotations: Annotated[
        Path | None, typer.Option(help="Folder of annotation files, when not under root.", rich_help_panel=_DATA)
    ] = None,
    videos: Annotated[
        Path | None, typer.Option(help="Folder of clips, when not under root.", rich_help_panel=_DATA)
    ] = None,
    captions: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Captions of a folder: CSV, JSON or JSONL.", rich_help_panel=_DATA),
    ] = None,
    protocol: Annotated[
        str | None, typer.Option(help="The dataset's protocol, e.g. 9k.", rich_help_panel=_DATA)
    ] = None,
    backbone: Annotated[
        str | None,
        typer.Option(metavar="MODEL", help=f"open_clip model, demo-clip, config; {MODEL}.", rich_help_panel=_MODEL),
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option(help=f"Tag, .safetensors file, or checkpoint; {WEIGHTS}.", rich_help_panel=_MODEL),
    ] = None,
    run: Annotated[
        str | None, typer.Option(help="The towers that this run has trained, instead.", rich_help_panel=_MODEL)
    ] = None,
    runs: Annotated[Path, typer.Option(help="Folder of runs.", rich_help_panel=_MODEL)] = Path("runs"),
    frames: Annotated[int | None, options.FRAMES(help="Frames of a clip; 12, or the run's.", panel=_MODEL)] = None,
    half: Annotated[
        bool, typer.Option("--half", help="Store float16: half the size, rounded.", rich_help_panel=_MODEL)
    ] = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.", rich_help_panel=_RUN)] = "auto",
    workers: Annotated[int | None, options.WORKERS(help="Processes that decode; one a core.", panel=_RUN)] = None,
    timeout_s: Annotated[float, options.TIMEOUT_S("--timeout", help="Seconds one clip may take.", panel=_RUN)] = 120.0,
    shard: Annotated[
        str | None, typer.Option(metavar="I/N", help="Do part I of N, for a job array.", rich_help_panel=_RUN)
    ] = None,
    ray: Annotated[int, options.ACTORS(metavar="N", help=r"Use N actors of Ray (calmctl\[cluster]).", panel=_RUN)] = 0,
    merge: Annotated[
        bool, typer.Option("--merge", help="Merge such parts (stores) into --out.", rich_help_panel=_RUN)
    ] = False,
    retry: Annotated[
        bool, typer.Option("--retry", help="Try clips again that did not decode.", rich_help_panel=_RUN)
    ] = False,
    strict: Annotated[
        bool, typer.Option("--strict", help="A missing or broken clip is an error.", rich_help_panel=_RUN)
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Decode and encode clips and captions once, into a feature store.

    What is there already is skipped: after an interruption, run the same command again.

    Damaged shards and clips whose file has changed are made again; what does not decode is listed.
    """
    from calmctl.device import check_device
    from calmctl.runs.run import find_run

    if merge:
        _merge([Path(source) for source in sources], out, as_json)
        return
    if len(sources) != 1:
        raise BadInput(f"extract takes one dataset or folder, got {len(sources)}; to merge stores, add --merge")
    part = _shard(shard)
    from calmctl.model.spec import check_backbone

    check_device(device)
    if run is not None and (backbone is not None or weights is not None):
        raise BadInput("--run and --backbone (or --weights) exclude each other; give one of them")
    chosen = find_run(run, runs) if run is not None else None
    if chosen is None:
        check_backbone(backbone or MODEL, weights or WEIGHTS)  # before torch and open_clip, which take seconds
    dataset = _load(sources[0], root, annotations, videos, captions, protocol)
    named = chosen.folder.name if chosen else backbone or MODEL
    loading(str(chosen.folder) if chosen else named)

    from calmctl.device import choose_device
    from calmctl.model.weights import load_backbone
    from calmctl.runs.checkpoint import load_towers
    from calmctl.store.extract import extract as run_extract

    dtype: Literal["float16", "float32"] = "float16" if half else "float32"
    # With Ray this process does not encode, and may have no GPU itself.
    where = device if ray and device != "auto" else choose_device(device)
    encoder = load_towers(chosen) if chosen else load_backbone(backbone or MODEL, weights or WEIGHTS)
    for text in encoder.notes:
        note(printable(text))
    bar = Bar()
    try:
        report = run_extract(
            dataset,
            encoder,
            out or _default_store(sources[0], dataset, named, part),
            n_frames=frames or (chosen.recipe().data.frames if chosen else FRAMES),
            dtype=dtype,
            device=where,
            workers=workers,
            timeout_s=timeout_s,
            shard=part,
            retry=retry,
            strict=strict,
            ray_actors=ray,
            on_progress=bar,
        )
    finally:
        bar.stop()
    if as_json:
        print_json(report.as_json())
    else:
        recipe = chosen.recipe() if chosen else None
        used = {
            "backbone.model": (recipe.backbone.model if recipe else backbone or MODEL, MODEL),
            "backbone.weights": (str(chosen.weights("best")) if chosen else weights or WEIGHTS, WEIGHTS),
            "data.frames": (frames or (recipe.data.frames if recipe else FRAMES), FRAMES),
        }
        print_extracted(report, dataset, [f"{key}={value}" for key, (value, usual) in used.items() if value != usual])
    if not report.clips_extracted + report.clips_kept and report.undecodable:
        note("[bold red]error:[/] no clip could be decoded")
        raise typer.Exit(1)


def _load(
    source: str,
    root: Path,
    annotations: Path | None,
    videos: Path | None,
    captions: Path | None,
    protocol: str | None,
) -> Dataset:
    from calmctl.data.registry import DATASETS, load_dataset, require_dataset_or_folder

    if source in DATASETS and source != "folder":
        if captions is not None:
            raise BadInput(f"--captions belongs to a folder of videos; {source} brings its own (--annotations)")
        if annotations is not None and videos is not None:
            return load_dataset(source, None, protocol=protocol, annotations=annotations, videos=videos)
        return load_dataset(source, root, protocol=protocol, annotations=annotations, videos=videos)
    require_dataset_or_folder(source)
    if annotations is not None and captions is not None:
        raise BadInput("--captions and --annotations both name a folder's captions; give one")
    return load_dataset("folder", Path(source), protocol=protocol, annotations=captions or annotations, videos=videos)


def _default_store(source: str, dataset: Dataset, backbone: str, part: tuple[int, int]) -> Path:
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
    if as_json:
        print_json(report.as_json())
    else:
        print_merged(report)
    if report.incomplete:
        raise typer.Exit(1)


# What `calmctl extract` shows: a bar while it works, a table when it is done.


class Bar:
    """One progress bar after the other: clips, then captions."""

    def __init__(self) -> None:
        self._unit: str | None = None
        self._bar: Progress | None = None
        self._task: TaskID | None = None

    def __call__(self, step: Step) -> None:
        """Show how far the work is."""
        if step.unit != self._unit and step.total:
            self.stop()
            self._unit = step.unit
            self._bar = progress_bar(step.unit)
            self._bar.start()
            self._task = self._bar.add_task(step.unit, total=step.total, note="")
        if self._bar is not None and self._task is not None and step.total:
            left_out = f"{step.left_out} left out" if step.left_out else ""
            self._bar.update(self._task, completed=step.done, note=left_out)

    def stop(self) -> None:
        """Clear the bar away."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def print_extracted(report: ExtractReport, dataset: Dataset, keys: Sequence[str]) -> None:
    """Print what an extraction did, notes on its data, what was left out, and what its features are for.

    `keys` name their backbone.
    """
    from rich.markup import escape

    from calmctl.cli.console import print_left_out

    table = Sheet(show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    name = " ".join(word for word in (report.dataset, report.protocol) if word)
    part = f", part {report.shard[0]} of {report.shard[1]}" if report.shard != (1, 1) else ""
    table.add_row("store", escape(str(report.store)))
    table.add_row("dataset", f"{name}{part}: " + ", ".join(dataset.splits))
    table.add_row("clips", _counts(report.clips_extracted, report.clips_kept))
    table.add_row("captions", _counts(report.texts_extracted, report.texts_kept))
    table.add_row("left out", f"{len(report.undecodable)} not decodable, {len(report.missing)} missing")
    if report.clips_per_s is not None:
        table.add_row("speed", f"{report.clips_per_s:.1f} clips/s")
    for reason in report.redone:
        table.add_row("redone", escape(reason))
    for text in report.notes:
        table.add_row("note", printable(text))
    if report.shard != (1, 1):
        table.add_row("next", "when all parts are there: calmctl extract --merge PARTS --out STORE")
    stdout().print(table)
    print_left_out({"not read": _listed(report.unread)}, noun="place")
    print_left_out({"not decodable": _listed(report.undecodable), "missing": _listed(report.missing)})
    if report.shard == (1, 1):
        store = shlex.quote(str(report.store))
        if dataset.splits.keys() >= {"train", "val"}:
            words = [f"data.features={store}", "backbone.adapter=linear", *map(shlex.quote, keys)]
            print_next(f"calmctl train recipes/{dataset.name}.yaml {' '.join(words)}")
        else:
            print_next(f'calmctl search "a man talking" --in {store}')


def _counts(extracted: int, kept: int) -> str:
    return f"{extracted} extracted, {kept} there already"


def _listed(left_out: tuple[LeftOut, ...]) -> dict[str, str]:
    return {clip.id: clip.reason for clip in left_out}


def print_merged(report: MergeReport) -> None:
    """Print what a merge did, and what is missing for a whole store."""
    stdout().print(
        f"{report.store}: {counted(report.clips, 'clip')}, {counted(report.sentences, 'caption')} "
        f"({counted(report.shards_taken, 'shard')} taken over)",
        markup=False,
        soft_wrap=True,
    )
    if report.incomplete:
        note(f"[yellow]not complete: {counted(len(report.incomplete), 'shard')} in none of the parts[/]")
        for line in report.incomplete[:10]:
            note(f"  {printable(line)}")
        note("extract those parts, then merge again with the same command")
