"""A trained model again, from its run folder."""

from __future__ import annotations

import torch

from calmctl.errors import CheckpointError
from calmctl.model.backbone import Backbone
from calmctl.model.build import build_caption_model, build_model
from calmctl.model.calm import CalmModel
from calmctl.model.caption import CaptionModel
from calmctl.model.spec import read_spec
from calmctl.model.weights import build_backbone, build_unrecorded
from calmctl.recipe import Recipe
from calmctl.runs.checkpoint import load_weights
from calmctl.runs.folder import Run
from calmctl.tensorfiles import load_tensors


def load_run(run: Run, which: str, device: torch.device) -> CalmModel:
    """The model of the retrieval run `run` in evaluation mode.

    Args:
        run: The run's folder.
        which: "best" (on validation), "last", or "slim" (best, without anchors and VAE).
        device: Where it is put.

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
    # The towers' weights are in the checkpoint, and so is what they are: the model's name and the file that they once
    # started from are not asked any more.
    spec = read_spec(metadata, source=str(path))
    keys = recipe.backbone
    backbone = build_backbone(spec) if spec else build_unrecorded(keys.model, keys.weights)
    vocabulary = run.anchors()
    if bool(metadata.get("slim")):
        recipe = without_alignment(recipe)
    model: CalmModel | CaptionModel
    if recipe.task == "caption":
        tokens = state.get("captioner.token_ids")
        if tokens is None:
            raise CheckpointError(f"{path} holds no captioner, but the recipe beside it is one of captioning")
        model = build_caption_model(recipe, vocabulary, tokens, backbone)
    else:
        model = build_model(recipe, vocabulary, backbone)
    load_weights(model, state, source=str(path))
    return model.eval().to(device)


def without_alignment(recipe: Recipe) -> Recipe:
    """The same recipe without an alignment loss: what is left of a model for inference."""
    return recipe.model_copy(update={"alignment": recipe.alignment.model_copy(update={"kind": "none"})})
