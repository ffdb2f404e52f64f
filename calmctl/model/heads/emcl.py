"""EMCL: features moved towards a few bases that expectation-maximisation finds (docs/science.md, The heads)."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from calmctl.model.backbone import full_precision
from calmctl.model.heads.base import Compared, VideoTable, WeightedSimilarity, pair_blocks
from calmctl.model.heads.meanp import FrameTransformer
from calmctl.model.heads.pooling import pooled_cosines

FRAME_TEMPERATURE = 3.0  # the reference's, on features of natural length
MOMENTUM = 0.9
_TINY = 1e-6
_NOTHING = 1e-30  # shares below are zeros: as denormal numbers they would cost a CPU ten times the rest of a step
_PAIRS_PER_BLOCK = 1 << 15

Start = Literal["released", "gaussian"]
Rebuild = Literal["released", "shares"]


class EMCLHead(nn.Module):
    """Scores cos(t + beta t A, p + beta p A) with p = sum_f softmax_f(t . f / 3) f and one D x D operator A.

    In training A is what expectation-maximisation makes of the batch, and carries no gradient: the reference's
    form. The reference runs it on every block of test pairs as well, so that a score depends on the other
    sentences and clips of its block. Here scoring uses `operator`, the running mean of the training batches' A:
    a score depends on its text, its video and the weights (our choice, docs/science.md).

    Args:
        frames: The layers over the frames.
        bases: K, the bases.
        steps: Iterations.
        weight: beta.
        start: "released" starts every basis at +1 or -1 everywhere (times a running mean), so that bases part
            by rounding alone, and in float32 the order of a batch decides how; "gaussian" draws every basis anew
            in each step.
        rebuild: "released" rebuilds X with Z', "shares" with Z, which adds about D / K times as much.

    Attributes:
        operator: The running mean of A, [D, D]; zeros before the first training step.
        basis_signs: The reference's buffer of one number per basis, [1, K]; unused by "gaussian".
    """

    name = "emcl"
    reads = "sentences"
    rows_are_independent = False  # A is made of all texts and videos of the batch
    operator: Tensor
    basis_signs: Tensor
    batches: Tensor

    def __init__(
        self,
        frames: FrameTransformer,
        bases: int = 32,
        steps: int = 9,
        weight: float = 3.0,
        *,
        start: Start = "released",
        rebuild: Rebuild = "released",
    ) -> None:
        super().__init__()
        self.temporal = frames
        self.bases, self.steps, self.weight, self.start = bases, steps, weight, start
        self.rebuild = rebuild
        dim = frames.positions.shape[1]
        # The reference's width: it says how far the entries below are from +-1, and so how soon bases part.
        drawn = torch.randn(1, bases) * (2 / bases) ** 0.5
        self.register_buffer("basis_signs", drawn / (_TINY + drawn.norm(dim=0)))
        self.register_buffer("operator", torch.zeros(dim, dim))
        self.register_buffer("batches", torch.tensor(0))

    def similarities(self, texts: Tensor, frames: Tensor, paired: Tensor) -> list[WeightedSimilarity]:
        """Cosines [B_t, B_v] of texts [B_t, D] and frames [B_v, F, D]; `paired` plays no part.

        The rows of the expectation-maximisation are the B_v B_t pooled videos and the B_t texts. In training
        mode its operator enters the running mean.
        """
        with full_precision(texts.device):
            texts, frames = self._cast(texts), self.temporal(self._cast(frames))
            weights = frame_weights(texts, frames)
            pooled = weights.mT @ frames  # [B_v, B_t, D]
            with torch.no_grad():
                operator = self._maximise(torch.cat([pooled.flatten(0, 1), texts]))
                moved_texts = self.weight * (texts @ operator)
                moved_pooled = self.weight * (pooled @ operator)
            return [WeightedSimilarity("task", 1.0, pooled_cosines(texts + moved_texts, pooled + moved_pooled))]

    @torch.no_grad()
    def video_table(self, frames: Tensor) -> VideoTable:
        """{"frames": [N_v, F, D], "moved": f + beta f A, "gram": the latter's dot products, [N_v, F, F]}."""
        with full_precision(frames.device):
            frames = self.temporal(self._cast(frames))
            moved = self.moved(frames)
            return {"frames": frames, "moved": moved, "gram": moved @ moved.mT}

    @torch.no_grad()
    def score(self, texts: Tensor, table: VideoTable) -> Tensor:
        """Exact scores [N_t, N_v]: p + beta p A is the same mixture of moved frames that p is of frames."""
        with full_precision(texts.device):
            texts = self._cast(texts)
            asked = F.normalize(self.moved(texts), dim=-1)
            scores = texts.new_empty(len(texts), len(table["frames"]))
            for rows, columns in pair_blocks(len(texts), len(table["frames"]), _PAIRS_PER_BLOCK):
                weights = frame_weights(texts[rows], table["frames"][columns])
                dots = (weights * (table["moved"][columns] @ asked[rows].T)).sum(1)
                squares = (weights * (table["gram"][columns] @ weights)).sum(1)
                scores[rows, columns] = (dots / squares.clamp_min(torch.finfo(dots.dtype).tiny).sqrt()).T
            return scores

    @torch.no_grad()
    def explain(self, text: Tensor, frames: Tensor) -> Compared:
        """The moved sentence and the mixture of moved frames."""
        table = self.video_table(frames[None])
        weights = frame_weights(text[None], table["frames"])[0, :, 0]
        return Compared(text.new_ones(1), self.moved(text)[None], (weights @ table["moved"][0])[None], weights)

    def moved(self, features: Tensor) -> Tensor:
        """x + beta x A of features [..., D], with the running mean of A."""
        return features + self.weight * (features @ self.operator)

    def _maximise(self, rows: Tensor) -> Tensor:
        start = self.basis_signs
        if self.start == "gaussian":
            start = F.normalize(torch.randn(len(rows), self.bases, dtype=rows.dtype, device=rows.device), dim=0)
        operator, bases = expectation_maximisation(rows, start, self.steps, self.rebuild)
        if self.training:
            # The first batch sets the mean: zeros would hold it down for tens of batches.
            share = torch.where(self.batches > 0, operator.new_full((), 1 - MOMENTUM), operator.new_ones(()))
            # A buffer, and so part of the weights (our choice): the released code does not save its mean.
            self.operator.lerp_(operator, share)
            self.batches += 1
            if self.start == "released":
                self.basis_signs.lerp_(bases.mean(0, keepdim=True), 1 - MOMENTUM)
        return operator

    def _cast(self, features: Tensor) -> Tensor:
        return features.to(self.temporal.positions.dtype)


def frame_weights(texts: Tensor, frames: Tensor) -> Tensor:
    """softmax over frames of t . f / 3: [N_t, D], [N_v, F, D] -> [N_v, F, N_t], texts last."""
    return (frames @ texts.T / FRAME_TEMPERATURE).softmax(1)


def expectation_maximisation(
    rows: Tensor, start: Tensor, steps: int, rebuild: Rebuild = "released"
) -> tuple[Tensor, Tensor]:
    """K bases of the D columns of X = `rows` [n, D], each a vector of n numbers.

        Z = softmax over bases of X^T M             [D, K], how much of a basis is in a coordinate
        M = X Z', columns to length 1               [n, K], with Z' = Z, columns to sum 1

    The reconstruction of X, M Z'^T as released or M Z^T, is linear in X once Z is known: it is X A, with A [D, D] of
    rank K at most.

    Args:
        rows: X.
        start: M, [n, K], or [1, K] for the same numbers in every row.
        steps: Rounds of the two lines above.
        rebuild: "released" with Z', "shares" with Z.

    Returns:
        A, and the last M.
    """
    bases = start.expand(len(rows), -1)
    for _ in range(steps):
        shares = F.threshold((rows.T @ bases).softmax(-1), _NOTHING, 0.0)
        directions = shares / (_TINY + shares.sum(0))
        bases = rows @ directions
        lengths = _TINY + bases.norm(dim=0)
        bases = bases / lengths
    return (directions / lengths) @ (directions if rebuild == "released" else shares).T, bases
