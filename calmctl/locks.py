"""Processes side by side: a folder that one of them holds, a file that one is writing, and what killed ones left."""

from __future__ import annotations

import errno
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from calmctl.errors import CalmError, RunFailed

# All locks are the system's, which lets go of them when a process ends, however it ends: none outlives its owner.

LOCK = ".lock"
"""The file in a folder that stands for the folder."""

_WITHOUT_LOCKS = {errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP}


@contextmanager
def locked(folder: Path, busy: CalmError, on_wait: Callable[[], None] | None = None) -> Iterator[None]:
    """Hold a folder for this process alone; the system lets go of it when the process ends, however it ends.

    Where a file system has no locks a file with this process's number stands for one. A process that was killed
    leaves it, which the next process on the same machine notices.

    Args:
        folder: It must exist.
        busy: What is raised where another process holds it.
        on_wait: Called before waiting for the other process; None raises `busy` instead.

    Raises:
        RunFailed: The folder cannot be written.
    """
    from filelock import BaseFileLock, FileLock, SoftFileLock, Timeout

    lock: BaseFileLock = FileLock(folder / LOCK, fallback_to_soft=False)
    way_out = ""
    try:
        try:
            lock.acquire(blocking=False)
        except OSError as fault:
            if fault.errno not in _WITHOUT_LOCKS:
                raise
            lock = SoftFileLock(folder / ".lock.process")
            way_out = f"; {lock.lock_file} names that process: delete it if it has ended"
            lock.acquire(timeout=1)  # what it takes to see that the process of an old file is gone
    except Timeout:
        if on_wait is None:
            raise type(busy)(f"{busy}{way_out}") from None
        on_wait()
        lock.acquire()
    except OSError as fault:
        raise RunFailed(f"cannot write {folder}: {fault.strerror or fault}; choose another folder") from fault
    try:
        yield
    finally:
        lock.release()


# A process that writes a temporary file holds it, so that others can tell it from one that a killed process left.

_STALE_S = 3600.0  # nobody writes one file for so long


def held_file(path: Path) -> tuple[int, str]:
    """A new temporary file beside `path`, held as long as its descriptor is open."""
    while True:
        descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
        try:
            if _hold(descriptor) is not False and os.fstat(descriptor).st_nlink:
                return descriptor, temporary
        except BaseException:
            os.close(descriptor)
            Path(temporary).unlink(missing_ok=True)
            raise
        os.close(descriptor)  # another process took it for abandoned before it was held: it removes it


def _hold(descriptor: int) -> bool | None:
    """Hold an open file for this process; whether it could, or None where a file system has no locks."""
    from filelock import lock_descriptor

    if os.name == "nt":  # nobody removes there what is open
        return True
    try:
        return lock_descriptor(descriptor, blocking=False)
    except OSError as fault:
        if fault.errno not in _WITHOUT_LOCKS:
            raise
        return None


def remove_unfinished(folder: Path, name: str = "") -> None:
    """Remove the temporary files that killed processes left in `folder`, of all files or of `name` alone."""
    begins = f".{name}." if name else "."
    try:
        entries = list(os.scandir(folder))
    except OSError:  # there is none, or its names are not for everybody
        return
    for each in entries:
        if each.name.startswith(begins) and each.name.endswith(".tmp") and not each.is_dir(follow_symlinks=False):
            with suppress(OSError):  # another process removes it, too, or it is another person's
                if _is_abandoned(each):
                    os.unlink(each)


def _is_abandoned(file: os.DirEntry[str]) -> bool:
    if not file.is_file(follow_symlinks=False):
        return True
    descriptor = os.open(file, os.O_RDWR | getattr(os, "O_BINARY", 0))
    try:
        held = _hold(descriptor)
        return held if held is not None else time.time() - file.stat().st_mtime > _STALE_S
    finally:
        os.close(descriptor)
