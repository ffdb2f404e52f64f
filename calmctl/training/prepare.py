"""From a recipe to everything that training needs, with every fault found before the first step."""

from __future__ import annotations

import shutil
from collections import Counter
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from calmctl.anchors.shipped import resolve_vocabulary, subset
from calmctl.anchors.vocabulary import Vocabulary
from calmctl.device import choose_device
from calmctl.errors import BadInput, DatasetError, RunFailed
from calmctl.model.backbone import fingerprint, parameters_digest
from calmctl.model.build import build_caption_model, build_model, recipe_backbone
from calmctl.model.calm import CalmModel
from calmctl.model.captioner import CaptionModel, training_vocabulary, whole_vocabulary
from calmctl.model.captioners.semsynan import SemSynModel, require_textblob
from calmctl.parallel import SINGLE, World
from calmctl.recipe import Recipe
from calmctl.runs.checkpoint import LEFT_OUT, load_captioner, load_run
from calmctl.runs.identity import RunIdentity, dataset_name, identify, require_unseen, started_from, weights_lineage
from calmctl.runs.run import RUNS, find_run
from calmctl.source.base import Batches, Source
from calmctl.source.batches import Sampling
from calmctl.source.source import recipe_source
from calmctl.words import Progress, counted


@dataclass(slots=True)
class Prepared:
    """What a recipe resolves to."""

    recipe: Recipe
    vocabulary: Vocabulary
    model: CalmModel | CaptionModel
    device: torch.device
    source: Source

    def batches(self, progress: Progress | None = None, world: World = SINGLE) -> Batches:
        """Training batches, or this process's part of each; what is kept in memory is decoded now."""
        recipe = self.recipe
        sampling = Sampling(recipe.optim.batch_size, recipe.seed, recipe.data.captions_per_clip, world)
        return self.source.batches(self.model, "train", sampling, progress)

    def identity(self) -> RunIdentity:
        """What this training is made of, before its first step: every file is looked into, a few seconds of work."""
        splits = {name: self.source.record(name) for name in self.source.splits}
        return identify(self.recipe, self.vocabulary, parameters_digest(self.model.backbone), splits)

    @property
    def trained_on(self) -> tuple[str, ...]:
        """The datasets that the weights of this training will have seen, those of what it starts from first."""
        own = dataset_name(self.source.name, self.source.protocol)
        return tuple(dict.fromkeys((*weights_lineage(started_from(self.recipe)), own)))

    @property
    def tau(self) -> float | None:
        """The tau that `anchors.temperature: auto` came to; None where the recipe says another."""
        fitted = self.model.auto_temperature
        return None if fitted is None else float(fitted)

    def describe(self) -> dict[str, Any]:
        """What a run records of its data and anchors."""
        return {
            "data": self.source.counts(),
            "notes": [*self.source.notes, *self.cut_captions()],
            "left_out": {
                name: [{"id": entry.id, "reason": entry.reason} for entry in entries]
                for name, entries in self.source.left_out().items()
            },
            # The ids and no digest of them: whoever gets the run can see that none is a test clip.
            "validation_ids": list(self.source.split("val").ids),
            "vocabulary": {
                "name": self.vocabulary.reference,
                "anchors": len(self.vocabulary),
                "digest": self.vocabulary.digest,
            },
            **({} if self.tau is None else {"temperature": {"tau": self.tau, "entropy": self.recipe.anchors.entropy}}),
            "backbone": fingerprint(self.model.backbone),
            "device": str(self.device),
            **({"concepts": list(self.model.concept_words)} if isinstance(self.model, SemSynModel) else {}),
            "parameters": sum(p.numel() for p in self.model.parameters()),
        }

    def cut_captions(self) -> list[str]:
        """Notes on captions that are not read to their end, by the text tower or by the captioner's loss."""
        notes = []
        for name in self.source.splits:
            captions = self.source.split(name).captions
            reads = self.model.scores_sentences or self.model.aligns
            if reads and (cut := self.model.backbone.tokens.cut(captions)):
                notes.append(f"{name}: {cut}")
            if isinstance(self.model, CaptionModel) and name == "train":
                captioner = self.model.captioner
                if n := captioner.vocabulary.longer(captions, captioner.max_tokens):
                    notes.append(
                        f"{name}: {n:,} of {counted(len(captions), 'caption')} {'is' if n == 1 else 'are'} longer than "
                        f"caption.max_tokens, {captioner.max_tokens}; the rest is not learned"
                    )
        return notes


def prepare(recipe: Recipe) -> Prepared:
    """Resolve data, vocabulary, device and model.

    Raises:
        CalmError: Whatever is wrong, before any time is spent: a missing dataset or split, a vocabulary, a
            backbone's weights, a feature store of another backbone.
    """
    if recipe.task == "caption" and recipe.caption.system == "semsynan":
        require_textblob()
    device = choose_device(recipe.device)
    vocabulary = recipe_vocabulary(recipe)
    source = recipe_source(recipe)
    for name in ("train", "val"):
        if why := source.absent.get(name):  # before the model is built
            raise DatasetError(why)
    first, initial = _first_stage(recipe), _initial(recipe)
    weights = started_from(recipe)  # which may be known to have seen most clips of the test split
    what = f"backbone.weights: {weights}"
    if first is not None or initial is not None:
        what = f"head.from_run: {recipe.head.from_run}" if first is not None else f"init_from: {recipe.init_from}"
    require_unseen(weights_lineage(weights), recipe.data.dataset, source.protocol, what=what)
    # Between data and model: the start of the weights must not hang on what reading the data has drawn.
    torch.manual_seed(recipe.seed)
    model = _build_on(first, recipe, vocabulary) if first is not None else _build(recipe, vocabulary, source, initial)
    # Before the splits are counted: half a store would be told as a split without captions.
    source.require_fit(model, recipe.data.frames)
    _require_splits(recipe, source)
    model.to(device).choose_temperature(source.split("train").captions)
    _compile(recipe, model, device)
    return Prepared(recipe, vocabulary, model, device, source)


def _compile(recipe: Recipe, model: CalmModel | CaptionModel, device: torch.device) -> None:
    """Compile the towers' blocks where `optim.compile` wants it; nothing is compiled before the first step.

    Raises:
        BadInput: It is wanted, and a compiler is missing here. With `auto` that is a note.
    """
    wanted = recipe.optim.compile
    if recipe.frozen or not wanted or (wanted == "auto" and device.type != "cuda"):
        return
    missing = [] if any(map(shutil.which, ("cc", "gcc", "clang", "cl"))) else ["a C compiler (gcc or clang)"]
    if device.type == "cuda" and find_spec("triton") is None:
        missing.append("the package triton")
    if not missing:
        model.backbone.compile_blocks()
        return
    lacks = f"optim.compile={str(wanted).lower()}: torch.compile needs {' and '.join(missing)}, missing here"
    if wanted is True:
        raise BadInput(f"{lacks}; install that, or set optim.compile=false")
    model.backbone.notes += (f"{lacks}; steps are not compiled, and slower",)


def _build(
    recipe: Recipe, vocabulary: Vocabulary, source: Source, initial: CalmModel | CaptionModel | None
) -> CalmModel | CaptionModel:
    if initial is not None:
        return _build_from(initial, recipe, vocabulary)
    if recipe.task == "retrieval":
        return build_model(recipe, vocabulary)
    backbone = recipe_backbone(recipe)
    tokens = whole_vocabulary(backbone)
    if recipe.caption.vocabulary == "train":
        # Without such a split there are none, which is refused soon.
        captions = source.split("train").captions if "train" in source.splits else ()
        tokens = training_vocabulary(backbone, captions)
    model = build_caption_model(recipe, vocabulary, tokens, backbone)
    if isinstance(model, SemSynModel) and "train" in source.splits:
        train = source.split("train")  # and no other: what is tested must not be among the concepts by itself
        model.learn_from(train.captions, train.owners)
    return model


# A run that goes on under another recipe: its towers, adapter and head are the start, anchors and VAE begin anew.


def _initial(recipe: Recipe) -> CalmModel | CaptionModel | None:
    """The model of `init_from`; None where a recipe starts from its backbone.

    Raises:
        CalmError: There is no such run, or it is of another task, of other towers, or of an adapter that the recipe
            has not.
    """
    if recipe.init_from is None:
        return None
    run = find_run(recipe.init_from, RUNS)
    theirs = run.recipe()
    towers = f"to start from its towers alone set backbone.weights={run.trained_weights('best')} and no init_from"
    if theirs.task != recipe.task:
        raise BadInput(f"init_from: {run.name} was trained for {theirs.task}, not for {recipe.task}; {towers}")
    keys = {
        "backbone.model": (Path(recipe.backbone.model).name, Path(theirs.backbone.model).name),
        **({"head.kind": (recipe.head.kind, theirs.head.kind)} if recipe.task == "retrieval" else {}),
    }
    if theirs.backbone.adapter != "none":  # without it its features would be others; a new one is the identity at first
        keys["backbone.adapter"] = (recipe.backbone.adapter, theirs.backbone.adapter)
    if other := [f"{key}={value}" for key, (own, value) in keys.items() if own != value]:
        raise BadInput(f"init_from: {run.name} was trained with {' '.join(other)}; set that, or {towers}")
    load = load_captioner if recipe.task == "caption" else load_run
    return load(run, "best", torch.device("cpu"))


def _build_from(initial: CalmModel | CaptionModel, recipe: Recipe, vocabulary: Vocabulary) -> CalmModel | CaptionModel:
    """The model of a recipe around the towers of another, with the weights of its adapter and head.

    Raises:
        BadInput: The recipe's head or captioner has other shapes.
    """
    backbone = initial.backbone
    backbone.requires_grad_(True)  # frozen ones, too: whether they are now, this recipe says
    model: CalmModel | CaptionModel
    if isinstance(initial, CaptionModel):
        model = build_caption_model(recipe, vocabulary, initial.captioner.token_ids, backbone)
        ours, theirs = model.captioner, initial.captioner.state_dict()
    else:
        model = build_model(recipe, vocabulary, backbone)
        ours, theirs = model.head, initial.head.state_dict()
    # What serves training alone is in no slim export, and begins anew from there.
    own = {name: each for name, each in ours.state_dict().items() if not f"head.{name}".startswith(LEFT_OUT)}
    theirs = {name: each for name, each in theirs.items() if name in ours.state_dict()}
    if wrong := sorted(name for name, each in own.items() if name not in theirs or theirs[name].shape != each.shape):
        raise BadInput(
            f"init_from: {recipe.init_from} has another head or captioner than this recipe: "
            f"{counted(len(wrong), 'weight')} missing or of another shape (first: {wrong[0]}); set its keys, "
            "data.frames among them, as 'calmctl runs show' shows them"
        )
    ours.load_state_dict({**ours.state_dict(), **theirs})
    if model.adapter is not None and initial.adapter is not None:
        model.adapter.load_state_dict(initial.adapter.state_dict())
    return model


# The second stage of a run: its towers, adapter and head are taken over as they are, and a head around it trains.


_SECOND_STAGE = (
    "kind",
    "init",
    "from_run",
    "base",
    "base_alignment",
    "diffusion_steps",
    "sample_steps",
    "candidates",
    "samples",
    "gen_temperature",
    "rerank_weight",
    "rerank_temperature",
)
"""Keys of the head that are the second stage's own, or without meaning where weights are taken over."""


def _first_stage(recipe: Recipe) -> CalmModel | None:
    """The model of `head.from_run`; None where a recipe starts from its backbone.

    Raises:
        CalmError: There is no such run, it is not finished, or it was trained with other keys than the recipe has.
    """
    if recipe.head.from_run is None:
        return None
    run = find_run(recipe.head.from_run, RUNS)
    if run.log.exists() and not run.results.exists():
        raise RunFailed(
            f"head.from_run: {run.folder} is not finished, and its best epoch may still be another; "
            f"finish it first: calmctl train --resume {run.folder}"
        )
    theirs, head = run.recipe(), recipe.head
    if theirs.task == "retrieval" and theirs.head.kind == "diffusionret":
        raise BadInput(f"head.from_run: {run.folder} is a second stage itself; name the first: {theirs.head.from_run}")
    keys = {
        "head.base": (head.base, theirs.head.kind),
        "head.base_alignment": (head.base_alignment, theirs.alignment.kind),
        "data.frames": (recipe.data.frames, theirs.data.frames),
        "backbone.model": (Path(recipe.backbone.model).name, Path(theirs.backbone.model).name),
        "backbone.image_size": (recipe.backbone.image_size, theirs.backbone.image_size),
        "backbone.adapter": (recipe.backbone.adapter, theirs.backbone.adapter),
    }
    for name in type(head).model_fields:
        if name not in _SECOND_STAGE:
            keys[f"head.{name}"] = (getattr(head, name), getattr(theirs.head, name))
    if theirs.head.kind == "t-mass":  # whose noise is drawn from it
        keys["seed"] = (recipe.seed, theirs.seed)
    if other := [f"{key}={'null' if value is None else value}" for key, (own, value) in keys.items() if own != value]:
        raise BadInput(
            f"head.from_run: a second stage keeps what its first was, and {run.folder} was trained with "
            f"{' '.join(other)}; set that, or name another run"
        )
    return load_run(run, "slim", torch.device("cpu"))


def _build_on(first: CalmModel, recipe: Recipe, vocabulary: Vocabulary) -> CalmModel:
    """A second stage, freshly initialised, around the towers, the adapter and the head of its first."""
    model = build_model(recipe, vocabulary, first.backbone)
    model.head.base.load_state_dict(first.head.state_dict())
    if model.adapter is not None and first.adapter is not None:
        model.adapter.load_state_dict(first.adapter.state_dict())
        model.adapter.requires_grad_(False)
    return model


def recipe_vocabulary(recipe: Recipe) -> Vocabulary:
    """The anchors of a recipe, cut to its subset."""
    vocabulary = resolve_vocabulary(recipe.anchors.vocabulary)
    if recipe.anchors.subset is None:
        return vocabulary
    return subset(vocabulary, recipe.anchors.subset, recipe.anchors.subset_seed)


def _require_splits(recipe: Recipe, source: Source) -> None:
    counts, left_out = source.counts(), source.left_out()
    for name in ("train", "val"):
        if counts.get(name, {}).get("captions", 0) == 0:
            raise DatasetError(
                f"{recipe.data.dataset}: the {name} split has no clip with a caption; "
                "check data.root, data.videos and data.val_clips"
            )
    if "test" in counts and counts["test"]["captions"] == 0:
        reasons, gone = Counter(entry.reason for entry in left_out["test"]), counts["test"]["left_out"]
        absent = f"{counted(gone, 'clip')} {'is' if gone == 1 else 'are'} missing"
        why = f" ({absent}: {reasons.most_common(1)[0][0]})" if reasons else ""
        raise DatasetError(
            f"{recipe.data.dataset}: the test split has no clip with a caption{why}, so the training would end without "
            "a number; bring its clips, or leave the test split out of the annotations"
        )
    missing = {name: entries for name, entries in left_out.items() if entries}
    if source.unread:
        # A place that cannot be read may hold clips, so it counts as clips that are missing.
        missing["what could not be read"] = list(source.unread)
    if recipe.data.require_complete and missing:
        name, entries = next(iter(missing.items()))
        total = sum(len(entries) for entries in missing.values())
        raise DatasetError(
            f"{recipe.data.dataset}: {counted(total, 'clip')} {'is' if total == 1 else 'are'} missing "
            f"(first: {entries[0].id} of {name}: "
            f"{entries[0].reason}); data.require_complete=true makes this an error"
        )
