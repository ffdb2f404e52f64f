"""What the training loop is given."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from calmctl.model.aligned import AlignedModel
from calmctl.model.batch import Batch
from calmctl.recipe import Recipe
from calmctl.runs.folder import Run
from calmctl.training.trackers import Tracker
from calmctl.training.world import SINGLE, World


class BatchSource(Protocol):
    """Where batches come from: the same ones in the same order for the same recipe, whoever asks.

    Attributes:
        steps_per_epoch: Batches an epoch.
        ids: The ids of the clips that `Batch.clips` counts.
    """

    steps_per_epoch: int
    ids: Sequence[str]

    def epoch(self, epoch: int, skip: int) -> Iterator[Batch | None]:
        """This process's part of the batches of `epoch` after the first `skip`; None: no usable clip in it."""
        ...

    def blank(self) -> Batch:
        """One row that looks like any other: a process without a usable clip computes on it to keep in step."""
        ...


class Watcher(Protocol):
    """Shows progress; the command line has one with a bar."""

    def begin(self, run: Run, epochs: int) -> None:
        """Called once, before the first clip is read: where the run is, and how many epochs it has."""
        ...

    def step(self, done: int, total: int, loss: float) -> None:
        """Called after each step."""
        ...

    def epoch(self, epoch: int, validation: dict[str, float]) -> None:
        """Called after each epoch's validation."""
        ...

    def warn(self, text: str) -> None:
        """Called with a sentence or two on what seems to go wrong."""
        ...


@dataclass(frozen=True, slots=True)
class Training:
    """All that the loop needs.

    Attributes:
        trained_on: The datasets that the weights will have seen, told in every weights file.
        validate: Numbers of the validation split with the current weights; "score" decides what is best.
        left_out: The clips that this process has met and could not use, by split, with reasons.
        watcher: Whom to tell; the first process has one at most.
        world: The processes that train together. The first one validates, and writes all files.
    """

    recipe: Recipe
    model: AlignedModel
    source: BatchSource
    validate: Callable[[], dict[str, float]]
    run: Run
    trained_on: tuple[str, ...]
    device: torch.device
    tracker: Tracker
    left_out: Callable[[], dict[str, dict[str, str]]]
    watcher: Watcher | None = None
    world: World = SINGLE

    def warn(self, text: str) -> None:
        """Tell the watcher."""
        if self.watcher:
            self.watcher.warn(text)
