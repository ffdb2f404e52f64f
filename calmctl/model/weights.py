"""Where a backbone and its weights come from: open_clip's models, our small ones, local files, the hub."""

from __future__ import annotations

import json
import logging
import math
import warnings
from collections.abc import Collection, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from copy import copy
from dataclasses import replace
from functools import lru_cache
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from calmctl.errors import MACHINE_ERRORS, CheckpointError, RunFailed
from calmctl.files import read_json, sha256_file
from calmctl.hub import cached, fetch, revision_of
from calmctl.model.backbone import Backbone, Tokens
from calmctl.model.convert import in_open_clips_names, looks_like_openai
from calmctl.model.embedder import BYTES, Bytes, load_embedder
from calmctl.model.published import OWN, Published, is_embedder, recommended, tokenizer_digest, tokenizer_folder
from calmctl.model.spec import (
    CLIP_PIXELS,
    HUB_CONFIG,
    HUB_WEIGHTS,
    SHIPPED_TAGS,
    Architecture,
    BackboneSpec,
    Pixels,
    at_size,
    check_backbone,
    is_listed,
    model_names,
    read_architecture,
    read_pixels,
    read_spec,
    shipped_weights,
    sibling,
)
from calmctl.tensors import load_tensors

TOWERS_PREFIX = "backbone.clip."
"""What the names of the two towers' weights begin with in a checkpoint of ours."""
_TRAINED_PARTS = ("head", "adapter", "captioner")
"""What else of a run works at inference, and is no part of a backbone."""


def load_backbone(model: str, weights: str | None, *, image_size: int | None = None) -> Backbone:
    """Build the open_clip model `model` and load `weights`.

    How its frames are prepared is said by the tag; for a file, by the run of ours that wrote it or by the
    `open_clip_config.json` beside it; else by the model's config file, or by all of the model's tags where they agree.

    Args:
        model: An open_clip model name, one of ours ("demo-clip"), a path to an open_clip config JSON, or a published
            model: "hf-hub:OWNER/NAME", "local-dir:FOLDER", "sentence-transformers:NAME" (`published.py`).
        weights: A pretrained tag of that model ("openai"; "drawn-2" of demo-clip, whose file ships), a path to a
            .safetensors file, "own" for those of a published model, or None for random weights (only sensible where
            training starts from nothing).
        image_size: Height and width of the frames where they are not the model's: its position embeddings are
            interpolated.

    Raises:
        CheckpointError: Unknown name or tag, weights that do not fit, the wrong activation for the
            weights, nothing that says how frames are prepared, a download that is not possible; each says what to do.
    """
    if is_embedder(model):
        if image_size is not None:
            raise CheckpointError(f"backbone.image_size: {model} has a processor of its own; leave it at null")
        return load_embedder(model, weights)
    check_backbone(model, weights)
    architecture = read_architecture(model)
    tags = _tags(architecture)
    sized = architecture
    if image_size is not None:
        _check_patches(architecture, image_size)
        sized = replace(architecture, config=at_size(architecture.config, image_size))
    if weights is None:
        # Nothing was learned yet: any statistics are right that stay the same from now on.
        return build_backbone(sized.spec(architecture.pixels or _agreed(tags) or CLIP_PIXELS))
    shipped, tag = shipped_weights(architecture, weights), tag_of(architecture, weights)
    notes: tuple[str, ...] = ()
    origin: dict[str, str | None] = {"weights": Path(weights).name}
    if shipped:
        pixels, file = architecture.pixels or CLIP_PIXELS, shipped
        origin |= {"tag": weights, "source": "calmctl"}
        state, _ = load_tensors(file, what="backbone.weights")
    elif tag:
        pixels, file = read_pixels(tag, where=f"the tag {weights}"), Path()
        # Said by open_clip itself, so known before anything is fetched.
        _check_activation(architecture, weights, "quick_gelu" if tag.get("quick_gelu") else "gelu")
        repository, file = fetch_tag(architecture.name, weights, tag)
        origin |= {"tag": weights, "source": repository, "revision": revision_of(file)}
        state, _ = load_tensors(file, what="backbone.weights", ours=False)
    else:
        place = Published.of(model) if weights == OWN else None
        file = place.weights() if place else Path(weights)
        if place:
            origin |= {"weights": file.name, "source": place.repository, "revision": revision_of(file)}
        if not file.is_file():
            raise _no_tag(architecture, weights)
        state, metadata = load_tensors(file, what="backbone.weights", ours=False)
        if isinstance(metadata.get("backbone"), dict):
            pixels = _pixels_of_ours(architecture, file, metadata, resized=image_size is not None)
            state, notes = _towers(file, state)
        else:
            state = in_open_clips_names(state)
            activation = "quick_gelu" if looks_like_openai(state) else None
            _check_activation(architecture, weights, activation)
            own_pixels = architecture.pixels if place else None  # by its own config
            pixels = own_pixels or _pixels_of_foreign(architecture, file, tags)
    spec = sized.spec(pixels, **origin, weights_sha256=sha256_file(file))
    unfit = (
        f"{weights} does not fit {spec.model}, which is far larger than its own tensors; "
        "name the model these weights belong to"
    )
    # The config may be a stranger's, and names layers of any size beside a few bytes of tensors.
    with BuildLimit(state.values(), unfit):
        backbone = build_backbone(spec)
    state = _as_written_now(state, backbone)
    if image_size is not None:
        _interpolate_positions(state, backbone)
    backbone.load_weights(state, source=str(file) if weights == OWN else weights)
    backbone.notes = notes
    return backbone


def load_tokens(model: str) -> Tokens:
    """The tokenizer of a model, without its towers.

    Raises:
        CheckpointError: Unknown name, or a tokenizer that is not at hand.
    """
    if is_embedder(model):
        check_backbone(model, OWN)
        return Tokens(Bytes(), BYTES)
    architecture = read_architecture(model)
    spec = architecture.spec(architecture.pixels or CLIP_PIXELS)  # no tokenizer looks at pixels
    with _building(spec):
        return Tokens(_tokenizer(spec)[0], spec.context_length)


def rebuild(spec: BackboneSpec, model: str) -> Backbone:
    """The backbone of a checkpoint, from what is recorded of it: `spec`, and the recipe's name of it.

    Two towers have random weights, which the checkpoint replaces. An embedder's are not in the checkpoint: it is
    loaded, and must be the one that is recorded.

    Raises:
        CheckpointError: It cannot be built, or is another one.
    """
    if not is_embedder(spec.model):
        return build_backbone(spec)
    return load_embedder(model if is_embedder(model) else spec.model, recorded=spec)


def build_backbone(spec: BackboneSpec) -> Backbone:
    """The backbone that `spec` describes, with random weights. Raises `CheckpointError` where open_clip cannot."""
    from calmctl.model.openclip import load_timm, open_clip

    with TemporaryDirectory(ignore_cleanup_errors=True) as folder, _building(spec):
        # The tokenizer first: where its files are missing, that is told in no time.
        tokenizer, files = _tokenizer(spec)
        config = spec.architecture
        if "timm_model_name" in config["vision_cfg"]:
            load_timm()
        if config["text_cfg"].get("hf_model_name"):
            config = {**config, "text_cfg": {**config["text_cfg"], "hf_model_name": str(_text_tower(spec))}}
        # By this file open_clip builds from the spec alone, whatever it knows under the model's name. Architectures
        # that would fetch their parts from a hub are told not to: weights are ours to load.
        Path(folder, HUB_CONFIG).write_text(json.dumps({"model_cfg": config}), encoding="utf-8")
        clip = open_clip.create_model(f"local-dir:{folder}", pretrained_text=False, load_weights=False)
        _resize_trunk(clip, spec)
    return Backbone(clip, tokenizer, spec.model_copy(update={"tokenizer_sha256": files}))


def _check_patches(architecture: Architecture, image_size: int) -> None:
    """Raise `CheckpointError` where frames of that size are no whole number of patches: an edge would not be seen."""
    vision = architecture.config["vision_cfg"]
    patch = vision.get("patch_size")
    if isinstance(patch, int) and image_size % patch and image_size != vision.get("image_size"):
        fewer = image_size // patch * patch
        raise CheckpointError(
            f"backbone.image_size: {architecture.name} sees patches of {patch} x {patch}, and {image_size} is no "
            f"multiple of {patch}; take {f'{fewer} or ' if fewer else ''}{fewer + patch}"
        )


def _resize_trunk(clip: Any, spec: BackboneSpec) -> None:
    """Give a tower of timm's the frames' size: open_clip builds it for that of its name."""
    trunk = getattr(clip.visual, "trunk", None)
    known = model_names().get(spec.model)
    if trunk is None or known is None or not is_listed(spec.model, spec.architecture):
        return
    native = read_json(known, what="backbone.model", error=CheckpointError)["vision_cfg"].get("image_size")
    if spec.architecture["vision_cfg"].get("image_size") != native:
        if not hasattr(trunk, "set_input_size"):
            raise CheckpointError(
                f"backbone.image_size: the vision tower of {spec.model} is no transformer whose position embeddings "
                "could be interpolated; leave it at null"
            )
        trunk.set_input_size(img_size=spec.image_size)
        clip.visual.image_size = spec.image_size


def _as_written_now(state: dict[str, Tensor], backbone: Backbone) -> dict[str, Tensor]:
    """Weights as today's libraries write them."""
    # A buffer that transformers once saved and has no more.
    state = {name: value for name, value in state.items() if not name.endswith("embeddings.position_ids")}
    own = backbone.clip.state_dict()
    for scalar in ("logit_scale", "logit_bias"):  # some are written as lists of one number
        if scalar in state and scalar in own and state[scalar].numel() == own[scalar].numel():
            state[scalar] = state[scalar].reshape(own[scalar].shape)
    return state


def _interpolate_positions(state: dict[str, Tensor], backbone: Backbone) -> None:
    """Fit the image tower's position embeddings in `state` to the size of its frames.

    Only where that was asked for: weights of another resolution are otherwise those of another model.
    """
    from calmctl.model.openclip import open_clip

    own = backbone.clip.state_dict()
    # Half-precision files, OpenAI's among them: torch interpolates no halves on a CPU.
    if (plane := "visual.positional_embedding") in state:
        state[plane] = state[plane].float()
    name = "visual.trunk.pos_embed"
    if name in state and name in own and state[name].shape != own[name].shape:
        from timm.layers import resample_abs_pos_embed  # type: ignore[attr-defined]

        trunk = backbone.clip.visual.trunk
        state[name] = resample_abs_pos_embed(
            state[name], list(trunk.patch_embed.grid_size), num_prefix_tokens=trunk.num_prefix_tokens
        )
    open_clip.model.resize_pos_embed(state, backbone.clip)


def _tokenizer(spec: BackboneSpec) -> tuple[Any, str | None]:
    """open_clip's tokenizer of a backbone, and the digest of its files."""
    from calmctl.model.openclip import open_clip

    text = spec.architecture["text_cfg"]
    keys = {"context_length": spec.context_length, **(text.get("tokenizer_kwargs") or {})}
    if spec.tokenizer is None:
        # A copy, because a backbone changes how it cleans (`Tokens`); the merges, which take the time, stay shared.
        return copy(_clip_tokenizer(json.dumps(keys, sort_keys=True))), None
    folder = _files_of(spec, spec.tokenizer)
    digest = tokenizer_digest(folder)
    if spec.tokenizer_sha256 not in (None, digest):
        raise CheckpointError(
            f"backbone.model: the tokenizer of {spec.tokenizer} in {folder} is not the one that {spec.model} was used "
            "with (its SHA-256 differs), so sentences would become other tokens; bring back its files"
        )
    keys |= {"trust_remote_code": False, "local_files_only": True}  # or it asks the terminal whether to run code
    return open_clip.tokenizer.HFTokenizer(str(folder), tokenizer_mode=text.get("tokenizer_mode"), **keys), digest


@lru_cache(maxsize=4)
def _clip_tokenizer(keys: str) -> Any:
    from calmctl.model.openclip import open_clip

    return open_clip.SimpleTokenizer(**json.loads(keys))


def _text_tower(spec: BackboneSpec) -> Path:
    """The folder with the config of a text tower of transformers."""
    name = spec.architecture["text_cfg"]["hf_model_name"]
    folder = _files_of(spec, name)
    if not (folder / "config.json").is_file():
        raise CheckpointError(f"backbone.model: {name} has no config.json in {folder}; bring it: hf download {name}")
    if "auto_map" in read_json(folder / "config.json", what="backbone.model", error=CheckpointError):
        raise CheckpointError(f"backbone.model: {name} brings code of its own, and nothing of that is run here")
    return folder


def _files_of(spec: BackboneSpec, repository: str) -> Path:
    # A record of a stranger's model is no reason to ask anybody: what was used with it once is in the cache.
    return tokenizer_folder(repository, may_fetch=is_listed(spec.model, spec.architecture), what=spec.model)


@contextmanager
def _building(spec: BackboneSpec) -> Iterator[None]:
    """Nothing that open_clip prints is shown, and what it raises is a `CheckpointError`; of a disk, `RunFailed`."""
    with warnings.catch_warnings(), redirect_stderr(StringIO()), redirect_stdout(StringIO()):
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)  # it would warn of random weights, which are loaded later
        try:
            yield
        except CheckpointError:
            raise
        except Exception as fault:
            if isinstance(fault, OSError) and fault.errno in MACHINE_ERRORS:
                raise RunFailed(f"cannot build {spec.model}: {fault.strerror}: {fault.filename}") from fault
            files = f"; it needs the files of {spec.tokenizer} in the local cache" if spec.tokenizer else ""
            raise CheckpointError(f"open_clip cannot build {spec.model}: {fault}{files}") from fault
        finally:
            logging.disable(logging.NOTSET)


def build_unrecorded(model: str, weights: str | None) -> Backbone:
    """The backbone of a run from before runs recorded theirs, with random weights.

    Training then took a tag's statistics, and CLIP's for everything else, a file of another model included. The run
    is read with those, because its towers or its head learned with them.
    """
    architecture = read_architecture(model)
    spec = architecture.spec(_unrecorded_pixels(architecture, weights), weights=Path(weights).name if weights else None)
    return build_backbone(spec)


def _unrecorded_pixels(architecture: Architecture, weights: object) -> Pixels:
    tag = tag_of(architecture, weights) if isinstance(weights, str) else {}
    return read_pixels(tag, where=f"the tag {weights}") if tag else CLIP_PIXELS


def _no_tag(architecture: Architecture, weights: str) -> CheckpointError:
    return CheckpointError(
        f"backbone.weights: {weights!r} is neither a file nor a pretrained tag of {architecture.name} "
        f"(tags: {', '.join([*_tags(architecture), *_own_tags(architecture)]) or 'none'})"
    )


def tag_of(architecture: Architecture, weights: str) -> dict[str, Any]:
    """What open_clip says of a pretrained tag; {} where `weights` is none."""
    from calmctl.model.openclip import open_clip

    return open_clip.get_pretrained_cfg(architecture.name, weights) if architecture.published else {}


def _tags(architecture: Architecture) -> dict[str, Pixels]:
    """How the frames of each pretrained tag of a model are prepared."""
    from calmctl.model.openclip import open_clip

    names = open_clip.list_pretrained_tags_by_model(architecture.name) if architecture.published else []
    return {name: read_pixels(tag_of(architecture, name), where=f"the tag {name}") for name in names}


def _own_tags(architecture: Architecture) -> list[str]:
    """The tags whose weights ship with calmctl."""
    tag = SHIPPED_TAGS.get(architecture.name)
    return [tag] if tag and shipped_weights(architecture, tag) else []


def _agreed(tags: dict[str, Pixels]) -> Pixels | None:
    """What all tags of a model say, where they say the same."""
    # 58 of open_clip's 196 tags do not have CLIP's statistics: where the tags of a model differ, a guess would be wrong
    # for some of them.
    first = next(iter(tags.values()), None)
    return first if all(pixels == first for pixels in tags.values()) else None


def _pixels_of_ours(architecture: Architecture, file: Path, metadata: dict[str, Any], *, resized: bool) -> Pixels:
    """How a checkpoint of ours wants its frames; its activation must be the model's."""
    spec = read_spec(metadata, source=str(file))
    recorded = metadata["backbone"]
    _check_activation(architecture, str(file), spec.activation if spec else recorded.get("activation"))
    if spec is None:
        return _unrecorded_pixels(architecture, recorded.get("weights"))
    if spec.architecture != at_size(
        architecture.config, spec.architecture["vision_cfg"].get("image_size")
    ):  # the number of heads, say, shows in no weight's shape
        raise CheckpointError(
            f"backbone.weights: {file} has the towers of {spec.model}, and backbone.model {architecture.name} is built "
            f"otherwise; name {spec.model}, or the config that it was trained with"
        )
    if spec.architecture != architecture.config and not resized:
        raise CheckpointError(
            f"backbone.weights: {file} was trained with frames of {spec.image_size[0]} x {spec.image_size[1]}; set "
            f"backbone.image_size={spec.image_size[0]}"
        )
    return spec.pixels


def _pixels_of_foreign(architecture: Architecture, file: Path, tags: dict[str, Pixels]) -> Pixels:
    """How a weights file that calmctl did not write wants its frames; raises `CheckpointError` if nothing says so."""
    beside = file.with_name(HUB_CONFIG)
    if beside.is_file():
        theirs = read_architecture(str(beside))
        if theirs.pixels is not None:
            _check_activation(architecture, str(file), theirs.activation)
            own, other = architecture.spec(theirs.pixels), theirs.spec(theirs.pixels)
            if (own.image_size, own.dim, own.tokenizer) != (other.image_size, other.dim, other.tokenizer):
                raise CheckpointError(
                    f"backbone.weights: {beside} is of another model than {architecture.name}, so it does not say how "
                    f"the pixels for {file.name} are prepared; set backbone.model to {beside}, or remove that file"
                )
            return theirs.pixels
    pixels = architecture.pixels or _agreed(tags)
    if pixels is not None:
        return pixels
    ways: dict[str, list[str]] = {}
    for name, wanted in tags.items():
        ways.setdefault(str(wanted), []).append(name)
    choices = "; ".join(f"{way} ({', '.join(names)})" for way, names in ways.items())
    raise CheckpointError(
        f"backbone.weights: nothing says how the pixels for {file} are prepared, and the wrong way gives wrong "
        f"features. Put the {HUB_CONFIG} that was published with it beside it"
        + (f", or name a tag instead of a file. The tags of {architecture.name} differ: {choices}" if choices else "")
        + ("" if architecture.published else ", or write preprocess_cfg (mean, std) into the model's config file")
    )


def _towers(file: Path, state: dict[str, Tensor]) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """The two towers of a checkpoint of ours, and what a person must know of the rest."""
    towers = {key.removeprefix(TOWERS_PREFIX): value for key, value in state.items() if key.startswith(TOWERS_PREFIX)}
    if not towers:
        raise CheckpointError(
            f"backbone.weights: {file} holds no backbone; give best, last or slim.safetensors of a run"
        )
    others = {key.partition(".")[0] for key in state}
    left = [part for part in _TRAINED_PARTS if part in others]
    note = (
        f"{file} is a run: its two towers are taken, its trained {' and '.join(left)} left out (--run uses all of it)"
    )
    return towers, (note,) if left else ()


def _check_activation(architecture: Architecture, weights: str, trained_with: object) -> None:
    """Refuse weights whose activation is known and is not the model's: their features would be wrong."""
    if trained_with in (None, architecture.activation):
        return
    other = sibling(architecture.name, str(trained_with))
    way = f"use backbone.model: {other}" if other else "no model of that activation is known here: take other weights"
    raise CheckpointError(
        f"backbone.weights: {weights} was trained with the activation {trained_with} and {architecture.name} has "
        f"{architecture.activation}: features would be silently wrong; {way}"
    )


def known_tag(architecture: Architecture, weights: str) -> dict[str, Any]:
    """What open_clip says of a pretrained tag. Raises `CheckpointError` where `weights` is none of the model's."""
    tag = tag_of(architecture, weights)
    if not tag:
        raise _no_tag(architecture, weights)
    return tag


def repository_of(name: str, weights: str, tag: dict[str, Any]) -> str:
    """The hub's repository of a tag. Raises `CheckpointError` where it is published as a pickle only."""
    repository = str(tag.get("hf_hub", "")).rpartition("/")[0]
    if not repository:
        raise CheckpointError(
            f"backbone.weights: the tag {weights!r} of {name} is published only as a pickle; "
            "download it, convert it (calmctl weights convert FILE) and give its path"
        )
    return repository


def cached_tag(name: str, weights: str, repository: str) -> Path | None:
    """The weights of a tag in the local cache, None where they are not; nobody is asked."""
    known = recommended(name, weights)
    at_known = cached(repository, HUB_WEIGHTS, revision=known.revision) if known else None
    return cached(repository, HUB_WEIGHTS) or at_known


def fetch_tag(name: str, weights: str, tag: dict[str, Any]) -> tuple[str, Path]:
    """The repository and the weights of a tag: from the local cache, else downloaded at the commit that is known.

    Raises:
        CheckpointError: It is published as a pickle only.
        HubError: It cannot be had, or is another file than is known.
    """
    repository, known = repository_of(name, weights, tag), recommended(name, weights)
    what = f"backbone.weights: {name} '{weights}'"
    file = cached_tag(name, weights, repository)
    if file is None and known is not None:
        file = fetch(repository, HUB_WEIGHTS, revision=known.revision, sha256=known.sha256, what=what)
    return repository, file or fetch(repository, HUB_WEIGHTS, what=what)


# Models are built from what a file says of itself, and filled from its tensors afterwards. A stranger's file may say
# anything: a layer of 65,536 x 65,536, a billion layers. So building may take little more than the tensors do.

_TIMES = 3
"""Of the tensors' bytes (our choice): all models tried take 1.0 times, and float16 files become float32."""
_SPARE_BYTES = 1 << 26
_TENSORS_EACH = 8


class BuildLimit(TorchFunctionMode):
    """A block in which nothing is built that is much larger than `tensors`.

    A tensor that would go beyond that is not allocated: `CheckpointError` with `fault` is raised instead.
    """

    # Of torch's two kinds of modes the one that sees calls from Python: the other loads the whole compiler when it
    # is entered, five seconds before every run that is opened, and modules are built by calls from Python. It is asked
    # at every call. Others in the place of torch's eight functions would be asked less, and would stay behind: timm and
    # transformers are imported in such a block, and torch keeps tables of its functions by identity.
    _FACTORIES = frozenset(
        {torch.empty, torch.zeros, torch.ones, torch.full, torch.rand, torch.randn, torch.eye, torch.arange}
    )

    def __init__(self, tensors: Collection[Tensor], fault: str) -> None:
        super().__init__()
        self._fault = fault
        self._bytes = _TIMES * sum(tensor.nbytes for tensor in tensors) + _SPARE_BYTES
        self._tensors = _TENSORS_EACH * (len(tensors) + 32)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in self._FACTORIES and kwargs.get("out") is None:
            self._spend(_planned(func, args, kwargs))
        return func(*args, **kwargs)

    def _spend(self, planned: Tensor) -> None:
        self._bytes -= planned.nbytes
        self._tensors -= 1
        if self._bytes < 0 or self._tensors < 0:
            raise CheckpointError(self._fault)


def _planned(func: Any, args: Any, kwargs: Any) -> Tensor:
    """A tensor without memory, as large as the one that a factory would make."""
    # Always by `empty`: `randn`, `eye` and `arange` without memory load torch's tools for compilers, in seconds.
    plain = {name: value for name, value in kwargs.items() if name in ("size", "dtype", "layout")}
    if func is torch.eye:
        rows = args[0] if args else kwargs["n"]
        args = rows, args[1] if len(args) > 1 else kwargs.get("m") or rows
    elif func is torch.arange:
        bounds = [*args, *(kwargs[name] for name in ("start", "end", "step") if name in kwargs)]
        start, end, step = (0, *bounds, 1)[:3] if len(bounds) == 1 else (*bounds, 1)[:3]
        args = (max(0, math.ceil((end - start) / step)),)
        if all(type(bound) is int for bound in bounds):
            plain.setdefault("dtype", torch.int64)
    elif func is torch.full:
        args = args[:1]
    return torch.empty(*args, **{**plain, "device": torch.device("meta")})
