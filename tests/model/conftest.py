"""A transcription of the heads' formulas in numpy and float64, one pair at a time, and trained-like weights."""

from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

Array = np.ndarray


def _weights(module: nn.Module) -> dict[str, Array]:
    return {name: tensor.detach().double().numpy() for name, tensor in module.state_dict().items()}


def _layer_norm(x: Array, weights: dict[str, Array], name: str) -> Array:
    spread = np.sqrt(((x - x.mean()) ** 2).mean() + 1e-5)
    return (x - x.mean()) / spread * weights[f"{name}.weight"] + weights[f"{name}.bias"]


def _linear(x: Array, weights: dict[str, Array], name: str) -> Array:
    return weights[f"{name}.weight"] @ x + weights[f"{name}.bias"]


def _softmax(x: Array) -> Array:
    return np.exp(x) / np.exp(x).sum()


def cos(a: Array, b: Array) -> float:
    return float(a @ b / np.sqrt((a @ a) * (b @ b)))


def pool(pooling: nn.Module, text: Array, frames: Array, *, linear_branch: bool = True) -> Array:
    """V(v|t) [D] of one text [D] and one video's frames [F, D]."""
    w = _weights(pooling)
    heads, width = pooling.heads, len(text) // pooling.heads
    q = _linear(_layer_norm(text, w, "input_norm"), w, "query")
    b = [_layer_norm(frame, w, "input_norm") for frame in frames]
    k = [_linear(x, w, "key") for x in b]
    v = [_linear(x, w, "value") for x in b]
    attended = []
    for head in range(heads):
        part = slice(head * width, (head + 1) * width)
        attention = _softmax(np.array([key[part] @ q[part] for key in k]) / np.sqrt(width))
        attended.append(sum(a * value[part] for a, value in zip(attention, v, strict=True)))
    z = _layer_norm(_linear(np.concatenate(attended), w, "out"), w, "pooled_norm")
    return _layer_norm(z + _linear(z, w, "linear") * linear_branch, w, "output_norm")


def radius(module: nn.Module, text: Array, frames: Array) -> Array:
    """R [D] of one text [D] and one video's frames [F, D]."""
    return np.exp(_linear(np.array([cos(text, frame) for frame in frames]), _weights(module), "linear"))


@pytest.fixture(scope="session")
def formulas() -> SimpleNamespace:
    """`pool`, `radius` and `cos` as docs/science.md writes them."""
    return SimpleNamespace(pool=pool, radius=radius, cos=cos)


@pytest.fixture(scope="session")
def trained() -> Callable[..., nn.Module]:
    """Moves every parameter of a module away from its initial value, as training would."""

    def move(module: nn.Module, seed: int = 0, step: float = 0.05) -> nn.Module:
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in module.parameters():
                parameter += step * torch.randn(parameter.shape, generator=generator).to(parameter)
        return module

    return move
