"""Whether a collection holds what a sentence says at all: its scores beside those of sentences with no clip in it.

A search always has a best clip. How good the best one is when there is nothing to be found is learned from null
sentences, which have no clip in the collection:

- captions at hand, those that came with the clips (each without its own clip) or a file of them: they are written like
  questions. Where a question without an answer and these sentences are exchangeable, its best score is above all but
  a share q of theirs with probability q at most (split conformal prediction: Vovk et al. 2005, section 4.2);
- without captions, phrases of the vocabulary's anchors. People do not write like that, and a sentence that says more
  moves scores further apart, its best one up with them. So a best score must stand out among those of the phrases as it
  is, and once more above what a phrase with its own mean and spread over the clips would reach. Nothing is promised of
  that: docs/search.md has what was measured.

The scores [N, K] of all clips and null sentences are kept beside the features like a head's table, shard by shard.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import ceil, perm
from random import Random
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from calmctl.errors import BadInput
from calmctl.model.heads.base import VideoTable
from calmctl.search.scorers import FrameScorer, Scorer, products
from calmctl.store.store import FeatureStore
from calmctl.words import counted

LEVEL = 0.05
"""How often `--confident` may show something where there is nothing (our choice)."""
PHRASES = 400
"""Phrases made of anchors (our choice): 1.6 KB a clip, and shares of 0.25 % can be told apart."""
LABELS_A_PHRASE = 6
"""Anchors in one (our choice; docs/search.md has what fewer do)."""
SAMPLE = 512
"""Clips that tell the mean and the spread of a sentence's scores (our choice): all of a folder, some of a large one."""
MOST_CAPTIONS = 1000
"""Captions taken of a store (our choice): 4 KB a clip."""
_DIGITS = 2e-5  # float32 scores are off by less (tests/search/test_exact.py)
_MOST_POOLED = 5_000_000  # of the null scores, the largest are held sorted: 20 MB


@dataclass(frozen=True, slots=True)
class NullSentences:
    """Sentences that have no clip in a collection, or of which it is known.

    Attributes:
        texts: K sentences.
        owners: The clip that each describes, which is not counted as a wrong one; None for none.
        origin: What they are, for people.
        promised: Whether they are written like questions, so that the share asked for is kept.
    """

    texts: tuple[str, ...]
    owners: tuple[str | None, ...]
    origin: str
    promised: bool

    @property
    def says(self) -> str:
        """What they are and whether a share that is asked for can be relied on."""
        if self.promised:
            return f"{self.origin}: the share holds for questions like them"
        return f"{self.origin}: the share is not guaranteed; give sentences of other videos with --calibrate"


def anchor_phrases(labels: Sequence[str]) -> NullSentences:
    """Phrases of a few anchors each: single anchors are shorter than questions and score lower than these."""
    # Of a small vocabulary half at most, or all phrases would say the same.
    size = max(1, min(LABELS_A_PHRASE, len(labels) // 2))
    wanted = min(PHRASES, perm(len(labels), size))
    random, phrases = Random(0), dict[str, None]()
    while len(phrases) < wanted:
        phrases[", ".join(random.sample(list(labels), size))] = None
    return NullSentences(tuple(phrases), (None,) * wanted, f"{counted(wanted, 'phrase')} of anchors", False)


def captions_of(store: FeatureStore) -> NullSentences | None:
    """One caption of each clip of a store, of 1,000 clips at most; None where there are none."""
    first: dict[str, str] = {}
    for name in store.splits:
        split = store.split(name)
        for caption, owner in zip(split.captions, split.owners, strict=True):
            first.setdefault(split.ids[owner], caption)
    if not first:
        return None
    chosen = Random(0).sample(sorted(first), min(MOST_CAPTIONS, len(first)))
    origin = f"{counted(len(chosen), 'caption')} of these clips, each without its own"
    return NullSentences(tuple(first[key] for key in chosen), tuple(chosen), origin, True)


def sentences_of_others(sentences: Sequence[str], where: str) -> NullSentences:
    """Sentences of which somebody says that no clip here is what they describe."""
    texts = tuple(dict.fromkeys(sentences))
    return NullSentences(texts, (None,) * len(texts), f"{counted(len(texts), 'sentence')} of {where}", True)


class NullScorer:
    """Scores of the null sentences as a table that follows from clips, so that `open_index` keeps it."""

    def __init__(self, scorer: Scorer, sentences: NullSentences, texts: Tensor, backbone: object) -> None:
        self.device, self._scorer = scorer.device, scorer
        self._prepared = scorer.prepare(texts.to(scorer.device))
        # The text tower is the backbone's, which the store knows by its digest.
        told = json.dumps([scorer.key, sentences.texts, backbone], sort_keys=True, default=str)
        self.key = hashlib.sha256(f"null sentences {told}".encode("utf-8", "backslashreplace")).hexdigest()

    @torch.inference_mode()
    def table(self, frames: Tensor) -> VideoTable:
        """Scores [n, K] of clips [n, F, D]."""
        scorer, found = self._scorer, None
        if isinstance(scorer, FrameScorer):
            found = products(frames, scorer.directions(self._prepared))
        return {"null": scorer.score(self._prepared, found, scorer.table(frames)).T.contiguous()}

    def prepare(self, texts: Tensor) -> Tensor:
        """The texts as they are: nothing is asked of this table but its rows."""
        return texts

    def score(self, prepared: Tensor, products: Tensor | None, table: VideoTable) -> Tensor:
        """The rows themselves, [K, n]."""
        return table["null"].T


@dataclass(frozen=True, slots=True)
class Rule:
    """When a clip is said to match.

    Attributes:
        kind: "any": of questions that nothing here answers, the share `level` gets a clip at most. "fdr": of the clips
            that are shown, the share `level` is wrong on average.
        level: The share.
    """

    kind: Literal["any", "fdr"] = "any"
    level: float = LEVEL

    def __str__(self) -> str:
        if self.kind == "any":
            return f"something is shown for {100 * self.level:g} % of the questions without an answer at most"
        return f"of what is shown {100 * self.level:g} % is wrong on average, at most"


@dataclass(frozen=True, slots=True)
class Confidence:
    """What the null sentences say of one hit.

    Attributes:
        match: Whether it is said to match.
        chance: Share of null sentences whose best clip of the whole collection scores as high: the conformal p-value of
            "nothing here answers this".
        rank: Share of null sentences that this clip scores as high under: its own rank-based p-value.
    """

    match: bool
    chance: float
    rank: float


@dataclass(frozen=True, slots=True)
class _Null:
    """Scores of null sentences: each one's best and the largest of all pairs, both ascending; how many pairs in all."""

    best: np.ndarray
    pooled: np.ndarray
    pairs: int


class NullBank:
    """Null scores of a collection, counted once.

    Attributes:
        sample: Positions of the clips whose scores `judge` asks for; none where sentences are written like questions.
    """

    def __init__(self, sentences: NullSentences, scores: np.ndarray, ids: Sequence[str]) -> None:
        """Take the null sentences, their scores [N, K] with all clips, and the N clips' ids.

        Raises:
            BadInput: There are no null sentences that have a clip to be wrong about.
        """
        self.sentences, self._scores = sentences, scores
        where = {key: position for position, key in enumerate(ids)}
        own = [(where[key], k) for k, key in enumerate(sentences.owners) if key is not None and key in where]
        self._own = {position: k for position, k in own}
        masked = np.array(sorted(own), np.int64).reshape(-1, 2)
        best = np.full(len(sentences.texts), -np.inf, np.float32)
        for block in self._blocks(masked):
            best = np.maximum(best, block.max(0, initial=-np.inf))
        self._nulls = [self._null(masked, best, np.zeros_like(best))]
        self.sample = np.empty(0, np.int64)
        if not sentences.promised and len(best):
            self.sample = np.array(sorted(Random(0).sample(range(len(ids)), min(SAMPLE, len(ids)))), np.int64)
            spreads = _spread(np.asarray(self._scores[self.sample]).T)
            self._slopes = np.linalg.lstsq(spreads, best.astype(np.float64), rcond=None)[0]
            self._nulls.append(self._null(masked, best, (spreads @ self._slopes).astype(np.float32)))
        if not len(self._nulls[0].best):
            raise BadInput(
                "there are no sentences to compare with: these clips have no captions and the run no anchors; give "
                "sentences of other videos, one a line, with --calibrate FILE"
            )

    def require(self, rule: Rule) -> None:
        """Raise `BadInput` where there are too few sentences for a share so small."""
        least = ceil(1 / rule.level - 1e-9) - 1
        if (held := len(self._nulls[0].best)) < least:
            raise BadInput(
                f"a share of {rule.level:g} needs {least:,} sentences to compare with, and there are "
                f"{held:,} ({self.sentences.origin}); give more with --calibrate FILE, or a larger share"
            )

    def judge(
        self, rule: Rule, positions: Sequence[int], scores: Sequence[float], sampled: np.ndarray | None = None
    ) -> list[Confidence]:
        """What to say of the best clips of one query: what matches stands before what does not.

        Args:
            rule: When a clip matches.
            positions: The clips, the best first.
            scores: Their scores.
            sampled: The query's scores with the clips of `sample`, where there are some.
        """
        # Null scores are float32: what is as high but for the last digits is as high.
        lowered = np.array(scores, np.float64) - _DIGITS
        above = [lowered]
        if len(self.sample):
            assert sampled is not None and len(sampled) == len(self.sample)
            above.append(lowered - float(_spread(sampled) @ self._slopes))
        both = list(zip(self._nulls, above, strict=True))
        # Each is a share of its own; the larger one must be small enough.
        chances = np.max([_share(null.best, each) for null, each in both], 0)
        shown = (chances <= rule.level).sum() if rule.kind == "any" else self._benjamini_hochberg(rule.level, both)
        return [
            Confidence(place < int(shown), float(chance), self._rank(position, score))
            for place, (position, score, chance) in enumerate(zip(positions, lowered.tolist(), chances, strict=True))
        ]

    def _benjamini_hochberg(self, level: float, both: Sequence[tuple[_Null, np.ndarray]]) -> int:
        """How many of the best clips are kept, of all N of which these are the best (Benjamini and Hochberg 1995).

        p-values come from all pairs of null sentence and clip: those of one clip alone stop at 1 / (K + 1), which is
        never small enough for one clip of hundreds.
        """
        p = np.max([_share(null.pooled, scores, null.pairs) for null, scores in both], 0)
        kept = np.nonzero(p <= level * np.arange(1, len(p) + 1) / len(self._scores))[0]
        return int(kept[-1]) + 1 if len(kept) else 0

    def _rank(self, position: int, score: float) -> float:
        row = np.asarray(self._scores[position])
        if position in self._own:
            row = np.delete(row, self._own[position])
        return float((1 + (row >= score).sum()) / (1 + len(row)))

    def _blocks(self, own: np.ndarray) -> Iterator[np.ndarray]:
        """The scores [n, K] of some clips at a time, -inf where a sentence is the clip's own; `own` by clip, [M, 2]."""
        for start in range(0, len(self._scores), 8192):
            block = np.array(self._scores[start : start + 8192])
            low, high = np.searchsorted(own[:, 0], [start, start + len(block)])
            block[own[low:high, 0] - start, own[low:high, 1]] = -np.inf
            yield block

    def _null(self, own: np.ndarray, best: np.ndarray, expected: np.ndarray) -> _Null:
        """The null scores above what is expected [K] of each sentence's best."""
        pooled = np.empty(0, np.float32)
        for block in self._blocks(own):
            pooled = np.concatenate([pooled, (block - expected)[np.isfinite(block)]])
            if len(pooled) > _MOST_POOLED:
                pooled = np.partition(pooled, len(pooled) - _MOST_POOLED)[-_MOST_POOLED:]
        # A sentence whose own clip is the only one says nothing of clips that are wrong.
        largest = np.sort((best - expected)[np.isfinite(best)])
        return _Null(largest, np.sort(pooled), self._scores.size - len(own))


def _share(ascending: np.ndarray, scores: np.ndarray, total: int | None = None) -> np.ndarray:
    """(1 + how many are as high) / (1 + all) for each score; 1 below what is held of them."""
    above = len(ascending) - np.searchsorted(ascending, scores, side="left")
    whole = len(ascending) if total is None else total
    above = np.where((above == len(ascending)) & (whole > len(ascending)), whole, above)
    shares: np.ndarray = (1 + above) / (1 + whole)
    return shares


def _spread(scores: np.ndarray) -> np.ndarray:
    """1, mean and deviation [..., 3] of sentences' scores with clips [..., n], the best, maybe an answer, left out."""
    rest = np.sort(scores.astype(np.float64), -1)[..., :-1]
    if not rest.shape[-1]:
        rest = np.zeros((*scores.shape[:-1], 1))
    return np.stack([np.ones(rest.shape[:-1]), rest.mean(-1), rest.std(-1)], -1)
