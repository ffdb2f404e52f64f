"""Finds vocabularies: the shipped ones by name, any other by its file."""

from __future__ import annotations

import difflib
import os
import re
from pathlib import Path

from calmctl.anchors.builders import build_vocabulary
from calmctl.anchors.vocabulary import NAME_PATTERN, Vocabulary, load_vocabulary
from calmctl.errors import VocabularyError
from calmctl.shipped import shipped_folder

_FILE_SUFFIXES = (".yaml", ".yml", ".txt", ".csv", ".tsv", ".json")

BARE = "charades@1"
"""The anchors of a backbone that no run chose any for."""


def shipped_vocabularies() -> dict[str, list[int]]:
    """Names of the shipped vocabularies and their versions, both ascending."""
    found: dict[str, list[int]] = {}
    for path in sorted(shipped_folder("anchors").glob("*@*.yaml")):
        if match := re.fullmatch(rf"({NAME_PATTERN})@([0-9]+)", path.stem):
            found.setdefault(match[1], []).append(int(match[2]))
    return {name: sorted(versions) for name, versions in sorted(found.items())}


def shipped_path(name: str, version: int) -> Path:
    """Where the shipped vocabulary `name@version` lies, or would lie."""
    return shipped_folder("anchors") / f"{name}@{version}.yaml"


def load_shipped(name: str, version: int) -> Vocabulary:
    """Load a shipped vocabulary.

    Raises:
        VocabularyError: As `load_vocabulary`; also when the file's name and its contents disagree.
    """
    path = shipped_path(name, version)
    vocabulary = load_vocabulary(path)
    if (vocabulary.name, vocabulary.version) != (name, version):
        raise VocabularyError(
            f"vocabulary: {path} calls itself {vocabulary.reference}; rename the file or correct the key"
        )
    return vocabulary


def resolve_vocabulary(name_or_path: str | Path) -> Vocabulary:
    """The vocabulary that a recipe or a user means.

    Args:
        name_or_path: `name` (its newest shipped version), `name@version`, a vocabulary's YAML file, or a raw
            label list (.txt, .csv, .tsv, .json), which becomes version 1 of a vocabulary of its file's name.

    Raises:
        VocabularyError: Nothing of that name (the nearest is named), or a faulty file.
    """
    text = str(name_or_path)
    name, _, version = text.partition("@")
    known = shipped_vocabularies()
    if name in known and (version.isdecimal() or "@" not in text):
        wanted = int(version) if version else known[name][-1]
        if wanted in known[name]:
            return load_shipped(name, wanted)
        has = ", ".join(f"{name}@{each}" for each in known[name])
        raise VocabularyError(f"there is no vocabulary {text!r}; there is {has}")
    path = Path(name_or_path)
    if path.suffix.lower() in _FILE_SUFFIXES or os.sep in text or "/" in text or path.is_file():
        if path.suffix.lower() in (".yaml", ".yml"):
            return load_vocabulary(path)
        return build_vocabulary(path).vocabulary
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
    hint = f"did you mean {near[0]!r}?" if near else f"there is {', '.join(known)}."
    raise VocabularyError(f"there is no vocabulary {text!r}; {hint} A file is named by its path, such as ./labels.txt")
