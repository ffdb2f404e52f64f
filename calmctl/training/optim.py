"""Optimiser groups and the learning rate's schedule (docs/science.md, readings 16 and 17)."""

from __future__ import annotations

import inspect
import math

import torch
from torch import Tensor, nn

from calmctl.model.calm import AlignedModel
from calmctl.recipe.schema import OptimSection, Recipe
from calmctl.runs.checkpoint import TRAINING_ONLY

GROUPS = ("backbone", "head", "alignment")


def group_of(name: str) -> str:
    """The learning-rate group of a parameter of a model, by its name."""
    if name.startswith("backbone."):
        return "backbone"
    return "alignment" if name.startswith(TRAINING_ONLY) else "head"


class AdamW(torch.optim.AdamW):
    """Torch's AdamW, bit for bit, without loading `torch._dynamo`, which takes seconds of every start of a training.

    Torch wraps these methods for a compiler that meets them inside of what it compiles, and the wrappers load it. Here
    the towers alone are compiled (`optim.compile`), so the methods are taken bare.
    """

    add_param_group = inspect.unwrap(torch.optim.Optimizer.add_param_group)
    load_state_dict = inspect.unwrap(torch.optim.Optimizer.load_state_dict)
    state_dict = inspect.unwrap(torch.optim.Optimizer.state_dict)
    zero_grad = inspect.unwrap(torch.optim.Optimizer.zero_grad)
    step = torch.no_grad()(inspect.unwrap(torch.optim.AdamW.step))


def build_optimizer(model: AlignedModel, keys: OptimSection) -> torch.optim.AdamW:
    """AdamW with one group a (learning-rate group, decayed or not); each group carries its `name` and `peak_lr`."""
    rates = {"backbone": keys.lr_backbone, "head": keys.lr_head, "alignment": keys.lr_alignment}
    groups: dict[tuple[str, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            # e_k is a matrix by its shape only.
            decays = keys.decay == "all" or (parameter.dim() > 1 and name != "anchors.position")
            groups.setdefault((group_of(name), decays), []).append(parameter)
    return AdamW(
        [
            {
                "params": parameters,
                "name": group,
                "peak_lr": rates[group],
                # Set before every step (`set_learning_rate`), so that no scheduler has a state to be saved.
                "lr": 0.0,
                "weight_decay": keys.weight_decay if decays else 0.0,
            }
            for (group, decays), parameters in groups.items()
        ],
        betas=keys.betas,
        eps=keys.eps,
        fused=True,
    )


def schedule_factor(step: int, total: int, warmup: float) -> float:
    """Share of the peak rate at `step` of `total`: linear rise over `warmup` of all steps, then half a cosine to 0.

    The rise reaches its first value, not 0, at step 0: a step with rate 0 would be thrown away (our choice).
    """
    # A share of the steps and no number of them, so that one recipe fits data sets of 330 and of 7,035 steps.
    rising = max(1, round(warmup * total))
    if step < rising:
        return (step + 1) / rising
    return 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1, total - rising)))


def alignment_share(step: int, total: int, warmup: float) -> float:
    """Share of `alignment.weight`, or alpha, at `step` of `total`: a linear rise from 0 over `warmup` of all steps."""
    return min(1.0, step / max(1, round(warmup * total))) if warmup else 1.0


def set_learning_rate(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Give every group its share of its peak rate."""
    for group in optimizer.param_groups:
        group["lr"] = group["peak_lr"] * factor


def set_schedules(model: AlignedModel, optimizer: torch.optim.Optimizer, recipe: Recipe, step: int, total: int) -> None:
    """Set what changes from step to step: learning rates, the share of CALM's loss, and that of its KL."""
    set_learning_rate(optimizer, schedule_factor(step, total, recipe.optim.warmup))
    model.alignment_factor = alignment_share(step, total, recipe.alignment.warmup)
    model.kl_factor = alignment_share(step, total, recipe.alignment.kl_warmup)


def gradient_norms(model: AlignedModel) -> dict[str, Tensor]:
    """L2 norm of the gradients per learning-rate group, on their device."""
    squares: dict[str, list[Tensor]] = {group: [model.backbone.logit_scale.new_zeros(())] for group in GROUPS}
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            squares[group_of(name)].append(parameter.grad.float().square().sum())
    return {f"grad_{group}": torch.stack(values).sum().sqrt() for group, values in squares.items()}


@torch.no_grad()
def clamp_logit_scale(model: AlignedModel) -> None:
    """CLIP's logit scale never exceeds ln 100, or where a sigmoid loss left it (docs/science.md, The heads)."""
    model.backbone.logit_scale.clamp_(max=model.backbone.most_scale)
