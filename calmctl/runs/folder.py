"""Run folders: what a run leaves behind, and finding one again.

runs/<name>-<number>/
    recipe.json         the resolved recipe
    vocabulary.yaml     the anchors it used, after any subset
    run.json            provenance: versions, revision, data counts, validation ids, clips left out
    log.jsonl           one line a logged step or epoch
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
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from calmctl.errors import RunFailed, RunNotFound
from calmctl.files import read_json, write_json
from calmctl.recipe import Recipe, recipe_from_dict

WEIGHTS = ("best", "last", "slim")


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
            epochs = len(read_json(self.results, what=f"run {self.folder}")["validation"])
            raise RunFailed(
                f"{self.folder} is finished ({epochs} epochs); evaluate it with: calmctl eval {self.folder}"
            )
        return self.recipe()

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the run for this process; raises `RunFailed` where another one has it."""
        with (self.folder / ".lock").open("w") as handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise RunFailed(f"{self.folder} is in use by another process; wait for it or start a new run") from None
            yield

    def append_log(self, record: dict[str, Any]) -> None:
        """Add one line to the log."""
        with self.log.open("a", encoding="utf-8") as handle:
            handle.write(json.dumps(record, allow_nan=True) + "\n")

    def trim_log(self, step: int) -> None:
        """Drop lines beyond `step`, which a resumed run will write again."""
        if self.log.exists():
            kept = [line for line in self.log.read_text().splitlines() if json.loads(line)["step"] <= step]
            self.log.write_text("".join(f"{line}\n" for line in kept))


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
    return max(trained, key=lambda run: run.weights("best").stat().st_mtime_ns)


def _is_trained(folder: Path) -> bool:
    return (folder / "best.safetensors").is_file()
