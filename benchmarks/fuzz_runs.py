"""Readers of what calmctl itself writes: weights, runs, stores, indices, kept frames. Strangers pass them on, too.

Their digests are made to fit again after a mutation (`Reader.seal`), four times out of five: whoever changes a file
can change its digest. So what is checked behind it is reached. The files are those of `tests/golden`.
"""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

import fuzz_files
import numpy as np
import torch
from fuzz_base import Reader, one_file
from torch import nn

from calmctl.errors import BadInput, VideoError
from calmctl.evaluation.compare import KeptEvaluation, compare_kept, markdown, read_kept
from calmctl.files import sha256_bytes
from calmctl.model.convert import read_foreign
from calmctl.model.spec import read_architecture
from calmctl.runs.catalogue import run_record
from calmctl.runs.identity import run_identity, weights_identity, weights_lineage
from calmctl.runs.publish import model_card, published_results
from calmctl.runs.run import Run, find_run
from calmctl.samples import Clip
from calmctl.search.rows import About, FileStat, ShardStat, read_about, trusted_file
from calmctl.search.windows import windows_of
from calmctl.store import format as fmt
from calmctl.store.store import FeatureStore, read_sources
from calmctl.tensors import _BLANK, _OPENING, _PLACE, load_tensors, read_metadata, save_tensors
from calmctl.video import cache as frame_cache
from calmctl.video.pixels import FrameReader, FrameResize

GOLDEN = Path(__file__).parents[1] / "tests/golden"
_RUN, _STORE = GOLDEN / "runs/tiny-001", GOLDEN / "features/demo"
_RUN_FILES = (
    *("recipe.json", "run.json", "log.jsonl", "results.json", "vocabulary.yaml"),
    "evals/demo-retrieval-test-best.json",
)
_STAMP = [1, 2, 3, 4]
_KEY = "0" * 64


def readers() -> dict[str, Reader]:
    kept = "frames.frames"
    return {
        "weights": one_file("best.safetensors", _weights, _read_weights, fuzz_files.bombs, sealed),
        "weights of others": one_file("their.safetensors", _weights, _read_others, fuzz_files.bombs, sealed),
        "exported run": one_file("slim.safetensors", _weights, _read_export, fuzz_files.bombs, sealed),
        "TorchScript": one_file("their.pt", _pickled, read_foreign, _pickle_bombs, _in_torchscript),
        "torch checkpoint": one_file("their.pth", _pickled, read_foreign, _pickle_bombs, _in_checkpoint),
        "model config": one_file("clip.json", lambda _: _golden("tiny-clip.json"), _read_config, fuzz_files.bombs),
        "run": Reader(_RUN_FILES, _run_file, _read_run, fuzz_files.bombs),
        "kept evaluation": Reader((_RUN_FILES[-1], _RUN_FILES[0]), _run_file, _read_evaluation, fuzz_files.bombs),
        "store": Reader(("index.json", "catalogue.json"), _store_file, _read_store, fuzz_files.bombs, sealed),
        "store, shard": one_file("frames-00000.safetensors", _store_file, _read_shard, fuzz_files.bombs, sealed),
        "search index": one_file("about.json", _about, _read_about, fuzz_files.bombs, sealed),
        "lengths of videos": one_file(".durations.json", _durations, _read_durations, fuzz_files.bombs),
        "frame cache": one_file(kept, _frames, _read_frames, _frame_bombs, _sealed_frames),
    }


@cache
def _golden(name: str) -> bytes:
    return (GOLDEN / name).read_bytes()


def sealed(file: str, content: bytes) -> bytes:
    """With the digest that calmctl would have written, where the file is of that form."""
    if file.endswith(".safetensors"):
        if content[8:_PLACE] != _OPENING:
            return content
        blank = content[:_PLACE] + _BLANK + content[_PLACE + 64 :]
        return content[:_PLACE] + hashlib.sha256(blank).hexdigest().encode() + content[_PLACE + 64 :]
    try:
        value = json.loads(content)
        value.pop("sha256", None)
        compact = {"separators": (",", ":")} if file != "about.json" else {}
        digest = sha256_bytes(json.dumps(value, sort_keys=True, **compact).encode("ascii"))  # type: ignore[arg-type]
        return json.dumps({**value, "sha256": digest}).encode()
    except (ValueError, AttributeError, TypeError, RecursionError):
        return content


# Weights: small tensors with all the words that a slim file carries.


@cache
def _weights(_: str) -> bytes:
    import tempfile

    metadata = read_metadata(_RUN / "slim.safetensors", what="golden")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "w.safetensors"
        save_tensors(path, {"head.a": torch.ones(2, 3), "b": torch.zeros(4, dtype=torch.float16)}, metadata)
        return path.read_bytes()


def _read_weights(path: Path) -> Any:
    load_tensors(path, what="run x")
    return weights_identity(path), weights_lineage(str(path))


def _read_others(path: Path) -> Any:
    return load_tensors(path, what="weights", ours=False)


def _read_export(path: Path) -> Any:
    run = find_run(str(path), path.parent)
    return run.recipe(), run.anchors(), str(run.trained_on), run.task, run_identity(run)


@cache
def _archive(kind: str) -> bytes:
    """What torch writes: an archive of TorchScript, or a checkpoint."""
    stream, layer = io.BytesIO(), nn.Linear(2, 3)
    if kind.endswith(".pt"):
        torch.jit.save(torch.jit.script(layer), stream)  # type: ignore[no-untyped-call]
    else:
        torch.save(layer.state_dict(), stream)
    return stream.getvalue()


@cache
def _pickled(kind: str) -> bytes:
    """The pickle in it, which is what is mutated: behind a wrong checksum of the archive nothing would be reached."""
    with zipfile.ZipFile(io.BytesIO(_archive(kind))) as archive:
        return archive.read(next(name for name in archive.namelist() if name.endswith("/data.pkl")))


def _with_pickle(kind: str, pickled: bytes, more: dict[str, bytes] | None = None) -> bytes:
    stream = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(_archive(kind))) as archive,
        zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED if more else zipfile.ZIP_STORED) as out,
    ):
        members = {name: archive.read(name) for name in archive.namelist()}
        for name, content in members.items():
            replaced = pickled if name.endswith("/data.pkl") else content
            out.writestr(name, (more or {}).get(name.partition("/")[2], replaced))
    return stream.getvalue()


def _in_torchscript(_: str, pickled: bytes) -> bytes:
    return _with_pickle(".pt", pickled)


def _in_checkpoint(_: str, pickled: bytes) -> bytes:
    return _with_pickle(".pth", pickled)


@cache
def _pickle_bombs(file: str) -> tuple[bytes, ...]:
    kind, zeros = Path(file).suffix, bytes(1 << 24)
    nested = (b"\x80\x02" + b"]" * 20_000 + b"a" * 19_999 + b".", b"\x80\x02" + b"(" * (1 << 15) + b".")
    huge = (_with_pickle(kind, _pickled(kind), {"data/0": zeros}), _with_pickle(kind, b"", {"data.pkl": zeros}))
    return (*huge, *(_with_pickle(kind, each) for each in nested))


def _read_config(path: Path) -> Any:
    return read_architecture(str(path))


# Runs.


def _run_file(file: str) -> bytes:
    return _golden(f"runs/tiny-001/{file}")


def _read_run(root: Path, _: Path) -> Any:
    """What `runs ls`, `runs show`, `export` and a resume read of a folder."""
    run = Run(root)
    record = run_record(run).to_json()
    read: list[Callable[[], Any]] = [
        *(run.recipe, run.anchors, lambda: str(run.trained_on), lambda: run_identity(run)),
        *(lambda: run.read_log(1 << 40, 1 << 40), lambda: _card(run)),
    ]
    faults = [fault for fault in map(_fault, read) if fault is not None]
    if faults:
        raise faults[0]
    return record


def _card(run: Run) -> str:
    results = published_results(run, "x")
    return model_card("o/n", run.recipe(), run_identity(run), results, licence=None, parameters=1)


def _fault(read: Callable[[], Any]) -> BadInput | None:
    try:
        read()
    except BadInput as fault:
        return fault
    return None


def _read_evaluation(root: Path, _: Path) -> Any:
    kept: KeptEvaluation = read_kept(Run(root), root / _RUN_FILES[-1])
    return kept.card, kept.is_current, markdown(compare_kept([kept, kept]))


# Stores and indices.


def _store_file(file: str) -> bytes:
    return _golden(f"features/demo/{file}")


def _read_store(root: Path, _: Path) -> Any:
    store = FeatureStore.open(root)
    store.verify()
    for name in store.splits:
        split = store.split(name)
        assert all(0 <= owner < len(split.ids) for owner in split.owners)
    return store.left_out, store.pending


def _read_shard(path: Path) -> Any:
    """A shard whose digest the index vouches for."""
    if not path.exists():
        raise BadInput("no shard")
    index = fmt.read_document(_STORE / fmt.INDEX, fmt.Index)
    entry = index.shards[path.name].model_copy(update={"sha256": sha256_bytes(path.read_bytes())})
    index = index.model_copy(update={"shards": {path.name: entry}})
    store = FeatureStore(path.parent, index, fmt.read_document(_STORE / fmt.CATALOGUE, fmt.Catalogue))
    return store.frames(store.present("frames", 0)), read_sources(path)


@cache
def _about(_: str) -> bytes:
    about = About(
        key=_KEY,
        shards={"frames-00000.safetensors": ShardStat(mark=_KEY, rows=6, stamp=_STAMP)},
        files={"table": FileStat(name="about.json", sha256=_KEY, stamp=_STAMP)},
    )
    return sealed("about.json", about.model_dump_json().encode())


def _read_about(path: Path) -> Any:
    about = read_about(path.parent, _KEY)
    if about is None:
        raise BadInput("not a cache: it is made anew")
    return [trusted_file(path.parent, about, what) for what in about.files]


def _durations(_: str) -> bytes:
    return json.dumps({"a": [*_STAMP, 9.5, 0.0], "b": [*_STAMP, "no frames", 0.0]}).encode()


def _read_durations(path: Path) -> Any:
    """What is remembered; nothing is measured, and nothing written."""
    unmeasured = patch("calmctl.search.windows.measure", lambda clips: [(clip, VideoError("unread")) for clip in clips])
    fitting = patch("calmctl.search.windows.stamp", return_value=list(_STAMP))
    with unmeasured, fitting, patch("calmctl.search.windows.write_json"):
        return windows_of([Clip(key, path) for key in ("a", "b")], 1.0, 1.0, path)


# Frames kept on disk.


_READER = FrameReader(2, FrameResize(4))


@cache
def _frames(_: str) -> bytes:
    """An entry without its digest."""
    pixels = np.arange(2 * 4 * 4 * 3, dtype=np.uint8)
    header = {"calmctl_frames": frame_cache.FORMAT, "stamp": _STAMP, "shape": [2, 4, 4, 3], "sha256": _KEY}
    return json.dumps(header).encode() + b"\n" + pixels.tobytes()


def _sealed_frames(_: str, content: bytes) -> bytes:
    line, _, pixels = content.partition(b"\n")
    try:
        header = json.loads(line)
        header["sha256"] = frame_cache._digest(header["stamp"], header["shape"], memoryview(pixels))
        return json.dumps(header).encode() + b"\n" + pixels
    except (ValueError, LookupError, TypeError, RecursionError):
        return content


def _frame_bombs(_: str) -> tuple[bytes, ...]:
    shapes = ([2, 1 << 31, 1 << 31, 3], [2, 1 << 62, 4, 3], [2, 4, 4, 3, *[1] * 60], [2, -4, -4, 3], [2, 0, 0, 3])
    lines = (json.dumps({"stamp": _STAMP, "shape": shape, "sha256": _KEY}).encode() + b"\n" for shape in shapes)
    return (*(_sealed_frames("", line + bytes(96)) for line in lines), b"[" * 4000 + b"\n", bytes(1 << 22))


def _read_frames(path: Path) -> Any:
    kept = frame_cache.FrameCache(path.parent, "way", _READER.n_frames, FrameResize(4))
    with patch.object(frame_cache, "stamp", return_value=_STAMP), patch.object(type(kept), "path", lambda *_: path):
        try:
            frames = kept.read(Clip("a", path))
        except frame_cache._Unusable as reason:
            raise BadInput(str(reason)) from None
    assert frames.shape[0] == 2 and frames.shape[3] == 3
    return frames
