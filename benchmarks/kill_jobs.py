"""The jobs that `kill.py` kills: a training, an extraction and an evaluation that tell which phase they are in."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from calmctl.data.registry import load_dataset
from calmctl.evaluation.retrieval import Retrieval
from calmctl.evaluation.runs import evaluate_run
from calmctl.model.weights import load_backbone
from calmctl.recipe import Recipe, recipe_from_dict
from calmctl.runs.run import Run, find_run
from calmctl.source.base import SourceSpec
from calmctl.store import writer as store_writer
from calmctl.store.extract import extract
from calmctl.training import loop, train
from calmctl.words import Watcher

SAVE_EVERY, EPOCHS = 2, 2
Mark = Callable[[str], None]


def tiny(world: Path, *overrides: str) -> Recipe:
    """A recipe that trains in seconds and uses everything that has a state: dropout, noise, samples of the VAE."""
    values = {
        "name": "tiny",
        "device": "cpu",
        "data": {
            "dataset": "demo",
            "root": str(world),
            "frames": 2,
            "augment": "none",
            "cache": "memory",
            "workers": 1,
        },
        "backbone": {"model": str(small_config(world)), "weights": None},
        "anchors": {"vocabulary": "shapes@1", "subset": 5},
        "head": {"kind": "t-mass"},
        "optim": {"epochs": EPOCHS, "batch_size": 10, "lr_backbone": 1e-3, "lr_head": 1e-3, "log_every": 1},
    }
    return recipe_from_dict(values, overrides=[f"optim.save_every={SAVE_EVERY}", *overrides])


def small_config(world: Path) -> Path:
    """A CLIP whose checkpoints are 20 MB: large enough to be killed in, small enough to be written often."""
    path = world / "small.json"
    tower = {"layers": 1, "width": 32}
    vision = {**tower, "image_size": 32, "patch_size": 16, "head_width": 16}
    text = {**tower, "context_length": 77, "vocab_size": 49408, "heads": 2}
    path.write_text(json.dumps({"embed_dim": 32, "vision_cfg": vision, "text_cfg": text}))
    return path


def run_training(mark: Mark, folder: Path, recipe: Recipe) -> None:
    """Begin the run in `folder`, or go on with it; marks its phases and steps."""
    phased(loop, "save_state", mark, "checkpoint", "training")
    phased(loop, "save_weights", mark, "checkpoint", "validation")
    phased(loop, "_finish_epoch", mark, "validation", "training")
    phased(train, "run_training", mark, "training", "test")

    class Steps(Watcher):
        def step(self, done: int, total: int, loss: float) -> None:
            mark(f"step {done}")

    begun = (folder / "tiny-001" / "recipe.json").exists()
    if not begun and (folder / "tiny-001").exists():
        (folder / "tiny-001").rmdir()  # killed between the folder and the recipe: empty, and nothing to resume
    run = find_run("tiny-001", folder) if begun else None
    train.train(recipe, folder, resume=run, track=() if run else ("tensorboard",), watcher=Steps())


def run_extraction(mark: Mark, folder: Path, world: Path) -> None:
    """Extract the world into `folder`, in many small shards."""
    store_writer.CLIPS_PER_SHARD, store_writer.SENTENCES_PER_SHARD = 3, 20
    phased(store_writer, "save_tensors", mark, "shard", "extraction")
    torch.manual_seed(0)
    backbone = load_backbone(str(small_config(world)), None)
    extract(
        load_dataset("demo", world),
        backbone,
        folder / "store",
        n_frames=2,
        workers=1,
        progress=lambda *step: mark("extraction"),
    )


def run_evaluation(mark: Mark, folder: Path, finished: Run) -> None:
    """Evaluate a finished run and write down the numbers."""
    mark("evaluation")
    tests = [SourceSpec.of(finished.recipe().data)]
    found = evaluate_run(
        finished, tests, Retrieval(), device=torch.device("cpu"), progress=lambda *done: mark("evaluation")
    )
    folder.mkdir(exist_ok=True)
    (folder / "numbers").write_text(json.dumps(found[0].result.to_json()))


def phased(module: Any, name: str, mark: Mark, during: str, after: str) -> None:
    """Mark the phases at the call and at the return of a function."""
    function = getattr(module, name)

    def wrapped(*arguments: Any, **keys: Any) -> Any:
        mark(during)
        value = function(*arguments, **keys)
        mark(after)
        return value

    setattr(module, name, wrapped)
