"""Files that call themselves checkpoints."""

import json
import os
import pickle
import resource
import shutil

import pytest
import torch
from safetensors.torch import save_file

from calmctl.errors import CheckpointError
from calmctl.model.captioner import CaptionVocabulary
from calmctl.model.weights import load_backbone
from calmctl.runs.checkpoint import TRAINING_ONLY, load_run
from calmctl.runs.identity import weights_lineage
from calmctl.runs.run import Run, find_run
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


def towers(**changes):
    """The towers of a checkpoint's spec with other numbers."""

    def change(metadata, recipe):
        for tower, keys in changes.items():
            metadata["backbone"]["architecture"][tower] |= keys
        metadata["backbone"]["context_length"] = metadata["backbone"]["architecture"]["text_cfg"]["context_length"]

    return change


def in_recipe(**changes):
    def change(metadata, recipe):
        for section, keys in changes.items():
            recipe[section] |= keys

    return change


BOMBS = {
    "a layer of a tebibyte": towers(vision_cfg={"width": 1 << 19}),
    "a billion layers": towers(text_cfg={"layers": 1_000_000_000}),
    "ten billion tokens": towers(text_cfg={"vocab_size": 10**10}),
    "a patch as large as a film": towers(vision_cfg={"patch_size": 48, "width": 1 << 26, "head_width": 1 << 20}),
    "a mask that no weight tells of": towers(text_cfg={"context_length": 10**6}),
    "a head of 65,536 frames' positions": in_recipe(head={"kind": "seqtransf", "layers": 1000, "init": "random"}),
    "a captioner of 65,536 x 65,536": in_recipe(caption={"width": 65_536, "ffn": 65_536, "encoder_layers": 1000}),
}


@pytest.mark.parametrize("name", BOMBS)
@pytest.mark.parametrize("alone", [True, False], ids=["an export", "in its folder"])
def test_a_model_far_larger_than_its_file_is_not_built(run, tmp_path, refused, name, alone):
    copy = Run(shutil.copytree(run.folder, tmp_path / "copy"))
    state, metadata = load_tensors(run.weights("best"), what="test")
    recipe = run.recipe().model_dump(mode="json")
    BOMBS[name](metadata, recipe)
    if "captioner" in name:
        recipe["task"], state["captioner.token_ids"] = "caption", torch.arange(49_408)
    if alone:
        state = {key: each for key, each in state.items() if not key.startswith(TRAINING_ONLY)}
        metadata |= {"recipe": recipe, "vocabulary": run.vocabulary.read_text(), "slim": True}
    copy.recipe_file.write_text(json.dumps(recipe))
    save_tensors(copy.weights("best"), state, metadata)
    weights = sum(each.nbytes for each in state.values())
    asked = find_run(str(copy.weights("best")), tmp_path) if alone else copy
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(CheckpointError, match=r"far larger than its own tensors|up to 4,096"):
        load_run(asked, "best", CPU)
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < 4 * weights + (1 << 27)
    refused(KIND)


@pytest.mark.parametrize(
    "ids", [[49_406], [49_407, 49_406], [-1, 49_406, 49_407], [49_406, 49_407, 1 << 40], [0.5, 49_406, 49_407]], ids=str
)
def test_token_ids_that_are_none(run, refused, ids):
    with pytest.raises(CheckpointError, match="not ids of CLIP's tokens"):
        CaptionVocabulary(load_run(run, "best", CPU).backbone, torch.tensor(ids))
    refused(KIND)


def test_foreign_weights_build_no_more_than_they_hold(tmp_path, refused):
    """`--backbone their.json --weights their.safetensors`, both from a stranger."""
    config = {
        "embed_dim": 8,
        "vision_cfg": {"layers": 1, "width": 1 << 19, "image_size": 16, "patch_size": 8},
        "text_cfg": {"layers": 1, "width": 8, "context_length": 8, "vocab_size": 49408, "heads": 1},
        "preprocess_cfg": {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]},
    }
    (tmp_path / "their.json").write_text(json.dumps(config))
    save_file({"visual.proj": torch.ones(2, 2)}, tmp_path / "their.safetensors")
    with pytest.raises(CheckpointError, match="far larger than its own tensors"):
        load_backbone(str(tmp_path / "their.json"), str(tmp_path / "their.safetensors"))
    refused(KIND)
