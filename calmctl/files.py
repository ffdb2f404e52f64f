"""Files that appear whole or not at all, and digests of what is in them."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from calmctl.errors import BadInput, RunFailed

# Read once: the process mask can only be read by setting it, which is not safe beside other threads.
_UMASK = os.umask(0)
os.umask(_UMASK)


def write_atomic(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Let `write` fill a temporary file beside `path`, then put it in place.

    The bytes are on disk (fsync) before the rename, so a killed process leaves the old file or the new
    one. Raises `RunFailed` when the folder is not writable or the disk is full; nothing is left behind then.
    """
    temporary: str | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
        with os.fdopen(descriptor, "wb") as handle:
            write(handle)
            handle.flush()
            os.fsync(handle.fileno())
        os.chmod(temporary, 0o666 & ~_UMASK)
        os.replace(temporary, path)
        temporary = None
    except OSError as error:
        raise _cannot_write(path, error) from error
    finally:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)


def _cannot_write(path: Path, error: OSError) -> RunFailed:
    return RunFailed(f"cannot write {path}: {error.strerror or error}; free space or choose another folder")


def write_bytes(path: Path, content: bytes) -> None:
    """Write `content` atomically."""
    write_atomic(path, lambda handle: handle.write(content))


def write_text(path: Path, content: str) -> None:
    """Write `content` atomically as UTF-8."""
    write_bytes(path, content.encode("utf-8"))


def write_json(path: Path, value: Any) -> None:
    """Write `value` atomically as indented JSON; NaN and infinities are refused."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def make_folder(folder: Path) -> None:
    """Make a folder where there is none. Raises `RunFailed` when it cannot."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _cannot_write(folder, error) from error


def append_text(path: Path, text: str) -> None:
    """Add `text` to the end of a file. Raises `RunFailed` when it cannot; its last line may be cut short then."""
    try:
        with path.open("ab") as handle:
            handle.write(text.encode("utf-8"))
    except OSError as error:
        raise _cannot_write(path, error) from error


def remove_unfinished(folder: Path) -> None:
    """Remove the temporary files that a killed `write_atomic` left in `folder`, which nobody else may be writing."""
    for unfinished in folder.glob(".*.tmp"):
        unfinished.unlink(missing_ok=True)


def read_json(path: Path, *, what: str, error: type[BadInput] = BadInput) -> Any:
    """Read JSON from `path`; any fault becomes `error`, naming `what` and the place."""
    try:
        return parse_json(path.read_bytes())
    except FileNotFoundError:
        raise error(f"{what}: {path} does not exist") from None
    except OSError as fault:
        raise error(f"{what}: cannot read {path}: {fault.strerror or fault}") from fault
    except NotJson as fault:
        raise error(f"{what}: {path} {fault}") from None


class NotJson(ValueError):
    """Why a text is not read as JSON, in words that follow the name of its file."""


def parse_json(text: str | bytes) -> Any:
    """JSON in which no object has a key twice: JSON's readers keep the last one and say nothing.

    Raises:
        NotJson: It is not JSON, or a key stands twice in one object.
    """
    try:
        return json.loads(text, object_pairs_hook=_without_repeats)
    except NotJson:
        raise
    except json.JSONDecodeError as fault:
        line = f"line {fault.lineno}: " if fault.lineno > 1 else ""
        raise NotJson(f"is not JSON ({line}{fault.msg})") from None
    except UnicodeDecodeError:
        raise NotJson("is not JSON that can be read: it is not UTF-8") from None
    except (ValueError, RecursionError):
        raise NotJson("is not JSON that can be read: it is nested too deeply, or holds a number too long") from None


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise NotJson(
                    f"is not JSON that can be read whole: {key[:80]!r} stands twice in one object, and only the last "
                    "would be kept; write its values as one list, or remove one"
                )
            seen.add(key)
    return values


def sha256_bytes(content: bytes) -> str:
    """Hexadecimal SHA-256 of `content`."""
    return hashlib.sha256(content).hexdigest()


def sha256_file(path: Path) -> str:
    """Hexadecimal SHA-256 of a file, read in pieces."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
