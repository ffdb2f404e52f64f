"""Rebuilds the shipped vocabularies from their sources, which ship with them (`anchors/sources/`)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from calmctl.anchors.builders import Built, build_vocabulary
from calmctl.anchors.combine import merge
from calmctl.anchors.publish import Status, publication_status
from calmctl.anchors.shipped import shipped_path
from calmctl.anchors.vocabulary import save_vocabulary
from calmctl.errors import VocabularyError
from calmctl.shipped import shipped_folder
from calmctl.yaml_strict import load_yaml

_WHAT = "vocabulary sources"


class Source(BaseModel):
    """How one shipped vocabulary is made: from a label list, or by merging others."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    version: int
    labels: str | None = None
    merge: list[str] | None = None
    source: str | None = None
    licence: str | None = None
    note: str = ""

    @model_validator(mode="after")
    def _one_way(self) -> Source:
        if (self.labels is None) == (self.merge is None):
            raise ValueError("needs either 'labels' or 'merge'")
        return self


@dataclass(frozen=True, slots=True)
class Rebuilt:
    """What rebuilding a shipped vocabulary came to.

    Attributes:
        built: The vocabulary, and the repeats that were left out.
        path: Its shipped file.
        status: What happens to the file; see `publication_status`.
    """

    built: Built
    path: Path
    status: Status


def load_sources() -> dict[str, Source]:
    """The shipped vocabularies' sources by name, in an order in which merges come after their parts.

    Raises:
        VocabularyError: The file is missing or wrong.
    """
    path = shipped_folder("anchors") / "sources" / "sources.yaml"
    document = load_yaml(path, what=_WHAT, error=VocabularyError)
    if not isinstance(document, dict):
        raise VocabularyError(f"{_WHAT}: {path} must map names to sources")
    sources: dict[str, Source] = {}
    for name, fields in document.items():
        try:
            sources[str(name)] = Source.model_validate(fields)
        except ValidationError as fault:
            first = fault.errors()[0]
            key = ".".join(map(str, (name, *first["loc"])))
            raise VocabularyError(f"{_WHAT}: {path}, {key}: {first['msg']}") from None
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


def build_shipped() -> list[Rebuilt]:
    """Rebuild every shipped vocabulary, writing only what is new or reworded.

    Raises:
        VocabularyError: As `rebuild`; nothing is written then.
        RunFailed: A file cannot be written.
    """
    results = [rebuild(name) for name in load_sources()]
    for result in results:
        if result.status != "unchanged":
            save_vocabulary(result.built.vocabulary, result.path)
    return results
