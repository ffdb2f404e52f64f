"""The processes of a training, and what they do alike. One process is the usual case, and costs nothing.

    torchrun --nproc-per-node 4 -m calmctl train recipe.yaml

NCCL carries tensors between GPUs and Gloo between CPUs. What processes agree on (how many rows each has, whether one
was interrupted) always goes through Gloo, so that it never waits for a GPU.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from calmctl.errors import BadInput, CalmError, RunFailed

Result = TypeVar("Result")
Fault = TypeVar("Fault", bound=CalmError)

TIMEOUT_S = 3600.0
"""How long a process waits for the others before it gives up; longer than a validation takes, for which all wait for
one (our choice). A process that dies is noticed at once."""


class World:
    """The processes that train together, one of which this is. With one process every method returns early.

    A batch of B rows lies in parts of n rows, one part a process, in the order of the processes. Every process
    computes the losses of the whole batch. What it sends to the others keeps its gradient, and the gradients that all
    of them send back are summed: the mean of the processes' gradients is then that of the batch
    (docs/architecture.md, The flow of a distributed step).

    Attributes:
        rank: The number of this process.
        size: How many there are.
        first: The number in the batch of this process's first row.
    """

    def __init__(
        self,
        rank: int = 0,
        size: int = 1,
        *,
        device: torch.device | None = None,
        agreeing: Any = None,
        timeout_s: float = TIMEOUT_S,
    ) -> None:
        """Process `rank` of `size`, which computes on `device`; `agreeing` is the Gloo group of all (`joined`)."""
        self.rank, self.size, self.first = rank, size, 0
        self._sizes = [0] * size
        self._device, self._agreeing, self._timeout = device, agreeing, timedelta(seconds=timeout_s)

    # What each of them has, and who does what.

    def gather_objects(self, value: Result) -> list[Result]:
        """The `value` of each process, in order; small objects."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value, group=self._agreeing)
        return values

    def any(self, flag: bool) -> bool:
        """Whether `flag` is true for any process."""
        return any(self.gather_objects(flag))

    def together(self, action: Callable[[], Result]) -> Result:
        """Do what all processes do alike. If one fails all stop, and each mistake is told by one process only."""
        fault: CalmError | None = None
        try:
            result = action()
        except CalmError as error:
            fault = error
        # All must come here, those that failed too: one that raised at once would leave the others waiting for an hour.
        faults = self.gather_objects(str(fault) if fault else None)
        if fault is not None and str(fault) not in faults[: self.rank]:
            raise fault
        if any(message is not None for message in faults):
            raise SystemExit(1)
        return result

    def rank_zero_error(self, error: Fault) -> Fault | SystemExit:
        """What each process raises of an error that all of them meet: the first one tells it, the others just end."""
        return error if self.rank == 0 else SystemExit(error.exit_code)

    def seed_by_rank(self, *key: int) -> None:
        """Give all processes but the first random numbers of their own, as a function of `key` and the rank."""
        if self.rank > 0:
            # The first one goes on as a process alone would. A SeedSequence keeps the seeds of neighbouring ranks and
            # steps apart, which seed + rank would not.
            torch.manual_seed(int(np.random.SeedSequence([*key, self.rank]).generate_state(1)[0]))

    # The parts of a batch.

    def places(self, count: int, batch_size: int, skip: int) -> list[range]:
        """The places in an epoch of `count` pairs that are this process's, for each batch after the first `skip`.

        Parts of a batch are equal but for one pair, in order.
        """
        parts = []
        for first in range(skip * batch_size, count, batch_size):
            pairs = min(batch_size, count - first)
            parts.append(range(first + pairs * self.rank // self.size, first + pairs * (self.rank + 1) // self.size))
        return parts

    def begin(self, rows: int) -> int:
        """Start a step of which this process has `rows` rows; returns those of all."""
        if self.size == 1:
            return rows
        # Through Gloo and once per step: clips that fail make parts unequal, and `gather` must know by how much.
        self._sizes = self.gather_objects(rows)
        self.first = sum(self._sizes[: self.rank])
        return sum(self._sizes)

    def own(self, rows: Tensor) -> Tensor:
        """This process's rows [n, ...]: all but the blank one that stands in where it has none."""
        return rows if self.size == 1 else rows[: self._sizes[self.rank]]

    def gather(self, rows: Tensor) -> Tensor:
        """The rows of all processes, [B, ...], of the `own` ones of each."""
        if self.size == 1:
            return rows
        return _Gather.apply(self.own(rows), self._sizes, self.rank)

    def mean(self, value: Tensor, count: Tensor | None = None) -> Tensor:
        """The mean over the batch, of every process's mean over `count` things; None: over its rows."""
        if self.size == 1:
            return value
        # Filled in place: a number copied to a GPU would make the host wait for all that the GPU has to do.
        weight = torch.full_like(value, self._sizes[self.rank]) if count is None else count.to(value)
        # One exchange for both. Weighting by rows is what makes parts of unequal size the mean of the whole batch.
        summed, weights = _Total.apply(torch.stack([value * weight, weight]))
        return summed / weights

    def mean_over(self, rows: Tensor, dim: int) -> Tensor:
        """The mean along `dim`, which runs over the rows of the batch and of which this process has a part."""
        if self.size == 1:
            return rows.mean(dim)
        return _Total.apply(rows.sum(dim)) / sum(self._sizes)

    @contextmanager
    def same_random(self) -> Iterator[None]:
        """Draw what the first process would draw; the others' own numbers go on from where they are."""
        if self.size == 1:
            yield
            return
        # A seed and not the draws: numbers of any count and shape then cost one small exchange.
        seed = self.gather_objects(int(torch.randint(2**62, ())))[0]
        devices = [self._device] if self._device is not None and self._device.type == "cuda" else []
        with torch.random.fork_rng(devices):
            torch.manual_seed(seed)
            yield

    # The beginning and the end.

    def wrap(self, model: nn.Module) -> nn.Module:
        """`model` with gradients of the whole batch; its weights become those of the first process."""
        if self.size == 1:
            return model
        # Some recipes leave parameters without a gradient: a captioner's contrastive scale, for one.
        return nn.parallel.DistributedDataParallel(model, find_unused_parameters=True)

    def leave(self) -> None:
        """Wait for all, when all are done, then close the connections; once."""
        if self.size > 1 and dist.is_initialized():
            # The others wait here while the first validates; a plain barrier would not say which process is missing.
            dist.monitored_barrier(self._agreeing, timeout=self._timeout)
            dist.destroy_process_group()


SINGLE = World()


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
        summed = _summed(gradients[0])
        # Summed, not averaged: every process computes the whole loss, and DDP's mean divides by their number later.
        return summed[ctx.first : ctx.first + ctx.count], None, None


class _Total(torch.autograd.Function):
    """The sum over processes, of a value of any shape. Backward: the sum of what all processes send back."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        return _summed(value)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return _summed(gradients[0])


def _summed(value: Tensor) -> Tensor:
    summed = value.clone(memory_format=torch.contiguous_format)
    dist.all_reduce(summed)
    return summed


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
        if local >= (n_gpus := torch.cuda.device_count()):
            raise BadInput(
                f"torchrun started process {local + 1} of this machine, which has {n_gpus} GPUs; "
                f"use --nproc-per-node {max(n_gpus, 1)}, or device=cpu"
            )
        torch.cuda.set_device(local)
    try:
        timeout = timedelta(seconds=timeout_s)
        dist.init_process_group("cpu:gloo,cuda:nccl" if on_gpu else "gloo", timeout=timeout)
        world = World(
            dist.get_rank(),
            dist.get_world_size(),
            device=torch.device("cuda", local) if on_gpu else torch.device("cpu"),
            agreeing=dist.new_group(backend="gloo", timeout=timeout),
            timeout_s=timeout_s,
        )
        world.gather_objects(None)  # the first exchange connects all; better now than in the middle of a step
        yield world
        world.leave()
    except RuntimeError as fault:
        # torch raises plain RuntimeErrors for lost peers as for faults of ours; only the words tell them apart.
        if not _is_about_others(fault):
            raise
        raise RunFailed(
            f"process {os.environ.get('RANK', '0')} of {size} lost another one, which died or did not answer in time; "
            f"its own message tells why. ({str(fault).splitlines()[0]})"
        ) from fault


def _is_about_others(fault: RuntimeError) -> bool:
    markers = ("gloo", "nccl", "monitoredbarrier", "connection", "timed out")
    return isinstance(fault, dist.DistError) or any(marker in str(fault).lower() for marker in markers)
