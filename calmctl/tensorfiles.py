"""Tensors on disk: safetensors with JSON metadata, written whole, checked when read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from calmctl.errors import BadInput, CheckpointError
from calmctl.files import write_bytes

# Metadata of safetensors is str -> str: ours is one JSON document under one namespaced key.
_METADATA_KEY = "calmctl"


def save_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, Any]) -> None:
    """Write `tensors` and JSON `metadata` to `path` atomically. Raises `RunFailed` when it cannot."""
    flat = {name: tensor.detach().contiguous().cpu() for name, tensor in tensors.items()}
    write_bytes(path, save(flat, {_METADATA_KEY: json.dumps(metadata, allow_nan=False)}))


def load_tensors(
    path: Path, *, what: str, error: type[BadInput] = CheckpointError
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read a safetensors file; returns (tensors by name, our metadata or {}).

    Any fault (missing, truncated, not safetensors at all) becomes `error`, naming `what` and the file.
    """
    try:
        with safe_open(path, framework="pt") as handle:
            metadata = json.loads((handle.metadata() or {}).get(_METADATA_KEY, "{}"))
            return {name: handle.get_tensor(name) for name in handle.keys()}, metadata  # noqa: SIM118
    except FileNotFoundError:
        raise error(f"{what}: {path} does not exist") from None
    except (SafetensorError, OSError, ValueError, RecursionError) as fault:
        raise error(
            f"{what}: {path} is not a readable safetensors file ({fault}); it is damaged or of another format"
        ) from None


def read_metadata(path: Path, *, what: str, error: type[BadInput] = CheckpointError) -> dict[str, Any]:
    """Read only our metadata from a safetensors file, with the errors of `load_tensors`."""
    try:
        with safe_open(path, framework="pt") as handle:
            metadata: dict[str, Any] = json.loads((handle.metadata() or {}).get(_METADATA_KEY, "{}"))
            return metadata
    except FileNotFoundError:
        raise error(f"{what}: {path} does not exist") from None
    except (SafetensorError, OSError, ValueError, RecursionError) as fault:
        raise error(f"{what}: {path} is not a readable safetensors file ({fault})") from None
