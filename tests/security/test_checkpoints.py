"""Files that call themselves checkpoints."""

import json
import os
import pickle
import shutil

import pytest
import torch

from calmctl.errors import CheckpointError
from calmctl.model.weights import load_backbone
from calmctl.runs.checkpoint import load_run
from calmctl.runs.identity import weights_lineage
from calmctl.tensors import load_tensors, save_tensors

CPU = torch.device("cpu")
KIND = "checkpoint"


class Payload:
    """Unpickling it makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def entry(shape, begin, end, dtype="F32"):
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def safetensors(header, data=b"\0" * 8, length=None):
    """A file with this header, given as JSON or as bytes, and with any length told for it."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


FILES = {
    "empty": b"",
    "no header": b"\0" * 8,
    "seven bytes": b"\1" * 7,
    "header beyond the file": safetensors({}, length=10_000),
    "header of 2^63 bytes": safetensors({}, length=1 << 63),
    "header of 2^64 - 1 bytes": safetensors({}, length=(1 << 64) - 1),
    "header not JSON": safetensors(b"{'a': 1}"),
    "header not UTF-8": safetensors(b'{"\xff": 1}'),
    "header a list": safetensors([1, 2]),
    "header nested deeply": safetensors(b'{"a":' * 50_000 + b"1" + b"}" * 50_000),
    "offsets overlap": safetensors({"a": entry([2], 0, 8), "b": entry([1], 4, 8)}),
    "offsets equal": safetensors({"a": entry([2], 0, 8), "b": entry([2], 0, 8)}),
    "offsets backwards": safetensors({"a": entry([2], 8, 0)}),
    "offsets beyond the file": safetensors({"a": entry([1 << 20], 0, 4 << 20)}),
    "offsets negative": safetensors({"a": entry([2], -8, 0)}),
    "hole before the data": safetensors({"a": entry([1], 4, 8)}),
    "data after the end": safetensors({"a": entry([1], 0, 4)}),
    "key twice": safetensors(b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},'
                             b'"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}'),
    "key twice alike": safetensors(b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},'
                                   b'"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}'),
    "shape too large for memory": safetensors({"a": entry([1 << 40], 0, 8)}),
    "shape that overflows": safetensors({"a": entry([1 << 62, 4], 0, 8)}),
    "shape negative": safetensors({"a": entry([-2], 0, 8)}),
    "shape fractional": safetensors({"a": entry([1.5], 0, 8)}),
    "shape missing": safetensors({"a": {"dtype": "F32", "data_offsets": [0, 8]}}),
    "dtype unknown": safetensors({"a": entry([2], 0, 8, "PICKLE")}),
    "metadata not text": safetensors({"__metadata__": {"calmctl": 5}, "a": entry([2], 0, 8)}),
    "metadata not JSON": safetensors({"__metadata__": {"calmctl": "{"}, "a": entry([2], 0, 8)}),
    "metadata a list": safetensors({"__metadata__": {"calmctl": "[1]"}, "a": entry([2], 0, 8)}),
    "metadata nested deeply": safetensors({"__metadata__": {"calmctl": "[" * 100_000}, "a": entry([2], 0, 8)}),
    "digest of another file": safetensors(
        {"__metadata__": {"calmctl": json.dumps({"sha256": "0" * 64})}, "a": entry([2], 0, 8)}
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_files_that_lie_about_themselves(tmp_path, refused, name):
    path = tmp_path / "best.safetensors"
    path.write_bytes(FILES[name])
    with pytest.raises(CheckpointError, match=r"run x: .*best\.safetensors"):
        load_tensors(path, what="run x")
    refused(KIND)


@pytest.mark.parametrize("write", ["pickle", "torch", "torch old"])
@pytest.mark.parametrize("ours", [True, False])
def test_a_pickle_under_another_name_runs_nothing(tmp_path, refused, write, ours):
    path, trace = tmp_path / "best.safetensors", tmp_path / "it-ran"
    payload = {"a": torch.ones(2), "b": Payload(trace)}
    if write == "pickle":
        path.write_bytes(pickle.dumps(payload))
    else:
        torch.save(payload, path, _use_new_zipfile_serialization=write == "torch")
    with pytest.raises(CheckpointError, match="not a readable safetensors file"):
        load_tensors(path, what="run x", ours=ours)
    with pytest.raises(CheckpointError):
        load_backbone("demo-clip", str(path))
    assert not trace.exists()
    refused(KIND)


@pytest.mark.parametrize("place", ["/dev/zero", "/dev/null", "."])
def test_what_is_no_file(tmp_path, refused, place):
    (tmp_path / "best.safetensors").symlink_to(place)
    with pytest.raises(CheckpointError):
        load_tensors(tmp_path / "best.safetensors", what="run x")
    refused(KIND)


def widen(state):
    name = next(name for name in state if name.startswith("head."))
    state[name] = torch.zeros(*state[name].shape, 2)


def huge(state):
    state["head.extra"] = torch.zeros(0, 1 << 40)


CHANGES = {
    "shapes of another recipe": widen,
    "a weight too many": huge,
    "no weights": dict.clear,
    "names that are paths": lambda state: state.update({"../../x": torch.zeros(1)}),
    "names that are attributes": lambda state: state.update({"__class__.__init__": torch.zeros(1)}),
    "values that are no numbers": lambda state: state["backbone.clip.logit_scale"].fill_(float("nan")),
    "values without end": lambda state: state["backbone.clip.text_projection"].fill_(float("inf")),
    "integers for weights": lambda state: state.update({k: v.long() for k, v in state.items()}),
}


@pytest.mark.parametrize("name", CHANGES)
def test_weights_that_fit_no_recipe(run, tmp_path, refused, name):
    copy = type(run)(shutil.copytree(run.folder, tmp_path / "copy"))
    state, metadata = load_tensors(run.weights("best"), what="test")
    CHANGES[name](state)
    save_tensors(copy.weights("best"), state, metadata)  # with a digest that fits
    with pytest.raises(CheckpointError):
        load_run(copy, "best", CPU)
    refused(KIND)


@pytest.mark.parametrize("value", [None, 3, "x", [], [1], {"weights": ["x"]}], ids=str)
def test_metadata_of_other_types_does_nothing(run, tmp_path, refused, value):
    copy = type(run)(shutil.copytree(run.folder, tmp_path / "copy"))
    state, metadata = load_tensors(run.weights("best"), what="test")
    save_tensors(copy.weights("best"), state, metadata | {"backbone": value})
    load_run(copy, "best", CPU)
    save_tensors(copy.weights("best"), state, metadata | {"trained_on": value})
    if not isinstance(value, list) or value == [1]:
        with pytest.raises(CheckpointError, match="does not say in plain words"):
            weights_lineage(str(copy.weights("best")))
    refused(KIND)
