"""Scoring captions: tokens, then METEOR in its own process while the other metrics are computed in this one."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.metadata import version
from typing import Literal

import numpy as np

from calmctl.errors import BadInput
from calmctl.evaluation.bootstrap import Interval
from calmctl.evaluation.captions import corpus
from calmctl.evaluation.captions.java import Java, JavaFailed, JavaUnavailable, find_java
from calmctl.evaluation.captions.matching import Matched, match
from calmctl.evaluation.captions.meteor import Meteor, addable, meteor_process, written
from calmctl.evaluation.captions.resampling import interval, resampled_sums
from calmctl.evaluation.captions.scores import CaptionScores
from calmctl.evaluation.captions.tokens import Tokenizer, tokenize, tokenize_references
from calmctl.files import sha256_bytes

TokenizerChoice = Literal["ptb", "ptb-python", "none"]
TOKENIZER_CHOICES: tuple[TokenizerChoice, ...] = ("ptb", "ptb-python", "none")
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class _MeteorResult:
    score: float | None
    reason: str
    segments: list[float]
    interval: Interval | None = None


def score_captions(
    hypotheses: Mapping[str, str],
    references: Mapping[str, Sequence[str]],
    *,
    tokenizer: TokenizerChoice = "ptb",
    meteor: bool = True,
    require_complete: bool = False,
    progress: Progress | None = None,
) -> CaptionScores:
    """Score one caption an id against its references, as coco-caption does (docs/captioning.md).

    Args:
        hypotheses: The caption of each id.
        references: The references of each id; ids without a caption are not scored, and the result says so.
        tokenizer: "ptb" for CoreNLP's Treebank tokenizer, which falls back to "ptb-python" where no Java runs and
            says so in the result; "none" leaves captions as they are, as some published numbers did.
        meteor: Whether to compute METEOR, which takes most of the time; validation by CIDEr needs none.
        require_complete: Whether references without a caption are an error.
        progress: Told about METEOR's segments, from another thread.

    Raises:
        BadInput: Captions and references do not fit each other, or are not text; no reference has a word; the
            tokenizer is not known.
        RunFailed: The tokenizer's Java started and failed.
    """
    if tokenizer not in TOKENIZER_CHOICES:
        raise BadInput(f"tokenizer {tokenizer} is not known; use one of {', '.join(TOKENIZER_CHOICES)}")
    matched = match(hypotheses, references, require_complete=require_complete)
    java, no_java = _java_or_reason(needed=meteor or tokenizer == "ptb")
    used, why = _tokenizer(tokenizer, java, no_java)
    with ExitStack() as stack:
        worker = stack.enter_context(ThreadPoolExecutor(1))  # left last: METEOR's end is what ends its waiting
        # METEOR is started first: it reads its paraphrases while tokens are made.
        process = stack.enter_context(meteor_process(java)) if java is not None and meteor else None
        reference_tokens = tokenize_references(matched.references, used, java)
        if not any(line.strip() for lines in reference_tokens for line in lines):
            raise BadInput("every reference is empty once it is tokenized; there is nothing to score against")
        tokens = tokenize(matched.hypotheses, used, java)
        waiting = worker.submit(_meteor, process, tokens, reference_tokens, progress) if process is not None else None
        bleu = corpus.bleu(tokens, reference_tokens)
        rouge_l = corpus.rouge_l(tokens, reference_tokens)
        cider = corpus.cider(tokens, reference_tokens)
        meteors = waiting.result() if waiting is not None else _MeteorResult(None, no_java or "not asked for", [])
    segments = {f"bleu{column + 1}": bleu.segments[:, column] for column in range(4)}
    segments |= {"meteor": np.array(meteors.segments), "rouge_l": rouge_l, "cider": cider}
    return CaptionScores(
        *bleu.scores,
        meteor=meteors.score,
        meteor_reason=meteors.reason,
        rouge_l=float(rouge_l.mean()),
        cider=float(cider.mean()),
        tokenizer=used,
        tokenizer_reason=why,
        java=f"{java.version} ({java.origin})" if java is not None else "",
        pycocoevalcap=version("pycocoevalcap"),
        n=len(tokens),
        n_references=sum(map(len, reference_tokens)),
        unscored=matched.unscored,
        empty=tuple(name for name, line in zip(matched.ids, tokens, strict=True) if not line.strip()),
        empty_references=sum(not line.strip() for lines in reference_tokens for line in lines),
        digest=_digest(matched),
        intervals=_intervals(bleu, rouge_l, cider) | ({"meteor": meteors.interval} if meteors.interval else {}),
        segments={
            metric: dict(zip(matched.ids, values.tolist(), strict=True))
            for metric, values in segments.items()
            if len(values)
        },
    )


def _java_or_reason(*, needed: bool) -> tuple[Java | None, str]:
    if not needed:
        return None, ""
    try:
        return find_java(), ""
    except JavaUnavailable as error:
        return None, str(error)


def _tokenizer(choice: TokenizerChoice, java: Java | None, no_java: str) -> tuple[Tokenizer, str]:
    if choice != "ptb":
        return choice, ""
    return ("ptb-java", "") if java is not None else ("ptb-python", no_java)


def _meteor(
    meteor: Meteor, hypotheses: Sequence[str], references: Sequence[Sequence[str]], progress: Progress | None
) -> _MeteorResult:
    def tell(done: int, total: int) -> None:
        if progress is not None:
            progress("METEOR", done, total)

    try:
        statistics = meteor.statistics(hypotheses, references, tell)
        score, segments = meteor.scores(statistics)
        if len(statistics) < 2:
            return _MeteorResult(score, "", segments)
        _, resampled = meteor.scores(written(resampled_sums(addable(statistics))))
        return _MeteorResult(score, "", segments, interval(np.array(resampled)))
    except JavaFailed as error:  # the other metrics are worth having; METEOR is told to be missing, and why
        return _MeteorResult(None, str(error), [])


def _intervals(bleu: corpus.Bleu, rouge_l: corpus.Doubles, cider: corpus.Doubles) -> dict[str, Interval]:
    if len(cider) < 2:
        return {}
    sums = resampled_sums(np.column_stack([bleu.counts, rouge_l, cider]))
    bleus = corpus.bleu_of_counts(sums[:, : corpus.N_BLEU_COUNTS])
    return {
        **{f"bleu{n}": interval(bleus[:, n - 1]) for n in range(1, 5)},
        "rouge_l": interval(sums[:, -2] / len(rouge_l)),
        "cider": interval(sums[:, -1] / len(cider)),
    }


def _digest(matched: Matched) -> str:
    content = [matched.ids, matched.hypotheses, matched.references]
    return sha256_bytes(json.dumps(content, ensure_ascii=False).encode("utf-8"))
