"""Anchor vocabularies: the class labels that CALM measures videos and sentences against.

A vocabulary is a YAML file that people can read and version control:

    schema_version: 1
    name: charades
    version: 1
    source: where the labels are from
    licence: what may be done with them
    prompt: The content of {label}
    digest: sha256:...              over prompt, ids and labels: a result names exactly what it used
    labels:
      c000: Holding some clothes    stable id: label; the order is the order of the K anchors
"""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic_core import PydanticCustomError

from calmctl.errors import VocabularyError
from calmctl.files import write_text
from calmctl.yaml_strict import dump_yaml, load_yaml, parse_yaml

PROMPT = "The content of {label}"  # paper, section 3 (docs/science.md)
MAX_LABEL_CHARS = 300  # about CLIP's 77 tokens; the longest label of 20 public lists has 121
NAME_PATTERN = r"[a-z0-9][a-z0-9._+-]*"
_WHAT = "vocabulary"


class Label(BaseModel):
    """One anchor label: `id` never changes, `text` goes into the prompt."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    id: Annotated[str, Field(pattern=r"^\S(.*\S)?$", max_length=100)]
    text: Annotated[str, Field(max_length=MAX_LABEL_CHARS)]

    @field_validator("text")
    @classmethod
    def _clean(cls, text: str) -> str:
        if not text.strip():
            raise PydanticCustomError("empty", "is empty")
        # Labels go into prompts, onto terminals and pages; a blank at the end would make two of one.
        if not text.isprintable() or text != text.strip():
            raise PydanticCustomError("unclean", "has control characters, or space at its ends")
        return text


class Vocabulary(BaseModel):
    """K labels in a fixed order, the prompt they are put into, and where they are from.

    Attributes:
        name: Lower-case name; `name@version` names the vocabulary everywhere.
        version: 1, 2, ...; a published version never changes.
        source: Where the labels are from, for attribution.
        licence: What may be done with them.
        note: Anything a reader of a result should know.
        prompt: Template with one `{label}`.
        labels: The K >= 2 labels; ids and texts are unique.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    schema_version: Literal[1] = 1
    name: Annotated[str, Field(pattern=f"^{NAME_PATTERN}$", max_length=100)]
    version: Annotated[int, Field(ge=1)] = 1
    source: str
    licence: str
    note: str = ""
    prompt: str = PROMPT
    # Two at least: over a single anchor every distribution is the same.
    labels: Annotated[tuple[Label, ...], Field(min_length=2)]

    @field_validator("prompt")
    @classmethod
    def _one_place(cls, prompt: str) -> str:
        if prompt.count("{label}") != 1 or not prompt.isprintable():
            raise PydanticCustomError("prompt", "must be one line with '{label}' exactly once")
        return prompt

    @model_validator(mode="after")
    def _unique(self) -> Vocabulary:
        for what, values in (
            ("label", [label.text for label in self.labels]),
            ("id", [label.id for label in self.labels]),
        ):
            first: dict[str, int] = {}
            for position, value in enumerate(values):
                if value in first:
                    raise PydanticCustomError(
                        "repeated",
                        "the {what} {value} is there twice (entries {first} and {second})",
                        {"what": what, "value": repr(value), "first": first[value] + 1, "second": position + 1},
                    )
                first[value] = position
        return self

    def __len__(self) -> int:
        """K, the number of anchors."""
        return len(self.labels)

    @property
    def reference(self) -> str:
        """`name@version`."""
        return f"{self.name}@{self.version}"

    @property
    def texts(self) -> tuple[str, ...]:
        """The K labels in order."""
        return tuple(label.text for label in self.labels)

    @property
    def prompts(self) -> tuple[str, ...]:
        """The K prompts in order: what the text encoder reads (Eq. 4)."""
        # Not str.format: a label may hold braces.
        return tuple(self.prompt.replace("{label}", text) for text in self.texts)

    @property
    def digest(self) -> str:
        """`sha256:...` over prompt, ids and labels in order; not over name, source or note."""
        # Whoever rewords a note must not make results incomparable, and whoever swaps two labels must not keep them so.
        content = {"labels": [[label.id, label.text] for label in self.labels], "prompt": self.prompt}
        # ASCII, sorted and without blanks: no locale and no version of a library writes that in another way.
        canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
        return "sha256:" + hashlib.sha256(canonical.encode("ascii")).hexdigest()

    def to_json(self) -> dict[str, Any]:
        """Plain data for `--json`, with the digest."""
        labels = [label.model_dump() for label in self.labels]
        return {**self.model_dump(exclude={"labels"}), "digest": self.digest, "labels": labels}


def make_vocabulary(labels: Iterable[tuple[str, str]], *, where: str, **fields: Any) -> Vocabulary:
    """Make a checked vocabulary from (id, label) pairs and the other fields of `Vocabulary`.

    Raises:
        VocabularyError: One sentence that begins with `where` and names the field at fault.
    """
    try:
        return Vocabulary.model_validate({**fields, "labels": tuple({"id": id_, "text": text} for id_, text in labels)})
    except ValidationError as fault:
        raise VocabularyError(f"{where}: {_sentence(fault)}") from None


def load_vocabulary(path: Path, *, check_digest: bool = True) -> Vocabulary:
    """Read a vocabulary file.

    Args:
        path: The YAML file.
        check_digest: Whether contents that do not fit the file's digest are an error.

    Raises:
        VocabularyError: File missing, not YAML, a wrong field, repeats, or a digest that does not fit.
    """
    return _read(load_yaml(path, what=_WHAT, error=VocabularyError), f"{_WHAT}: {path}", path, check_digest)


def parse_vocabulary(text: str, *, source: Path) -> Vocabulary:
    """Read what `format_vocabulary` wrote into `source`; raises as `load_vocabulary`."""
    where = f"{_WHAT} in {source}"
    return _read(parse_yaml(text, where=where, error=VocabularyError), where, source, check_digest=True)


def _read(document: Any, where: str, path: Path, check_digest: bool) -> Vocabulary:
    if not isinstance(document, dict) or not isinstance(document.get("labels"), dict):
        raise VocabularyError(
            f"{where} is no vocabulary: it needs 'labels:' with lines 'id: label'; "
            "'calmctl anchors build LIST' makes one from a list"
        )
    fields = {str(key): value for key, value in document.items()}
    pairs = []
    for id_, text in fields.pop("labels").items():
        for value, what in ((id_, "the id"), (text, f"the label of {id_!r}")):
            # Not str(value): YAML has made 10 of 010 by now, and a label is what stands in the file.
            if not isinstance(value, str):
                raise VocabularyError(f"{where}: {what} {value!r} is not text; put it in quotes")
        pairs.append((id_, text))
    # A file without a digest is refused as well: whoever edits labels by hand may as easily delete the line.
    stated = fields.pop("digest", None)
    vocabulary = make_vocabulary(pairs, where=where, **fields)
    if check_digest and stated != vocabulary.digest:
        statement = "has no digest" if stated is None else f"says digest {_short(stated)}"
        raise VocabularyError(
            f"{where} {statement}, but its contents give {_short(vocabulary.digest)}: labels, ids, order or "
            "prompt were changed by hand; restore the file, or publish the change as a version of its own "
            f"with 'calmctl anchors build {path} --version {vocabulary.version + 1}'"
        )
    return vocabulary


def format_vocabulary(vocabulary: Vocabulary) -> str:
    """The YAML text of a vocabulary; equal vocabularies give equal text."""
    document: dict[str, Any] = vocabulary.model_dump(exclude={"labels"})
    if not vocabulary.note:
        del document["note"]
    document["digest"] = vocabulary.digest
    document["labels"] = {label.id: label.text for label in vocabulary.labels}
    return dump_yaml(document)


def save_vocabulary(vocabulary: Vocabulary, path: Path) -> None:
    """Write a vocabulary atomically. Raises `RunFailed` when the file cannot be written."""
    write_text(path, format_vocabulary(vocabulary))


def _short(digest: object) -> str:
    return str(digest)[:19] + "..."


def _sentence(fault: ValidationError) -> str:
    """The first fault of a validation as 'key: what is wrong', with the nearest key for an unknown one."""
    first = fault.errors()[0]
    place = [str(part) for part in first["loc"]]
    if place and place[0] == "labels" and len(place) > 1:
        place = [f"entry {int(place[1]) + 1} of labels", *place[2:]]
    key = ", ".join(place)
    match first["type"]:
        case "extra_forbidden":
            near = difflib.get_close_matches(place[-1], [*Vocabulary.model_fields, "digest"], n=1)
            return f"unknown key {key!r}" + (f"; did you mean {near[0]!r}?" if near else "")
        case "missing":
            return f"the key {key!r} is missing"
        case "repeated":
            return first["msg"]
        case "string_pattern_mismatch" if key == "name":
            return f"name: {first['input']!r} may hold only lower-case letters, digits and . _ + -"
        case "too_short" if key == "labels":
            return "a vocabulary needs at least 2 labels: a distribution over fewer says nothing"
    return f"{key}: {first['msg'][:1].lower()}{first['msg'][1:]}, not {first['input']!r:.80}"


def find_anchors(vocabulary: Vocabulary, names: Sequence[str]) -> tuple[int, ...]:
    """Places of the anchors that `names` mean: ids or labels, whatever their capitals.

    Raises:
        VocabularyError: No such anchor (the nearest is named), or fewer than two would remain.
    """
    known = {label.text.casefold(): place for place, label in enumerate(vocabulary.labels)}
    # Ids win over a label of the same letters, because they are what never changes.
    known |= {label.id.casefold(): place for place, label in enumerate(vocabulary.labels)}
    places = []
    for name in names:
        if name.casefold() not in known:
            near = difflib.get_close_matches(name.casefold(), known, n=1, cutoff=0.3)
            hint = f"did you mean {vocabulary.texts[known[near[0]]]!r}?" if near else ""
            more = f"'calmctl anchors show {vocabulary.name}' lists them"
            raise VocabularyError(f"--without: {vocabulary.reference} has no anchor {name!r}; {hint or more}")
        places.append(known[name.casefold()])
    if len(vocabulary) - len(set(places)) < 2:
        raise VocabularyError(f"--without: at least 2 of the {len(vocabulary)} anchors must remain")
    return tuple(dict.fromkeys(places))
