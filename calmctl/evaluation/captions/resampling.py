"""Bootstrap intervals of caption metrics: clips are resampled, with all their references.

Document frequencies of CIDEr stay those of the whole set, as they belong to the test set and not to the draw.
"""

from __future__ import annotations

import numpy as np

from calmctl.evaluation.bootstrap import Interval
from calmctl.evaluation.captions.corpus import Doubles

LEVEL = 0.95
REPLICATES = 1000
_BLOCK_ELEMENTS = 4_000_000


def resampled_sums(columns: Doubles, *, replicates: int = REPLICATES, seed: int = 0) -> Doubles:
    """Sums over clips drawn with replacement, [R, K], of `columns` [N, K]; one draw serves all columns."""
    rng = np.random.default_rng(seed)
    n_clips = len(columns)
    block = max(1, _BLOCK_ELEMENTS // n_clips)
    sums = []
    for start in range(0, replicates, block):
        drawn = rng.multinomial(n_clips, np.full(n_clips, 1.0 / n_clips), size=min(block, replicates - start))
        sums.append(drawn @ columns)
    return np.concatenate(sums)


def interval(values: Doubles) -> Interval:
    """The percentile interval that holds `LEVEL` of `values` [R]."""
    low, high = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(float(low), float(high))
