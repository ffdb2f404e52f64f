"""The processes of a training, and what they do alike. One process is the usual case, and costs nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeVar

import numpy as np
import torch

from calmctl.errors import CalmError
from calmctl.model.aligned import AlignedModel
from calmctl.model.batch import Batch, Losses
from calmctl.model.peers import Alone, Peers

Result = TypeVar("Result")
Fault = TypeVar("Fault", bound=CalmError)


class World(Peers, Protocol):
    """The processes of a training.

    Attributes:
        rank: The number of this process.
        size: How many there are.
    """

    rank: int
    size: int

    def begin(self, rows: int) -> int:
        """Start a step of which this process has `rows` rows; returns those of all."""
        ...

    def any(self, flag: bool) -> bool:
        """Whether `flag` is true for any process."""
        ...

    def everyone(self, value: Result) -> list[Result]:
        """The `value` of each process, in order."""
        ...

    def wrap(self, model: AlignedModel) -> Callable[[Batch], Losses]:
        """The training step of `model`, whose gradients will be those of the whole batch."""
        ...

    def leave(self) -> None:
        """Part from the others, when all are done."""
        ...


class Single(Alone):
    """A training in one process."""

    rank, size = 0, 1

    def begin(self, rows: int) -> int:
        """The rows given."""
        return rows

    def any(self, flag: bool) -> bool:
        """The flag given."""
        return flag

    def everyone(self, value: Result) -> list[Result]:
        """The value given."""
        return [value]

    def wrap(self, model: AlignedModel) -> Callable[[Batch], Losses]:
        """The model as it is."""
        return model

    def leave(self) -> None:
        """Nobody to part from."""


SINGLE = Single()


def together(world: World, action: Callable[[], Result]) -> Result:
    """Do what all processes do alike. If one fails all stop, and each mistake is told by one process only."""
    fault: CalmError | None = None
    try:
        result = action()
    except CalmError as error:
        fault = error
    faults = world.everyone(str(fault) if fault else None)
    if fault is not None and str(fault) not in faults[: world.rank]:
        raise fault
    if any(each is not None for each in faults):
        raise SystemExit(1)
    return result


def told_once(world: World, error: Fault) -> Fault | SystemExit:
    """What each process raises of an error that all of them meet: the first one tells it, the others just end."""
    return error if world.rank == 0 else SystemExit(error.exit_code)


def part_random(world: World, *key: int) -> None:
    """Give all processes but the first random numbers of their own, as a function of `key` and the rank."""
    if world.rank > 0:
        torch.manual_seed(int(np.random.SeedSequence([*key, world.rank]).generate_state(1)[0]))
