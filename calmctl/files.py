"""Files that appear whole or not at all, digests of what is in them, and where the shipped ones lie."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import re
import stat
import sys
import tokenize
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from io import BufferedReader
from itertools import chain, count, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from calmctl.errors import BadInput, RunFailed
from calmctl.locks import held_file, held_folder, tidy

if TYPE_CHECKING:
    import numpy as np

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
    """Read JSON from `path`; any fault becomes `error`, naming `what` and the place.

    All numbers are finite: calmctl writes no others, and could not write what it has read.
    """
    try:
        return parse_json(read_regular(path, most_bytes), finite=True)
    except FileNotFoundError:
        raise error(f"{what}: {path} does not exist") from None
    except OSError as fault:
        raise error(f"{what}: cannot read {path}: {fault.strerror or fault}") from fault
    except NotJson as fault:
        raise error(f"{what}: {path} {fault}") from None


class NotJson(ValueError):
    """Why a text is not read as JSON, in words that follow the name of its file."""


def parse_json(text: str | bytes, *, finite: bool = False) -> Any:
    """JSON in which no object has a key twice: JSON's readers keep the last one and say nothing.

    Raises:
        NotJson: It is not JSON, a key stands twice in one object, or where all must be `finite` a number is not.
    """
    number = _finite if finite else None
    try:
        return json.loads(text, object_pairs_hook=_without_repeats, parse_constant=number, parse_float=number)
    except NotJson:
        raise
    except json.JSONDecodeError as fault:
        line = f"line {fault.lineno}: " if fault.lineno > 1 else ""
        raise NotJson(f"is not JSON ({line}{fault.msg})") from None
    except UnicodeDecodeError:
        raise NotJson("is not JSON that can be read: it is not UTF-8") from None
    except (ValueError, RecursionError):
        raise NotJson("is not JSON that can be read: it is nested too deeply, or holds a number too long") from None


def _finite(number: str) -> float:
    value = float(number)
    if not math.isfinite(value):
        raise NotJson(f"is not JSON: it has a number that is {value}")
    return value


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        key = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        raise NotJson(
            f"is not JSON that can be read whole: {key[:80]!r} stands twice in one object, and only the last would be "
            "kept; write its values as one list, or remove one"
        )
    return values


_MOST_NPY_HEADER = 10_000
_HEADER_FAULTS = (ValueError, KeyError, TypeError, SyntaxError, RecursionError, tokenize.TokenError)


def npy_header(
    handle: BinaryIO, place: str, held: int, error: type[BadInput] = BadInput
) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape, order and type from the header of a .npy, behind which `handle` then stands.

    Args:
        handle: At the file's beginning.
        place: For messages.
        held: Bytes of the whole file, against which the header's claim is held before anything is set aside for it.
        error: What is raised.

    Raises:
        BadInput: It is damaged, cut short, or holds Python objects.
    """
    from numpy.lib import format as npy

    try:
        read = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}[npy.read_magic(handle)]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that Python 2 wrote it, which numpy also says of a damaged header
            shape, fortran, dtype = read(handle, max_header_size=_MOST_NPY_HEADER)
    except (*_HEADER_FAULTS, MemoryError, EOFError) as fault:
        raise error(f"{place} is not a .npy file that can be read ({str(fault)[:80] or 'truncated'})") from None
    if dtype.hasobject:
        raise error(f"{place} holds Python objects, which would have to be executed; save plain numbers or text")
    if any(side < 0 for side in shape) or math.prod(shape) * dtype.itemsize != held - handle.tell():
        raise error(
            f"{place}: its header says {list(shape)} of {dtype}, {math.prod(shape) * dtype.itemsize:,} bytes, and "
            f"{max(0, held - handle.tell()):,} are there; it is damaged or was cut short: write it again"
        )
    return shape, fortran, dtype


def npy_texts(values: np.ndarray, place: str, error: type[BadInput] = BadInput) -> list[str]:
    """The strings of an array [N] of text, or of bytes in UTF-8.

    Raises:
        BadInput: What it holds is no text; `error` says which.
    """
    fault = error(f"{place} holds what is no UTF-8 text; save it again")
    # Looked at as numbers first: NumPy makes a string of any, and a number that is no letter ends in a SystemError.
    if values.dtype.kind == "U" and values.size and values.dtype.itemsize:
        codes = values.copy().view(f"{values.dtype.str[0]}u4")
        if ((codes > 0x10FFFF) | ((codes >= 0xD800) & (codes <= 0xDFFF))).any():
            raise fault
    try:
        return [each.decode("utf-8") if isinstance(each, bytes) else each for each in values.tolist()]
    except UnicodeDecodeError:
        raise fault from None


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


def whole_digest(path: Path) -> str:
    """`sha256_file`, computed once while a file keeps its stamp: what decides whether two files are the same video."""
    return _whole_digest(str(path), tuple(stamp(path)))


@lru_cache(maxsize=1 << 16)  # every window of a film asks for its file's
def _whole_digest(path: str, stamped: tuple[int, ...]) -> str:
    return sha256_file(Path(path))


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
        tidy(path.parent)
        descriptor, temporary = held_file(path.parent)
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


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """Fill another folder in the block, which becomes `folder` when all of it is there, or vanishes.

    Raises:
        BadInput: There is something in `folder` already, also where another process has filled it in the meantime.
        RunFailed: It cannot be written.
    """
    taken = BadInput(f"{folder} exists and is not empty; name a new folder, so that nothing of yours is lost")
    there = os.path.lexists(folder)  # it is filled then, because it may be the current one, or a disk of its own
    made, moved = folder, list[Path]()
    try:
        place = folder if there else folder.parent
        if not there or folder.is_dir():
            place.mkdir(parents=True, exist_ok=True)
            tidy(place)
        if there and (not folder.is_dir() or any(folder.iterdir())):
            raise taken
        with held_folder(place) as made:
            yield made
            if there:
                if any(path != made for path in folder.iterdir()):
                    raise taken
                for path in sorted(made.iterdir()):
                    os.replace(path, folder / path.name)
                    moved.append(folder / path.name)
            else:
                os.chmod(made, 0o777 & ~_UMASK)
                os.replace(made, folder)
    except OSError as error:
        for path in moved:
            with suppress(OSError):
                path.unlink()
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR) and os.path.lexists(folder) and not there:
            raise taken from None
        raise RunFailed(
            f"cannot create {folder}: {error.strerror or error}; free space or name another folder"
        ) from error
    except RunFailed as error:  # of a file in it: told by the name that it would have had
        raise RunFailed(str(error).replace(str(made), str(folder))) from error


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


# Where the vocabularies and recipes that come with the package lie.


def shipped_folder(name: str) -> Path:
    """The folder `anchors` or `recipes`: at a checkout's top, inside the package in an installed wheel."""
    package = Path(__file__).parent
    installed = package / "_shipped" / name
    return installed if installed.is_dir() else package.parent / name
