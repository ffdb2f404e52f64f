"""Checkpoints as one safetensors file each, and a trained model again from its run folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from calmctl.errors import CheckpointError
from calmctl.model.backbone import Backbone, fingerprint
from calmctl.model.build import build_caption_model, build_model
from calmctl.model.calm import AlignedModel, CalmModel
from calmctl.model.captioner import CaptionModel
from calmctl.model.published import is_embedder
from calmctl.model.spec import read_spec
from calmctl.model.weights import BuildLimit, build_unrecorded, rebuild
from calmctl.recipe import Recipe
from calmctl.runs.identity import require_together
from calmctl.runs.run import Run
from calmctl.tensors import load_tensors, save_tensors

# Tensors and JSON, no pickle: nothing executable is loaded, from one's own disk either.
_MODEL, _OPTIMIZER, _RANDOM = "model/", "optimizer/", "random/"
TRAINING_ONLY = ("anchors.", "vae.", "reverse_vae.", "log_temperature", "auto_temperature")
"""Weights of the alignment loss, which inference does not need."""

LEFT_OUT = (*TRAINING_ONLY, "head.probability.")
"""Weights that an export for inference leaves out; `for_inference` is the recipe of what is left."""


@dataclass(slots=True)
class Position:
    """Where a run stands.

    Attributes:
        step, epoch: Optimiser steps done, over all epochs, and epochs done.
        best: Validation numbers of the best epoch so far, with its number under "epoch"; None before the first.
        history: Validation numbers of every epoch so far.
        left_out: Clips met so far that cannot be used, by split, with reasons.
        processes: How many processes train together.
    """

    step: int = 0
    epoch: int = 0
    best: dict[str, float] | None = None
    history: list[dict[str, float]] | None = None
    left_out: dict[str, dict[str, str]] = field(default_factory=dict)
    processes: int = 1


def random_state() -> dict[str, Tensor]:
    """The state of this process's random numbers, on the CPU and on its GPU."""
    state = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def save_state(
    path: Path,
    model: AlignedModel,
    optimizer: torch.optim.Optimizer,
    position: Position,
    random: Sequence[dict[str, Tensor]],
    *,
    run: str = "",
) -> None:
    """Write everything a run needs to go on from here, as one file that appears whole.

    `random` has the `random_state` of every process; `run` tells the run from others (`identity.state_digest`).
    """
    tensors = {f"{_MODEL}{name}": tensor for name, tensor in model.state_dict().items()}
    # By the parameter's name, where torch has its number: a number means another weight when a module is added.
    for name, moments in _moments(model, optimizer).items():
        tensors |= {f"{_OPTIMIZER}{name}/{key}": torch.as_tensor(value) for key, value in moments.items()}
    for rank, state in enumerate(random):
        tensors |= {f"{_RANDOM}{rank}/{device}": tensor for device, tensor in state.items()}
    save_tensors(
        path,
        tensors,
        {
            "step": position.step,
            "epoch": position.epoch,
            "best": position.best,
            "history": position.history or [],
            "left_out": position.left_out,
            "processes": position.processes,
            "run": run,
            "backbone": fingerprint(model.backbone),
        },
    )


def load_state(
    path: Path, model: AlignedModel, optimizer: torch.optim.Optimizer, *, rank: int = 0, run: str = ""
) -> Position:
    """Restore what `save_state` wrote; raises `CheckpointError` if it is damaged, of another recipe or of another run.

    Random numbers become those of process `rank`, where there was such a process.
    """
    tensors, metadata = load_tensors(path, what="checkpoint")
    # Checkpoints from before this digest pass.
    if run and metadata.get("run") and metadata["run"] != run:
        raise CheckpointError(
            f"{path} is not of the run that run.json beside it describes; put back its own, or start anew"
        )
    position = _position(metadata, source=str(path))
    spec = read_spec(metadata, source=str(path))
    if spec is not None:
        model.backbone.spec.require_reading(spec, source=str(path))
    load_weights(model, _with_prefix(tensors, _MODEL), source=str(path))
    state = optimizer.state
    for name, parameter in model.named_parameters():
        moments = _with_prefix(tensors, f"{_OPTIMIZER}{name}/")
        # The count of steps is a scalar; all else has its parameter's shape.
        if any(value.dim() and value.shape != parameter.shape for value in moments.values()):
            raise CheckpointError(f"{path} does not fit the recipe: the optimiser's state of {name} has another shape")
        if moments:
            # All of it: a fused optimiser reads its count of steps where the weights are.
            state[parameter] = {key: value.to(parameter.device) for key, value in moments.items()}
    try:
        if rank < position.processes:
            random = _with_prefix(tensors, f"{_RANDOM}{rank}/")
            torch.set_rng_state(random["cpu"])
            if "cuda" in random and torch.cuda.is_available():
                torch.cuda.set_rng_state(random["cuda"])
    except (KeyError, RuntimeError, TypeError):
        raise CheckpointError(f"{path} holds no random state that fits here; it is no checkpoint of a run") from None
    return position


def save_weights(path: Path, model: AlignedModel, *, slim: bool, about: dict[str, Any]) -> None:
    """Write the model's weights; `slim` leaves out what inference does not need (`LEFT_OUT`)."""
    state = {name: tensor for name, tensor in model.state_dict().items() if not (slim and name.startswith(LEFT_OUT))}
    save_tensors(path, state, {**about, "backbone": fingerprint(model.backbone), "slim": slim})


def load_weights(model: AlignedModel, state: dict[str, Tensor], *, source: str) -> None:
    """Load `state` into `model`, strictly.

    Raises `CheckpointError` naming the first weight that is missing, unknown, of another shape or number
    format, or that holds a value that is no finite number.
    """
    own = model.state_dict()
    known = own.keys() & state.keys()
    # The number format too: a float16 copy would load, and be another model without a word.
    other = {name for name in known if (own[name].shape, own[name].dtype) != (state[name].shape, state[name].dtype)}
    wrong = sorted((own.keys() ^ state.keys()) | other)
    if wrong:
        raise CheckpointError(
            f"{source} does not fit the recipe: {len(wrong)} weights are missing, unknown or of another shape "
            f"(first: {wrong[0]}); use the recipe stored beside it"
        )
    endless = [name for name, _ in model.named_parameters() if not torch.isfinite(state[name]).all()]
    if endless:
        raise CheckpointError(
            f"{source} holds values that are not finite numbers in {len(endless)} weights (first: {endless[0]}); "
            "take another checkpoint"
        )
    model.load_state_dict(state)


def _position(metadata: dict[str, Any], *, source: str) -> Position:
    """Where a checkpoint says it stands."""
    try:
        position = TypeAdapter(Position).validate_python(metadata)
    except ValidationError:
        # Which the test below refuses, with its sentence.
        position = Position(step=-1)
    history = position.history or []
    begun = position.best is None if position.epoch == 0 else "score" in (position.best or {})
    if (
        not 0 <= position.epoch <= position.step
        or position.processes < 1
        or len(history) != position.epoch
        or not begun
    ):
        raise CheckpointError(f"{source} does not say where its run stands; it is no checkpoint of a run")
    return position


def _moments(model: AlignedModel, optimizer: torch.optim.Optimizer) -> dict[str, dict[str, Any]]:
    return {
        name: optimizer.state[parameter] for name, parameter in model.named_parameters() if parameter in optimizer.state
    }


def _with_prefix(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name[len(prefix) :]: tensor for name, tensor in tensors.items() if name.startswith(prefix)}


# A trained model again, from its run folder.


def load_run(run: Run, which: str, device: torch.device) -> CalmModel:
    """The model of a retrieval run in evaluation mode, on `device`.

    `which` is "best" (on validation), "last", or "slim" (best, without anchors and VAE).

    Raises:
        CheckpointError: The file is missing, damaged, or does not fit the recipe stored beside it, or the run
            is one of captioning.
    """
    model = _load(run, which, device)
    if not isinstance(model, CalmModel):
        raise CheckpointError(
            f"{run.folder} is a captioning run, which scores no sentences; name a retrieval run, "
            f"or use it with: calmctl caption --run {run.folder}"
        )
    return model


def load_captioner(run: Run, which: str, device: torch.device) -> CaptionModel:
    """The model of the captioning run `run`; the rest as for `load_run`."""
    model = _load(run, which, device)
    if not isinstance(model, CaptionModel):
        raise CheckpointError(
            f"{run.folder} is a retrieval run, which writes no captions; name a captioning run, "
            "or train one: calmctl train recipes/demo-caption.yaml"
        )
    return model


def load_towers(run: Run) -> Backbone:
    """The two towers of a run of either task, as its best weights have them and without any adapter."""
    return _load(run, "best", torch.device("cpu")).backbone


def _load(run: Run, which: str, device: torch.device) -> CalmModel | CaptionModel:
    path = run.trained_weights(which)
    if not path.exists():
        raise CheckpointError(f"{path} does not exist; finish the run with: calmctl train --resume {run.folder}")
    recipe = run.recipe()
    state, metadata = load_tensors(path, what=f"run {run.folder}")
    require_together(run, metadata, path)
    # The towers' weights are in the checkpoint, and so is what they are: the model's name and the file that they once
    # started from are not asked any more.
    spec = read_spec(metadata, source=str(path))
    vocabulary = run.anchors()
    if bool(metadata.get("slim")):
        # A model without the parts that the file lacks, so that loading can be strict in both cases.
        recipe = for_inference(recipe)
    unfit = (
        f"{path} does not fit the recipe and the backbone that are told of it: such a model is far larger than its own "
        "tensors; take another copy"
    )
    # An embedder's weights are not in the file, and so not of its size.
    keys, tokens = recipe.backbone, state.get("captioner.token_ids")
    backbone = rebuild(spec, keys.model) if spec and is_embedder(spec.model) else None
    model: CalmModel | CaptionModel
    with BuildLimit(state.values(), unfit):
        if backbone is None:
            backbone = rebuild(spec, keys.model) if spec else build_unrecorded(keys.model, keys.weights)
        if recipe.task != "caption":
            model = build_model(recipe, vocabulary, backbone)
        elif tokens is None:
            raise CheckpointError(f"{path} holds no captioner, but the recipe beside it is one of captioning")
        else:
            model = build_caption_model(recipe, vocabulary, tokens, backbone)
    load_weights(model, state, source=str(path))
    return model.eval().to(device)


def for_inference(recipe: Recipe) -> Recipe:
    """The same recipe without what serves training alone: the alignment loss and UATVR's Gaussians."""
    changed = {
        "alignment": recipe.alignment.model_copy(update={"kind": "none"}),
        "head": recipe.head.model_copy(update={"prob_samples": 0}),
    }
    return recipe.model_copy(update=changed)
