"""Every kept thing beside every thing that it was made of, of which one is exchanged: told, refused, or made anew.

docs/trust.md has the matrix. What is exchanged has the same place, the same size where it can, and the same time.
"""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from calmctl.anchors.shipped import resolve_vocabulary
from calmctl.anchors.vocabulary import save_vocabulary
from calmctl.cli.main import app
from calmctl.data.identity import contents_of, record_split
from calmctl.data.registry import load_dataset
from calmctl.errors import CalmError
from calmctl.files import read_json, write_json
from calmctl.model.weights import load_backbone
from calmctl.recipe import recipe_from_dict
from calmctl.runs.publish import export_run
from calmctl.runs.run import Run
from calmctl.samples import Clip
from calmctl.store.store import FeatureStore
from calmctl.store.writer import record_origin
from calmctl.tensors import load_tensors, save_tensors
from calmctl.training.train import train
from calmctl.video.cache import HOW, CachedReader, FrameCache
from calmctl.video.pixels import FrameReader, FrameResize


class World:
    """A folder in which everything lies by relative names, and the commands run."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.data, self.run = folder, folder / "data", Run(folder / "runs/tiny-001")

    def command(self, *words: str) -> str:
        """The output of a command, in one line, and the sentence that it failed with."""
        result = CliRunner().invoke(app, list(words), env={"COLUMNS": "4000"})
        assert isinstance(result.exception, CalmError | SystemExit | None), result.exception
        return re.sub(r"\s+", " ", f"{result.output} {result.exception or ''}")

    def rows(self) -> list[list[str]]:
        with (self.data / "captions.csv").open(newline="") as file:
            return list(csv.reader(file))

    def write_rows(self, rows: list[list[str]]) -> None:
        with (self.data / "captions.csv").open("w", newline="") as file:
            csv.writer(file).writerows(rows)


@pytest.fixture(scope="module")
def made(
    tiny_world: Path, tiny_recipe_values: Callable[[Path], dict[str, Any]], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Data, weights, a store, a finished run with a kept evaluation, an export, and another run beside it."""
    folder = tmp_path_factory.mktemp("made")
    rows = [("video", "caption", "split")]
    (folder / "data").mkdir()
    for name, split in load_dataset("demo", tiny_world).splits.items():
        for number, clip in enumerate(split.clips[: 6 if name == "train" else 3]):
            shutil.copy(clip.path, folder / f"data/{name}{number}.mp4")
            own = [text for text, owner in zip(split.captions, split.owners, strict=True) if owner == number]
            rows += [(f"{name}{number}.mp4", text, name) for text in own]
    with (folder / "data/captions.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    values = tiny_recipe_values(Path("data"))
    shutil.copy(values["backbone"]["model"], folder / "clip.json")
    values["data"] |= {"dataset": "folder", "cache": "disk", "cache_folder": "frames"}
    values["backbone"] = {"model": "clip.json", "weights": "towers.safetensors", "freeze": True, "adapter": "linear"}
    values["anchors"]["encode"], values["head"] = "frozen", {"kind": "meanp"}
    values["optim"] |= {"epochs": 1, "batch_size": 6}
    with pytest.MonkeyPatch.context() as here:
        here.chdir(folder)
        for name, seed in (("towers", 0), ("others", 1)):
            torch.manual_seed(seed)
            save_tensors(folder / f"{name}.safetensors", load_backbone("clip.json", None).clip.state_dict(), {})
        run = train(recipe_from_dict(values), Path("runs")).run
        train(recipe_from_dict(values | {"name": "other", "seed": 7}), Path("runs"))
        world = World(folder)
        world.command(*EXTRACT)
        export_run(run, folder / "export")
    return folder


@pytest.fixture
def world(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    copy = World(Path(shutil.copytree(made, tmp_path / "made", copy_function=shutil.copy2)))
    monkeypatch.chdir(copy.folder)
    record_origin(copy.folder / "store", copy.data)  # which is the folder that it was made of, at its new place
    return copy


# What is exchanged.


def vocabulary(world: World) -> None:
    save_vocabulary(resolve_vocabulary("coco@1"), world.run.vocabulary)


def captions(world: World) -> None:
    """The first two test clips exchange their sentences."""
    rows = world.rows()
    own = {row[1]: row for row in rows if row[0] in ("test0.mp4", "test1.mp4")}.values()
    swap = {"test0.mp4": "test1.mp4", "test1.mp4": "test0.mp4"}
    assert own
    world.write_rows([[swap.get(row[0], row[0]), *row[1:]] for row in rows])


def split(world: World) -> None:
    """A training clip becomes a test clip."""
    world.write_rows([[*row[:2], "test" if row[0] == "train0.mp4" else row[2]] for row in world.rows()])


def video(world: World) -> None:
    """Another video in a test clip's place, of the same time and size: a file may have anything behind its end."""
    ours, theirs = world.data / "test0.mp4", world.data / "train1.mp4"
    before, content = os.stat(ours), theirs.read_bytes()
    size = before.st_size
    if len(content) > size:
        content, size = content, len(content)
    ours.write_bytes(content + b"\0" * (size - len(content)))
    os.utime(ours, ns=(before.st_atime_ns, before.st_mtime_ns))


def weights(world: World) -> None:
    """Other weights under the path of the run's own, and of those that it started from."""
    for ours, theirs in (("runs/tiny-001/best", "runs/other-001/best"), ("towers", "others")):
        path = world.folder / f"{ours}.safetensors"
        before = os.stat(path)
        shutil.copy(world.folder / f"{theirs}.safetensors", path)
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def recipe(world: World) -> None:
    values = read_json(world.run.recipe_file, what="recipe")
    values["head"]["kind"] = "xpool"
    write_json(world.run.recipe_file, values)


EVAL = ("eval", "runs/tiny-001", "--device", "cpu")
COMPARE = ("compare", "tiny-001", "other-001", "--device", "cpu")
EXTRACT = ("extract", "data", "--backbone", "clip.json", "--backbone-weights", "towers.safetensors", "--frames", "2",
           "--out", "store")  # fmt: skip
SEARCH = ("search", "a red circle", "--in", "data", "--run", "runs/tiny-001", "--cache", "found")
EXPORT = ("eval", "export/slim.safetensors", "--root", "data", "--device", "cpu")
FALSE = "numbers would stand under a false name"
MATRIX: dict[str, tuple[Callable[[World], None], tuple[str, ...], str]] = {
    "run, vocabulary": (vocabulary, EVAL, f"vocabulary.yaml beside it.*{FALSE}"),
    "run, captions": (captions, EVAL, "the test split has changed since .* was trained .captions differ"),
    "run, split": (split, EVAL, "1 of 4 test clips was trained on"),
    "run, video": (video, EVAL, "files of 1 clip differ"),
    "run, weights": (weights, EVAL, f"was not trained with the recipe.json beside it.*{FALSE}"),
    "run, recipe": (recipe, EVAL, f"recipe.json beside it.*{FALSE}"),
    "result, vocabulary": (vocabulary, COMPARE, "vocabulary.yaml changed since it was begun"),
    "result, captions": (captions, COMPARE, "tiny-001 is evaluated anew: .* its clips or captions are others"),
    "result, split": (split, COMPARE, "tiny-001 is evaluated anew: .* its clips or captions are others"),
    "result, video": (video, COMPARE, "tiny-001 is evaluated anew: .* files of its clips are others"),
    "result, weights": (weights, COMPARE, f"was not trained with the recipe.json beside it.*{FALSE}"),
    "result, recipe": (recipe, COMPARE, "recipe.json changed since it was begun"),
    "store, weights": (weights, EXTRACT, "holds features of .*, not of .*parameters_sha256.*cannot be mixed"),
    "index, vocabulary": (vocabulary, SEARCH, FALSE),
    "index, weights": (weights, SEARCH, FALSE),
    "index, recipe": (recipe, SEARCH, FALSE),
    "export, captions": (captions, EXPORT, "the test split has changed since .* was trained .captions differ"),
    "export, split": (split, EXPORT, "1 of 4 test clips was trained on"),
    "export, video": (video, EXPORT, "files of 1 clip differ"),
}  # fmt: skip


@pytest.mark.parametrize("cell", MATRIX)
def test_what_was_exchanged_is_told_or_refused(world: World, cell: str) -> None:
    change, command, expected = MATRIX[cell]
    change(world)
    said = world.command(*command)
    assert re.search(expected, said), said


@pytest.mark.parametrize("change", [captions, split, video])
def test_a_store_becomes_one_of_what_is_there(world: World, change: Callable[[World], None]) -> None:
    before = FeatureStore.open(world.folder / "store").record("test")
    change(world)
    said = world.command(*EXTRACT)
    record = FeatureStore.open(world.folder / "store").record("test")
    data = load_dataset("folder", world.data).splits["test"]
    now = record_split("folder", "", data, contents_of(data.clips))
    assert (record.digest, record.contents) == (now.digest, now.contents) != (before.digest, before.contents)
    # Clips are decoded again where their files are others, and nowhere else.
    assert ("0 extracted, 12 there already" in said) == (change is not video)


def test_a_search_finds_in_the_videos_that_are_there(world: World) -> None:
    """Also behind another video of the same size and time; and sentences have no part in an index of a folder."""

    def scores(cache: str) -> dict[str, float]:
        result = CliRunner().invoke(app, [*SEARCH[:-1], cache, "--json", "--top", "12", "--device", "cpu"])
        return {hit["clip"]: hit["score"] for hit in json.loads(result.stdout)["answers"][0]["hits"]}

    before = scores("found")
    captions(world)
    assert scores("found") == before
    video(world)
    after = scores("found")
    assert after == scores("fresh") and {clip for clip in after if after[clip] != before[clip]} == {"test0"}


def test_kept_frames_are_of_the_video_that_is_there(world: World) -> None:
    reader, clip = FrameReader(2, FrameResize(16)), Clip("test0", world.data / "test0.mp4")
    cached = CachedReader(FrameCache.of(world.folder / "frames", reader), reader)
    how = [HOW[int(list(cached(clip))[1][0])] for _ in range(2)]
    video(world)
    frames, told = cached(clip)
    assert [*how, HOW[int(told[0])]] == ["absent", "read", "changed"] and (frames == reader(clip)).all()


def test_nothing_is_told_where_nothing_changed(world: World) -> None:
    for command in (EVAL, EXPORT, COMPARE):
        said = world.command(*command)
        assert not re.search("changed since|anew|trained on .folder|files of|captions differ", said), said


def test_an_export_of_one_other_byte_is_refused(world: World) -> None:
    path = world.folder / "export/slim.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert "is damaged" in world.command(*EXPORT)
    load_tensors(world.run.weights("slim"), what="test")
