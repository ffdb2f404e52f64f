"""Where the numbers of a run go besides its own log (TensorBoard, W&B, MLflow, trackio), and signs of a collapse."""

from __future__ import annotations

import io
import math
import os
import shutil
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from calmctl.errors import BadInput, RunFailed
from calmctl.files import make_folder, read_json, remove, write_json
from calmctl.recipe import Recipe
from calmctl.runs.catalogue import flat_recipe
from calmctl.runs.run import Run
from calmctl.runtime import require_packages

# Trackers: programs that show the numbers of runs as curves. The run's log.jsonl is the truth about what was logged; a
# killed run leaves a tracker with steps that will be done again. So a run that goes on tracks its kept lines anew, from
# its log: every step is there once.


Record = Mapping[str, Any]
"""A line of the run's log: "step", "time" and named numbers, or those of a validation under "validation"."""

PROJECT = "calmctl"
"""What the runs are filed under, unless WANDB_PROJECT, MLFLOW_EXPERIMENT_NAME or TRACKIO_PROJECT says otherwise."""

NEEDS: dict[str, tuple[str, ...]] = {
    "tensorboard": ("tensorboard",),
    "wandb": ("wandb",),
    "mlflow": ("mlflow", "sqlalchemy", "alembic"),  # the last two are its SQLite store
    "trackio": ("trackio",),
}
"""The trackers by name, each with the packages that it needs."""


class Tracker(Protocol):
    """Receives the lines of a run's log. Its methods raise `RunFailed` where they cannot pass them on."""

    def restart(self, records: Iterable[Record]) -> None:
        """Hold these lines and no others: those that a run which goes on keeps; none for a new one."""
        ...

    def log(self, record: Record) -> None:
        """Take one more line."""
        ...

    def close(self, *, finished: bool) -> None:
        """Take no more lines; `finished` says whether the training came to its end."""
        ...


def require_trackers(names: Collection[str]) -> None:
    """Refuse a name that is none, or a tracker whose packages are not installed, before any work. Raises `BadInput`."""
    for name in names:
        if name not in NEEDS:
            raise BadInput(f"--track {name}: there is no such tracker; there are {', '.join(NEEDS)}")
        require_packages(NEEDS[name], extra="tracking", what=f"--track {name}")


def trackers_of(run: Run) -> list[str]:
    """The trackers that a run was begun with: resuming takes no options."""
    return [name for name in NEEDS if run.tracked(name).is_dir()]


def open_trackers(names: Collection[str], run: Run, recipe: Recipe) -> Tracker:
    """The trackers of these names (`NEEDS`), as one."""
    kinds: dict[str, Callable[[Run, Recipe], Tracker]] = {
        "tensorboard": lambda run, _: TensorBoardTracker(run.tracked("tensorboard")),
        "wandb": WandbTracker,
        "mlflow": MlflowTracker,
        "trackio": TrackioTracker,
    }
    return Trackers([kinds[name](run, recipe) for name in NEEDS if name in names])


class Trackers:
    """Several trackers as one; without any, the run's own log.jsonl has everything."""

    def __init__(self, trackers: Sequence[Tracker] = ()) -> None:
        self._trackers = trackers

    def restart(self, records: Iterable[Record]) -> None:
        """As each of them does."""
        kept = list(records) if self._trackers else []
        for tracker in self._trackers:
            tracker.restart(kept)

    def log(self, record: Record) -> None:
        """As each of them does."""
        for tracker in self._trackers:
            tracker.log(record)

    def close(self, *, finished: bool) -> None:
        """As each of them does."""
        for tracker in self._trackers:
            tracker.close(finished=finished)


def _named(record: Record) -> dict[str, float]:
    """The numbers of a line by name; those of a validation are under val/."""
    named = {name: value for name, value in record.items() if name not in ("step", "time", "epoch", "validation")}
    return named | {f"val/{name}": value for name, value in record.get("validation", {}).items()}


@contextmanager
def _writing(folder: Path, *faults: type[Exception]) -> Iterator[None]:
    """What a disk, or the tracker's own program (`faults`), refuses in the block becomes `RunFailed`."""
    refusals: tuple[type[Exception], ...] = (OSError, *faults)
    try:
        yield
    except refusals as fault:
        why = (isinstance(fault, OSError) and fault.strerror) or fault
        raise RunFailed(
            f"cannot write {folder}: {why}; free space, or go on without it after removing that folder"
        ) from fault


class TensorBoardTracker:
    """Writes scalars for TensorBoard into `folder`, with their former times where a run goes on."""

    def __init__(self, folder: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        _leave_faults_to_the_caller()
        make_folder(folder)
        self._folder = folder
        self._open = SummaryWriter
        self._writer: SummaryWriter | None = None

    def restart(self, records: Iterable[Record]) -> None:
        """Write the events of `records` in place of those that are there."""
        self._writer = None
        for former in self._folder.glob("events.out.tfevents.*"):
            remove(former)
        self._write(records)

    def log(self, record: Record) -> None:
        """Write one scalar a number."""
        self._write([record])

    def close(self, *, finished: bool) -> None:
        """Close the file; every line is in it already."""
        if self._writer is not None:
            self._writer.close()

    def _write(self, records: Iterable[Record]) -> None:
        with _writing(self._folder):
            for record in records:
                self._writer = self._writer or self._open(str(self._folder))
                for name, value in _named(record).items():
                    self._writer.add_scalar(name, value, record["step"], walltime=record["time"])
            if self._writer is not None:
                self._writer.flush()


class WandbTracker:
    """Writes a Weights & Biases run into the run's folder, to be sent by `wandb sync`; WANDB_MODE=online sends at once.

    A run that goes on writes it anew; what was sent before stays there as a run of its own.
    """

    def __init__(self, run: Run, recipe: Recipe) -> None:
        # Its reports of its own crashes would leave the machine even in offline mode.
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        import wandb

        make_folder(run.tracked("wandb"))
        self._wandb, self._place, self._recipe = wandb, run, recipe
        self._run: Any = None

    def restart(self, records: Iterable[Record]) -> None:
        """Begin anew, with `records`."""
        folder = self._place.tracked("wandb")
        for former in folder.iterdir():
            former.unlink() if former.is_symlink() or former.is_file() else shutil.rmtree(former)
        with _writing(folder, self._wandb.Error):
            self._run = self._wandb.init(
                project=os.environ.get("WANDB_PROJECT", PROJECT),
                name=self._place.name,
                dir=str(self._place.folder),  # it makes the folder wandb there
                mode=os.environ.get("WANDB_MODE", "offline"),
                config=self._recipe.model_dump(mode="json"),
                reinit="create_new",
                settings=self._wandb.Settings(silent=True, console="off"),
            )
        for record in records:
            self.log(record)

    def log(self, record: Record) -> None:
        """Write a row of history; a validation stands in the row of its step."""
        with _writing(self._place.tracked("wandb"), self._wandb.Error):
            self._run.log(_named(record), step=record["step"])

    def close(self, *, finished: bool) -> None:
        """Wait until all is written (or sent), and say how the run ended."""
        if self._run is not None:
            self._run.finish(exit_code=0 if finished else 1)


class MlflowTracker:
    """Writes an MLflow run into `mlflow.db` beside the runs, or to the store that MLFLOW_TRACKING_URI names.

    The run's folder `mlflow` says where; a run that goes on deletes it (MLflow can restore it) and writes it anew.
    """

    def __init__(self, run: Run, recipe: Recipe) -> None:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # it would report what is called to its makers
        from mlflow.entities import Metric, Param
        from mlflow.exceptions import MlflowException
        from mlflow.tracking import MlflowClient

        self._folder = run.tracked("mlflow")
        make_folder(self._folder)
        self._run, self._recipe = run, recipe
        self._metric, self._param, self._fault, self._open = Metric, Param, MlflowException, MlflowClient
        self._client: Any = None
        self._id = ""

    def restart(self, records: Iterable[Record]) -> None:
        """Begin anew, with `records` at their former times."""
        place = self._folder / "run.json"
        runs = self._run.folder.parent.absolute()
        with _writing(self._folder, self._fault):
            if place.exists():
                former = read_json(place, what=f"run {self._run.folder}")
                self._open(tracking_uri=former["store"]).delete_run(former["run_id"])
            store = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{runs / 'mlflow.db'}"
            name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
            self._client = self._open(tracking_uri=store)
            there = self._client.get_experiment_by_name(name)
            experiment = there.experiment_id if there else self._client.create_experiment(name)
            self._id = self._client.create_run(experiment, run_name=self._run.name).info.run_id
            write_json(place, {"store": store, "run_id": self._id})
            keys = [self._param(key, str(value)) for key, value in flat_recipe(self._recipe).items()]
            for first in range(0, len(keys), 100):  # as many as a call may have
                self._client.log_batch(self._id, params=keys[first : first + 100])
        for record in records:
            self.log(record)

    def log(self, record: Record) -> None:
        """Write the numbers of a line at its step and time."""
        when = round(record["time"] * 1000)
        metrics = [self._metric(name, float(value), when, record["step"]) for name, value in _named(record).items()]
        with _writing(self._folder, self._fault):
            self._client.log_batch(self._id, metrics=metrics)

    def close(self, *, finished: bool) -> None:
        """Say how the run ended."""
        if self._id:
            with _writing(self._folder, self._fault):
                self._client.set_terminated(self._id, status="FINISHED" if finished else "FAILED")


class TrackioTracker:
    """Writes a trackio run into `trackio/` beside the runs, or where TRACKIO_DIR, _SPACE_ID or _SERVER_URL says.

    The run's folder `trackio` has its id; a run that goes on deletes a local one and writes another.
    """

    def __init__(self, run: Run, recipe: Recipe) -> None:
        os.environ.setdefault("TRACKIO_DIR", str(run.folder.parent.absolute() / "trackio"))  # read once, by its import
        import trackio

        make_folder(run.tracked("trackio"))
        self._trackio, self._place, self._recipe = trackio, run, recipe
        self._run: Any = None

    def restart(self, records: Iterable[Record]) -> None:
        """Begin anew, with `records`."""
        place = self._place.tracked("trackio") / "run.json"
        # It speaks on the standard output, which is the command's own (--json).
        with redirect_stdout(io.StringIO()):
            if place.exists():
                former = read_json(place, what=f"run {self._place.folder}")
                for run in self._trackio.Api().runs(former["project"]):
                    if run.id == former["run_id"]:
                        run.delete()
            project = os.environ.get("TRACKIO_PROJECT", PROJECT)
            self._run = self._trackio.init(
                project=project,
                name=self._place.name,
                config=self._recipe.model_dump(mode="json"),
                embed=False,
                auto_log_gpu=False,
                auto_log_cpu=False,
            )
        write_json(place, {"project": project, "run_id": self._run.id})
        for record in records:
            self.log(record)

    def log(self, record: Record) -> None:
        """Write the numbers of a line at its step."""
        self._run.log(_named(record), step=record["step"])

    def close(self, *, finished: bool) -> None:
        """Wait until all is written (or sent)."""
        if self._run is not None:
            with redirect_stdout(io.StringIO()):
                self._run.finish()


def _leave_faults_to_the_caller() -> None:
    """Let Python print nothing of TensorBoard's thread: what ends it is raised again where the next scalar is added."""
    former = threading.excepthook

    def tell(fault: threading.ExceptHookArgs) -> None:
        if not type(fault.thread).__module__.startswith("tensorboard."):
            former(fault)

    threading.excepthook = tell


# Signs that the alignment is dead or says nothing, told in words (docs/science.md, Is it alive?).


PATIENCE = 20
"""Logged lines in a row that must show a sign before it is told: a single batch, or a start, is no collapse."""
NEARLY_ONE_ANCHOR = 0.05
"""Mean entropy in nats below which a distribution is all but one anchor: a peak of 0.99 and more."""
NEARLY_UNIFORM = 0.99
"""Share of the largest entropy, log K, above which a distribution is all but uniform.

All three are our choice.
"""
ONE_HOT_START, UNIFORM_START = 0.5, 0.95
"""At the first step, mean entropies in nats under the one, and in shares of log K above the other, are told at once.

Our choice. OpenAI's CLIP has 1 to 3.4 nats on real clips with tau 100 (docs/science.md, reading 1).
"""


@dataclass(frozen=True, slots=True)
class _Sign:
    shows: Callable[[Mapping[str, Any]], bool]
    words: str


class CollapseWatch:
    """Looks at the numbers that a training logs, and tells each sign of a collapse once."""

    def __init__(self, recipe: Recipe, anchors: int) -> None:
        """Watch a training of `recipe` over K = `anchors` anchors."""
        aligned = recipe.alignment.kind != "none"
        self._signs = _signs(recipe, anchors) if aligned else []
        self._rows = [0] * len(self._signs)
        self._largest = math.log(anchors) if aligned else None  # None: nothing to look at, or the start is over
        self._fitted = recipe.anchors.temperature == "auto"

    def update(self, numbers: Mapping[str, Any]) -> list[str]:
        """Take the numbers of one more logged step; returns the warnings that are due."""
        due = [] if self._largest is None else _at_start(numbers, self._largest, fitted=self._fitted)
        self._largest = None
        for index, sign in enumerate(self._signs):
            if self._rows[index] < PATIENCE:  # afterwards it has been told
                self._rows[index] = self._rows[index] + 1 if sign.shows(numbers) else 0
                if self._rows[index] == PATIENCE:
                    due.append(sign.words)
        return due

    def catch_up(self, records: Iterable[Mapping[str, Any]]) -> None:
        """Take the log that a run which goes on already has: what was told there is not told again."""
        for record in records:
            # Warnings and validations are lines of the log, too.
            if "loss" in record:
                self.update(record)


def _at_start(numbers: Mapping[str, Any], largest: float, *, fitted: bool) -> list[str]:
    """What is wrong with the distributions before anything was learned, `largest` being log K: mostly the tau.

    `fitted` says whether tau was fitted to S_p already.
    """
    due = []
    for name, key in (("S_p, the sentences'", "entropy_s"), ("V_p, the videos'", "entropy_v")):
        value = numbers[key]
        state = "one-hot" if value < ONE_HOT_START else "uniform" if value > UNIFORM_START * largest else ""
        if state:
            way_out = "anchors.temperature=auto finds a tau that fits this backbone"
            if fitted:
                way_out = "tau was fitted to sentences; anchors.video_temperature is one for videos alone"
            due.append(
                f"{name} distribution over anchors, is nearly {state} at the start: a mean entropy of {value:.2f} of "
                f"{largest:.2f} nats, so it says little of how anchors compare; {way_out}"
            )
    return due


def _signs(recipe: Recipe, anchors: int) -> list[_Sign]:
    largest = math.log(anchors)
    signs = []
    # Both are watched: video-text cosines spread less than text-text ones, so V_p may be flat where S_p is not.
    for letter, name, key in (
        ("s", "S_p, the sentences' distribution over anchors,", "anchors.temperature"),
        ("v", "V_p, the videos' distribution over anchors,", "anchors.video_temperature"),
    ):
        entropy = f"entropy_{letter}"
        signs += [
            _Sign(
                lambda numbers, entropy=entropy: numbers[entropy] < NEARLY_ONE_ANCHOR,  # type: ignore[misc]
                f"{name} has all but collapsed onto one anchor: its mean entropy has stayed under "
                f"{NEARLY_ONE_ANCHOR:g} nats of {largest:.2f}, so the other anchors teach nothing; "
                f"try a lower {key}, or a vocabulary with finer anchors",
            ),
            _Sign(
                lambda numbers, entropy=entropy: numbers[entropy] > NEARLY_UNIFORM * largest,  # type: ignore[misc]
                f"{name} is all but uniform: its mean entropy has stayed above {NEARLY_UNIFORM:.0%} of log K, so no "
                f"anchor says anything; try a higher {key}, or a vocabulary that fits the data",
            ),
        ]
    if recipe.alignment.kind == "vae":
        latent = recipe.alignment.latent
        signs.append(
            _Sign(
                lambda numbers: numbers["active_units"] == 0,
                f"none of the VAE's {latent} latent units depends on its input (posterior collapse: the variance of "
                "every mean over the batch is under 0.01), so CALM's loss sees no video; try a lower "
                "alignment.kl_weight, alignment.latent_reduction=mean, or alignment.input=scaled",
            )
        )
    return signs
