"""Making shards: groups of clips or sentences in, features on the CPU out; the same on one machine and on many."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from calmctl.errors import VideoError
from calmctl.model.backbone import Backbone, split_preprocess
from calmctl.samples import Clip, LeftOut
from calmctl.store.store import ClipSource
from calmctl.store.writer import source_of
from calmctl.video.pool import TIMEOUT_S, available_cores, decode_clips

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


# Whole groups: decoding runs ahead of encoding.


class Decode(Protocol):
    """`decode_clips` with everything but the clips filled in."""

    def __call__(self, clips: Iterable[Clip]) -> Generator[tuple[Clip, np.ndarray | VideoError], None, None]:
        """Decode clips in order."""


@dataclass(frozen=True, slots=True)
class FrameShard:
    """What `StoreWriter.add_frames` wants of one group.

    Attributes:
        features: [n, F, D] of the group's clips in order, without those left out.
        sources: `source_of` each clip, taken before it was decoded.
        left_out: The group's clips without features, with reasons.
    """

    features: Tensor
    sources: Mapping[str, ClipSource | None]
    left_out: Sequence[LeftOut]


def decoder(encoder: Encoder, n_frames: int, *, workers: int | None = None, timeout_s: float = TIMEOUT_S) -> Decode:
    """Decoding as `encoder` wants its frames, running ahead of it."""
    return partial(
        decode_clips,
        n_frames=n_frames,
        workers=workers,
        timeout_s=timeout_s,
        transform=encoder.resize,
        # While one batch is being encoded the next two are being decoded.
        ahead=2 * max(encoder.n_clips, workers or available_cores()),
    )


def frame_shards(
    groups: Sequence[Sequence[str]],
    clips: Mapping[str, Clip],
    encoder: Encoder,
    decode: Decode,
    on_clip: Callable[[LeftOut | None], None] = lambda left_out: None,
) -> Generator[FrameShard, None, None]:
    """Decode and encode groups of clips, one after the other; decoding runs ahead across their borders.

    Every group is encoded in the same batches each time, so its features do not depend on what came before.

    Args:
        groups: Ids of the clips of each group.
        clips: The clips by id; one that is not there is left out.
        encoder: Encodes the frames.
        decode: Decodes clips.
        on_clip: Called after each clip, with the reason where it has no frames; what it raises ends the work.
    """
    sources: dict[str, ClipSource | None] = {}

    def to_decode() -> Iterator[Clip]:
        for group in groups:
            for key in group:
                if key in clips:
                    sources[key] = source_of(clips[key])  # before the file is read: no change can slip through
                    yield clips[key]

    with closing(decode(to_decode())) as decoded:
        for group in groups:
            features: list[Tensor] = []
            batch: list[np.ndarray] = []
            left_out: list[LeftOut] = []
            for key in group:
                frames = next(decoded)[1] if key in clips else VideoError("its file is gone")
                if isinstance(frames, VideoError):
                    left_out.append(LeftOut(key, str(frames), frames.limit_s))
                else:
                    batch.append(frames)
                if len(batch) == encoder.n_clips:
                    features.append(encoder.frames(batch))
                    batch = []
                on_clip(left_out[-1] if isinstance(frames, VideoError) else None)
            features.append(encoder.frames(batch))
            # The last batch is short rather than filled from the next group: features must not depend on what else is
            # made.
            yield FrameShard(torch.cat(features), {key: sources.pop(key, None) for key in group}, left_out)
