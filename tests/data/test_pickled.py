"""Pickles of plain data are read as Python would; whatever else a pickle does is refused, soon and in little memory."""

import io
import pickle
import time
import tracemalloc
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calmctl.data.benchmarks import msvd as pickled
from calmctl.data.benchmarks.msvd import read_pickle
from calmctl.errors import DatasetError

CAPTIONS = {"-4w_5_15": [["a", "b"], ["é", "a"], []], "x": [], "": [["a" * 300]]}
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
PLAIN = st.recursive(
    TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.tuples(inner, inner) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=30,
)


def read(tmp_path: Path, content: bytes) -> Any:
    path = tmp_path / "captions.pkl"
    path.write_bytes(content)
    return read_pickle(path)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_token_lists_of_every_protocol(tmp_path: Path, protocol: int) -> None:
    assert read(tmp_path, pickle.dumps(CAPTIONS, protocol)) == CAPTIONS


def test_python_2_text(tmp_path: Path) -> None:
    """Written out by hand, protocols 0 and 2 of Python 2: {'v': [['it\\'s', 'caf\xc3\xa9']]}."""
    assert read(tmp_path, b"(dp0\nS'v'\np1\n(lp2\n(lp3\nS\"it's\"\np4\naS'caf\\xc3\\xa9'\np5\naas.") == {
        "v": [["it's", "café"]]
    }
    assert read(tmp_path, b"\x80\x02}q\x00U\x01vq\x01]q\x02]q\x03(U\x04it'sq\x04U\x05caf\xc3\xa9q\x05eas.") == {
        "v": [["it's", "café"]]
    }
    assert read(tmp_path, b"T\x02\x00\x00\x00ab.") == "ab"


@settings(max_examples=150)
@given(value=PLAIN, protocol=st.integers(0, 5))
def test_plain_data_is_read_as_python_reads_it(
    tmp_path_factory: pytest.TempPathFactory, value: Any, protocol: int
) -> None:
    """Or refused, where Python wrote one list, tuple or dict in two places."""
    path = tmp_path_factory.mktemp("pickle") / "x.pkl"
    content = pickle.dumps(value, protocol)
    path.write_bytes(content)
    try:
        found = read_pickle(path)
    except DatasetError as error:
        assert "other than text twice" in str(error)
    else:
        assert found == pickle.loads(content)


class Runs:
    def __init__(self, *call: Any) -> None:
        self.call = call

    def __reduce__(self) -> Any:
        return self.call[0], self.call[1:]


def persistent(value: Any) -> bytes:
    class Pickler(pickle.Pickler):
        def persistent_id(self, obj: Any) -> Any:
            return "somewhere else" if obj == value else None

    buffer = io.BytesIO()
    Pickler(buffer).dump([value])
    return buffer.getvalue()


HOSTILE: dict[str, tuple[bytes, str]] = {
    "a command": (b"cos\nsystem\n(S'touch SIGN'\ntR.", "GLOBAL"),
    "a command, protocol 4": (b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x0atouch SIGN\x85R.", "STACK_GLOBAL"),
    "a call": (pickle.dumps(Runs(eval, "open('SIGN', 'w')")), "STACK_GLOBAL"),
    "a builtin": (pickle.dumps(Runs(getattr, "x", "upper"), 2), "GLOBAL"),
    "an instance": (b"(S'touch SIGN'\nios\nsystem\n.", "INST"),
    "an object": (b"(cos\nsystem\nS'touch SIGN'\no.", "GLOBAL"),
    "only REDUCE": (b"]]R.", "REDUCE"),
    "only BUILD": (b"]}b.", "BUILD"),
    "NEWOBJ": (b"\x80\x02]]\x81.", "NEWOBJ"),
    "an extension": (b"\x80\x02\x82\x01.", "EXT1"),
    "a persistent id": (persistent("x"), "BINPERSID"),
    "a persistent id, protocol 0": (b"P1\n.", "PERSID"),
    "an ordered dict": (pickle.dumps(OrderedDict(a=1)), "STACK_GLOBAL"),
    "a set": (pickle.dumps({1}), "EMPTY_SET"),
    "a number": (pickle.dumps(7), "BININT1"),
    "a number, protocol 0": (pickle.dumps(7, 0), "INT"),
    "a float": (pickle.dumps(1.5), "BINFLOAT"),
    "None": (pickle.dumps(None), "NONE"),
    "bytes": (pickle.dumps(b"x"), "SHORT_BINBYTES"),
    "a long number": (pickle.dumps(1 << 99), "LONG1"),
    "a number of 2 GB": (b"\x8b\xff\xff\xff\x7f.", "LONG4"),
    "a buffer": (b"\x97.", "NEXT_BUFFER"),
    "a bytearray of 2**60": (b"\x96" + (1 << 60).to_bytes(8, "little") + b".", "BYTEARRAY8"),
    "text of 4 GB": (b"X\xff\xff\xff\xff.", "ends too early"),
    "text of 2**63": (b"\x8d" + b"\xff" * 8 + b".", "ends too early"),
    "a memo of 2**32": (b"]r\xff\xff\xff\xffj\xff\xff\xff\xff.", "a number is none"),
    "a memo number of a thousand digits": (b"]p" + b"9" * 1000 + b"\n.", "a number is none"),
    "a list that holds itself": (b"]q\x00h\x00a.", "other than text twice"),
    "laughter": (b"]q\x00(" + b"".join(b"](" + b"h%c" % k * 9 + b"eq%c" % (k + 1) for k in range(9)) + b".", "twice"),
    "the same again": (b"]2.", "DUP"),
    "a list as key": (b"}]]s.", "is no text"),
    "a nested tuple as key": (b"}" + b"(" * 50 + b"t" * 50 + b"]s.", "is no text"),
    "an odd dict": (b"(X\x01\x00\x00\x00ad.", "is no text"),
    "POP": (b"]0.", "POP"),
    "nothing": (b"", "ends too early"),
    "an end without a value": (b".", "where nothing is"),
    "a mark that is not there": (b"t.", "where nothing is"),
    "what is below the mark": (b"](a.", "where nothing is"),
    "an append to text": (b"X\x01\x00\x00\x00a]a.", "fills a list that is none"),
    "an item below the mark": (b"](X\x01\x00\x00\x00aa.", "where nothing is"),
    "a deep tuple as key": (b"})" + b"\x85" * 500_000 + b"]s.", "is no text"),
    "a key twice": (b"}X\x01\x00\x00\x00a]sX\x01\x00\x00\x00a]s.", "stands twice"),
    "a frame that is longer than the file": (b"\x80\x04\x95\xff\xff\xff\xff\xff\xff\xff\x7f].", ""),
    "half a surrogate pair": (b"V\\ud800\n.", "text in it is not utf-8"),
    "half text": (b"X\x02\x00\x00\x00\xff\xfe.", "text in it is not utf-8"),
    "protocol 6": (b"\x80\x06].", "newer than 5"),
    "no pickle": (b"\x00\x01\x02", "no pickle instruction"),
    "the bytes of a zip": (b"PK\x03\x04", "PERSID"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_what_is_not_plain_data_is_refused(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    monkeypatch.chdir(tmp_path)
    content, words = HOSTILE[name]
    with pytest.raises(DatasetError, match=rf"captions\.pkl: .*{words}.*\(byte \d+\)"):
        read(tmp_path, content)
    assert not (tmp_path / "SIGN").exists()


def test_steps_text_and_size_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pickled, "MOST_STEPS", 1000)
    monkeypatch.setattr(pickled, "MOST_CHARACTERS", 1000)
    monkeypatch.setattr(pickled, "MOST_PICKLED_BYTES", 10_000)
    assert len(read(tmp_path, b"](" + b")" * 990 + b"e.")) == 990
    with pytest.raises(DatasetError, match="more than 1,000 instructions"):
        read(tmp_path, b"](" + b")" * 1000 + b"e.")
    with pytest.raises(DatasetError, match="unfolds into more than 1,000 characters"):
        read(tmp_path, b"](X\x64\x00\x00\x00" + b"a" * 100 + b"q\x00" + b"h\x00" * 100 + b"e.")
    with pytest.raises(DatasetError, match="too large"):
        read(tmp_path, b"K" * 10_001)


@pytest.mark.parametrize(
    "piece", [b"]", b"(", b"]\x94", b"}", b")", b"h\x00", b"\x8c\x00"], ids=lambda piece: piece.hex()
)
def test_a_file_full_of_one_instruction_ends_soon(
    tmp_path: Path, piece: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory is a fixed multiple of the steps, whatever the steps are (here a fortieth of the limit)."""
    monkeypatch.setattr(pickled, "MOST_STEPS", 100_000)
    tracemalloc.start()
    try:
        with pytest.raises(DatasetError):
            read(tmp_path, b"\x8c\x01aq\x00" + piece * 200_000)
        assert tracemalloc.get_traced_memory()[1] < 100_000 * 250
    finally:
        tracemalloc.stop()


@settings(max_examples=300)
@given(data=st.data())
def test_any_bytes_are_data_or_our_error(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    content = bytearray(pickle.dumps(CAPTIONS, data.draw(st.integers(0, 5))))
    for _ in range(data.draw(st.integers(0, 4))):
        start = data.draw(st.integers(0, len(content)))
        content[start : start + data.draw(st.integers(0, 5))] = data.draw(st.binary(max_size=6))
    path = tmp_path_factory.mktemp("pickle") / "x.pkl"
    path.write_bytes(content if data.draw(st.booleans()) else data.draw(st.binary(max_size=60)))
    started = time.perf_counter()
    try:
        found = read_pickle(path)
    except DatasetError as error:
        assert len(str(error)) < 1000
    else:
        assert isinstance(found, (list, tuple, dict, str))
    assert time.perf_counter() - started < 10, "a hang, not a slow machine"
