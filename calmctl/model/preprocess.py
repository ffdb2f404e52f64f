"""A backbone's preprocessing in two halves, and what identifies the features it gives."""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from torch import Tensor

from calmctl.data.pixels import FrameResize
from calmctl.model.backbone import Backbone


def split_preprocess(backbone: Backbone) -> tuple[FrameResize, Normalise]:
    """The backbone's preprocessing as resizing (uint8, in a worker) and normalising (float, on the device).

    One after the other is open_clip's evaluation transform, to the last bit.
    """
    spec = backbone.spec
    return spec.frame_resize, Normalise(spec.mean, spec.std)


class Normalise:
    """Uint8 frames to what the vision tower reads: scaled to [0, 1], minus the mean, over the deviation."""

    def __init__(self, mean: Any, std: Any) -> None:
        self.mean = tuple(float(value) for value in mean)
        self.std = tuple(float(value) for value in std)

    def __call__(self, frames: Tensor) -> Tensor:
        """Normalise uint8 [..., H, W, 3]; returns float32 [..., 3, H, W] on the device of `frames`."""
        scaled = frames.movedim(-1, -3).float().div_(255)
        mean, std = (torch.tensor(values, device=frames.device) for values in (self.mean, self.std))
        return scaled.sub_(mean.view(3, 1, 1)).div_(std.view(3, 1, 1)).contiguous()


def fingerprint(backbone: Backbone) -> dict[str, Any]:
    """The spec of a backbone with the digest of the weights it has *now*, as JSON: what checkpoints and stores record.

    The weights are digested as they are in memory, so a backbone that was trained further, or started from
    nothing, is never taken for the one it began as. No path is part of it: the same weights are the same
    backbone on every machine.
    """
    spec = backbone.spec.model_copy(update={"parameters_sha256": parameters_digest(backbone)})
    return spec.model_dump(mode="json")


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
