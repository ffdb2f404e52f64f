"""What a check of a dataset found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of a check.

    Attributes:
        part: What kind of thing it is about.
        name: The file, or the split.
        state: "unused" is for an annotation file that another one makes superfluous, "note" for what costs nothing.
        text: What was found; for a missing file also what it is for and who gives it out.
    """

    part: Literal["annotation file", "split", "video files", "shared file", "notes", "not read", "decoding"]
    name: str
    state: Literal["ok", "unused", "note", "missing", "wrong"]
    text: str


@dataclass(frozen=True, slots=True)
class CheckReport:
    """What was found.

    Attributes:
        dataset: Its name.
        protocol: "" where there is only one.
        annotations: Folders in which annotation files were looked for.
        videos: Folders in which clips were looked for.
        findings: In the order of a table.
        missing: For each split the clips without a file, {id: reason}.
        unread: Folders and files that were not read or followed, {name: reason}; what is in them is lost.
        undecodable: For each split the clips that do not decode, {id: reason}; None unless they were tried.
    """

    dataset: str
    protocol: str
    annotations: tuple[Path, ...]
    videos: tuple[Path, ...]
    findings: tuple[Finding, ...]
    missing: Mapping[str, Mapping[str, str]]
    unread: Mapping[str, str] = field(default_factory=dict)
    undecodable: Mapping[str, Mapping[str, str]] | None = None

    @property
    def complete(self) -> bool:
        """Nothing is missing and nothing is wrong."""
        return all(finding.state in ("ok", "unused", "note") for finding in self.findings)

    def as_json(self) -> dict[str, Any]:
        """The report for programs."""
        folders = {"annotations": [*map(str, self.annotations)], "videos": [*map(str, self.videos)]}
        return {**asdict(self), **folders, "complete": self.complete}
