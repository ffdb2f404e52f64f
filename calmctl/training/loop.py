"""The training loop: steps, validation at the end of an epoch, checkpoints, and a way back after an interruption."""

from __future__ import annotations

import math
import signal
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any

import torch
from torch import Tensor

from calmctl.errors import CheckpointError, RunFailed
from calmctl.model.calm import AlignedModel, Batch, Losses
from calmctl.parallel import SINGLE, World
from calmctl.recipe import Recipe
from calmctl.runs.checkpoint import Position, load_state, random_state, save_state, save_weights
from calmctl.runs.identity import RunIdentity, state_digest
from calmctl.runs.run import IDENTITY, Run, export_metadata
from calmctl.runtime import ending_signals
from calmctl.source.base import Batches
from calmctl.training.optim import build_optimizer, clamp_logit_scale, gradient_norms, set_schedules
from calmctl.training.trackers import CollapseWatch, Tracker
from calmctl.words import SILENT, Watcher

_NAMED_CLIPS = 8

# One step of the optimiser, and the line that the log has of it.


class _Numbers:
    """Scalars on their way from the device: `read` waits for them, and for nothing that was queued behind them.

    `item` would wait for all that the device has to do, and leave it idle until the host has queued something again.
    """

    def __init__(self, values: Mapping[str, Tensor]) -> None:
        """Send `values` on their way."""
        self._names = list(values)
        stacked = torch.stack([value.detach().float() for value in values.values()])
        self._on_host = stacked.to("cpu", non_blocking=stacked.is_cuda)
        self._arrived = torch.cuda.Event() if stacked.is_cuda else None  # type: ignore[no-untyped-call]
        if self._arrived is not None:
            self._arrived.record()

    def read(self) -> dict[str, float]:
        """The scalars by name."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return dict(zip(self._names, self._on_host.tolist(), strict=True))


@dataclass(frozen=True, slots=True)
class _Taken:
    """A step that was taken and not yet looked at.

    Attributes:
        step: Its number, counted from 1.
        clips: The clips of this process's rows.
        checked: Its loss and the norm of its gradient.
        parts: The loss's summands and relatives, on the device.
        logged: What its line in the log says; None: it has none.
    """

    step: int
    clips: Tensor
    checked: _Numbers
    parts: dict[str, Tensor]
    logged: _Numbers | None
    rates: dict[str, float]


class Stepper:
    """Takes the steps of a training, and looks at each when a GPU has the next one to do: it never waits for its host.

    Attributes:
        watch: Looks at every logged line for signs of a collapse.
    """

    def __init__(
        self,
        training: Training,
        optimizer: torch.optim.Optimizer,
        forward: Callable[[Batch], Losses],
        total_steps: int,
        watch: CollapseWatch,
    ) -> None:
        """Step `training.model` by the losses of `forward`, of `total_steps` in all."""
        self._training, self._optimizer, self._forward = training, optimizer, forward
        self._total_steps = total_steps
        self._taken: _Taken | None = None
        self.watch = watch

    def __call__(self, batch: Batch, step: int) -> None:
        """Take step `step`, counted from 0, then `settle` the one before it."""
        training, optimizer = self._training, self._optimizer
        recipe, model = training.recipe, training.model
        set_schedules(model, optimizer, recipe, step, self._total_steps)
        batch = batch.to(training.device)
        with torch.autocast(training.device.type, dtype=torch.bfloat16, enabled=recipe.optim.precision == "bf16"):
            losses = self._forward(batch)
        optimizer.zero_grad(set_to_none=True)
        losses.total.backward()  # type: ignore[no-untyped-call]
        logs = step % recipe.optim.log_every == 0 and training.world.rank == 0
        # Before clipping, which hides how large they were.
        norms = gradient_norms(model) if logs else {}
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        norm = torch.nn.utils.clip_grad_norm_(parameters, recipe.optim.clip_norm)
        optimizer.step()
        clamp_logit_scale(model)
        former, parts = self._taken, {name: part.detach() for name, part in losses.parts.items()}
        scale = model.backbone.logit_scale.exp()
        self._taken = _Taken(
            step + 1,
            training.world.own(batch.clips),
            _Numbers({"loss": losses.total, "gradient": norm}),
            parts,
            _Numbers(parts | losses.diagnostics | norms | {"logit_scale": scale}) if logs else None,
            {f"lr_{group['name']}": group["lr"] for group in optimizer.param_groups},
        )
        self._look_at(former)
        if training.device.type != "cuda":  # which has nothing left to do by now
            self.settle()

    def settle(self) -> None:
        """Look at the last step: before a checkpoint, which must not hold weights that it made worthless.

        Raises:
            RunFailed: The loss or the gradient of a step is not finite. A number that is not would stay in Adam's
                moments for good: the model in memory is of no use any more.
        """
        former, self._taken = self._taken, None
        self._look_at(former)

    def _look_at(self, taken: _Taken | None) -> None:
        if taken is None:
            return
        numbers = taken.checked.read()
        for what, value in numbers.items():
            if not math.isfinite(value):
                raise self._not_finite(what, taken)
        if taken.logged is not None:
            self._log(taken.step, taken.logged.read() | taken.rates)
        self._training.watcher.step(taken.step, self._total_steps, numbers["loss"])

    def _not_finite(self, what: str, taken: _Taken) -> RunFailed | SystemExit:
        training, run = self._training, self._training.run
        # Every process comes here at the same step: the loss is the whole batch's, and so is the gradient.
        numbers = {number for part in training.world.gather_objects(taken.clips.tolist()) for number in part}
        clips = [training.source.ids[number] for number in sorted(numbers)]
        parts = {name: part.item() for name, part in taken.parts.items()}
        if training.world.rank == 0:
            run.append_log({"step": taken.step, "not_finite": what, **parts, "clips": clips})
        named = ", ".join(clips[:_NAMED_CLIPS])
        if len(clips) > _NAMED_CLIPS:
            named += f" and {len(clips) - _NAMED_CLIPS} more, all of them in {run.log.name}"
        kept = f"the last good checkpoint is {run.state}" if run.state.exists() else "there is no checkpoint yet"
        error = RunFailed(
            f"the {what} of step {taken.step} is not finite ({', '.join(f'{k} {v:g}' for k, v in parts.items())}; "
            f"clips {named}); lower optim.lr_* or look at these clips; {kept}"
        )
        return training.world.rank_zero_error(error)

    def _log(self, step: int, numbers: dict[str, float]) -> None:
        training = self._training
        training.tracker.log(training.run.append_log({"step": step, **numbers}))
        for warning in self.watch.update(numbers):
            training.run.append_log({"step": step, "warning": warning})
            training.watcher.warn(warning)


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
    position = _restore(training, optimizer, watch) if resume else Position(history=[])
    if not resume:
        training.tracker.restart(())
    position.processes = world.size
    model.join(world)
    step = Stepper(training, optimizer, world.wrap(model), per_epoch * keys.epochs, watch)
    while position.epoch < keys.epochs:
        model.train()
        skip = position.step - position.epoch * per_epoch
        if not 0 <= skip <= per_epoch:
            error = CheckpointError(
                f"{run.state} stands at step {position.step} after {position.epoch} epochs, which does not fit epochs "
                f"of {per_epoch} steps: the data has changed since; train it anew"
            )
            raise world.rank_zero_error(error)
        with _interruptions() as interrupted:
            for batch in on_device(training.source.epoch(position.epoch, skip), training.device):
                if world.begin(0 if batch is None else len(batch.clips)):
                    step(training.source.blank() if batch is None else batch, position.step)
                position.step += 1
                # Asked after every step: all must stop at the same one, or the others wait for a process that has gone.
                stops = world.any(bool(interrupted))
                if stops or position.step % keys.save_every == 0:
                    step.settle()
                    _save(training, optimizer, position)
                if stops:
                    raise _interrupted(training, position)
            step.settle()
            if position.step % keys.save_every:  # the validation may take long: what ends it must not cost a step
                _save(training, optimizer, position)
        if world.any(bool(interrupted)):
            raise _interrupted(training, position)
        _finish_epoch(training, position)
        _save(training, optimizer, position)
    return position


def on_device(batches: Iterable[Batch | None], device: torch.device) -> Iterator[Batch | None]:
    """The batches, copied to a GPU while it computes the step before.

    The host has queued that step and is free again: it fetches the next batch, into memory that the GPU reads by
    itself, and the copy runs beside the step on a stream of its own.
    """
    if device.type != "cuda":
        yield from batches
        return
    copying = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    computing = torch.cuda.current_stream(device)
    for batch in batches:
        if batch is not None:
            pinned = batch.pinned()
            with torch.cuda.stream(copying):
                batch = pinned.to(device)
            computing.wait_stream(copying)
            batch.used_by(computing)
        yield batch


def _save(training: Training, optimizer: torch.optim.Optimizer, position: Position) -> None:
    world = training.world
    for left_out in world.gather_objects(training.left_out()):
        for split, reasons in left_out.items():
            position.left_out.setdefault(split, {}).update(reasons)
    random = world.gather_objects(random_state())
    if world.rank == 0:
        mark = "" if training.identity is None else state_digest(training.identity)
        save_state(training.run.state, training.model, optimizer, position, random, run=mark)


def _restore(training: Training, optimizer: torch.optim.Optimizer, watch: CollapseWatch) -> Position:
    """Everything as the last checkpoint has it, and no line in the log that comes after it."""
    run, world, position = training.run, training.world, Position(history=[])
    if world.gather_objects(run.state.exists())[0]:  # what the first process, which writes it, sees
        mark = "" if training.identity is None else state_digest(training.identity)
        position = load_state(run.state, training.model, optimizer, rank=world.rank, run=mark)
        if position.processes != world.size:
            world.seed_by_rank(training.recipe.seed, position.step)
            training.watcher.warn(
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
    return training.world.rank_zero_error(error)


def _finish_epoch(training: Training, position: Position) -> None:
    position.epoch += 1
    model, run = training.model, training.run
    if training.world.rank > 0:  # the first process validates for all; they wait for it at the checkpoint
        return
    model.eval()
    validation = training.validate()
    record = {"epoch": float(position.epoch), **validation}
    position.history = [*(position.history or []), record]
    about: dict[str, Any] = {"step": position.step, "epoch": position.epoch, "trained_on": training.trained_on}
    if training.identity is not None:
        about[IDENTITY] = training.identity.for_weights(len(position.left_out.get("train", {})))
    # Weights come before the checkpoint that counts their epoch: a kill in between repeats the validation and loses
    # nothing.
    if position.best is None or validation["score"] > position.best["score"]:
        position.best = record
        save_weights(run.weights("best"), model, slim=False, about=about)
        export = export_metadata(training.recipe, run.anchors())
        save_weights(run.weights("slim"), model, slim=True, about={**about, **export})
    if position.epoch == training.recipe.optim.epochs:
        save_weights(run.weights("last"), model, slim=False, about=about)
    record = run.append_log({"step": position.step, "validation": validation, "epoch": position.epoch})
    training.tracker.log(record)
    training.watcher.epoch(position.epoch, validation)


def how_to_resume(run: Run) -> str:
    """What a person is told whose run was interrupted."""
    return f"everything is saved; go on with: calmctl train --resume {run.folder}"


@contextmanager
def _interruptions() -> Iterator[list[int]]:
    """Collects SIGINT and `ending_signals` instead of dying of them; the loop looks after each step.

    A second signal falls through to the former handler, for those in a hurry.
    """
    received: list[int] = []
    former: dict[int, Any] = {}

    def note(number: int, frame: FrameType | None) -> None:
        received.append(number)
        signal.signal(number, former[number])

    try:
        for ours in (signal.SIGINT, *ending_signals()):
            former[ours] = signal.signal(ours, note)
    except ValueError:  # not the main thread: signals are not ours to handle
        former.clear()
    try:
        yield received
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


@dataclass(frozen=True, slots=True)
class Training:
    """All that the loop needs.

    Attributes:
        trained_on: The datasets that the weights will have seen, told in every weights file.
        identity: What the training is made of, told there too; None for a run from before it was recorded, and for
            processes that write no files.
        validate: Numbers of the validation split with the current weights; "score" decides what is best.
        left_out: The clips that this process has met and could not use, by split, with reasons.
        watcher: Shows how far the training is; a silent one in processes but the first.
        world: The processes that train together. The first one validates, and writes all files.
    """

    recipe: Recipe
    model: AlignedModel
    source: Batches
    validate: Callable[[], dict[str, float]]
    run: Run
    trained_on: tuple[str, ...]
    device: torch.device
    tracker: Tracker
    left_out: Callable[[], dict[str, dict[str, str]]]
    identity: RunIdentity | None = None
    watcher: Watcher = SILENT
    world: World = SINGLE
