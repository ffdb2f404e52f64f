"""The runs of a folder: a record of each, the best of those that can be compared, and what may be removed.

Nothing here needs torch: a list of a hundred runs comes at once. A run that cannot be read is listed with the reason.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from calmctl.errors import BadInput, CalmError, RunFailed, RunNotFound
from calmctl.files import parse_json, read_json, read_regular, remove
from calmctl.locks import LOCK
from calmctl.recipe import Recipe
from calmctl.runs.run import IDENTITY, PINNED, Run, TrainedOn

SCORES = {"retrieval": "R@1", "caption": "CIDEr"}
"""What a run of each task is compared by: text to video in percent, or times 100."""
_VALIDATION = {"retrieval": "t2v_r1", "caption": "cider"}
_SECTIONS = ("data", "backbone", "anchors", "head", "caption", "alignment", "optim")


@dataclass(frozen=True, slots=True)
class RunRecord:
    """One run of a folder; one row of a table.

    Attributes:
        state: "finished", "unfinished" (`train --resume` goes on), or "unreadable".
        fault: Why it cannot be read, else "".
        task: "retrieval" or "caption".
        time: When it logged last, in seconds since 1970; 0 where it logged nothing.
        recipe: Its recipe's name.
        head: Kind of the head, "captioner" for captioning.
        backbone: Model of the towers.
        data: Data set and protocol that it was trained on.
        clips: Training clips that were used; None where that is not known.
        missing: Training clips of the protocol that were not there.
        epoch: Epochs done.
        epochs: Epochs that the recipe asks for.
        bytes: Of all its files.
        parameters: Of the whole model, None where that is not known.
        metric: What the next two are, of `SCORES`.
        validation: Of the best epoch on validation; None before the first.
        test: Of the weights of that epoch, as the training measured it; None before the end and without a test split.
        val_set: Digest of the validation split, "" where it was not recorded.
        evals: Evaluations that are kept with it.
    """

    name: str
    folder: str
    state: str
    fault: str = ""
    task: str = ""
    time: float = 0.0
    recipe: str = ""
    head: str = ""
    alignment: str = ""
    backbone: str = ""
    seed: int | None = None
    data: str = ""
    clips: int | None = None
    missing: int = 0
    epoch: int = 0
    epochs: int | None = None
    bytes: int = 0
    parameters: int | None = None
    metric: str = ""
    validation: float | None = None
    test: float | None = None
    val_set: str = ""
    evals: int = 0

    def to_json(self) -> dict[str, Any]:
        """Plain data, flat: a row for pandas."""
        return asdict(self)

    @property
    def progress(self) -> str:
        """How far it is, such as "2/2" or "1/5 unfinished"."""
        epochs = f"{self.epoch}/{self.epochs}" if self.epochs else str(self.epoch)
        return epochs if self.state == "finished" else f"{epochs} {self.state}"

    @property
    def trained_on(self) -> str:
        """What it was trained on and how much of that was there, such as "msrvtt 9k, 12 of 9,000 clips"."""
        return str(TrainedOn(self.data, self.clips, self.missing, False)).removeprefix("trained on ")


def run_records(root: Path) -> list[RunRecord]:
    """A record of every run in the folder `root`, the newest first; the link of a pinned run is no run of its own."""
    folders = {path.parent for path in root.glob("*/recipe.json") if not path.parent.is_symlink()}
    records = [run_record(Run(folder)) for folder in sorted(folders)]
    return sorted(records, key=lambda record: (-record.time, record.name))


def run_record(run: Run) -> RunRecord:
    """The record of a run; what cannot be read makes it an "unreadable" one, and raises nothing."""
    name, folder, size = run.name, str(run.folder), sum(files_of(run).values())
    try:
        record = _read(run, RunRecord(name=name, folder=folder, state="unfinished", bytes=size))
        json.dumps(record.to_json(), allow_nan=False)  # a log may have NaN, and an edited one at any place
        return record
    except CalmError as fault:
        return RunRecord(name=name, folder=folder, state="unreadable", fault=str(fault), bytes=size)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, OSError) as fault:
        # Files of a run are JSON that anybody may have edited.
        reason = f"its files are not those of a run ({type(fault).__name__}: {fault})"
        return RunRecord(name=name, folder=folder, state="unreadable", fault=reason, bytes=size)


def _read(run: Run, record: RunRecord) -> RunRecord:
    values = run.recipe_values()
    task, about, trained_on = values.get("task", "retrieval"), run.record(), run.trained_on
    lines = _log(run)
    validated = [line for line in lines if "validation" in line]
    results = read_json(run.results, what=f"run {run.folder}") if run.results.exists() else None
    # The log has them while a run goes on, results.json when it is finished; an export has neither.
    scores = [line["validation"] for line in validated] if results is None else results["validation"]
    best = max(scores, key=lambda each: float(each["score"]), default=None)
    test = None if results is None else _test_score(task, results["test"])
    given_away = not run.log.exists() and run.trained_weights("best").exists()
    return replace(
        record,
        state="finished" if results is not None or given_away else "unfinished",
        task=task,
        time=max((float(line["time"]) for line in lines), default=0.0),
        recipe=values["name"],
        head="captioner" if task == "caption" else values.get("head", {}).get("kind", ""),
        alignment=values.get("alignment", {}).get("kind", ""),
        backbone=Path(values.get("backbone", {}).get("model", "")).name,
        seed=values.get("seed"),
        data=trained_on.dataset,
        clips=trained_on.clips,
        missing=trained_on.missing,
        epoch=len(scores) or int(about.get("epoch", 0)),  # of an export, whose epochs are not told one by one
        epochs=values.get("optim", {}).get("epochs"),
        parameters=about.get("parameters"),
        metric=SCORES[task],
        validation=None if best is None else float(best[_VALIDATION[task]]),
        test=test,
        val_set=about.get(IDENTITY, {}).get("splits", {}).get("val", {}).get("digest", ""),
        evals=len(kept_evaluations(run)),
    )


def _log(run: Run) -> list[dict[str, Any]]:
    """Lines of the log; one that a kill cut short, or that somebody damaged, says nothing here."""
    lines = []
    for line in read_regular(run.log).splitlines() if run.log.is_file() else ():
        with suppress(ValueError):
            value = parse_json(line)
            if isinstance(value, dict) and "time" in value:
                lines.append(value)
    return lines


def _test_score(task: str, results: Sequence[Mapping[str, Any]]) -> float | None:
    """Of the best weights on validation, which stand first."""
    if not results:
        return None
    if task == "caption":
        return 100 * float(results[0]["scores"]["cider"])
    return float(results[0]["metrics"]["text_to_video"]["r1"])


def kept_evaluations(run: Run) -> list[Path]:
    """The files of `evals/`, sorted by name."""
    return sorted(run.evals.glob("*.json"))


def files_of(run: Run) -> dict[str, int]:
    """Bytes of every file of a run, by its path in the folder; of an exported file, itself."""
    folder = run.folder
    paths = [folder] if folder.is_file() else sorted(folder.rglob("*"))
    sizes = {}
    for path in paths:
        with suppress(FileNotFoundError):  # temporary, of a training that goes on
            if path.is_file() and not path.is_symlink():
                sizes[path.relative_to(folder).as_posix() if path != folder else path.name] = path.lstat().st_size
    return sizes


def best_run(records: Sequence[RunRecord], ways: Sequence[str] = ("--task", "--trained-on")) -> RunRecord:
    """The finished run with the best score on validation; the test split has no say in it.

    Args:
        records: Of some runs.
        ways: Options that would narrow them down.

    Raises:
        RunNotFound: None of them is finished.
        BadInput: They were validated on different clips, or for different tasks, which no order can be made of.
    """
    finished = [each for each in records if each.state == "finished" and each.validation is not None]
    if not finished:
        raise RunNotFound("no finished run with validation numbers is among these; calmctl runs ls shows what there is")
    kinds = {(each.task, each.data, each.val_set): each for each in finished}
    if len(kinds) > 1:
        shown = "; ".join(f"{each.name}: {each.task} on {each.data}" for each in kinds.values())
        advice = f"narrow it down with {' and '.join(ways)}" if ways else "calmctl compare tests some on the same clips"
        raise BadInput(
            f"these runs were validated on {len(kinds)} different things ({shown}), and the best of them is not "
            f"defined; {advice}"
        )
    return max(finished, key=lambda each: (each.validation, each.time))


def flat_recipe(recipe: Recipe) -> dict[str, Any]:
    """Every key of a recipe with its value, dotted."""
    values = recipe.model_dump(mode="json")
    flat = {key: value for key, value in values.items() if key not in _SECTIONS}
    return flat | {f"{section}.{key}": value for section in _SECTIONS for key, value in values[section].items()}


def recipe_differences(recipes: Sequence[Recipe]) -> dict[str, list[Any]]:
    """The keys in which recipes differ, with the value of each; where something lies and how often it logs apart."""
    # torch comes with it, which the list of runs does without.
    from calmctl.runs.identity import is_no_result

    flat = [flat_recipe(recipe) for recipe in recipes]
    return {
        key: [each[key] for each in flat]
        for key in flat[0]
        if not is_no_result(key) and any(each[key] != flat[0][key] for each in flat)
    }


# Removing.


@dataclass(frozen=True, slots=True)
class Prunable:
    """What of a run nothing needs any more.

    Attributes:
        paths: Its files, or its whole folder.
    """

    run: Run
    paths: tuple[Path, ...]
    bytes: int
    why: str


def prunable(records: Sequence[RunRecord], *, last: bool = False) -> list[Prunable]:
    """What can go without any number, or any run that could go on, being lost.

    That is the training state of finished runs, what killed processes left, and folders of runs that never took a step.

    Args:
        records: The runs.
        last: Also the weights of the last epoch of finished runs: `--weights last` cannot be evaluated then.
    """
    parts = []
    for record in records:
        run = Run(Path(record.folder))
        if record.state == "unreadable":  # what it is cannot be told, so nobody but its owner decides
            continue
        if record.state == "unfinished" and not run.log.exists() and not run.state.exists():
            parts.append(Prunable(run, (run.folder,), record.bytes, "it never took a step"))
            continue
        paths, why = [], []
        if record.state == "finished" and run.state.exists():
            paths.append(run.state)
            why.append("the state of a finished training")
        if record.state == "finished" and last and run.weights("last").exists() and run.weights("best").exists():
            paths.append(run.weights("last"))
            why.append("the last epoch's weights")
        if unfinished := sorted(run.folder.glob(".*.tmp")):
            paths += unfinished
            why.append("what a killed process was writing")
        if paths:
            sizes = files_of(run)
            parts.append(Prunable(run, tuple(paths), sum(sizes.get(each.name, 0) for each in paths), ", ".join(why)))
    return parts


def prune(what: Prunable) -> None:
    """Remove it. Raises `RunFailed` where a process has the run, or where the file system refuses."""
    if what.paths == (what.run.folder,):
        remove_run(what.run)
        return
    with what.run.locked():
        for path in what.paths:
            remove(path)


def remove_run(run: Run) -> None:
    """Remove a run's folder, and the link that pins it.

    Raises:
        RunFailed: A process has the run, or the file system refuses.
        BadInput: It is no folder of a run: an exported file, or a link.
    """
    folder = run.folder
    if folder.is_symlink() or not (folder / "recipe.json").is_file():
        what = "a link to a run" if folder.is_symlink() else "one file, and no folder of a run"
        raise BadInput(f"{folder} is {what}; remove that yourself, or name the run's own folder")
    pinned = folder.parent / PINNED
    leads_here = pinned.is_symlink() and pinned.resolve() == folder.resolve()
    with run.locked():  # nobody trains it, and nobody begins to
        # Its results first and its recipe last: where a kill stops this it is no finished run, and can be removed.
        kept = (run.recipe_file, folder / LOCK)
        for path in (run.results, *(each for each in sorted(folder.iterdir()) if each not in kept), run.recipe_file):
            _remove(path)
    _remove(folder)
    if leads_here:
        remove(pinned)


def _remove(path: Path) -> None:
    """Remove a file or a folder with all that is in it, where it is still there."""
    if path.is_symlink() or not path.is_dir():
        remove(path)
        return
    try:
        shutil.rmtree(path)
    except OSError as fault:
        raise RunFailed(f"cannot remove {fault.filename or path}: {fault.strerror or fault}") from fault


def dependants(run: Run, records: Sequence[RunRecord]) -> list[str]:
    """Names of other runs whose recipes start from a run: unfinished ones cannot go on without it."""
    names = []
    for record in records:
        if record.name == run.folder.name or record.state == "unreadable":
            continue
        recipe = Run(Path(record.folder)).recipe()
        starts = [start for start in (recipe.backbone.weights, recipe.head.from_run, recipe.init_from) if start]
        # A run is named by its path, or by its name beside the others.
        places = [place for start in starts for place in (Path(start), run.folder.parent / start)]
        if any(place.resolve().is_relative_to(run.folder.resolve()) for place in places):
            names.append(record.name)
    return names
