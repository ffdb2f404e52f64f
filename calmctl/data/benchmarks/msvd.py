"""MSVD: 1,970 clips, 18 to 81 sentences each, every one of them a query; and the pickle some of its copies come as."""

from __future__ import annotations

import io
import pickle
import pickletools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from calmctl.data.annotations import expect, field, read_bytes, read_ids, read_lines, read_object, row_captions, shown
from calmctl.data.benchmark import Annotated, Benchmark, Protocol, Published
from calmctl.errors import DatasetError

# A pickle is a program for a small stack machine, and Python's own reader runs whatever code it names. Here a file is
# walked through first. Only instructions that build lists, tuples, dicts and text may stand in it, and only text may
# be used twice: what comes out is a tree, and no small file unfolds into a large one.

MOST_PICKLED_BYTES = 64 * 1024**2
MOST_STEPS = 4_000_000
MOST_CHARACTERS = 64 * 1024**2
"""Limits of a file, of its instructions and of the text it unfolds into. The token lists of MSVD (80,827 captions)
take 5 MB, 1.7 million steps and 3 million characters; the limits are our choice."""

_OPCODES = {opcode.code.encode("latin-1"): opcode for opcode in pickletools.opcodes}
_SINCE_MARK = -1
_MAKES = {
    **{"EMPTY_LIST": (0, "list"), "LIST": (_SINCE_MARK, "list")},
    **{"EMPTY_DICT": (0, "dict"), "DICT": (_SINCE_MARK, "dict")},
    **{"EMPTY_TUPLE": (0, "tuple"), "TUPLE": (_SINCE_MARK, "tuple")},
    **{f"TUPLE{count}": (count, "tuple") for count in (1, 2, 3)},
}
_FILLS = {
    **{"APPEND": (1, "list"), "APPENDS": (_SINCE_MARK, "list")},
    **{"SETITEM": (2, "dict"), "SETITEMS": (_SINCE_MARK, "dict")},
}
"""How many things an instruction takes from the stack, and what it makes of them or puts them into."""
_TEXTS = {"UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8", "STRING", "SHORT_BINSTRING", "BINSTRING"}
_PUTS, _GETS = {"PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"}, {"GET", "BINGET", "LONG_BINGET"}
_PLAIN = {"PROTO", "FRAME", "MARK", "STOP"} | _TEXTS | _PUTS | _GETS | _MAKES.keys() | _FILLS.keys()


def read_pickle(path: Path) -> Any:
    """The lists, tuples, dicts and text in a pickle of any protocol, Python 2's included.

    Raises:
        DatasetError: It cannot be read, is damaged or too large, or builds anything else.
    """
    stream = io.BytesIO(read_bytes(path, MOST_PICKLED_BYTES))
    start = 0
    try:
        walk = _Walk()
        while not walk.ended:
            start = stream.tell()
            walk.step(stream)
        data = pickle.loads(stream.getvalue(), encoding="utf-8")
        if _pairs(data) < walk.pairs:  # Python's reader keeps the last one and says nothing
            raise _Refused("a key stands twice in a dict in it")
        return data
    except (_Refused, ValueError, EOFError, pickle.UnpicklingError) as fault:
        why = "text in it is not utf-8" if isinstance(fault, UnicodeError) else str(fault)
        raise DatasetError(
            f"{path}: {why} (byte {start}); only plain lists of words are read, so take a JSON or text "
            "file of the captions instead"
        ) from None


class _Refused(Exception):
    """Why a pickle is not read, in a few words."""


class _Walk:
    """Follows a pickle without building anything: of text the stack has the length, of all else the kind."""

    def __init__(self) -> None:
        self.ended, self.pairs = False, 0
        self._steps = self._characters = 0
        self._stack: list[int | str] = []
        self._marks: list[int] = []
        self._memo: dict[int, int | str] = {}

    def step(self, stream: io.BytesIO) -> None:
        """Read one instruction."""
        self._steps += 1
        if self._steps > MOST_STEPS:
            raise _Refused(f"it has more than {MOST_STEPS:,} instructions")
        code = stream.read(1)
        if not code:
            raise _Refused("it ends too early")
        opcode = _OPCODES.get(code)
        # A list of what is allowed, not of what is dangerous: a new opcode is refused until somebody has thought
        # about it.
        if opcode is None or opcode.name not in _PLAIN:  # known before what belongs to it is read
            name = "what is no pickle instruction" if opcode is None else opcode.name
            raise _Refused(f"it holds {name}, which is not plain data")
        name = opcode.name
        try:
            if name == "STRING":  # its bytes are in no encoding that the file tells
                value: Any = pickletools.read_stringnl(stream, decode=False)
            else:
                value = opcode.arg.reader(stream) if opcode.arg else None
        except UnicodeError:
            raise
        except ValueError as fault:
            raise _Refused(f"it ends too early, or is damaged: {fault}") from None
        if name in _TEXTS:
            if isinstance(value, str):
                value.encode()  # half a surrogate pair is no text
            self._push_text(len(value))
        elif name in _MAKES:
            count, kind = _MAKES[name]
            items = self._taken(count)
            self._stack.append(kind)
            if kind == "dict":
                self._count_keys(items)
        elif name in _FILLS:
            count, kind = _FILLS[name]
            items = self._taken(count)
            if self._top() != kind:
                raise _Refused(f"it fills a {kind} that is none")
            if kind == "dict":
                self._count_keys(items)
        elif name in _PUTS:
            number = len(self._memo) if name == "MEMOIZE" else value
            if not 0 <= number <= self._steps:  # Python's reader makes an array as long as the highest number
                raise _Refused("a number is none that anything is remembered by")
            self._memo[number] = self._top()
        elif name in _GETS:
            length = self._memo.get(value)
            if not isinstance(length, int):
                raise _Refused("it uses something other than text twice")
            self._push_text(length)
        elif name == "MARK":
            self._marks.append(len(self._stack))
        elif name == "PROTO" and value > 5:
            raise _Refused("its protocol is newer than 5")
        elif name == "STOP":
            self._top()
            self.ended = True

    def _push_text(self, length: int) -> None:
        self._characters += length
        if self._characters > MOST_CHARACTERS:
            raise _Refused(f"it unfolds into more than {MOST_CHARACTERS:,} characters")
        self._stack.append(length)

    def _top(self) -> int | str:
        if len(self._stack) <= (self._marks[-1] if self._marks else 0):
            raise _Refused("it takes something from where nothing is")
        return self._stack[-1]

    def _taken(self, count: int) -> list[int | str]:
        floor = self._marks[-1] if self._marks else None if count == _SINCE_MARK else 0
        start = floor if count == _SINCE_MARK else len(self._stack) - count
        if floor is None or start is None or start < floor:
            raise _Refused("it takes something from where nothing is")
        if count == _SINCE_MARK:
            self._marks.pop()
        items = self._stack[start:]
        del self._stack[start:]
        return items

    def _count_keys(self, items: list[int | str]) -> None:
        # Nor could a tuple of tuples a million deep be a key: computing its hash would overrun the stack.
        if len(items) % 2 or not all(isinstance(key, int) for key in items[::2]):
            raise _Refused("a key of a dict in it is no text")
        self.pairs += len(items) // 2


def _pairs(data: Any) -> int:
    """How many keys all dicts of a tree have."""
    count, waiting = 0, [data]
    while waiting:
        node = waiting.pop()
        if isinstance(node, dict):
            count += len(node)
            waiting.extend(node.values())
        elif isinstance(node, list | tuple):
            waiting.extend(node)
    return count


# The data set (docs/data.md).


_CAPTIONS = "captions_msvd.json"
_TOKENS = "raw-captions.pkl"
_DESCRIPTIONS = "AllVideoDescriptions.txt"
_RAW = "raw_data"  # where the Hub's copy has the lists and descriptions
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
    if (rows := files.get(f"msvd_{name}.json")) is not None:  # a row a clip, with its captions
        return Annotated.of_rows(row_captions(rows))
    files = {file.rpartition("/")[2]: path for file, path in files.items()}
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
    """One caption per line, behind the clip's id and a space; lines that begin with # are about the file."""
    for _, line in read_lines(path):
        if not line.startswith("#"):
            clip_id, _, sentence = line.strip().replace("\t", " ", 1).partition(" ")
            if clip_id in clip_ids:
                yield clip_id, sentence.strip()


# The first file that is there is read: published retrieval numbers rest on the JSON file's sentences.
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
    copies={
        **dict.fromkeys(
            (
                *(f"msvd_{split}.json" for split in ("train", "val", "test")),
                *(f"{_RAW}/{split}_list.txt" for split in ("train", "val", "test")),
                f"{_RAW}/{_DESCRIPTIONS}",
            ),
            "friedrichor/MSVD on the Hub, also as VLM2Vec/MSVD (copies whose licence nobody states)",
        ),
    },
    clip_names="YOUTUBEID_START_END.avi, as in the lists; any other suffix will do",
    protocols={
        "": Protocol(
            files={
                split: [
                    *((f"{split}_list.txt", captions) for captions in _READERS),
                    (f"msvd_{split}.json",),
                    (f"{_RAW}/{split}_list.txt", f"{_RAW}/{_DESCRIPTIONS}"),
                ]
                for split in ("train", "val", "test")
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
