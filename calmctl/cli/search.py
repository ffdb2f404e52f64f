"""`calmctl search`: sentences in, videos out."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from calmctl.cli import console as options
from calmctl.cli.console import Sheet, choose_run, loading, note, print_json, printable, progress_bar, readings, stdout
from calmctl.errors import BadInput, DatasetError, StoreError, VideoError
from calmctl.files import PAGE, require_output
from calmctl.words import counted

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.progress import Progress

    from calmctl.search.exact import Recall
    from calmctl.search.model import Seeker
    from calmctl.search.search import Found, Ranked, Search, Shared


EXAMPLES = """Examples:

calmctl search "a man talking" --in holidays

calmctl search "a dog runs" "a red car" --in holidays --html sheet.html --why

calmctl search "the goal" --in matches --window 10 --stride 5 --top 3

calmctl search --video clip.mp4 --in holidays

calmctl search --video clip.mp4 --captions captions.csv

cat queries.txt | calmctl search --queries - --in features/msrvtt --approximate --json

calmctl search --recall --in features/msrvtt --queries queries.txt"""

_WHAT, _WHO, _HOW = "What is searched", "Who searches", "How"


def search(
    queries: Annotated[list[str] | None, typer.Argument(help="One or more sentences.", show_default=False)] = None,
    queries_file: Annotated[
        str | None, typer.Option("--queries", metavar="FILE", help="Sentences, one a line or CSV, JSON; - for stdin.")
    ] = None,
    video: Annotated[Path | None, typer.Option(metavar="CLIP", help="Find clips that look like this one.")] = None,
    captions: Annotated[
        str | None, typer.Option(metavar="FILE", help="With --video: rank these sentences for it instead.")
    ] = None,
    where: Annotated[
        Path, typer.Option("--in", metavar="STORE|FOLDER", help="A feature store or a folder.", rich_help_panel=_WHAT)
    ] = Path("."),
    window: Annotated[
        float | None, options.SECONDS(metavar="SECONDS", help="Search windows of this length.", panel=_WHAT)
    ] = None,
    stride: Annotated[
        float | None,
        options.SECONDS(metavar="SECONDS", help="From one window to the next; its length.", panel=_WHAT),
    ] = None,
    videos: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Where a store's clips lie.", rich_help_panel=_WHAT)
    ] = None,
    features: Annotated[
        Path, typer.Option(metavar="FOLDER", help="Where features of folders are kept.", rich_help_panel=_WHAT)
    ] = Path("features/search"),
    run: Annotated[
        str | None, typer.Option(help="A run or a slim.safetensors; the newest.", rich_help_panel=_WHO)
    ] = None,
    runs: Annotated[Path, typer.Option(help="Folder of runs.", rich_help_panel=_WHO)] = Path("runs"),
    backbone: Annotated[
        str | None, typer.Option(metavar="MODEL", help="A bare open_clip model instead.", rich_help_panel=_WHO)
    ] = None,
    weights: Annotated[
        str | None, typer.Option(help="Its tag, .safetensors file, or checkpoint.", rich_help_panel=_WHO)
    ] = None,
    approximate: Annotated[
        bool, typer.Option("--approximate", help="Two stages instead of all clips.", rich_help_panel=_HOW)
    ] = False,
    candidates: Annotated[int | None, options.HITS(help="Clips the first stage keeps; 1000.", panel=_HOW)] = None,
    recall: Annotated[
        bool, typer.Option("--recall", help="Measure the first stage instead.", rich_help_panel=_HOW)
    ] = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.", rich_help_panel=_HOW)] = "auto",
    top: Annotated[int, options.HITS(help="Hits a query.")] = 10,
    why: Annotated[bool, typer.Option("--why", help="The anchors that sentence and hit share.")] = False,
    html: Annotated[Path | None, typer.Option(metavar="PAGE", help="Also write a contact sheet.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
) -> None:
    """Search videos with sentences, or with a clip.

    A folder is extracted first, into --features, and after that only what is new or changed.

    The search is exact unless --approximate is given, and says which it was.
    """
    from calmctl.data.locate import require_folder
    from calmctl.device import check_device
    from calmctl.search.windows import check_windows
    from calmctl.video.instants import video_extent

    stride_s = check_windows(window, stride)
    if html is not None:
        require_output(html, PAGE)
    if video is not None and (queries or queries_file):
        raise BadInput("search with sentences or with --video, not both; to rank sentences for a clip, add --captions")
    if captions is not None and video is None:
        raise BadInput("--captions ranks sentences for a clip; name the clip with --video")
    if captions is not None and (html is not None or approximate or window is not None or recall):
        raise BadInput("--captions ranks sentences for one clip: there are no videos to search, page or cut")
    if video is not None and (approximate or recall):
        raise BadInput("--video compares mean-pooled features, all of them; --approximate and --recall need sentences")
    if video is not None and why and captions is None:
        raise BadInput("--why tells what a sentence and a clip share; with --video there is no sentence")
    if candidates is not None and not (approximate or recall):
        raise BadInput("--candidates belongs to --approximate and --recall; the exact search looks at every clip")
    if run is not None and (backbone is not None or weights is not None):
        raise BadInput("--run and --backbone (or --weights) exclude each other; give one of them")
    if video is not None and not video.is_file():
        raise VideoError(f"{video} is no file; give the path of a video")
    if captions is None:
        require_folder(where, "name a folder of videos or a feature store with --in")
    sentences = _sentences(queries, queries_file)
    if not sentences and video is None and not recall:
        raise BadInput('give a sentence, such as: calmctl search "a man talking" --in my-videos')
    if recall or approximate:
        from calmctl.search.exact import require_usearch

        require_usearch()
    check_device(device)
    if video is not None:
        video_extent(video)  # what is no video is said before a model is loaded
    drawn = _drawn([video] if captions is not None and video is not None else [], where)
    seeker = _seeker(run, runs, backbone, weights, device, why, drawn)
    if captions is not None:
        assert video is not None
        _rank(seeker, video, captions, top, as_json)
        return
    if cut := seeker.model.backbone.tokens.cut(sentences, "sentence"):
        note(f"[yellow]{cut}[/]")
    with progress_bar("items") as bar:
        engine = _open(seeker, where, window, stride_s, videos, features, bar)
        if recall:
            measured = engine.recall(sentences or engine.sampled_captions(), **_given(candidates))
        elif video is not None:
            from calmctl.samples import Clip

            found = engine.similar(Clip(video.stem, video), top)
        else:
            found = engine.sentences(sentences, top, approximate=approximate, **_given(candidates))
    _say_left_out(engine)
    if recall:
        from dataclasses import asdict

        print_json(asdict(measured)) if as_json else print_recall(measured)
        return
    if html is not None:
        from calmctl.search.sheet import write_sheet

        write_sheet(found, html)
    if as_json:
        print_json(found.to_json())
    else:
        print_found(found)
    if html is not None:
        note(f"wrote {printable(str(html))}")


def _sentences(queries: list[str] | None, source: str | None) -> list[str]:
    from calmctl.search.queries import read_sentences

    given = list(queries or [])
    if any(not sentence.strip() for sentence in given):
        raise BadInput("a sentence is empty; write what is to be seen")
    return given + (read_sentences(source) if source is not None else [])


def _given(candidates: int | None) -> dict[str, int]:
    return {} if candidates is None else {"candidates": candidates}


def _drawn(clips: list[Path], where: Path) -> bool:
    """Whether what is searched are the demo's drawn shapes: `clips`, or else what lies in a folder or store.

    Raises:
        DatasetError: There is nothing to search, which is said before a model is asked for.
    """
    from calmctl.data.demo_world import drawn
    from calmctl.data.folder import FolderClips
    from calmctl.files import read_json
    from calmctl.store.format import INDEX

    if clips:
        return drawn([clip.stem for clip in clips])
    if (where / INDEX).is_file():
        index = read_json(where / INDEX, what="feature store", error=StoreError)
        header = index.get("header") if isinstance(index, dict) else None
        return isinstance(header, dict) and str(header.get("dataset")).startswith("demo")
    found = FolderClips(where)
    if not found.ids:
        raise DatasetError(f"{where}: {found.no_video()}; name another folder or a feature store with --in")
    return drawn([Path(name).name for name in found.ids])


def _seeker(
    name: str | None, runs: Path, backbone: str | None, weights: str | None, device: str, why: bool, drawn: bool
) -> Seeker:
    """The run that was named, else the bare backbone that was, else a run that knows such clips, else the backbone."""
    bare = backbone is not None or weights is not None
    run = None if bare else choose_run(name, runs, drawn, "searching", must=False)
    if run is None:
        from calmctl.model.spec import check_backbone
        from calmctl.recipe.schema import BackboneSection

        plain = BackboneSection()
        check_backbone(backbone or plain.model, weights or plain.weights)
    loading(str(run.folder) if run else backbone or "the bare backbone")
    # From here on torch is needed, which takes seconds: the mistakes above are found before.
    from calmctl.device import choose_device
    from calmctl.search.model import seek_bare, seek_with_run

    chosen = choose_device(device)
    if run is not None:
        seeker = seek_with_run(run, chosen, why=why)
        warning = run.trained_on.warning(drawn)
        return replace(seeker, name=f"{seeker.name} !! {warning}") if warning else seeker
    seeker = seek_bare(chosen, backbone=backbone, weights=weights, why=why)
    for text in seeker.model.backbone.notes:
        note(printable(text))
    return seeker


def _open(
    seeker: Seeker,
    where: Path,
    window: float | None,
    stride: float | None,
    videos: Path | None,
    features: Path,
    bar: Progress,
) -> Search:
    from calmctl.search.collection import open_collection
    from calmctl.search.search import Search

    tell = readings(bar)
    opened = partial(open_collection, where, seeker, window_s=window, stride_s=stride, stores=features, progress=tell)
    collection = opened(videos=videos)
    try:
        return Search(seeker, collection, tell)
    except StoreError:
        if collection.is_store:
            raise
    # Features of a folder are ours to make again; of a store they are not.
    note("a file of the extracted features is damaged: making it again")
    return Search(seeker, opened(verify=True), tell)


def _say_left_out(engine: Search) -> None:
    from calmctl.cli.console import print_left_out
    from calmctl.store.store import NOT_EXTRACTED

    collection = engine.collection
    if collection.extracted:
        note(f"extracted {counted(collection.extracted, collection.unit)} into {printable(str(collection.store.path))}")
    if pending := sum(clip.reason == NOT_EXTRACTED for clip in collection.left_out):
        whole = counted(sum(len(shard.ids) for shard in collection.shards) + pending, "clip")
        note(f"[bold red]!! {pending:,} of {whole} are not extracted yet and cannot be found[/]")
    if engine.not_kept is not None:
        note(f"tables for the next search are not kept: {printable(engine.not_kept)}")
    for unit in ("clip", "window"):
        told = {each.id: each.reason for each in collection.left_out if ("#t=" in each.id) == (unit == "window")}
        print_left_out({str(collection.name): told}, noun=unit)
    not_read = {each.id: each.reason for each in collection.unread}
    print_left_out({f"{collection.name}, not read": not_read}, noun="place")
    if collection.passed_over is not None:
        note(f"[dim]{printable(collection.passed_over)}[/]")


def _rank(seeker: Seeker, video: Path, captions: str, top: int, as_json: bool) -> None:
    from dataclasses import asdict

    from calmctl.samples import Clip
    from calmctl.search.queries import read_sentences
    from calmctl.search.search import rank_sentences

    sentences = read_sentences(captions)
    if cut := seeker.model.backbone.tokens.cut(sentences, "sentence"):
        note(f"[yellow]{cut}[/]")
    ranked = rank_sentences(seeker, Clip(video.stem, video), sentences, top)
    if as_json:
        print_json({"by": seeker.name, "video": str(video), "sentences": [asdict(each) for each in ranked]})
    else:
        print_sentences(str(video), ranked)


# What `calmctl search` shows on a terminal of 80 columns.


def print_found(found: Found) -> None:
    """Print every query's hits."""
    from calmctl.search.sheet import moment

    out = stdout()
    for answer in found.answers:
        out.print(f"[bold]{printable(answer.query)}[/]")
        table = _table("clip", "when")
        for hit in answer.hits:
            name = str(hit.file) if hit.file is not None else hit.clip
            table.add_row(str(hit.rank), f"{hit.score:z.3f}", printable(name), moment(hit))
            if hit.neighbours:
                table.add_row("", "", f"[dim]and {counted(hit.neighbours, 'window')} beside it[/]", "")
            if hit.shared is not None:
                table.add_row("", "", _anchors(hit.shared), "")
        out.print(table, "")
    out.print(
        f"[dim]{counted(found.clips, found.unit)} of {printable(str(found.collection))}\n{printable(found.method)}[/]"
    )
    out.print(f"[dim]by {printable(found.seeker)}[/]")


def print_sentences(video: str, ranked: Sequence[Ranked]) -> None:
    """Print the sentences of one clip."""
    out = stdout()
    out.print(f"[bold]{printable(video)}[/]", soft_wrap=True)
    table = _table("sentence")
    for each in ranked:
        table.add_row(str(each.rank), f"{each.score:z.3f}", printable(each.sentence))
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
    from calmctl.explain.words import percent

    named = ", ".join(f"{printable(each.anchor)} {percent(each.share)}" for each in shared)
    return f"[dim]{named or 'no anchor in common'}[/]"


def _table(*columns: str) -> Sheet:
    table = Sheet(header_style="dim")
    table.add_column("", justify="right")
    table.add_column("score")
    for number, column in enumerate(columns):
        table.add_column(column, overflow="fold", no_wrap=number > 0, ratio=1 if number == 0 else None)
    return table
