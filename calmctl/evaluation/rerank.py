"""Re-ranking that looks at the whole query set: an option that tables label, never the default."""

from __future__ import annotations

from torch import Tensor


def dual_softmax(scores: Tensor, temperature: float = 100.0) -> Tensor:
    """Scores times their softmax over all texts (DSL, docs/protocols.md), for text-to-video retrieval.

    Transductive: the score of one query depends on all the other queries. For video-to-text retrieval, where
    the videos are the queries, pass the transpose.

    Args:
        scores: Cosines [N_t, N_v].
        temperature: The fixed factor inside the softmax, 100 in the field.
    """
    return scores * (temperature * scores).softmax(0)
