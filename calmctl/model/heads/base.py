"""The one interface that every fusion head has."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class WeightedSimilarity:
    """A [B_t, B_v] matrix of cosines and its weight in the task loss.

    Attributes:
        name: "task" for the main matrix, else the name of the auxiliary loss ("support").
        weight: The factor of its symmetric cross-entropy.
        matrix: Cosines [B_t, B_v].
    """

    name: str
    weight: float
    matrix: Tensor


@dataclass(frozen=True, slots=True)
class Compared:
    """What a head compared for one pair: its score is the sum over m of shares_m cos(text_m, video_m).

    There is one product, M = 1, but for the interaction of words and frames, where each word meets its nearest
    frame, and each frame its nearest word.

    Attributes:
        shares: The weight of each product, [M], summing to 1.
        text: The text side, [M, D]: the sentence, T-MASS's winning sample of its cloud, EMCL's moved sentence, words.
        video: The video side, [M, D]: the pooled frames, or frames.
        weights: The share of each frame in the score, [F], summing to 1; the attention of a text-conditioned head (the
            mean over its attention heads), 1 / F under mean pooling.
        conditioned: Whether those weights depend on the sentence.
    """

    shares: Tensor
    text: Tensor
    video: Tensor
    weights: Tensor
    conditioned: bool = True


@dataclass(frozen=True, slots=True)
class WeightedLoss:
    """A summand of the task loss that is no cross-entropy of a matrix: a scalar of the whole batch, and its weight."""

    name: str
    weight: float
    value: Tensor


Similarity = WeightedSimilarity | WeightedLoss
"""What a head gives in training: the matrices that are to find each other's rows, and losses of its own."""

VideoTable = dict[str, Tensor]
"""What a head keeps of the videos for scoring: tensors whose first axis is the video axis, [N_v, ...]."""


# A head answers for itself: what it reads, what it keeps, how it explains a score. Code that asks for the class of a
# head has to be found again for each new one.
class FusionHead(Protocol):
    """A fusion head scores texts [N_t, D] against the frames of videos [N_v, F, D].

    Inputs are the backbone's raw projected features (not L2-normalised). Scoring sees a text, a video and
    the weights, and nothing else: no argument says which text belongs to which video.

    Attributes:
        name: Its `head.kind`.
    """

    name: str

    @property
    def reads(self) -> str:
        """What texts are: "sentences" for their features [N_t, D], or "words" for [N_t, 1 + L, D].

        The latter are the sentence's feature, its words, and rows of zeros where the sentence is shorter.
        """
        ...

    @property
    def rows_are_independent(self) -> bool:
        """Whether, in training, row i of a matrix depends on text i, its noise and the videos alone.

        A process that has a part of the texts and all videos then computes its rows of the whole matrix.
        """
        ...

    def similarities(self, texts: Tensor, frames: Tensor, paired: Tensor) -> Sequence[Similarity]:
        """Training: the cosine matrices whose symmetric cross-entropies are the task loss, and further losses.

        A `WeightedLoss` is one of the whole batch, and the same in every process.

        Args:
            texts: [B_t, D], or [B_t, 1 + L, D] for a head that reads words.
            frames: [B_v, F, D].
            paired: [B_t], the index in `frames` of each text's own video (T-MASS takes its radius from it).
        """
        ...

    def video_table(self, frames: Tensor) -> VideoTable:
        """Everything scoring needs of the videos, computed once: a dict of [N_v, ...] tensors."""
        ...

    # No argument says who belongs to whom. T-MASS's released evaluation pools each clip for its own sentence, whatever
    # the query is: it finds the truth in pure noise, and nothing in its shapes shows it (docs/protocols.md).
    def score(self, texts: Tensor, table: VideoTable) -> Tensor:
        """Exact scores [N_t, N_v] in float32, or in float64 where the inputs are."""
        ...

    def explain(self, text: Tensor, frames: Tensor) -> Compared:
        """What makes the score of one text, [D] or [1 + L, D], and one video's frames [F, D], on their device."""
        ...


@runtime_checkable
class Reranker(Protocol):
    """A head that puts the best candidates of a query in a new order: `score` is that of its first stage.

    The new scores are list-wise: those of a query depend on which candidates there are, but on no other query. Its
    losses are its own, so that CLIP's scale plays no part in them; `similarities` is also given the batch's `clips`.

    Attributes:
        base: The first stage, whose scores are leak-free as any head's.
        candidates: How many of a query's best get a new score.
    """

    base: Any
    candidates: int

    def rerank_videos(self, texts: Tensor, frames: Tensor, scores: Tensor) -> Tensor:
        """Scores [N_t, N_v] for sentences as queries, from those that `score` gave, of frames [N_v, F, D].

        All but the best `candidates` of each row stay what they were, and below those.
        """
        ...

    def rerank_texts(self, texts: Tensor, frames: Tensor, scores: Tensor) -> Tensor:
        """The same for clips as queries: a matrix [N_t, N_v] of its own, whose columns are re-ranked."""
        ...


@dataclass(frozen=True, slots=True)
class Probes:
    """What texts need of every frame and say of themselves, computed once for all videos.

    Attributes:
        directions: [N_t, P, D]; of a frame only its dot products with these matter.
        own: [N_t, ...], what else a score depends on.
    """

    directions: Tensor
    own: Tensor


# X-Pool keeps 1.9 kB per clip this way, beside frames that are stored anyway. T-MASS has no such form: 80 kB.
@runtime_checkable
class ProbedHead(Protocol):
    """A head that can also score from dot products with the frames as they are, and a small table.

    Where its `video_table` is larger than the frames, this is what makes searching millions of clips possible.
    """

    def score_directly(self, texts: Tensor, frames: Tensor) -> Tensor:
        """The scores of `score`, [N_t, N_v], without any table: for few pairs much the cheaper way."""
        ...

    def probe_table(self, frames: Tensor) -> VideoTable:
        """What scores need of the videos [N_v, F, D] beside dot products with their frames."""
        ...

    def text_probes(self, texts: Tensor) -> Probes:
        """The directions of texts [N_t, D]."""
        ...

    def score_probed(self, probes: Probes, dots: Tensor, table: VideoTable) -> Tensor:
        """The scores of `score`, [N_t, N_v], from the dot products [N_t, P, N_v, F]."""
        ...


def start_small(module: nn.Module, std: float) -> None:
    """Start the linear layers within a module as N(0, std^2), without bias."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight, std=std)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


# Pairs of texts and videos in blocks that bound the memory of a score.


_TEXTS = 256  # enough for matrix products at full speed, and leaves room for several videos


def pair_blocks(n_texts: int, n_videos: int, pairs: int) -> Iterator[tuple[slice, slice]]:
    """Slices of texts and of videos that cover all pairs once, about `pairs` pairs at a time."""
    text_step = max(1, min(n_texts, _TEXTS, pairs))
    video_step = max(1, pairs // text_step)
    for i in range(0, n_texts, text_step):
        for j in range(0, n_videos, video_step):
            yield slice(i, i + text_step), slice(j, j + video_step)
