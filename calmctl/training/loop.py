"""The training loop: steps, validation at epoch ends, checkpoints, and a way back after an interruption."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import torch

from calmctl.errors import CheckpointError, RunFailed
from calmctl.runs.checkpoint import Position, load_state, random_state, save_state, save_weights
from calmctl.runs.folder import Run, export_metadata
from calmctl.training.collapse import CollapseWatch
from calmctl.training.job import Training
from calmctl.training.optim import build_optimizer
from calmctl.training.step import Stepper
from calmctl.training.world import part_random, told_once


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
    per_epoch, world = training.source.steps_per_epoch, training.world
    watch = CollapseWatch(training.recipe, anchors=len(model.anchors.tokens) if model.anchors else 0)
    position = _take_up(training, optimizer, watch) if resume else Position(history=[])
    position.processes = world.size
    step = Stepper(training, optimizer, world.wrap(model), per_epoch * keys.epochs, watch)
    while position.epoch < keys.epochs:
        model.train()
        skip = position.step - position.epoch * per_epoch
        if not 0 <= skip <= per_epoch:
            error = CheckpointError(
                f"{run.state} stands at step {position.step} after {position.epoch} epochs, which does not fit epochs "
                f"of {per_epoch} steps: the data has changed since; train it anew"
            )
            raise told_once(world, error)
        with _interruptions() as interrupted:
            for batch in training.source.epoch(position.epoch, skip):
                if world.begin(0 if batch is None else len(batch.clips)):
                    step(training.source.blank() if batch is None else batch, position.step)
                position.step += 1
                stops = world.any(bool(interrupted))
                if stops or position.step % keys.save_every == 0:
                    _save(training, optimizer, position)
                if stops:
                    raise _interrupted(training, position)
            if position.step % keys.save_every:  # the validation may take long: what ends it must not cost a step
                _save(training, optimizer, position)
        if world.any(bool(interrupted)):
            raise _interrupted(training, position)
        _finish_epoch(training, position)
        _save(training, optimizer, position)
    return position


def _save(training: Training, optimizer: torch.optim.Optimizer, position: Position) -> None:
    world = training.world
    for left_out in world.everyone(training.left_out()):
        for split, reasons in left_out.items():
            position.left_out.setdefault(split, {}).update(reasons)
    random = world.everyone(random_state())
    if world.rank == 0:
        save_state(training.run.state, training.model, optimizer, position, random)


def _take_up(training: Training, optimizer: torch.optim.Optimizer, watch: CollapseWatch) -> Position:
    """Everything as the last checkpoint has it, and no line in the log that comes after it."""
    run, world, position = training.run, training.world, Position(history=[])
    if world.everyone(run.state.exists())[0]:  # what the first process, which writes it, sees
        position = load_state(run.state, training.model, optimizer, rank=world.rank)
        if position.processes != world.size:
            part_random(world, training.recipe.seed, position.step)
            training.warn(
                f"{run.folder} was trained by {position.processes} processes and goes on with {world.size}: batches "
                "stay the same, dropout and noise do not, so it will not end bit for bit where it would have"
            )
    if world.rank == 0:
        run.trim_log(position.step, position.epoch)
        records = run.read_log(position.step, position.epoch)
        training.tracker.restart(record for record in records if "warning" not in record)
        watch.catch_up(records)
    return position


def _interrupted(training: Training, position: Position) -> RunFailed | SystemExit:
    error = RunFailed(f"interrupted after step {position.step}; {how_to_resume(training.run)}")
    return told_once(training.world, error)


def _finish_epoch(training: Training, position: Position) -> None:
    position.epoch += 1
    model, run = training.model, training.run
    if training.world.rank > 0:  # the first process validates for all; they wait for it at the checkpoint
        return
    model.eval()
    validation = training.validate()
    record = {"epoch": float(position.epoch), **validation}
    position.history = [*(position.history or []), record]
    about = {"step": position.step, "epoch": position.epoch, "trained_on": training.trained_on}
    if position.best is None or validation["score"] > position.best["score"]:
        position.best = record
        save_weights(run.weights("best"), model, slim=False, about=about)
        export = export_metadata(training.recipe, run.anchors())
        save_weights(run.weights("slim"), model, slim=True, about={**about, **export})
    if position.epoch == training.recipe.optim.epochs:
        save_weights(run.weights("last"), model, slim=False, about=about)
    record = run.append_log({"step": position.step, "validation": validation, "epoch": position.epoch})
    training.tracker.log(record)
    if training.watcher:
        training.watcher.epoch(position.epoch, validation)


def how_to_resume(run: Run) -> str:
    """What a person is told whose run was interrupted."""
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
