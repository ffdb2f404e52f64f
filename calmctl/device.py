"""Which device a run computes on."""

from __future__ import annotations

import torch

from calmctl.errors import RecipeError


def choose_device(name: str) -> torch.device:
    """The device `name` ("auto", "cpu", "cuda", "mps"); raises `RecipeError` where the machine has none such."""
    found = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        return torch.device(next(kind for kind in ("cuda", "mps", "cpu") if found[kind]))
    if not found[name]:
        raise RecipeError(f"device: {name} is not available on this machine; use device=auto or device=cpu")
    return torch.device(name)
