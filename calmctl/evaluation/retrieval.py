"""All (text, video) scores of a split: exact, streamed, and blind to who belongs to whom (docs/protocols.md)."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from calmctl.errors import BadInput
from calmctl.evaluation.metrics import Direction, Ranks, rank_all, retrieval_metrics, text_to_video
from calmctl.evaluation.paper import METHODS
from calmctl.evaluation.result import HONEST_SCORER, Labels, RetrievalResult, retrieval_result
from calmctl.model.backbone import full_precision
from calmctl.model.calm import CalmModel
from calmctl.model.heads.base import FusionHead, Reranker, VideoTable
from calmctl.model.heads.diffusionret import DiffusionRetHead
from calmctl.model.heads.pooling import Queries, mix, pooled_cosines, pooled_vectors, prepare_texts, score_in_blocks
from calmctl.model.heads.tmass import PAIRS_PER_BLOCK, TMassHead
from calmctl.model.heads.xpool import XPoolHead
from calmctl.runs.checkpoint import load_run
from calmctl.runs.run import Run
from calmctl.source.encoding import EncodedSplit
from calmctl.words import Progress

_CHUNKS = {"cpu": (1024, 128), "cuda": (1 << 14, 1024)}
"""Texts and videos at once."""


@torch.no_grad()
def score_all(
    head: FusionHead,
    texts: Tensor,
    frames: Tensor,
    *,
    text_chunk: int | None = None,
    video_chunk: int | None = None,
    device: torch.device | str | None = None,
    progress: Progress | None = None,
) -> Tensor:
    """Score every text against every video.

    Nothing larger than the result and two chunks is held; chunk sizes change memory and speed, not scores
    (up to rounding). No argument tells which text describes which video.

    Args:
        head: A fusion head, on `device`.
        texts: Raw sentence features [N_t, D].
        frames: Raw frame features [N_v, F, D]. N_t and N_v are unrelated.
        text_chunk: Texts at once; None: as many as suit the device.
        video_chunk: Videos at once; likewise.
        device: Where to compute; default: where `texts` are.
        progress: Told of the pairs after every chunk.

    Returns:
        [N_t, N_v] on the CPU, float32, or float64 where the head computes in float64.

    Raises:
        BadInput: A feature is not a finite number: its score, and every rank, would mean nothing.
    """
    _check_finite(texts, "text")
    _check_finite(frames, "video")
    device = texts.device if device is None else torch.device(device)
    n_texts, n_videos = len(texts), len(frames)
    # On a GPU the few hundred MB that suit it: every chunk is some fifty kernels and a copy to the host, whatever it
    # holds, and the host waits for that copy.
    chunks = _CHUNKS.get(device.type, _CHUNKS["cpu"])
    text_chunk, video_chunk = text_chunk or chunks[0], video_chunk or chunks[1]
    scores = torch.empty(n_texts, n_videos)
    done = 0
    for j in range(0, n_videos, video_chunk):
        table = head.video_table(frames[j : j + video_chunk].to(device))
        for i in range(0, n_texts, text_chunk):
            block = head.score(texts[i : i + text_chunk].to(device), table)
            if block.dtype != scores.dtype:
                scores = scores.to(block.dtype)
            scores[i : i + text_chunk, j : j + video_chunk] = block
            done += block.numel()
            if progress is not None:
                progress("scoring pairs", done, n_texts * n_videos)
    return scores


def _check_finite(features: Tensor, what: str) -> None:
    # A sum is finite only if all its terms are (overflow apart, which is looked at again), without a mask's memory.
    if torch.isfinite(features.sum(dtype=torch.float64)):
        return
    bad = ~torch.isfinite(features.flatten(1)).all(1)
    if bad.any():
        rows = bad.nonzero().flatten().tolist()
        raise BadInput(
            f"the features of {len(rows)} of {len(bad)} {what}s are not finite numbers, the first at row {rows[0]}; "
            "extract them again"
        )


# AUDIT ONLY: the released T-MASS evaluation, which leaks the ground truth into the scores (docs/protocols.md).
#
# It pools every candidate video with the caption that belongs to it, so that a video never looks its best for
# anybody else's caption. Numbers from here are comparable with published T-MASS numbers and with nothing else;
# they never select a model.


_BLOCK = 64


@torch.no_grad()
def score_tmass_released(head: TMassHead, texts: Tensor, frames: Tensor, owners: Tensor) -> Tensor:
    """The scores of the released code: s(o, i) = cos(t_s(o|i), V(i | the caption that video i OWNS)).

    t_s is the one of the head's trials that was best for the right pooling, V(i | o), as in the released code.
    On true pairs this equals the correct score; elsewhere it tends to be lower.

    Args:
        head: A T-MASS head; its device computes.
        texts: Raw sentence features [N, D].
        frames: Raw frame features [N, F, D].
        owners: [N], the index of each text's own video: every video exactly once.

    Returns:
        [N, N] on the CPU.

    Raises:
        BadInput: N_texts != N_videos, or a video without exactly one caption.
    """
    n_texts, n_videos = len(texts), len(frames)
    if n_texts != n_videos or not torch.equal(owners.cpu().sort().values, torch.arange(n_videos)):
        raise BadInput(
            "the released T-MASS protocol exists only where every video has exactly one caption, and here "
            f"{n_texts} texts meet {n_videos} videos, or one video has several; use the default protocol"
        )
    weights = head.pooling.query.weight
    device, texts, frames = weights.device, texts.to(weights), frames.to(weights)
    with full_precision(device):
        table = head.video_table(frames)
        table["leak"] = _pooled_with_own_caption(head, texts[owners.to(device).argsort()], table)
        bank = head.noise_bank().to(device)

        def score_block(block_texts: Queries, videos: VideoTable) -> Tensor:
            chosen = head.trial_cosines(bank, block_texts, videos).argmax(1, keepdim=True)
            leaked = head.trial_cosines(bank, block_texts, videos, goal=videos["leak"])
            return leaked.gather(1, chosen).squeeze(1)

        pairs = PAIRS_PER_BLOCK.get(device.type, 1 << 14)
        return score_in_blocks(score_block, head.pooling, texts, table, pairs).cpu()


def _pooled_with_own_caption(head: TMassHead, captions: Tensor, table: VideoTable) -> Tensor:
    """V(i | caption i) of captions [N, D] in the order of the videos: [N, D]."""
    own = []
    for i in range(0, len(captions), _BLOCK):
        block = {name: tensor[i : i + _BLOCK] for name, tensor in table.items()}
        pooled = pooled_vectors(mix(head.pooling, prepare_texts(head.pooling, captions[i : i + _BLOCK]), block), block)
        own.append(pooled.diagonal(dim1=0, dim2=2).T)
    return torch.cat(own)


def dual_softmax(scores: Tensor) -> Tensor:
    """Cosines [N_t, N_v] times their softmax over all texts (DSL, docs/protocols.md), for text-to-video retrieval.

    Transductive: the score of one query depends on all the other queries. For video-to-text retrieval, where
    the videos are the queries, pass the transpose.
    """
    return scores * (100.0 * scores).softmax(0)  # 100 is the field's factor


# The dense form of text-conditioned scoring: D x D work for every pair, kept as the yardstick of the exact one.


@torch.no_grad()
def score_dense(
    head: XPoolHead | TMassHead, texts: Tensor, frames: Tensor, *, text_chunk: int = 512, video_chunk: int = 32
) -> Tensor:
    """Scores [N_t, N_v] by the formulas as they are written, `text_chunk` x `video_chunk` pairs at a time.

    Pools with the training form of the pooling block; T-MASS tries every vector of the head's noise bank in
    turn. Texts and frames must have the head's own type.
    """
    training = head.training
    head.eval()
    try:
        scores = texts.new_empty(len(texts), len(frames))
        for i in range(0, len(texts), text_chunk):
            for j in range(0, len(frames), video_chunk):
                block = _score(head, texts[i : i + text_chunk], frames[j : j + video_chunk])
                scores[i : i + text_chunk, j : j + video_chunk] = block
        return scores
    finally:
        head.train(training)


def _score(head: XPoolHead | TMassHead, texts: Tensor, frames: Tensor) -> Tensor:
    pooled = head.pooling(texts, frames)
    if isinstance(head, XPoolHead) or head.trials == 0:
        return pooled_cosines(texts, pooled)
    cosines = torch.einsum("td,vfd->vtf", F.normalize(texts, dim=-1), F.normalize(frames, dim=-1))
    radii = head.radius.linear(cosines).exp()
    best = texts.new_full((len(frames), len(texts)), -torch.inf)
    for noise in head.noise_bank().to(texts.device):
        best = torch.maximum(best, F.cosine_similarity(texts + noise * radii, pooled, dim=-1))
    return best.T


Scorer = Literal["leak-free", "re-ranked", "tmass-released", "dual-softmax"]
SCORERS: tuple[Scorer, ...] = ("leak-free", "re-ranked", "tmass-released", "dual-softmax")


@dataclass(frozen=True, slots=True)
class Evaluation:
    """One test set evaluated.

    Attributes:
        scores: What they are from, [N_t, N_v]; where scores are re-ranked, those of sentences as queries.
        ranks: Where each query's target stands, by direction.
        base: Where a head re-ranked the candidates of its first stage, the numbers of that stage alone, leak-free.
        leak_r1: R@1 of the same weights under the released T-MASS protocol, an audit of a leak, where it was asked for
            and exists.
    """

    result: RetrievalResult
    scores: np.ndarray
    encoded: EncodedSplit
    ranks: Mapping[Direction, Ranks]
    notes: tuple[str, ...] = ()
    base: RetrievalResult | None = None
    leak_r1: float | None = None

    @property
    def results(self) -> tuple[RetrievalResult, ...]:
        """All that tables must show: what re-ranking gives never stands without what it started from."""
        return (self.result,) if self.base is None else (self.result, self.base)

    def own_ranks(self) -> Mapping[Direction, Ranks]:
        """The ranks of single searches; dual softmax has those of sentences as queries alone."""
        one_way = self.result.labels.scorer == "dual-softmax"
        return {"text_to_video": self.ranks["text_to_video"]} if one_way else self.ranks

    def saved(self) -> bytes:
        """A .npz of the scores, the ids of clips, whose each caption is, the captions as UTF-8, and the protocol card.

        Captions are numbered as they stand.
        """
        buffer = io.BytesIO()
        texts, videos = np.arange(len(self.encoded.captions)).astype(str), np.array(self.encoded.ids, dtype=str)
        owners = self.encoded.owners.astype(np.int64)
        # As bytes: in an array of text every caption takes four bytes for each letter of the longest.
        sentences = np.array([caption.encode() for caption in self.encoded.captions], dtype=np.bytes_)
        card = np.array(json.dumps(self.result.card.to_json()))
        np.savez(
            buffer, scores=self.scores, text_ids=texts, video_ids=videos, owners=owners, sentences=sentences, card=card
        )
        return buffer.getvalue()

    def record(self) -> dict[str, Any]:
        """The numbers, clips and captions, and each query's rank."""
        encoded = self.encoded
        return {
            "result": self.result.to_json(),
            **({} if self.base is None else {"base": self.base.to_json()}),
            "clips": list(encoded.ids),
            "captions": list(encoded.captions),
            "owners": encoded.owners.tolist(),
            "ranks": {direction: _plain(ranks) for direction, ranks in self.own_ranks().items()},
            "rivals": self._rivals(),
        }

    def _rivals(self) -> list[int]:
        """The wrong clip that each sentence likes best, by number; nothing where there is one clip."""
        if self.scores.shape[1] < 2:
            return []
        wrong, queries = self.scores.copy(), np.arange(len(self.scores))
        wrong[queries, self.encoded.owners] = -np.inf
        rivals: list[int] = wrong.argmax(axis=1).tolist()
        return rivals


def _plain(ranks: Ranks) -> dict[str, Any]:
    columns = {"greater": ranks.greater, "equal": ranks.equal, "targets": ranks.targets, "clips": ranks.clips}
    return {name: column.tolist() for name, column in columns.items()} | {"n_candidates": ranks.n_candidates}


def score_split(
    model: CalmModel, encoded: EncodedSplit, *, scorer: Scorer = "leak-free", progress: Progress | None = None
) -> np.ndarray:
    """Scores [N_t, N_v] of all pairs of a split, before any re-ranking.

    Only "tmass-released", the audit of a leak, is told which caption belongs to which video.

    Raises:
        BadInput: The audit is asked of a head that is not T-MASS, or where N_t != N_v.
    """
    if scorer == "tmass-released":
        if model.head.name != "t-mass":
            raise BadInput(f"--scorer tmass-released audits T-MASS heads; this run's head is {model.head.name}")
        released: np.ndarray = score_tmass_released(
            model.head, encoded.texts, encoded.frames, torch.from_numpy(encoded.owners)
        ).numpy()
        return released
    return score_all(model.head, encoded.texts, encoded.frames, device=model.device, progress=progress).numpy()


def rerank_split(head: Reranker, encoded: EncodedSplit, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The scores of `score_split` re-ranked, for sentences as queries and for clips as queries, [N_t, N_v] each."""
    first = torch.from_numpy(scores)
    rerank = head.rerank_videos, head.rerank_texts
    videos, texts = (each(encoded.texts, encoded.frames, first).numpy() for each in rerank)
    return videos, texts


@dataclass(frozen=True, slots=True)
class Retrieval:
    """Retrieval as a task that runs are evaluated on (`evaluation.runs.Task`).

    Attributes:
        chosen: Of `SCORERS`; None: leak-free, or re-ranked where the head does that.
        intervals: Whether to resample for confidence intervals: 2,000 times a direction, for nothing where nobody sees
            them.
        audited: Whether to look for the leak of T-MASS's released evaluation as well, where the head is T-MASS.
    """

    chosen: Scorer | None = None
    intervals: bool = True
    audited: bool = False

    @property
    def scorer(self) -> str:
        """What labels have before a model is looked at."""
        return self.chosen or HONEST_SCORER

    def scorer_for(self, model: CalmModel) -> Scorer:
        """How the pairs of `model` are scored. Raises `BadInput` where its head does not re-rank and is asked to."""
        reranks = isinstance(model.head, Reranker)
        if self.chosen == "re-ranked" and not reranks:
            raise BadInput(
                f"--scorer re-ranked is for a run with head.kind=diffusionret; this run's head is {model.head.name}"
            )
        return self.chosen or ("re-ranked" if reranks else "leak-free")

    def load(self, run: Run, which: str, device: torch.device) -> CalmModel:
        """The weights `which` of a retrieval run."""
        return load_run(run, which, device)

    def validate(self, model: CalmModel, encoded: EncodedSplit) -> dict[str, float]:
        """Numbers of the validation split, and the "score" by which the best epoch is chosen.

        The score is text-to-video R@1, and where that ties the mean rank decides: both are from the validation
        split and the leak-free scorer alone, re-ranked where the head does that (our choice).
        """
        scores, first = score_split(model, encoded), {}
        metrics = retrieval_metrics(scores, encoded.owners)
        if isinstance(model.head, Reranker):
            ours = metrics["text_to_video"]
            first = {"base_t2v_r1": ours.r1, "base_t2v_mnr": ours.mnr}
            videos, texts = rerank_split(model.head, encoded, scores)
            ranks = rank_all(videos, encoded.owners, scores_of_videos=texts)
            metrics = {direction: each.metrics() for direction, each in ranks.items()}
        ours, back = metrics["text_to_video"], metrics["video_to_text"]
        return {
            **first,
            "score": ours.r1 - 1e-6 * ours.mnr,
            "t2v_r1": ours.r1,
            "t2v_r5": ours.r5,
            "t2v_r10": ours.r10,
            "t2v_mnr": ours.mnr,
            "v2t_r1": back.r1,
            "v2t_mnr": back.mnr,
        }

    def evaluate(
        self, model: CalmModel, encoded: EncodedSplit, labels: Labels, progress: Progress | None = None
    ) -> Evaluation:
        """Score a split and measure it both ways."""
        owners, scorer = encoded.owners, self.scorer_for(model)
        labels = labels.with_list(encoded.ids, encoded.captions, owners.tolist())
        scores = score_split(model, encoded, scorer=scorer, progress=progress)
        back, base = None, None
        if scorer == "dual-softmax":  # each side's queries are re-ranked among themselves
            plain = torch.from_numpy(scores)
            scores, back = dual_softmax(plain).numpy(), dual_softmax(plain.T).T.numpy()
        elif scorer == "re-ranked":
            first = replace(labels, scorer=HONEST_SCORER)
            base = self._result(rank_all(scores, owners), first, "", encoded)
            if progress:
                progress("re-ranking", 0, 0)
            scores, back = rerank_split(model.head, encoded, scores)
            labels = replace(labels, scorer=f"{scorer} (list-wise over {model.head.candidates})")
        if progress:
            progress("ranking, and bootstrap intervals" if self.intervals else "ranking", 0, 0)
        ranks = rank_all(scores, owners, scores_of_videos=back)
        result = self._result(ranks, labels, paper_method(model, scorer), encoded)
        cut = model.backbone.tokens.cut(encoded.captions)
        leak = self._leak(model, encoded) if self.audited and model.head.name == "t-mass" else None
        return Evaluation(result, scores, encoded, ranks, () if cut is None else (cut,), base, leak)

    def _result(
        self, ranks: Mapping[Direction, Ranks], labels: Labels, paper: str, encoded: EncodedSplit
    ) -> RetrievalResult:
        return retrieval_result(
            ranks, labels, paper_method=paper, left_out=len(encoded.left_out), intervals=self.intervals
        )

    @staticmethod
    def _leak(model: CalmModel, encoded: EncodedSplit) -> float | None:
        try:
            leaky = score_split(model, encoded, scorer="tmass-released")
        except BadInput:  # several sentences a clip: the released protocol does not exist there
            return None
        return text_to_video(leaky, encoded.owners).r1


def paper_method(model: CalmModel, scorer: Scorer = "leak-free") -> str:
    """The method of the paper's tables that this model stands for, "" for none: CALM there is T-MASS with the loss."""
    if isinstance(model.head, DiffusionRetHead):
        published = scorer == "re-ranked" and model.head.base.name == "wti" and model.head.base_alignment == "none"
        return METHODS[model.head.name] if published else ""
    match model.alignment.kind:
        case "vae":
            return METHODS.get(f"{model.head.name}+calm", "")
        case "none":
            return METHODS.get(model.head.name, "")
        case _:
            return ""
