"""What a training step takes and what it yields."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Batch:
    """B samples: sentence i describes clip i.

    Attributes:
        texts: Token ids [B, L], or features of the sentences where they were made before (`encode_texts`).
        frames: Pixels at the backbone's input size, uint8 [B, F, S, S, 3], or frame features [B, F, D].
        clips: The number of each sample's clip, [B]; equal numbers are captions of one clip.
        captions: For captioning: the sentences as the decoder's tokens, [B, T] (`CaptionVocabulary.encode`).
    """

    texts: Tensor
    frames: Tensor
    clips: Tensor
    captions: Tensor | None = None

    def to(self, device: torch.device) -> Batch:
        """The same batch on `device`."""
        texts, frames, clips = (part.to(device, non_blocking=True) for part in (self.texts, self.frames, self.clips))
        captions = None if self.captions is None else self.captions.to(device, non_blocking=True)
        return Batch(texts, frames, clips, captions)

    def first(self, count: int) -> Batch:
        """Its first `count` samples."""
        captions = None if self.captions is None else self.captions[:count]
        return Batch(self.texts[:count], self.frames[:count], self.clips[:count], captions)


@dataclass(slots=True)
class Losses:
    """What one step yields.

    Attributes:
        total: The scalar to descend.
        parts: Its summands before weighting, and their relatives, by name.
        diagnostics: Numbers of `alignment_diagnostics`, by name; detached.
    """

    total: Tensor
    parts: dict[str, Tensor]
    diagnostics: dict[str, Tensor] = field(default_factory=dict)
