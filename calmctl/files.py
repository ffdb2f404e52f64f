"""Files that appear whole or not at all, and digests of what is in them."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Callable
from itertools import chain, count
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


def unused(path: Path) -> Path:
    """`path`, or where something lies there, the first free one of `NAME-2.SUFFIX`, `NAME-3.SUFFIX`, ..."""
    others = (path.with_name(f"{path.stem}-{number}{path.suffix}") for number in count(2))
    return next(each for each in chain([path], others) if not each.exists())


def remove_unfinished(folder: Path) -> None:
    """Remove the temporary files that a killed `write_atomic` left in `folder`, which nobody else may be writing."""
    for unfinished in folder.glob(".*.tmp"):
        unfinished.unlink(missing_ok=True)


def read_json(path: Path, *, what: str, error: type[BadInput] = BadInput) -> Any:
    """Read JSON from `path`; any fault becomes `error`, naming `what` and the place."""
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        raise error(f"{what}: {path} does not exist") from None
    except OSError as fault:
        raise error(f"{what}: cannot read {path}: {fault.strerror or fault}") from fault
    except json.JSONDecodeError as fault:
        raise error(f"{what}: {path} is not JSON (line {fault.lineno}: {fault.msg})") from None
    except (ValueError, RecursionError) as fault:  # not UTF-8, a number too long to read, nesting too deep
        raise error(f"{what}: {path} is not JSON ({type(fault).__name__})") from None


def sha256_bytes(content: bytes) -> str:
    """Hexadecimal SHA-256 of `content`."""
    return hashlib.sha256(content).hexdigest()


def sha256_file(path: Path) -> str:
    """Hexadecimal SHA-256 of a file, read in pieces."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
