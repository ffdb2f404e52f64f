"""`calmctl score`: any system's results, from files, by the code that scores ours."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from calmctl.cli import options
from calmctl.cli.console import Sheet, note, print_json, printable, progress_bar, readings, stdout
from calmctl.cli.results import print_differences, print_moments
from calmctl.errors import BadInput
from calmctl.files import RANKS, require_output, write_output
from calmctl.runtime import environment

if TYPE_CHECKING:
    from calmctl.evaluation.card import Card
    from calmctl.evaluation.result import Labels
    from calmctl.referee.score_files import Pairs, Stored
    from calmctl.referee.scores import Embeddings, Match, Scores, Verdict

app = options.Commands(
    "Score any system's results, from files.",
    "calmctl score matrix scores.npy --pairs pairs.csv",
    "calmctl score captions mine.json references.json",
    "calmctl score moments mine.jsonl charades_sta_test.txt",
)

_WHO = "Which text is of which video"


def _file(help: str, panel: str | None = _WHO) -> Any:
    return typer.Option(metavar="FILE", help=help, rich_help_panel=panel)


PairsFile = Annotated[Path | None, _file("Two columns of ids: texts, and their videos.")]
Dataset = Annotated[
    str | None, typer.Option(metavar="NAME", help="A data set: pairs and candidates of its test.", rich_help_panel=_WHO)
]
TextIds = Annotated[Path | None, _file("Ids of the texts, one a line, in their order.")]
VideoIds = Annotated[Path | None, _file("Ids of the videos, one a line, in their order.")]
RanksFile = Annotated[Path | None, _file("Write each query's rank: .json or .csv.", panel=None)]
Board = Annotated[str | None, typer.Option("--format", metavar="mteb|mmeb", help="Print a leaderboard's result file.")]
Task = Annotated[str, typer.Option("--mteb-task", metavar="NAME", help="The leaderboard's name of this data.")]
Direction = Annotated[str, typer.Option(help="For --format: text_to_video or video_to_text.")]
Similarity = Annotated[str, typer.Option(help="cosine or dot; of several vectors the best.")]


# Retrieval: scores, embeddings, and ranks that one of the two wrote.


@app.verb(
    "calmctl score matrix scores.npy --pairs pairs.csv",
    "calmctl score matrix scores.npz --dataset msrvtt --root /data",
    "calmctl score matrix mine.npy --pairs pairs.csv --against theirs.npy",
)
def matrix(
    scores: Annotated[Path, typer.Argument(metavar="S", help="Scores, texts in rows: .npy, .npz, .csv, ...")],
    pairs: PairsFile = None,
    text_ids: TextIds = None,
    video_ids: VideoIds = None,
    transpose: Annotated[bool, typer.Option("--transpose", help="Rows are videos, also of --against.")] = False,
    distances: Annotated[bool, typer.Option("--distances", help="Low is good, also of --against.")] = False,
    text_embeddings: Annotated[Path | None, _file("What S was made of, to look for a leak.", panel=None)] = None,
    video_embeddings: Annotated[Path | None, _file("The same, of the videos.", panel=None)] = None,
    similarity: Similarity = "cosine",
    against: options.Against = None,
    ranks: RanksFile = None,
    board: Board = None,
    task: Task = "",
    direction: Direction = "text_to_video",
    as_json: options.Json = False,
    dataset: Dataset = None,
    protocol: options.Protocol = None,
    root: options.Root = None,
    annotations: options.Annotations = None,
) -> None:
    """Score a matrix of similarities both ways, and look for what is wrong with it.

    Ids of rows and columns stand in the file, or in files beside it; the files beside are for --against as well.
    """
    from calmctl.referee.score_files import ids_of, read_stored
    from calmctl.referee.scores import SIMILARITIES, Matrix

    if (text_embeddings is None) != (video_embeddings is None):
        raise BadInput("--text-embeddings and --video-embeddings belong together; give both or neither")
    _check_ranks_file(ranks)
    output = _output(board, task, direction, against, as_json)
    options.one_of(SIMILARITIES, "--similarity", similarity)

    def opened(path: Path) -> tuple[Scores, Match]:
        stored = read_stored(path, "scores")
        array = stored.array(("scores", "similarity", "sims", "sim", "S"), (2,), "the matrix of scores")
        read = Matrix(array, transposed=transpose, distances=distances)
        # A table's own ids are of rows and columns, whatever these are.
        rows, columns = ("columns", "ids") if transpose else ("ids", "columns")
        given = (
            ids_of(stored, ("text_ids", rows), read.shape[0], text_ids, "--text-ids"),
            ids_of(stored, ("video_ids", columns), read.shape[1], video_ids, "--video-ids"),
        )
        return read, _match(read.shape, stored, given, known)

    known = _pairs(pairs, dataset, protocol, root, annotations)
    beside = None
    if text_embeddings is not None and video_embeddings is not None:
        beside = _embeddings(text_embeddings, video_embeddings, similarity)[0]
    labels = _labels(scores.name, known, given=True)
    _report(labels, *opened(scores), against or [], opened, ranks, output, beside)


@app.verb(
    "calmctl score embeddings texts.npy videos.npy --pairs pairs.csv",
    "calmctl score embeddings texts.npy videos.npy --pairs pairs.csv --ranks r.csv",
)
def embeddings(
    texts: Annotated[Path, typer.Argument(metavar="TEXTS", help="A vector a text, or several: .npy, .npz, ...")],
    videos: Annotated[Path, typer.Argument(metavar="VIDEOS", help="A vector a video, or several.")],
    pairs: PairsFile = None,
    text_ids: TextIds = None,
    video_ids: VideoIds = None,
    similarity: Similarity = "cosine",
    against: options.Against = None,
    ranks: RanksFile = None,
    board: Board = None,
    task: Task = "",
    direction: Direction = "text_to_video",
    as_json: options.Json = False,
    dataset: Dataset = None,
    protocol: options.Protocol = None,
    root: options.Root = None,
    annotations: options.Annotations = None,
) -> None:
    """Score texts and videos by their embeddings both ways, and look for what is wrong.

    Files of three dimensions hold several vectors each: a score is the mean over the text's of the best of the video's.
    """
    from calmctl.referee.score_files import ids_of

    _check_ranks_file(ranks)
    output = _output(board, task, direction, against, as_json)
    known = _pairs(pairs, dataset, protocol, root, annotations)

    def sides(one: Path, other: Path) -> tuple[Scores, Match]:
        scores, stored = _embeddings(one, other, similarity)
        given = (
            ids_of(stored[0], ("text_ids", "ids"), scores.shape[0], text_ids, "--text-ids"),
            ids_of(stored[1], ("video_ids", "ids"), scores.shape[1], video_ids, "--video-ids"),
        )
        return scores, _match(scores.shape, stored[0], given, known)

    def opened(path: Path) -> tuple[Scores, Match]:
        files = str(path).split(",")
        if len(files) != 2:
            raise BadInput(
                f"--against {path}: embeddings are compared with ranks (--ranks ranks.json), or with two files of "
                "embeddings with a comma between them: --against texts.npy,videos.npy"
            )
        return sides(Path(files[0]), Path(files[1]))

    labels = _labels(f"{texts.name}, {videos.name}", known, given=False)
    _report(labels, *sides(texts, videos), against or [], opened, ranks, output, None)


@app.verb("calmctl score ranks ranks.json", "calmctl score ranks mine.json --against theirs.json")
def ranks(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="What --ranks wrote.")],
    against: options.Against = None,
    board: Board = None,
    task: Task = "",
    direction: Direction = "text_to_video",
    as_json: options.Json = False,
) -> None:
    """Score ranks that were kept, without the model and its scores; compare them with others."""
    from calmctl.referee.rank_files import read_ranks

    output = _output(board, task, direction, against, as_json)
    _print(read_ranks(file), [(each, read_ranks(Path(each))) for each in against or []], output)


@dataclass(frozen=True, slots=True)
class _Output:
    """What is printed: tables, JSON, or a leaderboard's result file of `task`."""

    board: str | None
    task: str
    direction: Literal["text_to_video", "video_to_text"]
    as_json: bool


def _output(board: str | None, task: str, direction: str, against: Sequence[str] | None, as_json: bool) -> _Output:
    """Raises `BadInput` where the options do not go together."""
    ways: tuple[Literal["text_to_video", "video_to_text"], ...] = ("text_to_video", "video_to_text")
    way = options.one_of(ways, "--direction", direction)
    if board is not None:
        options.one_of(("mteb", "mmeb"), "--format", board)
        if against or as_json:
            raise BadInput("--format prints one result file; leave --against and --json out")
        if board == "mteb" and not task:
            raise BadInput("--format mteb: say of which task, as --mteb-task MSRVTTT2V; its name stands in the file")
    return _Output(board, task, way, as_json)


def _check_ranks_file(path: Path | None) -> None:
    if path is not None:
        if path.suffix.lower() not in (".json", ".csv"):
            raise BadInput(f"--ranks {path}: ranks are written as .json or .csv; name such a file")
        require_output(path, RANKS)


def _pairs(
    pairs: Path | None, dataset: str | None, protocol: str | None, root: Path | None, annotations: Path | None
) -> Pairs | None:
    """What --pairs or --dataset say; None where the scores must say it themselves."""
    from calmctl.referee.score_files import protocol_pairs, read_pairs

    if pairs is not None and dataset is not None:
        raise BadInput("--pairs and --dataset both say which text is of which video; give one of them")
    if dataset is not None:
        return protocol_pairs(dataset, protocol, root, annotations)
    return None if pairs is None else read_pairs(pairs)


_Ids = tuple[tuple[str, ...] | None, tuple[str, ...] | None]


def _match(shape: tuple[int, int], stored: Stored, ids: _Ids, known: Pairs | None) -> Match:
    from calmctl.referee.score_files import own_pairs
    from calmctl.referee.scores import match

    matched = match(shape, known if known is not None else own_pairs(stored, shape, *ids), *ids)
    if stored.card is None:
        return matched
    # What eval wrote beside its scores; of the list only what stands here, which may be other pairs than it asked.
    own = ("dataset", "protocol", "split") if known is None else ()
    names = (*own, "frames", "reader", "files", "pixels", "selection", "weights", "trained_on", "seeds")
    return replace(matched, tested={**{name: getattr(stored.card, name) for name in names}, **matched.tested})


def _embeddings(texts: Path, videos: Path, similarity: str) -> tuple[Embeddings, tuple[Stored, Stored]]:
    from calmctl.referee.score_files import read_stored
    from calmctl.referee.scores import SIMILARITIES, Embeddings

    chosen = options.one_of(SIMILARITIES, "--similarity", similarity)
    sides = read_stored(texts, "text embeddings"), read_stored(videos, "video embeddings")
    text_vectors = sides[0].array(("texts", "text", "embeddings"), (2, 3), "the texts")
    video_vectors = sides[1].array(("videos", "video", "embeddings"), (2, 3), "the videos")
    return Embeddings(text_vectors, video_vectors, chosen), sides


def _labels(system: str, known: Pairs | None, *, given: bool) -> Labels:
    """Nobody knows what the scorer of given scores saw; what is computed from vectors here saw the pair alone."""
    from calmctl.evaluation.result import HONEST_SCORER, Labels

    # Of pairs in a file nobody knows which data set they are; of a data set's the name has both.
    name = known.name if known is not None and known.candidates is not None else ""
    dataset, _, protocol = name.partition(" ")
    return Labels(dataset=dataset, protocol=protocol, system=system, scorer="given" if given else HONEST_SCORER)


def _report(
    labels: Labels,
    scores: Scores,
    matched: Match,
    against: Sequence[str],
    opened: Callable[[Path], tuple[Scores, Match]],
    ranks: Path | None,
    output: _Output,
    beside: Embeddings | None,
) -> None:
    """Judge scores and what they are compared with, print it, and write the ranks where they are wanted."""
    from calmctl.referee.rank_files import format_ranks, is_ranks, read_ranks
    from calmctl.referee.scores import judge_scores

    others = []
    with progress_bar("rows") as bar:
        verdict = judge_scores(scores, matched, labels, embeddings=beside, progress=readings(bar))
        for other in against:
            path = Path(other)
            if is_ranks(path):
                others.append((other, read_ranks(path)))
            else:
                its_scores, its_match = opened(path)
                others.append((other, judge_scores(its_scores, its_match, replace(labels, system=path.name))))
    if ranks is not None:
        write_output(ranks, format_ranks(verdict, ranks.suffix), RANKS)
    _print(verdict, others, output)


_METRICS = ("R@1", "R@5", "R@10", "MdR", "MnR", "R@50", "nDCG@10", "MRR")


def _print(verdict: Verdict, others: Sequence[tuple[str, Verdict]], output: _Output) -> None:
    from calmctl.evaluation.metrics import DIRECTIONS
    from calmctl.evaluation.tables import retrieval_table
    from calmctl.referee.scores import differences, differences_json

    if output.board:
        from calmctl.referee.rank_files import format_board

        stdout().file.write(format_board(verdict, output.board, output.task, output.direction))
        for each in verdict.suspicions or ():
            note(f"[bold red]!! {each.kind}[/]: {printable(each.text)}")
        return
    compared = [(name, differences(verdict, other)) for name, other in others]
    if output.as_json:
        plain = [{"against": name, **differences_json(each)} for name, each in compared]
        print_json({**verdict.to_json(), **({"differences": plain} if plain else {}), **environment()})
        return
    out = stdout()
    out.print(retrieval_table([verdict.result]))
    table = Sheet("", numbers=["R@50", "nDCG@10", "MRR"], header_style="dim")
    for direction in DIRECTIONS[:2]:
        metrics, intervals = verdict.further(direction)
        cells = []
        for name, bound in intervals.items():
            spread = "" if bound is None else f" ({bound.low:.1f}-{bound.high:.1f})"
            cells.append(f"{getattr(metrics, name):.1f}{spread}")
        table.add_row(direction.replace("_", " "), *cells)
    out.print(table)
    for text in verdict.notes:
        note(f"[yellow]{printable(text)}[/]")
    for name, by_direction in compared:
        for direction in DIRECTIONS[:2]:
            what = direction.replace("_", " ")
            print_differences(what, verdict.result.labels.system, name, by_direction[direction], _METRICS)
    if verdict.suspicions is None:
        note("[dim]ranks alone were read: whether the scores behind them are right was not looked at[/]")
    elif verdict.suspicions:
        # Those about the candidates are caveats, too, and stand at the foot of the table.
        untold = [each for each in verdict.suspicions if each.text not in verdict.result.caveats]
        if untold:
            out.print("\n[bold red]Likely wrong:[/]")
        for each in untold:
            out.print(f"[bold red]!! {each.kind}[/]: {printable(each.text)}")
    else:
        out.print("\nNothing looks wrong (docs/score.md tells what cannot be seen).")


# Captions.


@app.verb(
    "calmctl score captions mine.json references.json",
    "calmctl score captions mine.json references.json --tokenizer none --json",
)
def captions(
    hypotheses: Annotated[Path, typer.Argument(metavar="HYP", help="Captions: one an id, JSON, JSONL, CSV or TSV.")],
    references: Annotated[Path, typer.Argument(metavar="REF", help="Their references: one or more an id.")],
    tokenizer: options.Tokenizer = "ptb",
    as_json: options.Json = False,
    require_complete: options.RequireComplete = False,
) -> None:
    """Score captions against references: BLEU, METEOR, ROUGE-L and CIDEr, equal to pycocoevalcap's own.

    What calmctl caption and calmctl eval print with --json is such a file of captions, too.
    """
    from calmctl.captions.files import read_hypotheses, read_references
    from calmctl.captions.score import TOKENIZER_CHOICES, CaptionResult, caption_table, score_captions

    chosen = options.one_of(TOKENIZER_CHOICES, "--tokenizer", tokenizer)
    # References first: their ids decide what the name of a caption means.
    known = read_references(references)
    scored = read_hypotheses(hypotheses, known)
    with progress_bar("captions") as bar:
        scores = score_captions(
            scored, known, tokenizer=chosen, require_complete=require_complete, progress=readings(bar)
        )
    result = CaptionResult(scores, name=hypotheses.name)
    if as_json:
        print_json({"captions": str(hypotheses), "references": str(references), **result.to_json(), **environment()})
    else:
        stdout().print(caption_table([result]))


# Moments.


@app.verb(
    "calmctl score moments mine.jsonl highlight_val_release.jsonl",
    "calmctl score moments mine.jsonl charades_sta_test.txt --against theirs.jsonl",
)
def moments(
    answers: Annotated[Path, typer.Argument(metavar="ANSWERS", help="Windows a query, as QVHighlights has them.")],
    truth: Annotated[Path, typer.Argument(metavar="TIMED", help="Timed sentences: .txt, .json or .jsonl.")],
    against: options.Against = None,
    as_json: options.Json = False,
) -> None:
    """Score where in its video a sentence is answered: R@1 and R@5 at IoU 0.5 and 0.7, mIoU, mAP.

    TIMED is QVHighlights' JSONL, Charades-STA's text, DiDeMo's or ActivityNet Captions' JSON.
    """
    from calmctl.referee.moments import read_answers, read_truth, score_moments

    known = read_truth(truth)
    result = score_moments(read_answers(answers, known), known)
    others = [(each, score_moments(read_answers(Path(each), known), known)) for each in against or []]
    print_moments(result, others, as_json)


# The protocol card of any number.


CARD_EXAMPLES = options.examples(
    "calmctl card runs/msrvtt-001             # how its numbers were made",
    "calmctl card mine.json theirs.json       # may they stand in one column?",
)


def card(
    one: Annotated[str, typer.Argument(metavar="RUN|FILE", help="A run, or JSON of eval, score or reproduce.")],
    other: Annotated[
        str | None, typer.Argument(metavar="RUN|FILE", help="Another one to hold it against.", show_default=False)
    ] = None,
    as_json: options.Json = False,
    runs: options.Runs = Path("runs"),
) -> None:
    """Show the protocol card of numbers: list, queries, frames, reader, scorer, selection, weights, seeds.

    Of two it says in what they differ. Exit code 1: they do, and their numbers belong into no one column.
    """
    from calmctl.evaluation.card import NAMES, cards_in, shown_value
    from calmctl.runs.run import find_run

    def cards_of(name: str) -> list[tuple[str, Card]]:
        path = Path(name)
        if path.is_dir() or not path.exists():
            path = find_run(name, runs).folder
        return list(cards_in(path))

    ours, theirs = cards_of(one), [] if other is None else cards_of(other)
    # Of several test sets in a file those of one name belong together; where there is none, the first ones do.
    pairs = [(mine, its) for mine in ours for its in theirs if mine[1].dataset == its[1].dataset] or (
        [(ours[0], theirs[0])] if theirs else []
    )
    if as_json:
        print_json(
            {
                "cards": [{"of": name, **each.to_json()} for name, each in (*ours, *theirs)],
                "differences": [
                    {"of": [mine[0], its[0]], "differs": list(mine[1].differences(its[1]))} for mine, its in pairs
                ],
            }
        )
    else:
        alone: list[tuple[tuple[str, Card], ...]] = [(each,) for each in _distinct(ours)]
        for group in pairs or alone:
            cards = [each for _, each in group]
            table = Sheet("", *(printable(name) for name, _ in group), header_style="bold")
            for name, heading in NAMES.items():
                cells = [printable(shown_value(name, getattr(each, name))) for each in cards]
                apart = len(cards) > 1 and cards[0].differences(cards[1])
                colour = "yellow" if apart and any(each.startswith(f"{heading}: ") for each in apart) else ""
                table.add_row(heading, *(f"[{colour}]{cell}[/]" if colour else cell for cell in cells))
            stdout().print(table)
        for mine, its in pairs:
            apart, unknown = mine[1].differences(its[1]), mine[1].unknown(its[1])
            verdict = f"No column may have both: {'; '.join(apart)}" if apart else "They may stand in one column"
            known = f", as far as is known (not: {', '.join(unknown)})" if unknown else ""
            stdout().print(printable(f"{verdict}{known}."))
    if any(mine[1].differences(its[1]) for mine, its in pairs):
        raise typer.Exit(1)


def _distinct(cards: Sequence[tuple[str, Card]]) -> list[tuple[str, Card]]:
    """Each card once, however many files of a run have it."""
    return list({each.digest: (name, each) for name, each in reversed(cards)}.values())[::-1]
