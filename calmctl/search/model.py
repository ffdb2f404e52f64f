"""The model that searches: a trained run, or the bare backbone where there is none."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from calmctl.anchors.shipped import resolve_vocabulary
from calmctl.errors import CheckpointError, VideoError
from calmctl.explain.explainer import ZERO_SHOT_MODEL, Explainer, explain_with_run, explain_zero_shot
from calmctl.model.build import bare_model
from calmctl.model.calm import CalmModel
from calmctl.model.published import usual_weights
from calmctl.model.weights import load_backbone
from calmctl.recipe.schema import AnchorsSection
from calmctl.runs.checkpoint import load_run
from calmctl.runs.run import Run
from calmctl.samples import Clip
from calmctl.search.scorers import adapted
from calmctl.store.shards import Encoder
from calmctl.video.pool import decode_clips

BARE_FRAMES = 12
"""Frames of a clip for a bare backbone, as the paper's recipes have them."""
_BARE_VOCABULARY = "charades+coco@1"  # the largest one that ships


@dataclass(frozen=True, slots=True)
class SearchModel:
    """A model in evaluation mode that can search.

    Attributes:
        name: For people: "runs/demo-001 (best on validation), head xpool, trained on demo, 1,500 clips".
        model: The model.
        n_frames: F of the clips it was trained on; None for a bare backbone, whose mean takes any number.
        device: Where it is.
        explainer: The same model with its anchors, where hits are to be explained.
        labels: Its anchors in words: what "nothing here matches" is measured with where there are no captions.
    """

    name: str
    model: CalmModel
    n_frames: int | None
    device: torch.device
    explainer: Explainer | None
    labels: tuple[str, ...] = ()

    @torch.inference_mode()
    def video(self, clip: Clip, n_frames: int) -> Tensor:
        """Frame features [1, F, D] of a clip, before any adapter; raises `VideoError`."""
        # The store's own encoder: one clip gets the features that it would have there.
        encoder = Encoder(self.model.backbone, device=self.device, n_frames=n_frames)
        ((_, frames),) = decode_clips([clip], n_frames, workers=1, transform=encoder.resize)
        if isinstance(frames, VideoError):
            raise VideoError(f"{clip.path}: {frames}")
        return encoder.frames([frames])

    @torch.inference_mode()
    def adapted(self, frames: Tensor) -> Tensor:
        """Features [..., F, D] behind the model's adapter, on its device."""
        return adapted(frames.to(self.device), self.model.adapter)


def search_model_of_run(run: Run, device: torch.device, *, why: bool = False) -> SearchModel:
    """A trained run's best weights.

    Args:
        run: A retrieval run.
        device: Where to compute.
        why: Whether hits are to be explained by the run's anchors.

    Raises:
        CheckpointError: The run's weights cannot be used.
    """
    # The explainer holds the model, so weights are read once either way.
    explainer = explain_with_run(run, device) if why else None
    model = explainer.model if explainer else load_run(run, "best", device)
    name = f"{run.folder} (best on validation), head {model.head.name}, {run.trained_on}"
    return SearchModel(name, model, run.recipe().data.frames, device, explainer, run.anchors().texts)


def bare_search_model(
    device: torch.device, *, backbone: str | None = None, weights: str | None = None, why: bool = False
) -> SearchModel:
    """A backbone as it was published: mean pooling.

    Args:
        device: Where to compute.
        backbone: An open_clip model, demo-clip, or a config file; None for ViT-B-32-quickgelu.
        weights: A pretrained tag, a .safetensors file, or a checkpoint; None for "openai".
        why: Whether hits are to be explained, by the Charades anchors.

    Raises:
        CheckpointError: The weights are not at hand; the message names the ways out.
    """
    named = backbone is not None or weights is not None
    backbone = backbone or ZERO_SHOT_MODEL
    weights = weights or usual_weights(backbone)
    try:
        explainer = explain_zero_shot(device, backbone=backbone, weights=weights) if why else None
        model = (
            explainer.model if explainer else bare_model(load_backbone(backbone, weights), AnchorsSection()).to(device)
        )
    except CheckpointError as fault:
        if named:  # what is wrong is in the user's own words
            raise
        raise CheckpointError(
            f"{fault}; here: give a .safetensors file with --backbone-weights, or search with a run "
            "('calmctl demo' makes one)"
        ) from fault
    name = f"{model.backbone.spec.model} with {weights}, mean pooling"
    return SearchModel(name, model, None, device, explainer, resolve_vocabulary(_BARE_VOCABULARY).texts)
