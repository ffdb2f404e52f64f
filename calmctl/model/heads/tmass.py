"""T-MASS: a text becomes a cloud whose radius depends on one video; scored without the released leak."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from calmctl.errors import BadInput
from calmctl.model.backbone import full_precision
from calmctl.model.heads import pooling
from calmctl.model.heads.base import Compared, VideoTable, WeightedSimilarity
from calmctl.parallel import SINGLE, World
from calmctl.words import counted

# The stochastic text: noise, radius, support (docs/science.md, The heads).


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
        return self.linear(cosines).exp()

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


# Stochastic scoring holds D numbers per pair, a few times over: blocks that fit a CPU's cache, or fill a GPU.
PAIRS_PER_BLOCK = {"cpu": 1 << 11, "cuda": 1 << 18}


class TMassHead(nn.Module):
    """Scores the best of `trials` samples of the text's cloud: max_m cos(t + E_m * R(t, v), V(v|t)).

    Computes in the type of its own weights: `head.double()` gives float64. A score depends on the text, the
    video, the weights and `noise_seed`: all pairs share one bank of noise, whatever the chunking.

    Args:
        dim: D.
        frames: F; the radius is a linear layer over the frames, so videos must have exactly this many.
        heads: Attention heads of the pooling block.
        dropout: On the last linear branch of the pooling block, in training.
        noise: Law of the noise, "uniform" on [0, 1) or "normal".
        noise_std: Standard deviation of "normal".
        support_weight: Weight of the support-text loss (0.8 on MSR-VTT in the reference; 0 leaves it out).
        trials: Samples per pair in scoring; 0 scores the text itself.
        noise_seed: Seed of the noise bank of scoring.
    """

    name = "t-mass"
    reads = "sentences"
    rows_are_independent = True  # but for the mean of the support texts, which `world` takes over the whole batch
    world: World = SINGLE

    def __init__(
        self,
        dim: int,
        frames: int,
        heads: int = 1,
        dropout: float = 0.3,
        *,
        noise: NoiseKind = "uniform",
        noise_std: float = 0.003,
        support_weight: float = 0.8,
        trials: int = 20,
        noise_seed: int = 0,
    ) -> None:
        super().__init__()
        self.pooling = pooling.TextConditionedPooling(dim, heads, dropout)
        self.radius = Radius(frames, dim)
        self.noise = NoiseLaw(noise, noise_std)
        self.support_weight, self.trials, self.noise_seed = support_weight, trials, noise_seed

    def similarities(self, texts: Tensor, frames: Tensor, paired: Tensor) -> list[WeightedSimilarity]:
        """Cosines of one sample of each text, and of its support text if that has a weight.

        A text is moved by the radius of its own video only, and then scored against all; the pooling sees
        the text before it was moved.

        Args:
            texts: [B_t, D].
            frames: [B_v, F, D].
            paired: [B_t], the index in `frames` of each text's own video.
        """
        with full_precision(texts.device):
            texts, frames = self._cast(texts), self._cast(self._checked(frames))
            pooled = self.pooling(texts, frames)
            # As the reference trains: one radius per text and not one per pair, which would be D numbers for each of B
            # x B pairs.
            radii = self.radius(texts, frames[paired])
            moved = texts + self.noise.sample_like(texts) * radii
            similarities = [WeightedSimilarity("task", 1.0, pooling.pooled_cosines(moved, pooled))]
            if self.support_weight > 0:
                support = support_texts(texts, radii, self.world.mean_over(pooled, dim=1)[paired])
                similarities.append(
                    WeightedSimilarity("support", self.support_weight, pooling.pooled_cosines(support, pooled))
                )
            return similarities

    @torch.no_grad()
    def video_table(self, frames: Tensor) -> VideoTable:
        """The `pooling_table` of frames [N_v, F, D], and the frames at unit length for the radius."""
        with full_precision(frames.device):
            frames = self._cast(self._checked(frames))
            return pooling.pooling_table(self.pooling, frames) | {"unit_frames": F.normalize(frames, dim=-1)}

    @torch.no_grad()
    def score(self, texts: Tensor, table: VideoTable) -> Tensor:
        """Exact scores [N_t, N_v] under the shared noise bank; dropout never applies."""
        with full_precision(texts.device):
            block = partial(self._best_trial, self.noise_bank().to(texts.device))
            if self.trials == 0:
                block = partial(pooling.mixture_cosines, self.pooling)
            pairs = PAIRS_PER_BLOCK.get(texts.device.type, 1 << 14)
            return pooling.score_in_blocks(block, self.pooling, self._cast(texts), table, pairs)

    @torch.no_grad()
    def explain(self, text: Tensor, frames: Tensor) -> Compared:
        """The sample of the sentence's cloud that came nearest, and the frames pooled for the sentence."""
        table, queries = self.video_table(frames[None]), pooling.prepare_texts(self.pooling, text[None])
        bank = self.noise_bank().to(text.device)
        best = int(self.trial_cosines(bank, queries, table)[0, :, 0].argmax())
        sample = text + bank[best] * self.radius(text[None], frames[None])[0]
        pooled, weights = pooling.attended(self.pooling, queries, table)
        return Compared(text.new_ones(1), sample.view(1, -1), pooled[None], weights)

    def noise_bank(self) -> Tensor:
        """E [trials, D]: the noise all pairs share in scoring, a function of `noise_seed` alone.

        Without trials it is one row of zeros: the text itself.
        """
        if self.trials == 0:
            return self._cast(torch.zeros(1, self.pooling.dim))
        # On the CPU wherever scoring runs: one seed gives other numbers on another kind of device. The released code
        # draws anew for every pair, so that a score there depends on what else is scored.
        generator = torch.Generator().manual_seed(self.noise_seed)
        return self._cast(self.noise.sample(self.trials, self.pooling.dim, generator=generator))

    @torch.no_grad()
    def trial_cosines(
        self, bank: Tensor, texts: pooling.Queries, table: VideoTable, goal: Tensor | None = None
    ) -> Tensor:
        """cos(t + E_m * R(t, v), p) of every trial m, for a block of a few pairs: [N_v, trials, N_t].

        p is V(v|t), or `goal` [N_v, D] where that is given. Since E is shared by all pairs,

            num_m = t.p + E_m.(R*p),   den_m^2 = |t|^2 + 2 E_m.(t*R) + (E_m*E_m).(R*R),   cos = num / (den |p|)

        are matrix products over all trials and pairs (docs/science.md, The heads).

        Args:
            bank: E, the `noise_bank` on the device of the texts.
            texts: The text side of N_t texts.
            table: The `video_table` of N_v videos.
            goal: One vector for each video instead of its text-conditioned pooling.
        """
        radii = self._radii(texts, table)
        if goal is None:
            mixture = pooling.mix(self.pooling, texts, table)
            dots, norms = mixture.dots, mixture.norms
            scaled = pooling.pooled_vectors(mixture, table).mul_(radii)
        else:
            dots, norms = goal @ texts.columns, goal.norm(dim=-1, keepdim=True)
            scaled = goal[..., None] * radii
        # D numbers per pair are what scoring spends its time on: one buffer serves both products.
        numerators = (bank @ scaled).add_(dots[:, None])
        squares = (bank @ torch.mul(texts.columns, radii, out=scaled)).mul_(2).add_(texts.lengths.square())
        squares += bank.square() @ radii.square_()
        # A sum of rounded products: where it is nearly nothing it can come out negative.
        lengths = squares.clamp_min_(0).sqrt_().mul_(norms[:, None])
        return numerators.div_(lengths.clamp_min_(torch.finfo(lengths.dtype).tiny))

    def _best_trial(self, bank: Tensor, texts: pooling.Queries, table: VideoTable) -> Tensor:
        return self.trial_cosines(bank, texts, table).amax(1)

    def _radii(self, texts: pooling.Queries, table: VideoTable) -> Tensor:
        n_videos, n_frames, dim = table["unit_frames"].shape
        dots = table["unit_frames"].reshape(-1, dim) @ texts.columns
        # 1e-12 is F.normalize's own, so that a text of zeros has the radius that training gives it.
        return self.radius.of_cosines(dots.div_(texts.lengths.clamp_min(1e-12)).view(n_videos, n_frames, -1))

    def _checked(self, frames: Tensor) -> Tensor:
        if frames.shape[1] != (wanted := self.radius.linear.in_features):
            raise BadInput(
                f"the T-MASS head was built for {counted(wanted, 'frame')} a video and was given {frames.shape[1]}; "
                f"extract {counted(wanted, 'frame')}, or use the xpool head, which takes any number"
            )
        return frames

    def _cast(self, features: Tensor) -> Tensor:
        return features.to(self.pooling.query.weight.dtype)
