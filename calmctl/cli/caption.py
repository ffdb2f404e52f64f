"""`calmctl caption`: a sentence for a video, for every clip of a folder or data set, or for each segment of a video."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from calmctl.cli import options
from calmctl.cli.console import (
    Sheet,
    loading,
    note,
    print_json,
    print_left_out,
    printable,
    progress_bar,
    readings,
    stdout,
)
from calmctl.cli.results import choose_run
from calmctl.data.locate import Missing, drawn
from calmctl.device import choose_device
from calmctl.errors import BadInput, VideoError
from calmctl.files import SUBTITLES, require_output, write_output
from calmctl.samples import Clip, Dataset, LeftOut, Split
from calmctl.words import counted

if TYPE_CHECKING:
    from rich.progress import Progress

    from calmctl.captions.generate import Caption, CaptionSearch, Segment
    from calmctl.model.captioner import CaptionModel
    from calmctl.recipe import Recipe
    from calmctl.source.base import Source
    from calmctl.source.encoding import EncodedSplit


EXAMPLES = options.examples(
    "calmctl caption video.mp4",
    "calmctl caption holidays --out holidays.csv",
    "calmctl caption lecture.mp4 --srt lecture.srt",
    "calmctl caption lectures --segment-s 10 --srt subtitles",
    "calmctl caption clips/*.mp4 --run runs/msrvtt-caption-001 --json",
    "calmctl caption msvd --root /data/msvd --beam 1",
)

Value = TypeVar("Value")
SEGMENT_S = 10.0
_CAPTIONS_FILES = (".csv", ".json", ".jsonl")
_SEARCH, _LONG = "How captions are found", "Of long videos"


def caption(
    sources: Annotated[
        list[str], typer.Argument(metavar="VIDEO...|DATASET", help="Videos and folders of them, or a data set.")
    ],
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Also write a captions file: .csv, .json or .jsonl.")
    ] = None,
    as_json: options.Json = False,
    beam: Annotated[int | None, options.BEAMS(help="Beams; 1: greedy; the recipe's, usually 5.", panel=_SEARCH)] = None,
    length_penalty: Annotated[
        float | None, options.LENGTH_PENALTY(help="Compare log p / length^this; the recipe's.", panel=_SEARCH)
    ] = None,
    temperature: Annotated[
        float | None, options.TEMPERATURE(help="Draw words instead; 1: as the model does.", panel=_SEARCH)
    ] = None,
    seed: options.Seed = 0,
    segment_s: Annotated[
        float | None,
        options.SECONDS(metavar="SECONDS", help="Caption every so many seconds; 10 with --srt.", panel=_LONG),
    ] = None,
    srt: Annotated[
        Path | None,
        typer.Option(metavar="FILE.srt|FOLDER", help="Write segments as subtitles.", rich_help_panel=_LONG),
    ] = None,
    root: options.Root = None,
    annotations: options.Annotations = None,
    videos: options.Videos = None,
    split: options.Split = "test",
    run: options.Run = None,
    weights: options.Weights = "best",
    device: options.Device = "auto",
    runs: options.Runs = Path("runs"),
) -> None:
    """Write a sentence for each video, with a trained captioner.

    Without --run it is the newest captioning run that knows such clips.
    """
    from calmctl.data.registry import DATASETS
    from calmctl.runs.run import WEIGHTS

    # From here to `loading` stands every mistake that no model is needed for.
    segmented = segment_s is not None or srt is not None
    # A file may be called like a data set; then the file is meant.
    dataset = sources[0] if len(sources) == 1 and sources[0] in DATASETS and not Path(sources[0]).is_file() else None
    clips, unreadable = ([], []) if dataset is not None else _clips(sources)
    if segmented and dataset is not None:
        raise BadInput(f"--segment-s and --srt are for a video; {dataset} is a data set of clips")
    if srt is not None and srt.suffix == ".srt" and len(clips) != 1:
        raise BadInput(f"--srt {srt} holds the subtitles of one video, and there are {len(clips)}; name a folder")
    files = {} if srt is None else _subtitle_files(srt, [clip.id for clip in clips])
    for path in files.values():
        # Now, not after the work: captions of hours would be lost with the file that takes them.
        require_output(path, SUBTITLES)
    if out is not None and segmented:
        raise BadInput("--out holds one caption a video; with --segment-s or --srt there are many, which --json has")
    if out is not None and out.suffix.lower() not in _CAPTIONS_FILES:
        raise BadInput(f"--out {out}: captions can be written as {', '.join(_CAPTIONS_FILES)}")
    # A link that leads nowhere is there as well, and writing would replace it.
    if out is not None and os.path.lexists(out):
        raise BadInput(f"--out {out} exists already; name a new file, so that no caption of yours is lost")
    if temperature is not None and (beam is not None or length_penalty is not None):
        raise BadInput("--temperature draws words, --beam and --length-penalty search for them; give one of the two")
    options.one_of(WEIGHTS, "--weights", weights)
    shapes = drawn([clip.path.stem for clip in clips]) if dataset is None else dataset.startswith("demo")
    chosen = choose_run(run, runs, shapes, "captioning", task="caption")
    loading(str(chosen.folder))
    # From here on torch is needed, which takes seconds: the mistakes above are found before.
    from calmctl.captions.generate import CaptionSearch
    from calmctl.runs.checkpoint import load_captioner
    from calmctl.source.base import SourceSpec
    from calmctl.source.source import VideoSource, open_source

    recipe = chosen.recipe()
    keys = recipe.caption
    search = CaptionSearch(
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
        # By this key data/annotations.py knows a file of ours from one of captions by video: it must stay.
        "search": search.describe(),
    }
    with progress_bar("clips") as bar:
        if segmented:
            by_video, broken = _segments(model, recipe, clips, segment_s or SEGMENT_S, search, bar)
        else:
            source: Source
            if dataset is not None:
                source = open_source(SourceSpec(dataset, root, annotations, videos), recipe, val=split != "test")
            else:
                # Videos that somebody names are a split like any other: decoded, counted and left out in the same
                # way.
                split = "given"
                given = Split(split, tuple(clips), (), (), tuple(unreadable))
                source = VideoSource(Dataset("", "", {split: given}), recipe.data)
            encoded = source.encode(model, split, readings(bar))
    if segmented:
        left_out = {clip.id: clip.reason for clip in [*unreadable, *broken]}
        _print_segments(by_video, left_out, about, srt, files, as_json)
    else:
        _print_clips(model, encoded, search, about, out, as_json)


def _clips(sources: list[str]) -> tuple[list[Clip], list[LeftOut]]:
    """The videos that are meant, in order, a folder's in that of their paths; and those that cannot be read."""
    from calmctl.data.folder import FolderClips
    from calmctl.data.registry import DATASETS

    clips: list[Clip] = []
    unreadable: list[LeftOut] = []
    for source in map(Path, sources):
        if source.is_file():
            # The path is the id: captions files and references find a video by it.
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
        files = [(name, folder.find(name)) for name in folder.ids]
        unreadable += [LeftOut(str(source / name), file.reason) for name, file in files if isinstance(file, Missing)]
        unreadable += [LeftOut(str(source / place.id), place.reason) for place in folder.unread]
        if over := folder.passed_over():
            note(f"[dim]{printable(over)}[/]")
    if len({clip.path.resolve() for clip in clips}) < len(clips):
        raise BadInput("a video is given twice; name each once")
    return clips, unreadable


def _segments(
    model: CaptionModel, recipe: Recipe, clips: list[Clip], segment_s: float, search: CaptionSearch, bar: Progress
) -> tuple[dict[str, list[Segment]], list[LeftOut]]:
    """The segments of each video, and the videos that have none; of a single video that is an error."""
    from calmctl.captions.generate import caption_segments

    bars = readings(bar)
    by_video: dict[str, list[Segment]] = {}
    broken: list[LeftOut] = []
    for clip in clips:
        try:
            by_video[clip.id] = caption_segments(
                model, clip.path, segment_s, n_frames=recipe.data.frames, search=search, progress=bars
            )
        except VideoError as fault:
            if len(clips) == 1:
                raise
            broken.append(LeftOut(clip.id, str(fault).removeprefix(f"{clip.path}: ")))
    if not by_video:
        what = f"none of {len(clips):,} videos can" if len(clips) > 1 else "the video cannot"
        raise VideoError(f"{what} be decoded (first: {broken[0].id}: {broken[0].reason})")
    return by_video, broken


def _print_segments(
    by_video: dict[str, list[Segment]],
    left_out: dict[str, str],
    about: dict[str, Any],
    srt: Path | None,
    files: Mapping[str, Path],
    as_json: bool,
) -> None:
    from calmctl.captions.generate import srt as subtitles

    written = {name: files[name] for name in by_video if name in files}
    for name, path in written.items():
        write_output(path, subtitles(by_video[name]), SUBTITLES)
    if as_json:
        segments_of = {name: [s.to_json() for s in each] for name, each in by_video.items()}
        print_json({**about, "segments": segments_of, "left_out": left_out})
    else:
        for name, segments in by_video.items():
            print_segments(name, segments)
    print_left_out({"captions": left_out})
    if written:
        files_written = "" if srt in written.values() else f", {counted(len(written), 'file')}"
        note(f"wrote {printable(str(srt))}{files_written}")


def _subtitle_files(srt: Path, videos: Sequence[str]) -> dict[str, Path]:
    """The subtitles' file by video: `srt` itself for one, else in that folder, in folders like the videos' own."""
    if srt.suffix == ".srt":
        return {video: srt for video in videos}
    return {video: srt / name for name, video in _below({video: video for video in videos}, ".srt")}


def _print_clips(
    model: CaptionModel,
    encoded: EncodedSplit,
    search: CaptionSearch,
    about: dict[str, Any],
    out: Path | None,
    as_json: bool,
) -> None:
    from calmctl.captions.evaluate import caption_split

    captions = caption_split(model, encoded, search)
    left_out = {entry.id: entry.reason for entry in encoded.left_out}
    if as_json:
        plain = {clip: {"caption": caption.text, "log_prob": caption.log_prob} for clip, caption in captions.items()}
        print_json({**about, "captions": plain, "left_out": left_out})
    else:
        print_captions(list(captions.items()))
        print_left_out({"captions": left_out})
    if out is not None:
        from calmctl.data.annotations import write_captions

        splits = write_captions(out, {video: caption.text for video, caption in _below(captions)})
        split_sizes = f" ({', '.join(f'{count} {name}' for name, count in splits.items())})" if splits else ""
        note(f"wrote {printable(str(out))}, {counted(len(captions), 'caption')}{split_sizes}")


def _below(values: Mapping[str, Value], suffix: str | None = None) -> list[tuple[str, Value]]:
    """The values by video, each named by its path below the folder that holds all of them; with another suffix."""
    # `commonpath` refuses a mixture of absolute and relative paths, which have no folder in common anyway.
    parents = [os.path.dirname(name) or "." for name in values]
    common = os.path.commonpath(parents) if len(set(map(os.path.isabs, parents))) == 1 else ""
    below = {name: Path(os.path.relpath(name, common or ".")) for name in values}
    if suffix is not None:
        # a.mp4 and a.mov in one folder would both become a.srt.
        stems = Counter(path.with_suffix("") for path in below.values())
        below = {
            name: path.with_suffix(suffix) if stems[path.with_suffix("")] == 1 else path.with_name(path.name + suffix)
            for name, path in below.items()
        }
    return [(below[name].as_posix(), value) for name, value in values.items()]


# What captions and their scores look like on a terminal of 80 columns.


def print_captions(captions: Sequence[tuple[str, Caption]]) -> None:
    """Print (name of a video, its caption) with log-probabilities."""
    table = Sheet("video", "caption", numbers=["log p"])
    for video, caption in captions:
        table.add_row(printable(video), printable(caption.text), f"{caption.log_prob:z.2f}")
    stdout().print(table)


def print_segments(video: str, segments: Sequence[Segment]) -> None:
    """Print the captions of one video's segments."""
    from calmctl.captions.generate import timestamp

    table = Sheet("from", "to", "caption", numbers=["log p"], title=printable(video), title_justify="left")
    for segment in segments:
        caption = segment.caption
        times = (timestamp(segment.start_s), timestamp(segment.end_s))
        table.add_row(*times, printable(caption.text), f"{caption.log_prob:z.2f}")
    stdout().print(table)
