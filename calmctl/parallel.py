"""The other processes that hold parts of the same batch, and sums and gathers that carry gradients."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor

# The other processes that hold parts of the same batch, as a model sees them.


class Peers(Protocol):
    """A batch of B rows in parts of n rows, one part a process, in the order of the processes.

    Every process computes the losses of the whole batch. What it sends to the others keeps its gradient, and the
    gradients that all of them send back are summed: the mean of the processes' gradients is then that of the
    batch (docs/architecture.md, The flow of a distributed step).

    Attributes:
        first: The number in the batch of this process's first row.
    """

    first: int

    def own(self, rows: Tensor) -> Tensor:
        """This process's rows [n, ...]: all but the blank one that stands in where it has none."""
        ...

    def gather(self, rows: Tensor) -> Tensor:
        """The rows of all processes, [B, ...], of the `own` ones of each."""
        ...

    def mean(self, value: Tensor, count: Tensor | None = None) -> Tensor:
        """The mean over the batch, of every process's mean over `count` things; None: over its rows."""
        ...

    def mean_over(self, rows: Tensor, dim: int) -> Tensor:
        """The mean along `dim`, which runs over the rows of the batch and of which this process has a part."""
        ...

    def alike(self) -> AbstractContextManager[None]:
        """A block in which all processes draw the same random numbers."""
        ...


class Alone:
    """A single process: its part is the batch."""

    first = 0

    def own(self, rows: Tensor) -> Tensor:
        """All rows."""
        return rows

    def gather(self, rows: Tensor) -> Tensor:
        """The same rows."""
        return rows

    def mean(self, value: Tensor, count: Tensor | None = None) -> Tensor:
        """The same mean."""
        return value

    def mean_over(self, rows: Tensor, dim: int) -> Tensor:
        """The plain mean."""
        return rows.mean(dim)

    @contextmanager
    def alike(self) -> Iterator[None]:
        """Nothing to agree on."""
        yield


ALONE = Alone()


# Sums and gathers over processes that carry gradients (docs/architecture.md, The flow of a distributed step).


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
