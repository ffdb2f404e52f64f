"""What a training would do, and what it would cost, found out without doing it."""

from __future__ import annotations

import statistics
import sys
import time
from dataclasses import asdict, dataclass
from typing import Any

import torch

from calmctl.counting import counted
from calmctl.model.batch import Batch
from calmctl.model.caption import CaptionModel
from calmctl.recipe import Recipe
from calmctl.training.batches import PairBatches
from calmctl.training.optim import GROUPS, build_optimizer, group_of
from calmctl.training.prepare import prepare
from calmctl.training.prepared import Prepared

PAIRS_ON_CPU = 8
"""Pairs of a measured step where a CPU trains the towers: a whole batch would take minutes (our choice)."""


@dataclass(frozen=True, slots=True)
class StepCost:
    """What training steps took.

    Attributes:
        seconds: Of one step, the median.
        memory_bytes: The most memory that the process, or on a GPU its tensors, have had; None where no one can tell.
        pairs: Pairs of a step.
    """

    seconds: float
    memory_bytes: int | None
    pairs: int


def pairs_to_measure(recipe: Recipe, device: torch.device) -> int:
    """How many pairs of a batch a measured step takes."""
    pairs = recipe.optim.batch_size
    return pairs if device.type == "cuda" or recipe.frozen else min(pairs, PAIRS_ON_CPU)


def measure_steps(prepared: Prepared, batch: Batch, steps: int) -> StepCost:
    """Take training steps on one batch; the first allocates, and is not counted. The model is of no use afterwards."""
    recipe, model, device = prepared.recipe, prepared.model, prepared.device
    batch, optimizer, on_gpu = batch.to(device), build_optimizer(model, recipe.optim), device.type == "cuda"
    model.train()
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    seconds = []
    for _ in range(steps + 1):
        started = time.perf_counter()
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=recipe.optim.precision == "bf16"):
            losses = model(batch)
        optimizer.zero_grad(set_to_none=True)
        losses.total.backward()
        optimizer.step()
        if on_gpu:
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    used = torch.cuda.max_memory_allocated() if on_gpu else _peak_memory_bytes()
    return StepCost(statistics.median(seconds[1:]), used, len(batch.clips))


def _peak_memory_bytes() -> int | None:
    """The most memory this process has had; None on Windows, where Python has no way to tell."""
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # Linux counts kilobytes


def spoken(seconds: float) -> str:
    """A length of time in words: "40 s", "12 min", "3.5 h"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def plan_training(recipe: Recipe) -> dict[str, Any]:
    """Resolve a recipe, decode one batch, take two steps on it, and say what training would do and take.

    Returns:
        "summary": facts as text, in order; "left_out": missing clips by split; "recipe": all keys; "cost": of one
        measured step, None where no clip could be decoded.
    """
    # A plan decodes one batch only: filling the memory cache would be doing the work.
    lean = recipe.model_copy(update={"data": recipe.data.model_copy(update={"cache": "none"})})
    prepared = prepare(lean)
    source = prepared.batches()
    started = time.perf_counter()
    batch = next(iter(source.epoch(0, 0)), None)
    decoding_s = time.perf_counter() - started
    trainable = dict.fromkeys(GROUPS, 0)
    for name, parameter in prepared.model.named_parameters():
        if parameter.requires_grad:
            trainable[group_of(name)] += parameter.numel()
    counts = prepared.counts()
    keys = recipe.optim
    rates = {"backbone": keys.lr_backbone, "head": keys.lr_head, "alignment": keys.lr_alignment}
    summary = {
        "data": f"{recipe.data.dataset} {prepared.protocol}".strip(),
        **{
            f"  {name}": f"{counted(c['clips'], 'clip')}, {counted(c['captions'], 'caption')}, "
            f"{counted(c['left_out'], 'clip')} left out"
            for name, c in counts.items()
        },
        **{f"  {note.partition(': ')[0]} captions": note.partition(": ")[2] for note in prepared.cut_captions()},
        "backbone": recipe.backbone.model
        + (f", weights {recipe.backbone.weights}" if recipe.backbone.weights else ", from nothing: random weights")
        + (", frozen" if recipe.frozen else "")
        + "".join(f"; {note}" for note in prepared.model.backbone.notes),
        "head": recipe.head.kind if recipe.task == "retrieval" else _captioner(recipe, prepared),
        "alignment": f"{recipe.alignment.kind} over {prepared.vocabulary.reference}, K = {len(prepared.vocabulary)}",
        "trained": ", ".join(f"{name} {count:,} at {rates[name]:g}" for name, count in trainable.items() if count),
        "steps": f"{source.steps_per_epoch} an epoch, {source.steps_per_epoch * keys.epochs} in all, "
        f"batch {keys.batch_size}",
        "one batch": "no clip decoded"
        if batch is None
        else f"frames {tuple(batch.frames.shape)} "
        f"{str(batch.frames.dtype).removeprefix('torch.')}, texts {tuple(batch.texts.shape)}",
        "device": str(prepared.device),
    }
    cost = None
    if batch is not None:
        steps = source.steps_per_epoch * keys.epochs
        cost = measure_steps(prepared, batch.first(pairs_to_measure(recipe, prepared.device)), 1)
        whole_s = cost.seconds * min(len(batch.clips), keys.batch_size) / cost.pairs
        part = "" if cost.pairs == len(batch.clips) else f" of {cost.pairs} of its {len(batch.clips)} pairs"
        summary["time"] = (
            f"about {spoken(whole_s * steps)} for {counted(steps, 'step')}, from one measured step{part}; reading the "
            f"batch took {decoding_s:.1f} s, beside the steps where there are cores for it; validation and test not "
            "included"
        )
        if cost.memory_bytes is not None:
            summary["memory"] = f"{cost.memory_bytes / 2**30:.1f} GiB at most, in that step{part}"
    left_out = {name: {e.id: e.reason for e in entries} for name, entries in prepared.left_out().items()}
    if isinstance(source, PairBatches):
        left_out.setdefault("train", {}).update({e.id: e.reason for e in source.left_out.values()})
    return {
        "summary": summary,
        "left_out": left_out,
        "recipe": recipe.model_dump(mode="json"),
        "cost": cost and asdict(cost),
    }


def _captioner(recipe: Recipe, prepared: Prepared) -> str:
    assert isinstance(prepared.model, CaptionModel)
    keys, tokens = recipe.caption, len(prepared.model.captioner.vocabulary)
    return f"captioner, {keys.encoder_layers} + {keys.decoder_layers} layers of {keys.width}, {tokens:,} tokens"
