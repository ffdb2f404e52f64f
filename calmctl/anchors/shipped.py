"""Vocabularies by name or file; their union and subset; publishing and checking those that ship."""

from __future__ import annotations

import difflib
import hashlib
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from calmctl.anchors.label_lists import Built, build_vocabulary
from calmctl.anchors.vocabulary import NAME_PATTERN, Vocabulary, format_vocabulary, load_vocabulary, make_vocabulary
from calmctl.errors import VocabularyError
from calmctl.files import VOCABULARY, read_regular, require_output, shipped_folder, write_output
from calmctl.yaml_strict import load_yaml

# Finds vocabularies: the shipped ones by name, any other by its file.


_FILE_SUFFIXES = (".yaml", ".yml", ".txt", ".csv", ".tsv", ".json")

ZERO_SHOT_VOCABULARY = "charades@1"
"""The anchors of a backbone that no run chose any for."""


def shipped_vocabularies() -> dict[str, list[int]]:
    """Names of the shipped vocabularies and their versions, both ascending."""
    versions_of: dict[str, list[int]] = {}
    for path in sorted(shipped_folder("anchors").glob("*@*.yaml")):
        if match := re.fullmatch(rf"({NAME_PATTERN})@([0-9]+)", path.stem):
            versions_of.setdefault(match[1], []).append(int(match[2]))
    return {name: sorted(versions) for name, versions in sorted(versions_of.items())}


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
    # Shipped names first: `charades` means the same in every folder, whatever lies in it.
    if name in known and (version.isdecimal() or "@" not in text):
        wanted = int(version) if version else known[name][-1]
        if wanted in known[name]:
            return load_shipped(name, wanted)
        has = ", ".join(f"{name}@{shipped}" for shipped in known[name])
        raise VocabularyError(f"there is no vocabulary {text!r}; there is {has}")
    path = Path(name_or_path)
    if path.suffix.lower() in _FILE_SUFFIXES or os.sep in text or "/" in text or path.is_file():
        if path.suffix.lower() in (".yaml", ".yml"):
            return load_vocabulary(path)
        return build_vocabulary(path).vocabulary
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
    hint = f"did you mean {near[0]!r}?" if near else f"there is {', '.join(known)}."
    raise VocabularyError(f"there is no vocabulary {text!r}; {hint} A file is named by its path, such as ./labels.txt")


# Vocabularies from vocabularies: the union of several, a seeded subset of one.


@dataclass(frozen=True, slots=True)
class Merged:
    """A union of vocabularies.

    Attributes:
        removed: Exact duplicates that were left out, as "'label' of a@1, already in b@1".
    """

    vocabulary: Vocabulary
    removed: tuple[str, ...] = ()


def merge(
    parts: Sequence[Vocabulary], *, name: str | None = None, version: int = 1, note: str = "", prompt: str | None = None
) -> Merged:
    """Concatenate vocabularies in order; of exactly equal labels the first stays.

    Ids become `part/id`, whatever else is merged; ids that already name a part stay.

    Without `name` the result has the parts' names joined by "+"; a `prompt` is needed when theirs differ.

    Raises:
        VocabularyError: Fewer than two parts, differing prompts, or ids that collide.
    """
    if len(parts) < 2:
        raise VocabularyError("merge needs at least two vocabularies; name two, such as charades and coco")
    prompts = {part.prompt for part in parts}
    if prompt is None and len(prompts) > 1:
        raise VocabularyError(
            f"the prompts of {', '.join(part.reference for part in parts)} differ "
            f"({'; '.join(sorted(prompts))}); choose one with --prompt"
        )
    # The paper's "Charades+COCO" is 157 + 91 = 248 labels, none of them shared; it prints 258 (docs/science.md, reading
    # 19).
    first_in: dict[str, str] = {}
    pairs: list[tuple[str, str]] = []
    removed = []
    for part in parts:
        for label in part.labels:
            # Equal texts alone. Whether "person" and "a person" are one concept is not for a program to say.
            if label.text in first_in:
                removed.append(f"{label.text!r} of {part.reference}, already in {first_in[label.text]}")
                continue
            first_in[label.text] = part.reference
            # An id that names its part stays, or a further merge would give the same label another id.
            named = re.match(rf"{NAME_PATTERN}/", label.id)
            pairs.append((label.id if named else f"{part.name}/{label.id}", label.text))
    vocabulary = make_vocabulary(
        pairs,
        where=f"merging {', '.join(part.reference for part in parts)}",
        name=name or "+".join(part.name for part in parts),
        version=version,
        source="; ".join(f"{part.reference}: {part.source}" for part in parts),
        licence="; ".join(f"{part.reference}: {part.licence}" for part in parts),
        note=note,
        prompt=prompt or parts[0].prompt,
    )
    return Merged(vocabulary, tuple(removed))


def subset(vocabulary: Vocabulary, count: int, seed: int = 0) -> Vocabulary:
    """A seeded sample of `count` labels in their old order (docs/science.md, reading 20).

    Labels are drawn by the SHA-256 of seed and id, so the sample is the same on every machine and in every
    version of Python and numpy, and for one seed a smaller subset lies inside every larger one.

    Raises:
        VocabularyError: `count` is below 2 or above the number of labels.
    """
    if not 2 <= count <= len(vocabulary):
        raise VocabularyError(
            f"{vocabulary.reference} has {len(vocabulary)} labels: a subset of {count} cannot be drawn; "
            f"choose 2 to {len(vocabulary)}"
        )

    # The paper draws once, at random. Nested subsets compare 50 with 100 anchors without drawing other labels as well.
    def draw(label_id: str) -> bytes:
        return hashlib.sha256(f"{seed}\n{label_id}".encode()).digest()

    chosen = set(sorted((label.id for label in vocabulary.labels), key=draw)[:count])
    note = f"{count} of {len(vocabulary)} labels of {vocabulary.reference} ({vocabulary.digest}), seed {seed}"
    return make_vocabulary(
        ((label.id, label.text) for label in vocabulary.labels if label.id in chosen),
        where=f"subset of {vocabulary.reference}",
        **{**vocabulary.model_dump(exclude={"labels"}), "name": f"{vocabulary.name}-{count}-seed{seed}", "note": note},
    )


# Writes vocabularies so that a name and a version mean the same labels for ever.


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
    # By bytes: `format_vocabulary` writes equal vocabularies alike.
    return "unchanged" if read_regular(path) == format_vocabulary(vocabulary).encode() else "reworded"


def publish(vocabulary: Vocabulary, path: Path) -> Status:
    """Write `vocabulary` to `path` unless it is there; see `publication_status`.

    Raises:
        VocabularyError: As there; also when a shipped vocabulary of that name and version holds other labels.
        BadInput: `path` is a folder, or a disk.
        RunFailed: The file cannot be written.
    """
    # In another folder too: two results on `charades@1` must be on the same labels.
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


# Verifies vocabularies: schema, digest, file name, and that the shipped ones follow from their sources.


@dataclass(frozen=True, slots=True)
class Checked:
    """What checking one vocabulary found.

    Attributes:
        name: `name@version`, or the file as it was given.
        n_labels: K, or None where it could not be read.
        fault: What is wrong, or None.
    """

    name: str
    n_labels: int | None
    fault: str | None = None


def check(name_or_path: str) -> Checked:
    """Check one vocabulary by name or file: schema, repeats, digest."""
    try:
        vocabulary = resolve_vocabulary(name_or_path)
    except VocabularyError as fault:
        return Checked(name_or_path, None, str(fault))
    return Checked(name_or_path, len(vocabulary))


def check_shipped() -> list[Checked]:
    """Check every shipped vocabulary, and that its newest version is what its source gives."""
    known = shipped_vocabularies()
    checked = [
        Checked(path.name, None, f"{path} is not named NAME@VERSION.yaml")
        for path in sorted(shipped_folder("anchors").glob("*.y*ml"))
        if not any(path == shipped_path(name, version) for name in known for version in known[name])
    ]
    sources = load_sources()
    for name, versions in known.items():
        for version in versions:
            # Older versions need not follow from today's source: they stay as they were published.
            checked.append(_check_one(name, version, follows=name in sources and version == versions[-1]))
    for name, source in sources.items():
        if source.version not in known.get(name, ()):
            fault = f"{name}@{source.version} was not built from its source: see scripts/publish_anchors.py"
            checked.append(Checked(f"{name}@{source.version}", None, fault))
    return checked


def _check_one(name: str, version: int, *, follows: bool) -> Checked:
    reference = f"{name}@{version}"
    try:
        vocabulary = load_shipped(name, version)
        if follows and rebuild(name).status == "reworded":
            fault = f"{reference} and its source differ in source, licence or note: see scripts/publish_anchors.py"
            return Checked(reference, len(vocabulary), fault)
    except VocabularyError as fault:
        return Checked(reference, None, str(fault))
    return Checked(reference, len(vocabulary))


# What the shipped vocabularies follow from: sources that ship with them (`anchors/sources/`). Nothing here writes into
# the installation; scripts/publish_anchors.py does, in a checkout.


_WHAT = "vocabulary sources"


class LabelSource(BaseModel):
    """How one shipped vocabulary is made: from a label list, or by merging others."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    version: int
    labels: str | None = None
    merge: list[str] | None = None
    source: str | None = None
    licence: str | None = None
    note: str = ""

    @model_validator(mode="after")
    def _one_way(self) -> LabelSource:
        if (self.labels is None) == (self.merge is None):
            raise ValueError("needs either 'labels' or 'merge'")
        return self


@dataclass(frozen=True, slots=True)
class Rebuilt:
    """What rebuilding a shipped vocabulary came to.

    Attributes:
        built: The vocabulary, and the repeats that were left out.
        status: What happens to the file; see `publication_status`.
    """

    built: Built
    path: Path
    status: Status


def load_sources() -> dict[str, LabelSource]:
    """The shipped vocabularies' sources by name, in an order in which merges come after their parts.

    Raises:
        VocabularyError: The file is missing or wrong.
    """
    path = shipped_folder("anchors") / "sources" / "sources.yaml"
    document = load_yaml(path, what=_WHAT, error=VocabularyError)
    if not isinstance(document, dict):
        raise VocabularyError(f"{_WHAT}: {path} must map names to sources")
    sources: dict[str, LabelSource] = {}
    for name, fields in document.items():
        try:
            sources[str(name)] = LabelSource.model_validate(fields)
        except ValidationError as fault:
            first = fault.errors()[0]
            key = ".".join(map(str, (name, *first["loc"])))
            raise VocabularyError(f"{_WHAT}: {path}, {key}: {first['msg']}") from None
        # Only what stands above may be merged, so no cycle can be written down.
        unknown = set(sources[str(name)].merge or ()) - set(sources)
        if unknown:
            raise VocabularyError(f"{_WHAT}: {path}, {name}: {unknown.pop()!r} does not stand above it")
    return sources


def build_from_source(name: str) -> Built:
    """Make the newest version of a shipped vocabulary from its source.

    Raises:
        VocabularyError: No such source, or a faulty one.
    """
    sources = load_sources()
    if name not in sources:
        raise VocabularyError(f"there is no built-in source {name!r}; there is {', '.join(sources)}")
    source = sources[name]
    if source.merge is not None:
        parts = [build_from_source(part).vocabulary for part in source.merge]
        merged = merge(parts, name=name, version=source.version, note=source.note)
        return Built(merged.vocabulary, dropped=merged.removed)
    return build_vocabulary(
        shipped_folder("anchors") / "sources" / str(source.labels),
        name=name,
        version=source.version,
        source=source.source,
        licence=source.licence,
        note=source.note,
    )


def rebuild(name: str) -> Rebuilt:
    """Compare a shipped vocabulary with what its source gives; nothing is written.

    Raises:
        VocabularyError: The labels, ids or prompt differ under the same version: what is published stays.
    """
    built = build_from_source(name)
    path = shipped_path(built.vocabulary.name, built.vocabulary.version)
    return Rebuilt(built, path, publication_status(built.vocabulary, path))
