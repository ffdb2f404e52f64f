"""Writes vocabularies so that a name and a version mean the same labels for ever."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from calmctl.anchors.shipped import load_shipped, shipped_vocabularies
from calmctl.anchors.vocabulary import Vocabulary, format_vocabulary, load_vocabulary
from calmctl.errors import VocabularyError
from calmctl.files import VOCABULARY, read_regular, require_output, write_output

Status = Literal["new", "unchanged", "reworded"]


def publication_status(vocabulary: Vocabulary, path: Path) -> Status:
    """What writing `vocabulary` to `path` would do.

    Returns:
        "new", "unchanged" (the file has it already), or "reworded" (same digest; source, licence or note
        differ).

    Raises:
        VocabularyError: The file holds other labels, ids or another prompt, or is damaged: a published
            version is never replaced.
    """
    require_output(path, VOCABULARY)
    if not path.is_file():  # none, or a device or pipe, which is written to
        return "new"
    try:
        existing = load_vocabulary(path)
    except VocabularyError as fault:
        raise VocabularyError(f"{fault}; to write it anew, delete it first") from None
    if existing.digest != vocabulary.digest:
        raise VocabularyError(
            f"{path} exists with other contents, and a published version never changes: raise the version "
            f"(--version {existing.version + 1}), or delete the file if nobody used it"
        )
    return "unchanged" if read_regular(path) == format_vocabulary(vocabulary).encode() else "reworded"


def publish(vocabulary: Vocabulary, path: Path) -> Status:
    """Write `vocabulary` to `path` unless it is there; see `publication_status`.

    Raises:
        VocabularyError: As there; also when a shipped vocabulary of that name and version holds other labels.
        BadInput: `path` is a folder, or a disk.
        RunFailed: The file cannot be written.
    """
    if vocabulary.version in shipped_vocabularies().get(vocabulary.name, ()):
        shipped = load_shipped(vocabulary.name, vocabulary.version)
        if shipped.digest != vocabulary.digest:
            raise VocabularyError(
                f"{vocabulary.reference} is a shipped vocabulary with other contents; give yours another "
                "--name or --version"
            )
    status = publication_status(vocabulary, path)
    if status != "unchanged":
        write_output(path, format_vocabulary(vocabulary), VOCABULARY)
    return status
