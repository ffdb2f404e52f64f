"""Label lists into vocabularies: ids, clean-up, and no repeat or empty label unnoticed."""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from calmctl.anchors.label_lists import Entry, read_labels
from calmctl.anchors.vocabulary import PROMPT, Vocabulary, load_vocabulary, make_vocabulary
from calmctl.errors import VocabularyError

_YAML = (".yaml", ".yml")
_NOT_STATED = "not stated"


@dataclass(frozen=True, slots=True)
class Built:
    """A vocabulary made from a list.

    Attributes:
        vocabulary: The result.
        dropped: Repeated labels that were left out, with their places, for the report.
        hints: Facts worth saying about the labels; nothing was changed for them.
    """

    vocabulary: Vocabulary
    dropped: tuple[str, ...] = ()
    hints: tuple[str, ...] = ()


def build_vocabulary(
    path: Path,
    *,
    name: str | None = None,
    version: int | None = None,
    source: str | None = None,
    licence: str | None = None,
    note: str | None = None,
    prompt: str | None = None,
    column: str | None = None,
    keep_first: bool = False,
    spell_out: bool = False,
) -> Built:
    """Make a vocabulary from a label list, or renew one from a vocabulary file edited by hand.

    White space inside a label becomes single spaces and Unicode its composed form (NFC); nothing else
    changes unless asked for.

    Args:
        path: A label list (see `label_lists`) or a vocabulary's YAML, whose fields are then the defaults.
        name: Default: the file's name in lower case.
        version: Default 1.
        source: Where the labels are from. Default: the file's name.
        licence: Default "not stated".
        note: Default none.
        prompt: Template with one `{label}`. Default the paper's (Eq. 4).
        column: For CSV and TSV, the label column.
        keep_first: Keep the first of repeated labels, capitals not counted, instead of refusing the list.
        spell_out: Underscores, and capitals inside words, become spaces: `ApplyEyeMakeup`, `brush_hair`.

    Raises:
        VocabularyError: The list cannot be read; a label is empty, unclean or repeated (with its line); an
            id is repeated; the vocabulary would be invalid.
    """
    where = f"label list: {path}"
    if path.suffix.lower() in _YAML:
        edited = load_vocabulary(path, check_digest=False)
        fields: dict[str, Any] = edited.model_dump(exclude={"labels"})
        entries = [Entry(label.id, label.text, f"label {label.id}") for label in edited.labels]
    else:
        fields = {
            "name": _name_of(path),
            "version": 1,
            "source": path.name,
            "licence": _NOT_STATED,
            "prompt": PROMPT,
        }
        entries = read_labels(path, column=column)
    given = {"name": name, "version": version, "source": source, "licence": licence, "note": note,
             "prompt": prompt}  # fmt: skip
    fields |= {key: value for key, value in given.items() if value is not None}
    entries = [_clean(entry, where, spell_out) for entry in entries]
    entries, dropped = _without_repeats(entries, where, keep_first)
    vocabulary = make_vocabulary(_with_ids(entries, where), where=where, **fields)
    return Built(vocabulary, dropped, _hints(vocabulary.texts))


def _name_of(path: Path) -> str:
    return re.sub(r"[^a-z0-9._+-]+", "-", path.stem.lower()).strip("-._+") or "labels"


def _clean(entry: Entry, where: str, spell_out: bool) -> Entry:
    text = unicodedata.normalize("NFC", entry.text)
    if spell_out:
        text = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", text.replace("_", " "))
    text = " ".join(text.split())
    if not text:
        raise VocabularyError(f"{where}, {entry.place}: the label is empty; remove the line or name the label")
    if not text.isprintable():
        raise VocabularyError(f"{where}, {entry.place}: {text!r:.60} holds characters that cannot be printed")
    return Entry(entry.id, text, entry.place)


def _without_repeats(entries: list[Entry], where: str, keep_first: bool) -> tuple[list[Entry], tuple[str, ...]]:
    """Refuse or drop labels that CLIP's tokenizer reads alike: equal ones, or but for capitals."""
    alike: dict[str, list[Entry]] = defaultdict(list)
    for entry in entries:
        alike[entry.text.lower()].append(entry)
    kept = [same[0] for same in alike.values()]
    repeats = tuple(
        f"{', '.join(dict.fromkeys(repr(entry.text) for entry in same))} ({', '.join(entry.place for entry in same)})"
        for same in alike.values()
        if len(same) > 1
    )
    if repeats and not keep_first:
        shown = "; ".join(repeats[:3]) + (f"; and {len(repeats) - 3} more" if len(repeats) > 3 else "")
        labels = "label repeats" if len(repeats) == 1 else "labels repeat"
        labels += " (CLIP ignores capitals)" if case_twins(tuple(entry.text for entry in entries)) else ""
        raise VocabularyError(
            f"{where}: {len(repeats)} {labels}: {shown}; correct the list or keep the first of each with --keep-first"
        )
    return kept, repeats


def _with_ids(entries: list[Entry], where: str) -> list[tuple[str, str]]:
    """The list's ids where it has them, else a000, a001, ... by position (our choice)."""
    if all(entry.id is None for entry in entries):
        width = max(3, len(str(len(entries) - 1)))
        return [(f"a{position:0{width}d}", entry.text) for position, entry in enumerate(entries)]
    pairs = []
    seen: dict[str, str] = {}
    for entry in entries:
        if not entry.id:
            raise VocabularyError(f"{where}, {entry.place}: {entry.text!r} has no id, as the others have")
        if entry.id in seen:
            raise VocabularyError(
                f"{where}, {entry.place}: the id {entry.id!r} is also that of {seen[entry.id]}; make the ids unique"
            )
        seen[entry.id] = entry.place
        pairs.append((entry.id, entry.text))
    return pairs


def _hints(texts: tuple[str, ...]) -> tuple[str, ...]:
    hints = []
    joined = [text for text in texts if " " not in text and re.search(r"_|[a-z][A-Z]", text)]
    if joined:
        hints.append(f"{len(joined)} labels are joined words, such as {joined[0]!r}: --spell-out parts them")
    return tuple(hints)


def case_twins(texts: tuple[str, ...]) -> list[tuple[str, ...]]:
    """Groups of labels that differ in capitals only, which CLIP's tokenizer does not see."""
    groups: dict[str, list[str]] = defaultdict(list)
    for text in dict.fromkeys(texts):
        groups[text.lower()].append(text)
    return [tuple(group) for group in groups.values() if len(group) > 1]
