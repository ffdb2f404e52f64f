"""Models as they are published: a folder or a repository of a hub with its files, tokenizers, and what is recommended.

    hf-hub:OWNER/NAME[@REVISION]      a repository; its weights are `backbone.weights: own`
    local-dir:FOLDER                  a folder with the same files

Either has open_clip's own `open_clip_config.json`, or is a CLIP in the naming of transformers (`config.json`).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from calmctl.errors import CheckpointError
from calmctl.files import read_json, sha256_file
from calmctl.hub import cached, fetch, is_absent, is_offline, list_files, note_absent
from calmctl.recipe.schema import PUBLISHED, is_published

OWN = "own"
"""The value of `backbone.weights` for the weights that lie beside a published model's config."""
HUB, FOLDER, EMBEDDER, CLIP_EMBEDDER = PUBLISHED
"""The last two, of `model/embedder.py`, give one vector a frame and one vector a clip."""
CONFIGS = ("open_clip_config.json", "config.json")
WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.safetensors", "model.safetensors")
_PREPROCESSING = ("preprocessor_config.json", "processor_config.json")
_PICKLES = ("open_clip_pytorch_model.bin", "pytorch_model.bin", "model.pt")


def usual_weights(model: str) -> str:
    """What `backbone.weights` is where nobody says it: a published model's own, else OpenAI's."""
    return OWN if is_published(model) else "openai"


@dataclass(frozen=True, slots=True)
class Recommended:
    """A backbone that is recommended, and what is known of its weights.

    Attributes:
        model: open_clip's name.
        weights: Its tag.
        revision: The commit that is fetched.
        sha256: Of the weights' file there; None where it is known to nobody here.
        parameters: Numbers in both towers, scale and bias; four bytes each.
        image_size: Height and width of the frames.
        dim: Width D of the joint space.
        needs: The extra that it needs.
        remark: Why one takes it.
    """

    model: str
    weights: str
    repository: str
    revision: str
    sha256: str | None
    parameters: int
    image_size: int
    dim: int
    needs: str | None
    remark: str


# Counts are those of the towers as they are built here (docs/backbones.md has the line that counts). Commits and
# digests are as others have published them: this table was written where no hub can be reached, so they count as
# "published" and not as verified. Whoever downloads verifies them: a file with another digest is refused.
RECOMMENDED = (
    Recommended(
        "ViT-B-32-quickgelu", "openai", "timm/vit_base_patch32_clip_224.openai",
        "a6f597a30f7b82c51704746581f9a4e41421e878",
        "e6d1bd7789aa45192b3bf90570a789b478bae1b74ebcce7eddd908e83a2b7c31",
        151_277_313, 224, 512, None, "the papers' backbone, and the default",
    ),
    Recommended(
        "ViT-B-16-quickgelu", "openai", "timm/vit_base_patch16_clip_224.openai",
        "977e3dd0ec55ab8da155f2fbeb6b5f54948b6e3d",
        "4b8699299b1e8997753c64b052ba32031449d5d853f55a039148560ee02b820f",
        149_620_737, 224, 512, None, "four times as many patches: the papers' second",
    ),
    Recommended(
        "ViT-L-14-quickgelu", "openai", "timm/vit_large_patch14_clip_224.openai",
        "18d0535469bb561bf468d76c1d73aa35156c922b",
        "9ce2e8a8ebfff3793d7d375ad6d3c35cb9aebf3de7ace0fc7308accab7cd207e",
        427_616_513, 224, 768, None, "OpenAI's largest at this frame",
    ),
    Recommended(
        "ViT-B-16-SigLIP2", "webli", "timm/ViT-B-16-SigLIP2",
        "eee10eff6dd8cabae2d7f379d4e8cfcd352030aa",
        "d0a51069d2fa6c95b371b3bffd2a2c765c1815004798ee99f075290dbca73041",
        375_187_970, 224, 768, "hf", "sigmoid-trained, many languages",
    ),
    Recommended(
        "PE-Core-B-16", "meta", "timm/PE-Core-B-16",
        "0038414f37721c5eafc1a5e0da802d291c909de3",
        None,
        447_660_545, 224, 1024, None, "trained on images, then on videos",
    ),
    Recommended(
        "MobileCLIP2-S0", "dfndr2b", "timm/MobileCLIP2-S0-OpenCLIP",
        "095906d28bf54d7584dc411e8ffe448f34289e05",
        "ab91a1a0c4330d6b1913e24d5035dfdea15423316aaec649610c6b1c6ddd0e95",
        74_835_073, 256, 512, None, "small and quick; its licence is for research only",
    ),
)  # fmt: skip


def recommended(model: str, weights: str) -> Recommended | None:
    """What is known of a tag that is recommended; None for others."""
    return next((each for each in RECOMMENDED if (each.model, each.weights) == (model, weights)), None)


@dataclass(frozen=True, slots=True)
class Published:
    """A folder of a hub or of this machine with the files of a model.

    Attributes:
        name: What records call it: no folder's path, so that it is the same on every machine.
        folder: Where it is on this machine; None for a repository.
        repository: OWNER/NAME; None for a folder.
    """

    name: str
    folder: Path | None = None
    repository: str | None = None
    revision: str | None = None

    @staticmethod
    def of(model: str) -> Published | None:
        """What `backbone.model` names; None where that is no published model but a name or a file."""
        if model.startswith(HUB):
            repository, _, revision = model.removeprefix(HUB).partition("@")
            return Published(f"{HUB}{repository}", None, repository, revision or None)
        if model.startswith(FOLDER):
            folder = Path(model.removeprefix(FOLDER)).expanduser()
            if not folder.is_dir():
                raise CheckpointError(f"backbone.model: {folder} is no folder; give one that holds {CONFIGS[0]}")
            return Published(folder.resolve().name, folder)
        return None

    def file(self, *names: str) -> Path | None:
        """The first of these files that there is, fetched where it lies on a hub; None where there is none.

        Raises:
            HubError: The hub cannot be asked.
        """
        if self.folder is not None:
            return next((self.folder / name for name in names if (self.folder / name).is_file()), None)
        assert self.repository is not None
        at = {"revision": self.revision}
        # A later name counts where the earlier ones are known not to be there: another program may have brought it.
        for name in names:
            if path := cached(self.repository, name, **at):
                return path
            if not is_absent(self.repository, name, **at) and not is_offline():
                break
        what = f"backbone.model: {self.name}"
        listing = list_files(self.repository, **at, what=what)
        there = next((name for name in names if name in listing.names), None)
        for name in names[: None if there is None else names.index(there)]:
            note_absent(self.repository, name, listing.revision)
        # At the revision as it was asked for, and not its commit: so the cache knows the branch by name, offline too.
        return None if there is None else fetch(self.repository, there, **at, what=what)

    def config(self) -> tuple[dict[str, Any], Path]:
        """Its config in open_clip's form, `model_cfg` and `preprocess_cfg`, and the file that it was read from.

        Raises:
            CheckpointError: There is none, or it is of another kind of model.
        """
        path = self.file(*CONFIGS)
        if path is None:
            raise CheckpointError(f"backbone.model: {self.name} has neither {' nor '.join(CONFIGS)}; is it a CLIP?")
        values = read_json(path, what="backbone.model", error=CheckpointError)
        if path.name == CONFIGS[0]:
            return values, path
        pixels = self.file(*_PREPROCESSING)
        preprocessing = read_json(pixels, what="backbone.model", error=CheckpointError) if pixels else {}
        preprocessing = preprocessing.get("image_processor", preprocessing) if isinstance(preprocessing, dict) else {}
        return clip_of_transformers(values, preprocessing, where=str(path)), path

    def weights(self) -> Path:
        """Its weights. Raises `CheckpointError` where there are none that can be read."""
        path = self.file(*WEIGHTS)
        if path is not None:
            return path
        pickle = "a pickle" if self.repository or self.file(*_PICKLES) is None else self.file(*_PICKLES)
        raise CheckpointError(
            f"backbone.weights: {self.name} has none of {', '.join(WEIGHTS)}; where it has {pickle}, convert that "
            "once: calmctl weights convert FILE --out model.safetensors"
        )


def is_embedder(model: str) -> bool:
    """Whether `backbone.model` names a model of sentence-transformers (`model/embedder.py`)."""
    return model.startswith((EMBEDDER, CLIP_EMBEDDER))


def check_embedder(model: str, weights: str | None) -> None:
    """Refuse such a model where its package is missing, and weights that are not its own; needs no torch.

    Raises:
        CheckpointError: With what to do.
    """
    if weights != OWN:
        raise CheckpointError(
            f"backbone.weights: {model} comes with its weights; set backbone.weights={OWN} instead of "
            f"{weights or 'null'}"
        )
    if find_spec("sentence_transformers") is None:
        raise CheckpointError(f"backbone.model: {model} needs the package sentence-transformers ({EXTRA})")


# CLIP as transformers writes it down.


def clip_of_transformers(config: Any, preprocessing: Any, *, where: str) -> dict[str, Any]:
    """open_clip's config of a CLIP whose `config.json` and `preprocessor_config.json` transformers wrote.

    Raises:
        CheckpointError: It is another kind of model, or one with parts that open_clip's CLIP does not have.
    """
    kind = config.get("model_type") if isinstance(config, dict) else None
    if kind != "clip":
        way = (
            "name open_clip's own, such as ViT-B-16-SigLIP2, or read it with "
            if kind in ("siglip", "siglip2")
            else "read it with "
        )
        raise CheckpointError(
            f"backbone.model: {where} is of the kind {kind!r} and not a CLIP; {way}sentence-transformers:NAME"
        )
    try:
        vision, text = _tower(config, "vision_config"), _tower(config, "text_config")
        activations = {vision["hidden_act"], text["hidden_act"]}
        if {vision["layer_norm_eps"], text["layer_norm_eps"]} != {1e-5}:
            raise CheckpointError(f"backbone.model: {where} has a layer_norm_eps that open_clip's CLIP does not have")
        if len(activations) > 1 or not activations <= {"quick_gelu", "gelu"}:
            raise CheckpointError(f"backbone.model: {where} has the activations {', '.join(sorted(activations))}")
        # The library's own defaults, which it leaves out when it writes: those of CLIP ViT-B/32.
        return {
            "model_cfg": {
                "embed_dim": config.get("projection_dim", 512),
                "quick_gelu": activations == {"quick_gelu"},
                "vision_cfg": {
                    "image_size": vision["image_size"],
                    "layers": vision["num_hidden_layers"],
                    "width": vision["hidden_size"],
                    "head_width": vision["hidden_size"] // vision["num_attention_heads"],
                    "patch_size": vision["patch_size"],
                    "mlp_ratio": vision["intermediate_size"] / vision["hidden_size"],
                },
                "text_cfg": {
                    "context_length": text["max_position_embeddings"],
                    "vocab_size": text["vocab_size"],
                    "width": text["hidden_size"],
                    "heads": text["num_attention_heads"],
                    "layers": text["num_hidden_layers"],
                    "mlp_ratio": text["intermediate_size"] / text["hidden_size"],
                },
            },
            "preprocess_cfg": _preprocessing(preprocessing),
        }
    except (KeyError, TypeError, ZeroDivisionError, AttributeError) as fault:
        raise CheckpointError(f"backbone.model: {where} is no config of a CLIP that can be read ({fault!r})") from None


_USUAL: dict[str, dict[str, Any]] = {
    "vision_config": {
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "image_size": 224,
        "patch_size": 32,
        "hidden_act": "quick_gelu",
        "layer_norm_eps": 1e-5,
    },
    "text_config": {
        "vocab_size": 49408,
        "hidden_size": 512,
        "intermediate_size": 2048,
        "num_hidden_layers": 12,
        "num_attention_heads": 8,
        "max_position_embeddings": 77,
        "hidden_act": "quick_gelu",
        "layer_norm_eps": 1e-5,
    },
}


def _tower(config: Mapping[str, Any], name: str) -> dict[str, Any]:
    return _USUAL[name] | (config.get(f"{name}_dict") or {}) | (config.get(name) or {})


def _preprocessing(values: Mapping[str, Any]) -> dict[str, Any] | None:
    """`preprocess_cfg` of a `preprocessor_config.json`; None where it does not say mean and std."""
    if "image_mean" not in values or "image_std" not in values:
        return None
    # Pillow's numbers of its filters. Without a crop the processor squashes.
    filters = {2: "bilinear", 3: "bicubic"}
    return {
        "mean": values["image_mean"],
        "std": values["image_std"],
        "interpolation": filters.get(values.get("resample", 3), "bicubic"),
        "resize_mode": "shortest" if values.get("do_center_crop", True) else "squash",
    }


# Tokenizers and text towers of transformers: their files, never their code.

EXTRA = "pip install 'calmctl[hf]'"
_ONE_FILE = "tokenizer.json"
_VOCABULARIES = ("sentencepiece.bpe.model", "spiece.model", "tokenizer.model", "vocab.txt", "vocab.json", "merges.txt")
_BESIDE = ("config.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")


def has_transformers() -> bool:
    """Whether the extra is installed."""
    return find_spec("transformers") is not None


def tokenizer_folder(repository: str, *, may_fetch: bool, what: str) -> Path:
    """The folder of the cache with the files of a tokenizer, and with the config of a text tower.

    Args:
        repository: Whose tokenizer, by its name on the hub.
        may_fetch: Whether the hub may be asked. A config of a stranger only gets what is here already.
        what: Who wants it.

    Raises:
        CheckpointError: It is not here and must not, or cannot, be fetched.
    """
    for name in (_ONE_FILE, *_VOCABULARIES):
        path = cached(repository, name)
        if path is not None and (not may_fetch or cached(repository, _BESIDE[1]) is not None):
            return path.parent
    if not may_fetch:
        raise CheckpointError(
            f"backbone.model: the text side of {what} is {repository} of a hub, and nothing is fetched for a config; "
            f"use CLIP's tokenizer and text tower, or the name of an open_clip model, or bring its files first: "
            f"hf download {repository}"
        )
    listing = list_files(repository, what=f"backbone.model: the tokenizer of {what}")
    vocabulary = [_ONE_FILE] if _ONE_FILE in listing.names else [n for n in _VOCABULARIES if n in listing.names]
    if not vocabulary:
        raise CheckpointError(f"backbone.model: {repository} has no files of a tokenizer")
    folder = Path()
    # The vocabulary last: its being there says that all is.
    for name in (*(name for name in _BESIDE if name in listing.names), *vocabulary):
        folder = fetch(repository, name, what=f"backbone.model: the tokenizer of {what}").parent
    return folder


def tokenizer_digest(folder: Path) -> str:
    """SHA-256 over the names and contents of a tokenizer's files."""
    digest = hashlib.sha256()
    for name in sorted((_ONE_FILE, *_VOCABULARIES, *_BESIDE[1:])):
        if (folder / name).is_file():
            digest.update(f"{name} {sha256_file(folder / name)}\n".encode())
    return digest.hexdigest()


def is_repository(name: str) -> bool:
    """Whether a name can be one of a repository of a hub, and not a path."""
    return bool(re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name)) and ".." not in name
