"""What all fuzzing shares: readers, what mutations put into their files, and the watch over what a reader does.

    fuzz.py           the program
    fuzz_base.py      this
    fuzz_files.py     annotations, tables, archives, vocabularies, recipes: files that people bring
    fuzz_runs.py      weights, runs, stores, indices, kept frames: files that calmctl itself writes
    fuzz_videos.py    videos, in the worker processes that decode them

Imports neither torch nor calmctl: decoding workers import it too.
"""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import os
import random
import re
import resource
import sys
import typing
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Input = Mapping[str, bytes | None]
"""Files by name that are not the well-formed ones; None for one that is not there."""

PIECES = [
    b"null", b"true", b"-1", b"1e999", b"[]", b"{}", b'"a"', b'"\\ud800"', b'"../a"', b"../a", b"/a", b"..", b"\n",
    b"\r", b"\t", b",", b'"', b"\0", b"\xff", b"\xef\xbb\xbf", "\u2028\u00e9".encode(), b"a", b"video0", b"[" * 2000,
    b"9" * 5000, b"&x ", b"*x", b"!!python/object/apply:os.system ['true']", b": ", b"- ", b"  ", b"? ", b"|\n", b"%",
    b"---\n", b"cos\nsystem\n", b"R", b"\x93", b"q\x00", b"h\x00", b"\x94", b"(", b"t", b"X\xff\xff\xff\x7f", b"\x8d",
    b".", b"0x", b"1_0", b"12:30", b"#", b"{" * 500, b"<<: ", b"=", b"/etc/passwd", b"-0", b"NaN", b"1" + b"0" * 30,
]  # fmt: skip
"""What is put into files."""

_NUMBERS = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 1 << 40, (1 << 63) - 1)
"""Where counts and lengths overflow."""


@dataclass(frozen=True)
class Reader:
    """One reader of files.

    Attributes:
        files: The files it wants.
        content: What is in one of them when it is well formed.
        read: Called on the folder that holds them and on a folder of clips.
        bombs: Small contents of a file that claim, or unpack to, something huge.
        seal: Makes a digest in a file's content fit again, so that what is behind the digest is reached.
    """

    files: tuple[str, ...]
    content: Callable[[str], bytes]
    read: Callable[[Path, Path], Any]
    bombs: Callable[[str], tuple[bytes, ...]] = lambda file: ()
    seal: Callable[[str, bytes], bytes] | None = None

    def draw(self, rng: random.Random, kept: list[Input]) -> Input:
        """The next input: well-formed files, or those of an input that reached something new, changed."""
        base = dict(rng.choice(kept)) if kept and rng.random() < 0.4 else {}
        # Mostly one file at a time: a reader that stops at the first fault would see little of the others.
        for file in rng.sample(self.files, min(len(self.files), rng.choice((1, 1, 1, 2, 9)))):
            base[file] = self._drawn(file, base.get(file) or self.content(file), rng)
        return base

    def _drawn(self, file: str, content: bytes, rng: random.Random) -> bytes | None:
        kind = rng.random()
        if kind < 0.05:
            return None
        if kind < 0.12:
            return rng.randbytes(rng.randrange(200))
        if kind < 0.1205 and (bombs := self.bombs(file)):
            return rng.choice(bombs)
        content = mutated(content, rng)
        return self.seal(file, content) if self.seal is not None and rng.random() < 0.8 else content


def one_file(
    file: str,
    content: Callable[[str], bytes],
    read: Callable[[Path], Any],
    bombs: Callable[[str], tuple[bytes, ...]] = lambda file: (),
    seal: Callable[[str, bytes], bytes] | None = None,
) -> Reader:
    """A reader of a single file, called on its path."""
    return Reader((file,), content, lambda root, _: read(root / file), bombs, seal)


def mutated(content: bytes, rng: random.Random) -> bytes:
    """With pieces put in, cut out, doubled or exchanged, and numbers made extreme."""
    for _ in range(rng.choice((0, 1, 1, 2, 3, 8))):
        start = rng.randint(0, len(content))
        if rng.random() < 0.2:
            size = rng.choice((1, 2, 4, 8))
            number = (rng.choice(_NUMBERS) + rng.choice((0, 0, -1, 1))) % (1 << 8 * size)
            piece, end = number.to_bytes(size, rng.choice(("big", "little"))), min(len(content), start + size)
        else:
            end = min(len(content), start + rng.choice((0, 0, 1, 4, 12, 60)))
            piece = rng.choice((rng.choice(PIECES), rng.randbytes(rng.randrange(4)), content[start:end] * 2))
        content = content[:start] + piece + content[end:]
    return content


_VARYING = re.compile(r"""'[^']*'|"[^"]*"|\S*/\S*|[-+]?\d[\w.,]*|[^\x20-\x7e]+""")


def outcome_kind(error: BaseException) -> str:
    """What an error says without names and numbers: a new one means that an input has come somewhere new."""
    return f"{type(error).__name__}: {_VARYING.sub('_', str(error))[:160]}"


@dataclass
class Tally:
    """What came of a reader's inputs.

    Attributes:
        outcomes: Inputs by "results", "our errors", "anything else", "crashes" and "hangs".
        kinds: The different sentences and results that were reached.
        slowest_s: The longest that one input took.
        peak_bytes: The most memory that the process had.
        faults: What should not have been, in words.
    """

    outcomes: Counter[str] = field(default_factory=Counter)
    kinds: set[str] = field(default_factory=set)
    slowest_s: float = 0.0
    peak_bytes: int = 0
    faults: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {**vars(self), "kinds": sorted(self.kinds)}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Tally:
        """The same again."""
        return cls(**{**values, "outcomes": Counter(values["outcomes"]), "kinds": set(values["kinds"])})


def peak_bytes(who: int) -> int:
    """The most memory of this process, or of one that it waited for (`resource.RUSAGE_...`)."""
    return resource.getrusage(who).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


MOST_KEPT, MOST_KEPT_BYTES = 400, 1 << 16
"""Inputs that a reader's corpus may have, for a sentence that quotes its input looks new each time; and of one."""


class Corpus:
    """Inputs of one reader that reached something new, in memory and in a folder."""

    def __init__(self, folder: Path | None, reader: str) -> None:
        self._name = re.sub(r"[^a-z0-9]+", "-", reader.lower())
        self._folder = folder
        self.inputs: list[Input] = []
        place = None if folder is None else folder / self._name
        for each in sorted(place.iterdir()) if place is not None and place.is_dir() else ():
            self.inputs.append({path.name.replace("|", "/"): path.read_bytes() for path in each.iterdir()})

    def keep(self, files: Input) -> None:
        """An input that reached something new."""
        size = sum(len(content or b"") for content in files.values())
        if len(self.inputs) < MOST_KEPT and size <= MOST_KEPT_BYTES:
            self.inputs.append(files)
            self._write(files, self._name)

    def fail(self, files: Input) -> None:
        """An input at which something was at fault."""
        self._write(files, f"failed/{self._name}")

    def _write(self, files: Input, where: str) -> None:
        if self._folder is None:
            return
        present = {name: content for name, content in files.items() if content is not None}
        digest = hashlib.sha256(repr(sorted(present.items())).encode()).hexdigest()[:16]
        (self._folder / where / digest).mkdir(parents=True, exist_ok=True)
        for name, content in present.items():
            (self._folder / where / digest / name.replace("/", "|")).write_bytes(content)


# What a reader does, seen by Python's audit hooks. Code of C and Rust (FFmpeg, safetensors) is not seen by them.

_EXECUTES = {"os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "os.forkpty", "subprocess.Popen"} | {
    "pty.spawn",
    "pickle.find_class",
    "os.startfile",
}
_CONNECTS = {"socket.connect", "socket.bind", "socket.getaddrinfo", "socket.sendto", "socket.gethostbyname"}
_CHANGES = {"os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.truncate", "os.chmod"}
_LISTS = {"os.listdir", "os.scandir", "os.walk"}
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


@dataclass
class Watch:
    """Notes everything that no reader of a file may do: execute, connect, write or look outside its folder.

    Attributes:
        folder: Where a reader may read and write.
        note: A file to which what is seen is added at once, for another process; None for none.
        armed: Whether a reader is at work.
        seen: What it did, in words.
    """

    folder: Path
    note: Path | None = None
    armed: bool = False
    seen: list[str] = field(default_factory=list)

    def install(self) -> None:
        """Begin; a hook cannot be taken away again."""
        sys.dont_write_bytecode = True
        self._own = f"{os.path.realpath(self.folder)}{os.sep}"
        here = Path(__file__).resolve().parent.parent
        roots = {os.path.realpath(root) for root in (sys.prefix, sys.base_prefix, here, *filter(None, sys.path))}
        # What a library reads of the system by itself: zones, locales, the machine's memory.
        self._libraries = (*(f"{root}{os.sep}" for root in roots), "/proc/", "/sys/", "/usr/share/zoneinfo/")
        sys.addaudithook(self._hook)

    def _hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.armed:
            return
        self.armed = False  # what follows opens and resolves files itself
        try:
            if kind := self._kind(event, arguments):
                self.seen.append(f"{kind}: {event} {str(arguments)[:200]}")
                if self.note is not None:
                    with self.note.open("a") as note:
                        note.write(f"{self.seen[-1]}\n")
        finally:
            self.armed = True

    def _kind(self, event: str, arguments: tuple[Any, ...]) -> str:
        if event == "pickle.find_class" and str(arguments[0]).startswith(("calmctl.", "pathlib")):
            return ""  # what a worker is sent by its parent
        if event in _EXECUTES:
            return "execution"
        if event == "exec":  # of a code object: an import of a library's module is the only one that may be
            file, caller = str(getattr(arguments[0], "co_filename", "")), sys._getframe(3).f_code.co_filename
            # Annotations and classes of our own code are made of text by Python's library, and of no text of a file.
            makers = (typing.__file__, dataclasses.__file__, collections.__file__)
            ours = file.startswith(("<frozen ", *self._libraries)) or caller in makers
            return "" if ours else "execution"
        if event == "ctypes.dlopen":
            inside = arguments[0] is None or self._inside(arguments[0], reading=True)
            return "" if inside else "execution"
        if event in _CONNECTS:
            return "connection"
        if event == "open" and not isinstance(arguments[0], int):
            writes = bool((arguments[2] or 0) & _WRITING)
            return "" if self._inside(arguments[0], reading=not writes) else "escape"
        if event in _CHANGES:
            paths = [each for each in arguments if isinstance(each, str | bytes | os.PathLike)]
            if isinstance(arguments[-1], int) and arguments[-1] >= 0 and len(paths) == 1:  # relative to an open folder
                with suppress(OSError):
                    paths = [os.path.join(os.readlink(f"/proc/self/fd/{arguments[-1]}"), os.fsdecode(paths[0]))]
            return "" if all(self._inside(each, reading=False) for each in paths) else "escape"
        if event in _LISTS and arguments and isinstance(arguments[0], str | bytes | os.PathLike):
            return "" if self._inside(arguments[0], reading=True) else "escape"
        return ""

    def _inside(self, path: Any, *, reading: bool) -> bool:
        text = os.path.abspath(os.fsdecode(path))
        return f"{text}{os.sep}".startswith((self._own, *self._libraries) if reading else self._own) or text in (
            os.devnull,
            "/dev/urandom",
        )
