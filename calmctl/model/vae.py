"""The cross-modal VAE: from the video's distribution over anchors to the sentence's (Eq. 8, 9)."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn

LAYOUTS: dict[str, tuple[tuple[int, ...], bool, tuple[int, ...]]] = {
    # A is the default because it is the plainest reading. With its offsets each prints as the paper's 153.1M.
    # name: encoder's hidden widths, whether mu and log sigma^2 share them, decoder's hidden widths
    "A": ((384,), True, (384,)),
    "B": ((512,), True, ()),
    "C": ((256, 256), True, (256, 256)),
    "D": ((320,), False, (320,)),
    "D2": ((512,), False, ()),
}
"""Readings of the paper's "shallow encoder-decoder" that fit its parameter budget (docs/science.md)."""

_ACTIVATIONS = {"relu": nn.ReLU, "gelu": nn.GELU, "tanh": nn.Tanh}


@dataclass(frozen=True, slots=True)
class Posterior:
    """q(z | V_p): a diagonal Gaussian.

    Attributes:
        mean: mu, [B, d].
        logvar: log sigma^2, [B, d].
    """

    mean: Tensor
    logvar: Tensor

    def sample(self) -> Tensor:
        """z = mu + sigma * eps with eps ~ N(0, I), [B, d] (Eq. 8)."""
        return self.mean + (0.5 * self.logvar).exp() * torch.randn_like(self.mean)


class CrossModalVAE(nn.Module):
    """Encoder q(z | V_p) and decoder p(S_p | z), both shallow perceptrons.

    `layout` A has 416,925 parameters at K = 157, d = 256.
    """

    def __init__(
        self,
        anchors: int,
        *,
        latent: int = 256,
        layout: str = "A",
        activation: Literal["relu", "gelu", "tanh"] = "relu",
        dropout: float = 0.1,
        input: Literal["probability", "log", "scaled"] = "probability",
        logvar_limit: float = 10.0,
    ) -> None:
        """Make the layers for K = `anchors` and d = `latent`; the recipe's schema explains the keys."""
        super().__init__()
        hidden, shared, decoder_hidden = LAYOUTS[layout]
        self.input = input
        self.logvar_limit = logvar_limit

        def perceptron(widths: tuple[int, ...]) -> list[nn.Module]:
            layers: list[nn.Module] = []
            for inner, outer in pairwise(widths):
                layers += [nn.Linear(inner, outer), _ACTIVATIONS[activation](), nn.Dropout(dropout)]
            return layers

        trunk = (anchors, *hidden)
        self.trunk = nn.Sequential(*perceptron(trunk)) if shared else nn.Identity()
        branch = [] if shared else [perceptron(trunk), perceptron(trunk)]
        self.mean = nn.Sequential(*(branch[0] if branch else []), nn.Linear(hidden[-1], latent))
        self.logvar = nn.Sequential(*(branch[1] if branch else []), nn.Linear(hidden[-1], latent))
        widths = (latent, *decoder_hidden)
        self.decoder = nn.Sequential(*perceptron(widths), nn.Linear(widths[-1], anchors))

    def posterior(self, log_v: Tensor) -> Posterior:
        """q(z | V_p) for log V_p [B, K]; log sigma^2 is clamped to +-`logvar_limit` (row 10)."""
        anchors = log_v.shape[-1]
        match self.input:
            # Entries of V_p are about 1/K, so that the first layer begins as little more than its bias: `log` and
            # `scaled` are there to compare.
            case "probability":
                inputs = log_v.exp()
            case "scaled":
                inputs = log_v.exp() * anchors
            case "log":
                inputs = log_v
        hidden = self.trunk(inputs)
        logvar = self.logvar(hidden).clamp(-self.logvar_limit, self.logvar_limit)
        return Posterior(self.mean(hidden), logvar)

    def decode(self, latent: Tensor) -> Tensor:
        """log S_hat, [B, K], of latents [B, d] (Eq. 9)."""
        # Log-softmax and no softmax: L_rec needs the logarithm, and the small entries would be lost on the way to it.
        return self.decoder(latent).log_softmax(dim=-1)
