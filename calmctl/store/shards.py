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
from calmctl.store.format import shard_file
from calmctl.store.store import ClipSource, FeatureStore, read_sources
from calmctl.store.writer import has_stamp, is_unchanged, source_of
from calmctl.video.pool import TIMEOUT_S, available_cores, decode_clips
from calmctl.words import Progress

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


# Features that are there already, of files that were renamed, copied or touched.


class KnownFeatures:
    """Which clips of the groups to make need no decoding, because the store has features of what they show.

    A file is known by the SHA-256 of all of it, and is read for that only where one of its size has features.
    """

    def __init__(
        self, store: FeatureStore, todo: Sequence[int], clips: Mapping[str, Clip], progress: Progress | None = None
    ) -> None:
        """Compare the files of the groups `todo` with those that `store` was made of."""
        self._store = store
        self._places: dict[str, str] = {}  # a clip, and the one whose features it gets
        self._sources: dict[str, ClipSource | None] = {}
        redone = {group for group in todo if store.entry("frames", group) is not None}
        sources: dict[int, tuple[dict[str, ClipSource | None], int]] = {}  # of clips that have features
        held: dict[tuple[object, ...], tuple[int, str]] = {}
        sizes = set()
        for group in range(len(store.groups("frames"))):
            # The others were checked when the work was planned.
            if store.entry("frames", group) is None or (group in redone and store.shard("frames", group)[1]):
                continue
            of_shard, since_ns = read_sources(store.path / shard_file("frames", group))
            sources[group] = {key: of_shard.get(key) for key in store.present("frames", group)}, since_ns
            for key, source in sources[group][0].items():
                if source is not None and len(source) > 5:
                    held.setdefault((source[5], *source[2:4]), (group, key))
                    sizes.add((source[0], *source[2:4]))
        endangered: set[str] = set()  # to be read before their group is overwritten
        wanted = [(group, clips[key]) for group in todo for key in store.groups("frames")[group] if key in clips]
        for number, (group, clip) in enumerate(wanted):
            own, since_ns = sources.get(group, ({}, 0))
            old = own.get(clip.id)
            if has_stamp(clip, old, since_ns):
                self._places[clip.id], self._sources[clip.id] = clip.id, old
            elif old is not None or (_size(clip), clip.start_s, clip.end_s) in sizes:
                # Before the comparison: what changes after it is found by the next search.
                source = source_of(clip, whole=True)
                place = None if source is None else held.get((source[5], *source[2:4]))
                if place is None and is_unchanged(clip, old, since_ns):  # of a store that knows no SHA-256
                    place = group, clip.id
                if place is not None:
                    self._places[clip.id], self._sources[clip.id] = place[1], source
                    if place[0] in redone and place[0] != group:
                        endangered.add(place[1])
            if progress is not None and sources:
                progress("comparing files", number + 1, len(wanted))
        keys = sorted(endangered)
        self._kept = dict(zip(keys, store.frames(keys), strict=True))

    def __contains__(self, key: str) -> bool:
        return key in self._places

    def __len__(self) -> int:
        return len(self._places)

    def of(self, keys: Sequence[str]) -> dict[str, tuple[Tensor, ClipSource | None]]:
        """Features [F, D] and source of those of some clips that are known."""
        known = [key for key in keys if key in self._places]
        stored = list(dict.fromkeys(self._places[key] for key in known if self._places[key] not in self._kept))
        features = self._kept | dict(zip(stored, self._store.frames(stored), strict=True))
        return {key: (features[self._places[key]], self._sources[key]) for key in known}


def _size(clip: Clip) -> int | None:
    try:
        return clip.path.stat().st_size
    except OSError:
        return None


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
    known: KnownFeatures | None = None,
) -> Generator[FrameShard, None, None]:
    """Decode and encode groups of clips, one after the other; decoding runs ahead across their borders.

    Every group is encoded in the same batches each time, so its features do not depend on what came before; but with
    `known` the batches are those of the clips that are left.

    Args:
        groups: Ids of the clips of each group.
        clips: The clips by id; one that is not there is left out.
        encoder: Encodes the frames.
        decode: Decodes clips.
        on_clip: Called after each clip, with the reason where it has no frames; what it raises ends the work.
        known: Clips that are not decoded; None to decode all, and to digest no file to its end.
    """
    sources: dict[str, ClipSource | None] = {}

    def to_decode() -> Iterator[Clip]:
        for group in groups:
            for key in group:
                if key in clips and (known is None or key not in known):
                    # Before the file is decoded: no change can slip through.
                    sources[key] = source_of(clips[key], whole=known is not None)
                    yield clips[key]

    with closing(decode(to_decode())) as decoded:
        for group in groups:
            features: list[Tensor] = []
            batch: list[np.ndarray] = []
            left_out: list[LeftOut] = []
            stored = {} if known is None else known.of(group)
            for key in group:
                if key in stored:
                    on_clip(None)
                    continue
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
            rows = torch.cat(features)
            if stored:
                fresh, gone = iter(rows), {clip.id for clip in left_out}
                kept = [key for key in group if key not in gone]
                rows = torch.stack([stored[key][0] if key in stored else next(fresh) for key in kept])
                sources |= {key: source for key, (_, source) in stored.items()}
            yield FrameShard(rows, {key: sources.pop(key, None) for key in group}, left_out)
