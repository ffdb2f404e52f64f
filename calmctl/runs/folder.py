"""Run folders: what a run leaves behind, and finding one again.

runs/<name>-<number>/
    recipe.json         the resolved recipe
    vocabulary.yaml     the anchors it used, after any subset
    run.json            provenance: versions, revision, data counts, validation ids, clips left out
    log.jsonl           one line a logged step or epoch, with the time in seconds since 1970
    tensorboard/        the same numbers as events, with train --tensorboard
    state.safetensors   everything needed to go on (train --resume)
    last.safetensors    weights after the last epoch
    best.safetensors    weights of the epoch that was best on validation
    slim.safetensors    the best weights without anchors and VAE: all that inference needs
    results.json        validation and test numbers
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from calmctl.errors import CheckpointError, RunFailed, RunNotFound
from calmctl.files import append_text, read_json, remove_unfinished, write_json, write_text
from calmctl.recipe import Recipe, recipe_from_dict


class Run:
    """One run folder; its attributes are the paths in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.recipe_file = folder / "recipe.json"
        self.vocabulary = folder / "vocabulary.yaml"
        self.about = folder / "run.json"
        self.log = folder / "log.jsonl"
        self.state = folder / "state.safetensors"
        self.results = folder / "results.json"
        self.tensorboard = folder / "tensorboard"

    def weights(self, which: str) -> Path:
        """The weights file `which` of "best", "last", "slim"."""
        return self.folder / f"{which}.safetensors"

    def recipe(self) -> Recipe:
        """The resolved recipe; raises `RunNotFound` or `RecipeError`."""
        values = read_json(self.recipe_file, what=f"run {self.folder}", error=RunNotFound)
        return recipe_from_dict(values, where=str(self.recipe_file))

    @property
    def task(self) -> str:
        """What was trained, "retrieval" or "caption", read without checking the rest of the recipe."""
        values = read_json(self.recipe_file, what=f"run {self.folder}", error=RunNotFound)
        return str(values.get("task", "retrieval")) if isinstance(values, dict) else ""

    def recipe_to_resume(self) -> Recipe:
        """The recipe of an unfinished run. Raises `RunFailed` where the run is finished already."""
        if self.results.exists():
            raise RunFailed(f"{self.folder} is finished; evaluate it with: calmctl eval {self.folder}")
        return self.recipe()

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the run for this process, and clear away what a killed one was writing.

        Raises `RunFailed` where another process has the run, or where it cannot be written.
        """
        try:
            handle = (self.folder / ".lock").open("w")
        except OSError as fault:
            raise RunFailed(f"cannot write {self.folder}: {fault.strerror}; a run goes on in its own folder") from fault
        with handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise RunFailed(f"{self.folder} is in use by another process; wait for it or start a new run") from None
            remove_unfinished(self.folder)
            yield

    def append_log(self, record: dict[str, Any]) -> dict[str, Any]:
        """Add one line to the log and return it with its time. Raises `RunFailed` when it cannot."""
        line = {**record, "time": round(time.time(), 3)}
        append_text(self.log, json.dumps(line, allow_nan=True) + "\n")
        return line

    def read_log(self, step: int, epoch: int) -> list[dict[str, Any]]:
        """The lines up to `step`, of which those with validation numbers up to `epoch`.

        What follows a checkpoint's step is written again by the run that goes on from it; so is the validation
        of an epoch that the checkpoint does not count yet. A kill can cut the last line short: it is not read.

        Raises `CheckpointError` where another line is damaged.
        """
        lines = self.log.read_bytes().splitlines(keepends=True) if self.log.exists() else []
        try:
            records = [json.loads(line) for line in lines if line.endswith(b"\n")]
            return [each for each in records if each["step"] <= step and each.get("epoch", 0) <= epoch]
        except (ValueError, KeyError, TypeError, AttributeError):
            raise CheckpointError(f"{self.log} is damaged: not every line is a logged step; remove it") from None

    def trim_log(self, step: int, epoch: int) -> None:
        """Keep the lines of `read_log`."""
        kept = self.read_log(step, epoch)
        write_text(self.log, "".join(json.dumps(record, allow_nan=True) + "\n" for record in kept))


def create_run(root: Path, recipe: Recipe) -> Run:
    """Make the next free folder `root/<name>-<number>` and write the recipe into it."""
    number = 1
    while True:
        folder = root / f"{recipe.name}-{number:03d}"
        try:
            folder.mkdir(parents=True)
            break
        except FileExistsError:
            number += 1
        except OSError as fault:
            raise RunFailed(f"cannot create {folder}: {fault.strerror}; choose another folder with --runs") from fault
    run = Run(folder)
    write_json(run.recipe_file, recipe.model_dump(mode="json"))
    return run


def find_run(name: str | None, root: Path, *, task: str | None = None) -> Run:
    """The run meant by a path or by a folder's name under `root`; the newest trained one for None.

    Args:
        name: Path, folder's name, or None.
        root: Folder of runs.
        task: Where no run is named, "retrieval" or "caption" looks among the runs of that task only.

    Raises `RunNotFound` saying how to make one.
    """
    recipe = "recipes/demo-caption.yaml" if task == "caption" else "recipes/demo.yaml"
    if name is not None:
        for folder in (Path(name), root / name):
            if (folder / "recipe.json").is_file():
                return Run(folder)
        raise RunNotFound(f"no run at {name} or {root / name}; 'calmctl train {recipe}' makes one")
    trained = [Run(path.parent) for path in root.glob("*/recipe.json") if _is_trained(path.parent)]
    if task is not None:
        trained = [run for run in trained if run.task == task]
    if not trained:
        kind = {"caption": "captioning ", "retrieval": "retrieval "}.get(task or "", "")
        raise RunNotFound(
            f"no trained {kind}run in {root}{os.sep}; make one with 'calmctl train {recipe}' or 'calmctl demo', "
            "or name one with --run"
        )
    return max(trained, key=_trained_at)


def _trained_at(run: Run) -> tuple[float, str]:
    """When a run last logged something, as the log says: a file's date changes when it is copied or put back."""
    times = [0.0]
    for line in run.log.read_bytes().splitlines() if run.log.is_file() else ():
        try:
            times.append(float(json.loads(line)["time"]))
        except (ValueError, KeyError, TypeError):  # a line that a kill cut short
            continue
    return max(times), run.folder.name


def _is_trained(folder: Path) -> bool:
    return (folder / "best.safetensors").is_file()
