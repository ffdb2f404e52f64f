"""Which runs are there already, by what they were made of and not by a name, a place or a date; and the work left."""

from __future__ import annotations

import json
import math
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import torch

from calmctl.anchors.vocabulary import load_vocabulary
from calmctl.data.identity import SplitRecord, changes
from calmctl.device import choose_device
from calmctl.errors import BadInput, CalmError, RunFailed
from calmctl.files import make_folder, read_json, sha256_file, write_json
from calmctl.locks import locked, remove_unfinished
from calmctl.recipe import Recipe
from calmctl.reproduce.at_once import at_once
from calmctl.reproduce.datasets import RecipeKey
from calmctl.reproduce.rows import Row, Table
from calmctl.runs.identity import RunIdentity, is_weights_file, recipe_digest, run_identity, started_from
from calmctl.runs.run import Run
from calmctl.source.source import recipe_source
from calmctl.training.prepare import prepare, recipe_vocabulary
from calmctl.training.train import measure_steps, pairs_to_measure, train
from calmctl.words import SILENT, Watcher


class Ledger:
    """The runs under a folder, by the digest of their recipes."""

    def __init__(self, root: Path) -> None:
        """Read the recipes of all runs under `root`; folders that hold none that can be read are no runs."""
        self._runs: dict[str, list[Run]] = {}
        # All of them, whatever they are called: runs are moved and renamed.
        for path in sorted(root.glob("*/recipe.json")):
            run = Run(path.parent)
            try:
                recipe = run.recipe()
            except CalmError:  # of another version, or half a folder: it stays, and a new run is made beside it
                continue
            self._runs.setdefault(digest_of(recipe), []).append(run)
        # Rows share data and weights: each is read and digested once.
        self._splits: dict[str, dict[str, SplitRecord] | None] = {}
        self._files: dict[str, str] = {}

    def finished(self, recipe: Recipe) -> Run | None:
        """A run of `recipe` with results and its best weights, or None."""
        return next((run for run in self._of(recipe) if run.results.is_file()), None)

    def unfinished(self, recipe: Recipe) -> Run | None:
        """A run of `recipe` that was interrupted and can go on, or None."""
        return next((run for run in self._of(recipe, ("train", "val", "test")) if not run.results.exists()), None)

    def _of(self, recipe: Recipe, splits: tuple[str, ...] = ("train", "val")) -> Iterator[Run]:
        """The runs that are of this recipe, wherever they and their data lie now.

        A finished run does not depend on its test split: one that was completed since is measured again.
        """
        for run in self._runs.get(digest_of(recipe), []):
            try:
                identity = run_identity(run)
                # One that says it is finished has the weights that it was finished with.
                complete = run.weights("best").is_file() or not run.results.exists()
                if not (self._has_its_anchors(run, recipe) and complete):
                    continue
            except CalmError:  # half a folder
                continue
            if self._from_before(run, recipe) if identity is None else self._same(identity, recipe, splits):
                yield run

    def _same(self, identity: RunIdentity, recipe: Recipe, names: tuple[str, ...]) -> bool:
        # A weights file is its content; a pretrained tag is its name, which the recipe's own digest has.
        weights, now = started_from(recipe), self._records(recipe)
        if now is None or (is_weights_file(weights) and identity.start_file != self._digest(str(weights))):
            return False
        known = [name for name in names if name in now or name in identity.splits]
        return all(
            name in now and name in identity.splits and not changes(identity.splits[name], now[name]) for name in known
        )

    @staticmethod
    def _from_before(run: Run, recipe: Recipe) -> bool:
        """Whether a run that did not record its data names the same places; what its weights file held is not known."""
        then = run.recipe()
        return not run.about.exists() or (
            not is_weights_file(recipe.backbone.weights)
            and [_place(then.data.root), _place(then.data.features)]
            == [_place(recipe.data.root), _place(recipe.data.features)]
        )

    @staticmethod
    def _has_its_anchors(run: Run, recipe: Recipe) -> bool:
        """Whether the anchors that a run was begun with are those that the recipe names now."""
        # A name or a file may hold other labels than it did when the run began.
        return not run.vocabulary.is_file() or load_vocabulary(run.vocabulary) == recipe_vocabulary(recipe)

    def _records(self, recipe: Recipe) -> dict[str, SplitRecord] | None:
        """What the data of a recipe is now; None where it is missing."""
        key = json.dumps([recipe.task, recipe.data.model_dump(mode="json")])
        if key not in self._splits:
            try:
                source = recipe_source(recipe)
                self._splits[key] = {name: source.record(name) for name in source.splits}
            except CalmError:
                self._splits[key] = None
        return self._splits[key]

    def _digest(self, weights: str) -> str:
        if weights not in self._files:
            self._files[weights] = sha256_file(Path(weights)) if Path(weights).is_file() else ""
        return self._files[weights]


def with_first(recipe: Recipe, first: Recipe | None, ledger: Ledger) -> Recipe | None:
    """`recipe` as the second stage of the run of `first`, or as it is without one; None while that is not finished."""
    if first is None:
        return recipe
    run = ledger.finished(first)
    if run is None:
        return None
    return recipe.model_copy(update={"head": recipe.head.model_copy(update={"from_run": str(run.folder)})})


def digest_of(recipe: Recipe) -> str:
    """`recipe_digest` of a recipe that is not written down yet."""
    return recipe_digest(recipe.model_dump(mode="json"))


def _place(path: str | None) -> Path | None:
    return None if path is None else Path(path).resolve()


# The runs that a table takes: which are finished, which go on, which are new; and doing them.


State = Literal["finished", "interrupted", "new"]
_TIMING = "timing.json"


@dataclass(frozen=True, slots=True)
class Job:
    """One run of a table.

    Attributes:
        row: What it is a run of.
        seed: The number of the seed, from 0.
        state: Whether it is there already.
        run: Its folder, where there is one.
        first: The recipe of its first stage, where that is not finished yet.
    """

    row: Row
    seed: int
    recipe: Recipe
    state: State
    run: Run | None
    first: Recipe | None = None


def jobs_of(tables: Sequence[Table], recipes: Mapping[RecipeKey, Recipe], seeds: int, runs: Path) -> list[Job]:
    """Every run that the tables take, once, though several rows may share it.

    Seeds are the outer loop: an interrupted reproduction has all rows with fewer seeds.
    """
    ledger = Ledger(runs)
    rows = [(table.name, row) for table in tables for row in table.rows]
    jobs: dict[str, Job] = {}
    for seed in range(seeds):
        for name, row in rows:
            recipe = recipes[name, row.key, seed]
            # A recipe's digest leaves places out. In one plan they are what may tell two rows apart: the file of the
            # anchors, the store of the features.
            digest = "\n".join(map(str, (digest_of(recipe), recipe.anchors.vocabulary, recipe.data.features)))
            if digest in jobs:
                continue
            first = recipes[name, row.first, seed] if row.first else None
            staged = with_first(recipe, first, ledger)
            if staged is None:
                jobs[digest] = Job(row, seed, recipe, "new", None, first)
                continue
            recipe = staged
            if (run := ledger.finished(recipe)) is not None:
                jobs[digest] = Job(row, seed, recipe, "finished", run)
            elif (run := ledger.unfinished(recipe)) is not None:
                jobs[digest] = Job(row, seed, recipe, "interrupted", run)
            else:
                jobs[digest] = Job(row, seed, recipe, "new", None)
    return list(jobs.values())


@contextmanager
def reproducing(runs: Path) -> Iterator[None]:
    """Hold a folder of runs for this reproduction or demo alone.

    A training of a recipe may go on beside it: its run is its own. Raises `RunFailed` where another one has it.
    """
    make_folder(runs)
    busy = f"another calmctl reproduce or demo is at work in {runs}; wait for it, or choose another folder with --runs"
    with locked(runs, RunFailed(busy)):
        remove_unfinished(runs)
        yield


def work_off(jobs: Sequence[Job], runs: Path, *, processes: int = 1, watcher: Watcher = SILENT) -> None:
    """Train what is not finished; the time that an unbroken run takes is written into its folder.

    Args:
        jobs: The runs that are wanted.
        runs: Where they are.
        processes: Runs at once; 1 works in this process, and tells every step.
        watcher: Told which runs are done.

    Raises:
        CalmError: As `train`. What is finished stays, and what was interrupted goes on when this is called again.
    """
    todo = [job for job in jobs if job.state != "finished"]
    if processes == 1 or len(todo) < 2:
        for number, job in enumerate(todo, start=1):
            goes_on = " goes on" if job.state == "interrupted" else ""
            watcher.stage(f"run {number} of {len(todo)}: {job.recipe.name}{goes_on}")
            _train(job, runs, watcher)
        return
    watcher.stage(f"{len(todo)} runs, {processes} at once")
    watcher.reading("runs", 0, len(todo))
    done = at_once(
        todo,
        partial(_train, runs=runs),
        processes=processes,
        begin=torch.set_num_threads,
        arguments=(max(1, torch.get_num_threads() // processes),),
        may_begin=lambda job: job.first is None or with_first(job.recipe, job.first, Ledger(runs)) is not None,
    )
    for number, (job, _) in enumerate(done, start=1):
        watcher.stage(f"{job.recipe.name}, seed {job.seed + 1}, is done")
        watcher.reading("runs", number, len(todo))


def _train(job: Job, runs: Path, watcher: Watcher = SILENT) -> None:
    started = time.perf_counter()
    recipe = with_first(job.recipe, job.first, Ledger(runs)) if job.first else job.recipe
    assert recipe is not None  # a first stage stands before its second
    trained = train(recipe, runs, resume=job.run, watcher=watcher)
    # It served to go on. A finished run does not, and a table has many.
    trained.run.drop_state()
    # What went on would note its second part alone, and estimates would come out short.
    if job.state == "new":
        duration_s = time.perf_counter() - started
        write_json(trained.run.folder / _TIMING, {"duration_s": duration_s})


def duration_s(run: Run) -> float | None:
    """How long an unbroken run took, its data and its test included; None where nobody noted it."""
    path = run.folder / _TIMING
    try:
        seconds = float(read_json(path, what="timing of a run")["duration_s"]) if path.is_file() else math.nan
    except (BadInput, KeyError, TypeError, ValueError):  # it only tells how long others may take
        return None
    return seconds if math.isfinite(seconds) else None


# How long the missing runs will take, and how much memory: from finished runs, or from a few measured steps.


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


def estimate(jobs: Sequence[Job], processes: int = 1) -> Cost:
    """The cost of the jobs that are not finished, so many at once.

    A finished run tells of its row, and of all rows with its head. Of other heads a few steps are timed on the
    first batch; reading clips and testing come on top of those. A second stage cannot begin before its first.

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
        # One measurement per head: the losses of alignment change a step by a few per cent.
        if kind in known or kind in measured:
            continue
        if job.first is not None:
            notes.append("without the second stages")
            continue
        measured[kind], used, note = _measure(job.recipe)
        memory = max(memory, used)
        notes.append(note)
    # A finished run is the better measure, because reading and testing are in it.
    per_run = {kind: statistics.mean(values) for kind, values in known.items()} | measured
    total = sum(per_run.get(_kind(job.recipe), 0.0) for job in todo)
    if processes > 1:
        notes.append(f"{processes} at once, each as fast as one alone")
    return Cost(total / processes, memory * processes or None, " and ".join(dict.fromkeys(notes)))


def _kind(recipe: Recipe) -> str:
    """Runs that cost about the same: the alignment loss is a few per cent of a step."""
    head = recipe.head.kind if recipe.task == "retrieval" else recipe.caption.system
    return f"{recipe.backbone.model} {recipe.data.dataset} {head}"


def _measure(recipe: Recipe) -> tuple[float, int, str]:
    """Seconds of all training steps of a run, peak memory in bytes, and what was measured."""
    pairs = pairs_to_measure(recipe, choose_device(recipe.device))
    lean = recipe.model_copy(
        update={
            # One batch is read, and nothing is to be kept of it.
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
