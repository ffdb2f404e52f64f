"""DiffusionRet's second stage: two small networks that look at a query's candidates together and say which is meant.

Jin et al., ICCV 2023; docs/science.md, The heads. A query's distribution over its candidates is a vector x [k], of
which the right one is (1, 0, ..., 0) in some order. A denoiser predicts it from x with noise, and DDIM walks from noise
to a prediction in T steps. Written as published, a step multiplies every candidate by five matrices. All of that is
linear but two softmaxes and a ReLU, so products of the weights are formed once and a step costs a few products a
candidate: the same result in exact arithmetic (tests/model/test_denoiser.py has the published form).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from calmctl.model.heads.base import start_small


@dataclass(frozen=True)
class Schedule:
    """The cosine schedule of T steps.

    beta_n = min(1 - h((n + 1) / T) / h(n / T), 0.999),  h(u) = cos^2((u + 0.008) / 1.008 pi / 2)
    abar_n = prod (1 - beta)
    """

    steps: int

    @cached_property
    def kept(self) -> Tensor:
        """abar [T], in float64: the share of the signal's variance that is left at each step."""
        h = [math.cos((n / self.steps + 0.008) / 1.008 * math.pi / 2) ** 2 for n in range(self.steps + 1)]
        betas = [min(1 - after / before, 0.999) for before, after in pairwise(h)]
        return torch.tensor([1 - beta for beta in betas], dtype=torch.float64).cumprod(0)

    def noised(self, clean: Tensor, noise: Tensor, steps: Tensor) -> Tensor:
        """sqrt(abar_n) x_0 + sqrt(1 - abar_n) eps, of rows [N, k] at `steps` [N]."""
        kept = self.kept[steps.cpu()].to(clean)[:, None]
        return kept.sqrt() * clean + (1 - kept).sqrt() * noise

    def walked(self, count: int) -> list[int]:
        """The steps that a walk of `count` takes, from T - 1 down; a walk of T takes all, one of 1 the first alone."""
        if count == 1:
            return [self.steps - 1]
        count = min(count, self.steps)
        return [round((self.steps - 1) * (count - 1 - i) / (count - 1)) for i in range(count)]


@dataclass(frozen=True, slots=True)
class Candidates:
    """What a step needs of Q queries with k candidates each; nothing of it depends on the step.

    Attributes:
        logits: The part of the attention's logits that is the same in every step, [Q, k].
        by_step: What the step's embedding is multiplied by for the rest of them, [Q, k, D].
        mixed: What the attention mixes, in the space of the perceptron's hidden layer, [Q, k, 2D].
        own: Each candidate's own part of that layer, [Q, k, 2D].
    """

    logits: Tensor
    by_step: Tensor
    mixed: Tensor
    own: Tensor


class Denoiser(nn.Module):
    """One direction's network.

    For a query with its candidates, and e = e_n the embedding of step n, as published:

        logits_j = Wq (query + e) . Wk (candidate_j + e) + x_j          no scale, one head; w = softmax over candidates
        out_j = w2 . ReLU( W1 [ Wp sum_i w_i Wv (candidate_i + e) + bp ; candidate_j ] + b1 ) + b2 + w_j
        e_n = Wb SiLU(Wa pe(n) + ba) + bb                                pe the sinusoids of n

    From text to video the query is the sentence, and a candidate is a clip's frames pooled by it. From video to text
    a candidate is a sentence, and the query is the clip's frames pooled by that very sentence. 2,625,025 parameters
    at D = 512.
    """

    angles: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.step_in, self.step_out = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.query = nn.Linear(dim, dim, bias=False)
        self.key = nn.Linear(dim, dim, bias=False)
        self.value = nn.Linear(dim, dim, bias=False)
        self.out = nn.Linear(dim, dim)
        self.hidden, self.last = nn.Linear(2 * dim, 2 * dim), nn.Linear(2 * dim, 1)
        angles = 10000.0 ** (-2 * torch.arange((dim + 1) // 2, dtype=torch.float64) / dim)
        self.register_buffer("angles", angles, persistent=False)
        start_small(self, 0.02)

    def embed(self, steps: Tensor) -> Tensor:
        """e_n [..., D] of step numbers [...]."""
        weight = self.step_in.weight
        turns = steps[..., None].to(weight) * self.angles.to(weight)
        sinusoids = torch.stack([turns.sin(), turns.cos()], dim=-1).flatten(-2)[..., : weight.shape[1]]
        return self.step_out(F.silu(self.step_in(sinusoids)))

    @property
    def agreement(self) -> Tensor:
        """Wk^T Wq [D, D]: a candidate times this times a query is the attention's logit."""
        return self.key.weight.T @ self.query.weight

    @property
    def mixing(self) -> Tensor:
        """W1a Wp Wv [2D, D]: what the attention mixes, as the hidden layer sees it."""
        return self.hidden.weight[:, : self.query.in_features] @ self.out.weight @ self.value.weight

    def own_part(self, candidates: Tensor) -> Tensor:
        """W1b c + b1 + W1a bp [..., 2D] of candidates [..., D]."""
        dim = self.query.in_features
        bias = self.hidden.bias + self.hidden.weight[:, :dim] @ self.out.bias
        return F.linear(candidates, self.hidden.weight[:, dim:], bias)

    def videos(self, texts: Tensor, pooled: Tensor) -> Candidates:
        """Candidates of sentences [Q, D]: clips pooled by them, [Q, k, D]."""
        agreement = self.agreement
        return Candidates(
            logits=torch.einsum("qkd,qd->qk", pooled, texts @ agreement.T),
            by_step=pooled @ agreement,
            mixed=pooled @ self.mixing.T,
            own=self.own_part(pooled),
        )

    def texts(self, texts: Tensor, pooled: Tensor) -> Candidates:
        """Candidates of Q clips: sentences [Q, k, D], by each of which the clip was pooled, [Q, k, D]."""
        agreement = self.agreement
        return Candidates(
            logits=((texts @ agreement) * pooled).sum(-1),
            # Here every candidate has a query of its own, so that its product with the step stays as well.
            by_step=pooled @ agreement.T + texts @ agreement,
            mixed=texts @ self.mixing.T,
            own=self.own_part(texts),
        )

    def forward(self, candidates: Candidates, x: Tensor, step: int) -> Tensor:
        """The prediction [Q, k] from x [Q, k] at a step."""
        embedded = self.embed(torch.tensor(step, device=x.device))
        weights = (candidates.logits + candidates.by_step @ embedded + x).softmax(-1)
        mixed = torch.einsum("qk,qkh->qh", weights, candidates.mixed) + self.mixing @ embedded
        judged: Tensor = self.last((mixed[:, None] + candidates.own).relu()).squeeze(-1)
        return judged + weights

    def sample(self, candidates: Candidates, start: Tensor, schedule: Schedule, count: int) -> Tensor:
        """Walk from `start` [Q, k] to a prediction in [-1, 1], [Q, k], by DDIM without noise (eta = 0)."""
        x, predicted = start, start
        steps = schedule.walked(count)
        for here, there in zip(steps, [*steps[1:], -1], strict=True):
            kept = float(schedule.kept[here])
            kept_there = float(schedule.kept[there]) if there >= 0 else 1.0
            predicted = self(candidates, x, here).clamp(-1, 1)
            noise = (x - math.sqrt(kept) * predicted) / math.sqrt(1 - kept)
            x = math.sqrt(kept_there) * predicted + math.sqrt(1 - kept_there) * noise
        return predicted


def frame_shares(texts: Tensor, frames: Tensor) -> Tensor:
    """Softmax over a clip's frames of their raw products with a sentence: [N_t, D], [N_v, F, D] -> [N_t, N_v, F]."""
    return torch.einsum("td,vfd->tvf", texts, frames).softmax(-1)


# A batch's losses: every clip is a candidate of every sentence, and the other way about. Pooled frames [B, B, D] are
# never held: pooling is linear in the frames, so their images are formed once a frame and mixed.


def judged_videos(
    denoiser: Denoiser, texts: Tensor, frames: Tensor, shares: Tensor, x: Tensor, steps: Tensor, hidden: Tensor
) -> Tensor:
    """Predictions [B_t, B_v] of the clip of each sentence, by the text-to-video network.

    Of texts [B_t, D], frames [B_v, F, D], their `frame_shares` [B_t, B_v, F], x [B_t, B_v] and one step a sentence,
    [B_t]; clips that are `hidden`, bool [B_t, B_v], are no candidates of a sentence.
    """
    embedded = denoiser.embed(steps)
    asked = (texts + embedded) @ denoiser.agreement.T
    logits = torch.einsum("tvf,tvf->tv", shares, torch.einsum("td,vfd->tvf", asked, frames))
    weights = (logits + x).masked_fill(hidden, -torch.inf).softmax(-1)
    mixed = torch.einsum("tvf,vfh->th", weights[..., None] * shares, frames @ denoiser.mixing.T)
    own = torch.einsum("tvf,vfh->tvh", shares, denoiser.own_part(frames))  # shares sum to 1: the bias stays
    return _judged(denoiser, mixed + embedded @ denoiser.mixing.T, own, weights, hidden)


def judged_texts(
    denoiser: Denoiser, texts: Tensor, frames: Tensor, shares: Tensor, x: Tensor, steps: Tensor, hidden: Tensor
) -> Tensor:
    """Predictions [B_v, B_t] of the sentence of each clip; `x` and `hidden` are [B_v, B_t], `steps` [B_v]."""
    embedded = denoiser.embed(steps)
    by_text = texts @ denoiser.agreement
    pooled = torch.einsum("tvf,tvf->vt", shares, torch.einsum("td,vfd->tvf", by_text, frames))
    moved = embedded @ denoiser.agreement
    with_step = torch.einsum("tvf,vf->vt", shares, torch.einsum("vd,vfd->vf", moved, frames))
    logits = pooled + with_step + embedded @ by_text.T
    weights = (logits + x).masked_fill(hidden, -torch.inf).softmax(-1)
    mixed = weights @ (texts @ denoiser.mixing.T) + embedded @ denoiser.mixing.T
    return _judged(denoiser, mixed, denoiser.own_part(texts)[None], weights, hidden)


def _judged(denoiser: Denoiser, mixed: Tensor, own: Tensor, weights: Tensor, hidden: Tensor) -> Tensor:
    judged: Tensor = denoiser.last((mixed[:, None] + own).relu()).squeeze(-1)
    return (judged + weights).masked_fill(hidden, -torch.inf)
