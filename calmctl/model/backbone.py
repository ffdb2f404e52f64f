"""The CLIP backbone: an open_clip model behind one small adapter."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from calmctl.errors import CheckpointError
from calmctl.model.spec import BackboneSpec
from calmctl.model.tokens import Tokens

if TYPE_CHECKING:
    from open_clip.tokenizer import SimpleTokenizer


class Normalise:
    """Uint8 frames to what the vision tower reads: scaled to [0, 1], minus the mean, over the deviation."""

    def __init__(self, mean: Any, std: Any) -> None:
        self.mean = tuple(float(value) for value in mean)
        self.std = tuple(float(value) for value in std)

    def __call__(self, frames: Tensor) -> Tensor:
        """Normalise uint8 [..., H, W, 3]; returns float32 [..., 3, H, W] on the device of `frames`."""
        scaled = frames.movedim(-1, -3).float().div_(255)
        mean, std = (torch.tensor(values, device=frames.device) for values in (self.mean, self.std))
        return scaled.sub_(mean.view(3, 1, 1)).div_(std.view(3, 1, 1)).contiguous()


class Backbone(nn.Module):
    """CLIP's two towers with their tokenizer and preprocessing.

    Features are projected into the joint space and not L2-normalised (docs/science.md, The heads).

    Attributes:
        spec: What this backbone is.
        dim: Width D of the joint space.
        tokens: What makes tokens of sentences.
        notes: What a person must know of the weights that were loaded.
    """

    def __init__(self, clip: nn.Module, tokenizer: Any, spec: BackboneSpec) -> None:
        super().__init__()
        self.clip: Any = clip
        self.spec = spec
        self.dim = spec.dim
        self.tokens = Tokens(tokenizer, spec.context_length)
        self.notes: tuple[str, ...] = ()

    @property
    def logit_scale(self) -> Tensor:
        """CLIP's own log temperature of the contrastive loss, a scalar parameter."""
        scale: Tensor = self.clip.logit_scale
        return scale

    @property
    def bpe(self) -> SimpleTokenizer:
        """CLIP's byte-pair tokenizer. Raises `CheckpointError` where this backbone has another kind of tokens."""
        from open_clip.tokenizer import SimpleTokenizer

        tokenizer = self.tokens.tokenizer
        if not isinstance(tokenizer, SimpleTokenizer):
            raise CheckpointError(
                f"backbone.model: {self.spec.model} does not use CLIP's byte pairs "
                f"({type(tokenizer).__name__} instead), which the caption decoder writes; use a CLIP model"
            )
        return tokenizer

    @property
    def token_embedding(self) -> Tensor:
        """The text tower's token embeddings, [V, width]."""
        weight: Tensor = getattr(self.clip, "text", self.clip).token_embedding.weight
        return weight

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
        features: Tensor = self.clip.encode_image(pixels.flatten(0, 1))
        return features.view(*pixels.shape[:2], self.dim)

    def encode_text(self, tokens: Tensor) -> Tensor:
        """Sentence features [N, D] of token ids [N, L]: the end token's projected output (Eq. 3)."""
        if not self._pads_short:
            features: Tensor = self.clip.encode_text(tokens)
            return features
        clip = self.clip
        hidden = self._hidden(tokens)
        pooled: Tensor = clip.ln_final(hidden[torch.arange(len(tokens), device=tokens.device), tokens.argmax(dim=1)])
        projected: Tensor = pooled @ clip.text_projection
        return projected

    def encode_words(self, tokens: Tensor) -> Tensor:
        """The sentence feature, then every token's projected output: [N, 1 + L, D] of token ids [N, L].

        Start and end token count as words; rows behind the end token are zeros.

        Raises:
            CheckpointError: The text tower is not CLIP's own.
        """
        if not self._pads_short:
            raise CheckpointError(
                f"head.kind: wti reads words, and the text tower of {self.spec.model} gives sentences only; "
                "use a CLIP model, or another head"
            )
        words = self.clip.ln_final(self._hidden(tokens)) @ self.clip.text_projection
        ends = tokens.argmax(dim=1)
        behind = torch.arange(tokens.shape[1], device=tokens.device) > ends[:, None]
        sentences = words[torch.arange(len(tokens), device=tokens.device), ends]
        return torch.cat([sentences[:, None], words.masked_fill(behind[..., None], 0)], dim=1)

    def _hidden(self, tokens: Tensor) -> Tensor:
        """The text transformer's outputs [N, L, width]."""
        clip, length = self.clip, tokens.shape[1]
        hidden = clip.token_embedding(tokens) + clip.positional_embedding[:length]
        outputs: Tensor = clip.transformer(hidden, attn_mask=clip.attn_mask[:length, :length])
        return outputs

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
