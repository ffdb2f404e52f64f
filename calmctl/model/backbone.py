"""The CLIP backbone: sentences into tokens, frames and sentences into features, and the digest that tells it apart."""

from __future__ import annotations

import hashlib
import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from calmctl.errors import CheckpointError, RecipeError
from calmctl.model import text_tower
from calmctl.model.spec import BackboneSpec
from calmctl.video.pixels import FrameResize
from calmctl.words import counted

if TYPE_CHECKING:
    from open_clip.tokenizer import SimpleTokenizer

LN_100 = math.log(100.0)
"""What CLIP's log temperature is clamped to in training (docs/science.md, The heads)."""

# CLIP's tokenizer turns these into its own marks wherever they stand, and a text tower pools at the first end mark.
_MARK = re.compile(r"<(?=(?:start|end)_of_text>)", re.IGNORECASE)
_AT_ONCE = 4096


class Tokens:
    """A backbone's tokenizer.

    Attributes:
        tokenizer: open_clip's; one of CLIP's kind reads `<end_of_text>` inside a sentence as text.
        context_length: Tokens the text tower reads, the two marks counted.
    """

    def __init__(self, tokenizer: Any, context_length: int) -> None:
        from calmctl.model.openclip import open_clip

        self.tokenizer = tokenizer
        self.context_length = context_length
        self._of_clip = isinstance(tokenizer, open_clip.SimpleTokenizer)
        if self._of_clip:
            # Behind its own clean-up, which makes such a mark of "&lt;end_of_text&gt;" too. A blank behind the bracket
            # changes no other token: byte pairs never go from punctuation on into letters.
            tokenizer.clean_fn = partial(_without_marks, tokenizer.clean_fn)

    def __call__(self, sentences: Sequence[str]) -> Tensor:
        """Token ids [N, context_length]; what does not fit is cut, and the end mark stands last."""
        return self.tokenizer(list(sentences))

    def longer(self, sentences: Sequence[str]) -> int:
        """How many sentences have more tokens than the text tower reads, by the tokenizer's own count."""
        # Cleaning makes no ASCII text without entities longer, and a token has at least one character.
        times = Counter(s for s in sentences if len(s) > self.context_length - 3 or not s.isascii() or "&" in s)
        candidates = list(times)
        if self._of_clip:
            return sum(times[s] for s in candidates if len(self.tokenizer.encode(s)) + 2 > self.context_length)
        n = 0
        for start in range(0, len(candidates), _AT_ONCE):
            some = candidates[start : start + _AT_ONCE]
            # One place more: where the sentence ends before, that place is padding and the others are the same. Both,
            # because some end every sentence with a mark, which moves, and some with nothing.
            wider: Tensor = self.tokenizer(some, context_length=self.context_length + 1)
            cut = (wider[:, : self.context_length] != self(some)).any(dim=1) | (wider[:, -1] != self._padding)
            n += sum(times[some[place]] for place in torch.nonzero(cut).flatten().tolist())
        return n

    @property
    def _padding(self) -> int:
        inner = getattr(self.tokenizer, "tokenizer", None)
        return getattr(inner, "pad_token_id", None) or 0

    def cut(self, sentences: Sequence[str], noun: str = "caption") -> str | None:
        """A sentence about those that are not read to their end, None where all are."""
        n = self.longer(sentences)
        if not n:
            return None
        return (
            f"{n:,} of {counted(len(sentences), noun)} {'is' if n == 1 else 'are'} longer than {self.context_length} "
            "tokens; the rest is not read"
        )


def _without_marks(clean: Callable[[str], str], text: str) -> str:
    return _MARK.sub("< ", clean(text))


class Normalise:
    """Uint8 frames to what the vision tower reads: scaled to [0, 1], minus the mean, over the deviation."""

    def __init__(self, mean: Any, std: Any) -> None:
        self.mean = tuple(float(value) for value in mean)
        self.std = tuple(float(value) for value in std)
        self._constants: dict[torch.device, tuple[Tensor, Tensor]] = {}

    def __call__(self, frames: Tensor) -> Tensor:
        """Normalise uint8 [..., H, W, 3]; returns [..., 3, H, W] on the device of `frames`.

        Float32, or under autocast its type, which the tower's first layer would round to anyway.
        """
        device = frames.device
        if device not in self._constants:  # making them in every call would make the host wait for the GPU
            mean, std = (torch.tensor(values, device=device).view(3, 1, 1) for values in (self.mean, self.std))
            self._constants[device] = mean, std
        mean, std = self._constants[device]
        scaled = frames.movedim(-1, -3).float().div_(255).sub_(mean).div_(std)
        lower = torch.is_autocast_enabled(device.type)
        return scaled.to(torch.get_autocast_dtype(device.type) if lower else torch.float32).contiguous()


class PatchEmbedding(nn.Conv2d):
    """A convolution whose patches do not overlap, on a GPU as what it is: one matrix product.

    cuDNN takes slow kernels for patches of 32 x 32. On a CPU the convolution is as fast, and its last bits stay.
    """

    def forward(self, pixels: Tensor) -> Tensor:
        """Patches [N, W, H / p, W / p] of pixels [N, 3, H, W]."""
        return self.product(pixels) if pixels.is_cuda else super().forward(pixels)

    def product(self, pixels: Tensor) -> Tensor:
        """The same by a matrix product, on any device."""
        height, width = self.kernel_size
        n, channels, rows, columns = pixels.shape
        grid = rows // height, columns // width
        patches = pixels.view(n, channels, grid[0], height, grid[1], width).permute(0, 2, 4, 1, 3, 5)
        embedded = nn.functional.linear(patches.reshape(n, grid[0] * grid[1], -1), self.weight.flatten(1), self.bias)
        return embedded.mT.view(n, -1, *grid)

    @staticmethod
    def embeds(layer: object) -> bool:
        """Whether a layer is such a convolution."""
        return (
            isinstance(layer, nn.Conv2d)
            and layer.stride == layer.kernel_size
            and (layer.padding, layer.dilation, layer.groups) == ((0, 0), (1, 1), 1)
        )


class Backbone(nn.Module):
    """CLIP's two towers with their tokenizer and preprocessing.

    Features are projected into the joint space and not L2-normalised (docs/science.md, The heads).

    Attributes:
        dim: Width D of the joint space.
        tokens: What makes tokens of sentences.
        notes: What a person must know of the weights that were loaded.
        unchanging: The digest of weights that nothing here changes, once it is taken; else None.
        most_scale: What the log temperature never exceeds in training.
        text_pass: How training computes sentences (`text_tower`): `joined`, what they begin with alike once; `ends`,
            one by one, and of the last block the token that is read; `whole`, as evaluations do.
    """

    unchanging: str | None = None
    most_scale: float = LN_100
    text_pass: Literal["joined", "ends", "whole"] = "joined"

    def __init__(self, clip: nn.Module, tokenizer: Any, spec: BackboneSpec) -> None:
        super().__init__()
        self.clip: Any = clip
        self.spec = spec
        self.dim = spec.dim
        self.tokens = Tokens(tokenizer, spec.context_length)
        self.notes: tuple[str, ...] = ()
        # Of the sigmoid loss. In a softmax over a row it cancels: it would be a weight that never gets a gradient.
        if isinstance(bias := getattr(clip, "logit_bias", None), nn.Parameter):
            bias.requires_grad_(False)
        first = getattr(getattr(clip, "visual", None), "conv1", None)
        if PatchEmbedding.embeds(first):
            first.__class__ = PatchEmbedding  # its weights, their names and their place stay

    @property
    def logit_scale(self) -> Tensor:
        """CLIP's own log temperature of the contrastive loss, a scalar parameter."""
        return self.clip.logit_scale

    @property
    def bpe(self) -> SimpleTokenizer:
        """CLIP's byte-pair tokenizer. Raises `CheckpointError` where this backbone has another kind of tokens."""
        from calmctl.model.openclip import open_clip

        tokenizer = self.tokens.tokenizer
        if not isinstance(tokenizer, open_clip.SimpleTokenizer):
            raise CheckpointError(
                f"backbone.model: {self.spec.model} does not use CLIP's byte pairs "
                f"({type(tokenizer).__name__} instead), which the caption decoder writes; use a CLIP model"
            )
        return tokenizer

    @property
    def token_embedding(self) -> Tensor:
        """The text tower's token embeddings, [V, width]."""
        return getattr(self.clip, "text", self.clip).token_embedding.weight

    def preprocess(self, frames: np.ndarray) -> Tensor:
        """Uint8 RGB frames of any one size as the vision tower reads them: float32 [F, 3, H, W]."""
        return Normalise(self.spec.mean, self.spec.std)(torch.from_numpy(self.spec.frame_resize(frames)))

    def tokenize(self, sentences: Sequence[str]) -> Tensor:
        """Token ids [N, L], padded to the longest sentence where the text tower allows it.

        CLIP's text tower is causal and pools at the end token, so padding behind it changes nothing but the
        time it takes. Other towers get their full context length.
        """
        tokens = self.tokens(sentences)
        if not self._pads_short:
            return tokens
        # The end token has CLIP's largest id, so its position is the arg-max; the pad id is 0.
        longest = int(tokens.argmax(dim=1).max()) + 1 if len(tokens) else 1
        return tokens[:, :longest]

    def encode_frames(self, pixels: Tensor) -> Tensor:
        """Frame features [B, F, D] of prepared pixels [B, F, 3, H, W] (Eq. 1)."""
        return self.clip.encode_image(pixels.flatten(0, 1)).view(*pixels.shape[:2], self.dim)

    def encode_patches(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Frame features [N, D] of prepared pixels [N, 3, H, W], and their patches [N, P, width] before any norm.

        Raises:
            CheckpointError: The vision tower is not CLIP's own transformer.
        """
        visual, width = self.clip.visual, self.vision_width
        outputs = visual.forward_intermediates(pixels, indices=1, output_fmt="NLC")
        (patches,) = outputs["image_intermediates"]
        assert patches.shape[-1] == width
        return outputs["image_features"], patches

    @property
    def vision_width(self) -> int:
        """Width of the vision transformer. Raises `CheckpointError` where the tower is none of CLIP's."""
        from calmctl.model.openclip import open_clip

        visual = self.clip.visual
        if not isinstance(visual, open_clip.transformer.VisionTransformer):
            raise CheckpointError(
                f"backbone.model: {self.spec.model} has another vision tower than CLIP's transformer, whose patches "
                "CoCap needs; use a ViT of CLIP's"
            )
        return visual.conv1.out_channels

    def encode_text(self, tokens: Tensor) -> Tensor:
        """Sentence features [N, D] of token ids [N, L]: the end token's projected output (Eq. 3)."""
        if not self._pads_short:
            return self.clip.encode_text(tokens)
        way = self._text_way(tokens)
        if way == "joined":
            beginnings = text_tower.Beginnings(tokens)
            hidden = text_tower.of_beginnings(self.clip, beginnings, beginnings.ends)
        elif way == "ends":
            hidden = text_tower.at_ends(self.clip, tokens)
        else:
            ends = torch.arange(len(tokens), device=tokens.device), tokens.argmax(dim=1)
            hidden = text_tower.whole(self.clip, tokens)[ends]
        return self._projected(hidden)

    def encode_words(self, tokens: Tensor) -> Tensor:
        """The sentence feature, then every token's projected output: [N, 1 + L, D] of token ids [N, L].

        Start and end token count as words; rows behind the end token are zeros.

        Raises:
            CheckpointError: The text tower is not CLIP's own.
        """
        if not self._pads_short:
            raise CheckpointError(
                f"this head.kind reads words, and the text tower of {self.spec.model} gives sentences only; "
                "use a CLIP model, or another head"
            )
        if self._text_way(tokens) == "joined":
            beginnings = text_tower.Beginnings(tokens)
            words = beginnings.spread(self._projected(text_tower.of_beginnings(self.clip, beginnings)))
        else:
            words = self._projected(text_tower.whole(self.clip, tokens))
        ends = tokens.argmax(dim=1)
        behind = torch.arange(tokens.shape[1], device=tokens.device) > ends[:, None]
        sentences = words[torch.arange(len(tokens), device=tokens.device), ends]
        return torch.cat([sentences[:, None], words.masked_fill(behind[..., None], 0)], dim=1)

    def _projected(self, hidden: Tensor) -> Tensor:
        """The text transformer's outputs [..., W] in the joint space, [..., D]."""
        return self.clip.ln_final(hidden) @ self.clip.text_projection

    def _text_way(self, tokens: Tensor) -> str:
        """`text_pass` where it can be had: not without a gradient, nor in towers that are none of CLIP's."""
        if not torch.is_grad_enabled() or not text_tower.is_written_out(self.clip):
            return "whole"
        # A GPU would have to say first how many beginnings there are.
        return "ends" if self.text_pass == "joined" and tokens.device.type != "cpu" else self.text_pass

    def compile_blocks(self) -> None:
        """Compile the transformer blocks of both towers, for training: one graph a tower serves all of its blocks.

        The number of rows and the length of texts may change without another compilation, but for a single row. Without
        a gradient nothing changes: an evaluation has the numbers that it would have had.
        """
        self.text_pass = "ends"  # joined sentences do not pass the blocks' own forward, the one that is compiled
        text = getattr(self.clip, "text", self.clip)
        for tower in (self.clip.visual, text):
            for block in getattr(getattr(tower, "transformer", None), "resblocks", ()):
                block.forward = _compiled(block.forward)

    def checkpoint_activations(self) -> None:
        """Trade time for memory: recompute the towers' activations in the backward pass."""
        self.clip.set_grad_checkpointing(True)

    @property
    def _pads_short(self) -> bool:
        """Whether the text tower is CLIP's own causal transformer, pooled at the arg-max token."""
        clip = self.clip
        return (
            getattr(clip, "text_pool_type", None) == "argmax"
            and getattr(clip, "attn_mask", None) is not None
            and isinstance(clip.text_projection, nn.Parameter)
        )

    def load_weights(self, state: dict[str, Tensor], *, source: str) -> None:
        """Load every weight of the two towers from `state`; raises `CheckpointError` if any does not fit."""
        # All weights or none: a tower that keeps some random ones gives plausible, wrong features without a complaint.
        own = self.clip.state_dict()
        missing = sorted(set(own) - set(state))
        extra = sorted(set(state) - set(own))
        shapes = sorted(name for name in set(own) & set(state) if own[name].shape != state[name].shape)
        if missing or extra or shapes:
            example = (missing + extra + shapes)[0]
            raise CheckpointError(
                f"{source} does not fit {self.spec.model}: {len(missing)} weights missing, "
                f"{len(extra)} unknown, {len(shapes)} of another shape (first: {example}); "
                "name the model these weights belong to"
            )
        self.clip.load_state_dict(state)
        if "logit_bias" in state:
            # The sigmoid loss has no such limit, and the first step must not change what it has learned.
            self.most_scale = max(LN_100, float(self.logit_scale.detach()))


def _compiled(forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """`forward` of a transformer block, compiled where there is a gradient."""
    compiled = torch.compile(forward)

    def call(hidden: Tensor, *rest: Any, attn_mask: Tensor | None = None) -> Tensor:
        mask = rest[-1] if rest else attn_mask
        if not torch.is_grad_enabled():
            return forward(hidden, attn_mask=mask)
        # The last batch of an epoch is shorter, and a batch's longest sentence is never the one before's.
        torch._dynamo.maybe_mark_dynamic(hidden, 0)
        if mask is not None:
            torch._dynamo.maybe_mark_dynamic(hidden, 1)
            torch._dynamo.maybe_mark_dynamic(mask, [0, 1])
        return compiled(hidden, attn_mask=mask)

    return call


class Residual(nn.Linear):
    """x + Wx + b of features [..., D], W = b = 0 at first."""

    def __init__(self, dim: int) -> None:
        super().__init__(dim, dim)
        for parameter in self.parameters():
            # So that training starts from CLIP's own features.
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        """The features, moved."""
        return x + super().forward(x)


class FeatureAdapter(nn.Module):
    """What moves frame features, `frames(x)`, and sentence features, `texts(x)` (our choice).

    On frozen features it is what the alignment loss can change.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.frames = Residual(dim)
        self.texts = Residual(dim)


def split_preprocess(backbone: Backbone) -> tuple[FrameResize, Normalise]:
    """The backbone's preprocessing as resizing (uint8, in a worker) and normalising (float, on the device).

    One after the other is `Backbone.preprocess`, which is open_clip's evaluation transform to the last bit.
    """
    spec = backbone.spec
    return spec.frame_resize, Normalise(spec.mean, spec.std)


def fingerprint(backbone: Backbone) -> dict[str, Any]:
    """The spec of a backbone with the digest of the weights it has *now*, as JSON: what checkpoints and stores record.

    The weights are digested as they are in memory, so a backbone that was trained further, or started from
    nothing, is never taken for the one it began as. No path is part of it: the same weights are the same
    backbone on every machine.
    """
    spec = backbone.spec.model_copy(update={"parameters_sha256": parameters_digest(backbone)})
    return spec.model_dump(mode="json")


def parameters_digest(backbone: Backbone) -> str:
    """SHA-256 over names, types, shapes and bytes of the two towers' parameters and persistent buffers.

    The scale of the contrastive loss is left out: it goes on learning over frozen towers, and no feature
    depends on it.
    """
    if backbone.unchanging is not None:
        return backbone.unchanging
    digest = hashlib.sha256()
    for name, tensor in sorted(backbone.clip.state_dict().items()):
        if name in ("logit_scale", "logit_bias"):
            continue
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        # As bytes, because numpy has no name for bfloat16.
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def encode_in_chunks(encode: Callable[[Tensor], Tensor], rows: Tensor, chunk: int | None) -> Tensor:
    """`encode(rows)`, with the activations of at most `chunk` rows in memory at any time; None: all at once.

    The method of Gao et al. 2021, "Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup": encode
    in chunks and keep the features only; compute the loss on all features; then, chunk by chunk, encode again and
    send the features' gradients through. The gradients are exact. Here the backward pass of the loss itself encodes
    again, so nothing else has to know: gradients add up and are exchanged between processes as ever. Random state
    and mixed precision are those of the first time, so that the second pass gives the same features.
    """
    if chunk is None or len(rows) <= chunk or not torch.is_grad_enabled():
        return encode(rows)
    # The reentrant form would mark DistributedDataParallel's parameters ready twice, as some of them have no gradient.
    return torch.cat([checkpoint(encode, part, use_reentrant=False) for part in torch.split(rows, chunk)])


def require_separate_rows(module: nn.Module, why: str) -> None:
    """Refuse batch normalisation, which makes a row's features depend on the rows it is encoded with.

    Raises:
        RecipeError: Naming `why` rows are not encoded together.
    """
    if any(isinstance(layer, nn.modules.batchnorm._BatchNorm) for layer in module.modules()):
        raise RecipeError(
            f"{why} encodes parts of a batch, and this backbone's batch normalisation needs all of it; "
            "use a backbone without (a ViT), or leave that out"
        )


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Switch autocast off, and TF32 and bfloat16 products with it, as long as the block lasts.

    A bfloat16 cosine has three digits; times a logit scale of 100 the error would be about 0.4.
    """
    precision, recurrent = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False  # which is on by itself, and LSTMs are cuDNN's: scores were off by 3e-5
    try:
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        torch.set_float32_matmul_precision(precision)
        torch.backends.cudnn.allow_tf32 = recurrent
