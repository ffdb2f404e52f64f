"""Sums and gathers over processes that carry gradients (docs/architecture.md, The flow of a distributed step)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


class _Gather(torch.autograd.Function):
    """Rows of all processes. Backward: the sum of what all processes send back, of which each keeps its rows."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, sizes: Sequence[int], rank: int) -> Tensor:
        ctx.first, ctx.count = sum(sizes[:rank]), sizes[rank]
        # All must send the same shape: shorter parts are padded to the longest.
        padded = rows.new_zeros(max(sizes), *rows.shape[1:])
        padded[: sizes[rank]] = rows
        parts = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(parts, padded)
        return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        summed = gradients[0].clone(memory_format=torch.contiguous_format)
        dist.all_reduce(summed)
        return summed[ctx.first : ctx.first + ctx.count], None, None


class _Total(torch.autograd.Function):
    """The sum over processes. Backward: the sum of what all processes send back."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        summed = value.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(summed)
        return summed

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        summed = gradients[0].clone(memory_format=torch.contiguous_format)
        dist.all_reduce(summed)
        return summed


def gather_rows(rows: Tensor, sizes: Sequence[int], rank: int) -> Tensor:
    """The rows of all processes in their order, [sum(sizes), ...], of which this one has rows [sizes[rank], ...]."""
    gathered: Tensor = _Gather.apply(rows, sizes, rank)
    return gathered


def total(value: Tensor) -> Tensor:
    """The sum of all processes' `value`, of any shape."""
    summed: Tensor = _Total.apply(value)
    return summed
