"""One step of the optimiser, and the line that the log has of it."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from calmctl.errors import RunFailed
from calmctl.model.batch import Batch, Losses
from calmctl.training.collapse import CollapseWatch
from calmctl.training.job import Training
from calmctl.training.optim import (
    alignment_share,
    clamp_logit_scale,
    gradient_norms,
    schedule_factor,
    set_learning_rate,
)
from calmctl.training.world import told_once

_NAMED_CLIPS = 8


class Stepper:
    """Takes the steps of a training.

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
        self.watch = watch

    def __call__(self, batch: Batch, step: int) -> None:
        """Take step `step`, counted from 0.

        Raises:
            RunFailed: The loss or the gradient is not finite; the model has not changed.
        """
        training, optimizer, total_steps = self._training, self._optimizer, self._total_steps
        recipe, model = training.recipe, training.model
        set_learning_rate(optimizer, schedule_factor(step, total_steps, recipe.optim.warmup))
        model.alignment_factor = alignment_share(step, total_steps, recipe.alignment.warmup)
        batch = batch.to(training.device)
        with torch.autocast(training.device.type, dtype=torch.bfloat16, enabled=recipe.optim.precision == "bf16"):
            losses = self._forward(batch)
        value = losses.total.item()
        if not math.isfinite(value):
            raise self._not_finite("loss", batch, losses, step)
        optimizer.zero_grad(set_to_none=True)
        losses.total.backward()  # type: ignore[no-untyped-call]
        logs = step % recipe.optim.log_every == 0 and training.world.rank == 0
        norms = gradient_norms(model) if logs else {}
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        norm = torch.nn.utils.clip_grad_norm_(parameters, recipe.optim.clip_norm)
        if not math.isfinite(norm.item()):
            raise self._not_finite("gradient", batch, losses, step)
        optimizer.step()
        clamp_logit_scale(model)
        if logs:
            self._log(losses, step + 1, norms)
        if training.watcher:
            training.watcher.step(step + 1, total_steps, value)

    def _not_finite(self, what: str, batch: Batch, losses: Losses, step: int) -> RunFailed | SystemExit:
        training, run = self._training, self._training.run
        numbers = sorted(set(training.world.gather(batch.clips).tolist()))
        clips = [training.source.ids[number] for number in numbers]
        parts = {name: part.item() for name, part in losses.parts.items()}
        if training.world.rank == 0:
            run.append_log({"step": step + 1, "not_finite": what, **parts, "clips": clips})
        named = ", ".join(clips[:_NAMED_CLIPS])
        if len(clips) > _NAMED_CLIPS:
            named += f" and {len(clips) - _NAMED_CLIPS} more, all of them in {run.log.name}"
        kept = f"the last good checkpoint is {run.state}" if run.state.exists() else "there is no checkpoint yet"
        error = RunFailed(
            f"the {what} of step {step + 1} is not finite ({', '.join(f'{k} {v:g}' for k, v in parts.items())}; "
            f"clips {named}); lower optim.lr_* or look at these clips; {kept}"
        )
        return told_once(training.world, error)

    def _log(self, losses: Losses, step: int, norms: dict[str, float]) -> None:
        training = self._training
        numbers = {name: value.item() for name, value in (losses.parts | losses.diagnostics).items()}
        numbers |= norms
        numbers |= {f"lr_{group['name']}": group["lr"] for group in self._optimizer.param_groups}
        numbers["logit_scale"] = training.model.backbone.logit_scale.exp().item()
        training.tracker.log(training.run.append_log({"step": step, **numbers}))
        for warning in self.watch.see(numbers):
            training.run.append_log({"step": step, "warning": warning})
            training.warn(warning)
