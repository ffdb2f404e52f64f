"""Tensors on disk: safetensors with JSON metadata, written whole, with a digest that is checked when read.

The digest is the SHA-256 of the whole file, taken with zeros in the digest's own place. That place is fixed: our
metadata is one JSON document that begins with it, and safetensors puts metadata before everything else.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor
from torch.overrides import TorchFunctionMode

from calmctl.errors import BadInput, CheckpointError
from calmctl.files import open_regular, write_atomic

# Metadata of safetensors is str -> str: ours is one JSON document under one namespaced key.
_METADATA_KEY = "calmctl"
_DIGEST_KEY = "sha256"
_BLANK = b"0" * 64
_OPENING = b'{"__metadata__":{"calmctl":"{\\"sha256\\": \\"'
_PLACE = 8 + len(_OPENING)  # after the header's length, eight bytes
_PIECE = 1 << 20


def save_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, Any]) -> None:
    """Write `tensors` and JSON `metadata` to `path` atomically. Raises `RunFailed` when it cannot."""
    flat = {name: tensor.detach().contiguous().cpu() for name, tensor in tensors.items()}
    document = json.dumps({_DIGEST_KEY: _BLANK.decode(), **metadata}, allow_nan=False)
    content = memoryview(save(flat, {_METADATA_KEY: document}))
    assert content[8:_PLACE] == _OPENING and content[_PLACE : _PLACE + 64] == _BLANK

    def write(handle: BinaryIO) -> None:
        handle.write(content[:_PLACE])
        handle.write(hashlib.sha256(content).hexdigest().encode())
        handle.write(content[_PLACE + 64 :])

    write_atomic(path, write)


def load_tensors(
    path: Path, *, what: str, error: type[BadInput] = CheckpointError, ours: bool = True
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read a safetensors file; returns (tensors by name, our metadata or {}).

    Args:
        path: The file.
        what: What a message calls it.
        error: What any fault becomes: missing, truncated, one bit changed, not safetensors at all.
        ours: Only files that `save_tensors` wrote will do. Otherwise those of other programs pass as well,
            which carry no digest.
    """
    try:
        open_regular(path).close()
        with safe_open(path, framework="pt") as handle:
            metadata = _metadata(handle)
            whole = _is_whole(path)
            if whole is False or (whole is None and (ours or metadata)):
                raise error(
                    f"{what}: {path} is damaged, or calmctl did not write it (the SHA-256 in its header does not "
                    "fit); take another copy or train again"
                )
            return {name: handle.get_tensor(name) for name in handle.keys()}, metadata  # noqa: SIM118
    except FileNotFoundError:
        raise error(f"{what}: {path} does not exist") from None
    except (SafetensorError, OSError, ValueError, RecursionError) as fault:
        raise error(
            f"{what}: {path} is not a readable safetensors file ({_reason(fault)}); it is damaged or of another format"
        ) from None


def read_metadata(path: Path, *, what: str, error: type[BadInput] = CheckpointError) -> dict[str, Any]:
    """Read only our metadata from a safetensors file, unchecked; other faults become `error`."""
    try:
        open_regular(path).close()
        with safe_open(path, framework="pt") as handle:
            return _metadata(handle)
    except FileNotFoundError:
        raise error(f"{what}: {path} does not exist") from None
    except (SafetensorError, OSError, ValueError, RecursionError) as fault:
        raise error(f"{what}: {path} is not a readable safetensors file ({_reason(fault)})") from None


def _reason(fault: Exception) -> str:
    return str((isinstance(fault, OSError) and fault.strerror) or fault)


def _metadata(handle: Any) -> dict[str, Any]:
    metadata = json.loads((handle.metadata() or {}).get(_METADATA_KEY, "{}"))
    if not isinstance(metadata, dict):
        raise ValueError("its metadata is no JSON object")
    metadata.pop(_DIGEST_KEY, None)
    return metadata


def _is_whole(path: Path) -> bool | None:
    """Whether the file is the one its digest was taken of; None where it has none in the place of ours."""
    with open_regular(path) as handle:
        opening, recorded = handle.read(_PLACE), handle.read(64)
        if opening[8:] != _OPENING:
            return None
        digest = hashlib.sha256(opening + _BLANK)
        while piece := handle.read(_PIECE):
            digest.update(piece)
    return digest.hexdigest().encode() == recorded


# Models are built from what a file says of itself, and filled from its tensors afterwards. A stranger's file may say
# anything: a layer of 65,536 x 65,536, a billion layers. So building may take little more than the tensors do.

_TIMES = 3
"""Of the tensors' bytes (our choice): all models tried take 1.0 times, and float16 files become float32."""
_SPARE_BYTES = 1 << 26
_TENSORS_EACH = 8


@contextmanager
def no_larger_than(tensors: Collection[Tensor], fault: str) -> Iterator[None]:
    """Let nothing be built in the block that is much larger than `tensors`.

    A tensor that would go beyond that is not allocated: `CheckpointError` with `fault` is raised instead.
    """
    with _Allowance(tensors, fault):
        yield


class _Allowance(TorchFunctionMode):
    # Of torch's two kinds of modes the one that sees calls from Python: the other loads the whole compiler when it
    # is entered, five seconds before every run that is opened, and modules are built by calls from Python.
    _FACTORIES = frozenset(
        {torch.empty, torch.zeros, torch.ones, torch.full, torch.rand, torch.randn, torch.eye, torch.arange}
    )

    def __init__(self, tensors: Collection[Tensor], fault: str) -> None:
        super().__init__()
        self._fault = fault
        self._bytes = _TIMES * sum(tensor.nbytes for tensor in tensors) + _SPARE_BYTES
        self._tensors = _TENSORS_EACH * (len(tensors) + 32)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in self._FACTORIES and kwargs.get("out") is None:
            self._spend(_planned(func, args, kwargs))
        return func(*args, **kwargs)

    def _spend(self, planned: Tensor) -> None:
        self._bytes -= planned.nbytes
        self._tensors -= 1
        if self._bytes < 0 or self._tensors < 0:
            raise CheckpointError(self._fault)


def _planned(func: Any, args: Any, kwargs: Any) -> Tensor:
    """A tensor without memory, as large as the one that a factory would make."""
    # Always by `empty`: `randn`, `eye` and `arange` without memory load torch's tools for compilers, in seconds.
    plain = {name: value for name, value in kwargs.items() if name in ("size", "dtype", "layout")}
    if func is torch.eye:
        rows = args[0] if args else kwargs["n"]
        args = rows, args[1] if len(args) > 1 else kwargs.get("m") or rows
    elif func is torch.arange:
        bounds = [*args, *(kwargs[name] for name in ("start", "end", "step") if name in kwargs)]
        start, end, step = (0, *bounds, 1)[:3] if len(bounds) == 1 else (*bounds, 1)[:3]
        args = (max(0, math.ceil((end - start) / step)),)
        if all(type(bound) is int for bound in bounds):
            plain.setdefault("dtype", torch.int64)
    elif func is torch.full:
        args = args[:1]
    return torch.empty(*args, **{**plain, "device": torch.device("meta")})
