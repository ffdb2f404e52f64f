"""How long the missing runs will take, and how much memory: from finished runs, or from a few measured steps."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from calmctl.device import choose_device
from calmctl.errors import RunFailed
from calmctl.recipe import Recipe
from calmctl.reproducing.work import Job, duration_s
from calmctl.training.plan import measure_steps, pairs_to_measure
from calmctl.training.prepare import prepare

_STEPS = 3


@dataclass(frozen=True, slots=True)
class Cost:
    """What the missing runs will cost.

    Attributes:
        seconds: In all; None where nothing could be measured.
        memory_bytes: The largest peak seen; None likewise.
        how: What both are taken from, in words.
    """

    seconds: float | None
    memory_bytes: int | None
    how: str


def estimate(jobs: Sequence[Job]) -> Cost:
    """The cost of the jobs that are not finished.

    A finished run tells of its row, and of all rows with its head. Of other heads a few steps are timed on the
    first batch; reading clips and testing come on top of those.

    Raises:
        CalmError: A run could not even begin.
    """
    todo = [job for job in jobs if job.state != "finished"]
    if not todo:
        return Cost(0.0, None, "every run is finished")
    known: dict[str, list[float]] = {}
    for job in jobs:
        seconds = duration_s(job.run) if job.run is not None and job.state == "finished" else None
        if seconds is not None:
            known.setdefault(_kind(job.recipe), []).append(seconds)
    measured: dict[str, float] = {}
    memory = 0
    notes = ["finished runs"] if known else []
    for job in todo:
        kind = _kind(job.recipe)
        if kind in known or kind in measured:
            continue
        measured[kind], used, note = _measure(job.recipe)
        memory = max(memory, used)
        notes.append(note)
    per_run = {kind: statistics.mean(values) for kind, values in known.items()} | measured
    total = sum(per_run[_kind(job.recipe)] for job in todo)
    return Cost(total, memory or None, " and ".join(dict.fromkeys(notes)))


def _kind(recipe: Recipe) -> str:
    """Runs that cost about the same: the alignment loss is a few per cent of a step."""
    head = recipe.head.kind if recipe.task == "retrieval" else "captioner"
    return f"{recipe.backbone.model} {recipe.data.dataset} {head}"


def _measure(recipe: Recipe) -> tuple[float, int, str]:
    """Seconds of all training steps of a run, peak memory in bytes, and what was measured."""
    pairs = pairs_to_measure(recipe, choose_device(recipe.device))
    lean = recipe.model_copy(
        update={
            "data": recipe.data.model_copy(update={"cache": "none"}),
            "optim": recipe.optim.model_copy(update={"batch_size": pairs}),
        }
    )
    prepared = prepare(lean)
    source = prepared.batches()
    batch = next((each for each in source.epoch(0, 0) if each is not None), None)
    if batch is None:
        raise RunFailed("no clip of the first batch could be decoded")
    cost = measure_steps(prepared, batch, _STEPS)
    note = f"{_STEPS} measured steps a head, reading and testing not included"
    if pairs < recipe.optim.batch_size:
        note += f" (time and memory in batches of {pairs}: a CPU would take minutes for {recipe.optim.batch_size})"
    return cost.seconds * source.steps_per_epoch * recipe.optim.epochs, cost.memory_bytes or 0, note
