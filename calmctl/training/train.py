"""Training from start to finish: prepare, loop, test, record."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypedDict

from calmctl.anchors.vocabulary import load_vocabulary, save_vocabulary
from calmctl.captioning.generate import Search
from calmctl.errors import RunFailed
from calmctl.evaluation.captioning import CaptionEvaluation, caption_validation, evaluate_captions
from calmctl.evaluation.encoding import EncodedSplit, encode_split, stream_frames
from calmctl.evaluation.result import RetrievalResult
from calmctl.evaluation.retrieval import evaluate_encoded, validation_numbers
from calmctl.files import write_json
from calmctl.interruption import interruptible
from calmctl.model.caption import CaptionModel
from calmctl.provenance import environment
from calmctl.recipe import Recipe
from calmctl.runs.folder import Run, create_run
from calmctl.runs.load import load_captioner, load_run
from calmctl.training.batches import FeatureBatches, PairBatches, Share
from calmctl.training.frames import CachedFrames
from calmctl.training.job import Training, Watcher
from calmctl.training.loop import how_to_resume, run_training
from calmctl.training.prepare import prepare
from calmctl.training.prepared import Prepared, Progress
from calmctl.training.trackers import NoTracker, TensorBoardTracker
from calmctl.training.world import SINGLE, World, part_random, together


@dataclass(frozen=True, slots=True)
class Trained:
    """A finished run.

    Attributes:
        run: Its folder.
        results: Test numbers of the best epoch on validation and of the last one; empty without a test split.
        validation: Validation numbers of every epoch.
        left_out: Clips that could not be used, by split, with reasons.
    """

    run: Run
    results: tuple[RetrievalResult | CaptionEvaluation, ...]
    validation: list[dict[str, float]]
    left_out: dict[str, dict[str, str]]


def train(
    recipe: Recipe,
    runs: Path,
    *,
    resume: Run | None = None,
    tensorboard: bool = False,
    watcher: Watcher | None = None,
    progress: Progress | None = None,
    world: World = SINGLE,
) -> Trained:
    """Train `recipe` into a new folder under `runs`, or go on with `resume`, and test what came out.

    Of several processes (`calmctl.training.distributed`) the first one writes the folder and tests; the others
    return when the last step is done, without results. All of them must see the same files.

    Raises:
        BadInput: Before the first step, for whatever the recipe names that is not there or does not fit.
        RunFailed: During training; the message says how to resume.
    """
    prepared = together(world, lambda: prepare(recipe))
    run = resume or _new_run(runs, recipe, world)
    part_random(world, recipe.seed)
    with _held(run, new=resume is None) if world.rank == 0 else nullcontext():
        # What was tracked before goes on being tracked: resuming takes no options.
        tracked = world.rank == 0 and (tensorboard or run.tensorboard.is_dir())
        tracker = TensorBoardTracker(run.tensorboard) if tracked else NoTracker()
        if world.rank == 0:
            _describe(run, prepared)
            if watcher:
                watcher.begin(run, recipe.optim.epochs)
        if watcher:
            for text in prepared.model.backbone.notes:
                watcher.warn(text)
        source = prepared.batches(progress, Share(world.rank, world.size))
        validation = _Validation(prepared, progress)
        position = run_training(
            Training(
                recipe,
                prepared.model,
                source,
                validation,
                run,
                prepared.trained_on,
                prepared.device,
                tracker,
                lambda: _left_out(source, validation.encoded),
                watcher,
                world,
            ),
            resume=resume is not None,
        )
        world.leave()
        if world.rank > 0:
            return Trained(run, (), [], position.left_out)
        left_out = {name: {e.id: e.reason for e in entries} for name, entries in prepared.left_out().items()}
        for split, reasons in position.left_out.items():
            left_out.setdefault(split, {}).update(reasons)
        best_is_last = position.best is not None and position.best["epoch"] == position.epoch
        results = _test(prepared, run, left_out, progress, best_is_last=best_is_last)
        record = {
            "validation": position.history or [],
            "best": position.best,
            "test": [result.to_json() for result in results],
            "left_out": left_out,
        }
        write_json(run.results, record)
    return Trained(run, results, position.history or [], left_out)


def _new_run(runs: Path, recipe: Recipe, world: World) -> Run:
    """A new folder, made by the first process."""
    made = together(world, lambda: create_run(runs, recipe).folder if world.rank == 0 else None)
    folder = world.everyone(made)[0]
    assert folder is not None
    return Run(folder)


@contextmanager
def _held(run: Run, *, new: bool) -> Iterator[None]:
    """The run for this process alone; what interrupts the block says how to go on."""
    with ExitStack() as stack:
        try:
            stack.enter_context(run.locked())
        except RunFailed:
            if new:  # nothing was begun in it
                shutil.rmtree(run.folder, ignore_errors=True)
            raise
        stack.enter_context(interruptible(how_to_resume(run)))
        yield


def _describe(run: Run, prepared: Prepared) -> None:
    """Write what a run is made of, where that is not there yet: a kill may have come before it."""
    if not run.vocabulary.exists():
        save_vocabulary(prepared.vocabulary, run.vocabulary)
    elif load_vocabulary(run.vocabulary) != prepared.vocabulary:
        raise RunFailed(f"{run.folder} was begun with other anchors than its recipe names now; train it anew")
    if not run.about.exists():
        write_json(run.about, {**environment(), **prepared.describe(), "seed": prepared.recipe.seed})


class _Validation:
    """Validation numbers with the current weights; frames are kept in memory where the recipe says so."""

    def __init__(self, prepared: Prepared, progress: Progress | None) -> None:
        self._prepared = prepared
        self._progress = progress
        self._cache: CachedFrames | None = None
        self.encoded: EncodedSplit | None = None

    def __call__(self) -> dict[str, float]:
        prepared = self._prepared
        if prepared.store is not None or prepared.recipe.data.cache == "none":
            self.encoded = prepared.encoded("val", self._progress)
        else:
            assert prepared.dataset is not None
            split = prepared.dataset.splits["val"]
            if self._cache is None:
                frames = stream_frames(split, prepared.model, prepared.recipe.data)
                frozen = prepared.recipe.frozen
                self._cache = CachedFrames(list(prepared.frozen_features(frames) if frozen else frames))
            self.encoded = encode_split(prepared.model, split, self._cache.frames, prepared.device)
        if isinstance(prepared.model, CaptionModel):
            return caption_validation(prepared.model, self.encoded, prepared.recipe.caption)
        return validation_numbers(prepared.model, self.encoded, prepared.device)


def _test(
    prepared: Prepared,
    run: Run,
    left_out: dict[str, dict[str, str]],
    progress: Progress | None,
    *,
    best_is_last: bool,
) -> tuple[RetrievalResult | CaptionEvaluation, ...]:
    """The test split, once, with the best weights on validation and with the last ones."""
    if prepared.counts().get("test", {}).get("captions", 0) == 0:
        return ()
    results: list[RetrievalResult | CaptionEvaluation] = []
    for which, system in (("best", "best on validation"), ("last", "last epoch")):
        if best_is_last and results:
            results.append(_relabelled(results[0], system))  # the same weights
            continue
        load = load_captioner if prepared.recipe.task == "caption" else load_run
        prepared.model = load(run, which, prepared.device)
        encoded = prepared.encoded("test", progress)
        left_out["test"] = {entry.id: entry.reason for entry in encoded.left_out}
        labels: _Labels = {
            "dataset": prepared.recipe.data.dataset,
            "protocol": prepared.protocol,
            "trained_on": prepared.recipe.data.dataset,
            "trained_protocol": prepared.protocol,
            "system": system,
        }
        if isinstance(prepared.model, CaptionModel):
            search = Search.of(prepared.recipe.caption)
            results.append(evaluate_captions(prepared.model, encoded, search, **labels))
        else:
            results.append(evaluate_encoded(prepared.model, encoded, prepared.device, **labels).result)
    return tuple(results)


def _relabelled(result: RetrievalResult | CaptionEvaluation, system: str) -> RetrievalResult | CaptionEvaluation:
    if isinstance(result, CaptionEvaluation):
        return replace(result, result=replace(result.result, system=system))
    return replace(result, system=system)


class _Labels(TypedDict):
    dataset: str
    protocol: str
    trained_on: str
    trained_protocol: str
    system: str


def _left_out(source: PairBatches | FeatureBatches, validation: EncodedSplit | None) -> dict[str, dict[str, str]]:
    """Every clip met so far that was not used, by split: files that turned out not to decode."""
    found: dict[str, dict[str, str]] = {}
    if isinstance(source, PairBatches):
        found["train"] = {e.id: e.reason for e in source.left_out.values()}
    if validation is not None:
        found["val"] = {e.id: e.reason for e in validation.left_out}
    return found
