"""All metrics of a set of captions, and what has to be known to read them rightly."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from calmctl.evaluation.bootstrap import Interval
from calmctl.evaluation.captions.resampling import LEVEL, REPLICATES
from calmctl.evaluation.captions.tokens import Tokenizer

METRICS = ("bleu1", "bleu2", "bleu3", "bleu4", "meteor", "rouge_l", "cider")


@dataclass(frozen=True, slots=True)
class CaptionScores:
    """Metrics in pycocoevalcap's scale: 0 to 1, CIDEr 0 to 10. Tables print them times 100.

    Attributes:
        bleu1: Corpus BLEU, unigrams.
        bleu2: Up to bigrams.
        bleu3: Up to trigrams.
        bleu4: Up to 4-grams.
        meteor: METEOR 1.5, None where it could not be computed.
        meteor_reason: Why it is None; "" where it is a number.
        rouge_l: Mean ROUGE-L.
        cider: Mean CIDEr-D.
        tokenizer: The one that was used.
        tokenizer_reason: Why it is another one than was asked for; "" where it is the same.
        java: Version and origin of the Java that ran, "" where none did.
        pycocoevalcap: Its version.
        n: Captions scored.
        n_references: References they were scored against.
        unscored: Ids that have references and no caption; they are not in any number here.
        empty: Ids whose caption is empty once tokenized; they are scored.
        empty_references: Number of references that are empty once tokenized; they are used.
        digest: SHA-256 of the captions and references scored.
        intervals: 95 % bootstrap intervals over clips by metric; empty where one clip leaves nothing to resample.
        segments: By metric, the scores of each id. Corpus BLEU and METEOR are not the means of these.
    """

    bleu1: float
    bleu2: float
    bleu3: float
    bleu4: float
    meteor: float | None
    meteor_reason: str
    rouge_l: float
    cider: float
    tokenizer: Tokenizer
    tokenizer_reason: str
    java: str
    pycocoevalcap: str
    n: int
    n_references: int
    unscored: tuple[str, ...]
    empty: tuple[str, ...]
    empty_references: int
    digest: str
    intervals: Mapping[str, Interval]
    segments: Mapping[str, Mapping[str, float]] = field(repr=False)

    @property
    def caveats(self) -> tuple[str, ...]:
        """What must be said wherever these numbers are shown."""
        caveats = []
        if self.unscored:
            caveats.append(
                f"{len(self.unscored)} of {self.n + len(self.unscored)} ids with references have no caption and are "
                f"not scored (first: {self.unscored[0]}); these are no numbers for the whole set"
            )
        if self.meteor is None:
            caveats.append(f"METEOR n/a: {self.meteor_reason}")
        if self.tokenizer != "ptb-java":
            because = f" ({self.tokenizer_reason})" if self.tokenizer_reason else ""
            caveats.append(f"tokenizer {self.tokenizer}{because}: compare with numbers made by the same tokenizer only")
        if self.empty:
            caveats.append(f"{len(self.empty)} captions are empty and scored as such (first: {self.empty[0]})")
        if self.empty_references:
            caveats.append(f"{self.empty_references} references are empty, which moves BLEU's reference length")
        if self.n == 1:
            caveats.append("one clip: CIDEr is 0 by its definition, as every word is in every document")
        return tuple(caveats)

    def to_json(self, *, segments: bool = False) -> dict[str, Any]:
        """Plain data; with `segments`, also the scores of each id."""
        plain: dict[str, Any] = {metric: getattr(self, metric) for metric in METRICS}
        plain["scale"] = "as pycocoevalcap: 0 to 1, CIDEr 0 to 10; usually printed times 100"
        plain["spice"] = "not computed (docs/caption-scoring.md)"
        for name in ("meteor_reason", "tokenizer", "tokenizer_reason", "java", "pycocoevalcap", "n", "n_references"):
            plain[name] = getattr(self, name)
        plain |= {"unscored": list(self.unscored), "empty": list(self.empty)}
        plain |= {"empty_references": self.empty_references, "digest": self.digest}
        plain["intervals"] = {metric: [each.low, each.high] for metric, each in self.intervals.items()}
        plain["intervals_made"] = f"{LEVEL:.0%} percentile bootstrap over clips, {REPLICATES} resamples, seed 0"
        plain["caveats"] = list(self.caveats)
        if segments:
            plain["segments"] = {metric: dict(each) for metric, each in self.segments.items()}
        return plain
