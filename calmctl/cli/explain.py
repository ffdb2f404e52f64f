"""`calmctl explain`: what the anchors say about a video and a sentence."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from calmctl.cli import options
from calmctl.cli.console import choose_run, loading, note, print_json, printable, progress_bar
from calmctl.errors import BadInput, VideoError
from calmctl.files import PAGE, require_output

if TYPE_CHECKING:
    from calmctl.explaining.collection import Collection
    from calmctl.explaining.explainer import Explainer

EXAMPLES = """Examples:

calmctl explain video.mp4 "a man talking"

calmctl explain video.mp4 "a man talking" --html page.html

calmctl explain video.mp4 "a man talking" --without "holding a laptop" --collection test

calmctl explain video.mp4 "a man talking" --zero-shot --vocabulary coco

calmctl explain --run runs/demo-001 --failures 20 --html failures.html"""


def explain(
    video: Annotated[Path | None, typer.Argument(help="A video file.", show_default=False)] = None,
    sentence: Annotated[str | None, typer.Argument(help="A sentence.", show_default=False)] = None,
    run: Annotated[str | None, typer.Option(help="A run folder; the newest run by default.")] = None,
    zero_shot: Annotated[bool, typer.Option("--zero-shot", help="The bare backbone instead of a run.")] = False,
    vocabulary: Annotated[
        str | None, typer.Option(help="Anchors; the run's own, or charades@1 without a run, by default.")
    ] = None,
    backbone: Annotated[str | None, typer.Option(help="Zero-shot: an open_clip model.")] = None,
    weights: Annotated[str | None, typer.Option(help="Zero-shot: its pretrained tag, or a .safetensors file.")] = None,
    without: Annotated[
        list[str] | None, typer.Option(metavar="ANCHOR", help="What changes without this anchor; repeatable.")
    ] = None,
    collection: Annotated[
        str | None, typer.Option(metavar="SPLIT", help="Rank the video among the clips of this split of the run.")
    ] = None,
    failures: Annotated[
        int | None, options.HITS(metavar="N", help="Instead of a pair: the N worst-ranked queries of the run.")
    ] = None,
    split: Annotated[str, typer.Option(help="For --failures: test or val.")] = "test",
    instants: Annotated[
        int | None, options.INSTANTS(help="Instants on the timeline; 2 a second, 12 to 240, by default.")
    ] = None,
    html: Annotated[Path | None, typer.Option(metavar="PAGE", help="Also write one self-contained page.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
    runs: Annotated[Path, typer.Option(help="Folder of runs.")] = Path("runs"),
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
) -> None:
    """Explain a video and a sentence by their distributions over the anchors, or a run's worst failures."""
    from calmctl.anchors.shipped import BARE, resolve_vocabulary
    from calmctl.anchors.vocabulary import find_anchors
    from calmctl.data.demo_world import drawn as drawn_clips
    from calmctl.data.long import video_extent
    from calmctl.device import check_device

    if html is not None:
        require_output(html, PAGE)
    bare = zero_shot or backbone is not None or weights is not None
    if bare and run is not None:
        raise BadInput("--run and --zero-shot (or --backbone, --weights) exclude each other; give one of them")
    if failures is not None:
        if video is not None or bare:
            raise BadInput("--failures looks at a run's whole split; give it --run, and no video and no --zero-shot")
        check_device(device)
        _explain_failures(run, runs, failures, split, vocabulary, device, html, as_json)
        return
    if video is None or sentence is None or not sentence.strip():
        raise BadInput('give a video and a sentence, such as: calmctl explain video.mp4 "a man talking"')
    if not video.is_file():
        raise VideoError(f"{video} is no file; give the path of a video")
    check_device(device)
    # A process of its own looks into the file: what is no video is said before a model is loaded, which takes seconds.
    video_extent(video)
    drawn = drawn_clips([video.stem])
    chosen = None if bare else choose_run(run, runs, drawn, "explaining", must=False)
    if chosen is None and collection is not None:
        raise BadInput("--collection needs a run, whose dataset it is; name one with --run")
    if chosen is None:
        from calmctl.model.spec import check_backbone
        from calmctl.recipe.schema import BackboneSection

        plain = BackboneSection()
        check_backbone(backbone or plain.model, weights or plain.weights)
    own = chosen.anchors() if chosen is not None else None
    anchors = resolve_vocabulary(vocabulary or BARE) if vocabulary or own is None else own
    removed = find_anchors(anchors, without or [])
    # From here on torch is needed, which takes seconds: the mistakes above are found before.
    loading(str(chosen.folder) if chosen else backbone or "the bare backbone")
    from calmctl.data.samples import Clip
    from calmctl.device import choose_device
    from calmctl.explaining.explainer import explain_with_run, explain_zero_shot
    from calmctl.explaining.explanation import explain as explain_pair
    from calmctl.explaining.video import see_video

    where = choose_device(device)
    if chosen is not None:
        explainer = explain_with_run(chosen, where, vocabulary=vocabulary)
        explainer = replace(explainer, name=f"{explainer.name}, {chosen.trained_on}")
        if warning := chosen.trained_on.warning(drawn):
            explainer = replace(explainer, notes=(f"!! {warning}", *explainer.notes))
    else:
        explainer = explain_zero_shot(
            where,
            vocabulary=vocabulary,
            weights=weights,
            notes=() if bare else (f"no run in {runs} was trained on such clips: this is the bare backbone",),
            **({"backbone": backbone} if backbone else {}),
        )
    if cut := explainer.model.backbone.tokens.cut([sentence], "sentence"):
        note(f"[yellow]{cut}[/]")
    seen = see_video(explainer, Clip(video.stem, video), instants=instants, pictures=html is not None)
    among = open_with_progress(explainer, collection) if collection else None
    explanation = explain_pair(explainer, seen, sentence, removed=removed, collection=among)
    if html is not None:
        from calmctl.explaining.pages import write_pair_page

        write_pair_page(explanation, html)
    if as_json:
        print_json(explanation.to_json())
    else:
        from calmctl.cli.explain_view import print_pair

        print_pair(explanation)
    _say_written(html)


def open_with_progress(explainer: Explainer, split: str) -> Collection:
    """Encode a split of the explainer's run under a progress bar."""
    from calmctl.cli.console import print_left_out
    from calmctl.explaining.collection import open_collection

    with progress_bar("clips") as bar:
        task = bar.add_task(f"{split} clips", total=None, note="")
        found = open_collection(explainer, split, lambda done, total: bar.update(task, completed=done, total=total))
    print_left_out({split: {entry.id: entry.reason for entry in found.encoded.left_out}})
    return found


def _explain_failures(
    name: str | None,
    runs: Path,
    count: int,
    split: str,
    vocabulary: str | None,
    device: str,
    html: Path | None,
    as_json: bool,
) -> None:
    from calmctl.anchors.shipped import resolve_vocabulary
    from calmctl.runs.folder import describe_choice, find_run

    run = find_run(name, runs, task="retrieval")
    if name is None:
        note(f"explaining with {printable(describe_choice(run))}")
    if vocabulary is not None:
        resolve_vocabulary(vocabulary)  # a wrong name is told before a model is loaded
    loading(str(run.folder))
    from calmctl.device import choose_device
    from calmctl.explaining.explainer import explain_with_run
    from calmctl.explaining.failures import find_failures

    explainer = explain_with_run(run, choose_device(device), vocabulary=vocabulary)
    collection = open_with_progress(explainer, split)
    found = find_failures(explainer, collection, count)
    if html is not None:
        from calmctl.explaining.pages import write_failures_page

        write_failures_page(found, collection, html)
    if as_json:
        print_json(found.to_json())
    else:
        from calmctl.cli.explain_view import print_failures

        print_failures(found)
    _say_written(html)


def _say_written(html: Path | None) -> None:
    if html is not None:
        note(f"wrote {printable(str(html))}")
