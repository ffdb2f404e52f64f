"""`calmctl caption`: a sentence for a video, for every clip of a data set, or for every segment of a long video."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from calmctl.cli.console import note, print_json, printable, progress_bar, readings
from calmctl.errors import BadInput, VideoError

if TYPE_CHECKING:
    from rich.progress import Progress

    from calmctl.captioning.generate import Search
    from calmctl.captioning.segments import Segment
    from calmctl.evaluation.encoding import EncodedSplit
    from calmctl.evaluation.runs import TestSet
    from calmctl.model.caption import CaptionModel
    from calmctl.recipe import Recipe

EXAMPLES = """Examples:

calmctl caption video.mp4

calmctl caption clips/*.mp4 --run runs/msrvtt-caption-001 --json

calmctl caption lecture.mp4 --segment-s 10 --srt lecture.srt

calmctl caption msvd --root /data/msvd --beam 1"""

SEGMENT_S = 10.0


def caption(
    sources: Annotated[list[str], typer.Argument(metavar="VIDEO...|DATASET", help="Video files, or one data set.")],
    run: Annotated[str | None, typer.Option(help="A captioning run; the newest one by default.")] = None,
    weights: Annotated[str, typer.Option(help="best (on validation), last, or slim.")] = "best",
    beam: Annotated[
        int | None, typer.Option(min=1, help="Beams, 1 for greedy; the recipe's, usually 5, by default.")
    ] = None,
    length_penalty: Annotated[
        float | None, typer.Option(min=0, help="Beams are compared by log p / length^this; the recipe's by default.")
    ] = None,
    temperature: Annotated[
        float | None, typer.Option(help="Draw words instead of searching; 1 draws from the model, less is safer.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the draws of --temperature.")] = 0,
    segment_s: Annotated[
        float | None, typer.Option(metavar="SECONDS", help="Caption every so many seconds; 10 with --srt.")
    ] = None,
    srt: Annotated[Path | None, typer.Option(metavar="FILE.srt", help="Write the segments as subtitles.")] = None,
    root: Annotated[Path | None, typer.Option(help="Where the data set lies.")] = None,
    annotations: Annotated[Path | None, typer.Option(help="Folder of annotation files, when not under root.")] = None,
    videos: Annotated[Path | None, typer.Option(help="Folder of clips, when not under root.")] = None,
    split: Annotated[str, typer.Option(help="Of the data set: test or val.")] = "test",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
    runs: Annotated[Path, typer.Option(help="Folder of runs.")] = Path("runs"),
    as_json: Annotated[bool, typer.Option("--json", help="Print the captions as JSON.")] = False,
) -> None:
    """Caption videos with a trained captioner."""
    from calmctl.data.registry import DATASETS
    from calmctl.runs.folder import find_run

    segmented = segment_s is not None or srt is not None
    dataset = sources[0] if len(sources) == 1 and sources[0] in DATASETS and not Path(sources[0]).is_file() else None
    if dataset is None:
        _require_files(sources)
    if segmented and dataset is not None:
        raise BadInput(f"--segment-s and --srt are for a video; {dataset} is a data set of clips")
    if srt is not None and len(sources) != 1:
        raise BadInput(f"--srt writes the subtitles of one video, and {len(sources)} are given")
    if segment_s is not None and not segment_s >= 0.1:
        raise BadInput(f"--segment-s {segment_s:g}: a segment must be at least 0.1 seconds long")
    if temperature is not None and not temperature > 0:
        raise BadInput(f"--temperature {temperature:g} must be above 0; for the likeliest words, use --beam 1")
    if temperature is not None and (beam is not None or length_penalty is not None):
        raise BadInput("--temperature draws words, --beam and --length-penalty search for them; give one of the two")
    chosen = find_run(run, runs, task="caption")
    # From here on torch is needed, which takes seconds: the mistakes above are found before.
    from calmctl.captioning.generate import Search
    from calmctl.device import choose_device
    from calmctl.evaluation.runs import SYSTEMS, TestSet
    from calmctl.runs.load import load_captioner

    if weights not in SYSTEMS:
        raise BadInput(f"--weights {weights} is not known; use one of {', '.join(SYSTEMS)}")
    if run is None:
        note(f"captioning with the newest run, {printable(str(chosen.folder))}")
    recipe = chosen.recipe()
    keys = recipe.caption
    search = Search(
        keys.beam if beam is None else beam,
        keys.length_penalty if length_penalty is None else length_penalty,
        temperature,
        seed,
    )
    model = load_captioner(chosen, weights, choose_device(device))
    about: dict[str, Any] = {"run": str(chosen.folder), "weights": weights, "search": search.describe()}
    with progress_bar("clips") as bar:
        if segmented:
            found = _segments(model, recipe, [Path(s) for s in sources], segment_s or SEGMENT_S, search, bar)
        elif dataset is not None:
            test = TestSet(dataset, root, annotations, videos)
            encoded = _encode_dataset(model, recipe, test, split, bar)
        else:
            encoded = _encode_videos(model, recipe, [Path(source) for source in sources], bar)
    if segmented:
        _print_segments(found, about, srt, as_json)
    else:
        _print_clips(model, encoded, search, about, as_json)


def _require_files(sources: list[str]) -> None:
    from calmctl.data.registry import DATASETS

    for source in sources:
        if not Path(source).is_file():
            names = ", ".join(name for name in DATASETS if name != "folder")
            raise VideoError(f"{source} is no file and no data set; give videos, or one of {names}")
    if len(set(sources)) < len(sources):
        raise BadInput("a video is given twice; name each once")


def _encode_dataset(model: CaptionModel, recipe: Recipe, test: TestSet, split: str, bar: Progress) -> EncodedSplit:
    from calmctl.evaluation.runs import open_test_set

    device = next(model.parameters()).device
    return open_test_set(recipe, test, split).encode(model, recipe, device, readings(bar))


def _encode_videos(model: CaptionModel, recipe: Recipe, videos: list[Path], bar: Progress) -> EncodedSplit:
    from calmctl.data.samples import Clip, Split
    from calmctl.evaluation.encoding import encode_split, stream_frames

    split = Split("given", tuple(Clip(str(path), path) for path in videos), (), ())
    bars = readings(bar)
    frames = stream_frames(split, model, recipe.data, lambda done, total: bars("decoding", done, total))
    return encode_split(model, split, frames, next(model.parameters()).device)


def _segments(
    model: CaptionModel, recipe: Recipe, videos: list[Path], segment_s: float, search: Search, bar: Progress
) -> dict[str, list[Segment]]:
    from calmctl.captioning.segments import caption_segments

    bars = readings(bar)
    return {
        str(video): caption_segments(
            model,
            video,
            segment_s,
            n_frames=recipe.data.frames,
            search=search,
            progress=lambda done, total, name=video.name: bars(name, done, total),  # type: ignore[misc]
        )
        for video in videos
    }


def _print_segments(found: dict[str, list[Segment]], about: dict[str, Any], srt: Path | None, as_json: bool) -> None:
    from calmctl.captioning.segments import srt as subtitles
    from calmctl.cli.caption_view import print_segments
    from calmctl.files import write_text

    if srt is not None:
        write_text(srt, subtitles(next(iter(found.values()))))
    if as_json:
        print_json({**about, "segments": {name: [s.to_json() for s in each] for name, each in found.items()}})
    else:
        for name, segments in found.items():
            print_segments(name, segments)
    if srt is not None:
        note(f"wrote {printable(str(srt))}")


def _print_clips(
    model: CaptionModel, encoded: EncodedSplit, search: Search, about: dict[str, Any], as_json: bool
) -> None:
    from calmctl.cli.caption_view import print_captions
    from calmctl.cli.train import print_left_out
    from calmctl.evaluation.captioning import caption_split

    captions = caption_split(model, encoded, search)
    left_out = {entry.id: entry.reason for entry in encoded.left_out}
    if as_json:
        found = {clip: {"caption": made.text, "log_prob": made.log_prob} for clip, made in captions.items()}
        print_json({**about, "captions": found, "left_out": left_out})
        return
    print_captions(list(captions.items()))
    print_left_out({"captions": left_out})
