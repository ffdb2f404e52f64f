"""Which device a run computes on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from calmctl.errors import RecipeError

if TYPE_CHECKING:
    import torch

DEVICES = ("auto", "cpu", "cuda", "mps")


def check_device(name: str) -> None:
    """Raise `RecipeError` where `name` is no device at all; whether there is one such, only torch can say."""
    if name not in DEVICES:
        raise RecipeError(f"device: there is no {name!r}; choose auto, cpu, cuda or mps")


def choose_device(name: str) -> torch.device:
    """The device `name`, one of `DEVICES`; raises `RecipeError` where there is none such."""
    import torch

    check_device(name)
    # CUDA before MPS before the CPU. Training in several processes is possible on the first and the last only
    # (`parallel.joined`).
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        return torch.device(next(kind for kind in ("cuda", "mps", "cpu") if available[kind]))
    if not available[name]:
        raise RecipeError(f"device: {name} is not available on this machine; use device=auto or device=cpu")
    return torch.device(name)
