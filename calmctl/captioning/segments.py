"""Captions of a long video, one for every few seconds of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from calmctl.captioning.generate import Caption, Search, caption_features
from calmctl.data.long import frames_at, video_extent
from calmctl.data.sampling import frame_times
from calmctl.model.caption import CaptionModel
from calmctl.model.preprocess import split_preprocess

SEGMENTS_PER_PASS = 64
"""Segments decoded in one pass over the file: at 12 frames of 224 pixels a side, 115 MB (our choice)."""


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
    """Captions of consecutive segments of `video`; memory does not grow with its length.

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
    begins_s, duration_s = video_extent(video)
    bounds = segment_bounds(duration_s, segment_s)
    found: list[Segment] = []
    for first in range(0, len(bounds), SEGMENTS_PER_PASS):
        some = bounds[first : first + SEGMENTS_PER_PASS]
        captions = caption_features(model, _features(model, video, duration_s, some, n_frames), search)
        found += [
            Segment(begins_s + start_s, begins_s + end_s, caption)
            for (start_s, end_s), caption in zip(some, captions, strict=True)
        ]
        if progress:
            progress(len(found), len(bounds))
    return found


def segment_bounds(duration_s: float, segment_s: float) -> list[tuple[float, float]]:
    """Windows of `segment_s` that cover a video; what remains is a window if half as long, else joins the last."""
    count = max(1, int(duration_s / segment_s + 0.5))
    return [(k * segment_s, duration_s if k == count - 1 else (k + 1) * segment_s) for k in range(count)]


@torch.inference_mode()
def _features(
    model: CaptionModel, video: Path, duration_s: float, windows: Sequence[tuple[float, float]], n_frames: int
) -> torch.Tensor:
    """Frame features [N, F, D] of windows of a video."""
    times_s = np.concatenate([frame_times(duration_s, n_frames, *window) for window in windows])
    frames = frames_at(video, times_s, split_preprocess(model.backbone)[0])
    device = next(model.parameters()).device
    clips = torch.from_numpy(frames.reshape(len(windows), n_frames, *frames.shape[1:]))
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
