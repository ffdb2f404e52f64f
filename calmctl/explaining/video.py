"""A video as an explanation looks at it: the frames that make its score, and finer instants for a timeline."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from calmctl.data.instants import sample_video
from calmctl.data.pictures import jpeg, shrink
from calmctl.data.samples import Clip
from calmctl.explaining.explainer import Explainer
from calmctl.model.preprocess import split_preprocess


@dataclass(frozen=True, slots=True)
class SeenVideo:
    """Features of one clip, with times by its file's own clock.

    Attributes:
        clip: The clip.
        start_s: Where its window begins.
        end_s: Where it ends.
        times_s: When the frames of the score were on the screen, [F].
        frames: Their features, [F, D].
        instants_s: When those of the timeline were, [T].
        instants: Their features, [T, D].
        pictures: JPEG files of the F frames, for a page; empty where none were asked for.
    """

    clip: Clip
    start_s: float
    end_s: float
    times_s: np.ndarray
    frames: Tensor
    instants_s: np.ndarray
    instants: Tensor
    pictures: tuple[bytes, ...]


def see_video(explainer: Explainer, clip: Clip, *, instants: int | None = None, pictures: bool = False) -> SeenVideo:
    """Decode and encode a clip: F frames as scoring samples them, and `instants` for the timeline, in one pass.

    Args:
        explainer: Whose backbone encodes.
        clip: The video, or a window of it.
        instants: How many; None for two a second, at least 12 and at most 240 (our choice).
        pictures: Whether to keep JPEG pictures of the F frames.

    Raises:
        VideoError: The clip cannot be decoded.
    """
    resize = split_preprocess(explainer.model.backbone)[0]
    sampled = sample_video(
        clip, explainer.n_frames, instants=instants, transform=resize, picture=shrink if pictures else None
    )
    return SeenVideo(
        clip=clip,
        start_s=sampled.start_s,
        end_s=sampled.end_s,
        times_s=sampled.times_s,
        frames=explainer.encode_frames(sampled.frames),
        instants_s=sampled.instants_s,
        instants=explainer.encode_frames(sampled.instants),
        pictures=tuple(map(jpeg, sampled.pictures)),
    )
