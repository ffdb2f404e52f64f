"""CLIP4Clip's seqTransf: frames in order through a transformer, then mean pooling (docs/science.md, The heads)."""

from __future__ import annotations

from calmctl.model.heads.meanp import MeanPoolHead
from calmctl.model.temporal import FrameTransformer


class SeqTransfHead(MeanPoolHead):
    """Scores cos(t, meanp(f + transformer(f + positions))).

    Args:
        frames: The layers over the frames, started at random or from CLIP's text tower.
    """

    name = "seqtransf"

    def __init__(self, frames: FrameTransformer) -> None:
        super().__init__(frames)
