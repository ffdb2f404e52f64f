"""Training from start to finish: prepare, loop, test, record."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypedDict

from calmctl.anchors.vocabulary import save_vocabulary
from calmctl.captioning.generate import Search
from calmctl.evaluation.captioning import CaptionEvaluation, caption_validation, evaluate_captions
from calmctl.evaluation.encoding import EncodedSplit, encode_split, stream_frames
from calmctl.evaluation.result import RetrievalResult
from calmctl.evaluation.retrieval import evaluate_encoded, validation_numbers
from calmctl.files import write_json
from calmctl.model.caption import CaptionModel
from calmctl.provenance import environment
from calmctl.recipe import Recipe
from calmctl.runs.folder import Run, create_run
from calmctl.runs.load import load_captioner, load_run
from calmctl.training.batches import CachedFrames, FeatureBatches, PairBatches
from calmctl.training.loop import Training, Watcher, run_training
from calmctl.training.prepare import Prepared, Progress, prepare
from calmctl.training.trackers import NoTracker, TensorBoardTracker


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
) -> Trained:
    """Train `recipe` into a new folder under `runs`, or go on with `resume`, and test what came out.

    Raises:
        BadInput: Before the first step, for whatever the recipe names that is not there or does not fit.
        RunFailed: During training; the message says how to resume.
    """
    prepared = prepare(recipe)
    run = resume or create_run(runs, recipe)
    with run.locked():
        if resume is None:
            save_vocabulary(prepared.vocabulary, run.vocabulary)
            write_json(run.about, {**environment(), **prepared.describe(), "seed": recipe.seed})
        source = prepared.batches(progress)
        validation = _Validation(prepared, progress)
        tracker = TensorBoardTracker(run.folder / "tensorboard") if tensorboard else NoTracker()
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
                watcher,
            ),
            resume=resume is not None,
        )
        left_out = _left_out(prepared, source, validation.encoded)
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


def _left_out(
    prepared: Prepared, source: PairBatches | FeatureBatches, validation: EncodedSplit | None
) -> dict[str, dict[str, str]]:
    """Every clip that was not used, by split: missing files, and files that turned out not to decode."""
    found = {name: {e.id: e.reason for e in entries} for name, entries in prepared.left_out().items()}
    if isinstance(source, PairBatches):
        found.setdefault("train", {}).update({e.id: e.reason for e in source.left_out.values()})
    if validation is not None:
        found.setdefault("val", {}).update({e.id: e.reason for e in validation.left_out})
    return found
