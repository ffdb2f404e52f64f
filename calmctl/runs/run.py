"""Run folders: what a run leaves behind, and finding one again.

runs/<name>-<number>/
    recipe.json         the resolved recipe
    vocabulary.yaml     the anchors it used, after any subset
    run.json            provenance: versions, revision, data counts, validation ids, clips left out
    log.jsonl           one line a logged step or epoch, with the time in seconds since 1970
    tensorboard/        the same numbers as events, with train --track tensorboard; wandb/, mlflow/, trackio/ likewise
    state.safetensors   everything needed to go on (train --resume); the commands remove it from a finished run
    last.safetensors    weights after the last epoch
    best.safetensors    weights of the epoch that was best on validation
    slim.safetensors    the best weights without anchors and VAE, with recipe and anchors' labels inside: all that
                        inference needs, and a run of its own wherever it is copied to
    results.json        validation and test numbers
    evals/              every evaluation since, each query's rank with it (evaluation/runs.py)

runs/default            a link to one of them: the run that commands take where none is named
"""

from __future__ import annotations

import errno
import json
import os
import re
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import count
from pathlib import Path
from typing import Any

from calmctl.anchors.vocabulary import Vocabulary, format_vocabulary, load_vocabulary, parse_vocabulary
from calmctl.data.locate import drawn
from calmctl.errors import BadInput, CheckpointError, RecipeError, RunFailed, RunInUse, RunNotFound
from calmctl.files import append_text, parse_json, read_json, read_regular, remove, write_json, write_text
from calmctl.locks import held_folder, locked, remove_unfinished, tidy
from calmctl.recipe import Recipe, recipe_from_dict
from calmctl.recipe.schema import PUBLISHED
from calmctl.words import counted

WEIGHTS = {"best": "best on validation", "last": "last epoch", "slim": "best on validation, slim export"}
"""The weights files of a run, and what to call what they evaluate to."""
IDENTITY = "identity"
"""Where run.json and the metadata of weights have what the training was made of (`runs/identity.py`)."""
HUB = "hf://"
"""What the name of a run begins with that is taken from a hub: hf://OWNER/NAME, or hf://OWNER/NAME@REVISION."""
RUNS = Path("runs")
"""Where a recipe's `head.from_run` is looked for that is no path."""
PINNED = "default"
"""`ln -s msrvtt-001 runs/default` pins a run. A link and no setting (our choice): it lies beside the runs, `ls` shows
where it leads, it goes with the folder, and it is a name for --run already."""


_PLACES = {
    "data": ("root", "annotations", "videos", "features", "cache_folder"),
    "backbone": ("weights",),
    "anchors": ("vocabulary",),
}
"""Keys of a recipe that may name a file or folder, and are no part of what a run is."""


@dataclass(frozen=True, slots=True)
class TrainedOn:
    """What a run was trained on, and on how much of it.

    Attributes:
        dataset: Name and protocol.
        clips: Training clips; None for a run that does not say.
        missing: Training clips of the protocol that were not there.
        drawn: Whether they are the demo's drawn shapes.
    """

    dataset: str
    clips: int | None
    missing: int
    drawn: bool

    def __str__(self) -> str:
        """Such as "trained on msrvtt 9k, 12 of 9,000 clips"."""
        if self.clips is None:
            return f"trained on {self.dataset}"
        share = f"{self.clips:,} of {counted(self.clips + self.missing, 'clip')}" if self.missing else ""
        return f"trained on {self.dataset}, {share or counted(self.clips, 'clip')}"

    def warning(self, clips_are_drawn: bool) -> str | None:
        """What must be said where these weights look at clips of another kind."""
        if self.drawn == clips_are_drawn:
            return None
        if self.drawn:
            return "it knows the demo's drawn shapes only, and these videos are none: its answers mean nothing here"
        return "these are the demo's drawn shapes, which it was not trained on: its answers mean little here"


class Run:
    """One run folder; its attributes are its name for people, and the paths in it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.name = folder, folder.name
        self.recipe_file = folder / "recipe.json"
        self.vocabulary = folder / "vocabulary.yaml"
        self.about = folder / "run.json"
        self.log = folder / "log.jsonl"
        self.state = folder / "state.safetensors"
        self.results = folder / "results.json"
        self.evals = folder / "evals"

    def tracked(self, tracker: str) -> Path:
        """The folder that a tracker has in it, "tensorboard" or another of `calmctl.training.trackers.NEEDS`."""
        return self.folder / tracker

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
        head = values.get("head") if isinstance(values, dict) else None
        if isinstance(head, dict) and head.get("kind") == "emcl":
            head.setdefault("em_rebuild", "shares")  # EMCL before there was this key: a resumed run stays itself
        try:
            recipe = recipe_from_dict(values, where=str(self.recipe_file))
        except RecipeError as fault:
            raise RecipeError(f"{fault}{self._version_hint()}") from None
        return _with_places(recipe, self._resolve_place)

    def recipe_values(self) -> dict[str, Any]:
        """The recipe as it stands, unchecked: a list of runs shows those of other versions too."""
        values = read_json(self.recipe_file, what=f"run {self.folder}", error=RunNotFound)
        return values if isinstance(values, dict) else {}

    def _resolve_place(self, place: str) -> str:
        """A place that a recipe names, from here; else from the folder above the run that has it (`places_below`)."""
        path = Path(place)
        if path.is_absolute() or path.exists():
            return place
        above = self.folder.resolve().parents
        return next((os.path.relpath(folder / path) for folder in above if (folder / path).exists()), place)

    def _version_hint(self) -> str:
        """For a recipe that this version cannot read: which version wrote it."""
        try:
            packages = read_json(self.about, what=f"run {self.folder}")["packages"]
            return f"\nthis run was made by calmctl {packages['calmctl']}: use that version for it, or train it anew"
        except (BadInput, KeyError, TypeError):
            return ""

    def record(self) -> dict[str, Any]:
        """What was written down when it was begun, unchecked; raises `CheckpointError` where that cannot be read."""
        if not self.about.exists():
            return {}
        about = read_json(self.about, what=f"run {self.folder}", error=CheckpointError)
        return about if isinstance(about, dict) else {}

    @property
    def trained_on(self) -> TrainedOn:
        """What the training saw, read without checking the rest of recipe and record; raises `RunNotFound`."""
        recipe = read_json(self.recipe_file, what=f"run {self.folder}", error=RunNotFound)
        try:
            dataset = f"{recipe['data']['dataset']} {recipe['data'].get('protocol') or ''}".strip()
        except (KeyError, TypeError, AttributeError):
            raise RunNotFound(f"run {self.folder}: {self.recipe_file} names no data; train it anew") from None
        return _trained_on(dataset, self.record())

    @property
    def task(self) -> str:
        """What was trained, "retrieval" or "caption", read without checking the rest of the recipe."""
        # An old run whose recipe this version cannot read must not hide the runs beside it.
        values = self.recipe_values()
        return str(values.get("task", "retrieval")) if values else ""

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
        busy = RunInUse(f"{self.folder} is in use by another process; wait for it or start a new run")
        with locked(self.folder, busy):
            if not self.recipe_file.exists():
                raise RunFailed(f"{self.folder} has been removed by another process; start a new run")
            remove_unfinished(self.folder)
            yield

    def drop_state(self) -> None:
        """Remove the checkpoint of a finished run, which nobody resumes: it is two thirds of what training writes.

        Raises `RunFailed` when it cannot.
        """
        if self.results.exists():
            remove(self.state)

    def append_log(self, record: dict[str, Any]) -> dict[str, Any]:
        """Add one line to the log and return it with its time. Raises `RunFailed` when it cannot."""
        line = {**record, "time": round(time.time(), 3)}
        # NaN is allowed here and in no other file: the step that was not finite must leave its numbers.
        append_text(self.log, json.dumps(line, allow_nan=True) + "\n")
        return line

    def read_log(self, step: int, epoch: int) -> list[dict[str, Any]]:
        """The lines up to `step`, of which those with validation numbers up to `epoch`.

        What follows a checkpoint's step is written again by the run that goes on from it; so is the validation
        of an epoch that the checkpoint does not count yet. A kill can cut the last line short: it is not read.

        Raises `CheckpointError` where another line is damaged.
        """
        try:
            lines = read_regular(self.log).splitlines(keepends=True) if self.log.exists() else []
        except OSError as fault:
            raise CheckpointError(f"cannot read {self.log}: {fault.strerror or fault}; remove it") from None
        try:
            # A line without its end was cut short by a kill. Any other fault means that somebody wrote into the log.
            records = [parse_json(line) for line in lines if line.endswith(b"\n")]
            return [line for line in records if line["step"] <= step and line.get("epoch", 0) <= epoch]
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
        self.name = str(metadata["recipe"].get("name", file.name))

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

    def recipe_values(self) -> dict[str, Any]:
        """The same, unchecked."""
        values: dict[str, Any] = self._metadata["recipe"]
        return values

    @property
    def task(self) -> str:
        """What was trained."""
        return self.recipe().task

    def record(self) -> dict[str, Any]:
        """What its file carries."""
        return self._metadata

    @property
    def trained_on(self) -> TrainedOn:
        """The data set of the training, and how much of it was used where the file says so."""
        data = self.recipe().data
        return _trained_on(f"{data.dataset} {data.protocol or ''}".strip(), self._metadata)

    def recipe_to_resume(self) -> Recipe:
        """Raises `RunFailed`: nothing of the training is left."""
        raise RunFailed(f"{self.folder} is an export and cannot go on; to train from its towers, set backbone.weights")


def _trained_on(dataset: str, record: Mapping[str, Any]) -> TrainedOn:
    """From what the training was made of; from the counts of run.json for a run from before that was recorded."""
    train, undecodable = None, 0
    try:
        if (identity := record.get(IDENTITY)) is not None:
            train, undecodable = identity["splits"]["train"], int(identity["undecodable"])
            dataset = f"{train['dataset']} {train['protocol']}".strip()
        elif "data" in record:
            train = record["data"]["train"]
        # A folder of the demo's clips is drawn, too, whatever the data set is called.
        shapes = dataset.startswith("demo") or drawn(record.get("validation_ids") or ())
        if train is not None:
            return TrainedOn(dataset, int(train["clips"]) - undecodable, int(train["left_out"]) + undecodable, shapes)
    except (KeyError, TypeError, ValueError):  # a damaged record tells nothing
        shapes = dataset.startswith("demo")
    return TrainedOn(dataset, None, 0, shapes)


def _without_folder(model: str) -> str:
    """The name of a backbone without a folder of this machine; OWNER/NAME of a hub stays."""
    kind = next((kind for kind in PUBLISHED if model.startswith(kind)), "")
    name = model.removeprefix(kind)
    on_hub = kind and kind != "local-dir:" and not Path(name).is_dir()
    return f"{kind}{name if on_hub else Path(name).name}"


def export_metadata(recipe: Recipe, vocabulary: Vocabulary) -> dict[str, Any]:
    """What a slim file needs beside its weights to be a run by itself: no path of the machine that trained it."""
    data, backbone = recipe.data, recipe.backbone
    plain = type(data).model_fields["root"].default
    places = {"root": plain, "annotations": None, "videos": None, "features": None, "cache_folder": None}
    # Names without folders: a path would tell whose machine it was, and leads nowhere on another.
    weights = None if backbone.weights is None else Path(backbone.weights).name
    # Towers may be frozen because features were trained on. An export names no store, so it must say it itself.
    names = {"model": _without_folder(backbone.model), "weights": weights, "freeze": recipe.frozen}
    portable = recipe.model_copy(
        update={
            "data": data.model_copy(update=places),
            "backbone": backbone.model_copy(update=names),
            "anchors": recipe.anchors.model_copy(update={"vocabulary": Path(recipe.anchors.vocabulary).name}),
            "head": recipe.head.model_copy(update={"from_run": _run_name(recipe.head.from_run)}),
            "init_from": _run_name(recipe.init_from),
        }
    )
    return {"recipe": portable.model_dump(mode="json"), "vocabulary": format_vocabulary(vocabulary)}


def _run_name(run: str | None) -> str | None:
    """The name of a run; where on a hub it is, is no place of a machine."""
    return run if run is None or run.startswith(HUB) else Path(run).name


def _exported(file: Path) -> Run:
    """The run that a weights file is by itself, or that it lies in."""
    from calmctl.tensors import read_metadata  # torch, which takes seconds: folders do not need it

    metadata = read_metadata(file, what="run")
    if isinstance(metadata.get("recipe"), dict):
        return ExportedRun(file, metadata)
    if (file.parent / "recipe.json").is_file() and file.stem in ("best", "slim"):
        return Run(file.parent)
    raise RunNotFound(
        f"{file} is no run by itself: it holds no recipe; give the run's folder, its slim.safetensors, or, for weights "
        "of others, --backbone and --backbone-weights"
    )


def _published(reference: str) -> Run:
    """The run at hf://OWNER/NAME[@REVISION], from the hub's cache or downloaded (`calmctl.hub`)."""
    from calmctl.hub import fetch, is_offline, list_files  # and the hub's client, which folders do not need

    repository, _, wanted = reference.removeprefix(HUB).partition("@")
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repository) or reference.endswith("@"):
        raise BadInput(f"{reference} is no run of a hub; write hf://OWNER/NAME, or hf://OWNER/NAME@REVISION")
    what, revision, file = f"run {reference}", wanted or "main", "slim.safetensors"
    # A commit is what it is. A branch moves on: the hub is asked where it stands, or a run that was published anew
    # would be the old one for ever on this machine.
    if not is_offline() and not re.fullmatch("[0-9a-f]{40}", revision):
        listing = list_files(repository, revision=revision, what=what)
        if file not in listing.names:
            raise RunNotFound(f"{what}: there is no {file} in it, so it is no run that calmctl push has put there")
        revision = listing.revision
    run = _exported(fetch(repository, file, revision=revision, what=what))
    run.name = reference
    return run


def places_below(recipe: Recipe, runs: Path) -> Recipe:
    """The recipe of a new run with the places of its data and weights named from the current folder, where below it.

    A run is given away, and an absolute path tells whose machine it was. Where the run lies elsewhere its recipe keeps
    the paths: from there nothing would find the data again.
    """
    here = Path.cwd()
    if not runs.resolve().is_relative_to(here):
        return recipe

    def below(place: str) -> str:
        path = Path(place)
        return str(path.relative_to(here)) if path.is_absolute() and path.is_relative_to(here) else place

    return _with_places(recipe, below)


def _with_places(recipe: Recipe, rename: Callable[[str], str]) -> Recipe:
    """A recipe in which the places of data, weights and anchors have other names; none of them is an identity."""
    changed: dict[str, Any] = {}
    for section, keys in _PLACES.items():
        values = getattr(recipe, section)
        named = {key: getattr(values, key) for key in keys}
        update = {key: rename(place) for key, place in named.items() if place is not None}
        changed[section] = values.model_copy(update=update)
    if recipe.init_from is not None and not recipe.init_from.startswith(HUB):
        changed["init_from"] = rename(recipe.init_from)
    return recipe.model_copy(update=changed)


def create_run(root: Path, recipe: Recipe, tracked: Collection[str] = ()) -> Run:
    """Make the next free folder `root/<name>-<number>` with the recipe in it, and a folder for each tracker.

    A folder that is empty is free: where nothing could be removed either, a run that did not begin has left one.

    Raises:
        RunFailed: It cannot be made; nothing is left then.
    """
    try:
        root.mkdir(parents=True, exist_ok=True)
        tidy(root)
        with held_folder(root) as place:
            made = Run(place / "run")  # one level down, where nobody takes it for a run that is there
            made.folder.mkdir()
            for tracker in tracked:  # killed before its first step, the run must know what it was asked for
                made.tracked(tracker).mkdir()
            write_json(made.recipe_file, recipe.model_dump(mode="json"))
            for number in count(1):
                folder = root / f"{recipe.name}-{number:03d}"
                try:
                    # The rename decides, and not a look before it: two trainings that start at once get two folders.
                    os.replace(made.folder, folder)
                    break
                except OSError as fault:
                    taken = fault.errno in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR)
                    if not taken and not (os.name == "nt" and folder.exists()):
                        raise
    except OSError as fault:
        raise RunFailed(
            f"cannot create a run in {root}: {fault.strerror}; choose another folder with --runs"
        ) from fault
    except RunFailed as fault:  # told by the name that it would have had
        raise RunFailed(str(fault).replace(str(made.folder), str(root / recipe.name))) from fault
    return Run(folder)


def find_run(name: str | None, root: Path, *, task: str | None = None, drawn: bool | None = None) -> Run:
    """The run meant by a path or by a folder's name under `root`; for None the pinned one, else the newest trained one.

    Args:
        name: Path of a run's folder or of a slim.safetensors, folder's name, hf://OWNER/NAME[@REVISION], or None.
        root: Folder of runs.
        task: Where no run is named, "retrieval" or "caption" looks among the runs of that task only.
        drawn: Where none is named or pinned, only runs trained on the demo's drawn shapes, or only others: what a
            run learned of shapes says nothing about real videos.

    Raises `RunNotFound` saying how to make one.
    """
    recipe = "recipes/demo-caption.yaml" if task == "caption" else "recipes/demo.yaml"
    if name is not None and name.startswith(HUB):
        return _published(name)
    if name is not None:
        # A path first: what a shell has completed is what was meant.
        for folder in (Path(name), root / name):
            if (folder / "recipe.json").is_file():
                return Run(folder)
            slim = folder if folder.suffix == ".safetensors" else folder / "slim.safetensors"
            if slim.is_file():
                return _exported(slim)
        names = sorted(path.parent.name for path in root.glob("*/recipe.json"))
        wanted = re.escape(Path(name).name)  # a recipe's name before another that begins as it does
        near = [run for run in names if re.fullmatch(rf"{wanted}-\d+", run)]
        near = near or [run for run in names if re.match(f"{wanted}-", run)] or get_close_matches(name, names, n=1)
        hint = f"did you mean {root / near[-1]}?" if near else f"'calmctl train {recipe}' makes one"
        raise RunNotFound(f"no run at {name} or {root / name}; {hint}")
    runs = [Run(path.parent) for path in root.glob("*/recipe.json")]
    trained = [run for run in runs if run.trained_weights("best").is_file()]
    if task is not None:
        trained = [run for run in trained if run.task == task]
    for run in trained:
        if run.folder.name == PINNED:
            return run
    # A pinned run was chosen by a person. One that nobody chose must know such clips: after a demo, the newest run saw
    # drawn triangles in holiday films.
    fitting = [run for run in trained if drawn is None or run.trained_on.drawn == drawn]
    if not fitting:
        kind = {"caption": "captioning ", "retrieval": "retrieval "}.get(task or "", "")
        if trained:
            newest = max(trained, key=_trained_at)
            what = "the demo's drawn shapes" if drawn else "real videos"
            raise RunNotFound(
                f"no {kind}run in {root}{os.sep} was trained on {what}; the newest, {newest.folder}, was "
                f"{newest.trained_on}: name it with --run to use it all the same"
            )
        raise RunNotFound(
            f"no trained {kind}run in {root}{os.sep}; make one with 'calmctl train {recipe}' or 'calmctl demo', "
            "or name one"
        )
    return max(fitting, key=_trained_at)


def _trained_at(run: Run) -> tuple[float, str]:
    """When a run last logged something, as the log says: a file's date changes when it is copied or put back."""
    # A run without a log is older than any that has one.
    times = [0.0]
    for line in read_regular(run.log).splitlines() if run.log.is_file() else ():
        try:
            times.append(float(parse_json(line)["time"]))
        except (ValueError, KeyError, TypeError):  # a line that a kill cut short
            continue
    return max(times), run.folder.name


def describe_choice(run: Run) -> str:
    """How a run was found that nobody named, and what it knows."""
    if run.folder.name == PINNED:
        return f"the pinned run, {run.folder} -> {os.path.relpath(run.folder.resolve(), run.folder.parent.resolve())}"
    return f"the newest run, {run.folder}"
