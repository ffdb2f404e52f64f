"""Tokens of references, kept in the user's cache folder under the digest of what they were made from."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from calmctl.errors import RunFailed
from calmctl.files import read_regular, sha256_bytes, write_bytes

_MOST_BYTES = 1 << 30
_KEPT = 16  # sets of references; MSR-VTT's test set is 3 MB


def cache_folder() -> Path:
    """Where token files lie: under $XDG_CACHE_HOME, or ~/.cache."""
    root = os.environ.get("XDG_CACHE_HOME")
    return (Path(root) if root else Path.home() / ".cache") / "calmctl" / "caption-tokens"


def cached(kind: str, captions: Sequence[str], tokenize: Callable[[], list[str]]) -> list[str]:
    """What `tokenize` returns for `captions`, from the cache where it was kept before.

    A file that is damaged is made again, and a folder that cannot be written is done without: neither changes
    a result. `kind` names the tokenizer and its version. Captions and tokens must be single lines.
    """
    asked = "\n".join([kind, *captions])
    try:
        path = cache_folder() / f"{sha256_bytes(asked.encode('utf-8'))}.txt"
    except RuntimeError:  # a user without a home, as containers have
        return tokenize()
    kept = _read(path, len(captions))
    if kept is not None:
        return kept
    tokens = tokenize()
    content = "\n".join(tokens).encode("utf-8")
    with contextlib.suppress(RunFailed, OSError):
        write_bytes(path, sha256_bytes(content).encode("ascii") + b"\n" + content)
        _prune(path.parent)
    return tokens


def _read(path: Path, n_lines: int) -> list[str] | None:
    try:
        digest, _, content = read_regular(path, _MOST_BYTES).partition(b"\n")
        if sha256_bytes(content).encode("ascii") != digest:
            return None
        os.utime(path)  # used last, dropped last
    except OSError:
        return None
    lines = content.decode("utf-8").split("\n")
    return lines if len(lines) == n_lines else None


def _prune(folder: Path) -> None:
    files = sorted(folder.glob("*.txt"), key=lambda path: path.stat().st_mtime, reverse=True)
    for path in files[_KEPT:]:
        path.unlink(missing_ok=True)
