"""Pickles of plain data, read without Python's own reader, which would run whatever code a file names.

A pickle is a program for a small stack machine. Here only those of its instructions exist that build lists,
tuples, dicts, text and small whole numbers; at any other one the file is refused. Time and memory are bounded by
the limits below: sizes that a file states are compared with what is left of it before anything is read, the memo
is a dict rather than an array as large as its highest number, and only text may be used twice, so what comes out
is a tree and no small file unfolds into a large one.
"""

from __future__ import annotations

import codecs
import pickletools
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from calmctl.data.annotations import expect, field, read_bytes, read_ids, read_lines, read_object, shown
from calmctl.data.benchmark import Annotated, Benchmark, Protocol, Published
from calmctl.errors import DatasetError

MOST_PICKLED_BYTES = 64 * 1024**2
MOST_STEPS = 4_000_000
MOST_CHARACTERS = 64 * 1024**2
"""Limits of a file, of its instructions and of the text it unfolds into. The token lists of MSVD (80,827 captions)
take 5 MB, 1.7 million steps and 3 million characters; the limits are our choice."""


def read_pickle(path: Path) -> Any:
    """The lists, tuples, dicts and text in a pickle of any protocol, Python 2's included.

    Raises:
        DatasetError: It cannot be read, is damaged or too large, or builds anything else.
    """
    machine = _Machine(read_bytes(path, MOST_PICKLED_BYTES))
    try:
        return machine.run()
    except _Refused as fault:
        raise DatasetError(
            f"{path}: {fault} (byte {machine.start}); only plain lists of words are read, so take a JSON or text "
            "file of the captions instead"
        ) from None


class _Refused(Exception):
    """Why a pickle is not read, in a few words."""


class _Machine:
    """The stack machine; a method `op_...` for each instruction that exists here."""

    def __init__(self, content: bytes) -> None:
        self.start = self._at = 0
        self._content = content
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}
        self._characters = 0

    def run(self) -> Any:
        content = self._content + b"("  # one instruction behind the end: the loop needs no test for it
        for _ in range(MOST_STEPS):
            self.start = self._at
            code = content[self._at]
            self._at += 1
            operation = _OPERATIONS[code]
            if operation is not None and self._at < len(content):
                operation(self)
            elif self._at == len(content):
                raise _Refused("it ends too early")
            elif code == _STOP:
                return self._pop()
            else:
                raise _Refused(f"it holds {_NAMES.get(code, 'what is no pickle instruction')}, which is not plain data")
        raise _Refused(f"it has more than {MOST_STEPS:,} instructions")

    def _take(self, size: int) -> bytes:
        if size > len(self._content) - self._at:
            raise _Refused("it ends too early")
        self._at += size
        return self._content[self._at - size : self._at]

    def _number(self, size: int) -> int:
        return int.from_bytes(self._take(size), "little")

    def _line(self) -> bytes:
        end = self._content.find(b"\n", self._at)
        if end < 0:
            raise _Refused("it ends too early")
        return self._take(end + 1 - self._at)[:-1]

    def _line_number(self) -> int:
        line = self._line()
        if not line.isdigit() or len(line) > 9:
            raise _Refused("a number is none")
        return int(line)

    def _pop(self) -> Any:
        if len(self._stack) <= (self._marks[-1] if self._marks else 0):
            raise _Refused("it takes something from where nothing is")
        return self._stack.pop()

    def _top(self, kind: type) -> Any:
        if not self._stack or not isinstance(self._stack[-1], kind):
            raise _Refused(f"it fills a {kind.__name__} that is none")
        return self._stack[-1]

    def _since_mark(self) -> list[Any]:
        if not self._marks:
            raise _Refused("it takes something from where nothing is")
        start = self._marks.pop()
        items = self._stack[start:]
        del self._stack[start:]
        return items

    def _text(self, content: bytes, encoding: str = "utf-8") -> None:
        try:
            text = content.decode(encoding)
        except ValueError:
            raise _Refused(f"text in it is not {encoding}") from None
        self._push_text(text)

    def _push_text(self, text: str) -> None:
        self._characters += len(text)
        if self._characters > MOST_CHARACTERS:
            raise _Refused(f"it unfolds into more than {MOST_CHARACTERS:,} characters")
        self._stack.append(text)

    def _remember(self, number: int) -> None:
        if not self._stack:
            raise _Refused("it takes something from where nothing is")
        self._memo[number] = self._stack[-1]

    def _recall(self, number: int) -> None:
        value = self._memo.get(number)
        if not isinstance(value, str):
            raise _Refused("it uses something other than text twice")
        self._push_text(value)

    def _fill(self, items: list[Any]) -> None:
        target = self._top(dict)
        if len(items) % 2 or not all(isinstance(key, str) for key in items[::2]):
            raise _Refused("a key of a dict in it is no text")
        before = len(target)
        target.update(zip(items[::2], items[1::2], strict=True))
        if len(target) < before + len(items) // 2:  # Python's own reader would keep the last one and say nothing
            raise _Refused("a key stands twice in a dict in it")

    def op_proto(self) -> None:
        if self._number(1) > 5:
            raise _Refused("its protocol is newer than 5")

    def op_frame(self) -> None:
        self._take(8)  # a hint for readers of streams; the file is in memory

    def op_mark(self) -> None:
        self._marks.append(len(self._stack))

    def op_empty_list(self) -> None:
        self._stack.append([])

    def op_list(self) -> None:
        self._stack.append(self._since_mark())

    def op_append(self) -> None:
        item = self._pop()
        self._top(list).append(item)

    def op_appends(self) -> None:
        items = self._since_mark()
        self._top(list).extend(items)

    def op_empty_tuple(self) -> None:
        self._stack.append(())

    def op_tuple(self) -> None:
        self._stack.append(tuple(self._since_mark()))

    def op_tuple1(self) -> None:
        self._stack.append((self._pop(),))

    def op_tuple2(self) -> None:
        self._stack.append((self._pop(), self._pop())[::-1])

    def op_tuple3(self) -> None:
        self._stack.append((self._pop(), self._pop(), self._pop())[::-1])

    def op_empty_dict(self) -> None:
        self._stack.append({})

    def op_dict(self) -> None:
        items = self._since_mark()
        self._stack.append({})
        self._fill(items)

    def op_setitem(self) -> None:
        value = self._pop()
        self._fill([self._pop(), value])

    def op_setitems(self) -> None:
        self._fill(self._since_mark())

    def op_short_binunicode(self) -> None:
        self._text(self._take(self._take(1)[0]))

    def op_binunicode(self) -> None:
        self._text(self._take(self._number(4)))

    def op_binunicode8(self) -> None:
        self._text(self._take(self._number(8)))

    def op_unicode(self) -> None:
        self._text(self._line(), "raw-unicode-escape")

    op_short_binstring = op_short_binunicode  # this and the next two: text of Python 2
    op_binstring = op_binunicode

    def op_string(self) -> None:
        line = self._line().strip()
        if len(line) < 2 or line[:1] != line[-1:] or line[:1] not in (b"'", b'"'):
            raise _Refused("text in it has no quotes")
        try:
            content = codecs.escape_decode(line[1:-1])[0]
        except ValueError:
            raise _Refused("text in it has a wrong escape") from None
        self._text(content)

    def op_put(self) -> None:
        self._remember(self._line_number())

    def op_binput(self) -> None:
        self._remember(self._number(1))

    def op_long_binput(self) -> None:
        self._remember(self._number(4))

    def op_memoize(self) -> None:
        self._remember(len(self._memo))

    def op_get(self) -> None:
        self._recall(self._line_number())

    def op_binget(self) -> None:
        self._recall(self._number(1))

    def op_long_binget(self) -> None:
        self._recall(self._number(4))


_STOP = ord(".")
_NAMES: dict[int, str] = {ord(opcode.code): opcode.name for opcode in pickletools.opcodes}
_OPERATIONS: list[Callable[[_Machine], None] | None] = [
    getattr(_Machine, f"op_{_NAMES.get(code, '').lower()}", None) for code in range(256)
]


# MSVD: 1,970 clips, 18 to 81 sentences each, every one of them a query (docs/data.md).


_CAPTIONS = "captions_msvd.json"
_TOKENS = "raw-captions.pkl"
_DESCRIPTIONS = "AllVideoDescriptions.txt"
_NOTES = {
    _TOKENS: (
        f"the captions are the words of {_TOKENS}, joined by spaces: what its tokeniser did to case, punctuation and "
        "apostrophes stays done"
    ),
    _DESCRIPTIONS: (
        f"the captions are as {_DESCRIPTIONS} has them; published retrieval numbers rest on {_CAPTIONS}, which holds "
        "neither capital letters nor punctuation"
    ),
}


def _read(name: str, files: Mapping[str, Path]) -> Annotated:
    """The clips of a list with every caption; which file the captions are from is noted where it matters."""
    clip_ids = read_ids(files[f"{name}_list.txt"])
    (file,) = files.keys() & _READERS.keys()
    captions = _READERS[file](files[file], dict.fromkeys(clip_ids))
    return Annotated(clip_ids, list(captions), notes=(_NOTES[file],) if file in _NOTES else ())


def _from_json(path: Path, clip_ids: dict[str, None]) -> Iterator[tuple[str, str]]:
    captions = read_object(path, dict)
    for clip_id in clip_ids:
        if clip_id in captions:  # some releases lack a few clips; those are listed as left out
            for i, sentence in enumerate(field(captions, clip_id, str(path), list)):
                yield clip_id, expect(sentence, str, f"{path}: {shown(clip_id)}[{i}]")


def _from_tokens(path: Path, clip_ids: dict[str, None]) -> Iterator[tuple[str, str]]:
    captions: dict[str, Any] = expect(read_pickle(path), dict, str(path))
    for clip_id in clip_ids:
        if clip_id in captions:
            for i, words in enumerate(field(captions, clip_id, str(path), list)):
                place = f"{path}: {shown(clip_id)}[{i}]"
                yield clip_id, " ".join(expect(word, str, place) for word in expect(words, list, place))


def _from_lines(path: Path, clip_ids: dict[str, None]) -> Iterator[tuple[str, str]]:
    """A line a caption, behind the clip's id and a space; lines that begin with # are about the file."""
    for _, line in read_lines(path):
        if not line.startswith("#"):
            clip_id, _, sentence = line.strip().replace("\t", " ", 1).partition(" ")
            if clip_id in clip_ids:
                yield clip_id, sentence.strip()


_READERS = {_CAPTIONS: _from_json, _TOKENS: _from_tokens, _DESCRIPTIONS: _from_lines}


MSVD = Benchmark(
    name="msvd",
    description="MSVD: 1,970 YouTube clips of 10 s, about 40 sentences each",
    owners={
        **{f"{split}_list.txt": "the X-Pool project (its data folder)" for split in ("train", "val", "test")},
        _CAPTIONS: "the X-Pool project (its data folder)",
        _TOKENS: "the CLIP4Clip project (msvd_data.zip among its releases)",
        _DESCRIPTIONS: "Microsoft Research and the University of Texas at Austin (Video Description Corpus)",
        "clips": "Microsoft Research and the University of Texas at Austin (Video Description Corpus: YouTubeClips)",
    },
    clip_names="YOUTUBEID_START_END.avi, as in the lists; any other suffix will do",
    protocols={
        "": Protocol(
            files={
                split: [(f"{split}_list.txt", captions) for captions in _READERS] for split in ("train", "val", "test")
            },
            read=_read,
            published={
                "train": Published(1200, 48_774, "2bb3c2212a69b37c8ff811b14af51ffdaa91c114164ea01fc81cd9747495f566"),
                "val": Published(100, 4290, "03202dec6e9fa9f04e6395fc86fd9acbce2faa32cff54439ff5396e542447001"),
                "test": Published(670, 27_763, "b873f2a69e905d5e4a7a7798254492b0cb04655ae090b6653e9c12d0789d79ea"),
            },
        )
    },
)
