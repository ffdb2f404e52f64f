"""Training from start to finish, and what one would do and cost, found out without doing it."""

from __future__ import annotations

import shutil
import statistics
import sys
import time
from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from calmctl.anchors.vocabulary import load_vocabulary, save_vocabulary
from calmctl.captions.evaluate import CaptionEvaluation, task_of
from calmctl.errors import RunFailed
from calmctl.evaluation.result import RetrievalResult
from calmctl.evaluation.runs import keep, labels_of
from calmctl.files import write_json
from calmctl.model.calm import Batch
from calmctl.model.captioner import CaptionModel
from calmctl.parallel import SINGLE, World
from calmctl.recipe import Recipe
from calmctl.runs.identity import RunIdentity, judge, require_unchanged, run_identity
from calmctl.runs.run import IDENTITY, WEIGHTS, Run, create_run, places_below
from calmctl.runtime import environment, interruptible
from calmctl.source.base import Batches, SourceSpec
from calmctl.source.encoding import EncodedSplit
from calmctl.source.source import recipe_source
from calmctl.training.loop import Training, how_to_resume, run_training
from calmctl.training.optim import GROUPS, build_optimizer, group_of
from calmctl.training.prepare import Prepared, prepare
from calmctl.training.trackers import Tracker, open_trackers, require_trackers, trackers_of
from calmctl.words import SILENT, Progress, Watcher, counted

# The plan of a training: `train --dry-run`.


PAIRS_ON_CPU = 8
"""Pairs of a measured step where a CPU trains the towers: a whole batch would take minutes (our choice)."""


@dataclass(frozen=True, slots=True)
class StepCost:
    """What training steps took.

    Attributes:
        seconds: Of one step, the median.
        memory_bytes: The most memory that the process, or on a GPU its tensors, have had; None where no one can tell.
    """

    seconds: float
    memory_bytes: int | None
    pairs: int


def pairs_to_measure(recipe: Recipe, device: torch.device) -> int:
    """How many pairs of a batch a measured step takes."""
    pairs = recipe.optim.batch_size
    return pairs if device.type == "cuda" or recipe.frozen else min(pairs, PAIRS_ON_CPU)


def measure_steps(prepared: Prepared, batch: Batch, steps: int) -> StepCost:
    """Take training steps on one batch; the first allocates, and is not counted. The model is of no use afterwards."""
    recipe, model, device = prepared.recipe, prepared.model, prepared.device
    batch, optimizer, on_gpu = batch.to(device), build_optimizer(model, recipe.optim), device.type == "cuda"
    model.train()
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    seconds = []
    for _ in range(steps + 1):
        started = time.perf_counter()
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=recipe.optim.precision == "bf16"):
            losses = model(batch)
        optimizer.zero_grad(set_to_none=True)
        losses.total.backward()
        optimizer.step()
        if on_gpu:
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    used = torch.cuda.max_memory_allocated() if on_gpu else _peak_memory_bytes()
    return StepCost(statistics.median(seconds[1:]), used, len(batch.clips))


def _peak_memory_bytes() -> int | None:
    """The most memory this process has had; None on Windows, where Python has no way to tell."""
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # Linux counts kilobytes


def format_duration(seconds: float) -> str:
    """A length of time in words: "40 s", "12 min", "3.5 h"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def plan_training(recipe: Recipe) -> dict[str, Any]:
    """Resolve a recipe, decode one batch, take two steps on it, and say what training would do and take.

    Returns:
        "summary": facts as text, in order; "notes": on what was read of the data; "caveats": what would have to be
        said of the training's numbers; "left_out": missing clips by split; "recipe": all keys; "cost": of one measured
        step, None where no clip could be decoded.
    """
    # A plan decodes one batch only: filling a cache would be doing the work.
    lean = recipe.model_copy(update={"data": recipe.data.model_copy(update={"cache": "none"})})
    prepared = prepare(lean)
    source = prepared.batches()
    started = time.perf_counter()
    batch = next(iter(source.epoch(0, 0)), None)
    decoding_s = time.perf_counter() - started
    trainable = dict.fromkeys(GROUPS, 0)
    for name, parameter in prepared.model.named_parameters():
        if parameter.requires_grad:
            trainable[group_of(name)] += parameter.numel()
    counts = prepared.source.counts()
    keys = recipe.optim
    rates = {"backbone": keys.lr_backbone, "head": keys.lr_head, "alignment": keys.lr_alignment}
    summary = {
        "data": f"{recipe.data.dataset} {prepared.source.protocol}".strip(),
        **{
            f"  {name}": f"{counted(c['clips'], 'clip')}, {counted(c['captions'], 'caption')}, "
            f"{counted(c['left_out'], 'clip')} left out"
            for name, c in counts.items()
        },
        **{f"  {note.partition(': ')[0]} captions": note.partition(": ")[2] for note in prepared.cut_captions()},
        "backbone": recipe.backbone.model
        + _start(recipe)
        + (", frozen" if recipe.frozen else "")
        + "".join(f"; {note}" for note in prepared.model.backbone.notes),
        "head": recipe.head.kind if recipe.task == "retrieval" else _captioner(recipe, prepared),
        "alignment": f"{recipe.alignment.kind} over {prepared.vocabulary.reference}, K = {len(prepared.vocabulary)}"
        + ("" if prepared.tau is None else f", tau = {prepared.tau:.1f} (auto)"),
        "trained": ", ".join(f"{name} {count:,} at {rates[name]:g}" for name, count in trainable.items() if count),
        "steps": f"{source.steps_per_epoch} an epoch, {source.steps_per_epoch * keys.epochs} in all, "
        f"batch {keys.batch_size}",
        "one batch": "no clip decoded"
        if batch is None
        else f"frames {tuple(batch.frames.shape)} "
        f"{str(batch.frames.dtype).removeprefix('torch.')}, texts {tuple(batch.texts.shape)}",
        "device": str(prepared.device),
    }
    if recipe.data.cache == "disk" and (kept := recipe_source(recipe).keeping(prepared.model)):
        summary["frames kept"] = kept
    cost = None
    if batch is not None:
        steps = source.steps_per_epoch * keys.epochs
        cost = measure_steps(prepared, batch.first(pairs_to_measure(recipe, prepared.device)), 1)
        whole_s = cost.seconds * min(len(batch.clips), keys.batch_size) / cost.pairs
        part = "" if cost.pairs == len(batch.clips) else f" of {cost.pairs} of its {len(batch.clips)} pairs"
        summary["time"] = (
            f"about {format_duration(whole_s * steps)} for {counted(steps, 'step')}, from one measured step{part}; "
            f"reading the batch took {decoding_s:.1f} s, beside the steps where there are cores for it; validation and "
            "test not included"
        )
        if cost.memory_bytes is not None:
            summary["memory"] = f"{cost.memory_bytes / 2**30:.1f} GiB at most, in that step{part}"
    left_out = {name: {e.id: e.reason for e in entries} for name, entries in prepared.source.left_out().items()}
    left_out.setdefault("train", {}).update({e.id: e.reason for e in source.left_out.values()})
    identity = prepared.identity()
    # Without a test split the numbers that a training shows are those of validation.
    test = identity.splits.get("test") or identity.splits["val"]
    return {
        "summary": summary,
        "notes": list(prepared.source.notes),
        "caveats": list(judge(identity, test, run=None, own=True).caveats),
        "left_out": left_out,
        "recipe": recipe.model_dump(mode="json"),
        "cost": cost and asdict(cost),
    }


def _start(recipe: Recipe) -> str:
    if start := recipe.head.from_run or recipe.init_from:
        return f", of {start}"
    return f", weights {recipe.backbone.weights}" if recipe.backbone.weights else ", from nothing: random weights"


def _captioner(recipe: Recipe, prepared: Prepared) -> str:
    assert isinstance(prepared.model, CaptionModel)
    keys, tokens = recipe.caption, len(prepared.model.captioner.vocabulary)
    layers = f"{keys.encoder_layers} + {keys.decoder_layers}"
    what = "captioner"
    if keys.system == "cocap":
        what, layers = f"CoCap, {prepared.model.reader(0)}", str(keys.decoder_layers)
    if keys.system == "semsynan":
        return f"SemSynAN over CLIP features, {keys.semantics}, cells of {keys.width}, {tokens:,} tokens"
    return f"{what}, {layers} layers of {keys.width}, {tokens:,} tokens"


# Training from start to finish: prepare, loop, test, record.


@dataclass(frozen=True, slots=True)
class Trained:
    """A finished run.

    Attributes:
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
    track: Collection[str] = (),
    watcher: Watcher = SILENT,
    world: World = SINGLE,
) -> Trained:
    """Train `recipe` into a new folder under `runs`, or go on with `resume`, and test what came out.

    Of several processes (`calmctl.parallel`) the first one writes the folder and tests; the others
    return when the last step is done, without results. All of them must see the same files.

    `track` names trackers (`training.trackers.NEEDS`), which get every line of the run's log.

    Raises:
        BadInput: Before the first step, for whatever the recipe names that is not there or does not fit.
        RunFailed: During training; the message says how to resume.
    """
    if resume is None:
        recipe = places_below(recipe, runs)
    # What was tracked before goes on being tracked: resuming takes no options.
    tracked = {*track, *(trackers_of(resume) if resume else ())}
    require_trackers(tracked)
    # Everything that can be wrong is found here, before there is a folder.
    prepared = world.together(lambda: prepare(recipe))
    keeping = world.together(lambda: prepared.source.keeping(prepared.model) if world.rank == 0 else "")
    run = resume or _new_run(runs, recipe, tracked, world)
    # One process writes and so one holds the folder: a lock of each would keep the others out.
    with _locked(run, new=resume is None) if world.rank == 0 else nullcontext():
        with _removed_on_failure(run) if world.rank == 0 and resume is None else nullcontext():
            world.seed_by_rank(recipe.seed)
            tracker = open_trackers(tracked if world.rank == 0 else (), run, recipe)
            identity = _describe(run, prepared) if world.rank == 0 else None
            watcher.begin(run.folder, recipe.optim.epochs)
            for text in prepared.model.backbone.notes:
                watcher.warn(text)
            if keeping:
                watcher.stage(f"frames kept: {keeping}")
            source = prepared.batches(watcher.reading, world)
        validation = _Validation(prepared, watcher)
        with _closing(tracker):
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
                    identity,
                    watcher,
                    world,
                ),
                resume=resume is not None,
            )
        cache, kept_frames = prepared.source.cache, Counter[str]()
        for counts in world.gather_objects(dict(cache.counts) if cache else {}):
            kept_frames.update(counts)
        # The others have no part in the test, which may take longer than they would wait.
        world.leave()
        if world.rank > 0:
            return Trained(run, (), [], position.left_out)
        left_out = {name: {e.id: e.reason for e in entries} for name, entries in prepared.source.left_out().items()}
        for split, reasons in position.left_out.items():
            left_out.setdefault(split, {}).update(reasons)
        best_is_last = position.best is not None and position.best["epoch"] == position.epoch
        results = _test(prepared, run, left_out, watcher.reading, best_is_last=best_is_last)
        record = {
            "validation": position.history or [],
            "best": position.best,
            "test": [result.to_json() for result in results],
            "left_out": left_out,
            **({"kept_frames": dict(kept_frames)} if kept_frames else {}),
        }
        # Last, because it is this file that says that a run is finished.
        write_json(run.results, record)
    return Trained(run, results, position.history or [], left_out)


def _new_run(runs: Path, recipe: Recipe, tracked: Collection[str], world: World) -> Run:
    """A new folder, made by the first process."""
    created = world.together(lambda: create_run(runs, recipe, tracked).folder if world.rank == 0 else None)
    folder = world.gather_objects(created)[0]
    assert folder is not None
    return Run(folder)


@contextmanager
def _locked(run: Run, *, new: bool) -> Iterator[None]:
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


@contextmanager
def _removed_on_failure(run: Run) -> Iterator[None]:
    """Remove the folder of a new run that fails before its first step; one that is interrupted goes on from there."""
    try:
        yield
    except Exception:
        shutil.rmtree(run.folder, ignore_errors=True)
        raise


@contextmanager
def _closing(tracker: Tracker) -> Iterator[None]:
    """Close the tracker after the block, however that ends."""
    finished = False
    try:
        yield
        finished = True
    finally:
        tracker.close(finished=finished)


def _describe(run: Run, prepared: Prepared) -> RunIdentity | None:
    """Write what a run is made of, where that is not there yet: a kill may have come before it; else compare.

    Raises:
        RunFailed: A run that goes on was begun with other anchors, other data or another recipe.
    """
    if not run.vocabulary.exists():
        save_vocabulary(prepared.vocabulary, run.vocabulary)
    elif load_vocabulary(run.vocabulary) != prepared.vocabulary:
        raise RunFailed(f"{run.folder} was begun with other anchors than its recipe names now; train it anew")
    identity = prepared.identity()
    if not run.about.exists():
        about = {**environment(), **prepared.describe(), "seed": prepared.recipe.seed, IDENTITY: identity.to_json()}
        write_json(run.about, about)
        return identity
    # A run from before identities were recorded goes on, and nothing is promised of it.
    before = run_identity(run)
    if before is not None:
        require_unchanged(run, before, identity)
    return before


class _Validation:
    """Validation numbers with the current weights; frames are kept where the recipe says so."""

    # Not a function: each checkpoint asks which clips the last validation has left out.

    def __init__(self, prepared: Prepared, watcher: Watcher) -> None:
        self._prepared = prepared
        self._watcher = watcher
        self.encoded: EncodedSplit | None = None

    def __call__(self) -> dict[str, float]:
        prepared = self._prepared
        self.encoded = prepared.source.encode(prepared.model, "val", self._watcher.reading, keep=True)
        for text in prepared.source.cache.warnings() if prepared.source.cache else ():
            self._watcher.warn(text)
        return task_of(prepared.recipe).validate(prepared.model, self.encoded)


def _test(
    prepared: Prepared, run: Run, left_out: dict[str, dict[str, str]], progress: Progress, *, best_is_last: bool
) -> tuple[RetrievalResult | CaptionEvaluation, ...]:
    """The test split, once, with the best weights on validation and with the last ones."""
    source, task = prepared.source, task_of(prepared.recipe)
    if source.counts().get("test", {}).get("captions", 0) == 0:
        return ()
    record, own = source.record("test"), SourceSpec.of(prepared.recipe.data)
    results: list[RetrievalResult | CaptionEvaluation] = []
    for which in ("best", "last"):
        if best_is_last and results:
            results += [_relabelled(each, WEIGHTS[which]) for each in results]  # the same weights
            continue
        # From the file, not from memory: what is tested is what is left behind.
        prepared.model = task.load(run, which, prepared.device)
        encoded = source.encode(prepared.model, "test", progress)
        left_out["test"] = {entry.id: entry.reason for entry in encoded.left_out}
        # `finished` is said here, because the file that tells it comes after the numbers.
        labels = labels_of(run, which, own, record, scorer=task.scorer, finished=True)
        evaluation = task.evaluate(prepared.model, encoded, labels)
        keep(run, which, evaluation)  # with each query's rank: two runs can be compared as soon as they are there
        results += [evaluation] if isinstance(evaluation, CaptionEvaluation) else evaluation.results
    return tuple(results)


def _relabelled(result: RetrievalResult | CaptionEvaluation, system: str) -> RetrievalResult | CaptionEvaluation:
    if isinstance(result, CaptionEvaluation):
        return replace(result, result=replace(result.result, labels=result.result.labels.of_system(system)))
    return replace(result, labels=result.labels.of_system(system))


def _left_out(source: Batches, validation: EncodedSplit | None) -> dict[str, dict[str, str]]:
    """Every clip met so far that was not used, by split: files that turned out not to decode."""
    left_out = {"train": {entry.id: entry.reason for entry in source.left_out.values()}}
    if validation is not None:
        left_out["val"] = {entry.id: entry.reason for entry in validation.left_out}
    return left_out
