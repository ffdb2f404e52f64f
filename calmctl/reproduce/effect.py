"""Does CALM's loss help? The study that asks: many small fine-tunings on the drawn world, with and without it.

Every run starts from the shipped CLIP and trains it from pixels on one domain (`recipes/demo.yaml`). Head, loss, dial
(how much of a clip a training caption names) and seed vary; everything else, and the order of batches and the head's
start of a seed, is the same with a loss and without. Runs leave numbers and no weights, and several go on at once:
the model is so small that one process leaves a GPU idle.

The test sets choose nothing. The towers' learning rate (without a loss) and then the weights of the losses are chosen
on validation, by runs of other seeds; a run's best epoch is its best on validation.
"""

from __future__ import annotations

import copy
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from calmctl.anchors.distribution import anchor_log_probabilities, fit_temperature, kl_divergence, mean_frame_feature
from calmctl.anchors.shipped import resolve_vocabulary
from calmctl.data.demo import PARTIAL, generate_demo, load_demo, planned_digest
from calmctl.data.demo_world import DemoCounts
from calmctl.errors import RunFailed
from calmctl.evaluation.metrics import rank_all
from calmctl.evaluation.retrieval import score_split
from calmctl.files import append_text, make_folder, sha256_bytes, write_atomic
from calmctl.model.backbone import Backbone
from calmctl.model.build import build_model, recipe_backbone
from calmctl.model.calm import CalmModel, alignment_diagnostics
from calmctl.model.losses import reconstruction_loss
from calmctl.recipe import Recipe, load_recipe, resolve_recipe
from calmctl.reproduce.at_once import at_once
from calmctl.reproduce.rows import FIRST_SEED
from calmctl.runs.identity import former_digest, recipe_digest
from calmctl.samples import Clip, Split
from calmctl.source.batches import CachedFrames, PairBatches, Sampling
from calmctl.source.encoding import EncodedSplit, encode_split, stream_frames
from calmctl.training.optim import build_optimizer, clamp_logit_scale, set_schedules
from calmctl.words import SILENT, Watcher

RECIPE = "demo"
BASE = "none"
TESTS = ("demo", "demo-shifted")
RATES = (2e-4, 5e-4, 1e-3)
"""Learning rates of the towers that are tried on validation, without a loss."""
WEIGHTS = (0.1, 0.3, 1.0)
"""Weights of an alignment loss that are tried there after that."""
CHOOSING_SEEDS = 3
"""Seeds of both choices, from 1,000: none of them is in the study."""
RUNS = "effect-runs.jsonl"
_FRAMES = "effect-frames.npz"


@dataclass(frozen=True, slots=True)
class Grid:
    """What is varied. `ce` has the gradient of `kl` where S_p is detached, so it takes the weight that `kl` gets."""

    heads: tuple[str, ...] = ("meanp", "xpool", "t-mass")
    losses: tuple[str, ...] = (BASE, "vae", "kl", "ce", "mse")
    dials: tuple[str, ...] = ("1.0", *PARTIAL.values())
    seeds: int = 8


SMALL = Grid(("xpool",), (BASE, "vae", "kl"), ("1.0", "0.4"), 8)
"""For two cores and an hour and a half."""


@dataclass(frozen=True, slots=True)
class Job:
    """One fine-tuning.

    Attributes:
        part: "rate" and "weight" for the choices on validation, which see no test clip, or "study".
        seed: Counted from 0.
        dial: Share of the attributes that a training caption names, as text.
        rate: `optim.lr_backbone`.
        weight: `alignment.weight`.
    """

    part: str
    head: str
    loss: str
    dial: str
    seed: int
    rate: float = 5e-4
    weight: float = 1.0

    def recipe(self, overrides: Sequence[str] = ()) -> Recipe:
        """Its recipe: recipes/demo.yaml with this job's keys, and a person's behind them."""
        protocol = next((name for name, dial in PARTIAL.items() if dial == self.dial), "retrieval")
        seed = self.seed + (FIRST_SEED if self.part == "study" else 1000)
        own = [f"seed={seed}", f"head.kind={self.head}", f"alignment.kind={self.loss}", f"data.protocol={protocol}"]
        own += [f"optim.lr_backbone={self.rate}", f"alignment.weight={self.weight}"]
        return load_recipe(resolve_recipe(RECIPE), [*own, *overrides])


@dataclass(frozen=True, slots=True)
class DrawnClips:
    """Frames and captions of the study.

    Attributes:
        digest: Of the annotations that it was drawn by, and the number of frames.
        frames: uint8 [N, F, S, S, 3] by split: "train", "val", "demo", "demo-shifted".
        splits: "train-1.0" and one more a dial's setting; "val", with every caption of a clip; and `TESTS`.
    """

    digest: str
    frames: Mapping[str, np.ndarray]
    splits: Mapping[str, Split]

    def train(self, dial: str) -> Split:
        """The training split under a setting of the dial."""
        return self.splits[f"train-{dial}"]


def find_world(folder: Path, root: Path, counts: DemoCounts, recipe: Recipe, watcher: Watcher = SILENT) -> DrawnClips:
    """The world, from `folder` where it is kept; else drawn into `root`, decoded, and kept there.

    Raises:
        CalmError: As drawing and reading do.
        RunFailed: A clip does not decode: a study on fewer clips would be another one.
    """
    digest = sha256_bytes(f"{planned_digest(0, counts)} {recipe.data.frames} frames".encode())
    path = folder / _FRAMES
    if path.is_file() and (kept := _read_world(path)).digest == digest:
        return kept
    watcher.stage("drawing the study's world, and decoding it once")
    generate_demo(root, counts=counts, progress=watcher.reading)
    backbone = recipe_backbone(recipe)
    model = build_model(recipe, resolve_vocabulary(recipe.anchors.vocabulary), backbone)
    inside, outside = load_demo(root, shifted=False), load_demo(root, shifted=True)
    wanted = {
        "train-1.0": inside.splits["train"],
        "demo": inside.splits["test"],
        "demo-shifted": outside.splits["test"],
    }
    # Every caption of a validation clip is a query there: the choice on it wants as little noise as can be had.
    wanted["val"] = load_demo(root, shifted=False, protocol="captioning").splits["val"]
    for protocol, dial in PARTIAL.items():
        wanted[f"train-{dial}"] = load_demo(root, shifted=False, protocol=protocol).splits["train"]
    frames = {}
    for name, split in (("train", wanted["train-1.0"]), *((n, wanted[n]) for n in ("val", *TESTS))):
        decoded = list(stream_frames(split, model, recipe.data, f"decoding {name} clips", watcher.reading))
        if broken := [clip.id for clip, each in zip(split.clips, decoded, strict=True) if isinstance(each, Exception)]:
            raise RunFailed(f"{root}: {broken[0]} does not decode; delete it and give the command again")
        frames[name] = np.stack([each for each in decoded if isinstance(each, np.ndarray)])
    plain = {
        name: {"ids": split.ids, "captions": split.captions, "owners": split.owners} for name, split in wanted.items()
    }
    about = np.frombuffer(json.dumps({"digest": digest, "splits": plain}).encode(), dtype=np.uint8)
    write_atomic(path, lambda handle: np.savez_compressed(handle, about=about, **frames))  # type: ignore[arg-type]
    return _read_world(path)


def _read_world(path: Path) -> DrawnClips:
    with np.load(path, allow_pickle=False) as kept:
        arrays = {name: kept[name] for name in kept.files}
    about = json.loads(arrays.pop("about").tobytes())
    splits = {
        name: Split(
            name,
            tuple(Clip(each, Path(each)) for each in split["ids"]),
            tuple(split["captions"]),
            tuple(split["owners"]),
        )
        for name, split in about["splits"].items()
    }
    return DrawnClips(about["digest"], arrays, splits)


class Bench:
    """What the runs of one process share: the world, the shipped CLIP, the tokens of the captions."""

    def __init__(self, world: DrawnClips, overrides: Sequence[str], device: torch.device) -> None:
        self.world, self.overrides, self.device = world, tuple(overrides), device
        recipe = Job("study", "meanp", BASE, "1.0", 0).recipe(overrides)
        self.backbone = recipe_backbone(recipe)
        self.vocabulary = resolve_vocabulary(recipe.anchors.vocabulary)
        self._tokens: dict[str, Tensor] = {}
        # One tau for all systems' KL(S_p || V_p), those without anchors too: bare prompts, before any training.
        model = self.model(Job("study", "meanp", BASE, "1.0", 0))
        with torch.inference_mode():
            captions = torch.split(model.backbone.tokenize(world.train("1.0").captions[::4]).to(device), 256)
            texts = torch.cat([model.encode_texts(part) for part in captions])
            cosines = anchor_log_probabilities(texts, model.prompt_features(self.vocabulary.prompts), 1.0)
        self.tau = fit_temperature(cosines, recipe.anchors.entropy)

    def model(self, job: Job) -> CalmModel:
        """A model as `training.prepare` makes it, from a copy of the shipped CLIP."""
        recipe = job.recipe(self.overrides)
        torch.manual_seed(recipe.seed)
        model = build_model(recipe, self.vocabulary, copy.deepcopy(self.backbone)).to(self.device)
        model.choose_temperature(self.world.train(job.dial).captions)
        return model

    def run(self, job: Job) -> dict[str, Any]:
        """Fine-tune and measure; a run that serves a choice meets no test clip."""
        started, recipe, model = time.perf_counter(), job.recipe(self.overrides), self.model(job)
        best, validation, start = self._train(model, recipe, job)
        model.load_state_dict(best)
        model.eval()
        numbers: dict[str, Any] = {"validation": validation, "start": start}
        if model.auto_temperature is not None:
            numbers["tau"] = float(model.auto_temperature)
        if job.part == "study":
            numbers["tests"] = {name: self.measure(model, name) for name in TESTS}
        return {
            **asdict(job),
            "recipe": recipe_digest(recipe.model_dump(mode="json")),
            "world": self.world.digest,
            "clip": self.backbone.spec.weights_sha256,
            **numbers,
            "seconds": time.perf_counter() - started,
        }

    def measure(self, model: CalmModel, test: str) -> dict[str, float]:
        """Text to video on a test set, KL(S_p || V_p) of true pairs, and what the VAE does there."""
        encoded = self._encode(model, test)
        ranks = rank_all(score_split(model, encoded), encoded.owners)["text_to_video"]
        metrics = ranks.metrics()
        with torch.inference_mode():
            prompts = model.prompt_features(self.vocabulary.prompts).cpu()
            texts = model.sentences(encoded.texts)
            log_s = anchor_log_probabilities(texts, prompts, self.tau)
            log_v = anchor_log_probabilities(mean_frame_feature(encoded.frames), prompts, self.tau)
            kl = float(kl_divergence(log_s, log_v).mean())
            inside = _diagnostics(model, encoded) if model.aligns else {}
        return {"r1": metrics.r1, "r5": metrics.r5, "mnr": metrics.mnr, "kl": kl, **inside}

    def _train(
        self, model: CalmModel, recipe: Recipe, job: Job
    ) -> tuple[dict[str, Tensor], list[dict[str, float]], dict[str, float]]:
        """The best weights on validation, the numbers of each epoch there, and the diagnostics of the first step."""
        keys = recipe.optim
        batches = PairBatches(
            self.world.train(job.dial),
            CachedFrames(list(self.world.frames["train"])),
            self._tokenizer(model.backbone),
            Sampling(keys.batch_size, recipe.seed),
        )
        optimizer, total = build_optimizer(model, keys), batches.steps_per_epoch * keys.epochs
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        best: dict[str, Tensor] = {}
        history: list[dict[str, float]] = []
        start: dict[str, float] = {}
        for epoch in range(keys.epochs):
            model.train()
            for step, batch in enumerate(batches.epoch(epoch, 0), start=epoch * batches.steps_per_epoch):
                assert batch is not None  # every clip decoded
                set_schedules(model, optimizer, recipe, step, total)
                losses = model(batch.to(self.device))
                if step == 0:
                    start = {name: value.item() for name, value in losses.diagnostics.items()}
                optimizer.zero_grad(set_to_none=True)
                losses.total.backward()
                torch.nn.utils.clip_grad_norm_(parameters, keys.clip_norm)
                optimizer.step()
                clamp_logit_scale(model)
            # Asked once an epoch and not at every step: a GPU would wait for the answer.
            if not math.isfinite(losses.total.item()):
                raise RunFailed(f"the loss of {job} is not finite")
            model.eval()
            encoded = self._encode(model, "val")
            metrics = rank_all(score_split(model, encoded), encoded.owners)["text_to_video"].metrics()
            history.append({"r1": metrics.r1, "r5": metrics.r5, "mnr": metrics.mnr})
            if metrics.r1 >= max(each["r1"] for each in history):
                best = {name: value.detach().clone() for name, value in model.state_dict().items()}
        return best, history, start

    def _encode(self, model: CalmModel, name: str) -> EncodedSplit:
        return encode_split(model, self.world.splits[name], self.world.frames[name])

    def _tokenizer(self, backbone: Backbone) -> Callable[[list[str]], Tensor]:
        """Each caption is split into tokens once a process; byte pairs take longer than a step of the GPU."""

        def tokenize(sentences: list[str]) -> Tensor:
            new = [each for each in dict.fromkeys(sentences) if each not in self._tokens]
            self._tokens |= dict(zip(new, backbone.tokens(new), strict=True)) if new else {}
            tokens = torch.stack([self._tokens[each] for each in sentences])
            return tokens[:, : int(tokens.argmax(dim=1).max()) + 1]  # as `Backbone.tokenize`

        return tokenize


def _diagnostics(model: CalmModel, encoded: EncodedSplit) -> dict[str, float]:
    """The log's diagnostics over a whole test set, the VAE's guess taken at the mean of its posterior."""
    texts, frames = encoded.texts.to(model.device), encoded.frames.to(model.device)
    log_s, log_v = model.distributions(texts, frames)
    if model.vae is None:
        numbers = alignment_diagnostics(log_s, log_v, None, None)
    else:
        posterior = model.vae.posterior(log_v)
        guess = reconstruction_loss(model.vae.decode(posterior.mean), log_s)
        numbers = alignment_diagnostics(log_s, log_v, guess, posterior)
    return {f"own_{name}": float(value) for name, value in numbers.items()}


# All of them: what is there is kept, what is missing is done, several at once.


def run_jobs(
    jobs: Sequence[Job],
    folder: Path,
    world: DrawnClips,
    *,
    overrides: Sequence[str] = (),
    device: torch.device,
    processes: int = 1,
    until: float = math.inf,
    watcher: Watcher = SILENT,
) -> dict[Job, dict[str, Any]]:
    """Do the jobs that are not done, in their order; every finished run is a line of `folder`/effect-runs.jsonl.

    Args:
        jobs: What is wanted.
        folder: Holds the lines; those of other recipes, another world or another CLIP do not count.
        world: `find_world`.
        overrides: More recipe keys of all runs.
        device: Where they run.
        processes: Runs at once; 1 works in this process.
        until: `time.monotonic()` behind which no run is begun.
        watcher: Told how many are done.

    Returns:
        The records of the jobs that are done.
    """
    make_folder(folder)
    done = _kept(jobs, folder / RUNS, world, overrides)
    todo = [job for job in jobs if job not in done]
    watcher.reading("fine-tunings", len(done), len(jobs))
    for job, record in _results(todo, folder, world, overrides, device, processes, until):
        append_text(folder / RUNS, json.dumps(record) + "\n")
        done[job] = record
        watcher.reading("fine-tunings", len(done), len(jobs))
    return done


def _results(
    todo: Sequence[Job],
    folder: Path,
    world: DrawnClips,
    overrides: Sequence[str],
    device: torch.device,
    processes: int,
    until: float,
) -> Iterator[tuple[Job, dict[str, Any]]]:
    if processes == 1 or len(todo) < 2:
        bench = Bench(world, overrides, device) if todo else None
        for job in todo:
            if bench is None or time.monotonic() > until:
                return
            yield job, bench.run(job)
        return
    yield from at_once(
        todo,
        _run,
        processes=processes,
        begin=_begin,
        arguments=(folder / _FRAMES, tuple(overrides), device),
        may_begin=lambda _: time.monotonic() < until,
    )


_bench: Bench | None = None


def _begin(frames: Path, overrides: tuple[str, ...], device: torch.device) -> None:
    global _bench
    torch.set_num_threads(1)  # one run a core is the default
    _bench = Bench(_read_world(frames), overrides, device)


def _run(job: Job) -> dict[str, Any]:
    assert _bench is not None
    return _bench.run(job)


def _kept(jobs: Sequence[Job], path: Path, world: DrawnClips, overrides: Sequence[str]) -> dict[Job, dict[str, Any]]:
    """The finished ones among `jobs`: of the same recipe on the same world from the same CLIP."""
    if not path.is_file():
        return {}
    keys = {job: job.recipe(overrides).model_dump(mode="json") for job in jobs}
    # A key that a later version adds makes no other run, and the whole study is hours.
    wanted = {job: (recipe_digest(values), former_digest(values)) for job, values in keys.items()}
    clip = recipe_backbone(jobs[0].recipe(overrides)).spec.weights_sha256 if jobs else None
    done = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            record = json.loads(line)
            job = Job(**{name: record[name] for name in Job.__slots__})
        except (ValueError, KeyError):  # the last line of a killed process
            continue
        if record.get("recipe") in wanted.get(job, ()) and (record["world"], record["clip"]) == (world.digest, clip):
            done[job] = record
    return done


def seconds_a_run(folder: Path) -> float | None:
    """How long a finished run in `folder` took, the mean; None where there is none."""
    path = folder / RUNS
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    seconds = [json.loads(line)["seconds"] for line in lines if line.endswith("}")]
    return sum(seconds) / len(seconds) if seconds else None


def zero_shot(world: DrawnClips, overrides: Sequence[str], device: torch.device) -> dict[str, dict[str, float]]:
    """The shipped CLIP on the test sets, with its frames averaged and nothing trained."""
    bench = Bench(world, overrides, device)
    model = bench.model(Job("study", "meanp", BASE, "1.0", 0)).eval()
    return {name: bench.measure(model, name) for name in TESTS}


def rate_jobs(grid: Grid) -> list[Job]:
    """The choice of the learning rate: every rate with every head, without a loss and with whole captions."""
    return [
        Job("rate", head, BASE, "1.0", seed, rate)
        for seed in range(CHOOSING_SEEDS)
        for head in grid.heads
        for rate in RATES
    ]


def choose_rate(done: Mapping[Job, Mapping[str, Any]]) -> float:
    """The rate with the highest mean R@1 on validation; the lower one of equals."""
    return max(RATES, key=lambda rate: (tried(done, rate=rate, part="rate"), -rate))


def weight_jobs(grid: Grid, rate: float) -> list[Job]:
    """The choice of weights: every weight of every loss but `ce`, on one head and with whole captions."""
    head = "xpool" if "xpool" in grid.heads else grid.heads[0]
    losses = [loss for loss in grid.losses if loss not in (BASE, "ce")]
    return [
        Job("weight", head, loss, "1.0", seed, rate, weight)
        for seed in range(CHOOSING_SEEDS)
        for loss in losses
        for weight in WEIGHTS
    ]


def choose_weights(grid: Grid, done: Mapping[Job, Mapping[str, Any]]) -> dict[str, float]:
    """The weight of each loss with the highest mean R@1 on validation; the lighter one of equals."""
    chosen = {BASE: 1.0}
    for loss in grid.losses:
        if loss not in (BASE, "ce"):
            chosen[loss] = max(WEIGHTS, key=lambda w, kind=loss: (tried(done, loss=kind, weight=w), -w))  # type: ignore[misc]
    if "ce" in grid.losses:
        chosen["ce"] = chosen.get("kl", 1.0)
    return chosen


def tried(done: Mapping[Job, Mapping[str, Any]], *, part: str = "weight", **keys: Any) -> float:
    """Mean R@1 on validation of the runs of a choice with these keys, each at its best epoch there."""
    jobs = [job for job in done if job.part == part and all(getattr(job, name) == keys[name] for name in keys)]
    return float(np.mean([max(epoch["r1"] for epoch in done[job]["validation"]) for job in jobs]))


def study_jobs(grid: Grid, rate: float, weights: Mapping[str, float]) -> list[Job]:
    """All runs of the study; seeds are the outer loop, so that a cut leaves whole seeds."""
    return [
        Job("study", head, loss, dial, seed, rate, weights[loss])
        for seed in range(grid.seeds)
        for dial in grid.dials
        for head in grid.heads
        for loss in grid.losses
    ]
