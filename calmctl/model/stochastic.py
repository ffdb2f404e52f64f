"""Stochastic text of T-MASS: a text becomes a cloud whose radius depends on one video (docs/science.md, The heads)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from calmctl.errors import BadInput

NoiseKind = Literal["uniform", "normal"]


@dataclass(frozen=True, slots=True)
class NoiseLaw:
    """The law of eps in t_s = t + eps * R, independent per coordinate.

    Attributes:
        kind: "uniform" is U[0, 1), which also shifts the text (the released default: MSR-VTT, DiDeMo);
            "normal" is N(0, std^2).
        std: Standard deviation of "normal" (the released LSMDC runs have 0.003).
    """

    kind: NoiseKind = "uniform"
    std: float = 0.003

    def __post_init__(self) -> None:
        if self.kind not in ("uniform", "normal"):
            raise BadInput(f"noise is {self.kind!r}; it must be 'uniform' or 'normal'")

    def sample_like(self, texts: Tensor) -> Tensor:
        """Noise of the shape, type and device of `texts`, from torch's default generator (training)."""
        return torch.rand_like(texts) if self.kind == "uniform" else torch.randn_like(texts) * self.std

    def sample(self, *shape: int, generator: torch.Generator) -> Tensor:
        """Float32 noise on the generator's device (evaluation: the generator carries the recorded seed)."""
        draw = torch.rand if self.kind == "uniform" else torch.randn
        noise = draw(shape, generator=generator, dtype=torch.float32, device=generator.device)
        return noise if self.kind == "uniform" else noise * self.std


class Radius(nn.Module):
    """R = exp(W S + b), element-wise in R^D, from the cosines S of a text with the F frames of one video.

    W [D, F] starts as ones on its first F diagonal entries and b as zero, so that R is exp(cos(t, f_k)) on
    coordinate k < F and exactly 1 elsewhere. F * D + D parameters: 6,656 at F = 12, D = 512 (the released
    code declares one more, which it never uses).
    """

    def __init__(self, frames: int, dim: int) -> None:
        super().__init__()
        self.linear = nn.Linear(frames, dim)
        nn.init.eye_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, texts: Tensor, frames: Tensor) -> Tensor:
        """Radii [N, D] of texts [N, D], each with the frames [N, F, D] of its own video."""
        cosines = torch.einsum("nd,nfd->nf", F.normalize(texts, dim=-1), F.normalize(frames, dim=-1))
        radii: Tensor = self.linear(cosines).exp()
        return radii

    def of_cosines(self, cosines: Tensor) -> Tensor:
        """Radii [N_v, D, N_t] from cosines [N_v, F, N_t]: all pairs of a block, for scoring."""
        weight = self.linear.weight.expand(len(cosines), -1, -1)
        return torch.baddbmm(self.linear.bias[:, None], weight, cosines).exp_()


def support_texts(texts: Tensor, radii: Tensor, pooled: Tensor) -> Tensor:
    """t_sup = t + R * (vbar - t) / |vbar - t|: the point of the cloud nearest the video (docs/science.md, The heads).

    Args:
        texts: t, [N, D], raw.
        radii: R, [N, D].
        pooled: vbar, [N, D]: each text's own video, pooled for every text of the batch, averaged. It is the
            output of a LayerNorm while t is raw: the different scales are the reference's.
    """
    return texts + F.normalize(pooled - texts, dim=-1) * radii
