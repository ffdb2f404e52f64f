"""DiffusionRet's second stage: the best candidates of a finished head, looked at together and put in a new order.

Jin et al., ICCV 2023; docs/science.md, The heads. Scores are those of the first stage; to a query's best 32 a term is
added that two small networks (`calmctl.model.denoiser`) make of the query and of all 32: a list-wise score, which
`rerank_videos` and `rerank_texts` give. Only these networks train; the first stage stays as it is, bit for bit.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from calmctl.model.backbone import full_precision
from calmctl.model.denoiser import Candidates, Denoiser, Schedule, frame_shares, judged_texts, judged_videos
from calmctl.model.heads.base import Compared, FusionHead, VideoTable, WeightedLoss
from calmctl.parallel import SINGLE, World
from calmctl.recipe.schema import HeadSection

_QUERIES = 32  # whose candidates are held at a time: 8 MB in float32 at D = 512 with 32 of them
_VIDEOS = 128  # that pass the base's layers at a time


class DiffusionRetHead(nn.Module):
    """A first stage and two denoisers, from text to video and from video to text.

        score'(q, j) = score(q, j) + weight softmax_j( temperature x_j ),  x = walk from noise to a prediction

    for the `candidates` best j of a query by the first stage's score; all others keep theirs, below these. The term is
    small, at most 0.2 with the published weight and temperature, so that it decides among near equals.

    The walk starts from one vector for all queries, an entry a rank, drawn once from `seed`: a score depends on no
    order and on no other query (our choice: the reference draws anew for each query, in the order in which they come).
    2 x 2,625,025 parameters train at D = 512.

    Args:
        base: The first stage.
        dim: D.
        keys: Of the recipe.
        seed: Of the walk's starts.
    """

    name = "diffusionret"
    rows_are_independent = True
    world: World = SINGLE
    starts: Tensor

    def __init__(self, base: FusionHead, dim: int, keys: HeadSection, seed: int) -> None:
        super().__init__()
        assert isinstance(base, nn.Module)
        self.base = base.requires_grad_(False)
        self.reads, self.base_alignment = base.reads, keys.base_alignment
        self.t2v, self.v2t = Denoiser(dim), Denoiser(dim)
        self.schedule, self.sample_steps = Schedule(keys.diffusion_steps), keys.sample_steps
        self.candidates, self.gen_temperature = keys.candidates, keys.gen_temperature
        self.weight, self.temperature = keys.rerank_weight, keys.rerank_temperature
        shape, generator = (max(1, keys.samples), keys.candidates), torch.Generator().manual_seed(seed)
        starts = torch.randn(shape, generator=generator, dtype=torch.float64)
        self.register_buffer("starts", starts if keys.samples else torch.zeros_like(starts), persistent=False)

    def train(self, mode: bool = True) -> DiffusionRetHead:
        """Train the denoisers; the first stage has no dropout here, as it scores."""
        super().train(mode)
        self.base.eval()
        return self

    # Training.

    def similarities(
        self, texts: Tensor, frames: Tensor, paired: Tensor, clips: Tensor | None = None
    ) -> list[WeightedLoss]:
        """The two losses of a batch, in which every clip is a candidate of every sentence, and the other way about.

        Args:
            texts: As for any head; this process has a part of them.
            frames: [B, F, D].
            paired: As for any head.
            clips: The number of each row's clip, [B]: other rows of the same clip are no candidates (our choice). None:
                they are all different.
        """
        with full_precision(frames.device):
            world = self.world
            sentences, seen = world.gather(self._sentences(texts)), self._behind(frames)
            own, size = world.gather(paired), len(frames)
            clips = own if clips is None else clips
            hidden = (clips[:, None] == clips) & (own[:, None] != own)
            with world.same_random():
                steps = torch.randint(self.schedule.steps, (size,), device=frames.device)
                noise = [torch.randn(size, size, dtype=seen.dtype, device=frames.device) for _ in range(2)]
            clean, shares = torch.eye(size, dtype=seen.dtype, device=frames.device), frame_shares(sentences, seen)
            parts = zip(("gen_t2v", "gen_v2t"), (judged_videos, judged_texts), (self.t2v, self.v2t), noise, strict=True)
            losses = []
            for name, judged, denoiser, drawn in parts:
                x = self.schedule.noised(clean, drawn, steps)
                predicted = judged(denoiser, sentences, seen, shares, x, steps, hidden)
                losses.append(WeightedLoss(name, 1.0, F.cross_entropy(self.gen_temperature * predicted, own)))
            return losses

    # Scores of single pairs are the first stage's.

    def video_table(self, frames: Tensor) -> VideoTable:
        """The first stage's."""
        return self.base.video_table(frames)

    def score(self, texts: Tensor, table: VideoTable) -> Tensor:
        """The first stage's scores [N_t, N_v], of which `rerank_videos` and `rerank_texts` start."""
        return self.base.score(texts, table)

    def explain(self, text: Tensor, frames: Tensor) -> Compared:
        """What makes the first stage's score: a pair alone has no other."""
        return self.base.explain(text, frames)

    # Re-ranking.

    @torch.no_grad()
    def rerank_videos(self, texts: Tensor, frames: Tensor, scores: Tensor) -> Tensor:
        """Scores [N_t, N_v] of sentences as queries, from those of the first stage."""
        return self._reranked(texts, frames, scores, by_text=True)

    @torch.no_grad()
    def rerank_texts(self, texts: Tensor, frames: Tensor, scores: Tensor) -> Tensor:
        """Scores [N_t, N_v] of clips as queries, from those of the first stage."""
        return self._reranked(texts, frames, scores.T, by_text=False).T

    def _reranked(self, texts: Tensor, frames: Tensor, scores: Tensor, *, by_text: bool) -> Tensor:
        """Of scores [queries, candidates]; ties go to the first in the gallery's order."""
        device = self.t2v.query.weight.device
        with full_precision(device):
            sentences, reranked = self._sentences(texts.to(device)), scores.clone()
            seen = torch.cat([self._behind(some.to(device)) for some in torch.split(frames, _VIDEOS)])
            count = min(self.candidates, scores.shape[1])
            for rows in torch.split(torch.arange(len(scores)), _QUERIES):
                best = scores[rows].argsort(dim=1, descending=True, stable=True)[:, :count]
                prepare = self._videos_of if by_text else self._texts_of
                term = self._term(self.t2v if by_text else self.v2t, prepare(sentences, seen, rows, best.to(device)))
                reranked[rows[:, None], best] += term.to(reranked)
            return reranked

    def _videos_of(self, sentences: Tensor, seen: Tensor, rows: Tensor, best: Tensor) -> Candidates:
        asked = sentences[rows]
        # One query at a time: the frames of all candidates of 32 would be 25 MB.
        pooled = [_pooled(text[None], seen[clips])[0] for text, clips in zip(asked, best, strict=True)]
        return self.t2v.videos(asked, torch.stack(pooled))

    def _texts_of(self, sentences: Tensor, seen: Tensor, rows: Tensor, best: Tensor) -> Candidates:
        pooled = [_pooled(sentences[some], seen[row][None])[:, 0] for row, some in zip(rows, best, strict=True)]
        return self.v2t.texts(sentences[best], torch.stack(pooled))

    def _term(self, denoiser: Denoiser, prepared: Candidates) -> Tensor:
        """What is added to the scores of the candidates, [Q, k]."""
        logits = prepared.logits
        terms = []
        for start in self.starts:
            x = start[: logits.shape[1]].to(logits).expand_as(logits)
            predicted = denoiser.sample(prepared, x, self.schedule, self.sample_steps)
            terms.append((self.temperature * predicted).softmax(-1))
        return self.weight * torch.stack(terms).mean(0)

    def _sentences(self, texts: Tensor) -> Tensor:
        """The sentence features [N_t, D] in what the head reads."""
        sentences = texts[:, 0] if self.reads == "words" else texts
        return sentences.detach().to(self.t2v.query.weight.dtype)

    @torch.no_grad()
    def _behind(self, frames: Tensor) -> Tensor:
        """Frames [N_v, F, D] behind the layers that the first stage has over them."""
        frames = frames.detach().to(self.t2v.query.weight.dtype)
        layers = getattr(self.base, "temporal", None)
        if layers is None:
            return frames
        return layers(frames)


def _pooled(texts: Tensor, frames: Tensor) -> Tensor:
    """Each clip's frames [N_v, F, D] as each sentence [N_t, D] pools them: [N_t, N_v, D]."""
    return torch.einsum("tvf,vfd->tvd", frame_shares(texts, frames), frames)
