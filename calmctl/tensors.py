"""Tensors on disk: safetensors with JSON metadata, written whole, with a digest that is checked when read.

The digest is the SHA-256 of the whole file, taken with zeros in the digest's own place. That place is fixed: our
metadata is one JSON document that begins with it, and safetensors puts metadata before everything else.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

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
    with _opened(path, what, error, remedy="; it is damaged or of another format") as handle:
        metadata = _metadata(handle)
        whole = _is_whole(path)
        if whole is False or (whole is None and (ours or metadata)):
            raise error(
                f"{what}: {path} is damaged, or calmctl did not write it (the SHA-256 in its header does not "
                "fit); take another copy or train again"
            )
        return {name: handle.get_tensor(name) for name in handle.keys()}, metadata  # noqa: SIM118


def read_metadata(path: Path, *, what: str, error: type[BadInput] = CheckpointError) -> dict[str, Any]:
    """Read only our metadata from a safetensors file, unchecked; other faults become `error`."""
    with _opened(path, what, error) as handle:
        return _metadata(handle)


@contextmanager
def _opened(path: Path, what: str, error: type[BadInput], *, remedy: str = "") -> Iterator[Any]:
    try:
        open_regular(path).close()
        with safe_open(path, framework="pt") as handle:
            yield handle
    except FileNotFoundError:
        raise error(f"{what}: {path} does not exist") from None
    except (SafetensorError, OSError, ValueError, RecursionError) as fault:
        reason = (isinstance(fault, OSError) and fault.strerror) or fault
        raise error(f"{what}: {path} is not a readable safetensors file ({reason}){remedy}") from None


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
