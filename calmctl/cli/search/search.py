"""`calmctl search`: sentences in, videos out; and the other directions, each a verb of its own."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import asdict
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from calmctl.cli import options
from calmctl.cli.console import note, print_json, printable, progress_bar
from calmctl.cli.results import print_moments, print_result
from calmctl.cli.search.opening import are_drawn, choose_model, note_cut, note_left_out, open_search
from calmctl.cli.search.shown import cut_out, open_hit, print_found, print_paths, print_recall, print_sentences
from calmctl.data.locate import drawn, require_folder
from calmctl.errors import BadInput, CalmError, DatasetError, VideoError
from calmctl.files import MOMENTS, require_output, write_output
from calmctl.samples import Clip as Sample
from calmctl.search.queries import read_sentences

if TYPE_CHECKING:
    from collections.abc import Callable

    from calmctl.search.confidence import Rule
    from calmctl.search.results import Found, Hit
    from calmctl.search.search import Search


# A larger share than half would be no answer, and a smaller one than 1/10,000 wants as many sentences to compare with.
SHARE = options.Range(0.0001, 0.5)
DAYS = ["%Y-%m-%d"]

Cache = Annotated[
    Path,
    typer.Option("--cache", metavar="FOLDER", help="Where features of folders are kept.", rich_help_panel=options.DATA),
]
Calibrate = Annotated[
    str | None,
    typer.Option("--calibrate", metavar="FILE", help="Sentences of other videos, to compare with."),
]
Candidates = Annotated[int | None, options.COUNT(help="Clips that the first of two stages keeps; 1000.")]
Clip = Annotated[Path, typer.Argument(metavar="CLIP", help="A video file.")]
After = Annotated[
    datetime | None, typer.Option("--after", metavar="DAY", formats=DAYS, help="Files of that day or later.")
]
Before = Annotated[
    datetime | None, typer.Option("--before", metavar="DAY", formats=DAYS, help="Files of that day or earlier.")
]
Below = Annotated[str | None, typer.Option("--below", metavar="FOLDER", help="Clips in this folder of the folder.")]
Longer = Annotated[float | None, options.SECONDS("--longer", metavar="SECONDS", help="Clips that last so long.")]
Shorter = Annotated[float | None, options.SECONDS("--shorter", metavar="SECONDS", help="Clips no longer than this.")]
Confident = Annotated[bool, typer.Option("--confident", help="Say so where nothing matches.")]
Fdr = Annotated[float | None, SHARE("--fdr", metavar="SHARE", help="Or: so much of what is shown may be wrong.")]
Queries = Annotated[
    str | None, typer.Option("--queries", metavar="FILE", help="Sentences: one a line, CSV or JSON; - for stdin.")
]
Sentences = Annotated[
    list[str] | None, typer.Argument(metavar="SENTENCE", help="What is to be seen.", show_default=False)
]
Stride = Annotated[
    float | None, options.SECONDS(metavar="SECONDS", help="From one window to the next.", panel=options.DATA)
]
Where = Annotated[
    Path,
    typer.Option("--in", metavar="STORE|FOLDER", help="A feature store or a folder.", rich_help_panel=options.DATA),
]
Why = Annotated[bool, typer.Option("--why", help="The anchors that sentence and clip share.")]
Shots = Annotated[
    bool, typer.Option("--shots", help="Search shots: cut where the picture changes.", rich_help_panel=options.DATA)
]
Window = Annotated[
    float | None, options.SECONDS(metavar="SECONDS", help="Search windows of this length.", panel=options.DATA)
]

# As in search/collection.py, which imports torch.
CACHE = Path("features/search")

SEARCH_EXAMPLES = options.examples(
    'calmctl search "a man talking" --in holidays',
    'calmctl search "a dog" "a red car" --in holidays --html sheet.html --why',
    'calmctl search "the goal" --in matches --window 10 --stride 5 --top 3',
    'calmctl search "a dog on a beach" --in holidays --confident',
    'calmctl search "a dog on a beach" --in films --shots --cut dogs',
    "cat queries.txt | calmctl search --queries - --in features/msrvtt --json",
    "calmctl search -i --in holidays",
    "calmctl search -- similar      # the word, and not the verb",
)
SIMILAR_EXAMPLES = options.examples(
    "calmctl search similar clip.mp4 --in holidays",
    "calmctl search similar clip.mp4 --in matches --window 10 --html sheet.html",
)
CAPTIONS_EXAMPLES = options.examples(
    "calmctl search captions captions.csv clip.mp4",
    "calmctl search captions sentences.txt clip.mp4 --top 3 --why",
)
MOMENTS_EXAMPLES = options.examples(
    "calmctl search moments charades_sta_test.txt --in videos --window 8",
    "calmctl search moments val.jsonl --in videos --window 10 --out mine.jsonl",
)
RECALL_EXAMPLES = options.examples(
    "calmctl search recall --in features/msrvtt",
    "calmctl search recall --in features/msrvtt --queries queries.txt",
)


def search(
    sentences: Sentences = None,
    queries: Queries = None,
    top: options.Top = 10,
    why: Why = False,
    confident: Confident = False,
    fdr: Fdr = None,
    calibrate: Calibrate = None,
    below: Below = None,
    after: After = None,
    before: Before = None,
    longer: Longer = None,
    shorter: Shorter = None,
    interactive: Annotated[bool, typer.Option("-i", "--interactive", help="Ask on and on.")] = False,
    open_first: Annotated[bool, typer.Option("--open", help="Open the best hit in a player.")] = False,
    cut: Annotated[Path | None, typer.Option("--cut", metavar="FOLDER", help="Write hits as files.")] = None,
    paths: Annotated[bool, typer.Option("--paths", help="Print paths alone, for pipes.")] = False,
    html: options.Html = None,
    as_json: options.Json = False,
    approximate: Annotated[bool, typer.Option("--approximate", help="Two stages, not all clips.")] = False,
    candidates: Candidates = None,
    where: Where = Path("."),
    window: Window = None,
    stride: Stride = None,
    shots: Shots = False,
    videos: options.Videos = None,
    cache: Cache = CACHE,
    run: options.Run = None,
    backbone: options.Backbone = None,
    weights: options.BackboneWeights = None,
    device: options.Device = "auto",
    runs: options.Runs = Path("runs"),
) -> None:
    """Search videos with sentences.

    Other directions are verbs: search similar CLIP, search captions FILE CLIP, search moments TIMED, search recall.

    Without --run it is the newest run that knows such clips, or else the bare backbone.

    A folder is extracted first, into --cache; after that only what is new or changed.
    """
    from calmctl.search.windows import check_windows

    stride_s = check_windows(window, stride, shots)
    if candidates is not None and not approximate:
        raise BadInput("--candidates belongs to --approximate; the exact search looks at every clip")
    rule = match_rule(confident, fdr, calibrate)
    options.is_bare(run, backbone, weights)
    require_folder(where, "name a folder of videos or a feature store with --in")
    query_texts = _sentences(sentences, queries)
    if interactive and (query_texts or as_json or paths or html or cut or open_first):
        raise BadInput("-i asks for its sentences itself and prints tables; leave the others out")
    if paths and as_json:
        raise BadInput("--paths and --json are two forms of the answer; give one of them")
    if cut is not None:
        from calmctl.search.cut import require_folder_for_cuts

        require_folder_for_cuts(cut)
    if not query_texts and not interactive:
        raise BadInput('give a sentence, such as: calmctl search "a man talking" --in my-videos')
    if approximate:
        from calmctl.search.exact import require_usearch

        require_usearch()
    search_model = choose_model(run, runs, backbone, weights, device, why, are_drawn(where))
    note_cut(search_model, query_texts)
    from calmctl.search.collection import Wanted
    from calmctl.search.exact import CANDIDATES

    with progress_bar("items") as bar:
        engine = open_search(search_model, where, window, stride_s, videos, cache, bar, shots)
        calibrated(engine, rule, calibrate)
        wanted = Wanted(below, after and after.date(), before and before.date(), longer, shorter)
        if wanted != Wanted() and approximate:
            raise BadInput("--approximate knows neither folders, days nor lengths; leave it out")
        among = engine.only(wanted) if wanted != Wanted() else None
        if not interactive:
            result = engine.sentences(
                query_texts,
                top,
                approximate=approximate,
                candidates=candidates or CANDIDATES,
                rule=rule,
                among=among,
            )
    if interactive:
        note_left_out(engine)
        engine.end_progress()
        ask_on(engine, top, partial(engine.sentences, top=top, approximate=approximate, rule=rule, among=among))
        return
    note_left_out(engine)
    if paths:
        print_paths(result)
    else:
        _show(result, html, as_json)
    if cut is not None:
        cut_out(result, cut)
    if open_first:
        open_hit(result.answers[0])


def similar(
    clip: Clip,
    top: options.Top = 10,
    html: options.Html = None,
    as_json: options.Json = False,
    where: Where = Path("."),
    window: Window = None,
    stride: Stride = None,
    shots: Shots = False,
    videos: options.Videos = None,
    cache: Cache = CACHE,
    run: options.Run = None,
    backbone: options.Backbone = None,
    weights: options.BackboneWeights = None,
    device: options.Device = "auto",
    runs: options.Runs = Path("runs"),
) -> None:
    """Find the clips that look like one.

    All are compared, by the cosine of mean-pooled frames.
    """
    from calmctl.search.windows import check_windows

    stride_s = check_windows(window, stride, shots)
    options.is_bare(run, backbone, weights)
    require_folder(where, "name a folder of videos or a feature store with --in")
    _require_video(clip)
    search_model = choose_model(run, runs, backbone, weights, device, False, are_drawn(where))
    with progress_bar("items") as bar:
        engine = open_search(search_model, where, window, stride_s, videos, cache, bar, shots)
        result = engine.similar(Sample(clip.stem, clip), top)
    note_left_out(engine)
    _show(result, html, as_json)


def captions(
    file: Annotated[str, typer.Argument(metavar="FILE", help="Sentences: one a line, CSV or JSON; - for stdin.")],
    clip: Clip,
    top: options.Top = 10,
    why: Why = False,
    as_json: options.Json = False,
    run: options.Run = None,
    backbone: options.Backbone = None,
    weights: options.BackboneWeights = None,
    device: options.Device = "auto",
    runs: options.Runs = Path("runs"),
) -> None:
    """Rank the sentences of a file for one clip.

    By the run's own score; a list in which nothing fits has a best line, too.
    """
    options.is_bare(run, backbone, weights)
    _require_video(clip)
    sentences = read_sentences(file)
    search_model = choose_model(run, runs, backbone, weights, device, why, drawn([clip.stem]))
    note_cut(search_model, sentences)
    from calmctl.search.search import rank_sentences

    ranked = rank_sentences(search_model, Sample(clip.stem, clip), sentences, top)
    if as_json:
        print_json({"by": search_model.name, "video": str(clip), "sentences": [each.to_json() for each in ranked]})
    else:
        print_sentences(str(clip), ranked)


def recall(
    sentences: Sentences = None,
    queries: Queries = None,
    candidates: Candidates = None,
    as_json: options.Json = False,
    where: Where = Path("."),
    window: Window = None,
    stride: Stride = None,
    videos: options.Videos = None,
    cache: Cache = CACHE,
    run: options.Run = None,
    backbone: options.Backbone = None,
    weights: options.BackboneWeights = None,
    device: options.Device = "auto",
    runs: options.Runs = Path("runs"),
) -> None:
    """Measure what a search with --approximate loses.

    It is the share of the exact best ten that the first of its two stages keeps.

    Without sentences, captions that came with the clips are asked.
    """
    from calmctl.search.exact import CANDIDATES, require_usearch
    from calmctl.search.windows import check_windows

    stride_s = check_windows(window, stride)
    options.is_bare(run, backbone, weights)
    require_folder(where, "name a folder of videos or a feature store with --in")
    query_texts = _sentences(sentences, queries)
    require_usearch()
    search_model = choose_model(run, runs, backbone, weights, device, False, are_drawn(where))
    note_cut(search_model, query_texts)
    with progress_bar("items") as bar:
        engine = open_search(search_model, where, window, stride_s, videos, cache, bar)
        measured = engine.recall(query_texts or engine.sampled_captions(), candidates=candidates or CANDIDATES)
    note_left_out(engine)
    print_json(asdict(measured)) if as_json else print_recall(measured)


def moments(
    file: Annotated[Path, typer.Argument(metavar="TIMED", help="Timed sentences: .txt, .json or .jsonl.")],
    top: options.Top = 10,
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the windows: .jsonl.")] = None,
    as_json: options.Json = False,
    where: Where = Path("."),
    window: Window = None,
    stride: Stride = None,
    cache: Cache = CACHE,
    run: options.Run = None,
    backbone: options.Backbone = None,
    weights: options.BackboneWeights = None,
    device: options.Device = "auto",
    runs: options.Runs = Path("runs"),
) -> None:
    """Ask timed sentences of their own videos, window by window, and score where the answers are.

    --in may also be the store that a search with --window kept of the videos, which need not be there then.

    R@1 and R@5 at IoU 0.5 and 0.7, mIoU and mAP; --out is what calmctl score moments and QVHighlights' evaluation read.
    """
    import json

    from calmctl.referee.moments import Answers, own_videos, read_truth, score_moments
    from calmctl.search.windows import check_windows
    from calmctl.store.format import INDEX

    stride_s = check_windows(window, stride)
    if window is None and not (where / INDEX).is_file():
        raise BadInput("moments are windows of videos; say how long they are with --window SECONDS")
    options.is_bare(run, backbone, weights)
    truth = read_truth(file)
    require_folder(where, "name a folder of videos, or a store of windows, with --in")
    if out is not None:
        require_output(out, MOMENTS)
    search_model = choose_model(run, runs, backbone, weights, device, False, are_drawn(where))
    note_cut(search_model, [query.sentence for query in truth.queries])
    with progress_bar("items") as bar:
        engine = open_search(search_model, where, window, stride_s, None, cache, bar)
        names = [name.rpartition("#t=")[0] or name for name in engine.collection.windows or engine.ids]
        videos = own_videos(truth, names)
        asked = [query for query in truth.queries if query.video in videos]
        if not asked:
            raise DatasetError(f"{where}: not one of the {len(truth.queries):,} timed sentences is of a video in it")
        found = engine.within([(query.sentence, videos[query.video]) for query in asked], top)
    note_left_out(engine)
    if out is not None:
        rows = [
            {"qid": query.id, "query": query.sentence, "vid": query.video, "pred_relevant_windows": windows}
            for query, windows in zip(asked, found, strict=True)
        ]
        write_output(out, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), MOMENTS)
    spans = {q.id: tuple((s, e) for s, e, _ in windows) for q, windows in zip(asked, found, strict=True)}
    print_moments(score_moments(Answers(search_model.name, spans), truth), [], as_json)


def _sentences(sentences: list[str] | None, source: str | None) -> list[str]:
    given = list(sentences or [])
    if any(not sentence.strip() for sentence in given):
        raise BadInput("a sentence is empty; write what is to be seen")
    return given + (read_sentences(source) if source is not None else [])


def ask_on(engine: Search, top: int, ask: Callable[[list[str]], Found]) -> None:
    """Ask for a sentence and answer, until there is none; the model and all tables stay where they are."""
    with suppress(ImportError):  # Windows edits lines itself
        import readline  # noqa: F401  # arrows and a history
    from calmctl.search.results import Answer

    note("a sentence; :open N, :like N for a hit of the last answer; an empty line ends it")
    hits: tuple[Hit, ...] = ()
    while True:
        try:
            asked = input("> ").strip()
        except (EOFError, KeyboardInterrupt):
            return
        if not asked:
            return
        try:
            if asked.startswith(":"):
                verb, _, number = asked[1:].partition(" ")
                if verb not in ("open", "like") or not number.isdecimal() or not 1 <= int(number) <= len(hits):
                    raise BadInput(f":open N and :like N take the number of a hit, from 1 to {len(hits)}")
                hit = hits[int(number) - 1]
                if verb == "open":
                    open_hit(Answer("", (hit,)))
                    continue
                result = engine.like(hit.position, top)
            else:
                note_cut(engine.seeker, [asked])
                result = ask([asked])
        except CalmError as fault:  # a slip ends no session
            note(f"[bold red]error:[/] {printable(str(fault))}")
            continue
        hits = result.answers[0].hits
        print_found(result)


def match_rule(confident: bool, fdr: float | None, calibrate: str | None) -> Rule | None:
    """When a hit matches, by --confident or --fdr; None where neither is given."""
    if confident and fdr is not None:
        raise BadInput("--confident and --fdr are two rules; give one of them")
    if not confident and fdr is None:
        if calibrate is not None:
            raise BadInput("--calibrate FILE is what --confident and --fdr compare with; give one of them too")
        return None
    from calmctl.search.confidence import Rule

    return Rule() if fdr is None else Rule("fdr", fdr)


def calibrated(engine: Search, rule: Rule | None, source: str | None) -> None:
    """Make a search ready to say that nothing matches, with the sentences of a file where one is given."""
    if rule is None:
        return
    from calmctl.search.confidence import sentences_of_others

    given = None if source is None else sentences_of_others(read_sentences(source), Path(source).name)
    engine.open_bank(given).require(rule)


def _require_video(clip: Path) -> None:
    """Raise `VideoError` where `clip` is no video: before a model is loaded."""
    from calmctl.video.instants import video_extent

    if not clip.is_file():
        raise VideoError(f"{clip} is no file; give the path of a video")
    video_extent(clip)


def _show(result: Found, html: Path | None, as_json: bool) -> None:
    if html is not None:
        # Before printing, which may end early where its reader leaves.
        from calmctl.search.sheet import write_sheet

        write_sheet(result, html)
    print_result(result, print_found, as_json, html)
