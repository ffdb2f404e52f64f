"""A trained model again, from its run folder."""

from __future__ import annotations

import torch

from calmctl.anchors.vocabulary import load_vocabulary
from calmctl.errors import CheckpointError
from calmctl.model.build import build_model
from calmctl.model.calm import CalmModel
from calmctl.model.weights import load_backbone
from calmctl.recipe import Recipe
from calmctl.runs.checkpoint import load_weights
from calmctl.runs.folder import Run
from calmctl.tensorfiles import load_tensors


def load_run(run: Run, which: str, device: torch.device) -> CalmModel:
    """The model of `run` in evaluation mode.

    Args:
        run: The run's folder.
        which: "best" (on validation), "last", or "slim" (best, without anchors and VAE).
        device: Where it is put.

    Raises:
        CheckpointError: The file is missing, damaged, or does not fit the recipe stored beside it.
    """
    path = run.weights(which)
    if not path.exists():
        raise CheckpointError(f"{path} does not exist; finish the run with: calmctl train --resume {run.folder}")
    recipe = run.recipe()
    state, metadata = load_tensors(path, what=f"run {run.folder}")
    slim = bool(metadata.get("slim"))
    # The towers' weights are in the checkpoint: the file they once started from is not needed any more.
    model = build_model(
        without_alignment(recipe) if slim else recipe,
        load_vocabulary(run.vocabulary),
        load_backbone(recipe.backbone.model, None),
    )
    load_weights(model, state, source=str(path))
    model.backbone.identity |= {"weights": metadata.get("backbone", {}).get("weights")}
    return model.eval().to(device)


def without_alignment(recipe: Recipe) -> Recipe:
    """The same recipe without an alignment loss: what is left of a model for inference."""
    return recipe.model_copy(update={"alignment": recipe.alignment.model_copy(update={"kind": "none"})})
