"""The other direction: which of some sentences a clip is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from calmctl.data.samples import Clip
from calmctl.evaluation.encoding import encode_captions
from calmctl.searching.answers import Shared
from calmctl.searching.exact import Judge
from calmctl.searching.search import shared_anchors
from calmctl.searching.seeker import BARE_FRAMES, Seeker


@dataclass(frozen=True, slots=True)
class Ranked:
    """One sentence for a clip; the rest as in `Hit`."""

    rank: int
    score: float
    sentence: str
    shared: tuple[Shared, ...] | None = None


def rank_sentences(seeker: Seeker, clip: Clip, sentences: Sequence[str], top: int) -> list[Ranked]:
    """The `top` best of some sentences for a clip, by the head's own score.

    Scores of one clip under many sentences are on one scale for that clip only: a list of sentences that all miss
    has a best one too. Raises `VideoError` where the clip cannot be decoded.
    """
    frames = seeker.video(clip, seeker.n_frames or BARE_FRAMES)
    texts = encode_captions(seeker.model, tuple(sentences), seeker.device)
    scores = Judge(seeker.model.head, seeker.model.adapter).scores(texts, frames)[:, 0]
    order = np.lexsort((np.arange(len(scores)), -scores.round(12)))[:top].tolist()
    features = seeker.adapted(frames)[0].cpu()
    explainer = seeker.explainer
    return [
        Ranked(
            rank,
            float(scores[number]),
            sentences[number],
            None if explainer is None else shared_anchors(explainer, texts[number], features),
        )
        for rank, number in enumerate(order, start=1)
    ]
