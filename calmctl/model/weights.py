"""Where a backbone and its weights come from: open_clip's models, our small ones, local files, the hub."""

from __future__ import annotations

import difflib
import logging
import socket
import warnings
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

import torch
from torch import Tensor

from calmctl.errors import CheckpointError
from calmctl.model.backbone import Backbone
from calmctl.model.tokens import Tokens
from calmctl.tensorfiles import load_tensors

_OWN_CONFIGS = Path(__file__).parent / "configs"
TOWERS_PREFIX = "backbone.clip."
"""What the names of the two towers' weights begin with in a checkpoint of ours."""
CLIP_CONTEXT_LENGTH = 77
_HUB_FILE = "open_clip_model.safetensors"


def load_backbone(model: str, weights: str | None) -> Backbone:
    """Build the open_clip model `model` and load `weights`.

    Args:
        model: An open_clip model name, one of ours ("demo-clip"), or a path to an open_clip config JSON.
        weights: A pretrained tag of that model ("openai"), a path to a .safetensors file, or None for
            random weights (only sensible where training starts from nothing).

    Raises:
        CheckpointError: Unknown name or tag, weights that do not fit, the wrong activation for the
            weights, a download that is not possible; each says what to do.
    """
    import open_clip
    from open_clip.transform import PreprocessCfg, image_transform_v2

    name, config = _model_config(model)
    tag = open_clip.get_pretrained_cfg(name, weights) if weights else {}
    own_activation = "quick_gelu" if config.get("quick_gelu") else "gelu"
    if tag:  # said by open_clip itself, so known before anything is fetched
        _check_activation(name, own_activation, weights, "quick_gelu" if tag.get("quick_gelu") else "gelu")
    state, activation = (None, None) if weights is None else _read_weights(name, weights, tag)
    _check_activation(name, own_activation, weights, activation)
    with warnings.catch_warnings(), redirect_stderr(StringIO()), redirect_stdout(StringIO()):
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)  # it would warn of random weights, which are loaded below
        try:
            # Architectures that would fetch their parts from a hub are told not to: weights are ours to load.
            clip = open_clip.create_model(name, pretrained=None, pretrained_text=False, load_weights=False)
            tokenizer = open_clip.get_tokenizer(name)
        except Exception as fault:
            raise CheckpointError(f"open_clip cannot build {name}: {fault}") from fault
        finally:
            logging.disable(logging.NOTSET)
    statistics = {key: tag[key] for key in ("mean", "std", "interpolation", "resize_mode") if key in tag}
    size = clip.visual.image_size
    image_size = int(size[0] if isinstance(size, (tuple, list)) else size)
    preprocessing = PreprocessCfg(**{**(config.get("preprocess_cfg") or {}), **statistics, "size": image_size})
    identity = {
        "model": name,
        "activation": own_activation,
        "weights": weights,
        "image_size": image_size,
        "dim": int(config["embed_dim"]),
        "context_length": int(clip.context_length),
    }
    backbone = Backbone(clip, tokenizer, image_transform_v2(preprocessing, is_train=False), identity)
    if state is not None:
        backbone.load_weights(state, source=str(weights))
    return backbone


def load_tokens(model: str) -> Tokens:
    """The tokenizer of a model, without its towers.

    Raises:
        CheckpointError: Unknown name, or a tokenizer that is not at hand.
    """
    import open_clip

    name, config = _model_config(model)
    try:
        tokenizer = open_clip.get_tokenizer(name)
    except Exception as fault:  # as in load_backbone
        raise CheckpointError(f"open_clip cannot build the tokenizer of {name}: {fault}") from fault
    return Tokens(tokenizer, int(config["text_cfg"].get("context_length", CLIP_CONTEXT_LENGTH)))


def _model_config(model: str) -> tuple[str, dict[str, Any]]:
    """The registered name and config of `model`, registering our own configs and a user's file on the way."""
    import open_clip

    path = Path(model)
    if path.suffix == ".json":
        if not path.is_file():
            raise CheckpointError(
                f"backbone.model: {model} does not exist; give an open_clip model name or a config file"
            )
        open_clip.add_model_config(path)
        model = path.stem
    if "demo-clip" not in open_clip.list_models():
        open_clip.add_model_config(_OWN_CONFIGS)
    known = open_clip.list_models()
    if model not in known:
        near = difflib.get_close_matches(model, known, n=3, cutoff=0.5)
        hint = f"did you mean {', '.join(near)}?" if near else "open_clip.list_models() lists the names"
        raise CheckpointError(f"backbone.model: open_clip knows no model {model!r}; {hint}")
    config: dict[str, Any] = open_clip.get_model_config(model)
    return model, config


def _read_weights(name: str, weights: str, tag: dict[str, Any]) -> tuple[dict[str, Tensor], str | None]:
    """Weights by name, and the activation they were trained with where that is known."""
    path = Path(weights)
    if tag:
        path = _from_hub(name, weights, tag)
    elif path.suffix in {".pt", ".pth", ".bin", ".ckpt", ".pkl"}:
        raise CheckpointError(
            f"backbone.weights: {weights} is a pickle, and nothing executable is ever loaded here; "
            "convert it once to .safetensors (safetensors.torch.save_file(model.state_dict(), ...))"
        )
    elif not path.is_file():
        import open_clip

        tags = ", ".join(open_clip.list_pretrained_tags_by_model(name)) or "none"
        raise CheckpointError(
            f"backbone.weights: {weights!r} is neither a file nor a pretrained tag of {name} (tags: {tags})"
        )
    state, metadata = load_tensors(path, what="backbone.weights", ours=False)
    if isinstance(metadata.get("backbone"), dict):  # a checkpoint of ours: only the towers are of interest here
        state = {
            key.removeprefix(TOWERS_PREFIX): value for key, value in state.items() if key.startswith(TOWERS_PREFIX)
        }
        activation = metadata["backbone"].get("activation")
    else:
        activation = "quick_gelu" if looks_like_openai(state) and not tag else None
    return state, activation


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


def _check_activation(name: str, own: str, weights: str | None, trained_with: str | None) -> None:
    """Refuse weights whose activation is known and is not the model's: their features would be wrong."""
    if trained_with in (None, own):
        return
    sibling = f"{name}-quickgelu" if trained_with == "quick_gelu" else name.removesuffix("-quickgelu")
    raise CheckpointError(
        f"backbone.weights: {weights} was trained with the activation {trained_with} and {name} has {own}: "
        f"features would be silently wrong; use backbone.model: {sibling}"
    )


def _from_hub(name: str, weights: str, tag: dict[str, Any]) -> Path:
    """The tag's safetensors file: from the local cache, else downloaded."""
    from huggingface_hub import hf_hub_download, try_to_load_from_cache

    repository = str(tag.get("hf_hub", "")).rpartition("/")[0]
    if not repository:
        raise CheckpointError(
            f"backbone.weights: the tag {weights!r} of {name} is published only as a pickle; "
            "download it, convert it to .safetensors and give its path"
        )
    cached = try_to_load_from_cache(repository, _HUB_FILE)
    if isinstance(cached, str):
        return Path(cached)
    try:
        _require_network()
        return Path(hf_hub_download(repository, _HUB_FILE))
    except Exception as fault:  # the hub's client raises a different class for every way of being offline
        raise CheckpointError(
            f"backbone.weights: {name} '{weights}' is not in the local cache and could not be downloaded "
            f"({type(fault).__name__}). On a machine with a network, fetch {_HUB_FILE} of {repository} "
            "(huggingface-cli download), copy it here and set backbone.weights to its path"
        ) from None


def _require_network() -> None:
    """Fail at once where the hub's name does not resolve: its client would retry for most of a minute."""
    from huggingface_hub.constants import ENDPOINT

    if not getproxies():  # a proxy resolves names itself
        socket.getaddrinfo(urlsplit(ENDPOINT).hostname, 443)
