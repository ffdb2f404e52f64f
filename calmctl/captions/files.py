"""BLEU, ROUGE-L and CIDEr by pycocoevalcap's own scorers, with what a bootstrap over clips needs."""

from __future__ import annotations

import json
import os
import unicodedata
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calmctl.data.annotations import expect, lower_keys, read_lines, read_table, read_text, shown
from calmctl.errors import DatasetError
from calmctl.files import NotJson, parse_json

Doubles = NDArray[np.float64]
_MAX_N = 4
N_BLEU_COUNTS = 2 + 2 * _MAX_N


@dataclass(frozen=True, slots=True)
class Bleu:
    """Corpus BLEU.

    Attributes:
        scores: BLEU-1 to BLEU-4.
        segments: The same of each segment, [N, 4].
        counts: What corpus BLEU is made of, [N, 10]: length, closest reference length, n-grams that match for
            n = 1..4, n-grams for n = 1..4.
    """

    scores: tuple[float, float, float, float]
    segments: Doubles
    counts: Doubles


def bleu(hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> Bleu:
    """BLEU with the closest reference length, from tokens with blanks between."""
    from pycocoevalcap.bleu.bleu_scorer import BleuScorer

    # The class Bleu around this one prints to stdout and keeps the counts to itself.
    scorer = BleuScorer(n=_MAX_N)
    for hypothesis, captions in zip(hypotheses, references, strict=True):
        scorer += (hypothesis, list(captions))
    (bleu1, bleu2, bleu3, bleu4), segments = scorer.compute_score(option="closest", verbose=0)
    counts = []
    for each in scorer.ctest:
        length = each["testlen"]
        _, closest = min((abs(reference - length), reference) for reference in each["reflen"])
        counts.append([length, closest, *each["correct"], *each["guess"]])
    return Bleu((bleu1, bleu2, bleu3, bleu4), np.array(segments).T, np.array(counts, dtype=np.float64))


def bleu_of_counts(counts: Doubles) -> Doubles:
    """BLEU-1 to BLEU-4 [R, 4] of sums of `Bleu.counts` [R, 10].

    Papineni et al., BLEU (ACL 2002), with the small constants that pycocoevalcap adds against 0 / 0.
    """
    length, closest = counts[:, 0], counts[:, 1]
    matches, ngrams = counts[:, 2 : 2 + _MAX_N], counts[:, 2 + _MAX_N :]
    precisions = np.cumprod((matches + 1e-15) / (ngrams + 1e-9), axis=1)
    ratio = (length + 1e-15) / (closest + 1e-9)
    brevity = np.exp(np.minimum(0.0, 1.0 - 1.0 / ratio))
    return np.asarray(precisions ** (1.0 / np.arange(1, _MAX_N + 1)) * brevity[:, None])


def rouge_l(hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> Doubles:
    """ROUGE-L (beta 1.2) of each segment, [N]; the score of all is their mean."""
    from pycocoevalcap.rouge.rouge import Rouge

    return np.asarray(Rouge().compute_score(*_by_number(hypotheses, references))[1], dtype=np.float64)


def cider(hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> Doubles:
    """CIDEr (CIDEr-D: n = 4, sigma 6, document frequencies from these references) of each segment, [N].

    The score of all is their mean; 10 would be the highest possible.
    """
    from pycocoevalcap.cider.cider import Cider

    return np.asarray(Cider().compute_score(*_by_number(hypotheses, references))[1], dtype=np.float64)


def _by_number(
    hypotheses: Sequence[str], references: Sequence[Sequence[str]]
) -> tuple[dict[int, list[str]], dict[int, list[str]]]:
    return dict(enumerate(map(list, references))), {number: [each] for number, each in enumerate(hypotheses)}


# Files of captions and references: what calmctl prints, coco-caption's JSON, MSR-VTT's, {id: caption}, tables.


# "id" comes last: beside another of them it numbers the sentences, as in coco-caption's annotations.
_ID_KEYS = ("image_id", "video_id", "video", "file_name", "filename", "file", "path", "clip", "id")
_CAPTION_KEYS = ("caption", "captions", "sentence", "text", "description")
# What holds the captions in files that hold more: coco-caption's, MSR-VTT's, ActivityNet's, and calmctl's own.
_WRAPPERS = ("annotations", "sentences", "results", "predictions", "captions")


def read_hypotheses(path: Path, known: Collection[str] | None = None) -> dict[str, str]:
    """One caption an id: a list of {"image_id", "caption"}, {id: caption}, .jsonl, .csv, .tsv, or `--json` of calmctl.

    Args:
        path: The file.
        known: Ids of the references. `calmctl caption` names a clip by the path of its video, which stands for any
            end of that path, with or without its suffix, that is one of these.

    Raises:
        DatasetError: The file is malformed, or has no caption or more than one for an id.
    """
    captions: dict[str, str] = {}
    ids = {unicodedata.normalize("NFC", each): each for each in known or ()} | {each: each for each in known or ()}
    for name, found in _read(path).items():
        if len(found) != 1:
            raise DatasetError(f"{path}: {shown(name)} has {len(found)} captions; exactly one an id is scored")
        called = _as_known(name, ids)
        if called in captions:
            raise DatasetError(f"{path}: two captions are of {shown(called)}, one of them as {shown(name)}")
        captions[called] = found[0]
    return captions


def read_references(path: Path) -> dict[str, list[str]]:
    """All references of each id, in any of the forms of captions; an id may have several.

    Raises:
        DatasetError: The file is malformed, or an id has no reference.
    """
    references = _read(path)
    for name, found in references.items():
        if not found:
            raise DatasetError(f"{path}: {shown(name)} has an empty list of references; give one or leave it out")
    return references


def _as_known(name: str, known: Mapping[str, str]) -> str:
    """The id that a caption's `name` means: itself, or the longest end of it as a path.

    Args:
        name: What the file of captions says.
        known: Ids by themselves and in composed letters (macOS writes decomposed ones into names of files).
    """
    parts = PurePath(name).parts
    ends = [str(PurePath(*parts[first:])) for first in range(len(parts))]
    called = [name, *(form for end in ends for form in (end, os.path.splitext(end)[0]))]
    for forms in (called, [unicodedata.normalize("NFC", each) for each in called]):
        if (found := next((known[each] for each in forms if each in known), None)) is not None:
            return found
    return name


def _read(path: Path) -> dict[str, list[str]]:
    match path.suffix.lower():
        case ".csv" | ".tsv" as suffix:
            return _records(list(read_table(path, [], "\t" if suffix == ".tsv" else ",")), str(path))
        case ".jsonl":
            lines = ((f"{path}:{number}", line) for number, line in read_lines(path))
            return _records([(place, _parse(line, place)) for place, line in lines], str(path))
    content = _unwrapped(_parse(read_text(path), str(path)), path)
    if isinstance(content, dict):
        found = {name: _captions(value, f"{path}: {shown(name)}") for name, value in content.items()}
        if not found:
            raise DatasetError(f"{path}: there are no captions in it")
        return found
    place, records = content if isinstance(content, tuple) else (str(path), expect(content, list, str(path)))
    return _records([(f"{place}[{number}]", record) for number, record in enumerate(records)], place)


def _unwrapped(content: Any, path: Path) -> Any:
    """What holds the captions: {id: captions}, or a list with its place."""
    if not isinstance(content, dict):
        return content
    if isinstance(content.get("segments"), dict) and "search" in content:
        raise DatasetError(f"{path}: captions of moments; whole clips are scored: calmctl caption without --segment-s")
    for key in _WRAPPERS:
        held = content.get(key)
        # Not a caption of something that is called "annotations": that would be text, a list of text, or an object
        # with a caption.
        if isinstance(held, dict) and not any(isinstance(held.get(name), str) for name in _CAPTION_KEYS):
            return held
        if isinstance(held, list) and not any(isinstance(each, str) for each in held):
            evaluated = [each for each in held if isinstance(each, dict) and isinstance(each.get("captions"), dict)]
            if len(evaluated) > 1:  # calmctl eval of a captioner, on several test sets
                raise DatasetError(f"{path}: captions of {len(evaluated)} test sets; score a file of one at a time")
            return evaluated[0]["captions"] if evaluated else (f"{path}: {key}", held)
    return content


def _records(records: list[tuple[str, Any]], place: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for where, record in records:
        told = lower_keys(record, where) if isinstance(record, dict) else {}
        try:
            name = next(told[key] for key in _ID_KEYS if key in told)
            called = next(key for key in _CAPTION_KEYS if key in told)
        except StopIteration:
            raise DatasetError(
                f'{where}: expected {{"image_id" or "video_id": ..., "caption": ...}}, '
                f"found {shown(json.dumps(record, ensure_ascii=False))}"
            ) from None
        if isinstance(name, bool) or not isinstance(name, int | str):
            raise DatasetError(f"{where}: an id must be text or a whole number, not {shown(str(name))}")
        said = told[called]
        several = said if called == "captions" and isinstance(said, list) else [said]
        found.setdefault(str(name), []).extend(_text(each, where) for each in several)
    if not found:
        raise DatasetError(f"{place}: there are no captions in it")
    return found


def _captions(value: Any, place: str) -> list[str]:
    """Of {id: caption}, {id: [caption, ...]} or {id: [{"caption": caption}, ...]}."""
    values = value if isinstance(value, list) else [value]
    said = [each.get("caption", each.get("sentence", each)) if isinstance(each, dict) else each for each in values]
    return [_text(each, place) for each in said]


def _text(caption: Any, place: str) -> str:
    if caption is None:
        raise DatasetError(f'{place}: the caption is null; write "" where a system said nothing')
    return str(expect(caption, str, f"{place}: the caption"))


def _parse(text: str, place: str) -> Any:
    try:
        return parse_json(text)
    except NotJson as fault:
        raise DatasetError(f"{place} {fault}") from None
