"""The training loop: steps, validation at epoch ends, checkpoints, and a way back after an interruption."""

from __future__ import annotations

import math
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any, Protocol

import torch

from calmctl.errors import RunFailed
from calmctl.model.aligned import AlignedModel, Batch, Losses
from calmctl.recipe import Recipe
from calmctl.runs.checkpoint import Position, load_state, save_state, save_weights
from calmctl.runs.folder import Run
from calmctl.training.optim import (
    build_optimizer,
    clamp_logit_scale,
    gradient_norms,
    schedule_factor,
    set_learning_rate,
)
from calmctl.training.trackers import Tracker


class BatchSource(Protocol):
    """Where batches come from: the same ones in the same order for the same recipe, whoever asks."""

    steps_per_epoch: int

    def epoch(self, epoch: int, skip: int) -> Iterator[Batch | None]:
        """The batches of `epoch` after the first `skip`; None stands for a batch without one usable clip."""
        ...


class Watcher(Protocol):
    """Shows progress; the command line has one with a bar."""

    def step(self, done: int, total: int, loss: float) -> None:
        """Called after each step."""
        ...

    def epoch(self, epoch: int, validation: dict[str, float]) -> None:
        """Called after each epoch's validation."""
        ...


@dataclass(frozen=True, slots=True)
class Training:
    """All that the loop needs.

    Attributes:
        trained_on: The datasets that the weights will have seen, told in every weights file.
        validate: Numbers of the validation split with the current weights; "score" decides what is best.
    """

    recipe: Recipe
    model: AlignedModel
    source: BatchSource
    validate: Callable[[], dict[str, float]]
    run: Run
    trained_on: tuple[str, ...]
    device: torch.device
    tracker: Tracker
    watcher: Watcher | None = None


def run_training(training: Training, *, resume: bool) -> Position:
    """Train to the end of the recipe; leaves state, last and best weights in the run's folder.

    A resumed run takes up model, optimiser, random state and the place in the epoch from the last checkpoint,
    and ends bit for bit where the unbroken run ends (same machine, same recipe).

    Raises:
        RunFailed: A loss that is not finite, or an interruption; what was reached is saved, and the message
            says how to go on.
    """
    keys, model, run = training.recipe.optim, training.model, training.run
    optimizer = build_optimizer(model, keys)
    position = Position(history=[])
    if resume:
        if run.state.exists():
            position = load_state(run.state, model, optimizer)
        run.trim_log(position.step)
    per_epoch = training.source.steps_per_epoch
    with _interruptions() as interrupted:
        while position.epoch < keys.epochs:
            model.train()
            skip = position.step - position.epoch * per_epoch
            for batch in training.source.epoch(position.epoch, skip):
                if batch is not None:
                    _step(training, optimizer, batch, position.step, per_epoch * keys.epochs)
                position.step += 1
                if interrupted or position.step % keys.save_every == 0:
                    save_state(run.state, model, optimizer, position)
                if interrupted:
                    raise RunFailed(f"interrupted after step {position.step}; {_how_to_resume(run)}")
            _finish_epoch(training, position)
            save_state(run.state, model, optimizer, position)
    return position


def _step(training: Training, optimizer: torch.optim.Optimizer, batch: Batch, step: int, total_steps: int) -> None:
    recipe, model = training.recipe, training.model
    set_learning_rate(optimizer, schedule_factor(step, total_steps, recipe.optim.warmup))
    with torch.autocast(training.device.type, dtype=torch.bfloat16, enabled=recipe.optim.precision == "bf16"):
        losses: Losses = model(batch.to(training.device))
    value = losses.total.item()
    if not math.isfinite(value):
        parts = ", ".join(f"{name} {part.item():g}" for name, part in losses.parts.items())
        raise RunFailed(
            f"the loss of step {step + 1} is not finite ({parts}; clips {sorted(set(batch.clips.tolist()))[:8]}); "
            f"lower optim.lr_* or look at these clips. The last good checkpoint is kept: {training.run.state}"
        )
    optimizer.zero_grad(set_to_none=True)
    losses.total.backward()  # type: ignore[no-untyped-call]
    logs = step % recipe.optim.log_every == 0
    norms = gradient_norms(model) if logs else {}
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    torch.nn.utils.clip_grad_norm_(parameters, recipe.optim.clip_norm)
    optimizer.step()
    clamp_logit_scale(model)
    if logs:
        _log_step(training, losses, step + 1, norms, optimizer)
    if training.watcher:
        training.watcher.step(step + 1, total_steps, value)


def _log_step(
    training: Training,
    losses: Losses,
    step: int,
    norms: dict[str, float],
    optimizer: torch.optim.Optimizer,
) -> None:
    numbers = {name: value.item() for name, value in (losses.parts | losses.diagnostics).items()}
    numbers |= norms
    numbers |= {f"lr_{group['name']}": group["lr"] for group in optimizer.param_groups}
    numbers["logit_scale"] = training.model.backbone.logit_scale.exp().item()
    training.run.append_log({"step": step, **numbers})
    training.tracker.log(step, numbers)


def _finish_epoch(training: Training, position: Position) -> None:
    position.epoch += 1
    model, run = training.model, training.run
    model.eval()
    validation = training.validate()
    record = {"epoch": float(position.epoch), **validation}
    position.history = [*(position.history or []), record]
    about = {"step": position.step, "epoch": position.epoch, "trained_on": training.trained_on}
    if position.best is None or validation["score"] > position.best["score"]:
        position.best = record
        save_weights(run.weights("best"), model, slim=False, about=about)
        save_weights(run.weights("slim"), model, slim=True, about=about)
    if position.epoch == training.recipe.optim.epochs:
        save_weights(run.weights("last"), model, slim=False, about=about)
    run.append_log({"step": position.step, "validation": validation, "epoch": position.epoch})
    training.tracker.log(position.step, {f"val/{name}": value for name, value in validation.items()})
    if training.watcher:
        training.watcher.epoch(position.epoch, validation)


def _how_to_resume(run: Run) -> str:
    return f"everything is saved; go on with: calmctl train --resume {run.folder}"


@contextmanager
def _interruptions() -> Iterator[list[int]]:
    """Collects SIGINT and SIGTERM instead of dying of them; the loop looks after each step.

    A second signal falls through to the former handler, for those in a hurry.
    """
    received: list[int] = []
    former: dict[int, Any] = {}

    def note(number: int, frame: FrameType | None) -> None:
        received.append(number)
        signal.signal(number, former[number])

    try:
        for ours in (signal.SIGINT, signal.SIGTERM):
            former[ours] = signal.signal(ours, note)
    except ValueError:  # not the main thread: signals are not ours to handle
        former.clear()
    try:
        yield received
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
