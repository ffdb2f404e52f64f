"""Verifies vocabularies: schema, digest, file name, and that the shipped ones follow from their sources."""

from __future__ import annotations

from dataclasses import dataclass

from calmctl.anchors.shipped import load_shipped, resolve_vocabulary, shipped_path, shipped_vocabularies
from calmctl.anchors.sources import load_sources, rebuild
from calmctl.errors import VocabularyError
from calmctl.shipped import shipped_folder


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
            checked.append(_check_one(name, version, follows=name in sources and version == versions[-1]))
    for name, source in sources.items():
        if source.version not in known.get(name, ()):
            fault = f"{name}@{source.version} was not built from its source: run 'calmctl anchors build'"
            checked.append(Checked(f"{name}@{source.version}", None, fault))
    return checked


def _check_one(name: str, version: int, *, follows: bool) -> Checked:
    reference = f"{name}@{version}"
    try:
        vocabulary = load_shipped(name, version)
        if follows and rebuild(name).status == "reworded":
            fault = f"{reference} and its source differ in source, licence or note: run 'calmctl anchors build'"
            return Checked(reference, len(vocabulary), fault)
    except VocabularyError as fault:
        return Checked(reference, None, str(fault))
    return Checked(reference, len(vocabulary))
