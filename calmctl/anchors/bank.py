"""The anchor bank: prompts through the text tower plus a learned offset each (Eq. 4, 5)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

EncodeMode = Literal["gradient", "no-gradient", "refresh", "frozen"]


class AnchorBank(nn.Module):
    """P = CLIP_s(prompts) + e, with the prompts' token ids as constants.

    Attributes:
        tokens: Token ids of the K prompts, [K, L], padded to the longest prompt, not to the context length.
        position: e, [K, D], learned ("positional embedding" in the paper).
    """

    tokens: Tensor
    encoded: Tensor
    age: Tensor

    def __init__(
        self,
        tokens: Tensor,
        dim: int,
        *,
        encode: EncodeMode = "gradient",
        refresh_every: int = 100,
        position_std: float = 0.02,
    ) -> None:
        """Make a bank of `len(tokens)` anchors of width `dim`.

        Args:
            tokens: [K, L].
            dim: D.
            encode: "gradient" re-encodes the prompts in every call with gradient, "no-gradient" without,
                "refresh" every `refresh_every` training calls, "frozen" once (docs/science.md, reading 4).
            refresh_every: Calls in training mode between two encodings.
            position_std: e_k ~ N(0, position_std^2); 0 starts at zero (row 5).
        """
        super().__init__()
        self.encode = encode
        self.refresh_every = refresh_every
        self.register_buffer("tokens", tokens, persistent=False)
        self.position = nn.Parameter(torch.randn(len(tokens), dim) * position_std)
        # Encoded prompts outlive a step in two modes only; there they belong to the state of a run.
        keeps = encode in ("refresh", "frozen")
        self.register_buffer("encoded", torch.zeros(len(tokens), dim), persistent=keeps)
        self.register_buffer("age", torch.tensor(-1), persistent=keeps)

    def prompts(self, encode_text: Callable[[Tensor], Tensor]) -> Tensor:
        """CLIP_s(prompts), [K, D]; `encode_text` maps token ids [K, L] to features [K, D].

        The anchors are these plus `position` (Eq. 5).
        """
        if self.encode == "gradient":
            return encode_text(self.tokens)
        with torch.no_grad():
            if self.encode == "no-gradient":
                return encode_text(self.tokens)
            due = self.encode == "refresh" and self.training and int(self.age) >= self.refresh_every
            if int(self.age) < 0 or due:
                self.encoded.copy_(encode_text(self.tokens))
                self.age.zero_()
            if self.training:
                self.age += 1
        return self.encoded
