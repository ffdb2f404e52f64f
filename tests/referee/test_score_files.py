"""Files of scores, embeddings, ids and pairs: every format gives the same array, and nothing hostile is run."""

import io
import pickle
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from calmctl.errors import BadInput, DatasetError
from calmctl.referee.rank_files import read_ranks
from calmctl.referee.score_files import ids_of, own_pairs, protocol_pairs, read_pairs, read_stored
from calmctl.tensors import save_tensors

ARRAY = np.arange(6, dtype=np.float32).reshape(3, 2) / 4
TEXTS, VIDEOS = ("a", "b", "c"), ("x", "y")


def write(path: Path) -> Path:
    match path.suffix:
        case ".npy":
            np.save(path, ARRAY)
        case ".npz":
            np.savez_compressed(path, scores=ARRAY, text_ids=np.array(TEXTS), video_ids=np.array(VIDEOS), made="today")
        case ".safetensors":
            save_tensors(path, {"scores": torch.from_numpy(ARRAY.copy())}, {})
        case ".csv":
            path.write_text("text_id,x,y\na,0,0.25\nb,0.5,0.75\nc,1,1.25\n")
        case ".tsv":
            path.write_text("\tx\ty\na\t0\t0.25\nb\t0.5\t0.75\n\nc\t1\t1.25\n")
        case ".parquet":
            pyarrow = pytest.importorskip("pyarrow")
            from pyarrow import parquet

            parquet.write_table(pyarrow.table({"text_id": TEXTS, "x": ARRAY[:, 0], "y": ARRAY[:, 1]}), path)
    return path


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".safetensors", ".csv", ".tsv", ".parquet"])
def test_every_format_gives_the_same_array(suffix: str, tmp_path: Path) -> None:
    stored = read_stored(write(tmp_path / f"s{suffix}"), "scores")
    array = stored.array(("scores",), (2,), "the matrix")
    assert np.array_equal(array, ARRAY)
    rows, columns = (
        ids_of(stored, names, count, None, "--ids")
        for names, count in ((("text_ids", "ids"), 3), (("video_ids", "columns"), 2))
    )
    named = suffix not in (".npy", ".safetensors")
    assert (rows, columns) == ((TEXTS, VIDEOS) if named else (None, None))


def test_npy_is_mapped_and_order_is_kept(tmp_path: Path) -> None:
    np.save(tmp_path / "f.npy", np.asfortranarray(ARRAY))
    array = read_stored(tmp_path / "f.npy", "scores").arrays[""]
    assert isinstance(array, np.memmap) and np.array_equal(array, ARRAY)


def test_half_precision_and_vectors_in_lists(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    save_tensors(tmp_path / "b.safetensors", {"e": torch.from_numpy(ARRAY.copy()).bfloat16()}, {})
    assert np.array_equal(read_stored(tmp_path / "b.safetensors", "e").arrays["e"], ARRAY)
    parquet.write_table(pyarrow.table({"id": [1, 2, 3], "vector": ARRAY.tolist()}), tmp_path / "v.parquet")
    stored = read_stored(tmp_path / "v.parquet", "e")
    assert np.array_equal(stored.array(("texts",), (2, 3), "it"), ARRAY) and stored.ids["ids"] == ("1", "2", "3")


@pytest.mark.parametrize("what", [b"a red circle", b"text_id"])
def test_parquet_whose_text_is_no_utf8_is_a_sentence(tmp_path: Path, what: bytes) -> None:
    """In a cell, or in the name of a column."""
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    path, plain = tmp_path / "s.parquet", {"compression": "none", "use_dictionary": False, "store_schema": False}
    parquet.write_table(pyarrow.table({"text_id": ["a red circle"], "x": [0.5]}), path, **plain)
    content = path.read_bytes()
    assert what in content
    path.write_bytes(content.replace(what, b"\x80" + what[1:]))
    with pytest.raises(BadInput, match=r"s\.parquet is not a \.parquet file that can be read"):
        read_stored(path, "scores")


def test_parquet_without_pyarrow_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "s.parquet")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(BadInput, match=r"pip install 'calmctl\[parquet\]'"):
        read_stored(path, "scores")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,1,2\nb,1\n", ":2: 2 fields, 3 in"),
        ("id,x\na,one\n", ":2: 'one' is no number"),
        ("id,x,y\n", "no numbers"),
        ('id,x\na,"1', "not CSV"),
    ],
)
def test_tables_that_are_none(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "s.csv").write_text(text)
    with pytest.raises(BadInput, match=message):
        read_stored(tmp_path / "s.csv", "scores")


def test_a_table_without_ids_has_none(tmp_path: Path) -> None:
    (tmp_path / "s.csv").write_text("1,2\n3,nan\n")
    stored = read_stored(tmp_path / "s.csv", "scores")
    assert stored.ids == {} and np.isnan(stored.arrays[""][1, 1])


# Hostile files.


class Runs:
    def __reduce__(self) -> tuple[object, ...]:
        return exec, ("raise SystemExit('it was executed')",)


def header(shape: str, descr: str = "<f4") -> bytes:
    text = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}"
    text += " " * (-(len(text) + 11) % 64) + "\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode()


def objects() -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.array([Runs(), 1], dtype=object), allow_pickle=True)
    return buffer.getvalue()


HOSTILE = {
    "pickled objects": (objects(), "Python objects"),
    "a pickle": (pickle.dumps(Runs()), "not a .npy file"),
    "a huge shape": (header("(1000000000, 1000000000)") + bytes(64), "its header says .* are there"),
    "more than 64 bits": (header("(99999999999999999999, 99999999999999999999)") + bytes(64), "are there"),
    "a negative side": (header("(-1, -6)") + bytes(24), "its header says"),
    "cut short": (header("(3, 2)") + bytes(20), "20 are there"),
    "too long": (header("(3, 2)") + bytes(28), "28 are there"),
    "no header": (b"\x93NUMPY\x01\x00\xff\xff", "not a .npy file"),
    "code in the header": (b"\x93NUMPY\x01\x00\x30\x00" + b"__import__('os').abort()".ljust(48), "not a .npy file"),
    "an unknown version": (b"\x93NUMPY\x09\x00" + bytes(64), "not a .npy file"),
    "nothing": (b"", "not a .npy file"),
    "dates": (header("(3,)", "<M8[s]") + bytes(24), "real numbers"),
    "complex numbers": (header("(3,)", "<c8") + bytes(24), "real numbers"),
}


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("inside", [False, True], ids=[".npy", ".npz"])
def test_hostile_arrays_are_refused_unread(name: str, inside: bool, tmp_path: Path) -> None:
    content, message = HOSTILE[name]
    path = tmp_path / ("s.npz" if inside else "s.npy")
    if inside:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("scores.npy", content)
    else:
        path.write_bytes(content)
    with pytest.raises(BadInput, match=message):
        read_stored(path, "scores")


def test_what_unpacks_to_far_more_than_it_is_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from calmctl.referee import score_files

    monkeypatch.setattr(score_files, "_PLAIN_BYTES", 1000)
    np.savez_compressed(tmp_path / "bomb.npz", scores=np.zeros((1000, 100)))
    with pytest.raises(BadInput, match="would unpack to 1 MB"):
        read_stored(tmp_path / "bomb.npz", "scores")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("s.npz", b"PK\x03\x04 and no more", "not a .npz file"),
        ("s.safetensors", (1 << 60).to_bytes(8, "little") + b"{}", "safetensors"),
        ("s.parquet", b"PAR1 and no more", "not a .parquet file"),
        ("s.pkl", b"", "none of .npy"),
    ],
)
def test_damaged_files_are_sentences(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(BadInput, match=message):
        read_stored(tmp_path / name, "scores")


def test_what_does_not_unpack_is_a_sentence(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "s.npz", scores=np.random.default_rng(0).integers(0, 9, (30, 30)))
    content = bytearray((tmp_path / "s.npz").read_bytes())
    content[90:120] = b"\xff" * 30
    (tmp_path / "s.npz").write_bytes(content)
    with pytest.raises(BadInput, match=r"not a \.npz file that can be read"):
        read_stored(tmp_path / "s.npz", "scores")


def test_a_missing_file_and_a_folder(tmp_path: Path) -> None:
    (tmp_path / "folder.npy").mkdir()
    for name, message in (("none.npy", "does not exist"), ("folder.npy", "cannot read")):
        with pytest.raises(BadInput, match=message):
            read_stored(tmp_path / name, "scores")


def test_which_array_is_meant_must_be_told(tmp_path: Path) -> None:
    np.savez(tmp_path / "s.npz", one=ARRAY, other=ARRAY)
    with pytest.raises(BadInput, match=r"which array is the matrix\? It holds one \[3, 2\], other \[3, 2\]"):
        read_stored(tmp_path / "s.npz", "scores").array(("scores",), (2,), "the matrix")


# Ids and pairs.


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ("a\nb\n", "2 ids for 3"),
        ("a\nb\na\n", "'a' stands twice, as number 0 and as 2"),
        ("a\nnan\nb\n", "names nothing"),
    ],
)
def test_ids_that_name_nobody(ids: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "ids.txt").write_text(ids)
    stored = read_stored(write(tmp_path / "s.npy"), "scores")
    with pytest.raises(BadInput, match=message):
        ids_of(stored, ("ids",), 3, tmp_path / "ids.txt", "--text-ids")


@pytest.mark.parametrize("ids", [np.array(["a", "b", "\u00e9"]), np.array([b"a", b"b", b"\xc3\xa9"])])
def test_ids_beside_the_scores_may_be_an_array(ids: np.ndarray, tmp_path: Path) -> None:
    np.save(tmp_path / "ids.npy", ids)
    stored = read_stored(write(tmp_path / "s.npy"), "scores")
    assert ids_of(stored, ("ids",), 3, tmp_path / "ids.npy", "--text-ids") == ("a", "b", "\u00e9")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("p.csv", "text_id,video_id\na,x\nb,y\n"),
        ("p.csv", "a,x\nb,y\n"),
        ("p.csv", "video_id,caption,text_id\nx,a dog,a\ny,a cat,b\n"),
        ("p.tsv", "a\tx\nb\ty\n"),
        ("p.json", '{"a": "x", "b": "y"}'),
        ("p.json", '[["a", "x"], ["b", "y"]]'),
        ("p.json", '[{"text_id": "a", "video_id": "x"}, {"caption_id": "b", "clip_id": "y"}]'),
        ("p.jsonl", '{"text_id": "a", "video_id": "x"}\n["b", "y"]\n'),
    ],
)
def test_every_form_of_pairs(name: str, content: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(content)
    assert dict(read_pairs(tmp_path / name).videos) == {"a": "x", "b": "y"}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("p.csv", "a,x\na,y\n", "'a' has two videos"),
        ("p.csv", "a\n", "expected a text id and a video id"),
        ("p.csv", "a;x\nb;y\n", "separated by semicolons"),
        ("p.npy", "a,x\n", "pairs are read from"),
        ("p.csv", "", "no pairs"),
        ("p.csv", "a," + "x" * 200_000, "larger than field limit"),
        ("p.json", '[["a", NaN]]', "expected a text id"),
        ("p.json", '{"a": null}', "expected a text id"),
        ("p.json", "3", "expected a list"),
        ("p.jsonl", "{", "JSON"),
    ],
)
def test_pairs_that_are_none(name: str, content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(DatasetError, match=message):
        read_pairs(tmp_path / name)


def test_the_pairs_that_scores_bring_along(tmp_path: Path) -> None:
    np.savez(tmp_path / "s.npz", scores=ARRAY, owners=np.array([1, 0, 1]))
    stored = read_stored(tmp_path / "s.npz", "scores")
    assert dict(own_pairs(stored, (3, 2), TEXTS, VIDEOS).videos) == {"a": "y", "b": "x", "c": "y"}
    for shape in ((2, 2), (3, 1)):
        with pytest.raises(BadInput, match="owners must be a column for each"):
            own_pairs(stored, shape, None, None)
    with pytest.raises(BadInput, match="give --pairs FILE or --dataset NAME"):
        own_pairs(read_stored(write(tmp_path / "s.npy"), "scores"), (3, 2), None, None)


# Numbers that are no letters: NumPy itself ends in a SystemError where it makes strings of the last.
INVALID = np.array([97, 0xD800, 0x7FFFFFFF], np.uint32).view("<U1")


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"card": np.array("{")}, "card is not JSON"),
        ({"card": np.array("[1]")}, "expected an object"),
        ({"card": np.array('{"frames": "twelve"}')}, "frames is no int"),
        ({"sentences": np.array(["one"])}, "1 sentence for 3 texts"),
        ({"sentences": np.array([b"\xff"] * 3)}, "no UTF-8 text"),
        ({"text_ids": INVALID}, "no UTF-8 text"),
        ({"text_ids": INVALID.view(np.uint32).astype(">u4").view(">U1")}, "no UTF-8 text"),
    ],
)
def test_what_scores_say_of_themselves_may_be_damaged(more: Any, message: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "s.npz", scores=ARRAY, owners=np.array([1, 0, 1]), **more)
    with pytest.raises(BadInput, match=message):
        own_pairs(read_stored(tmp_path / "s.npz", "scores"), (3, 2), None, None)


def test_a_protocol_needs_no_videos(tmp_path: Path) -> None:
    rows = [{"video_id": f"video{n}", "sentence": f"sentence {n}"} for n in range(3)]
    (tmp_path / "msrvtt").mkdir()
    table = "key,vid_key,video_id,sentence\n" + "".join(
        f"ret{n},msr{n},{row['video_id']},{row['sentence']}\n" for n, row in enumerate(rows)
    )
    (tmp_path / "msrvtt/MSRVTT_JSFUSION_test.csv").write_text(table)
    pairs = protocol_pairs("msrvtt", None, tmp_path, None)
    assert pairs.candidates == ("video0", "video1", "video2") and dict(pairs.videos)["1"] == "video1"
    assert pairs.also is not None and pairs.also["video2"] == pairs.also["sentence 2"] == "2"
    with pytest.raises(DatasetError, match="no protocol"):
        protocol_pairs("msrvtt", "8k", tmp_path, None)


def test_ranks_of_a_long_name_are_refused_in_a_short_sentence(tmp_path: Path) -> None:
    path = tmp_path / "ranks.csv"
    path.write_text(f"direction,query,clip,greater,equal,targets,n_candidates\n{'9' * 5000},q,c,0,1,1,2\n")
    with pytest.raises(BadInput, match=r"ranks\.csv: 9{80}: its columns are no lists") as refusal:
        read_ranks(path)
    assert len(str(refusal.value)) < 1000
