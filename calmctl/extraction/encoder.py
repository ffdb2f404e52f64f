"""The encoding half of extraction: prepared frames and sentences in, features on the CPU out."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from calmctl.model.backbone import Backbone
from calmctl.model.preprocess import split_preprocess

BATCH_FRAMES = 96
"""Frames the backbone sees at once: 8 clips of 12 (our choice)."""
_BATCH_SENTENCES = 256


class Encoder:
    """A backbone that only encodes. It is put on `device` and in evaluation mode.

    Attributes:
        resize: What must be done to decoded frames before they come here; torch-free, for the workers.
        n_clips: How many clips of `n_frames` make a batch.
    """

    def __init__(
        self, backbone: Backbone, *, device: torch.device | str, n_frames: int, batch_frames: int = BATCH_FRAMES
    ) -> None:
        self.resize, self._normalise = split_preprocess(backbone)
        self.n_clips = max(1, batch_frames // n_frames)
        self._backbone = backbone.to(device).eval()
        self._device = device
        self._n_frames = n_frames

    @torch.inference_mode()
    def frames(self, clips: Sequence[np.ndarray]) -> Tensor:
        """Frame features float32 [n, F, D] of n resized clips, each uint8 [F, S, S, 3]."""
        if not clips:
            return torch.empty(0, self._n_frames, self._backbone.dim)
        pixels = torch.from_numpy(np.stack(clips)).to(self._device)  # as uint8: a quarter of the bytes to move
        return self._backbone.encode_frames(self._normalise(pixels)).float().cpu()

    @torch.inference_mode()
    def texts(self, sentences: Sequence[str], on_batch: Callable[[int], None] = lambda done: None) -> Tensor:
        """Text features float32 [n, D] of n sentences; tells `on_batch` after each batch how many are done."""
        result = torch.empty(len(sentences), self._backbone.dim)
        # A batch is padded to its longest sentence, so those of about one length go together.
        order = sorted(range(len(sentences)), key=lambda place: (len(sentences[place]), place))
        for start in range(0, len(order), _BATCH_SENTENCES):
            places = order[start : start + _BATCH_SENTENCES]
            tokens = self._backbone.tokenize([sentences[place] for place in places])
            result[places] = self._backbone.encode_text(tokens.to(self._device)).float().cpu()
            on_batch(start + len(places))
        return result
