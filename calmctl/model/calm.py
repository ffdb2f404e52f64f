"""CALM for retrieval: the aligned features and a fusion head; one forward pass gives the losses (Eq. 16)."""

from __future__ import annotations

from typing import Any, Unpack

import torch
from torch import nn

from calmctl.model.aligned import AlignedModel, AlignedParts, Batch, Losses
from calmctl.model.backbone import Backbone
from calmctl.objectives.contrastive import task_loss


class CalmModel(AlignedModel):
    """Everything that trains for retrieval."""

    def __init__(
        self, backbone: Backbone, head: nn.Module, *, mask_same_clip: bool = False, **parts: Unpack[AlignedParts]
    ) -> None:
        super().__init__(backbone, **parts)
        self.head: Any = head
        self.mask_same_clip = mask_same_clip
        if self.frozen:
            # The contrastive temperature belongs to the loss, not to the towers: it goes on learning.
            self.backbone.logit_scale.requires_grad_(True)

    def forward(self, batch: Batch) -> Losses:
        """The losses of one step (docs/science.md)."""
        texts, frames = self.encode_texts(batch.texts), self.encode_frames(batch.frames)
        paired = torch.arange(len(texts), device=texts.device)
        with torch.autocast(texts.device.type, enabled=False):
            similarities = self.head.similarities(texts, frames, paired)
            same = batch.clips[:, None] == batch.clips if self.mask_same_clip else None
            total, parts = task_loss(similarities, self.backbone.logit_scale.float().exp(), same_clip=same)
            losses = Losses(total, parts)
            if self.aligns:
                self.add_alignment(texts, frames, losses)
        losses.parts["loss"] = losses.total
        return losses
