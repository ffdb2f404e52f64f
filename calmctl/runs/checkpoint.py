"""Checkpoints: one safetensors file holds weights, optimiser, random state and position of a run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from calmctl.errors import CheckpointError
from calmctl.model.aligned import AlignedModel
from calmctl.tensorfiles import load_tensors, save_tensors

_MODEL, _OPTIMIZER, _RANDOM = "model/", "optimizer/", "random/"
TRAINING_ONLY = ("anchors.", "vae.", "log_temperature")
"""Weights that inference does not need: an export for inference leaves them out."""


@dataclass(slots=True)
class Position:
    """Where a run stands.

    Attributes:
        step: Optimiser steps done, over all epochs.
        epoch: Epochs done.
        best: Validation numbers of the best epoch so far, with its number under "epoch"; None before the first.
        history: Validation numbers of every epoch so far.
    """

    step: int = 0
    epoch: int = 0
    best: dict[str, float] | None = None
    history: list[dict[str, float]] | None = None


def save_state(path: Path, model: AlignedModel, optimizer: torch.optim.Optimizer, position: Position) -> None:
    """Write everything a run needs to go on from here, as one file that appears whole."""
    tensors = {f"{_MODEL}{name}": tensor for name, tensor in model.state_dict().items()}
    for name, moments in _moments(model, optimizer).items():
        tensors |= {f"{_OPTIMIZER}{name}/{key}": torch.as_tensor(value) for key, value in moments.items()}
    tensors[f"{_RANDOM}cpu"] = torch.get_rng_state()
    if torch.cuda.is_available():
        tensors |= {f"{_RANDOM}cuda{i}": s for i, s in enumerate(torch.cuda.get_rng_state_all())}
    save_tensors(
        path,
        tensors,
        {
            "step": position.step,
            "epoch": position.epoch,
            "best": position.best,
            "history": position.history or [],
        },
    )


def load_state(path: Path, model: AlignedModel, optimizer: torch.optim.Optimizer) -> Position:
    """Restore what `save_state` wrote; raises `CheckpointError` if it is damaged or of another recipe."""
    tensors, metadata = load_tensors(path, what="checkpoint")
    load_weights(model, _under(tensors, _MODEL), source=str(path))
    state = optimizer.state
    for name, parameter in model.named_parameters():
        moments = _under(tensors, f"{_OPTIMIZER}{name}/")
        if moments:
            state[parameter] = {
                key: value.to(parameter.device) if value.dim() else value for key, value in moments.items()
            }
    torch.set_rng_state(tensors[f"{_RANDOM}cpu"])
    cuda = [tensors[key] for key in sorted(tensors) if key.startswith(f"{_RANDOM}cuda")]
    if cuda and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(cuda)
    return Position(metadata["step"], metadata["epoch"], metadata["best"], metadata["history"])


def save_weights(path: Path, model: AlignedModel, *, slim: bool, about: dict[str, Any]) -> None:
    """Write the model's weights; `slim` leaves out anchors and VAE, which inference does not need."""
    state = {
        name: tensor for name, tensor in model.state_dict().items() if not (slim and name.startswith(TRAINING_ONLY))
    }
    save_tensors(path, state, {**about, "backbone": model.backbone.identity, "slim": slim})


def load_weights(model: AlignedModel, state: dict[str, Tensor], *, source: str) -> None:
    """Load `state` into `model`, strictly.

    Raises `CheckpointError` naming the first weight that is missing, unknown or of another shape.
    """
    own = model.state_dict()
    shapes = {name for name in own.keys() & state.keys() if own[name].shape != state[name].shape}
    wrong = sorted((own.keys() ^ state.keys()) | shapes)
    if wrong:
        raise CheckpointError(
            f"{source} does not fit the recipe: {len(wrong)} weights are missing, unknown or of another shape "
            f"(first: {wrong[0]}); use the recipe stored beside it"
        )
    model.load_state_dict(state)


def _moments(model: AlignedModel, optimizer: torch.optim.Optimizer) -> dict[str, dict[str, Any]]:
    return {
        name: optimizer.state[parameter] for name, parameter in model.named_parameters() if parameter in optimizer.state
    }


def _under(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name[len(prefix) :]: tensor for name, tensor in tensors.items() if name.startswith(prefix)}
