"""Pairs of texts and videos in blocks that bound the memory of a score."""

from __future__ import annotations

from collections.abc import Iterator

_TEXTS = 256  # enough for matrix products at full speed, and leaves room for several videos


def pair_blocks(n_texts: int, n_videos: int, pairs: int) -> Iterator[tuple[slice, slice]]:
    """Slices of texts and of videos that cover all pairs once, about `pairs` pairs at a time."""
    text_step = max(1, min(n_texts, _TEXTS, pairs))
    video_step = max(1, pairs // text_step)
    for i in range(0, n_texts, text_step):
        for j in range(0, n_videos, video_step):
            yield slice(i, i + text_step), slice(j, j + video_step)
