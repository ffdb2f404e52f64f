"""Feeds every reader of files that people bring with bytes that nobody meant, and counts what comes out.

    python benchmarks/fuzz.py                        # 3,000 inputs a reader
    python benchmarks/fuzz.py --inputs 20000 --seed 7
    python benchmarks/fuzz.py --only msvd vocabulary

An input is a set of well-formed files with pieces put in, cut out, doubled or exchanged, or with any bytes at all. A
reader must give a result or one of our errors (`calmctl.errors`), within ten seconds and 256 MB, and no clip outside
the folder of clips. Everything else is printed with the seed that makes it again, and the program ends with 1.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import pickle
import random
import resource
import shutil
import signal
import sys
import tarfile
import tempfile
import time
import zipfile
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save

from calmctl.anchors.label_lists import read_labels
from calmctl.anchors.vocabulary import load_vocabulary
from calmctl.data.benchmarks.msvd import read_pickle
from calmctl.data.packed import Unpacked, archive_of, list_archive, unpack
from calmctl.data.registry import BENCHMARKS, load_dataset
from calmctl.errors import CalmError
from calmctl.evaluation.card import cards_in
from calmctl.evaluation.result import Labels
from calmctl.recipe.load import load_recipe
from calmctl.referee.moments import read_answers, read_truth, score_moments
from calmctl.referee.rank_files import format_ranks, read_ranks
from calmctl.referee.score_files import Pairs, read_pairs, read_stored
from calmctl.referee.scores import Matrix, judge_scores, match
from calmctl.samples import Dataset

LIMIT_S = 10
LIMIT_BYTES = 256 * 1024**2
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

PIECES = [
    b"null", b"true", b"-1", b"1e999", b"[]", b"{}", b'"a"', b'"\\ud800"', b'"../a"', b"../a", b"/a", b"..", b"\n",
    b"\r", b"\t", b",", b'"', b"\0", b"\xff", b"\xef\xbb\xbf", "\u2028\u00e9".encode(), b"a", b"video0", b"[" * 2000,
    b"9" * 5000, b"&x ", b"*x", b"!!python/object/apply:os.system ['true']", b": ", b"- ", b"  ", b"? ", b"|\n", b"%",
    b"---\n", b"cos\nsystem\n", b"R", b"\x93", b"q\x00", b"h\x00", b"\x94", b"(", b"t", b"X\xff\xff\xff\x7f", b"\x8d",
    b".", b"0x", b"1_0", b"12:30", b"#", b"{" * 500, b"<<: ", b"=",
]  # fmt: skip
"""What is put into them."""


@dataclass(frozen=True)
class Reader:
    """One reader: the files it wants, and how it is called on the folder that holds them and the folder of clips."""

    files: tuple[str, ...]
    read: Callable[[Path, Path], Any]


def readers() -> dict[str, Reader]:
    result = {}
    for name, benchmark in BENCHMARKS.items():
        for protocol in benchmark.protocols:
            result[f"{name} {protocol}".strip()] = Reader(tuple(file_names(name, protocol)), _dataset(name, protocol))
    arrays = (
        *(f"public_split/{split}_names.npy" for split in ("trn", "val", "tst")),
        "annotation/RET/ref_captions.json",
    )
    result["vatex hgr, arrays"] = Reader(arrays, _dataset("vatex", "hgr"))
    for captions in ("captions.csv", "captions.json", "captions.jsonl", "captions.parquet"):
        result[f"folder, {captions}"] = Reader((captions, "train.txt", "test.txt"), _dataset("folder", ""))
    for packed in ("packed.zip", "packed.tar", "packed.parquet"):
        result[f"unpack, {packed}"] = Reader((packed,), _unpack(packed))
    for file in ("s.npy", "s.npz", "s.csv", "s.parquet", "s.safetensors"):
        result[f"scores, {file}"] = Reader((file,), _scores(file))
    for file in ("pairs.csv", "pairs.json", "pairs.jsonl"):
        result[f"pairs, {file}"] = Reader((file,), _pairs(file))
    for file in ("ranks.json", "ranks.csv"):
        result[f"ranks, {file}"] = Reader((file,), _ranks(file))
    result["protocol cards"] = Reader(("ranks.json",), lambda root, _: list(cards_in(root / "ranks.json")))
    for file in ("timed.jsonl", "timed.txt", "timed.json"):
        result[f"moments, {file}"] = Reader((file, "answers.jsonl"), _moments(file))
    result["pickled captions"] = Reader(("raw-captions.pkl",), lambda root, _: read_pickle(root / "raw-captions.pkl"))
    result["vocabulary"] = Reader(
        ("vocabulary.yaml",), lambda root, _: load_vocabulary(root / "vocabulary.yaml", check_digest=False)
    )
    for labels in ("labels.txt", "labels.csv", "labels.json"):
        result[f"labels, {labels}"] = Reader((labels,), _labels(labels))
    result["recipe"] = Reader(("recipe.yaml",), lambda root, _: load_recipe(root / "recipe.yaml"))
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
            assert not strays and size < 2 << 20 and not any(path.is_symlink() for path in out.rglob("*"))

    return read


def _scores(file: str) -> Callable[[Path, Path], Any]:
    return lambda root, _: read_stored(root / file, "scores").array(("scores",), (2,), "the matrix")


def _pairs(file: str) -> Callable[[Path, Path], Any]:
    return lambda root, _: read_pairs(root / file)


def _ranks(file: str) -> Callable[[Path, Path], Any]:
    return lambda root, _: read_ranks(root / file)


def _moments(file: str) -> Callable[[Path, Path], Any]:
    def read(root: Path, _: Path) -> Any:
        truth = read_truth(root / file)
        return score_moments(read_answers(root / "answers.jsonl", truth), truth).to_json()

    return read


def _labels(file: str) -> Callable[[Path, Path], Any]:
    return lambda root, _: read_labels(root / file)


def _dataset(name: str, protocol: str) -> Callable[[Path, Path], Dataset]:
    return lambda root, videos: load_dataset(name, None, protocol=protocol, annotations=root, videos=videos)


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
        with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in members.items():
                archive.writestr(name, content)
    elif file.endswith(".tar"):
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


def mutated(file: str, rng: random.Random) -> bytes | None:
    """Some bytes for `file`; None for no such file."""
    kind = rng.random()
    if kind < 0.1:
        return None
    if kind < 0.25:
        return rng.randbytes(rng.randrange(200))
    content = well_formed(file)
    for _ in range(rng.choice((0, 1, 1, 2, 3, 8))):
        start = rng.randint(0, len(content))
        end = min(len(content), start + rng.choice((0, 0, 1, 4, 12, 60)))
        piece = rng.choice((rng.choice(PIECES), rng.randbytes(rng.randrange(4)), content[start:end] * 2))
        content = content[:start] + piece + content[end:]
    return content


def outside(result: Any, videos: Path) -> bool:
    """Whether a dataset has a clip that is not below the folder of clips."""
    if not isinstance(result, Dataset):
        return False
    paths = [clip.path for split in result.splits.values() for clip in split.clips]
    return not all(Path(os.path.normpath(path)).is_relative_to(videos) for path in paths)


def fuzz(reader: Reader, inputs: int, seed: int) -> tuple[Counter[str], float, list[str]]:
    """What came out of `inputs` inputs, the longest time that one took, and what should not have come out."""
    outcomes: Counter[str] = Counter()
    slowest_s = 0.0
    faults: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        root, videos = Path(folder) / "annotations", Path(folder) / "clips"
        root.mkdir()
        videos.mkdir()
        for clip in CLIPS:
            (videos / f"{clip}.mp4").touch()
        for number in range(inputs):
            rng = random.Random(f"{seed} {number}")
            # Mostly one file at a time: a reader that stops at the first fault would see little of the others.
            touched = set(rng.sample(reader.files, min(len(reader.files), rng.choice((1, 1, 1, 2, 9)))))
            for file in reader.files:
                content = mutated(file, rng) if file in touched else well_formed(file)
                (root / file).unlink(missing_ok=True)
                (root / file).parent.mkdir(parents=True, exist_ok=True)
                if content is not None:
                    (root / file).write_bytes(content)
            started = time.perf_counter()
            signal.alarm(LIMIT_S)
            try:
                result = reader.read(root, videos)
            except CalmError as error:
                outcomes["our errors"] += 1
                if not str(error).strip() or len(str(error)) > 4000:
                    faults.append(f"input {number}: a message of {len(str(error))} characters")
            except BaseException as error:
                outcomes["anything else"] += 1
                faults.append(f"input {number}: {type(error).__name__}: {str(error)[:200]}")
                if isinstance(error, KeyboardInterrupt):
                    raise
            else:
                outcomes["results"] += 1
                if outside(result, videos):
                    faults.append(f"input {number}: a clip outside its folder")
            finally:
                signal.alarm(0)
            slowest_s = max(slowest_s, time.perf_counter() - started)
    return outcomes, slowest_s, faults


def peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def out_of_time(*_: object) -> None:
    raise TimeoutError(f"longer than {LIMIT_S} s")


def limit_memory() -> None:
    """Let no reader have more than `LIMIT_BYTES` beyond what the process has now (Linux)."""
    try:
        in_use = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    except FileNotFoundError:
        return
    resource.setrlimit(resource.RLIMIT_AS, (in_use + LIMIT_BYTES, resource.RLIM_INFINITY))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--inputs", type=int, default=3000, help="for each reader")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="*", default=[], help="readers whose name begins so")
    options = parser.parse_args()
    chosen: Mapping[str, Reader] = {
        name: reader for name, reader in readers().items() if not options.only or name.startswith(tuple(options.only))
    }
    signal.signal(signal.SIGALRM, out_of_time)
    for reader in readers().values():  # libraries take more memory to load than a reader may have
        for file in reader.files:
            well_formed(file)
    import calmctl.tensors  # noqa: F401

    limit_memory()
    total, failed = 0, False
    print(f"{'reader':<24}{'inputs':>8}{'results':>9}{'our errors':>12}{'else':>6}{'slowest ms':>12}{'peak + MB':>11}")
    for name, reader in chosen.items():
        before = peak_bytes()
        outcomes, slowest_s, faults = fuzz(reader, options.inputs, options.seed)
        total += options.inputs
        grown = (peak_bytes() - before) / 1024**2
        print(
            f"{name:<24}{options.inputs:>8,}{outcomes['results']:>9,}{outcomes['our errors']:>12,}"
            f"{outcomes['anything else']:>6}{slowest_s * 1000:>12.1f}{grown:>11.1f}",
            flush=True,
        )
        for fault in faults[:5]:
            failed = True
            print(f"    seed {options.seed}, {fault}")
    print(f"{total:,} inputs tried")
    sys.exit(failed)


if __name__ == "__main__":
    main()
