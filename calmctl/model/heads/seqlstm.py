"""CLIP4Clip's seqLSTM: frames in order through an LSTM, then mean pooling (docs/science.md, The heads)."""

from __future__ import annotations

from calmctl.model.heads.meanp import MeanPoolHead
from calmctl.model.temporal import FrameLSTM


class SeqLSTMHead(MeanPoolHead):
    """Scores cos(t, meanp(f + LSTM(f))).

    Args:
        dim: D.
    """

    name = "seqlstm"

    def __init__(self, dim: int) -> None:
        super().__init__(FrameLSTM(dim))
