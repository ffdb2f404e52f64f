"""Captions of clips from their frame features."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from calmctl.captions.search import CachedSteps, beam_search, follow, greedy, sampler
from calmctl.errors import VideoError
from calmctl.model.captioner import CaptionModel
from calmctl.recipe.schema import CaptionSection, Data
from calmctl.samples import Clip, Dataset, Split
from calmctl.source.source import VideoSource
from calmctl.video.instants import LONG_TIMEOUT_S, require_countable, video_extent
from calmctl.video.pool import read_clips
from calmctl.words import Progress, visible

CLIPS_PER_BATCH = 64
# So many sentences at once, one for each beam of a clip, hold a few hundred megabytes of log-probabilities.
_MOST_SENTENCES = 5 * CLIPS_PER_BATCH


@dataclass(frozen=True, slots=True)
class CaptionSearch:
    """How captions are found.

    Attributes:
        beam: Beams; 1 is the greedy path.
        length_penalty: Beams are compared by log p / length^this.
        temperature: Draw each token from p^(1 / this) instead of searching; None: search.
        seed: Of the draws.
    """

    beam: int = 5
    length_penalty: float = 1.0
    temperature: float | None = None
    seed: int = 0

    @classmethod
    def of(cls, keys: CaptionSection) -> CaptionSearch:
        """The search a recipe asks for."""
        return cls(keys.beam, keys.length_penalty)

    def describe(self) -> dict[str, Any]:
        """What a result records of it."""
        if self.temperature is not None:
            return {"method": "sampling", "temperature": self.temperature, "seed": self.seed}
        if self.beam == 1:
            return {"method": "greedy"}
        return {"method": "beam", "beam": self.beam, "length_penalty": self.length_penalty}

    def __str__(self) -> str:
        """The same in words, such as "beam 5, length penalty 1"."""
        if self.temperature is not None:
            return f"sampling, temperature {self.temperature:g}, seed {self.seed}"
        return "greedy" if self.beam == 1 else f"beam {self.beam}, length penalty {self.length_penalty:g}"


@dataclass(frozen=True, slots=True)
class Caption:
    """One generated sentence.

    Attributes:
        text: The sentence, lower case as CLIP's tokens are.
        log_prob: Log-probability of its tokens under the model, at temperature 1.
        n_tokens: How many they are, the end mark counted where there is one.
    """

    text: str
    log_prob: float
    n_tokens: int


@torch.inference_mode()
def caption_features(model: CaptionModel, frames: Tensor, search: CaptionSearch) -> list[Caption]:
    """Captions of clips with frame features [N, F, D], as `model.encode_frames` gives them."""
    # One for all batches, or each batch would repeat the draws of the first.
    generator = torch.Generator().manual_seed(search.seed)
    device = next(model.captioner.parameters()).device
    captions: list[Caption] = []
    searched = search.beam if search.temperature is None else 1
    size = min(CLIPS_PER_BATCH, max(1, _MOST_SENTENCES // searched))
    for first in range(0, len(frames), size):
        captions += _batch(model, frames[first : first + size].to(device), search, generator)
    return captions


@torch.inference_mode()
def caption_clip(model: CaptionModel, data: Data, clip: Clip, search: CaptionSearch | None = None) -> Caption:
    """The caption of one clip, decoded as the recipe's section `data` says; `search` None: as the recipe says.

    Raises:
        DatasetError: It cannot be decoded; the message says why.
    """
    # A split like any other: decoded and left out in the same way.
    source = VideoSource(Dataset("", "", {"given": Split("given", (clip,), (), (), ())}), data)
    encoded = source.encode(model, "given")
    (caption,) = caption_features(model, encoded.frames, search or CaptionSearch.of(model.caption_keys))
    return caption


def _batch(model: CaptionModel, frames: Tensor, search: CaptionSearch, generator: torch.Generator) -> Iterator[Caption]:
    captioner = model.captioner
    memory = captioner.encode(frames)
    steps = CachedSteps(captioner, memory)
    start, end = captioner.vocabulary.start, captioner.vocabulary.end
    if search.beam > 1 and search.temperature is None:
        hypotheses = beam_search(
            steps,
            len(frames),
            start=start,
            end=end,
            beam=search.beam,
            max_tokens=captioner.max_tokens,
            length_penalty=search.length_penalty,
        )
    else:
        choose = greedy if search.temperature is None else sampler(search.temperature, generator)
        hypotheses = follow(steps, len(frames), choose, start=start, end=end, max_tokens=captioner.max_tokens)
    rows = zip(hypotheses.tokens.tolist(), hypotheses.lengths.tolist(), hypotheses.log_probs.tolist(), strict=True)
    for tokens, length, log_prob in rows:
        yield Caption(captioner.vocabulary.decode(tokens[:length]), log_prob, length)


# Captions of a long video, one for every few seconds of it.


SEGMENTS_PER_BATCH = 64
"""Segments whose frames are held at once: at 12 frames of 224 pixels a side, 115 MB (our choice)."""
_SEGMENT_BYTES = 1 << 28
"""What CoCap reads of them is larger, and may hold no more than this."""


@dataclass(frozen=True, slots=True)
class Segment:
    """A window of a video, in seconds by the file's own clock, as players show it, and what is said of it."""

    start_s: float
    end_s: float
    caption: Caption

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "start_s": self.start_s,
            "end_s": self.end_s,
            "caption": self.caption.text,
            "log_prob": self.caption.log_prob,
        }


def caption_segments(
    model: CaptionModel,
    video: Path,
    segment_s: float,
    *,
    n_frames: int,
    search: CaptionSearch,
    progress: Progress | None = None,
) -> list[Segment]:
    """Captions of consecutive segments of `video`, decoded in one pass; memory does not grow with its length.

    A segment is `segment_s` long (see `segment_bounds` for the last one) and has `n_frames` frames, those of training.

    Raises:
        VideoError: The video cannot be decoded.
    """
    duration_s, begins_s = video_extent(video)
    bounds = segment_bounds(duration_s, segment_s)
    clips = [Clip(f"{start_s:.3f}", video, start_s, end_s) for start_s, end_s in bounds]
    # The segments of one file are one pass over it, which one worker makes.
    reader = model.reader(n_frames)
    decoded = read_clips(clips, reader, workers=1, timeout_s=LONG_TIMEOUT_S)
    at_once = max(1, min(SEGMENTS_PER_BATCH, _SEGMENT_BYTES // math.prod(reader.shape)))
    segments: list[Segment] = []
    with closing(decoded):
        while some := [_frames(video, frames) for _, frames in islice(decoded, at_once)]:
            captions = caption_features(model, _features(model, np.stack(some)), search)
            windows = bounds[len(segments) : len(segments) + len(some)]
            segments += [
                Segment(begins_s + start_s, begins_s + end_s, caption)
                for (start_s, end_s), caption in zip(windows, captions, strict=True)
            ]
            if progress:
                progress(video.name, len(segments), len(bounds))
    return segments


def segment_bounds(duration_s: float, segment_s: float) -> list[tuple[float, float]]:
    """Windows of `segment_s` that cover a video; what remains is a window if half as long, else joins the last.

    Raises `VideoError` where there would be more than `calmctl.video.instants.MOST_PARTS`.
    """
    require_countable(duration_s, duration_s / segment_s, "segments")
    count = max(1, int(duration_s / segment_s + 0.5))
    return [(k * segment_s, duration_s if k == count - 1 else (k + 1) * segment_s) for k in range(count)]


def _frames(video: Path, frames: np.ndarray | VideoError) -> np.ndarray:
    if isinstance(frames, VideoError):
        raise VideoError(f"{video}: {frames}")
    return frames


@torch.inference_mode()
def _features(model: CaptionModel, frames: np.ndarray) -> torch.Tensor:
    """Frame features [N, F, D] of frames [N, F, S, S, 3]."""
    device = next(model.parameters()).device
    clips = torch.from_numpy(frames)
    return torch.cat([model.encode_frames(part.to(device)).cpu() for part in torch.split(clips, 8)])


def srt(segments: Sequence[Segment]) -> str:
    """The segments as a SubRip file, which players show as subtitles: a caption is one line of text, and no cue."""
    blocks = []
    for number, each in enumerate(segments, start=1):
        line = visible(" ".join(each.caption.text.split())).replace("-->", "->")
        blocks.append(f"{number}\n{timestamp(each.start_s)} --> {timestamp(each.end_s)}\n{line}\n")
    return "\n".join(blocks)


def timestamp(time_s: float) -> str:
    """Seconds as SubRip writes them: "00:01:05,250"."""
    total_ms = round(time_s * 1000)
    seconds, ms = divmod(total_ms, 1000)
    return f"{seconds // 3600:02d}:{seconds // 60 % 60:02d}:{seconds % 60:02d},{ms:03d}"
