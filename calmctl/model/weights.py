"""Where a backbone and its weights come from: open_clip's models, our small ones, local files, the hub."""

from __future__ import annotations

import json
import logging
import re
import socket
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

import torch
from torch import Tensor

from calmctl.errors import CheckpointError
from calmctl.files import sha256_file
from calmctl.model.backbone import Backbone, Tokens
from calmctl.model.spec import (
    CLIP_PIXELS,
    HUB_CONFIG,
    HUB_WEIGHTS,
    SHIPPED_TAGS,
    Architecture,
    BackboneSpec,
    Pixels,
    check_backbone,
    read_architecture,
    read_pixels,
    read_spec,
    shipped_weights,
    sibling,
)
from calmctl.tensors import load_tensors, no_larger_than

TOWERS_PREFIX = "backbone.clip."
"""What the names of the two towers' weights begin with in a checkpoint of ours."""
_TRAINED_PARTS = ("head", "adapter", "captioner")
"""What else of a run works at inference, and is no part of a backbone."""


def load_backbone(model: str, weights: str | None) -> Backbone:
    """Build the open_clip model `model` and load `weights`.

    How its frames are prepared is said by the tag; for a file, by the run of ours that wrote it or by the
    `open_clip_config.json` beside it; else by the model's config file, or by all of the model's tags where they agree.

    Args:
        model: An open_clip model name, one of ours ("demo-clip"), or a path to an open_clip config JSON.
        weights: A pretrained tag of that model ("openai"; "drawn-2" of demo-clip, whose file ships), a path to a
            .safetensors file, or None for random weights (only sensible where training starts from nothing).

    Raises:
        CheckpointError: Unknown name or tag, weights that do not fit, the wrong activation for the
            weights, nothing that says how frames are prepared, a download that is not possible; each says what to do.
    """
    architecture = check_backbone(model, weights)
    tags = _tags(architecture)
    if weights is None:
        # Nothing was learned yet: any statistics are right that stay the same from now on.
        return build_backbone(architecture.spec(architecture.pixels or _agreed(tags) or CLIP_PIXELS))
    shipped, tag = shipped_weights(architecture, weights), _tag(architecture, weights)
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
        repository = _repository(architecture.name, weights, tag)
        file = _from_hub(architecture.name, weights, repository)
        revision = file.parent.name if re.fullmatch("[0-9a-f]{40}", file.parent.name) else None
        origin |= {"tag": weights, "source": repository, "revision": revision}
        state, _ = load_tensors(file, what="backbone.weights", ours=False)
    else:
        file = Path(weights)
        if not file.is_file():
            raise CheckpointError(
                f"backbone.weights: {weights!r} is neither a file nor a pretrained tag of {architecture.name} "
                f"(tags: {', '.join([*tags, *_own_tags(architecture)]) or 'none'})"
            )
        state, metadata = load_tensors(file, what="backbone.weights", ours=False)
        if isinstance(metadata.get("backbone"), dict):
            pixels = _pixels_of_ours(architecture, file, metadata)
            state, notes = _towers(file, state)
        else:
            activation = "quick_gelu" if looks_like_openai(state) else None
            _check_activation(architecture, weights, activation)
            pixels = _pixels_of_foreign(architecture, file, tags)
    spec = architecture.spec(pixels, **origin, weights_sha256=sha256_file(file))
    unfit = (
        f"{weights} does not fit {spec.model}, which is far larger than its own tensors; "
        "name the model these weights belong to"
    )
    # The config may be a stranger's, and names layers of any size beside a few bytes of tensors.
    with no_larger_than(state.values(), unfit):
        backbone = build_backbone(spec)
    backbone.load_weights(state, source=weights)
    backbone.notes = notes
    return backbone


def load_tokens(model: str) -> Tokens:
    """The tokenizer of a model, without its towers.

    Raises:
        CheckpointError: Unknown name, or a tokenizer that is not at hand.
    """
    architecture = read_architecture(model)
    spec = architecture.spec(architecture.pixels or CLIP_PIXELS)  # no tokenizer looks at pixels
    with _building(spec):
        return Tokens(_tokenizer(spec), spec.context_length)


def build_backbone(spec: BackboneSpec) -> Backbone:
    """The backbone that `spec` describes, with random weights. Raises `CheckpointError` where open_clip cannot."""
    from calmctl.model.openclip import load_timm, open_clip

    with TemporaryDirectory() as folder, _building(spec):
        # The tokenizer first: where its files are missing, that is told in no time.
        tokenizer = _tokenizer(spec)
        # By this file open_clip builds from the spec alone, whatever it knows under the model's name. Architectures
        # that would fetch their parts from a hub are told not to: weights are ours to load.
        if "timm_model_name" in spec.architecture["vision_cfg"]:
            load_timm()
        Path(folder, HUB_CONFIG).write_text(json.dumps({"model_cfg": spec.architecture}), encoding="utf-8")
        clip = open_clip.create_model(f"local-dir:{folder}", pretrained_text=False, load_weights=False)
    return Backbone(clip, tokenizer, spec)


def _tokenizer(spec: BackboneSpec) -> Any:
    """open_clip's tokenizer of a backbone."""
    from calmctl.model.openclip import open_clip

    text = spec.architecture["text_cfg"]
    keys = {"context_length": spec.context_length, **(text.get("tokenizer_kwargs") or {})}
    if spec.tokenizer is None:
        return open_clip.SimpleTokenizer(**keys)
    return open_clip.tokenizer.HFTokenizer(spec.tokenizer, tokenizer_mode=text.get("tokenizer_mode"), **keys)


@contextmanager
def _building(spec: BackboneSpec) -> Iterator[None]:
    """Nothing that open_clip prints is shown, and what it raises becomes a `CheckpointError`."""
    with warnings.catch_warnings(), redirect_stderr(StringIO()), redirect_stdout(StringIO()):
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)  # it would warn of random weights, which are loaded later
        try:
            yield
        except CheckpointError:
            raise
        except Exception as fault:
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
    tag = _tag(architecture, weights) if isinstance(weights, str) else {}
    return read_pixels(tag, where=f"the tag {weights}") if tag else CLIP_PIXELS


def _tag(architecture: Architecture, weights: str) -> dict[str, Any]:
    """What open_clip says of a pretrained tag; {} where `weights` is none."""
    from calmctl.model.openclip import open_clip

    tag: dict[str, Any] = open_clip.get_pretrained_cfg(architecture.name, weights) if architecture.published else {}
    return tag


def _tags(architecture: Architecture) -> dict[str, Pixels]:
    """How the frames of each pretrained tag of a model are prepared."""
    from calmctl.model.openclip import open_clip

    names = open_clip.list_pretrained_tags_by_model(architecture.name) if architecture.published else []
    return {name: read_pixels(_tag(architecture, name), where=f"the tag {name}") for name in names}


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


def _pixels_of_ours(architecture: Architecture, file: Path, metadata: dict[str, Any]) -> Pixels:
    """How a checkpoint of ours wants its frames; its activation must be the model's."""
    spec = read_spec(metadata, source=str(file))
    recorded = metadata["backbone"]
    _check_activation(architecture, str(file), spec.activation if spec else recorded.get("activation"))
    if spec is None:
        return _unrecorded_pixels(architecture, recorded.get("weights"))
    if spec.architecture != architecture.config:  # the number of heads, say, shows in no weight's shape
        raise CheckpointError(
            f"backbone.weights: {file} has the towers of {spec.model}, and backbone.model {architecture.name} is built "
            f"otherwise; name {spec.model}, or the config that it was trained with"
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


def looks_like_openai(state: dict[str, Tensor]) -> bool:
    """Whether bare weights carry the marks of OpenAI's CLIP release, which was trained with QuickGELU.

    A weights file does not say its activation, and the wrong one gives plausible, wrong features without a
    warning. OpenAI's weights were released in float16 with the logit scale at its clamp, ln 100: so every
    projection weight is exactly a float16 number. Our choice; weights trained elsewhere in float32 are not.
    """
    scale = state.get("logit_scale")
    marks = [state[key] for key in ("visual.proj", "text_projection") if key in state]
    if scale is None or len(marks) < 2 or abs(float(scale.exp()) - 100.0) > 0.01:
        return False
    return all(torch.equal(tensor.float(), tensor.half().float()) for tensor in marks)


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


def _repository(name: str, weights: str, tag: dict[str, Any]) -> str:
    repository = str(tag.get("hf_hub", "")).rpartition("/")[0]
    if not repository:
        raise CheckpointError(
            f"backbone.weights: the tag {weights!r} of {name} is published only as a pickle; "
            "download it, convert it to .safetensors and give its path"
        )
    return repository


def _from_hub(name: str, weights: str, repository: str) -> Path:
    """The tag's safetensors file: from the local cache, else downloaded."""
    from huggingface_hub import hf_hub_download, try_to_load_from_cache

    # Asked first: the client goes to the network even for a file that it has.
    cached = try_to_load_from_cache(repository, HUB_WEIGHTS)
    if isinstance(cached, str):
        return Path(cached)
    try:
        _require_network()
        return Path(hf_hub_download(repository, HUB_WEIGHTS))
    except Exception as fault:  # the hub's client raises a different class for every way of being offline
        raise CheckpointError(
            f"backbone.weights: {name} '{weights}' is not in the local cache and could not be downloaded "
            f"({type(fault).__name__}). On a machine with a network: hf download {repository} {HUB_WEIGHTS} "
            f"{HUB_CONFIG} --local-dir FOLDER; copy both files here, side by side, and set backbone.weights to "
            "the path of the first"
        ) from None


def _require_network() -> None:
    """Fail at once where the hub's name does not resolve: its client would retry for most of a minute."""
    from huggingface_hub.constants import ENDPOINT

    if not getproxies():  # a proxy resolves names itself
        socket.getaddrinfo(urlsplit(ENDPOINT).hostname, 443)
