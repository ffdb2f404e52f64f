"""Processes side by side: a folder that one of them holds, a file that one is writing, and what killed ones left."""

from __future__ import annotations

import errno
import os
import shutil
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


# A process holds the temporary file or folder that it fills, so that others can tell it from what a killed one left.

UNFINISHED = ".calmctl-"
"""What names of temporary files begin with: in a person's folder, nothing else with such a suffix is ours."""
_STALE_S = 3600.0  # where nothing can be held: nobody fills one for so long
_tidied: set[str] = set()


def held_file(folder: Path) -> tuple[int, str]:
    """A new temporary file in `folder`, held as long as its descriptor is open."""
    while True:
        descriptor, temporary = tempfile.mkstemp(prefix=UNFINISHED, suffix=".tmp", dir=folder)
        try:
            if _hold(descriptor) is not False and os.fstat(descriptor).st_nlink:
                return descriptor, temporary
        except BaseException:
            os.close(descriptor)
            with suppress(OSError):
                os.unlink(temporary)
            raise
        os.close(descriptor)  # another process took it for abandoned before it was held: it removes it


@contextmanager
def held_folder(folder: Path) -> Iterator[Path]:
    """A new temporary folder in `folder`, held in the block; what is left of it is removed afterwards."""
    while True:
        made = Path(tempfile.mkdtemp(prefix=UNFINISHED, suffix=".tmp", dir=folder))
        try:
            with _opened(made) as descriptor:
                if descriptor is None or (_hold(descriptor) is not False and os.fstat(descriptor).st_nlink):
                    yield made
                    return
        finally:
            shutil.rmtree(made, ignore_errors=True)


def tidy(folder: Path) -> None:
    """Remove what killed processes left in `folder`, which may be a person's; looked for once a process."""
    where = os.path.abspath(folder)
    if where not in _tidied:
        _tidied.add(where)
        _remove_abandoned(folder, UNFINISHED)


def remove_unfinished(folder: Path) -> None:
    """Remove every temporary file that killed processes left in `folder`, which is ours: old versions' names too."""
    _remove_abandoned(folder, ".")


def _remove_abandoned(folder: Path, begins: str) -> None:
    try:
        entries = [each for each in os.scandir(folder) if each.name.startswith(begins) and each.name.endswith(".tmp")]
    except OSError:  # there is none, or its names are not for everybody
        return
    for each in entries:
        with suppress(OSError):  # another process removes it, too, or it is another person's
            if each.is_dir(follow_symlinks=False):
                if each.name.startswith(UNFINISHED) and _is_abandoned(each):
                    shutil.rmtree(each)
            elif not each.is_file(follow_symlinks=False) or _is_abandoned(each):
                os.unlink(each)


def _is_abandoned(entry: os.DirEntry[str]) -> bool:
    with _opened(entry.path) as descriptor:
        held = None if descriptor is None else _hold(descriptor)
        return held if held is not None else time.time() - entry.stat().st_mtime > _STALE_S


@contextmanager
def _opened(path: str | Path) -> Iterator[int | None]:
    """A file or folder to be held, or None where the system holds no folders."""
    folder = os.path.isdir(path)
    if os.name == "nt" and folder:
        yield None
        return
    # To be written to, as network disks want it of a file that is held.
    descriptor = os.open(path, os.O_RDONLY if folder else os.O_RDWR | getattr(os, "O_BINARY", 0))
    try:
        yield descriptor
    finally:
        os.close(descriptor)


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
