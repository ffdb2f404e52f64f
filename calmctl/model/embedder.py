"""Embedding models of sentence-transformers as frozen backbones: VLM and video embedders (the extra calmctl[hf]).

    sentence-transformers:NAME        one vector a frame
    sentence-transformers-clip:NAME   one vector a clip, by a model that reads videos

NAME is OWNER/NAME[@REVISION] of a hub, or a folder. Such a model has its own processor for sentences and pictures, and
any architecture: its weights stay where they are and out of checkpoints, which name them by their digest. So nothing
of it is trained, and everything that works on features does: stores, heads, CALM with an adapter, eval and search.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from calmctl.errors import CheckpointError
from calmctl.files import read_json
from calmctl.hub import cached, fetch, list_files, revision_of
from calmctl.model.backbone import Backbone, Tokens, parameters_digest
from calmctl.model.published import CLIP_EMBEDDER, EMBEDDER, OWN, check_embedder, is_repository
from calmctl.model.spec import BackboneSpec

BYTES = 1024
"""Bytes of UTF-8 that a sentence may have (our choice): captions have a tenth of it."""
_SIZE = 336
"""Height and width of the frames where the processor names none and resizes as it likes (our choice)."""
_SCALE = 20.0
"""Where the contrastive loss's scale begins: what sentence-transformers' losses use (our choice)."""
_KNOWN = "sentence_transformers."
"""What the classes of a model's modules must begin with: its files name them, and loading imports what they name."""


class Bytes:
    """Sentences as the numbers of their bytes, 0 behind the last: the model's own tokenizer reads them later.

    Its prompts and templates want text; everything here passes on tensors [N, L].
    """

    def __call__(self, sentences: Sequence[str], context_length: int = BYTES) -> Tensor:
        """Bytes plus one, int64 [N, context_length]."""
        tokens = torch.zeros(len(sentences), context_length, dtype=torch.long)
        for row, sentence in zip(tokens, sentences, strict=True):
            content = sentence.encode("utf-8", "replace")[:context_length]
            row[: len(content)] = torch.tensor(list(content), dtype=torch.long) + 1
        return tokens

    @staticmethod
    def text(row: Tensor) -> str:
        """The sentence of a row; a letter that was cut at the end is left out."""
        return bytes((row[row > 0] - 1).tolist()).decode("utf-8", "ignore")


class Embedder(Backbone):
    """An embedding model behind the two towers' interface. Its weights are no parameters of this module."""

    def __init__(self, model: Any, spec: BackboneSpec) -> None:
        nn.Module.__init__(self)
        self.spec, self.dim, self.notes = spec, spec.dim, ()
        self.tokens = Tokens(Bytes(), spec.context_length)
        # In a list, where torch does not look for modules.
        self._held = [model.eval().requires_grad_(False)]
        self.scale = nn.Parameter(torch.tensor(math.log(_SCALE)))

    @property
    def clip(self) -> Any:
        """The model: what is digested."""
        return self._held[0]

    @property
    def logit_scale(self) -> Tensor:
        """The log temperature of the contrastive loss over its features, a scalar parameter."""
        return self.scale

    @property
    def per_clip(self) -> bool:
        """Whether a clip has one vector."""
        return bool(self.spec.architecture["vectors"] == "clip")

    def tokenize(self, sentences: Sequence[str]) -> Tensor:
        """Bytes [N, L], padded to the longest sentence."""
        tokens = self.tokens(sentences)
        longest = int((tokens > 0).sum(dim=1).max()) if len(tokens) else 1
        return tokens[:, : max(1, longest)]

    @torch.no_grad()
    def encode_text(self, tokens: Tensor) -> Tensor:
        """Sentence features [N, D] of bytes [N, L], as queries."""
        if not len(tokens):
            return torch.empty(0, self.dim, device=tokens.device)
        return self._vectors(self.clip.encode_query, [Bytes.text(row) for row in tokens.cpu()], tokens.device)

    @torch.no_grad()
    def encode_frames(self, pixels: Tensor) -> Tensor:
        """Features [B, F, D] of frames [B, F, 3, H, W] in [0, 1], as documents.

        A model with one vector a clip gives it to each frame of the clip, so that every mean of frames is that vector.
        """
        from PIL.Image import fromarray

        batch, n_frames = pixels.shape[:2]
        # Back to what was decoded, exactly: the model's processor scales and normalises.
        frames = (pixels.flatten(0, 1) * 255).round().to(torch.uint8).movedim(-3, -1).cpu().numpy()
        if not self.per_clip:
            pictures = [fromarray(frame) for frame in frames]
            return self._vectors(self.clip.encode_document, pictures, pixels.device).view(batch, n_frames, self.dim)
        # The clip's frames were chosen already: no processor may choose among them again.
        facts = {"fps": 1.0, "total_num_frames": n_frames, "frames_indices": list(range(n_frames))}
        clips = [
            {"array": clip, "video_metadata": facts} for clip in frames.reshape(batch, n_frames, *frames.shape[1:])
        ]
        vectors = self._vectors(
            self.clip.encode_document, clips, pixels.device, processing_kwargs={"video": {"do_sample_frames": False}}
        )
        return vectors[:, None].expand(-1, n_frames, -1).contiguous()

    def encode_words(self, tokens: Tensor) -> Tensor:
        """Never: such a model gives sentences only. Raises `CheckpointError`."""
        raise CheckpointError(
            f"this head.kind reads words, and {self.spec.model} gives sentences only; use a CLIP model, or another head"
        )

    @property
    def token_embedding(self) -> Tensor:
        """Never: raises `CheckpointError`."""
        raise CheckpointError(f"{self.spec.model} has no token embeddings of CLIP; use a CLIP model")

    def checkpoint_activations(self) -> None:
        """Nothing: no activation is kept, since nothing of it is trained."""

    def load_weights(self, state: dict[str, Tensor], *, source: str) -> None:
        """Never: raises `CheckpointError`."""
        raise CheckpointError(f"backbone.weights: {self.spec.model} has its own weights; set backbone.weights={OWN}")

    def train(self, mode: bool = True) -> Embedder:
        """The model stays in evaluation mode."""
        self.training = mode
        return self

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Embedder:
        self.clip._apply(fn)
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self

    def _vectors(self, encode: Callable[..., Any], inputs: list[Any], device: torch.device, **more: Any) -> Tensor:
        try:
            # In the library's own batches: a vision-language model has no room for as many frames as CLIP.
            vectors = encode(inputs, convert_to_tensor=True, show_progress_bar=False, **more)
        except (ValueError, TypeError, ImportError) as fault:
            raise CheckpointError(
                f"backbone.model: {self.spec.model} cannot encode this ({str(fault).splitlines()[0]}); one vector a "
                f"frame needs a model of pictures ({EMBEDDER}NAME), one a clip a model of videos ({CLIP_EMBEDDER}NAME)"
            ) from fault
        # Whatever the model computes in, everything behind it is float32.
        return vectors.to(device=device, dtype=torch.float32).clone()


def load_embedder(model: str, weights: str | None = OWN, *, recorded: BackboneSpec | None = None) -> Embedder:
    """The frozen backbone that `sentence-transformers:NAME` or `sentence-transformers-clip:NAME` names.

    Args:
        model: The name.
        weights: "own"; such a model has no others.
        recorded: What a checkpoint says of it; it must be the same.

    Raises:
        CheckpointError: The package is missing, there is no such model, it wants to run code of its own, or it is
            another one than was recorded.
        HubError: Its files are not here and cannot be fetched.
    """
    check_embedder(model, weights)
    per_clip = model.startswith(CLIP_EMBEDDER)
    name = model.removeprefix(CLIP_EMBEDDER if per_clip else EMBEDDER)
    from sentence_transformers import SentenceTransformer
    from transformers.utils.logging import disable_progress_bar as hide_bars

    folder, source, revision = _folder(name, recorded)
    _refuse_code(name, [path.name for path in folder.rglob("*.py")])
    _refuse_code(name, [each for each in _classes(folder) if not each.startswith(_KNOWN)])
    try:
        hide_bars()
        embedder: Any = SentenceTransformer(
            str(folder), device="cpu", local_files_only=True, trust_remote_code=False,
            model_kwargs={"use_safetensors": True},
        )  # fmt: skip
    except (OSError, ValueError, KeyError, ImportError, RuntimeError) as fault:
        first = next(iter(str(fault).splitlines()), type(fault).__name__)
        raise CheckpointError(f"backbone.model: sentence-transformers cannot load {folder}: {first}") from fault
    kind = "video" if per_clip else "image"
    if not embedder.supports(kind):
        known = ", ".join(str(each) for each in embedder.modalities)
        raise CheckpointError(f"backbone.model: {name} reads {known} and no {kind}s")
    spec = _spec(embedder, f"{CLIP_EMBEDDER if per_clip else EMBEDDER}{source or folder.name}", per_clip)
    backbone = Embedder(embedder, spec.model_copy(update={"source": source, "revision": revision}))
    # Once: it may have billions of weights, and every checkpoint names them.
    backbone.unchanging = parameters_digest(backbone)
    if recorded is not None:
        backbone.spec.require_reading(recorded, source=recorded.model)
        if recorded.parameters_sha256 not in (None, backbone.unchanging):
            raise CheckpointError(
                f"backbone.model: {folder} has other weights than {recorded.model} had when it was used; bring "
                "back those" + (f" (revision {recorded.revision})" if recorded.revision else "")
            )
    return backbone


def _refuse_code(name: str, code: list[str]) -> None:
    """Refuse a model whose loading would run what it brings, or what it names anywhere in Python."""
    if code:
        raise CheckpointError(
            f"backbone.model: {name} brings code of its own ({min(code)}), and nothing of that is run here"
        )


def _classes(folder: Path) -> list[str]:
    """The classes that a model's files name for its modules."""
    names: list[str] = []
    for path in (*folder.rglob("modules.json"), *folder.rglob("router_config.json")):
        value = read_json(path, what="backbone.model", error=CheckpointError)
        if path.name == "modules.json" and isinstance(value, list):
            named = [each.get("type") if isinstance(each, dict) else None for each in value]
        else:
            types = value.get("types") if isinstance(value, dict) else None
            named = list(types.values()) if isinstance(types, dict) else [None]
        names += map(str, named)
    return names


def _folder(name: str, recorded: BackboneSpec | None) -> tuple[Path, str | None, str | None]:
    """Where the files are, and the repository and commit that they are of."""
    path = Path(name).expanduser()
    if path.is_dir():
        return path.resolve(), None, None
    repository, _, revision = name.partition("@")
    revision = revision or (recorded.revision if recorded else None) or ""
    if not is_repository(repository):
        raise CheckpointError(f"backbone.model: {name} is neither a folder nor OWNER/NAME of a hub")
    what = f"backbone.model: {name}"
    modules = cached(repository, "modules.json", revision=revision or None)
    if modules is not None:
        return modules.parent, repository, revision_of(modules)
    if recorded is not None:  # of a stranger's run, which is no reason to ask anybody
        raise CheckpointError(
            f"{what} is not in the local cache, and there is no such folder; bring it: calmctl weights get "
            f"{recorded.model}"
        )
    listing = list_files(repository, revision=revision or None, what=what)
    wanted = [n for n in listing.names if n.endswith((".json", ".safetensors", ".txt", ".model", ".py", ".jinja"))]
    _refuse_code(name, [n for n in wanted if n.endswith(".py")])  # before the first byte of it
    if "modules.json" not in wanted:
        raise CheckpointError(f"{what} has no modules.json, so it is no model of sentence-transformers")
    # Last: its being in the cache says that all of it is.
    for file in (*(n for n in wanted if n != "modules.json"), "modules.json"):
        modules = fetch(repository, file, revision=revision or None, what=what)
    assert modules is not None
    return modules.parent, repository, listing.revision


def _spec(embedder: Any, name: str, per_clip: bool) -> BackboneSpec:
    size, resize, interpolation = _frames(getattr(embedder, "processor", None))
    dim = embedder.get_embedding_dimension()
    if not isinstance(dim, int):
        dim = len(embedder.encode_query("a"))
    return BackboneSpec(
        # The processor subtracts and divides: here frames stay in [0, 1].
        mean=(0.0, 0.0, 0.0),
        std=(1.0, 1.0, 1.0),
        interpolation=interpolation,
        resize=resize,
        model=name,
        architecture={"library": "sentence-transformers", "vectors": "clip" if per_clip else "frame"},
        activation="gelu",
        tokenizer="bytes",
        context_length=BYTES,
        image_size=size,
        dim=dim,
        weights=OWN,
    )


def _frames(processor: Any) -> tuple[tuple[int, int], Literal["shortest", "squash"], Literal["bicubic", "bilinear"]]:
    """Size, resizing and filter of frames, so that the processor's own resizing finds nothing left to do."""
    pictures = getattr(processor, "image_processor", processor)
    crops = bool(getattr(pictures, "do_center_crop", False))
    size = getattr(pictures, "crop_size" if crops else "size", None)
    # Some have "shortest_edge" for the least number of pixels: it is a length only where a crop follows.
    height, width = (
        _side(size, key) or (_side(size, "shortest_edge") if crops else None) for key in ("height", "width")
    )
    if not (height and width):
        height = width = _SIZE
        crops = True
    filter_ = "bilinear" if getattr(pictures, "resample", 3) == 2 else "bicubic"
    return (height, width), "shortest" if crops else "squash", filter_  # type: ignore[return-value]


def _side(size: Any, key: str) -> int | None:
    value = size.get(key) if isinstance(size, dict) else getattr(size, key, None)
    return value if isinstance(value, int) and 0 < value <= 1024 else None
