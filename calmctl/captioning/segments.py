"""Captions of a long video, one for every few seconds of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from calmctl.captioning.generate import Caption, Search, caption_features
from calmctl.data.instants import LONG_TIMEOUT_S
from calmctl.data.long import require_countable, video_extent
from calmctl.data.samples import Clip
from calmctl.data.workers import decode_clips
from calmctl.errors import VideoError
from calmctl.model.caption import CaptionModel
from calmctl.model.preprocess import split_preprocess

SEGMENTS_PER_BATCH = 64
"""Segments whose frames are held at once: at 12 frames of 224 pixels a side, 115 MB (our choice)."""


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
    search: Search,
    progress: Callable[[int, int], None] | None = None,
) -> list[Segment]:
    """Captions of consecutive segments of `video`, decoded in one pass; memory does not grow with its length.

    Args:
        model: In evaluation mode.
        video: The file.
        segment_s: Length of a segment; see `segment_bounds` for the last one.
        n_frames: F, the frames of a segment, as the model was trained with.
        search: How captions are found.
        progress: Called with segments done and segments in all.

    Raises:
        VideoError: The video cannot be decoded.
    """
    duration_s, begins_s = video_extent(video)
    bounds = segment_bounds(duration_s, segment_s)
    clips = [Clip(f"{start_s:.3f}", video, start_s, end_s) for start_s, end_s in bounds]
    resize = split_preprocess(model.backbone)[0]
    decoded = decode_clips(clips, n_frames, workers=1, timeout_s=LONG_TIMEOUT_S, transform=resize)
    found: list[Segment] = []
    with closing(decoded):
        while some := [_frames(video, frames) for _, frames in islice(decoded, SEGMENTS_PER_BATCH)]:
            captions = caption_features(model, _features(model, np.stack(some)), search)
            windows = bounds[len(found) : len(found) + len(some)]
            found += [
                Segment(begins_s + start_s, begins_s + end_s, caption)
                for (start_s, end_s), caption in zip(windows, captions, strict=True)
            ]
            if progress:
                progress(len(found), len(bounds))
    return found


def segment_bounds(duration_s: float, segment_s: float) -> list[tuple[float, float]]:
    """Windows of `segment_s` that cover a video; what remains is a window if half as long, else joins the last.

    Raises `VideoError` where there would be more than `calmctl.data.long.MOST_PARTS`.
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
    """The segments as a SubRip file, which players show as subtitles."""
    blocks = [
        f"{number}\n{timestamp(each.start_s)} --> {timestamp(each.end_s)}\n{each.caption.text}\n"
        for number, each in enumerate(segments, start=1)
    ]
    return "\n".join(blocks)


def timestamp(time_s: float) -> str:
    """Seconds as SubRip writes them: "00:01:05,250"."""
    total_ms = round(time_s * 1000)
    seconds, ms = divmod(total_ms, 1000)
    return f"{seconds // 3600:02d}:{seconds // 60 % 60:02d}:{seconds % 60:02d},{ms:03d}"
