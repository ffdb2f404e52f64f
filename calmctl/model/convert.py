"""Other people's weights in the form that is read here: names of transformers, OpenAI's archive, torch's checkpoints.

Nothing of a file is executed. An archive of TorchScript is a zip with the tensors' bytes, the model's code and a pickle
that says which tensor is whose: the code is not looked at, and the pickle is read by a reader that knows tensors,
dictionaries and empty modules, and refuses everything else. Torch's checkpoints go through torch's own restricted
reader.
"""

from __future__ import annotations

import io
import json
import math
import pickle
import pickletools
import re
import struct
import zipfile
import zlib
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from calmctl.errors import CheckpointError
from calmctl.files import open_regular, write_atomic, write_json
from calmctl.model.spec import CLIP_PIXELS, HUB_CONFIG, model_names, read_architecture

# Names: CLIP as transformers calls its weights, in open_clip's names.

_MARK = "vision_model.embeddings.class_embedding"
_LAYER = re.compile(r"(vision|text)_model\.encoder\.layers\.(\d+)\.(.+)\.(weight|bias)")
_IN_LAYERS = {
    "self_attn.out_proj": "attn.out_proj",
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
}
_OUTSIDE = {
    "logit_scale": "logit_scale",
    "visual_projection.weight": "visual.proj",
    "text_projection.weight": "text_projection",
    _MARK: "visual.class_embedding",
    "vision_model.embeddings.patch_embedding.weight": "visual.conv1.weight",
    "vision_model.embeddings.position_embedding.weight": "visual.positional_embedding",
    "text_model.embeddings.token_embedding.weight": "token_embedding.weight",
    "text_model.embeddings.position_embedding.weight": "positional_embedding",
} | {
    f"{theirs}.{kind}": f"{ours}.{kind}"
    for theirs, ours in {
        "vision_model.pre_layrnorm": "visual.ln_pre",  # their spelling
        "vision_model.post_layernorm": "visual.ln_post",
        "text_model.final_layer_norm": "ln_final",
    }.items()
    for kind in ("weight", "bias")
}
_TRANSPOSED = {"visual.proj", "text_projection"}
"""Matrices there that open_clip multiplies from the right."""


def in_open_clips_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights under open_clip's names, where they are a CLIP under transformers' names; else as they are.

    Names that belong to no CLIP stay, so that loading refuses them.
    """
    if _MARK not in state:
        return state
    renamed: dict[str, Tensor] = {}
    thirds: dict[str, dict[str, Tensor]] = {}
    for name, value in state.items():
        if name.endswith("position_ids"):  # 0, 1, 2, ...: no weights
            continue
        if name in _OUTSIDE:
            ours = _OUTSIDE[name]
            renamed[ours] = value.T.contiguous() if ours in _TRANSPOSED else value
        elif (part := _LAYER.fullmatch(name)) is None:
            renamed[name] = value
        else:
            tower, number, inner, kind = part.groups()
            place = f"{'visual.' if tower == 'vision' else ''}transformer.resblocks.{number}"
            if inner in _IN_LAYERS:
                renamed[f"{place}.{_IN_LAYERS[inner]}.{kind}"] = value
            else:
                thirds.setdefault(f"{place}.attn.in_proj_{kind}", {})[inner] = value
    for name, parts in thirds.items():
        # Three matrices there, one here: queries, keys and values, in this order.
        wanted = [f"self_attn.{letter}_proj" for letter in "qkv"]
        if set(parts) != set(wanted):
            raise CheckpointError(f"backbone.weights: {name} cannot be made of {', '.join(sorted(parts))}")
        renamed[name] = torch.cat([parts[each] for each in wanted])
    return renamed


# Files: an archive of TorchScript, or a checkpoint of torch.


@dataclass(frozen=True, slots=True)
class Converted:
    """What `convert` wrote.

    Attributes:
        config: The config beside them, where it is known.
        parameters: Numbers in the weights.
        models: Names of open_clip's models that they fit.
        openai: Whether they are OpenAI's release.
    """

    path: Path
    config: Path | None
    parameters: int
    models: tuple[str, ...]
    openai: bool


def convert(file: Path, out: Path) -> Converted:
    """Write the weights of an archive or a checkpoint as safetensors, in float32 and open_clip's names.

    Raises:
        CheckpointError: The file is none of the two, or holds more than tensors.
        RunFailed: `out` cannot be written.
    """
    state = in_open_clips_names(read_foreign(file))
    state = {name: value.float() if value.is_floating_point() else value for name, value in state.items()}
    openai, models = looks_like_openai(state), fitting_models(state)
    config = None
    if openai:
        models = tuple(name for name in models if read_architecture(name).activation == "quick_gelu")
        config = out.with_name(HUB_CONFIG) if len(models) == 1 else None
    content = save({name: value.contiguous() for name, value in state.items()}, {"format": "pt"})
    write_atomic(out, lambda handle: handle.write(content))
    if config is not None and not config.exists():
        preprocessing = CLIP_PIXELS.model_dump(mode="json")
        preprocessing["resize_mode"] = preprocessing.pop("resize")
        preprocessing["fill_color"] = preprocessing.pop("fill")
        write_json(config, {"model_cfg": read_architecture(models[0]).config, "preprocess_cfg": preprocessing})
    return Converted(out, config, sum(value.numel() for value in state.values()), models, openai)


_UNREADABLE = (
    pickle.UnpicklingError, zipfile.BadZipFile, struct.error, zlib.error, OSError, RuntimeError, EOFError, ValueError,
    KeyError, IndexError, TypeError, AttributeError, OverflowError, AssertionError, MemoryError,
)  # fmt: skip
"""What readers of pickles meet in bytes that are none, torch's own included."""


def read_foreign(file: Path) -> dict[str, Tensor]:
    """The tensors of an archive of TorchScript or of a checkpoint of torch, by name.

    Raises:
        CheckpointError: It is neither, or holds what could be executed.
    """
    try:
        open_regular(file).close()
        if zipfile.is_zipfile(file):
            with zipfile.ZipFile(file) as archive:
                _require_unpacked(archive, file)
                if any("/code/" in name for name in archive.namelist()):
                    return _Archive(archive, file).tensors()
        value = torch.load(file, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise CheckpointError(f"{file} does not exist") from None
    except _UNREADABLE as fault:
        first = (str(fault).splitlines() or [type(fault).__name__])[0]
        raise CheckpointError(
            f"{file} is no archive or checkpoint that can be read without running it: {first}"
        ) from None
    for key in ("state_dict", "model"):
        if isinstance(value, dict) and isinstance(value.get(key), dict):
            value = value[key]
    if not isinstance(value, dict) or not any(isinstance(each, Tensor) for each in value.values()):
        raise CheckpointError(f"{file} holds no weights by name")
    return {str(name).removeprefix("module."): each for name, each in value.items() if isinstance(each, Tensor)}


MOST_GROWTH = 4
"""Torch does not compress: an archive that unfolds to more than this many times its size is refused (our choice)."""
_SPARE_BYTES = 1 << 20  # the code and the pickle of a small model do not fill a disk block


def _require_unpacked(archive: zipfile.ZipFile, file: Path) -> None:
    claimed = sum(member.file_size for member in archive.infolist())
    if claimed > MOST_GROWTH * file.stat().st_size + _SPARE_BYTES:
        raise CheckpointError(
            f"{file} is compressed, and unfolds into {claimed:,} bytes, more than {MOST_GROWTH} times its size: torch "
            "writes no such file; it is not read"
        )


_NUMBERS = {"input_resolution", "context_length", "vocab_size"}
"""What OpenAI's archives say of themselves beside the weights."""
_STORAGES = {
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "DoubleStorage": torch.float64,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "BoolStorage": torch.bool,
}


class _Module:
    """Stands for any class of the archive: what it holds, and nothing that it does."""

    parts: Any = None

    def __setstate__(self, state: Any) -> None:
        self.parts = state


@dataclass(frozen=True, slots=True)
class _Storage:
    dtype: torch.dtype


class _Archive(pickle.Unpickler):
    """The tensors of an archive of TorchScript; its code is not read."""

    def __init__(self, archive: zipfile.ZipFile, file: Path) -> None:
        names = [name for name in archive.namelist() if name.endswith("/data.pkl") and name.count("/") == 1]
        if len(names) != 1:
            raise CheckpointError(f"{file} is no archive of TorchScript: it has no data.pkl")
        pickled = archive.read(names[0])
        # Python's reader makes an array as long as the highest number that anything is remembered by.
        for step, (opcode, number, _) in enumerate(pickletools.genops(pickled)):
            if opcode.name in ("PUT", "BINPUT", "LONG_BINPUT") and not 0 <= int(number or 0) <= step:
                raise CheckpointError(f"{file} is damaged: nothing is remembered by the number {number}")
        super().__init__(io.BytesIO(pickled))
        self._archive, self._root, self._file = archive, names[0].partition("/")[0], file
        self._read: dict[str, Tensor] = {}

    def find_class(self, module: str, name: str) -> Any:
        """What a name in the pickle stands for; nothing of the installed packages can be reached."""
        if module.startswith("__torch__"):
            return _Module
        match module, name:
            case "torch._utils", "_rebuild_tensor_v2":
                return self._tensor
            case "torch._utils", "_rebuild_parameter":
                return lambda tensor, *_: tensor
            case "collections", "OrderedDict":
                return OrderedDict
            case "torch", storage if storage in _STORAGES:
                return _Storage(_STORAGES[storage])
            case "torch.jit._pickle", "build_intlist" | "build_doublelist" | "build_boollist" | "build_tensorlist":
                return list
        called = f"{module}.{name}"[:80]
        raise CheckpointError(f"{self._file} names {called}, which no weights need; it is not read")

    def persistent_load(self, pid: Any) -> Tensor:
        """The numbers of a storage, as one row."""
        match pid:
            case ("storage", _Storage(dtype), str(key), str(), int(n)) if re.fullmatch(r"\d+", key):
                pass
            case _:
                raise CheckpointError(f"{self._file} names a storage that cannot be read")
        if key not in self._read:
            content = bytearray(self._archive.read(f"{self._root}/data/{key}"))
            self._read[key] = torch.frombuffer(content, dtype=dtype) if content else torch.empty(0, dtype=dtype)
        if len(self._read[key]) < n:
            raise CheckpointError(f"{self._file} is cut: storage {key} has fewer numbers than it names")
        return self._read[key]

    def _tensor(self, numbers: Any, offset: Any, size: Any, stride: Any, *_: Any) -> Tensor:
        # What lies outside of the storage is an error of torch's; what lies in it many times would be of any size.
        if math.prod(size) > len(numbers):
            raise CheckpointError(f"{self._file} names a tensor that is larger than its numbers")
        return torch.as_strided(numbers, size, stride, offset).clone()

    def tensors(self) -> dict[str, Tensor]:
        """All of them, by the modules that hold them."""
        by_name: dict[str, Tensor] = {}
        ahead: list[tuple[str, Any]] = [("", self.load())]
        while ahead:
            name, value = ahead.pop()
            if isinstance(value, Tensor):
                by_name[name] = value
            elif isinstance(value, _Module) and isinstance(value.parts, dict):
                ahead += [(f"{name}.{key}" if name else str(key), part) for key, part in value.parts.items()]
        # A mask of the text tower is the same for every model, and open_clip makes its own.
        kept = {k: v for k, v in sorted(by_name.items()) if k not in _NUMBERS and not k.endswith("attn_mask")}
        if not kept:
            raise CheckpointError(f"{self._file} holds no weights")
        return kept


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


def fitting_models(state: dict[str, Tensor]) -> tuple[str, ...]:
    """The names of open_clip's models with a plain CLIP of these sizes; empty for other towers."""
    try:
        conv, tokens = state["visual.conv1.weight"], state["token_embedding.weight"]
        sizes = (
            state["text_projection"].shape[1],
            conv.shape[0],
            conv.shape[2],
            _layers(state, "visual.transformer."),
            round((len(state["visual.positional_embedding"]) - 1) ** 0.5) * conv.shape[2],
            tokens.shape[0],
            tokens.shape[1],
            _layers(state, "transformer."),
            len(state["positional_embedding"]),
        )
    except (KeyError, IndexError):
        return ()
    return tuple(name for name, path in model_names().items() if _sizes(path) == sizes)


def _layers(state: dict[str, Tensor], tower: str) -> int:
    return len({name.split(".")[tower.count(".") + 1] for name in state if name.startswith(f"{tower}resblocks.")})


def _sizes(path: Path) -> tuple[Any, ...]:
    config = json.loads(path.read_text(encoding="utf-8"))
    vision, text = config["vision_cfg"], config["text_cfg"]
    if "timm_model_name" in vision or "hf_model_name" in text or config.get("custom_text"):
        return ()
    return (
        config["embed_dim"],
        vision.get("width"),
        vision.get("patch_size"),
        vision.get("layers"),
        vision.get("image_size"),
        text.get("vocab_size"),
        text.get("width"),
        text.get("layers"),
        text.get("context_length"),
    )
