"""Sentences to search with: from the command line, a file, or standard input."""

from __future__ import annotations

import sys
from pathlib import Path

from calmctl.data.annotations import CAPTIONS_SUFFIXES, read_captions, read_lines
from calmctl.errors import BadInput


def read_sentences(source: str) -> list[str]:
    """The sentences of a file: of a captions file (CSV, JSON, JSONL), else one per line; "-" is standard input.

    Raises:
        BadInput: There is none, or the file cannot be read.
    """
    if source == "-":
        try:
            # Bytes, because a terminal's locale may be another one. Some Windows programs begin with a byte order
            # mark.
            lines = sys.stdin.buffer.read().decode("utf-8-sig").split("\n")
        except UnicodeDecodeError:
            raise BadInput("standard input is not UTF-8; convert it") from None
    elif Path(source).suffix.lower() in CAPTIONS_SUFFIXES:
        lines = [sentence for row in read_captions(Path(source)).rows for sentence in row.captions]
    else:
        lines = [line for _, line in read_lines(Path(source))]
    sentences = [line.strip() for line in lines if line.strip()]
    if not sentences:
        raise BadInput(f"{'standard input' if source == '-' else source}: there is no sentence in it; write one a line")
    return sentences
