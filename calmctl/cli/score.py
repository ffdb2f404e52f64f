"""`calmctl score`: any system's results, from files, by the code that scores ours."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from calmctl.cli import options
from calmctl.cli.console import print_json, progress_bar, readings, stdout

app = typer.Typer(
    cls=options.Group,
    no_args_is_help=True,
    rich_markup_mode="rich",
    help="Score any system's results, from files.",
    epilog=options.examples("calmctl score captions mine.json references.json"),
)


@app.command(
    epilog=options.examples(
        "calmctl score captions mine.json references.json",
        "calmctl score captions mine.json references.json --tokenizer none --json",
    )
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
    from calmctl.runtime import environment

    options.require_known("--tokenizer", tokenizer, TOKENIZER_CHOICES)
    # References first: their ids decide what the name of a caption means.
    known = read_references(references)
    found = read_hypotheses(hypotheses, known)
    with progress_bar("captions") as bar:
        scores = score_captions(
            found,
            known,
            tokenizer=next(choice for choice in TOKENIZER_CHOICES if choice == tokenizer),
            require_complete=require_complete,
            progress=readings(bar),
        )
    result = CaptionResult(scores, name=hypotheses.name)
    if as_json:
        print_json({"captions": str(hypotheses), "references": str(references), **result.to_json(), **environment()})
    else:
        stdout().print(caption_table([result]))
