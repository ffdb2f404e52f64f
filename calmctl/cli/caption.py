"""`calmctl caption`: a sentence for a video, for every clip of a folder or data set, or for each segment of a video."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from calmctl.cli import console as options
from calmctl.cli.console import Sheet, choose_run, loading, note, print_json, printable, progress_bar, readings, stdout
from calmctl.errors import BadInput, VideoError
from calmctl.files import SUBTITLES, require_output
from calmctl.words import counted

if TYPE_CHECKING:
    from rich.progress import Progress

    from calmctl.captions.evaluate import CaptionEvaluation
    from calmctl.captions.generate import Caption, Search, Segment
    from calmctl.evaluation.encoding import EncodedSplit
    from calmctl.evaluation.runs import TestSet
    from calmctl.model.captioner import CaptionModel
    from calmctl.recipe import Recipe
    from calmctl.samples import Clip, LeftOut


EXAMPLES = """Examples:

calmctl caption video.mp4

calmctl caption holidays --out holidays.csv    # a line a video, which search and train read

calmctl caption lectures --segment-s 10 --srt subtitles    # subtitles/NAME.srt for each video

calmctl caption lecture.mp4 --srt lecture.srt

calmctl caption clips/*.mp4 --run runs/msrvtt-caption-001 --json

calmctl caption msvd --root /data/msvd --beam 1"""

Value = TypeVar("Value")
SEGMENT_S = 10.0
_CAPTIONS_FILES = (".csv", ".json", ".jsonl")
_DATA, _HOW, _LONG, _RUN = "Of a data set", "How captions are found", "Of long videos", "How it runs"


def caption(
    sources: Annotated[
        list[str], typer.Argument(metavar="VIDEO|FOLDER...|DATASET", help="Videos and folders of them, or a data set.")
    ],
    run: Annotated[
        str | None, typer.Option(help="A captioning run; by default the newest that knows such clips.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Also write a captions file: .csv, .json or .jsonl.")
    ] = None,
    beam: Annotated[int | None, options.BEAMS(help="Beams; 1: greedy; the recipe's, usually 5.", panel=_HOW)] = None,
    length_penalty: Annotated[
        float | None, options.LENGTH_PENALTY(help="Beams compare by log p / length^this; the recipe's.", panel=_HOW)
    ] = None,
    temperature: Annotated[
        float | None, options.TEMPERATURE(help="Draw words instead; 1: as the model does.", panel=_HOW)
    ] = None,
    seed: Annotated[int, options.SEED(help="Of the draws of --temperature.", panel=_HOW)] = 0,
    segment_s: Annotated[
        float | None,
        options.SECONDS(metavar="SECONDS", help="Caption every so many; 10 with --srt.", panel=_LONG),
    ] = None,
    srt: Annotated[
        Path | None,
        typer.Option(metavar="FILE.srt|FOLDER", help="Write segments as subtitles.", rich_help_panel=_LONG),
    ] = None,
    root: Annotated[Path | None, typer.Option(help="Where it lies.", rich_help_panel=_DATA)] = None,
    annotations: Annotated[
        Path | None, typer.Option(help="Folder of annotation files, when not under root.", rich_help_panel=_DATA)
    ] = None,
    videos: Annotated[
        Path | None, typer.Option(help="Folder of clips, when not under root.", rich_help_panel=_DATA)
    ] = None,
    split: Annotated[str, typer.Option(help="test or val.", rich_help_panel=_DATA)] = "test",
    weights: Annotated[str, typer.Option(help="best (on validation), last, or slim.", rich_help_panel=_RUN)] = "best",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.", rich_help_panel=_RUN)] = "auto",
    runs: Annotated[Path, typer.Option(help="Folder of runs.", rich_help_panel=_RUN)] = Path("runs"),
    as_json: Annotated[bool, typer.Option("--json", help="Print the captions as JSON.")] = False,
) -> None:
    """Caption videos with a trained captioner."""
    from calmctl.data.demo_world import drawn
    from calmctl.data.registry import DATASETS
    from calmctl.device import check_device
    from calmctl.runs.run import WEIGHTS

    segmented = segment_s is not None or srt is not None
    dataset = sources[0] if len(sources) == 1 and sources[0] in DATASETS and not Path(sources[0]).is_file() else None
    clips, unreadable = ([], []) if dataset is not None else _clips(sources)
    if segmented and dataset is not None:
        raise BadInput(f"--segment-s and --srt are for a video; {dataset} is a data set of clips")
    if srt is not None and srt.suffix == ".srt" and len(clips) != 1:
        raise BadInput(f"--srt {srt} holds the subtitles of one video, and there are {len(clips)}; name a folder")
    files = {} if srt is None else _subtitle_files(srt, [clip.id for clip in clips])
    for path in files.values():
        require_output(path, SUBTITLES)
    if out is not None and segmented:
        raise BadInput("--out holds one caption a video; with --segment-s or --srt there are many, which --json has")
    if out is not None and out.suffix.lower() not in _CAPTIONS_FILES:
        raise BadInput(f"--out {out}: captions can be written as {', '.join(_CAPTIONS_FILES)}")
    if out is not None and os.path.lexists(out):
        raise BadInput(f"--out {out} exists already; name a new file, so that no caption of yours is lost")
    if temperature is not None and (beam is not None or length_penalty is not None):
        raise BadInput("--temperature draws words, --beam and --length-penalty search for them; give one of the two")
    if weights not in WEIGHTS:
        raise BadInput(f"--weights {weights} is not known; use one of {', '.join(WEIGHTS)}")
    check_device(device)
    shapes = drawn([clip.path.stem for clip in clips]) if dataset is None else dataset.startswith("demo")
    chosen = choose_run(run, runs, shapes, "captioning", task="caption")
    assert chosen is not None
    loading(str(chosen.folder))
    # From here on torch is needed, which takes seconds: the mistakes above are found before.
    from calmctl.captions.generate import Search
    from calmctl.device import choose_device
    from calmctl.evaluation.runs import TestSet
    from calmctl.runs.checkpoint import load_captioner

    recipe = chosen.recipe()
    keys = recipe.caption
    search = Search(
        keys.beam if beam is None else beam,
        keys.length_penalty if length_penalty is None else length_penalty,
        temperature,
        seed,
    )
    model = load_captioner(chosen, weights, choose_device(device))
    warning = chosen.trained_on.warning(shapes)
    about: dict[str, Any] = {
        "run": str(chosen.folder),
        "trained_on": str(chosen.trained_on),
        **({"warning": warning} if warning else {}),
        "weights": weights,
        "search": search.describe(),
    }
    with progress_bar("clips") as bar:
        if segmented:
            found, broken = _segments(model, recipe, clips, segment_s or SEGMENT_S, search, bar)
        elif dataset is not None:
            test = TestSet(dataset, root, annotations, videos)
            encoded = _encode_dataset(model, recipe, test, split, bar)
        else:
            encoded = _encode_videos(model, recipe, clips, unreadable, bar)
    if segmented:
        left_out = {clip.id: clip.reason for clip in [*unreadable, *broken]}
        _print_segments(found, left_out, about, srt, files, as_json)
    else:
        _print_clips(model, encoded, search, about, out, as_json)


def _clips(sources: list[str]) -> tuple[list[Clip], list[LeftOut]]:
    """The videos that are meant, in order, a folder's in that of their paths; and those that cannot be read."""
    from calmctl.data.folder import FolderClips
    from calmctl.data.registry import DATASETS
    from calmctl.samples import Clip, LeftOut

    clips: list[Clip] = []
    unreadable: list[LeftOut] = []
    for source in map(Path, sources):
        if source.is_file():
            clips.append(Clip(str(source), source))
            continue
        if not source.is_dir():
            names = ", ".join(name for name in DATASETS if name != "folder")
            raise VideoError(f"{source} is no file and no data set, nor a folder; give videos, or one of {names}")
        folder = FolderClips(source)
        if not folder.ids:
            raise VideoError(f"{source}: {folder.no_video()}; give videos, or another folder")
        for path in map(folder.find, folder.ids):
            if isinstance(path, Path):
                clips.append(Clip(str(path), path))
        faults = [(name, folder.find(name)) for name in folder.ids]
        unreadable += [LeftOut(str(source / name), fault) for name, fault in faults if isinstance(fault, str)]
        unreadable += [LeftOut(str(source / place.id), place.reason) for place in folder.unread]
        if over := folder.passed_over():
            note(f"[dim]{printable(over)}[/]")
    if len({clip.path.resolve() for clip in clips}) < len(clips):
        raise BadInput("a video is given twice; name each once")
    return clips, unreadable


def _encode_dataset(model: CaptionModel, recipe: Recipe, test: TestSet, split: str, bar: Progress) -> EncodedSplit:
    from calmctl.evaluation.runs import open_test_set

    device = next(model.parameters()).device
    return open_test_set(recipe, test, split).encode(model, recipe, device, readings(bar))


def _encode_videos(
    model: CaptionModel, recipe: Recipe, clips: list[Clip], unreadable: list[LeftOut], bar: Progress
) -> EncodedSplit:
    from calmctl.evaluation.encoding import encode_split, stream_frames
    from calmctl.samples import Split

    split = Split("given", tuple(clips), (), (), tuple(unreadable))
    bars = readings(bar)
    frames = stream_frames(split, model, recipe.data, lambda done, total: bars("decoding", done, total))
    return encode_split(model, split, frames, next(model.parameters()).device)


def _segments(
    model: CaptionModel, recipe: Recipe, clips: list[Clip], segment_s: float, search: Search, bar: Progress
) -> tuple[dict[str, list[Segment]], list[LeftOut]]:
    """The segments of each video, and the videos that have none; of a single video that is an error."""
    from calmctl.captions.generate import caption_segments
    from calmctl.samples import LeftOut

    bars = readings(bar)
    found: dict[str, list[Segment]] = {}
    broken: list[LeftOut] = []
    for clip in clips:
        try:
            found[clip.id] = caption_segments(
                model,
                clip.path,
                segment_s,
                n_frames=recipe.data.frames,
                search=search,
                progress=lambda done, total, name=clip.path.name: bars(name, done, total),  # type: ignore[misc]
            )
        except VideoError as fault:
            if len(clips) == 1:
                raise
            broken.append(LeftOut(clip.id, str(fault).removeprefix(f"{clip.path}: ")))
    if not found:
        raise VideoError(f"none of {len(clips)} videos can be decoded (first: {broken[0].id}: {broken[0].reason})")
    return found, broken


def _print_segments(
    found: dict[str, list[Segment]],
    left_out: dict[str, str],
    about: dict[str, Any],
    srt: Path | None,
    files: Mapping[str, Path],
    as_json: bool,
) -> None:
    from calmctl.captions.generate import srt as subtitles
    from calmctl.cli.console import print_left_out
    from calmctl.files import write_output

    written = {name: files[name] for name in found if name in files}
    for name, path in written.items():
        write_output(path, subtitles(found[name]), SUBTITLES)
    if as_json:
        segments_of = {name: [s.to_json() for s in each] for name, each in found.items()}
        print_json({**about, "segments": segments_of, "left_out": left_out})
    else:
        for name, segments in found.items():
            print_segments(name, segments)
    print_left_out({"captions": left_out})
    if written:
        note(
            f"wrote {printable(str(srt))}"
            + (f", {counted(len(written), 'file')}" if srt not in written.values() else "")
        )


def _subtitle_files(srt: Path, videos: Sequence[str]) -> dict[str, Path]:
    """The subtitles' file by video: `srt` itself for one, else in that folder, in folders like the videos' own."""
    if srt.suffix == ".srt":
        return {video: srt for video in videos}
    return {video: srt / name for name, video in _below({video: video for video in videos}, ".srt")}


def _print_clips(
    model: CaptionModel, encoded: EncodedSplit, search: Search, about: dict[str, Any], out: Path | None, as_json: bool
) -> None:
    from calmctl.captions.evaluate import caption_split
    from calmctl.cli.console import print_left_out

    captions = caption_split(model, encoded, search)
    left_out = {entry.id: entry.reason for entry in encoded.left_out}
    if as_json:
        found = {clip: {"caption": made.text, "log_prob": made.log_prob} for clip, made in captions.items()}
        print_json({**about, "captions": found, "left_out": left_out})
    else:
        print_captions(list(captions.items()))
        print_left_out({"captions": left_out})
    if out is not None:
        from calmctl.data.annotations import write_captions

        splits = write_captions(out, {video: made.text for video, made in _below(captions)})
        told = f" ({', '.join(f'{count} {name}' for name, count in splits.items())})" if splits else ""
        note(f"wrote {printable(str(out))}, {counted(len(captions), 'caption')}{told}")


def _below(found: Mapping[str, Value], suffix: str | None = None) -> list[tuple[str, Value]]:
    """The values by video, each named by its path below the folder that holds all of them; with another suffix."""
    parents = [os.path.dirname(name) or "." for name in found]
    common = os.path.commonpath(parents) if len(set(map(os.path.isabs, parents))) == 1 else ""
    below = {name: Path(os.path.relpath(name, common or ".")) for name in found}
    if suffix is not None:
        stems = Counter(path.with_suffix("") for path in below.values())
        below = {
            name: path.with_suffix(suffix) if stems[path.with_suffix("")] == 1 else path.with_name(path.name + suffix)
            for name, path in below.items()
        }
    return [(below[name].as_posix(), value) for name, value in found.items()]


# What captions and their scores look like on a terminal of 80 columns.


EXAMPLES_SHOWN = 3


def print_evaluations(evaluations: Sequence[CaptionEvaluation]) -> None:
    """Print scores beside the paper's, how captions were found, and the first captions beside the true ones."""
    from calmctl.captions.score import caption_table

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
    from calmctl.captions.generate import timestamp

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
