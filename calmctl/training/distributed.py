"""The processes of a training, and what they do alike. One process is the usual case, and costs nothing."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from calmctl.errors import BadInput, CalmError, RunFailed
from calmctl.model.backbone import require_separate_rows
from calmctl.model.calm import AlignedModel, Batch, Losses
from calmctl.parallel import Alone, Peers, gather_rows, total

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


# Training with several processes, as torchrun starts them: who is who, and what they agree on.
#
#     torchrun --nproc-per-node 4 -m calmctl train recipe.yaml
#
# NCCL carries tensors between GPUs and Gloo between CPUs. What processes agree on (how many rows each has, whether one
# was interrupted) always goes through Gloo, so that it never waits for a GPU.


TIMEOUT_S = 3600.0
"""How long a process waits for the others before it gives up; longer than a validation takes, for which all wait for
one (our choice). A process that dies is noticed at once."""


class Ranks:
    """A training in several processes; also the `Peers` of its model."""

    def __init__(self, device: torch.device, timeout_s: float = TIMEOUT_S) -> None:
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        self._device = device
        self._sizes, self.first = [0] * self.size, 0
        self._timeout = timedelta(seconds=timeout_s)
        self._agreeing: Any = dist.new_group(backend="gloo", timeout=self._timeout)
        self.everyone(None)  # the first exchange connects all; better now than in the middle of a step

    def begin(self, rows: int) -> int:
        """Tell the others how many rows this process has."""
        self._sizes = self.everyone(rows)
        self.first = sum(self._sizes[: self.rank])
        return sum(self._sizes)

    def any(self, flag: bool) -> bool:
        """Ask all."""
        return any(self.everyone(flag))

    def everyone(self, value: Result) -> list[Result]:
        """Exchange small objects."""
        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, value, group=self._agreeing)
        return found

    def own(self, rows: Tensor) -> Tensor:
        """This process's rows; none of the blank one that keeps it in step."""
        return rows[: self._sizes[self.rank]]

    def gather(self, rows: Tensor) -> Tensor:
        """The rows of all."""
        return gather_rows(self.own(rows), self._sizes, self.rank)

    def mean(self, value: Tensor, count: Tensor | None = None) -> Tensor:
        """The mean of all means, each weighted by what it is the mean over."""
        weight = torch.tensor(self._sizes[self.rank]) if count is None else count
        weight = weight.to(value)
        summed, weights = total(torch.stack([value * weight, weight]))
        mean: Tensor = summed / weights
        return mean

    def mean_over(self, rows: Tensor, dim: int) -> Tensor:
        """The sum of all sums over the rows of the batch."""
        return total(rows.sum(dim)) / sum(self._sizes)

    @contextmanager
    def alike(self) -> Iterator[None]:
        """Draw what the first process would draw; the others' own numbers go on from where they are."""
        state = self.everyone(int(torch.randint(2**62, ())))[0]
        devices = [self._device] if self._device.type == "cuda" else []
        with torch.random.fork_rng(devices):
            torch.manual_seed(state)
            yield

    def wrap(self, model: AlignedModel) -> Callable[[Batch], Losses]:
        """PyTorch's DistributedDataParallel around `model`, whose weights become those of the first process."""
        require_separate_rows(model, "training with several processes")
        model.join(self)
        # Some recipes leave parameters without a gradient: a captioner's contrastive scale, for one.
        return torch.nn.parallel.DistributedDataParallel(model, find_unused_parameters=True)

    def leave(self) -> None:
        """Wait for all, then close the connections; once."""
        if dist.is_initialized():
            dist.monitored_barrier(self._agreeing, timeout=self._timeout)
            dist.destroy_process_group()


@contextmanager
def joined(device: str, timeout_s: float = TIMEOUT_S) -> Iterator[World]:
    """The processes that torchrun started with this one, or this one alone.

    Args:
        device: The recipe's `device`.
        timeout_s: How long to wait for the others.

    Raises:
        BadInput: More processes on this machine than GPUs, or a device that processes cannot share.
        RunFailed: The others are lost: one died, or did not answer in time.
    """
    size, local = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("LOCAL_RANK", "0"))
    if size == 1:
        yield SINGLE
        return
    on_gpu = device == "cuda" or (device == "auto" and torch.cuda.is_available())
    if device == "mps":
        raise BadInput("device: mps serves one process only; use device=cpu, or start calmctl without torchrun")
    if on_gpu:
        if local >= (found := torch.cuda.device_count()):
            raise BadInput(
                f"torchrun started process {local + 1} of this machine, which has {found} GPUs; "
                f"use --nproc-per-node {max(found, 1)}, or device=cpu"
            )
        torch.cuda.set_device(local)
    try:
        backend = "cpu:gloo,cuda:nccl" if on_gpu else "gloo"
        dist.init_process_group(backend, timeout=timedelta(seconds=timeout_s))
        world = Ranks(torch.device("cuda", local) if on_gpu else torch.device("cpu"), timeout_s)
        yield world
        world.leave()
    except RuntimeError as fault:
        if not _is_about_others(fault):
            raise
        raise RunFailed(
            f"process {os.environ.get('RANK', '0')} of {size} lost another one, which died or did not answer in time; "
            f"its own message tells why. ({str(fault).splitlines()[0]})"
        ) from fault


def _is_about_others(fault: RuntimeError) -> bool:
    words = ("gloo", "nccl", "monitoredbarrier", "connection", "timed out")
    return isinstance(fault, dist.DistError) or any(word in str(fault).lower() for word in words)
