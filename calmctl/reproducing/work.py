"""The runs that a table takes: which are finished, which go on, which are new; and doing them."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from calmctl.files import read_json, write_json
from calmctl.recipe import Recipe
from calmctl.reproducing.ledger import Ledger, recipe_digest
from calmctl.reproducing.tables import Row, Table
from calmctl.reproducing.world import World
from calmctl.runs.folder import Run
from calmctl.training.job import Watcher
from calmctl.training.prepared import Progress
from calmctl.training.train import train

State = Literal["finished", "interrupted", "new"]
_TIMING = "timing.json"


@dataclass(frozen=True, slots=True)
class Job:
    """One run of a table.

    Attributes:
        row: What it is a run of.
        seed: The number of the seed, from 0.
        recipe: What is trained.
        state: Whether it is there already.
        run: Its folder, where there is one.
    """

    row: Row
    seed: int
    recipe: Recipe
    state: State
    run: Run | None


def jobs_of(tables: Sequence[Table], world: World, seeds: int, runs: Path, overrides: tuple[str, ...]) -> list[Job]:
    """Every run that the tables take, once, though several rows may share it.

    Seeds are the outer loop: an interrupted reproduction has all rows with fewer seeds.
    """
    ledger = Ledger(runs)
    jobs: dict[str, Job] = {}
    for seed in range(seeds):
        for row in (row for table in tables for row in table.rows):
            recipe = world.recipe(row, seed, overrides)
            digest = recipe_digest(recipe)
            if digest in jobs:
                continue
            if (run := ledger.finished(recipe)) is not None:
                jobs[digest] = Job(row, seed, recipe, "finished", run)
            elif (run := ledger.unfinished(recipe)) is not None:
                jobs[digest] = Job(row, seed, recipe, "interrupted", run)
            else:
                jobs[digest] = Job(row, seed, recipe, "new", None)
    return list(jobs.values())


def work_off(
    jobs: Sequence[Job],
    runs: Path,
    *,
    watcher: Watcher | None = None,
    progress: Progress | None = None,
    on_job: Callable[[Job, int, int], None] | None = None,
) -> None:
    """Train what is not finished; the time that an unbroken run takes is written into its folder.

    Raises:
        CalmError: As `train`. What is finished stays, and what was interrupted goes on when this is called again.
    """
    todo = [job for job in jobs if job.state != "finished"]
    for number, job in enumerate(todo, start=1):
        if on_job is not None:
            on_job(job, number, len(todo))
        started = time.perf_counter()
        trained = train(job.recipe, runs, resume=job.run, watcher=watcher, progress=progress)
        trained.run.drop_state()
        if job.state == "new":
            duration_s = time.perf_counter() - started
            write_json(trained.run.folder / _TIMING, {"duration_s": duration_s})


def duration_s(run: Run) -> float | None:
    """How long an unbroken run took, its data and its test included; None where nobody noted it."""
    path = run.folder / _TIMING
    return float(read_json(path, what="timing of a run")["duration_s"]) if path.is_file() else None
