"""Features of a whole split, as scoring needs them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from operator import itemgetter

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from calmctl.errors import DatasetError, VideoError
from calmctl.model.calm import AlignedModel
from calmctl.recipe.schema import Data
from calmctl.samples import LeftOut, Split
from calmctl.video.pool import read_clips
from calmctl.words import Progress, watched

TEXTS_PER_BATCH = 256
FRAMES_PER_BATCH = 384
BYTES_PER_BATCH = 1 << 28
"""Clips that wait for the encoder hold no more than both of these (our choice)."""
_REASONS = 3


@dataclass(frozen=True, slots=True)
class EncodedSplit:
    """What is scored; the number of texts and of videos are unrelated.

    Attributes:
        texts: Sentences as the model's `encode_texts` gives them, behind any adapter: features [N_t, D], or with
            words [N_t, 1 + L, D] (`AlignedModel.sentences` takes the former); [0, D] where the model captions.
        frames: Frame features [N_v, F, D], behind any adapter.
        owners: For each text the number of its clip, [N_t].
        ids: Ids of the N_v clips.
        left_out: Clips of the protocol that are missing or do not decode, with reasons; their captions are
            left out with them.
    """

    texts: Tensor
    frames: Tensor
    owners: np.ndarray
    ids: tuple[str, ...]
    captions: tuple[str, ...]
    left_out: tuple[LeftOut, ...] = ()

    def captions_by_clip(self) -> list[tuple[str, ...]]:
        """The sentences of each clip, in the order of `ids`."""
        captions: list[list[str]] = [[] for _ in self.ids]
        for caption, owner in zip(self.captions, self.owners, strict=True):
            captions[owner].append(caption)
        return [tuple(each) for each in captions]


def stream_frames(
    split: Split, model: AlignedModel, data: Data, what: str = "clips", progress: Progress | None = None
) -> Iterator[np.ndarray | VideoError]:
    """What the model's reader has of a split's clips, uint8, in order, or why a clip has nothing; `what` names them."""
    # Resized where they are decoded, so that frames of input size are all that is handed over.
    reader = model.reader(data.frames)
    decoded = read_clips(split.clips, reader, workers=data.workers or None, timeout_s=data.timeout_s)
    return watched(map(itemgetter(1), decoded), what, len(split.clips), progress)


@torch.inference_mode()
def encode_split(
    model: AlignedModel, split: Split, frames: Iterable[np.ndarray | VideoError], progress: Progress | None = None
) -> EncodedSplit:
    """Encode the captions of `split` and the frames of its clips, given in the same order; `progress` is told of both.

    Raises:
        DatasetError: No clip of the split is usable.
    """
    features: list[Tensor] = []
    kept: list[int] = []
    left_out = list(split.left_out)
    waiting: list[np.ndarray] = []
    for number, (clip, decoded) in enumerate(zip(split.clips, frames, strict=True)):
        if isinstance(decoded, VideoError):
            left_out.append(LeftOut(clip.id, str(decoded)))
            continue
        kept.append(number)
        waiting.append(decoded)
        if len(waiting) * len(decoded) >= FRAMES_PER_BATCH or len(waiting) * decoded.nbytes >= BYTES_PER_BATCH:
            features.append(_encode(model, waiting))
            waiting = []
    if progress:
        # The bar would stand at 200 of 200 while the encoder works on what is left.
        progress("encoding the last clips and the captions", 0, 0)
    if waiting:
        features.append(_encode(model, waiting))
    if not kept:
        raise DatasetError(nothing_usable(split.name, left_out))
    # Captions go with their clip: a query without its right answer would count as a miss.
    place = {number: position for position, number in enumerate(kept)}
    used = [(text, place[owner]) for text, owner in zip(split.captions, split.owners, strict=True) if owner in place]
    captions = tuple(text for text, _ in used)
    return EncodedSplit(
        # A captioner compares no sentence with a clip.
        encode_captions(model, captions if model.scores_sentences else ()),
        torch.cat(features),
        np.array([owner for _, owner in used], dtype=np.int64),
        tuple(split.clips[number].id for number in kept),
        captions,
        tuple(left_out),
    )


@torch.inference_mode()
def encode_captions(model: AlignedModel, captions: Sequence[str], *, bare: bool = False) -> Tensor:
    """What `model.encode_texts` makes of `captions`, on the CPU: [N, D], or with words [N, 1 + L, D].

    `bare` leaves out any adapter: frozen towers give that only once.
    """
    encode, parts = model.bare_texts if bare else model.encode_texts, []
    for first in range(0, len(captions), TEXTS_PER_BATCH):
        tokens = model.backbone.tokenize(captions[first : first + TEXTS_PER_BATCH])
        parts.append(encode(tokens.to(model.device)).float().cpu())
    if not parts:
        return torch.empty(0, model.backbone.dim)
    if not model.reads_words:
        return torch.cat(parts)
    # Batches end with their own longest sentence: up to the longest of all, rows of zeros say "no word".
    longest = max(part.shape[1] for part in parts)
    return torch.cat([F.pad(part, (0, 0, 0, longest - part.shape[1])) for part in parts])


def frozen_texts(model: AlignedModel, captions: Sequence[str]) -> Callable[[Sequence[str]], Tensor]:
    """Features of frozen towers, made once; gives those of a batch's sentences, in the place of their tokens."""
    model.eval()
    # Sentences of a length together, and each kept as long as it is: words of all, padded to the longest of all,
    # would be several times as much.
    sentences = sorted(dict.fromkeys(captions), key=len)
    features: dict[str, Tensor] = {}
    for start in range(0, len(sentences), TEXTS_PER_BATCH):
        some = sentences[start : start + TEXTS_PER_BATCH]
        for sentence, feature in zip(some, encode_captions(model, some, bare=True), strict=True):
            features[sentence] = feature[feature.any(-1)].clone() if feature.dim() > 1 else feature
    return lambda batch: pad_sequence([features[sentence] for sentence in batch], batch_first=True)


@torch.inference_mode()
def frozen_features(
    model: AlignedModel, frames: Iterable[np.ndarray | VideoError]
) -> Iterator[np.ndarray | VideoError]:
    """What a frozen backbone makes of frames [F, S, S, 3], before any adapter: [F, D] each, in order."""
    waiting: list[np.ndarray | VideoError] = []
    for decoded in frames:
        waiting.append(decoded)
        # Reasons wait among the frames, because the order is that of the clips, and cost the encoder nothing.
        if sum(len(clip) for clip in waiting if isinstance(clip, np.ndarray)) >= FRAMES_PER_BATCH:
            yield from _bare_features(model, waiting)
            waiting = []
    yield from _bare_features(model, waiting)


def _bare_features(model: AlignedModel, frames: list[np.ndarray | VideoError]) -> Iterator[np.ndarray | VideoError]:
    pixels = [clip for clip in frames if isinstance(clip, np.ndarray)]
    features = iter(())
    if pixels:
        features = iter(model.bare_frames(torch.from_numpy(np.stack(pixels)).to(model.device)).float().cpu().numpy())
    return (clip if isinstance(clip, VideoError) else next(features) for clip in frames)


def _encode(model: AlignedModel, clips: list[np.ndarray]) -> Tensor:
    return model.encode_frames(torch.from_numpy(np.stack(clips)).to(model.device)).cpu()


def nothing_usable(split: str, left_out: Sequence[LeftOut]) -> str:
    """Why a split without one usable clip cannot be encoded."""
    by_reason: dict[str, list[str]] = {}
    for clip in left_out:
        by_reason.setdefault(clip.reason, []).append(clip.id)
    # Each kind of reason: of a data set that is there in part the most are missing, and that is not why the rest fails.
    told = [f"{len(ids):,} x {reason} (first: {ids[0]})" for reason, ids in [*by_reason.items()][:_REASONS]]
    more = ["..."] if len(by_reason) > _REASONS else []
    why = f": {'; '.join([*told, *more])}" if told else ""
    return f"no clip of the {split} split is usable{why}; check data.root and data.videos"
