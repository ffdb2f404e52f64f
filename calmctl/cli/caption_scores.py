"""`calmctl eval --captions HYP.json --references REF.json`: any system's captions, scored."""

from __future__ import annotations

from pathlib import Path

from calmctl.cli.console import print_json, progress_bar, stdout
from calmctl.errors import BadInput


def score_caption_files(
    captions: Path | None, references: Path | None, *, tokenizer: str, require_complete: bool, as_json: bool
) -> None:
    """Score a file of captions against a file of references and print the result.

    Raises:
        CalmError: As the readers and `score_captions`.
    """
    if captions is None or references is None:
        raise BadInput(
            "--captions and --references go together: calmctl eval --captions HYP.json --references REF.json"
        )
    from calmctl.evaluation.captions.files import read_hypotheses, read_references
    from calmctl.evaluation.captions.result import CaptionResult
    from calmctl.evaluation.captions.scorer import TOKENIZER_CHOICES, score_captions
    from calmctl.evaluation.captions.table import caption_table
    from calmctl.provenance import environment

    choice = next((known for known in TOKENIZER_CHOICES if known == tokenizer), None)
    if choice is None:
        raise BadInput(f"--tokenizer {tokenizer} is not known; use one of {', '.join(TOKENIZER_CHOICES)}")
    known = read_references(references)
    hypotheses = read_hypotheses(captions, known)
    with progress_bar("captions") as bar:
        task = bar.add_task("METEOR", total=len(hypotheses), note="")
        scores = score_captions(
            hypotheses,
            known,
            tokenizer=choice,
            require_complete=require_complete,
            progress=lambda what, done, total: bar.update(task, completed=done, total=total),
        )
    result = CaptionResult(scores, name=captions.name)
    if as_json:
        print_json({"captions": str(captions), "references": str(references), **result.to_json(), **environment()})
    else:
        stdout().print(caption_table([result]))
