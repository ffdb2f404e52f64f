"""What a backbone is, written down once, and how a name or a config file becomes that.

The weights alone do not say how pixels and sentences must be prepared for them, and the wrong way gives plausible,
wrong features without a complaint from anybody. So a `BackboneSpec` goes wherever the weights go: into run.json, the
metadata of every checkpoint and the header of every feature store. A reload builds from it and from nothing else.

Nothing here needs torch or open_clip, whose import takes ten seconds: wrong names are told before.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from calmctl.errors import CheckpointError
from calmctl.files import read_json
from calmctl.model.published import (
    CONFIGS,
    EXTRA,
    OWN,
    Published,
    check_embedder,
    has_transformers,
    is_embedder,
    is_repository,
    tokenizer_folder,
)

if TYPE_CHECKING:
    from calmctl.video.pixels import FrameResize

HUB_CONFIG = CONFIGS[0]
"""The file in which a published model says what it is, beside its weights."""
HUB_WEIGHTS = "open_clip_model.safetensors"
_OWN_CONFIGS = Path(__file__).parent / "configs"
_PRETRAINED = Path(__file__).parent / "pretrained"
SHIPPED_TAGS = {"demo-clip": "drawn-2"}
"""The pretrained tag of a model of ours, whose weights lie in the package; 2 is the version of the demo's world."""
_MOST = 4096
"""Frames, masks and tables have such sizes, of which no weight's shape may tell (our choice; most known: 1,536)."""
_PICKLES = {".pt", ".pth", ".bin", ".ckpt", ".pkl"}

Count = Annotated[int, Field(gt=0)]
Triple = tuple[float, float, float]
Deviation = Annotated[float, Field(gt=0)]


class Pixels(BaseModel):
    """How frames become what the vision tower reads.

    Attributes:
        mean: Subtracted from each channel, of values in [0, 1].
        std: What each channel is divided by after that.
        interpolation: The filter of the resizing.
        resize: "shortest", "longest" or "squash", see `FrameResize`.
        fill: Grey value around a "longest" frame.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    mean: Triple
    std: tuple[Deviation, Deviation, Deviation]
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    resize: Literal["shortest", "longest", "squash"] = "shortest"
    fill: Annotated[int, Field(ge=0, le=255)] = 0

    def __str__(self) -> str:
        mean, std = (", ".join(f"{value:.3g}" for value in values) for values in (self.mean, self.std))
        return f"mean {mean}, std {std}, {self.interpolation}, {self.resize}"


CLIP_PIXELS = Pixels(mean=(0.48145466, 0.4578275, 0.40821073), std=(0.26862954, 0.26130258, 0.27577711))
"""OpenAI's statistics, which most models share. open_clip takes them where it knows nothing: we do not."""


class BackboneSpec(Pixels):
    """Everything that a backbone is: how to build it, how to feed it, and which weights it has.

    Attributes:
        model: Its name, of open_clip, of ours, or of a config file.
        architecture: open_clip's config of the two towers.
        activation: Of the towers.
        tokenizer: None for CLIP's byte pairs, else the name of a Hugging Face tokenizer.
        context_length: Tokens that the text tower reads, L.
        image_size: Height and width of the frames that the vision tower reads.
        dim: Width D of the joint space.
        tag: The pretrained tag that the weights came from, or None.
        weights: That tag, or the name of the weights' file without its folder; None for random weights.
        source: The hub's repository that the tag's weights came from.
        revision: The commit of that repository, where it is known.
        weights_sha256: Of the file that the weights came from.
        tokenizer_sha256: Of the files of a Hugging Face tokenizer; None for CLIP's, and before they are read.
        parameters_sha256: Of the towers' parameters as they are now (`parameters_digest`); None before it is taken.
    """

    model: str
    architecture: dict[str, Any]
    activation: Literal["gelu", "quick_gelu"]
    tokenizer: str | None
    context_length: Count
    image_size: tuple[Count, Count]
    dim: Count
    tag: str | None = None
    weights: str | None = None
    source: str | None = None
    revision: str | None = None
    weights_sha256: str | None = None
    tokenizer_sha256: str | None = None
    parameters_sha256: str | None = None

    @property
    def pixels(self) -> Pixels:
        """How it wants its frames, alone."""
        return Pixels(**self.model_dump(include=set(Pixels.model_fields)))

    @property
    def frame_resize(self) -> FrameResize:
        """The resizing half of its preprocessing, which needs no torch."""
        height, width = self.image_size
        # open_clip scales to rectangles by "shortest" with its default filter, whichever is asked for.
        skips = self.resize == "shortest" and height != width
        from calmctl.video.pixels import FrameResize  # and numpy: a wrong name is told before

        return FrameResize(
            height if height == width else (height, width),
            self.resize,
            "bicubic" if skips else self.interpolation,
            fill=self.fill,
        )

    def require_reading(self, recorded: BackboneSpec, *, source: str) -> None:
        """Raise `CheckpointError` unless this backbone reads frames and sentences as `recorded` of `source` does."""
        # Names and tags are left out: two of them may stand for one reading, and the weights have a digest of their
        # own.
        names = (*Pixels.model_fields, "activation", "tokenizer", "context_length", "image_size", "dim")
        different = [name for name in names if getattr(self, name) != getattr(recorded, name)]
        if None not in (files := (self.tokenizer_sha256, recorded.tokenizer_sha256)) and files[0] != files[1]:
            different.append("tokenizer_sha256")
        if different:
            name = different[0]
            raise CheckpointError(
                f"{source} belongs to a backbone with {name} {getattr(recorded, name)}, and that of its recipe now has "
                f"{getattr(self, name)} (different: {', '.join(different)}); bring back the weights and the config "
                "that the run began with"
            )


def read_spec(metadata: Mapping[str, Any], *, source: str) -> BackboneSpec | None:
    """The spec in a checkpoint's metadata; None where it is from before there was one.

    Raises:
        CheckpointError: It is none that can be built from.
    """
    value = metadata.get("backbone")
    if not isinstance(value, dict) or "architecture" not in value:
        return None
    try:
        spec = BackboneSpec.model_validate_json(json.dumps(value))
    except (ValidationError, ValueError) as fault:
        raise CheckpointError(f"{source} does not say what its backbone is ({_first(fault)}); take another") from None
    if spec.architecture.get("library") == "sentence-transformers":  # which builds from its own files
        return spec
    _check_architecture(source, spec.architecture)
    # A record comes from a stranger's file. What it says of pixels and sizes must follow from its architecture: a
    # record in which they disagree was edited, and would build one thing and feed it another.
    published = is_listed(spec.model, spec.architecture)
    _refuse_foreign_parts(spec.model, spec.architecture, may_fetch=published)
    Architecture(spec.model, spec.architecture, None, published).spec(spec.pixels).require_reading(spec, source=source)
    return spec


@dataclass(frozen=True, slots=True)
class Architecture:
    """What a model's name or config file says.

    Attributes:
        config: open_clip's config of the two towers.
        pixels: How it wants its frames, where the config says that.
        published: Whether open_clip knows the same config under this name, so that its tags belong to it.
    """

    name: str
    config: dict[str, Any]
    pixels: Pixels | None
    published: bool

    @property
    def activation(self) -> Literal["gelu", "quick_gelu"]:
        """Of the towers."""
        return "quick_gelu" if self.config.get("quick_gelu") else "gelu"

    def spec(self, pixels: Pixels, **weights: Any) -> BackboneSpec:
        """The backbone that this is with such frames and weights."""
        config = self.config
        size = config["vision_cfg"].get("image_size", 224)  # open_clip's defaults, here and below
        return BackboneSpec(
            **pixels.model_dump(),
            model=self.name,
            architecture=config,
            activation=self.activation,
            tokenizer=_hub_tokenizer(config),
            context_length=config["text_cfg"].get("context_length", 77),
            image_size=(size, size) if isinstance(size, int) else tuple(size),
            dim=config["embed_dim"],
            **weights,
        )


def read_architecture(model: str, *, weights: str | None = None) -> Architecture:
    """What is known of `model`: an open_clip name, one of ours ("demo-clip"), a published model, or a config file.

    A config file is open_clip's of the towers, maybe with `preprocess_cfg`, or a published `open_clip_config.json`.
    Published models are in `published.py`.

    Raises:
        CheckpointError: There is no such model or file, the file is no config, or the model has parts that cannot be
            had here. `weights` helps to suggest a name that fits them.
    """
    path = Path(model)
    place = Published.of(model)
    values: Any = None
    if place is not None:
        name, (values, path) = place.name, place.config()
    elif path.suffix == ".json":
        # Published configs all have the same file name; their folder tells them apart.
        name = path.resolve().parent.name if path.name == HUB_CONFIG else path.stem
        if not path.is_file():
            raise CheckpointError(
                f"backbone.model: {model} does not exist; give an open_clip model name or a config file"
            )
    elif model in model_names():
        name, path = model, model_names()[model]
    else:
        raise CheckpointError(f"backbone.model: open_clip knows no model {model!r}; {_suggestion(model, weights)}")
    if values is None:
        values = read_json(path, what="backbone.model", error=CheckpointError)
    config = values.get("model_cfg", values) if isinstance(values, dict) else None
    _check_architecture(str(path), config)
    assert isinstance(config, dict)
    preprocessing = values.get("preprocess_cfg")
    # The architecture is recorded and compared without it, so that a published one is recognised.
    config = {key: value for key, value in config.items() if key != "preprocess_cfg"}
    published = is_listed(name, config)
    # Who names a repository of a hub asks for what its config names; who names a file does not.
    from_hub = place is not None and place.repository is not None
    _refuse_foreign_parts(name, config, may_fetch=published or from_hub)
    if from_hub and (tokenizer := _hub_tokenizer(config)):
        tokenizer_folder(tokenizer, may_fetch=True, what=name)
    pixels = None if preprocessing is None else read_pixels(preprocessing, where=str(path))
    return Architecture(name, config, pixels, published)


def check_backbone(model: str, weights: str | None) -> None:
    """Refuse the mistakes in a backbone's two names that take no import of torch and open_clip.

    Raises:
        CheckpointError: As `read_architecture`; or weights that are a pickle, or a file that is not there.
    """
    if is_embedder(model):
        return check_embedder(model, weights)
    architecture = read_architecture(model, weights=weights)
    if weights == "openai" and Published.of(model) is not None:
        raise CheckpointError(
            f"backbone.weights: openai is no tag of {model}, which has its own weights; set backbone.weights={OWN}"
        )
    if weights == OWN and Published.of(model) is None:
        raise CheckpointError(
            f"backbone.weights: own means what lies beside a model of hf-hub: or local-dir:, and {model} is neither; "
            "give a pretrained tag or a .safetensors file"
        )
    path = Path(weights or "")
    if path.suffix in _PICKLES:
        raise CheckpointError(
            f"backbone.weights: {weights} is a pickle or a program, and nothing executable is ever loaded here. "
            f"Convert it once: calmctl weights convert {weights} --out {path.with_suffix('.safetensors').name}"
        )
    if (path.suffix == ".safetensors" or len(path.parts) > 1) and not path.is_file():
        raise CheckpointError(
            f"backbone.weights: {weights} does not exist; give a .safetensors file or a pretrained tag of "
            f"{architecture.name}"
        )


def shipped_weights(architecture: Architecture, weights: str | None) -> Path | None:
    """The file of a pretrained tag that ships with calmctl; None for other weights."""
    ours = architecture.published and SHIPPED_TAGS.get(architecture.name) == weights
    return _PRETRAINED / f"{architecture.name}.safetensors" if ours and weights else None


def read_pixels(values: Any, *, where: str) -> Pixels:
    """The `Pixels` of an open_clip tag or `preprocess_cfg`.

    Raises:
        CheckpointError: It does not say mean and std, or what it says cannot be.
    """
    if not isinstance(values, dict) or not {"mean", "std"} <= values.keys():
        raise CheckpointError(f"backbone: {where} does not say mean and std of the pixels in its preprocess_cfg")
    # open_clip also says `size` and `mode`: the size is the architecture's, and frames are always RGB.
    renamed = {"resize_mode": "resize", "fill_color": "fill"}
    known = {renamed.get(key, key): value for key, value in values.items() if value is not None}
    known = {key: value for key, value in known.items() if key in Pixels.model_fields}
    if known.get("interpolation") == "random":  # in training; open_clip evaluates such models bicubically
        known["interpolation"] = "bicubic"
    triples = {key: [known[key]] * 3 for key in ("mean", "std") if isinstance(known[key], int | float)}
    try:
        # Through JSON, because strict validation takes a list for a tuple only there.
        return Pixels.model_validate_json(json.dumps(known | triples))
    except (ValidationError, ValueError) as fault:
        raise CheckpointError(f"backbone: the preprocess_cfg of {where} cannot be used ({_first(fault)})") from None


@cache
def model_names() -> dict[str, Path]:
    """Config files by model name, ours and open_clip's, read from its folder without importing it."""
    package = find_spec("open_clip")
    places = (package.submodule_search_locations or []) if package else []
    folders = [Path(place) / "model_configs" for place in places]
    return {path.stem: path for folder in (*folders, _OWN_CONFIGS) for path in sorted(folder.glob("*.json"))}


def is_listed(name: str, config: dict[str, Any]) -> bool:
    """Whether a model of ours or of open_clip has this name and this config."""
    path = model_names().get(name)
    if path is None:
        return False
    # By content and not by name alone: a file called ViT-B-32.json may hold anything, and open_clip's tags of that name
    # belong to open_clip's towers.
    own = read_json(path, what="backbone.model", error=CheckpointError)
    own = {key: value for key, value in own.items() if key != "preprocess_cfg"}
    # At another resolution it is the same model: its weights fit, once the position embeddings are interpolated.
    return own == at_size(config, own["vision_cfg"].get("image_size"))


def at_size(config: dict[str, Any], image_size: Any) -> dict[str, Any]:
    """A config of two towers for frames of another height and width; None leaves the size to open_clip."""
    vision = {key: value for key, value in config["vision_cfg"].items() if key != "image_size"}
    return {**config, "vision_cfg": vision | ({} if image_size is None else {"image_size": image_size})}


def sibling(name: str, activation: str) -> str | None:
    """The name of the same model with another activation, where there is one."""
    # OpenAI's weights were trained with QuickGELU and fit plain ViT-B-32 without a complaint. Hence pairs of names, and
    # the care for them here and in `weights.py`.
    other = f"{name}-quickgelu" if activation == "quick_gelu" else name.removesuffix("-quickgelu")
    return other if other != name and other in model_names() else None


def _suggestion(model: str, weights: str | None) -> str:
    """Names near an unknown one that do not lead into the next error: OpenAI's weights want the QuickGELU models."""
    near = difflib.get_close_matches(model, model_names(), n=3, cutoff=0.5)
    both = [variant for name in near for variant in (name, sibling(name, "quick_gelu")) if variant]
    quick = [name for name in both if name.endswith("-quickgelu")] if weights == "openai" else []
    near = list(dict.fromkeys(quick or both))[:3]
    return f"did you mean {', '.join(near)}?" if near else "open_clip.list_models() lists the names"


def _check_architecture(where: str, config: Any) -> None:
    """Refuse what is no config of two towers, or has sizes that are none."""
    if not isinstance(config, dict) or not {"embed_dim", "vision_cfg", "text_cfg"} <= config.keys():
        raise CheckpointError(
            f"backbone.model: {where} is no open_clip config, which has embed_dim, vision_cfg and text_cfg"
        )
    vision, text = config["vision_cfg"], config["text_cfg"]
    if not isinstance(vision, dict) or not isinstance(text, dict):
        raise CheckpointError(f"backbone.model: {where} is no open_clip config: a tower is no object")
    size = vision.get("image_size", 224)
    sizes = size if isinstance(size, list) and len(size) == 2 else [size]
    numbers = {
        "embed_dim": [config["embed_dim"]],
        "vision_cfg.image_size": sizes,
        "text_cfg.context_length": [text.get("context_length", 77)],
    }
    for key, values in numbers.items():
        # Not isinstance: True is an int in Python, and would pass for a size of 1.
        if not all(type(value) is int and 0 < value <= _MOST for value in values):
            raise CheckpointError(
                f"backbone.model: {where}: {key} must be a positive whole number up to {_MOST:,}, or two for a size"
            )


def _hub_tokenizer(config: dict[str, Any]) -> str | None:
    text = config["text_cfg"]
    name = text.get("hf_tokenizer_name") or text.get("hf_model_name")
    return str(name) if name else None


def _refuse_foreign_parts(name: str, config: dict[str, Any], *, may_fetch: bool) -> None:
    """Refuse a model that would fetch its parts from somewhere, or needs a package that is not there.

    A config may name a repository of anybody's for a tower or for the tokenizer, and building it would ask there.
    """
    vision, text = config["vision_cfg"], config["text_cfg"]
    # timm takes "hf-hub:OWNER/NAME" for a name and fetches it: a colon or a slash is none of timm's own.
    trunk = vision.get("timm_model_name", "")
    if not isinstance(trunk, str) or not re.fullmatch(r"[A-Za-z0-9_.]*", trunk):
        raise CheckpointError(
            f"backbone.model: the vision tower of {name} is {trunk!r}, which lies elsewhere, and nothing is "
            "fetched for a config; name a model of timm itself"
        )
    hub = _hub_tokenizer(config)
    if hub is None:
        # Others change the tokens in ways that the record of a backbone does not tell.
        odd = sorted(set(text.get("tokenizer_kwargs") or {}) - {"clean"})
        if odd:
            raise CheckpointError(f"backbone.model: {name} wants tokenizer_kwargs that are not known here: {odd[0]}")
        return
    # Paths too: transformers would read, and run, what lies there.
    if not all(is_repository(part) for part in (hub, str(text.get("hf_model_name") or hub))):
        raise CheckpointError(f"backbone.model: the text side of {name} is {hub!r}, which is no name on a hub")
    if not may_fetch:
        tokenizer_folder(hub, may_fetch=False, what=name)
    if not has_transformers():
        parts, need = ("tokenizer and text tower", "need") if text.get("hf_model_name") else ("tokenizer", "needs")
        raise CheckpointError(
            f"backbone.model: {name} has the {parts} of {hub}, which {need} the package transformers ({EXTRA}) and "
            f"the files of that repository, which are fetched then (or: hf download {hub}); or use a model with CLIP's "
            "own tokenizer, such as ViT-B-32-quickgelu"
        )


def _first(fault: Exception) -> str:
    """The first mistake that a validation found, in words."""
    if not isinstance(fault, ValidationError):
        return str(fault)
    error = fault.errors(include_url=False)[0]
    place = ".".join(str(part) for part in error["loc"])
    return f"{place}: {error['msg']}" if place else str(error["msg"])
