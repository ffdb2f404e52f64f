"""Dot products of every frame of a collection with a few directions: all that probes need of the frames.

Frames lie on disk in float16. torch multiplies them once they are float32, so they pass through the processor's cache
in blocks. numkong, which comes with the extra `index`, multiplies float16 rows where they lie and adds up in float32.
For a few directions on a CPU memory is the bottleneck, and numkong is faster; for many torch's matrix product is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from importlib import import_module
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from calmctl.model.precision import full_precision
from calmctl.searching.mapped import MappedFrames

FRAMES_PER_BLOCK = 6144
"""Frames converted at once: 12 MB in float32 at D = 512 (our choice, measured)."""
MOST_DIRECTIONS = 8
"""Directions up to which float16 rows are multiplied where they lie (our choice; measured with two)."""
CLIPS_AT_ONCE = 1 << 16
"""Clips multiplied where they lie before anybody is told: threads that take turns with torch's get in their way."""
MOST_ERROR = 1e-6
"""What a product may be off, by the lengths of its factors; the margin of `calmctl.searching.exact` is larger."""
_LOW = 2.0**11  # a float16 has 11 bits: what it leaves of a number is multiplied by this, and is one again

Tell = Callable[[int], None]
Products = Callable[[int, int, Tell], Tensor]
"""Clips `start` to `stop` -> [m, n, F]; told the clip up to which it has come."""


def products_with(frames: MappedFrames, directions: Tensor, block: int | None = None) -> Products:
    """What computes the dot products of clips with `directions` [m, D], in float32 on their device.

    Args:
        frames: The clips.
        directions: float32.
        block: Clips converted at once; None for what suits the cache.
    """
    few = len(directions) <= MOST_DIRECTIONS and directions.device.type == "cpu"
    numkong = numkong_here() if few and block is None and frames.dtype == torch.float16 else None
    if numkong is not None:
        return _where_they_lie(frames, HalfProducts(numkong, directions))
    return _converted(frames, directions, block or max(1, FRAMES_PER_BLOCK // frames.n_frames))


def products(frames: Tensor, directions: Tensor) -> Tensor:
    """Dot products [m, n, F] of frames [n, F, D] with directions [m, D]."""
    with full_precision(frames.device):
        # Not directions @ frames.T: a CPU's product of few rows with many columns takes up to four times as long.
        return F.linear(frames, directions).permute(2, 0, 1)


class HalfProducts:
    """Dot products of float16 rows with float32 directions.

    numkong multiplies numbers of one type. A direction is the sum of two float16 vectors here, 22 bits of each number.
    """

    def __init__(self, numkong: Any, directions: Tensor) -> None:
        self._numkong = numkong
        self._scale = directions.abs().amax(1).clamp_min(torch.finfo(torch.float32).tiny)
        unit = directions / self._scale[:, None]
        high = unit.half()
        low = ((unit - high.float()) * _LOW).half()
        self._packed = numkong.dots_pack(torch.cat([high, low]).numpy())

    def __call__(self, parts: Sequence[Tensor]) -> Tensor:
        """Parts of rows, each [n, D] float16 -> all of them, [m, N] float32."""
        # numkong computes in the thread that calls it, without Python's lock; each gets a share, and not part by part.
        share = -(-len(parts) // torch.get_num_threads())
        shares = [parts[start : start + share] for start in range(0, len(parts), share)]
        with ThreadPoolExecutor(len(shares)) as threads:
            both = torch.cat([torch.from_numpy(part) for found in threads.map(self._raw, shares) for part in found])
        high, low = both.T.contiguous().chunk(2)
        return high.add_(low, alpha=1 / _LOW).mul_(self._scale[:, None])

    def _raw(self, parts: Sequence[Tensor]) -> list[np.ndarray]:
        return [np.asarray(self._numkong.dots_packed(part.numpy(), self._packed)) for part in parts]


def _where_they_lie(frames: MappedFrames, multiply: HalfProducts) -> Products:
    def compute(start: int, stop: int, tell: Tell) -> Tensor:
        found = []
        for low in range(start, stop, CLIPS_AT_ONCE):
            high = min(low + CLIPS_AT_ONCE, stop)
            rows = [part.reshape(-1, frames.dim) for part in frames.stored(low, high)]
            found.append(multiply(rows).view(-1, high - low, frames.n_frames))
            tell(high)
        return torch.cat(found, 1)

    return compute


def _converted(frames: MappedFrames, directions: Tensor, at_once: int) -> Products:
    buffer = frames.empty(min(at_once, len(frames)))

    def parts(start: int, stop: int, tell: Tell) -> Iterator[Tensor]:
        for low in range(start, stop, at_once):
            high = min(low + at_once, stop)
            yield products(frames.block(low, high, buffer).to(directions.device), directions)
            tell(high)

    return lambda start, stop, tell: torch.cat(list(parts(start, stop, tell)), 1)


@cache
def numkong_here() -> Any | None:
    """The package; None where it is not installed, has no packed products, or does not add up in float32.

    Which instructions multiply is numkong's choice, by processor, and some add up in float16: that is measured here,
    once, on rows and directions of known products.
    """
    try:
        numkong = import_module("numkong")
    except ImportError:
        return None
    if not (hasattr(numkong, "dots_pack") and hasattr(numkong, "dots_packed")):
        return None
    generator = torch.Generator().manual_seed(0)
    rows, directions = torch.randn(64, 512, generator=generator).half(), torch.randn(2, 512, generator=generator)
    error = HalfProducts(numkong, directions)([rows]).double() - directions.double() @ rows.double().T
    size = directions.norm(dim=1)[:, None] * rows.float().norm(dim=1)
    return numkong if bool((error.abs() <= MOST_ERROR * size).all()) else None
