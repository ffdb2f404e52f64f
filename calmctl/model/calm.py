"""CALM for retrieval: the aligned features and a fusion head; one forward pass gives the losses (Eq. 16)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Unpack

import torch
from torch import Tensor, nn

from calmctl.anchors.distribution import at_least_float32
from calmctl.model.aligned import AlignedModel, AlignedParts
from calmctl.model.backbone import Backbone
from calmctl.model.batch import Batch, Losses
from calmctl.model.heads.base import WeightedSimilarity
from calmctl.model.peers import Peers
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

    @property
    def reads_words(self) -> bool:
        """Whether the head wants words beside the sentence."""
        return bool(self.head.reads == "words")

    def forward(self, batch: Batch) -> Losses:
        """The losses of one step (docs/science.md)."""
        texts, frames = self.features(batch)
        with torch.autocast(texts.device.type, enabled=False):
            clips = self.peers.gather(batch.clips)
            same = clips[:, None] == clips if self.mask_same_clip else None
            scale = at_least_float32(self.backbone.logit_scale).exp()
            total, parts = task_loss(self._similarities(texts, frames), scale, same_clip=same)
            losses = Losses(total, parts)
            if self.aligns:
                self.add_alignment(texts, frames, losses)
        losses.parts["loss"] = losses.total
        return losses

    def join(self, peers: Peers) -> None:
        """Train with other processes; a head may have something to ask them, too."""
        super().join(peers)
        self.head.peers = peers

    def _similarities(self, texts: Tensor, frames: Tensor) -> list[WeightedSimilarity]:
        """The head's matrices of the whole batch; of its pairs, this process computes the rows of its own texts."""
        peers = self.peers
        frames = peers.gather(frames)
        paired = torch.arange(len(frames), device=frames.device)
        if not self.head.rows_are_independent:
            with peers.alike():
                found: list[WeightedSimilarity] = self.head.similarities(peers.gather(texts), frames, paired)
                return found
        texts = peers.own(texts)
        rows = self.head.similarities(texts, frames, paired[peers.first : peers.first + len(texts)])
        return [replace(each, matrix=peers.gather(each.matrix)) for each in rows]
