"""Which device a run computes on."""

from __future__ import annotations

import torch

from calmctl.errors import RecipeError


def choose_device(name: str) -> torch.device:
    """The device `name` ("auto", "cpu", "cuda", "mps"); raises `RecipeError` where there is none such."""
    found = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        return torch.device(next(kind for kind in ("cuda", "mps", "cpu") if found[kind]))
    if name not in found:
        raise RecipeError(f"device: there is no {name!r}; choose auto, cpu, cuda or mps")
    if not found[name]:
        raise RecipeError(f"device: {name} is not available on this machine; use device=auto or device=cpu")
    return torch.device(name)
