"""A run is what it was made of: each ingredient changed in turn, and every command that meets it says so."""

import csv
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from operator import itemgetter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from calmctl.anchors.shipped import resolve_vocabulary
from calmctl.anchors.vocabulary import save_vocabulary
from calmctl.data.registry import load_dataset
from calmctl.errors import CalmError, CheckpointError, DatasetError, RunFailed, StoreError
from calmctl.evaluation.retrieval import Retrieval
from calmctl.evaluation.runs import evaluate_run, labels_of
from calmctl.files import write_json
from calmctl.model.weights import load_backbone
from calmctl.recipe import Recipe, recipe_from_dict
from calmctl.runs.checkpoint import load_run
from calmctl.runs.identity import judge, recipe_digest, require_unchanged, run_identity, weights_identity
from calmctl.runs.run import Run
from calmctl.source.base import SourceSpec
from calmctl.source.source import open_source
from calmctl.store.extract import extract
from calmctl.training.prepare import prepare
from calmctl.training.train import plan_training, train
from calmctl.words import Watcher

CPU = torch.device("cpu")
Edit = Callable[[Path, Run], None]


class Killed(BaseException):
    """Stands for a kill: nothing catches it."""


class Stop(Watcher):
    """A watcher that behaves like a kill after some steps of this process."""

    def __init__(self, after: int) -> None:
        self.left = after

    def step(self, done: int, total: int, loss: float) -> None:
        self.left -= 1
        if self.left < 0:
            raise Killed


@pytest.fixture(scope="module")
def folder(tiny_world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 6, 3 and 3 clips with a captions file that tells the splits."""
    root = tmp_path_factory.mktemp("folder")
    rows = []
    for name, split in load_dataset("demo", tiny_world).splits.items():
        for number, clip in enumerate(split.clips[: 6 if name == "train" else 3]):
            shutil.copy(clip.path, root / f"{name}{number}.mp4")
            rows += [
                (f"{name}{number}.mp4", text, name)
                for text, owner in zip(split.captions, split.owners, strict=True)
                if owner == number
            ]
    write_rows(root, rows)
    return root


@pytest.fixture(scope="module")
def values(folder: Path, tiny_recipe_values: Callable[[Path], dict[str, Any]]) -> dict[str, Any]:
    values = tiny_recipe_values(folder)
    values["data"]["dataset"] = "folder"
    values["head"], values["backbone"]["freeze"] = {"kind": "meanp"}, True
    values["anchors"]["encode"] = "frozen"
    values["backbone"]["adapter"] = "linear"
    values["optim"] |= {"epochs": 1, "batch_size": 6, "save_every": 1}
    return values


@pytest.fixture(scope="module")
def finished(values: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Run:
    return train(recipe_from_dict(values), tmp_path_factory.mktemp("finished")).run


@pytest.fixture(scope="module")
def interrupted(values: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Run:
    runs = tmp_path_factory.mktemp("interrupted")
    with pytest.raises(Killed):
        train(recipe_from_dict(values), runs, watcher=Stop(1))
    (run,) = (Run(path.parent) for path in runs.glob("*/recipe.json"))
    assert run.state.exists() and not run.results.exists()
    return run


def test_a_plan_says_what_would_have_to_be_said_of_its_numbers(
    folder: Path, values: dict[str, Any], tmp_path: Path
) -> None:
    data = shutil.copytree(folder, tmp_path / "data")
    (data / "train1.mp4").unlink()
    shutil.copy(data / "train0.mp4", data / "test0.mp4")
    recipe = recipe_from_dict(values | {"data": values["data"] | {"root": str(data)}})
    plan = plan_training(recipe)
    assert "captions: captions.csv" in plan["notes"]
    missing, seen = plan["caveats"]
    assert missing == "trained on 5 of 6 training clips of folder; the rest is missing"
    assert seen.startswith("folder: 1 of 3 test clips was trained on (folder)")
    write_rows(data, [row for row in rows_of(data) if row[2] != "test"])
    assert plan_training(recipe)["caveats"] == [missing]


def copied(run: Run, folder: Path, to: Path) -> tuple[Path, Run]:
    """The data and the run at another place, which is no change."""
    data = shutil.copytree(folder, to / "data")
    made = Run(shutil.copytree(run.folder, to / "run"))
    edit_recipe(made, "data", "root", str(data))
    return data, made


def edit_recipe(run: Run, section: str, key: str, value: object) -> None:
    recipe = json.loads(run.recipe_file.read_text())
    recipe[section][key] = value
    write_json(run.recipe_file, recipe)


def rows_of(data: Path) -> list[tuple[str, ...]]:
    with (data / "captions.csv").open(newline="") as file:
        return [tuple(row) for row in csv.reader(file)][1:]


def write_rows(data: Path, rows: list[tuple[str, ...]]) -> None:
    with (data / "captions.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("video", "caption", "split"), *rows])


def swapped(data: Path, column: int, first: str, second: str) -> None:
    """Exchange a column's values between the rows of two clips."""
    rows = [list(row) for row in rows_of(data)]
    ours, theirs = ([row for row in rows if row[0] == f"{name}.mp4"] for name in (first, second))
    ours_was, theirs_was = ours[0][column], theirs[0][column]
    for row in ours:
        row[column] = theirs_was
    for row in theirs:
        row[column] = ours_was
    write_rows(data, [tuple(row) for row in rows])


def other_anchors(data: Path, run: Run) -> None:
    save_vocabulary(resolve_vocabulary("coco@1"), run.vocabulary)


def edit_head(data: Path, run: Run) -> None:
    edit_recipe(run, "data", "frames", 1)


CHANGES: dict[str, tuple[Edit, str]] = {
    "captions": (lambda data, run: swapped(data, 1, "train0", "train1"), "train: captions of 2 clips differ"),
    "order": (
        lambda data, run: write_rows(data, sorted(rows_of(data), reverse=True, key=itemgetter(0))),
        "train: the order of its clips and captions",
    ),
    "validation": (
        lambda data, run: swapped(data, 2, "train0", "val0"),
        r"train: 1 clip gone, 1 clip new.*val: 1 clip",
    ),
    "test": (lambda data, run: swapped(data, 2, "train0", "test0"), r"train: 1 clip gone, 1 clip new.*test: 1 clip"),
    "clip file": (lambda data, run: shutil.copy(data / "train1.mp4", data / "train0.mp4"), "files of 1 clip differ"),
    "clip gone": (lambda data, run: (data / "train0.mp4").unlink(), "train: 1 clip gone"),
    "recipe": (edit_head, "recipe.json was edited"),
    "vocabulary": (other_anchors, "other anchors"),
}


@pytest.mark.parametrize("what", CHANGES)
def test_a_run_does_not_go_on_with_something_else(interrupted: Run, folder: Path, tmp_path: Path, what: str) -> None:
    data, run = copied(interrupted, folder, tmp_path)
    change, message = CHANGES[what]
    change(data, run)
    with pytest.raises(RunFailed, match=rf"{message}.*train it anew"):
        train(run.recipe_to_resume(), tmp_path, resume=run, watcher=Stop(0))


def test_other_dates_and_another_place_are_no_change(interrupted: Run, folder: Path, tmp_path: Path) -> None:
    data, run = copied(interrupted, folder, tmp_path)
    for path in (*data.iterdir(), *run.folder.iterdir()):
        os.utime(path, (1, 1))
    with pytest.raises(Killed):
        train(run.recipe_to_resume(), tmp_path, resume=run, watcher=Stop(0))


def test_a_key_that_came_later_is_no_edit(interrupted: Run, folder: Path, tmp_path: Path) -> None:
    """A run that was begun before recipes had some key goes on; what it has counts, as it stands."""
    _, run = copied(interrupted, folder, tmp_path)
    now = run_identity(run)
    assert now is not None
    values = json.loads(run.recipe_file.read_text())
    del values["head"]["extra_frames"]
    write_json(run.recipe_file, values)
    require_unchanged(run, replace(now, recipe=recipe_digest(values)), now)
    with pytest.raises(RunFailed, match=r"recipe\.json was edited"):
        require_unchanged(run, now, now)


def test_a_checkpoint_of_another_run_is_refused(
    interrupted: Run, values: dict[str, Any], folder: Path, tmp_path: Path
) -> None:
    _, run = copied(interrupted, folder, tmp_path)
    with pytest.raises(Killed):
        train(recipe_from_dict(values, overrides=["optim.lr_head=0.5"]), tmp_path, watcher=Stop(1))
    shutil.copy(tmp_path / "tiny-001" / "state.safetensors", run.state)
    with pytest.raises(CheckpointError, match=r"not of the run that run\.json"):
        train(run.recipe_to_resume(), tmp_path, resume=run, watcher=Stop(0))


def test_a_run_from_before_goes_on_and_promises_nothing(interrupted: Run, folder: Path, tmp_path: Path) -> None:
    _, run = copied(interrupted, folder, tmp_path)
    about = json.loads(run.about.read_text())
    del about["identity"]
    write_json(run.about, about)
    result = train(run.recipe_to_resume(), tmp_path, resume=run).results[0]
    assert "made before calmctl recorded what it was trained on" in " ".join(result.caveats)
    assert not result.labels.published
    assert weights_identity(run.weights("slim")) is None


@pytest.mark.parametrize(("change", "message"), [(edit_head, r"recipe\.json"), (other_anchors, r"vocabulary\.yaml")])
def test_weights_are_not_loaded_beside_another_recipe_or_other_anchors(
    finished: Run, folder: Path, tmp_path: Path, change: Edit, message: str
) -> None:
    data, run = copied(finished, folder, tmp_path)
    load_run(run, "slim", CPU)
    change(data, run)
    with pytest.raises(CheckpointError, match=rf"was not trained with the {message} beside it"):
        load_run(run, "slim", CPU)


def concerns(run: Run, **changes: Any) -> str:
    """What an evaluation says of a run on its own test set, or another."""
    recipe = run.recipe()
    test = SourceSpec(**changes) if changes else SourceSpec.of(recipe.data)
    return " ".join(labels_of(run, "best", test, open_source(test, recipe).record("test")).concerns)


def test_an_evaluation_has_nothing_to_say_where_nothing_changed(finished: Run, folder: Path, tmp_path: Path) -> None:
    assert json.loads(finished.results.read_text())["test"][0]["caveats"] == []
    assert concerns(copied(finished, folder, tmp_path)[1]) == ""


EVALUATED: dict[str, tuple[Edit, str]] = {
    "captions": (lambda data, run: swapped(data, 1, "test0", "test1"), "captions differ"),
    "clip file": (lambda data, run: shutil.copy(data / "test1.mp4", data / "test0.mp4"), "files of 1 clip differ"),
    "places": (lambda data, run: swapped(data, 2, "train0", "test0"), "1 of 3 test clips was trained on"),
    "copy of train": (
        lambda data, run: shutil.copy(data / "train0.mp4", data / "test0.mp4"),
        "1 of 3 test clips was trained on",
    ),
    "copy of val": (
        lambda data, run: shutil.copy(data / "val0.mp4", data / "test0.mp4"),
        "1 of 3 test clips is a validation clip",
    ),
    "unfinished": (lambda data, run: run.results.unlink(), "is not finished"),
}


@pytest.mark.parametrize("what", EVALUATED)
def test_an_evaluation_says_what_has_changed(finished: Run, folder: Path, tmp_path: Path, what: str) -> None:
    data, run = copied(finished, folder, tmp_path)
    change, message = EVALUATED[what]
    change(data, run)
    assert message in concerns(run)


def test_weights_that_are_given_away_know_what_they_saw(finished: Run, folder: Path) -> None:
    """Without the run's folder: what `slim.safetensors` carries is enough, and holds no path."""
    identity = weights_identity(finished.weights("slim"))
    assert identity is not None
    assert str(folder) not in json.dumps(identity.to_json())
    shutil.copy(folder / "train0.mp4", folder / "extra.mp4")
    try:
        test = SourceSpec("folder", folder, annotations=None)
        record = open_source(test, finished.recipe()).record("train")
        found = judge(identity, record, run=None, own=False)
        assert "6 of 6 train clips were trained on" in " ".join(found.caveats)
    finally:
        (folder / "extra.mp4").unlink()


def test_what_was_trained_on_is_known_through_the_weights_that_a_run_started_from(
    finished: Run, values: dict[str, Any], folder: Path, tmp_path: Path
) -> None:
    data, _ = copied(finished, folder, tmp_path)
    swapped(data, 2, "train0", "test0")
    again = [f"data.root={data}", f"backbone.weights={finished.weights('slim')}"]
    result = train(recipe_from_dict(values, overrides=again), tmp_path).results[0]
    assert "1 of 3 test clips was trained on (folder)" in " ".join(result.caveats)


def test_copies_across_splits_are_told_by_the_training_itself(
    values: dict[str, Any], folder: Path, tmp_path: Path
) -> None:
    data = shutil.copytree(folder, tmp_path / "data")
    for number in range(3):
        (data / f"test{number}.mp4").unlink()
        (data / f"test{number}.mp4").symlink_to(data / f"train{number}.mp4")
    result = train(recipe_from_dict(values, overrides=[f"data.root={data}"]), tmp_path).results[0]
    assert "3 of 3 test clips were trained on" in " ".join(result.caveats)
    assert any("were trained on" in each for each in result.to_json()["caveats"])


def test_a_test_split_without_clips_is_refused_before_the_first_step(
    values: dict[str, Any], folder: Path, tmp_path: Path
) -> None:
    data = shutil.copytree(folder, tmp_path / "data")
    for path in data.glob("test*.mp4"):
        path.unlink()
    with pytest.raises(DatasetError, match=r"test split has no clip with a caption \(3 clips are missing: "):
        prepare(recipe_from_dict(values, overrides=[f"data.root={data}"]))


# --- feature stores ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def stored(finished: Run, folder: Path, tiny_world: Path, tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """The features of the folder, of the demo and of its shifted domain, and a run on the first."""
    place = tmp_path_factory.mktemp("stored")
    weights = finished.weights("slim")
    backbone = load_backbone(finished.recipe().backbone.model, str(weights))
    data = {"folder": load_dataset("folder", folder), "demo": load_dataset("demo", tiny_world)}
    for name, dataset in data.items():
        extract(dataset, backbone, place / name, n_frames=2, workers=1)
    return SimpleNamespace(place=place, weights=weights, backbone=backbone, data=data)


def on_store(values: dict[str, Any], stored: SimpleNamespace, *overrides: str) -> Recipe:
    features = [f"data.features={stored.place / 'folder'}", f"backbone.weights={stored.weights}"]
    return recipe_from_dict(values, overrides=[*features, *overrides])


def test_features_are_never_reported_as_another_data_set(
    finished: Run, values: dict[str, Any], stored: SimpleNamespace
) -> None:
    with pytest.raises(StoreError, match="holds features of folder, not of msrvtt"):
        prepare(on_store(values, stored, "data.dataset=msrvtt"))
    with pytest.raises(StoreError, match=r"holds features of demo retrieval, not of demo-shifted"):
        evaluate_run(finished, [SourceSpec("demo-shifted", features=stored.place / "demo")], Retrieval(), device=CPU)
    with pytest.raises(StoreError, match=r"not of demo captioning"):
        open_source(SourceSpec("demo", protocol="captioning", features=stored.place / "demo"), finished.recipe())


def test_a_half_extracted_store_is_not_trained_on(
    values: dict[str, Any], stored: SimpleNamespace, tmp_path: Path
) -> None:
    half = tmp_path / "half"
    extract(stored.data["folder"], stored.backbone, half, n_frames=2, workers=1, shard=(2, 2))
    with pytest.raises(CalmError, match=r"is not complete: .* not extracted yet"):
        prepare(on_store(values, stored, f"data.features={half}"))


def test_a_run_on_features_does_not_go_on_with_others(
    values: dict[str, Any], stored: SimpleNamespace, tmp_path: Path
) -> None:
    store = shutil.copytree(stored.place / "folder", tmp_path / "store")
    recipe = on_store(values, stored, f"data.features={store}")
    with pytest.raises(Killed):
        train(recipe, tmp_path, watcher=Stop(1))
    run = Run(tmp_path / "tiny-001")
    identity = run_identity(run)
    assert identity is not None and identity.train.dtype == "float32" and identity.train.knows_files
    shutil.rmtree(store)
    extract(stored.data["folder"], stored.backbone, store, n_frames=2, workers=1, dtype="float16")
    with pytest.raises(RunFailed, match="features were extracted anew"):
        train(run.recipe_to_resume(), tmp_path, resume=run, watcher=Stop(0))
