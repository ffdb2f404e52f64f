"""UATVR: frames and words pass the same layers beside extra tokens, and every clip and sentence is a Gaussian as well.

Fang et al., ICCV 2023; docs/science.md, The heads. The layers, the extra tokens and the interaction score; the
Gaussians teach the layers in training and are left out of an export for inference.
"""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from calmctl.errors import BadInput
from calmctl.model.backbone import Backbone, full_precision
from calmctl.model.heads.base import Compared, Similarity, WeightedLoss, WeightedSimilarity, start_small
from calmctl.model.heads.meanp import FrameTransformer, text_tower
from calmctl.model.heads.wti import TokenInteractionHead, interaction, is_word, nearest_pairs
from calmctl.parallel import SINGLE, World

_STD = 0.02  # of every new matrix and position, as the reference starts them


class UATVRHead(TokenInteractionHead):
    """Scores 1/2 [ sum_w a_w max_f x_w.y_f + sum_f b_f max_w x_w.y_f ] over words and frames, extra tokens among them.

        X_t = layers([w + Q, q]), X_v = layers([f + P, p]); to words and frames themselves (w, f) are added again
        x, y the unit vectors of these, a and b softmaxes of a perceptron each (D, ReLU, 1) of x and of y

    The layers are the same for both sides; q and p are learned tokens that meet a sentence or a clip by attention
    alone. Padding is masked in the layers and takes no part in a maximum (our choice: the reference lets it count
    as a cosine of 0, so that its scores depend on the padding).

    In training the real words and frames also give a Gaussian each (`TokenGaussian`), which two losses compare:
    `mil` and `kl_prob`. 15,286,786 parameters at D = 512 with 12 frames and 77 words, 13,183,490 of them for scoring.

    Args:
        layers: The shared layers and the frames' positions P.
        words: The most words of a sentence, start and end token included.
        extra_frames: Number of extra tokens p.
        extra_words: Number of extra tokens q.
        samples: K, drawn from every Gaussian per step; 0: a head without Gaussians, as inference needs it.
        mil_weight: Factor of the `mil` loss.
        kl_weight: Factor of the `kl_prob` loss, which is a sum over the batch.
    """

    name = "uatvr"
    world: World = SINGLE

    def __init__(
        self,
        layers: FrameTransformer,
        words: int,
        *,
        extra_frames: int = 2,
        extra_words: int = 2,
        samples: int = 7,
        mil_weight: float = 1e-2,
        kl_weight: float = 1e-4,
    ) -> None:
        super().__init__(layers)
        dim = layers.positions.shape[1]
        self.extra_frames = nn.Parameter(_STD * torch.randn(extra_frames, dim))
        self.word_positions = nn.Parameter(_STD * torch.randn(words, dim))
        self.extra_words = nn.Parameter(_STD * torch.randn(extra_words, dim))
        self.samples, self.mil_weight, self.kl_weight = samples, mil_weight, kl_weight
        self.probability = nn.ModuleDict()
        # Under one name, by which an export for inference leaves them out (`runs/checkpoint.py`).
        if samples:
            self.probability = nn.ModuleDict({"words": TokenGaussian(dim), "frames": TokenGaussian(dim)})

    @torch.no_grad()
    def start_from(self, backbone: Backbone) -> None:
        """Start the extra frame tokens as the text positions behind those that the frames took.

        Raises:
            CheckpointError: The text tower is no CLIP transformer.
            BadInput: It has fewer positions.
        """
        positions, first = text_tower(backbone).positional_embedding, len(self.temporal.positions)
        last = first + len(self.extra_frames)
        if last > len(positions):
            raise BadInput(
                f"head.extra_frames: {len(self.extra_frames)} behind {first} frames are more than the {len(positions)} "
                "positions of the text tower; take fewer, or set head.init=random"
            )
        # As if two frames more had been sampled (our choice); the extra words have no such place and stay at N(0,
        # 0.02^2).
        self.extra_frames.copy_(positions[first:last])

    def similarities(self, texts: Tensor, frames: Tensor, paired: Tensor) -> list[Similarity]:
        """Scores [B_t, B_v] of texts [B_t, 1 + L, D] and frames [B_v, F, D], and the Gaussians' losses.

        Text i belongs to the clip `paired`[i]; the Gaussians need it, the scores do not see it.
        """
        with full_precision(texts.device):
            words, word_weights, real = self.weighted_words(texts)
            tokens, frame_weights = self.weighted_frames(frames)
            matrix = interaction(words, word_weights, tokens, frame_weights, real)
            losses: list[Similarity] = [WeightedSimilarity("task", 1.0, matrix)]
            if self.samples:
                n_words, n_frames = texts.shape[1] - 1, frames.shape[1]
                losses += self._gaussian_losses(words[:, :n_words], real[:, :n_words], tokens[:, :n_frames], paired)
            return losses

    def _gaussian_losses(self, words: Tensor, real: Tensor, frames: Tensor, paired: Tensor) -> list[Similarity]:
        """L_MIL and L_KL of the whole batch; this process has a part of the sentences, and all clips in their order."""
        counted = real.clone()
        counted[:, 0] = False  # the start token, which is the same in every sentence
        text_mean, text_log_std = self.probability["words"](words, pooled(words, counted), real)
        # Only the text side is gathered: this process has a part of the sentences, and all clips already.
        text_mean, text_log_std = self.world.gather(text_mean), self.world.gather(text_log_std)
        everywhere = torch.ones(frames.shape[:2], dtype=torch.bool, device=frames.device)
        own = self.world.gather(paired)  # every sentence's clip
        video_mean, video_log_std = (
            part[own] for part in self.probability["frames"](frames, pooled(frames, everywhere), everywhere)
        )
        # Drawn behind the gather and alike in all processes: two losses of one batch, not of its parts.
        with self.world.same_random():
            text_samples = gaussian_samples(text_mean, text_log_std, self.samples)
            video_samples = gaussian_samples(video_mean, video_log_std, self.samples)
        kl = prior_divergence(text_samples, text_log_std) + prior_divergence(video_samples, video_log_std)
        return [
            WeightedLoss("mil", self.mil_weight, multiple_instance_loss(video_samples, text_samples)),
            WeightedLoss("kl_prob", self.kl_weight, kl),
        ]

    @torch.no_grad()
    def explain(self, text: Tensor, frames: Tensor) -> Compared:
        """Each token with its nearest of the other side, extra tokens among them: M = words + frames + 4.

        The share of an extra frame token belongs to no frame: the frames' shares are those of the rest (our choice).
        """
        table, n_words = self.video_table(frames[None]), int(is_word(text[1:]).sum())
        # Without the padding, which scoring masks: a pad has no nearest frame to show.
        words, word_weights, _ = self.weighted_words(text[None, : 1 + n_words])
        met = nearest_pairs(words[0], word_weights[0], table["frames"][0], table["weights"][0])
        weights = met.weights[: len(frames)]
        return replace(met, weights=weights / weights.sum())

    def weighted_words(self, texts: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Unit words and extra tokens [N_t, L + E, D], their weights a, 0 where there is no word, and which are real.

        Raises:
            BadInput: Sentence features [N_t, D] instead of words, or more words than the head has positions.
        """
        if texts.dim() != 3:
            raise BadInput(
                "the uatvr head compares words, and these are sentence features; encode the sentences with this model"
            )
        words = texts[:, 1:].to(self.word_positions.dtype)
        length, known = words.shape[1], len(self.word_positions)
        if length > known:
            raise BadInput(f"the head knows the positions of {known} words and was given {length}")
        real = F.pad(is_word(words), (0, len(self.extra_words)), value=True)
        tokens = self._tokens(words, self.word_positions[:length], self.extra_words, real)
        weights = self.word_weight(tokens).squeeze(-1).masked_fill(~real, -torch.inf)
        return tokens, weights.softmax(-1), real

    def weighted_frames(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        """Unit frames and extra tokens [N_v, F + E, D], and their weights b."""
        frames = frames.to(self.word_positions.dtype)
        positions = self.temporal.positions_of(frames.shape[1])
        tokens = self._tokens(frames, positions, self.extra_frames)
        return tokens, self.frame_weight(tokens).squeeze(-1).softmax(-1)

    def _tokens(self, given: Tensor, positions: Tensor, extra: Tensor, real: Tensor | None = None) -> Tensor:
        """The unit tokens behind the shared layers, of `given` [N, n, D] and extra tokens [E, D]: [N, n + E, D]."""
        sequence = torch.cat([given + positions, extra.expand(len(given), -1, -1)], dim=1)
        # Words and frames are added once more behind the layers, as released; extra tokens have no row to be added
        # again.
        return F.normalize(self.temporal.attend(sequence, real) + F.pad(given, (0, 0, 0, len(extra))), dim=-1)


class TokenGaussian(nn.Module):
    """The mean and the log standard deviation, [N, D] each, of unit tokens u and their pooled vector.

        att(W1, W2) = sum_i softmax_i( W2 tanh(W1 u_i) ) u_i            W1 [D / 2, D], W2 [1, D / 2], no biases
        mean        = unit( LN( pooled + sigmoid( W att + b ) ) )
        log std     = W' att' + b' + W'' pooled + b''                    att' with weights of its own

    1,051,648 parameters at D = 512.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.mean_attention = _attention(dim)
        self.mean_attended = nn.Linear(dim, dim)
        # CLIP's eps, 1e-5, here and in the layers (our choice).
        self.mean_norm = nn.LayerNorm(dim)
        self.std_attention = _attention(dim)
        self.std_attended = nn.Linear(dim, dim)
        self.std_pooled = nn.Linear(dim, dim)
        start_small(self, _STD)

    def forward(self, tokens: Tensor, pooled: Tensor, real: Tensor) -> tuple[Tensor, Tensor]:
        """Of tokens [N, n, D], of which those that are not `real` [N, n] take no part, and pooled [N, D]."""
        attended = self.mean_attended(_attend(self.mean_attention, tokens, real))
        mean = F.normalize(self.mean_norm(pooled + attended.sigmoid()), dim=-1)
        spread = self.std_attended(_attend(self.std_attention, tokens, real)) + self.std_pooled(pooled)
        return mean, spread


def _attention(dim: int) -> nn.Sequential:
    half = dim // 2
    return nn.Sequential(nn.Linear(dim, half, bias=False), nn.Tanh(), nn.Linear(half, 1, bias=False))


def _attend(attention: nn.Module, tokens: Tensor, real: Tensor) -> Tensor:
    shares = attention(tokens).squeeze(-1).masked_fill(~real, -torch.inf).softmax(-1)
    return torch.einsum("nw,nwd->nd", shares, tokens)


def pooled(tokens: Tensor, real: Tensor) -> Tensor:
    """The unit mean [N, D] of those tokens [N, n, D] that are `real` [N, n]."""
    return F.normalize((tokens * real[..., None]).sum(1) / real.sum(1, keepdim=True).clamp(min=1), dim=-1)


def gaussian_samples(mean: Tensor, log_std: Tensor, count: int) -> Tensor:
    """`count` draws of each of N Gaussians: [N, count, D]."""
    noise = torch.randn(len(mean), count, mean.shape[-1], dtype=mean.dtype, device=mean.device)
    return mean[:, None] + log_std.exp()[:, None] * noise


def multiple_instance_loss(videos: Tensor, texts: Tensor) -> Tensor:
    """L_MIL of samples [B, K, D] each, clip i with sentence i: every sample has K positives among B K others.

        1/2 [ M(S) + M(S^T) ],  S = Z_v Z_t^T,  M(S) = - mean over rows and over a row's K positives of log softmax

    Dot products as they are: no temperature, and the samples are not normalised.
    """
    batch, count, _ = videos.shape
    products = videos.flatten(0, 1) @ texts.flatten(0, 1).T
    loss = products.new_zeros(())
    for rows in (products, products.T):
        own = rows.log_softmax(-1).view(batch, count, batch, count).diagonal(dim1=0, dim2=2)
        loss = loss - own.mean() / 2
    return loss


def prior_divergence(samples: Tensor, log_std: Tensor) -> Tensor:
    """One side's part of L_KL, a sum over the batch and D of 1/2 ( z^2 + exp(log std) - log std - 1 ).

    As released: z is the mean of a Gaussian's samples [B, K, D] and not its mean, and the standard deviation stands
    where a divergence from N(0, I) has the variance. Twice the batch is twice the loss (docs/science.md).
    """
    # At the start 74 per pair, where a divergence proper would be 1: the published weight belongs to this form.
    return 0.5 * (samples.mean(1).square() + log_std.exp() - log_std - 1).sum()
