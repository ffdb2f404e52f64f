"""All (text, video) scores of a split: exact, streamed, and blind to who belongs to whom (docs/protocols.md)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from calmctl.errors import BadInput
from calmctl.model.heads.base import FusionHead


@torch.no_grad()
def score_all(
    head: FusionHead,
    texts: Tensor,
    frames: Tensor,
    *,
    text_chunk: int = 1024,
    video_chunk: int = 128,
    device: torch.device | str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Tensor:
    """Score every text against every video.

    Nothing larger than the result and two chunks is held; chunk sizes change memory and speed, not scores
    (up to rounding). No argument tells which text describes which video.

    Args:
        head: A fusion head, on `device`.
        texts: Raw sentence features [N_t, D].
        frames: Raw frame features [N_v, F, D]. N_t and N_v are unrelated.
        text_chunk: Texts at once.
        video_chunk: Videos at once.
        device: Where to compute; default: where `texts` are.
        progress: Called with the pairs done and the pairs in all, after every chunk.

    Returns:
        [N_t, N_v] on the CPU, float32, or float64 where the head computes in float64.

    Raises:
        BadInput: A feature is not a finite number: its score, and every rank, would mean nothing.
    """
    _check_finite(texts, "text")
    _check_finite(frames, "video")
    device = texts.device if device is None else torch.device(device)
    n_texts, n_videos = len(texts), len(frames)
    scores = torch.empty(n_texts, n_videos)
    done = 0
    for j in range(0, n_videos, video_chunk):
        table = head.video_table(frames[j : j + video_chunk].to(device))
        for i in range(0, n_texts, text_chunk):
            block = head.score(texts[i : i + text_chunk].to(device), table)
            if block.dtype != scores.dtype:
                scores = scores.to(block.dtype)
            scores[i : i + text_chunk, j : j + video_chunk] = block
            done += block.numel()
            if progress is not None:
                progress(done, n_texts * n_videos)
    return scores


def _check_finite(features: Tensor, what: str) -> None:
    # A sum is finite only if all its terms are (overflow apart, which is looked at again), without a mask's memory.
    if torch.isfinite(features.sum(dtype=torch.float64)):
        return
    bad = ~torch.isfinite(features.flatten(1)).all(1)
    if bad.any():
        rows = bad.nonzero().flatten().tolist()
        raise BadInput(
            f"the features of {len(rows)} of {len(bad)} {what}s are not finite numbers, the first at row {rows[0]}; "
            "extract them again"
        )
