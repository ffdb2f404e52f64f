"""`calmctl extract`: clips and captions in, a feature store out."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from calmctl.cli.console import note, print_json
from calmctl.cli.extract_view import Bar, print_extracted, print_merged
from calmctl.errors import BadInput

if TYPE_CHECKING:
    from calmctl.data.samples import Dataset

EXAMPLES = """Examples:

calmctl extract msrvtt --root /data

calmctl extract my-videos --captions captions.csv

calmctl extract my-videos --backbone ViT-B-16 --weights b16.safetensors

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
        str, typer.Option(metavar="MODEL", help="open_clip model, demo-clip, or config.", rich_help_panel=_MODEL)
    ] = "ViT-B-32-quickgelu",
    weights: Annotated[
        str, typer.Option(help="Pretrained tag, .safetensors file, or checkpoint.", rich_help_panel=_MODEL)
    ] = "openai",
    frames: Annotated[int, typer.Option(min=1, help="Frames sampled from a clip.", rich_help_panel=_MODEL)] = 12,
    half: Annotated[
        bool, typer.Option("--half", help="Store float16: half the size, rounded.", rich_help_panel=_MODEL)
    ] = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.", rich_help_panel=_RUN)] = "auto",
    workers: Annotated[
        int | None, typer.Option(min=1, help="Processes that decode; one a core.", rich_help_panel=_RUN)
    ] = None,
    timeout_s: Annotated[
        float, typer.Option("--timeout", min=0.1, help="Seconds one clip may take.", rich_help_panel=_RUN)
    ] = 120.0,
    shard: Annotated[
        str | None, typer.Option(metavar="I/N", help="Do part I of N, for a job array.", rich_help_panel=_RUN)
    ] = None,
    ray: Annotated[
        int, typer.Option(min=0, metavar="N", help=r"Use N actors of Ray (calmctl\[cluster]).", rich_help_panel=_RUN)
    ] = 0,
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
    if merge:
        _merge([Path(source) for source in sources], out, as_json)
        return
    if len(sources) != 1:
        raise BadInput(f"extract takes one dataset or folder, got {len(sources)}; to merge stores, add --merge")
    part = _shard(shard)
    dataset = _load(sources[0], root, annotations, videos, captions, protocol)

    from calmctl.device import choose_device
    from calmctl.extraction.extract import extract as run_extract
    from calmctl.model.weights import load_backbone

    dtype: Literal["float16", "float32"] = "float16" if half else "float32"
    # With Ray this process does not encode, and may have no GPU itself.
    chosen = device if ray and device != "auto" else choose_device(device)
    bar = Bar()
    try:
        report = run_extract(
            dataset,
            load_backbone(backbone, weights),
            out or _default_store(sources[0], dataset, backbone, part),
            n_frames=frames,
            dtype=dtype,
            device=chosen,
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
        print_extracted(report, dataset)
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

    from calmctl.data.store_merge import merge_stores

    report = merge_stores(parts, out)
    if as_json:
        print_json(report.as_json())
    else:
        print_merged(report)
    if report.incomplete:
        raise typer.Exit(1)
