import json
import subprocess
import sys
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from calmctl.errors import CheckpointError, StoreError
from calmctl.files import sha256_file
from calmctl.tensors import load_tensors, read_metadata, save_tensors

TENSORS = {"b": torch.arange(6.0).view(2, 3), "a": torch.tensor([7]), "half": torch.ones(3, dtype=torch.float16)}
ABOUT = {"step": 3, "named": {"é": [1.5, None, "x"]}}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    path = tmp_path_factory.mktemp("files") / "a.safetensors"
    save_tensors(path, TENSORS, ABOUT)
    return path.read_bytes()


def test_what_is_written_reads_back_and_is_the_same_file_every_time(tmp_path):
    first, second = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    for path in (first, second):
        save_tensors(path, TENSORS, ABOUT)
    tensors, metadata = load_tensors(first, what="test")
    assert metadata == ABOUT == read_metadata(first, what="test")
    assert tensors.keys() == TENSORS.keys() and all(torch.equal(tensors[name], TENSORS[name]) for name in TENSORS)
    assert sha256_file(first) == sha256_file(second)


@settings(max_examples=150)
@given(data=st.data())
def test_any_flipped_bit_is_noticed(whole, tmp_path_factory, data):
    place = data.draw(st.integers(0, len(whole) * 8 - 1))
    damaged = bytearray(whole)
    damaged[place // 8] ^= 1 << place % 8
    path = tmp_path_factory.getbasetemp() / "flipped.safetensors"
    path.write_bytes(damaged)
    with pytest.raises(CheckpointError, match=r"test: .*flipped\.safetensors"):
        load_tensors(path, what="test")


@settings(max_examples=60)
@given(data=st.data())
def test_any_cut_and_any_addition_is_noticed(whole, tmp_path_factory, data):
    kept = data.draw(st.integers(0, len(whole) - 1))
    path = tmp_path_factory.getbasetemp() / "cut.safetensors"
    for content in (whole[:kept], whole + whole[: kept + 1]):
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=r"test: .*cut\.safetensors"):
            load_tensors(path, what="test")


def test_files_of_other_programs_pass_only_where_they_may(tmp_path):
    path = tmp_path / "theirs.safetensors"
    save_file({"x": torch.ones(2)}, path, metadata={"format": "pt"})
    with pytest.raises(StoreError, match="calmctl did not write it"):
        load_tensors(path, what="test", error=StoreError)
    assert torch.equal(load_tensors(path, what="test", ours=False)[0]["x"], torch.ones(2))
    # One that claims to be ours is held to it.
    save_file({"x": torch.ones(2)}, path, metadata={"calmctl": json.dumps({"step": 1})})
    with pytest.raises(CheckpointError, match="SHA-256"):
        load_tensors(path, what="test", ours=False)


@pytest.mark.parametrize(
    ("factory", "arguments", "named"),
    [
        (torch.eye, (3,), {}),
        (torch.eye, (3, 4), {}),
        (torch.eye, (), {"n": 3, "m": 2}),
        (torch.arange, (5,), {}),
        (torch.arange, (2, 9, 3), {}),
        (torch.arange, (0, 1, 0.3), {}),
        (torch.arange, (), {"end": 4}),
        (torch.full, ((2, 3), 1.0), {}),
        (torch.full, (), {"size": (2, 3), "fill_value": 1.0}),
        (torch.randn, (2, 3), {}),
        (torch.zeros, (2,), {"dtype": torch.float64}),
    ],
)
def test_what_a_factory_would_make_is_known_before_it_is_made(factory: Any, arguments: Any, named: Any) -> None:
    from calmctl.model.weights import _planned

    planned, made = _planned(factory, arguments, named), factory(*arguments, **named)
    assert planned.is_meta and planned.shape == made.shape
    assert planned.nbytes == made.nbytes


def test_a_bound_on_what_is_built_loads_no_tools_for_compilers() -> None:
    code = (
        "import sys, torch; from calmctl.model.weights import BuildLimit\n"
        "with BuildLimit([torch.zeros(9)], 'too large'): torch.randn(3), torch.eye(2), torch.arange(4)\n"
        "assert 'sympy' not in sys.modules and 'torch._dynamo' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
