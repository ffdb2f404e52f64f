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
    slim.safetensors    the best weights without anchors and VAE, with recipe and anchors' labels inside: all that
                        inference needs, and a run of its own wherever it is copied to
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

from calmctl.anchors.vocabulary import Vocabulary, format_vocabulary, load_vocabulary, parse_vocabulary
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

    def trained_weights(self, which: str) -> Path:
        """The file to read for `weights(which)`: a copy of a run that has no best weights may have the slim ones."""
        path, slim = self.weights(which), self.weights("slim")
        return slim if which == "best" and not path.exists() and slim.exists() else path

    def anchors(self) -> Vocabulary:
        """The anchors it used; raises `VocabularyError`."""
        return load_vocabulary(self.vocabulary)

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


class ExportedRun(Run):
    """A slim.safetensors away from its run's folder, which says itself what it is; `folder` is that file."""

    def __init__(self, file: Path, metadata: dict[str, Any]) -> None:
        super().__init__(file)
        self._metadata = metadata

    def weights(self, which: str) -> Path:
        """The file; raises `CheckpointError` for others than the best weights."""
        if which == "last":
            raise CheckpointError(f"{self.folder} is an export: it has the best weights on validation and no others")
        return self.folder

    def anchors(self) -> Vocabulary:
        """The anchors of its training."""
        return parse_vocabulary(str(self._metadata.get("vocabulary")), source=self.folder)

    def recipe(self) -> Recipe:
        """The recipe without the places of a machine."""
        return recipe_from_dict(self._metadata["recipe"], where=str(self.folder))

    @property
    def task(self) -> str:
        """What was trained."""
        return self.recipe().task

    def recipe_to_resume(self) -> Recipe:
        """Raises `RunFailed`: nothing of the training is left."""
        raise RunFailed(f"{self.folder} is an export and cannot go on; to train from its towers, set backbone.weights")


def export_metadata(recipe: Recipe, vocabulary: Vocabulary) -> dict[str, Any]:
    """What a slim file needs beside its weights to be a run by itself: no path of the machine that trained it."""
    data, backbone = recipe.data, recipe.backbone
    plain = type(data).model_fields["root"].default
    places = {"root": plain, "annotations": None, "videos": None, "features": None}
    weights = None if backbone.weights is None else Path(backbone.weights).name
    names = {"model": Path(backbone.model).name, "weights": weights, "freeze": recipe.frozen}
    portable = recipe.model_copy(
        update={
            "data": data.model_copy(update=places),
            "backbone": backbone.model_copy(update=names),
            "anchors": recipe.anchors.model_copy(update={"vocabulary": Path(recipe.anchors.vocabulary).name}),
        }
    )
    return {"recipe": portable.model_dump(mode="json"), "vocabulary": format_vocabulary(vocabulary)}


def _exported(file: Path) -> Run:
    """The run that a weights file is by itself, or that it lies in."""
    from calmctl.tensorfiles import read_metadata  # torch, which takes seconds: folders do not need it

    metadata = read_metadata(file, what="run")
    if isinstance(metadata.get("recipe"), dict):
        return ExportedRun(file, metadata)
    if (file.parent / "recipe.json").is_file() and file.stem in ("best", "slim"):
        return Run(file.parent)
    raise RunNotFound(
        f"{file} is no run by itself: it holds no recipe; give the run's folder, its slim.safetensors, or, for weights "
        "of others, --backbone and --weights"
    )


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
        name: Path of a run's folder or of a slim.safetensors, folder's name, or None.
        root: Folder of runs.
        task: Where no run is named, "retrieval" or "caption" looks among the runs of that task only.

    Raises `RunNotFound` saying how to make one.
    """
    recipe = "recipes/demo-caption.yaml" if task == "caption" else "recipes/demo.yaml"
    if name is not None:
        for folder in (Path(name), root / name):
            if (folder / "recipe.json").is_file():
                return Run(folder)
            slim = folder if folder.suffix == ".safetensors" else folder / "slim.safetensors"
            if slim.is_file():
                return _exported(slim)
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
    return max(trained, key=lambda run: run.trained_weights("best").stat().st_mtime_ns)


def _is_trained(folder: Path) -> bool:
    return Run(folder).trained_weights("best").is_file()
