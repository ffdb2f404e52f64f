"""A backbone's evaluation transform in two halves, and what identifies the features it gives."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from calmctl.data.pixels import FrameResize
from calmctl.model.backbone import Backbone


def split_preprocess(backbone: Backbone) -> tuple[FrameResize, Normalise]:
    """The backbone's transform as resizing (uint8, in a worker) and normalising (float, on the device).

    `normalise(resize(frames))` equals `backbone.preprocess(frames)` exactly.
    """
    # open_clip's evaluation transform: Resize and CenterCrop, ResizeKeepRatio and CenterCropOrPad, or Resize
    # to both sides; then RGB, to-tensor and Normalize.
    first, second, *_, last = backbone.transform.transforms
    size = backbone.image_size
    interpolation: Literal["bicubic", "bilinear"] = "bilinear" if first.interpolation.value == "bilinear" else "bicubic"
    if hasattr(first, "longest"):
        resize = FrameResize(size, "longest", interpolation, fill=int(second.fill))
    elif isinstance(first.size, int):
        resize = FrameResize(size, "shortest", interpolation)
    else:
        resize = FrameResize(size, "squash", interpolation)
    return resize, Normalise(last.mean, last.std)


class Normalise:
    """Uint8 frames to what the vision tower reads: scaled to [0, 1], minus the mean, over the deviation."""

    def __init__(self, mean: Any, std: Any) -> None:
        self.mean = tuple(float(value) for value in mean)
        self.std = tuple(float(value) for value in std)

    def __call__(self, frames: Tensor) -> Tensor:
        """Normalise uint8 [..., S, S, 3]; returns float32 [..., 3, S, S] on the device of `frames`."""
        scaled = frames.movedim(-1, -3).float().div_(255)
        mean, std = (torch.tensor(values, device=frames.device) for values in (self.mean, self.std))
        return scaled.sub_(mean.view(3, 1, 1)).div_(std.view(3, 1, 1)).contiguous()


def fingerprint(backbone: Backbone) -> dict[str, Any]:
    """What decides the features of a backbone: architecture, preprocessing and the weights it has *now*.

    The weights are digested as they are in memory, so a backbone that was trained further, or started from
    nothing, is never taken for the one it began as. No path is part of it: the same weights are the same
    backbone on every machine.
    """
    resize, normalise = split_preprocess(backbone)
    identity = backbone.identity
    weights = identity.get("weights")
    return {
        "model": identity["model"],
        "activation": identity["activation"],
        "weights": Path(weights).name if weights else None,
        "parameters_sha256": parameters_digest(backbone),
        "dim": identity["dim"],
        "context_length": identity["context_length"],
        "image_size": resize.size,
        "resize": resize.mode,
        "interpolation": resize.interpolation,
        "mean": list(normalise.mean),
        "std": list(normalise.std),
    }


def parameters_digest(backbone: Backbone) -> str:
    """SHA-256 over names, types, shapes and bytes of the two towers' parameters and persistent buffers.

    The scale of the contrastive loss is left out: it goes on learning over frozen towers, and no feature
    depends on it.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(backbone.clip.state_dict().items()):
        if name in ("logit_scale", "logit_bias"):
            continue
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()
