"""CALM for captioning: the aligned features and a caption head; one forward pass gives the losses."""

from __future__ import annotations

from typing import Unpack

import torch
from torch import Tensor

from calmctl.model.aligned import AlignedModel, AlignedParts
from calmctl.model.backbone import Backbone
from calmctl.model.batch import Batch, Losses
from calmctl.model.caption_vocabulary import PAD
from calmctl.model.captioner import Captioner
from calmctl.model.chunks import encode_in_chunks
from calmctl.objectives.caption import caption_loss
from calmctl.recipe.schema import CaptionSection


class CaptionModel(AlignedModel):
    """Everything that trains for captioning.

    V_p and the decoder's memory are made of the same features, `encode_frames`, so that CALM's loss can change
    captions: through the towers, or on frozen features through the adapter (docs/captioning.md).
    """

    scores_sentences = False

    def __init__(
        self, backbone: Backbone, captioner: Captioner, keys: CaptionSection, **parts: Unpack[AlignedParts]
    ) -> None:
        super().__init__(backbone, **parts)
        self.captioner = captioner
        self.caption_keys = keys

    def forward(self, batch: Batch) -> Losses:
        """The losses of one step: L_cap + L_rec + alpha L_KL (docs/captioning.md)."""
        if batch.captions is None:
            raise ValueError("a captioning batch needs the captions' tokens")
        frames = encode_in_chunks(self.encode_frames, batch.frames, self.chunk)
        logits = self.captioner(batch.captions[:, :-1].clamp(min=0), self.captioner.encode(frames))
        keys = self.caption_keys
        with torch.autocast(frames.device.type, enabled=False):
            targets = batch.captions[:, 1:]
            count = (self.peers.own(targets) != PAD).sum()
            loss = caption_loss(logits, targets, keys.loss, smoothing=keys.smoothing, pad=PAD)
            loss, accuracy = (self.peers.mean(mean, count) for mean in (loss, token_accuracy(logits, targets)))
            losses = Losses(loss, {"task": loss}, {"token_accuracy": accuracy})
        if self.aligns:
            # Nothing but the alignment loss reads the sentences here.
            with torch.set_grad_enabled(torch.is_grad_enabled() and self.teaches_sentences):
                texts = encode_in_chunks(self.encode_texts, batch.texts, self.chunk)
            with torch.autocast(frames.device.type, enabled=False):
                self.add_alignment(texts, frames, losses)
        losses.parts["loss"] = losses.total
        return losses


@torch.no_grad()
def token_accuracy(logits: Tensor, targets: Tensor) -> Tensor:
    """Share of the tokens `targets` [N, T], without padding, that are the likeliest of logits [N, T, V]."""
    real = targets != PAD
    return (logits.argmax(dim=-1) == targets)[real].float().mean()
