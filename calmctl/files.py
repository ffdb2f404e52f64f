"""Files that appear whole or not at all, digests of what is in them, and where the shipped ones lie."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import stat
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import lru_cache
from io import BufferedReader
from itertools import chain, count, pairwise
from pathlib import Path
from typing import Any, BinaryIO

from calmctl.errors import BadInput, CalmError, RunFailed

# Data come from strangers: what should be a file may be a link to a device that never ends or to a pipe that never
# answers. `open_regular` is the one door that readers use. `write_atomic` is for files of ours, `write_output` for the
# files that a person names on the command line, where something else may stand already.


# Read once: the process mask can only be read by setting it, which is not safe beside other threads.
_UMASK = os.umask(0)
os.umask(_UMASK)

MOST_JSON_BYTES = 1024**3
"""A larger JSON file is not read (our choice; the largest published annotations have 16 MB)."""
_LINKS = 40  # as many as Linux follows
_PIECES, _PIECE = 16, 1 << 16

# --- reading ---------------------------------------------------------------------------------------------


def open_regular(path: Path, most_bytes: int | None = None) -> BufferedReader:
    """Open a regular file for reading.

    Raises `OSError`, whose `strerror` says it, for a device, a pipe, a folder, and for more than `most_bytes`.
    """
    _require_regular(os.stat(path), most_bytes)  # before it is opened: to open a device may already do something
    # Checked again on the open file, because a path may change between the two looks; O_NONBLOCK so that a pipe put
    # there in between cannot hold us.
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    handle = os.fdopen(os.open(path, flags), "rb")
    try:
        _require_regular(os.fstat(handle.fileno()), most_bytes)
    except OSError:
        handle.close()
        raise
    return handle


def _require_regular(status: os.stat_result, most_bytes: int | None = None) -> None:
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, f"it is {_kind(status.st_mode)}, not a file")
    if most_bytes is not None and status.st_size > most_bytes:
        raise OSError(errno.EFBIG, f"it is larger than {most_bytes / 1024**2:,.0f} MiB")


def _kind(mode: int) -> str:
    if stat.S_ISBLK(mode):
        return "a disk"
    return "a device" if stat.S_ISCHR(mode) else "a pipe" if stat.S_ISFIFO(mode) else "a socket"


def read_regular(path: Path, most_bytes: int | None = None) -> bytes:
    """A whole regular file; raises `OSError` as `open_regular` does."""
    with open_regular(path, most_bytes) as handle:
        return handle.read()


def read_json(path: Path, *, what: str, error: type[BadInput] = BadInput, most_bytes: int = MOST_JSON_BYTES) -> Any:
    """Read JSON from `path`; any fault becomes `error`, naming `what` and the place."""
    try:
        return parse_json(read_regular(path, most_bytes))
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
    """Hexadecimal SHA-256 of a regular file, read in pieces."""
    with open_regular(path) as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def stamp(path: Path) -> list[int]:
    """Size, time of change, time of change of its entry, and inode: what no copy of a file shares with it.

    A person may set the second, nobody the third: a file that was unpacked, copied or written to has another stamp.
    """
    status = os.stat(path)
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]


def content_digest(path: Path) -> str:
    """A digest of a large file's content: of all of it up to 1 MiB, of 16 pieces spread over it beyond.

    Two videos of one length differ in nearly every byte, so pieces tell them apart, and a film is not read through.
    """
    return _content_digest(str(path), tuple(stamp(path)))


@lru_cache(maxsize=4096)  # a long video has a thousand windows, all of one file
def _content_digest(path: str, stamped: tuple[int, ...]) -> str:
    size = stamped[0]
    digest = hashlib.sha256(str(size).encode())
    with open_regular(Path(path)) as handle:
        if size <= _PIECES * _PIECE:
            digest.update(handle.read(_PIECES * _PIECE))
        else:
            for number in range(_PIECES):
                handle.seek((size - _PIECE) * number // (_PIECES - 1))
                digest.update(handle.read(_PIECE))
    return digest.hexdigest()[:32]


# --- writing files of ours -------------------------------------------------------------------------------


def write_atomic(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Let `write` fill a temporary file beside `path`, then put it in place.

    The bytes are on disk (fsync) before the rename, so a killed process leaves the old file or the new one, and a
    temporary file that the next one which writes into that folder removes. A file keeps its mode; a link is replaced,
    not followed: where it leads may be no file of ours.
    Raises `RunFailed` when the folder is not writable or the disk is full; nothing is left behind then.
    """
    temporary: str | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        mode = _mode_to_keep(path)
        _remove_abandoned(path.parent)
        while True:
            descriptor, temporary = tempfile.mkstemp(prefix=_UNFINISHED, suffix=".tmp", dir=path.parent)
            if _hold(descriptor, wait=True):
                break
            os.close(descriptor)  # it was taken for an abandoned one, before it was held
        with os.fdopen(descriptor, "wb") as handle:
            write(handle)
            handle.flush()
            os.fsync(descriptor)
            os.chmod(temporary, mode)
            if os.name == "nt":  # which renames no open file
                handle.close()
            # Elsewhere while it is held: from here on it is no temporary file.
            os.replace(temporary, path)
            temporary = None
    except OSError as error:
        raise _cannot_write(path, error) from error
    finally:
        if temporary is not None:
            with suppress(OSError):  # what went wrong is told, and not that the rest could not be removed either
                os.unlink(temporary)


_UNFINISHED = ".calmctl-"
_tidied: set[str] = set()


def _remove_abandoned(folder: Path) -> None:
    """Remove the temporary files of processes that are gone, and so hold them no more; looked for once a process."""
    where = os.path.abspath(folder)
    if where in _tidied:
        return
    _tidied.add(where)
    for path in folder.glob(f"{_UNFINISHED}*.tmp"):
        with suppress(OSError), _opened(path) as descriptor:
            if _hold(descriptor, wait=False):
                shutil.rmtree(path) if path.is_dir() else os.unlink(path)


@contextmanager
def _opened(path: str | Path) -> Iterator[int]:
    """A file or a folder, for a lock."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """Fill another folder in the block, which becomes `folder` when all of it is there, or vanishes.

    Raises:
        BadInput: There is something in `folder` already.
        RunFailed: It cannot be written.
    """
    there = folder.exists()  # it is filled then, because it may be the current one, or a disk of its own
    place, unfinished, moved = folder if there else folder.parent, None, []
    try:
        if not there or folder.is_dir():
            place.mkdir(parents=True, exist_ok=True)
            _remove_abandoned(place)
        if there and (not folder.is_dir() or any(folder.iterdir())):
            raise BadInput(f"{folder} exists and is not empty; name a new folder, so that nothing of yours is lost")
        unfinished = Path(tempfile.mkdtemp(prefix=_UNFINISHED, suffix=".tmp", dir=place))
        with _opened(unfinished) if os.name == "posix" else nullcontext(-1) as descriptor:
            _hold(descriptor, wait=True)
            yield unfinished
            if there:
                for path in sorted(unfinished.iterdir()):
                    os.replace(path, folder / path.name)
                    moved.append(folder / path.name)
            else:
                os.chmod(unfinished, 0o777 & ~_UMASK)
                os.replace(unfinished, folder)
    except OSError as error:
        for path in moved:
            with suppress(OSError):
                path.unlink()
        raise RunFailed(f"cannot create {folder}: {error.strerror}; free space or name another folder") from error
    except RunFailed as error:  # of a file in it: told by the name that it would have had
        raise RunFailed(str(error).replace(str(unfinished), str(folder))) from error
    finally:
        if unfinished is not None:
            shutil.rmtree(unfinished, ignore_errors=True)


def _hold(descriptor: int, *, wait: bool) -> bool:
    """Lock a temporary file until it is closed; whether it is there and, where this does not `wait`, was locked."""
    if os.name == "nt":  # there, and on a file system without locks, nobody removes what is abandoned
        return wait
    import fcntl

    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return wait
    return os.fstat(descriptor).st_nlink > 0


def _mode_to_keep(path: Path) -> int:
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        return 0o666 & ~_UMASK
    if stat.S_ISLNK(status.st_mode):
        return 0o666 & ~_UMASK
    _require_regular(status)
    return stat.S_IMODE(status.st_mode)


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
    """Add `text` to the end of a file, on a line of its own.

    Raises `RunFailed` when it cannot; its last line may be cut short then. Nothing before it is read or changed.
    """
    try:
        if path.is_fifo():  # it would be waited for
            raise OSError(errno.EINVAL, "it is a pipe, not a file")
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | getattr(os, "O_BINARY", 0)
        with os.fdopen(os.open(path, flags, 0o666), "r+b", buffering=0) as handle:
            begun = handle.seek(0, os.SEEK_END)
            if begun:
                handle.seek(begun - 1)
                text = text if handle.read(1) == b"\n" else "\n" + text
            # Without a buffer, a disk that is all but full takes a part of it and says so by a number alone.
            rest = text.encode("utf-8")
            while rest:
                rest = rest[handle.write(rest) :]
    except OSError as error:
        raise _cannot_write(path, error) from error


def unused(path: Path, is_taken: Callable[[Path], bool] = Path.exists) -> Path:
    """`path`, or where that is taken, the first of `NAME-2.SUFFIX`, `NAME-3.SUFFIX`, ... that is not."""
    others = (path.with_name(f"{path.stem}-{number}{path.suffix}") for number in count(2))
    return next(candidate for candidate in chain([path], others) if not is_taken(candidate))


def remove_unfinished(folder: Path) -> None:
    """Remove what a killed `write_atomic` left in `folder`, which nobody else may be writing; raises `RunFailed`."""
    for unfinished in folder.glob(".*.tmp"):
        remove(unfinished)


def remove(path: Path) -> None:
    """Remove a file, if it is there. Raises `RunFailed` when it cannot."""
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise RunFailed(f"cannot remove {path}: {error.strerror or error}") from error


# --- the files that options name -------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class OutputKind:
    """What an option writes.

    Attributes:
        name: "a page".
        is_ours: Whether a file with this content was written by calmctl and may be replaced by a newer one.
    """

    name: str
    is_ours: Callable[[bytes], bool]


def _is_subtitles_of_ours(content: bytes) -> bool:
    """Whether cues follow one another without a gap, a line each, as segments of a video do."""
    cues = re.findall(rb"(\d+)\n(\d\d+:\d\d:\d\d,\d{3}) --> (\d\d+:\d\d:\d\d,\d{3})\n[^\n]*\n(?:\n|\Z)", content)
    whole = b"".join(rb"%s\n%s --> %s\n" % cue for cue in cues)
    numbered = [int(number) for number, _, _ in cues] == list(range(1, len(cues) + 1))
    joined = all(one[2] == other[1] for one, other in pairwise(cues))
    return bool(whole) and numbered and joined and content.count(b" --> ") == len(cues)


PAGE = OutputKind(
    "a page", lambda content: bool(re.search(rb"<title>[^<]* \xc2\xb7 calmctl \w+</title>", content[: 1 << 16]))
)
SUBTITLES = OutputKind("subtitles", _is_subtitles_of_ours)
TABLE = OutputKind(
    "a table", lambda content: content[:2] in (b"{\n", b"# ") and (b'"legend"' in content or b"\nMade on " in content)
)
RANKS = OutputKind(
    "ranks", lambda content: content.startswith((b'{\n  "calmctl_ranks": 1,', b"direction,query,clip,greater,"))
)
MOMENTS = OutputKind("moments", lambda content: content.startswith(b'{"qid": '))
SCORES = OutputKind("scores", lambda content: content[:2] == b"PK" and b"owners.npy" in content)
VOCABULARY = OutputKind("a vocabulary", lambda content: True)  # `anchors.publish` compares what the file holds


def require_output(path: Path, kind: OutputKind) -> None:
    """Refuse, before any work is done, a file that `write_output` would refuse. Raises `BadInput`."""
    try:
        target = _replaced(path)
        if target is None:
            return
        if not target.exists():
            _require_place(target)
            return
        ours = kind.is_ours(read_regular(target, 1 << 30)) or not target.stat().st_size
    except IsADirectoryError:
        raise BadInput(f"{path} is a folder; name a file in it") from None
    except OSError as fault:
        raise BadInput(f"cannot write {path}: {fault.strerror or fault}; name another file") from None
    if not ours:
        raise BadInput(
            f"{path} exists and is not {kind.name} that calmctl wrote: it is not replaced; name another file, or "
            "delete this one"
        )


def _require_place(path: Path) -> None:
    """Raise `OSError` where no file and no folder for it can be made."""
    folder = next(parent for parent in path.absolute().parents if os.path.lexists(parent))
    if not folder.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, f"{folder} is no folder")
    if not os.access(folder, os.W_OK):
        raise PermissionError(errno.EACCES, f"{folder} cannot be written to")


def write_output(path: Path, content: str | bytes, kind: OutputKind) -> None:
    """Write the file that an option names; everything that has such an option uses this.

    A device, a pipe or standard output is written to. A link is followed: it stays, and what it leads to is replaced,
    if that is an earlier output of ours.

    Raises:
        BadInput: There is something else.
        RunFailed: It cannot be written.
    """
    require_output(path, kind)
    target = _replaced(path)
    content = content if isinstance(content, bytes) else content.encode("utf-8")
    if target is not None:
        write_bytes(target, content)
        return
    try:
        _write_into(path, content)
    except OSError as error:
        raise _cannot_write(path, error) from error


def _replaced(path: Path) -> Path | None:
    """The file that an output replaces or begins, behind all links; None for what is written into as it is."""
    for _ in range(_LINKS):
        folder = Path(os.path.realpath(path.parent))
        if folder.parts[1:2] == ("proc",):  # /dev/stdout and /dev/fd/3 lead there: an open file, whatever its name
            return None
        if not path.is_symlink():
            break
        path = folder / os.readlink(path)
    else:
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
    if not path.exists() or path.is_file():
        return path
    mode = path.stat().st_mode
    if stat.S_ISCHR(mode) or stat.S_ISFIFO(mode):
        return None
    _require_regular(path.stat())
    return path


def _write_into(path: Path, content: bytes) -> None:
    for stream in (sys.stdout, sys.stderr):
        try:
            descriptor = stream.fileno()
        except (OSError, AttributeError, ValueError):  # none, or one in memory
            continue
        if os.path.samestat(os.stat(path), os.fstat(descriptor)):
            stream.flush()  # what was printed comes before it, and what will be printed after it
            with os.fdopen(os.dup(descriptor), "wb") as handle:
                handle.write(content)
            return
    with open(path, "wb") as handle:
        handle.write(content)


# --- one process at a time -------------------------------------------------------------------------------

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

    lock: BaseFileLock = FileLock(folder / ".lock", fallback_to_soft=False)
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


# Where the vocabularies and recipes that come with the package lie.


def shipped_folder(name: str) -> Path:
    """The folder `anchors` or `recipes`: at a checkout's top, inside the package in an installed wheel."""
    package = Path(__file__).parent
    installed = package / "_shipped" / name
    return installed if installed.is_dir() else package.parent / name
