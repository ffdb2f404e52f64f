"""Token-wise interaction: every word with every frame, weighted (WTI; docs/science.md, The heads)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from calmctl.errors import BadInput
from calmctl.model.backbone import full_precision
from calmctl.model.heads.base import Compared, Similarity, VideoTable, WeightedSimilarity, pair_blocks, start_small
from calmctl.model.heads.meanp import FrameTransformer

_PAIRS_PER_BLOCK = {"cpu": 1 << 11, "cuda": 1 << 16}  # words x frames numbers a pair


class TokenInteractionHead(nn.Module):
    """Scores 1/2 [ sum_w a_w max_f cos(w, f) + sum_f b_f max_w cos(w, f) ] over the words w and the frames f.

    The weights a and b are softmaxes, over a sentence's words and over a video's frames, of a small perceptron
    each (hidden D, ReLU, 1). It reads texts as [N, 1 + L, D]: the sentence feature, then its words, then rows of zeros
    up to the longest sentence; those take no part, so a score does not depend on the padding.

    Args:
        frames: The layers over the frames.
        hidden: The width of those perceptrons, in D: 2 is the first stage of DiffusionRet.
    """

    name = "wti"
    reads = "words"
    rows_are_independent = True

    def __init__(self, frames: FrameTransformer, *, hidden: int = 1) -> None:
        super().__init__()
        dim = frames.positions.shape[1]
        self.temporal = frames
        self.word_weight = token_weight(dim, hidden)
        self.frame_weight = token_weight(dim, hidden)

    def similarities(self, texts: Tensor, frames: Tensor, paired: Tensor) -> list[Similarity]:
        """Scores [B_t, B_v] of texts [B_t, 1 + L, D] and frames [B_v, F, D]; `paired` plays no part."""
        with full_precision(texts.device):
            words, word_weights, real = self.weighted_words(texts)
            matrix = interaction(words, word_weights, *self.weighted_frames(frames), real)
            return [WeightedSimilarity("task", 1.0, matrix)]

    @torch.no_grad()
    def video_table(self, frames: Tensor) -> VideoTable:
        """{"frames": unit vectors [N_v, F, D], "weights": b, [N_v, F]}."""
        with full_precision(frames.device):
            unit, weights = self.weighted_frames(frames)
            return {"frames": unit, "weights": weights}

    @torch.no_grad()
    def score(self, texts: Tensor, table: VideoTable) -> Tensor:
        """Scores [N_t, N_v]."""
        with full_precision(texts.device):
            return score_tokens(*self.weighted_words(texts), table)

    @torch.no_grad()
    def explain(self, text: Tensor, frames: Tensor) -> Compared:
        """Each word with its nearest frame, and each frame with its nearest word: M = words + frames."""
        table, n_words = self.video_table(frames[None]), int(is_word(text[1:]).sum())
        words, word_weights, _ = self.weighted_words(text[None, : 1 + n_words])
        return nearest_pairs(words[0], word_weights[0], table["frames"][0], table["weights"][0])

    def weighted_words(self, texts: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Unit words [N_t, L, D], their weights a [N_t, L], 0 where there is no word, and where there is one.

        Raises:
            BadInput: Sentence features [N_t, D] instead of words.
        """
        if texts.dim() != 3:
            raise BadInput(
                "the wti head compares words, and these are sentence features; encode the sentences with this model"
            )
        words = texts[:, 1:].to(self.temporal.positions.dtype)
        real = is_word(words)
        weights = self.word_weight(words).squeeze(-1).masked_fill(~real, -torch.inf)
        return F.normalize(words, dim=-1), weights.softmax(-1), real

    def weighted_frames(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        """Unit frames [N_v, F, D] behind the layers, and their weights b [N_v, F]."""
        frames = self.temporal(frames.to(self.temporal.positions.dtype))
        return F.normalize(frames, dim=-1), self.frame_weight(frames).squeeze(-1).softmax(-1)


def token_weight(dim: int, hidden: int = 1) -> nn.Sequential:
    """A perceptron (hidden D, ReLU, 1) of a token, started as UATVR and DiffusionRet do: nearly equal weights."""
    layers = nn.Sequential(nn.Linear(dim, hidden * dim), nn.ReLU(), nn.Linear(hidden * dim, 1))
    start_small(layers, 0.02)
    return layers


def is_word(words: Tensor) -> Tensor:
    """Which rows of words [..., D] are words and not padding."""
    return (words != 0).any(-1)


def score_tokens(words: Tensor, word_weights: Tensor, real: Tensor, table: VideoTable) -> Tensor:
    """The scores [N_t, N_v] of weighted words and of a table of weighted frames, in blocks of pairs."""
    scores = words.new_empty(len(words), len(table["frames"]))
    pairs = _PAIRS_PER_BLOCK.get(words.device.type, 1 << 14)
    for rows, columns in pair_blocks(len(words), len(table["frames"]), pairs):
        block = table["frames"][columns], table["weights"][columns]
        scores[rows, columns] = interaction(words[rows], word_weights[rows], *block, real[rows])
    return scores


def nearest_pairs(words: Tensor, word_weights: Tensor, frames: Tensor, frame_weights: Tensor) -> Compared:
    """What one sentence's words [L, D] and one clip's frames [F, D] met, with their weights: M = L + F."""
    cosines = words @ frames.T
    nearest_frame, nearest_word = cosines.argmax(1), cosines.argmax(0)
    return Compared(
        0.5 * torch.cat([word_weights, frame_weights]),
        torch.cat([words, words[nearest_word]]),
        torch.cat([frames[nearest_frame], frames]),
        0.5 * frame_weights.index_add(0, nearest_frame, word_weights),
    )


def interaction(words: Tensor, word_weights: Tensor, frames: Tensor, frame_weights: Tensor, real: Tensor) -> Tensor:
    """The scores [N_t, N_v] of unit words [N_t, L, D] and unit frames [N_v, F, D] with their weights.

    Words that are not `real` [N_t, L] are nobody's nearest word.
    """
    (n_texts, n_words, dim), (n_videos, n_frames, _) = words.shape, frames.shape
    cosines = (words.reshape(-1, dim) @ frames.reshape(-1, dim).T).view(n_texts, n_words, n_videos, n_frames)
    by_word = torch.einsum("tw,twv->tv", word_weights, cosines.amax(-1))
    nearest = cosines.masked_fill(~real[:, :, None, None], -torch.inf).amax(1)
    by_frame = torch.einsum("vf,tvf->tv", frame_weights, nearest)
    return 0.5 * (by_word + by_frame)
