"""Cosines that are multiplied by 100 need float32: the heads' arithmetic steps out of mixed precision."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Switch autocast off, and TF32 and bfloat16 products with it, as long as the block lasts.

    A bfloat16 cosine has three digits; times a logit scale of 100 the error would be about 0.4.
    """
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        torch.set_float32_matmul_precision(precision)
