"""Readers of the files that people bring: annotations, tables, archives, vocabularies, recipes (`fuzz_base.py`)."""

from __future__ import annotations

import io
import json
import pickle
import shutil
import struct
import tarfile
import zipfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from fuzz_base import Reader, one_file
from safetensors.numpy import save

from calmctl.anchors.label_lists import read_labels
from calmctl.anchors.vocabulary import load_vocabulary
from calmctl.captions.files import read_references
from calmctl.data.benchmarks.msvd import read_pickle
from calmctl.data.packed import Unpacked, archive_of, list_archive, unpack
from calmctl.data.registry import BENCHMARKS, load_dataset
from calmctl.evaluation.card import cards_in
from calmctl.evaluation.result import Labels
from calmctl.recipe.load import load_recipe
from calmctl.referee.moments import read_answers, read_truth, score_moments
from calmctl.referee.rank_files import format_ranks, read_ranks
from calmctl.referee.score_files import Pairs, read_pairs, read_stored
from calmctl.referee.scores import Matrix, judge_scores, match
from calmctl.samples import Dataset

CLIPS = ("a", "b", "video0")

_VIDEOS = [{"video_id": clip, "split": split} for clip, split in zip(CLIPS, ("train", "validate", "test"), strict=True)]
_SENTENCES = [{"video_id": clip, "caption": f"{clip} does, it"} for clip in CLIPS]
_MOMENTS = [{"video": f"{clip}.mp4", "description": "first, it", "times": [[0, 0], [1, 2]]} for clip in CLIPS]
_PARAGRAPHS = [{"video": f"{clip}.mp4", "caption": ["first, it", "then"]} for clip in CLIPS]
_TIMED = {clip: {"duration": 9.5, "timestamps": [[0, 1.5]], "sentences": [" first, it"]} for clip in CLIPS}
_RECIPES = {
    clip: {"subset": subset, "annotations": [{"id": 0, "segment": [0, 5], "sentence": "first, it"}]}
    for clip, subset in zip(CLIPS, ("training", "validation", "training"), strict=True)
}
_SEGMENTS = [
    {"id": 0, "youtube_id": clip, "segment": [0.0, 5.0], "sentence": "it", "video_path": clip} for clip in CLIPS
]
_VATEX = [{"videoID": clip, "enCap": ["one", "two"]} for clip in CLIPS]
_TOKENS = {clip: [["one", "word"], ["two"]] for clip in CLIPS}
_LSMDC = "".join(f"{clip}\t0\t1\t0\t1\tSOMEONE does, it\n" for clip in CLIPS).encode()
_VOCABULARY = b"""schema_version: 1
name: shapes
version: 1
source: drawn
licence: CC0
prompt: "The content of {label}"
labels:
  s0: a red circle
  s1: a blue square
"""
_RECIPE = b"""name: mine
seed: 3
data:
  dataset: msvd
  root: data/msvd
  frames: 12
head:
  kind: t-mass
  dropout: 0.4
optim: {epochs: 5, lr_head: 1e-5}
"""

_ROWS = json.dumps([{"video": f"DIR/{clip}.mp4", "caption": ["one", "two"]} for clip in CLIPS]).encode()

WELL_FORMED = {
    **{f"raw_data/didemo_{split}.json": json.dumps(_MOMENTS).encode() for split in ("train", "val", "test")},
    **{
        f"{name}_{split}.json": _ROWS for name in ("didemo", "didemo_ret", "msvd") for split in ("train", "val", "test")
    },
    **{f"{split}.json": _ROWS for split in ("train_9k", "train_7k", "test_1k", "train9k", "train7k", "test1k")},
    "videodatainfo.json": json.dumps({"videos": _VIDEOS, "sentences": _SENTENCES}).encode(),
    "MSRVTT_data.json": json.dumps({"videos": _VIDEOS, "sentences": _SENTENCES}).encode(),
    "JSFUSION_test.csv": b"key,vid_key,video_id,sentence\n0,0,a,one\n1,1,b,two\n",
    "k.csv": b"video_id\na\nb\nvideo0\n",
    "raw-captions.pkl": pickle.dumps(_TOKENS, 2),
    "AllVideoDescriptions.txt": b"# about\n\n" + b"".join(f"{clip} Does it.\n".encode() for clip in CLIPS),
    "captions_msvd.json": json.dumps({clip: ["one", "two"] for clip in CLIPS}).encode(),
    "_data.json": json.dumps(_MOMENTS).encode(),
    "_label.csv": b'video_path,text\n/x/a.mp4,"one\ntwo"\n/x/b.mp4,two\n',
    "_list.txt": b"a\nb",
    "vatex_training_v1.0.json": json.dumps(_VATEX).encode(),
    "vatex_validation_v1.0.json": json.dumps(_VATEX).encode(),
    "vatex_public_test_english_v1.1.json": json.dumps(_VATEX).encode(),
    "_ids.json": json.dumps(CLIPS).encode(),
    "ref_captions.json": json.dumps({clip: ["one", "two"] for clip in CLIPS}).encode(),
    "charades_sta_train.txt": b"".join(f"{clip} 0.0 6.9##does, it.\n".encode() for clip in CLIPS),
    "charades_sta_test.txt": b"".join(f"{clip} 1 2##does, it.\n".encode() for clip in CLIPS),
    "youcookii_annotations_trainval.json": json.dumps({"database": _RECIPES}).encode(),
    "anet_ret_train.json": json.dumps(_PARAGRAPHS).encode(),
    "anet_ret_val_1.json": json.dumps(_PARAGRAPHS).encode(),
    "val_1.json": json.dumps(_TIMED).encode(),
    "val_2.json": json.dumps(_TIMED).encode(),
    "train.json": json.dumps(_TIMED).encode(),
    "captions.csv": b"video,caption,split\na,one,train\nb,two,train\nvideo0,three,test\n",
    "captions.json": json.dumps(_SENTENCES).encode(),
    "captions.jsonl": "\n".join(map(json.dumps, _SENTENCES)).encode(),
    "train.txt": b"a\nb\n",
    "test.txt": b"video0\n",
    "LSMDC16_annos_training.csv": _LSMDC,
    "LSMDC16_annos_val.csv": _LSMDC,
    "publictect.csv": _LSMDC,
    "publictest.csv": _LSMDC,
    "pairs.csv": b"text_id,video_id\n0,a\n1,b\n2,b\n",
    "pairs.json": b'{"0": "a", "1": "b", "2": "b"}',
    "pairs.jsonl": b'["0", "a"]\n["1", "b"]\n{"text_id": "2", "video_id": "b"}\n',
    "s.csv": b"text_id,a,b\n0,0.5,0.25\n1,0.125,1\n",
    "timed.jsonl": b"".join(
        json.dumps({"qid": n, "query": "it", "vid": clip, "relevant_windows": [[0, 2.5]]}).encode() + b"\n"
        for n, clip in enumerate(CLIPS)
    ),
    "timed.txt": b"a 0.0 6.9##does, it.\nb 1 2##does.\n",
    "timed.json": json.dumps(_MOMENTS).encode(),
    "answers.jsonl": b"".join(
        json.dumps({"qid": n, "pred_relevant_windows": [[0, 2, 0.5], [1, 9.5, 0.25]]}).encode() + b"\n"
        for n in range(3)
    ),
    "vocabulary.yaml": _VOCABULARY,
    "labels.txt": b"c0 Holding some clothes\nc1 Closing a door\n",
    "labels.csv": b"id,name\nc0,Holding some clothes\nc1,Closing a door\n",
    "labels.json": b'{"c0": "Holding some clothes", "c1": "Closing a door"}',
    "recipe.yaml": _RECIPE,
}
"""Well-formed files, by the end of their names."""


def readers() -> dict[str, Reader]:
    result = {}
    for name, benchmark in BENCHMARKS.items():
        for protocol in benchmark.protocols:
            files = tuple(file_names(name, protocol))
            result[f"{name} {protocol}".strip()] = Reader(files, well_formed, _dataset(name, protocol), bombs)
    arrays = (
        *(f"public_split/{split}_names.npy" for split in ("trn", "val", "tst")),
        "annotation/RET/ref_captions.json",
    )
    result["vatex hgr, arrays"] = Reader(arrays, well_formed, _dataset("vatex", "hgr"), bombs)
    for captions in ("captions.csv", "captions.json", "captions.jsonl", "captions.parquet"):
        files = (captions, "train.txt", "test.txt")
        result[f"folder, {captions}"] = Reader(files, well_formed, _dataset("folder", ""), bombs)
    for packed in ("packed.zip", "packed.tar", "packed.parquet"):
        result[f"unpack, {packed}"] = Reader((packed,), well_formed, _unpack(packed), bombs)
    parts = ("packed.tar.00", "packed.tar.01")
    result["unpack, parts"] = Reader(parts, well_formed, _unpack(parts[0]), bombs)
    for file in ("timed.jsonl", "timed.txt", "timed.json"):
        result[f"moments, {file}"] = Reader((file, "answers.jsonl"), well_formed, _moments(file), bombs)
    alone: list[tuple[str, str, Callable[[Path], Any]]] = [
        *(("scores", f"s.{kind}", _scores) for kind in ("npy", "npz", "csv", "parquet", "safetensors")),
        *(("pairs", f"pairs.{kind}", read_pairs) for kind in ("csv", "json", "jsonl")),
        *(("ranks", f"ranks.{kind}", read_ranks) for kind in ("json", "csv")),
        *(("captions", f"captions.{kind}", read_references) for kind in ("csv", "json", "jsonl")),
        *(("labels", f"labels.{kind}", read_labels) for kind in ("txt", "csv", "json")),
        ("protocol cards", "ranks.json", lambda path: list(cards_in(path))),
        ("pickled captions", "raw-captions.pkl", read_pickle),
        ("vocabulary", "vocabulary.yaml", lambda path: load_vocabulary(path, check_digest=False)),
        ("recipe", "recipe.yaml", load_recipe),
    ]
    several = {name for name, *_ in alone if sum(name == other for other, *_ in alone) > 1}
    for name, file, read in alone:
        result[f"{name}, {file}" if name in several else name] = one_file(file, well_formed, read, bombs)
    return result


def _unpack(file: str) -> Callable[[Path, Path], Unpacked]:
    """Unpack into a folder of its own, in which nothing but plain files below it may then lie."""

    def read(root: Path, _: Path) -> Unpacked:
        out = root.parent / "unpacked" / "here"
        shutil.rmtree(out.parent, ignore_errors=True)
        try:
            list_archive(archive_of(root / file)) if not file.endswith(".parquet") else None
            return unpack([root / file], out, most_bytes=1 << 20)
        finally:
            strays = [path for path in out.parent.rglob("*") if path != out and out not in path.parents]
            size = sum(path.lstat().st_size for path in out.rglob("*") if not path.is_dir())
            assert not strays and size < 7 << 20  # a byte of a text may be six in JSON
            assert not any(path.is_symlink() for path in out.rglob("*"))

    return read


def _scores(path: Path) -> Any:
    return read_stored(path, "scores").array(("scores",), (2,), "the matrix")


def _moments(file: str) -> Callable[[Path, Path], Any]:
    def read(root: Path, _: Path) -> Any:
        truth = read_truth(root / file)
        return score_moments(read_answers(root / "answers.jsonl", truth), truth).to_json()

    return read


def _dataset(name: str, protocol: str) -> Callable[[Path, Path], Dataset]:
    return lambda root, videos: load_dataset(name, None, protocol=protocol, annotations=root, videos=videos)


@cache
def bombs(file: str) -> tuple[bytes, ...]:
    """Small contents of a file that claim, or unpack to, something huge."""
    zeros, deep = bytes(1 << 25), 20_000
    if file.endswith((".json", ".jsonl")):
        nested = (b"[" * deep, b"[" * deep + b"]" * deep, b'{"a":' * deep + b"1" + b"}" * deep)
        return (*nested, b'{"a": ' + b"9" * (1 << 16) + b"}", b"[" + b"{}," * (1 << 14) + b"{}]")
    if file.endswith(".yaml"):
        laughs = b"\n".join(b"a%d: &a%d [%s]" % (n, n, b",".join([b"*a%d" % (n - 1)] * 9)) for n in range(1, 30))
        indented = b"\n".join(b" " * n + b"a:" for n in range(2000))
        return laughs, indented, b"[" * deep, b"{a: " * deep, b"- " * deep, b"a: |\n" + b" x\n" * (1 << 16)
    if file.endswith((".csv", ".txt")):
        return b'video,caption\n"' + b"x" * (1 << 20), b"," * (1 << 17), b"\n" * (1 << 17), b"a,b\n" * (1 << 16)
    if file.endswith(".zip"):
        return _zipped({"a.mp4": zeros}), _zipped({"a.txt": zeros}), _zipped({f"{n}.txt": b"" for n in range(5000)})
    if file.endswith(".npz"):
        return _zipped({"scores.npy": _npy_claim((2, 1 << 22), zeros)}), _zipped({"scores.npy": _npy_claim((1 << 40,))})
    if file.endswith(".npy"):
        return _npy_claim((1 << 20, 1 << 20)), _npy_claim((1 << 62, 4)), _npy_claim(()) + b"(" * deep
    if file.endswith(".tar"):
        claim = tarfile.TarInfo("a.mp4")
        claim.size = 1 << 33
        return (claim.tobuf() + b"x" * 512, claim.tobuf(tarfile.PAX_FORMAT) * 1000)
    if file.endswith(".parquet"):
        return (_parquet([{"text_id": "0", "a": 0.5, "caption": "x" * 1000}] * 10_000),)
    if file.endswith(".safetensors"):
        entry = {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 1 << 42]}
        header = json.dumps({"scores": entry}).encode()
        return (
            struct.pack("<Q", len(header)) + header,
            struct.pack("<Q", 1 << 62),
            struct.pack("<Q", deep) + b"[" * deep,
        )
    if file.endswith(".pkl"):
        return (
            b"\x80\x02" + b"]" * deep + b".",
            b"\x80\x02" + b"(" * deep + b"t" * deep + b".",
            b"\x80\x02]q\0" + b"h\0" * deep,
        )
    return ()


def _npy_claim(shape: tuple[int, ...], content: bytes = b"") -> bytes:
    """An array of numpy that says it has this shape."""
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": "<f4", "fortran_order": False, "shape": shape})
    return stream.getvalue() + content


def _zipped(members: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", method) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return stream.getvalue()


@cache
def well_formed(file: str) -> bytes:
    if file.startswith("packed"):
        return _packed(file)
    if file.startswith(("s.np", "s.safetensors")):
        return _array(file)
    if file == "s.parquet":
        return _parquet([{"text_id": "0", "a": 0.5, "b": 0.25}, {"text_id": "1", "a": 0.125, "b": 1.0}])
    if file.startswith("ranks."):
        return _kept_ranks(file)
    if file.endswith("_names.npy"):
        stream = io.BytesIO()
        np.save(stream, np.array(CLIPS))
        return stream.getvalue()
    if file == "captions.parquet":
        return _parquet([{**row, "split": "test"} for row in _SENTENCES])
    if file.endswith(".parquet"):
        return _parquet(_VATEX if "vatex" in file else _SEGMENTS)
    return next(content for ending, content in WELL_FORMED.items() if file.endswith(ending))


def _array(file: str) -> bytes:
    """Scores of two texts and two videos."""
    scores, stream = np.array([[0.5, 0.25], [0.125, 1.0]], np.float32), io.BytesIO()
    if file.endswith(".npy"):
        np.save(stream, scores)
    elif file.endswith(".npz"):
        told = {"sentences": np.array([b"one", b"two"]), "card": np.array('{"frames": 12, "seeds": [1]}')}
        np.savez(stream, scores=scores, text_ids=np.array(["0", "1"]), owners=np.array([0, 1]), **told)
    else:
        return save({"scores": scores})
    return stream.getvalue()


def _kept_ranks(file: str) -> bytes:
    """What `score matrix --ranks` writes of them."""
    found = match((2, 2), Pairs("pairs", {"0": "0", "1": "1"}))
    verdict = judge_scores(Matrix(np.array([[0.5, 0.25], [0.125, 1.0]])), found, Labels(scorer="given"))
    return format_ranks(verdict, Path(file).suffix).encode()


def _packed(file: str) -> bytes:
    """An archive with a video, one with a bad name, and a caption."""
    members = {"a.mp4": b"video" * 9, "../b.mp4": b"x", "a.txt": b"one, it"}
    stream = io.BytesIO()
    if file.endswith(".zip"):
        return _zipped(members, zipfile.ZIP_STORED)  # what is compressed cannot be mutated
    if file.endswith((".00", ".01")):
        whole = _packed("packed.tar")
        return whole[: len(whole) // 2] if file.endswith("0") else whole[len(whole) // 2 :]
    if file.endswith(".tar"):
        with tarfile.open(fileobj=stream, mode="w") as tar:
            for name, content in members.items():
                info = tarfile.TarInfo(name)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    else:
        return _parquet([{"video": {"bytes": b"video" * 9, "path": "a.mp4"}, "caption": "one, it"}])
    return stream.getvalue()


def _parquet(rows: list[dict[str, Any]]) -> bytes:
    """Rows as parquet; nothing where pyarrow is not there."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        return b""
    file = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), file)
    return file.getvalue()


def file_names(name: str, protocol: str) -> list[str]:
    """The annotation files of a protocol, patterns as the first of several shards."""
    choices = BENCHMARKS[name].protocols[protocol].files.values()
    return sorted({file.replace("*", "00000-of-00001") for split in choices for choice in split for file in choice})
