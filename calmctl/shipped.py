"""Where the vocabularies and recipes that come with the package lie."""

from __future__ import annotations

from pathlib import Path


def shipped_folder(name: str) -> Path:
    """The folder `anchors` or `recipes`: at a checkout's top, inside the package in an installed wheel."""
    package = Path(__file__).parent
    installed = package / "_shipped" / name
    return installed if installed.is_dir() else package.parent / name
