"""The other processes that hold parts of the same batch, as a model sees them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

from torch import Tensor


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
