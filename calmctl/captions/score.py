"""Captions scored as coco-caption does; in the intervals, clips are resampled with all their references.

Document frequencies of CIDEr stay those of the whole set, as they belong to the test set and not to the draw.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from typing import Any, Literal

import numpy as np
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from calmctl.captions import files as corpus
from calmctl.captions.java import (
    Java,
    JavaFailed,
    JavaUnavailable,
    Matched,
    Meteor,
    find_java,
    match,
    meteor_process,
    statistics_lines,
    summable,
)
from calmctl.captions.tokens import Tokenizer, tokenize, tokenize_references
from calmctl.errors import BadInput
from calmctl.evaluation.card import Card
from calmctl.evaluation.paper import CAPTIONING, PaperCaptioning
from calmctl.evaluation.result import Labels
from calmctl.evaluation.statistics import LEVEL, REPLICATES, Interval, percentiles, resampled_sums
from calmctl.evaluation.tables import Fitting, from_to, metric_grid, metric_header
from calmctl.files import sha256_bytes
from calmctl.words import Progress, counted

METRICS = ("bleu1", "bleu2", "bleu3", "bleu4", "meteor", "rouge_l", "cider")


@dataclass(frozen=True, slots=True)
class CaptionScores:
    """Metrics in pycocoevalcap's scale: 0 to 1, CIDEr 0 to 10. Tables print them times 100.

    Attributes:
        bleu1, bleu2, bleu3, bleu4: Corpus BLEU, of n-grams up to so long.
        meteor: METEOR 1.5, None where it could not be computed.
        meteor_reason: Why it is None; "" where it is a number.
        rouge_l, cider: Means of ROUGE-L and CIDEr-D.
        tokenizer: The one that was used.
        tokenizer_reason: Why it is another one than was asked for; "" where it is the same.
        java: Version and origin of the Java that ran, "" where none did.
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
            are = "is" if len(self.empty) == 1 else "are"
            caveats.append(
                f"{counted(len(self.empty), 'caption')} {are} empty and scored as such (first: {self.empty[0]})"
            )
        if self.empty_references:
            are = "is" if self.empty_references == 1 else "are"
            caveats.append(
                f"{counted(self.empty_references, 'reference')} {are} empty, which moves BLEU's reference length"
            )
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


# Scoring captions: tokens, then METEOR in its own process while the other metrics are computed in this one.


TokenizerChoice = Literal["ptb", "ptb-python", "none"]
TOKENIZER_CHOICES: tuple[TokenizerChoice, ...] = ("ptb", "ptb-python", "none")


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
    """Score one caption per id against its references, as coco-caption does (docs/captioning.md).

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
    # Only where no Java runs at all, which the result says. One that runs and fails is an error: another tokenizer
    # makes other numbers.
    return ("ptb-java", "") if java is not None else ("ptb-python", no_java)


def _meteor(
    meteor: Meteor, hypotheses: Sequence[str], references: Sequence[Sequence[str]], progress: Progress | None
) -> _MeteorResult:
    try:
        statistics = meteor.statistics(hypotheses, references, progress)
        score, segments = meteor.scores(statistics)
        if len(statistics) < 2:
            return _MeteorResult(score, "", segments)
        _, resampled = meteor.scores(statistics_lines(resampled_sums(summable(statistics))))
        return _MeteorResult(score, "", segments, percentiles(np.array(resampled)))
    except JavaFailed as error:  # the other metrics are worth having; METEOR is told to be missing, and why
        return _MeteorResult(None, str(error), [])


def _intervals(bleu: corpus.Bleu, rouge_l: corpus.Doubles, cider: corpus.Doubles) -> dict[str, Interval]:
    if len(cider) < 2:
        return {}
    # One draw of clips for all metrics. BLEU is of the corpus, so its counts are resampled, not the scores of
    # sentences.
    sums = resampled_sums(np.column_stack([bleu.counts, rouge_l, cider]))
    bleus = corpus.bleu_of_counts(sums[:, : corpus.N_BLEU_COUNTS])
    return {
        **{f"bleu{n}": percentiles(bleus[:, n - 1]) for n in range(1, 5)},
        "rouge_l": percentiles(sums[:, -2] / len(rouge_l)),
        "cider": percentiles(sums[:, -1] / len(cider)),
    }


def _digest(matched: Matched) -> str:
    content = [matched.ids, matched.hypotheses, matched.references]
    return sha256_bytes(json.dumps(content, ensure_ascii=False).encode("utf-8"))


# The paper captions MSR-VTT's full split: 6,513 / 497 / 2,990 clips (docs/captioning.md); "" stands for the paper's.
_PROTOCOLS = {"msrvtt": {"", "full"}}


@dataclass(frozen=True, slots=True)
class CaptionResult:
    """Captions of one test set, scored.

    Attributes:
        labels: What they are of; nothing is known of a file's captions.
        name: What is shown as its name where no dataset is known, such as a file's name.
        left_out: Clips of the protocol that could not be captioned.
    """

    scores: CaptionScores
    labels: Labels = field(default_factory=lambda: Labels(scorer=""))
    name: str = ""
    left_out: int = 0

    @property
    def card(self) -> Card:
        """How these numbers were made: a query is a clip, a candidate a reference."""
        scores = self.scores
        return replace(
            self.labels.known_card,
            queries=scores.n,
            candidates=scores.n_references,
            left_out=self.left_out,
            scorer=f"pycocoevalcap {scores.pycocoevalcap}, tokens of {scores.tokenizer}",
        )

    @property
    def paper(self) -> tuple[PaperCaptioning, ...]:
        """The rows of Tables 4 and 5 for this training and test set; none where they are not the paper's, and whole."""
        labels = self.labels
        if (
            labels.split != "test"
            or not labels.published
            or self.left_out
            or labels.protocol not in _PROTOCOLS.get(labels.dataset, {labels.protocol})
            or labels.trained_protocol not in _PROTOCOLS.get(labels.trained_on, {labels.trained_protocol})
        ):
            return ()
        return tuple(
            row for row in CAPTIONING if (row.trained_on, row.tested_on) == (labels.trained_on, labels.dataset)
        )

    @property
    def caveats(self) -> tuple[str, ...]:
        """What must be said wherever these numbers are shown."""
        caveats = list(self.scores.caveats)
        if self.left_out:
            caveats.append(f"{counted(self.left_out, 'clip')} left out; these are no numbers for the whole test set")
        if self.labels.split != "test":
            caveats.append(f"the {self.labels.split} split, not the test set")
        label = self.labels.dataset or self.name
        return (*(f"{label}: {caveat}" if label else caveat for caveat in caveats), *self.labels.concerns)

    def to_json(self) -> dict[str, Any]:
        """Plain data for `--json` and for the record of a run."""
        return {
            "name": self.name,
            **self.labels.to_json(),
            "left_out": self.left_out,
            "scores": self.scores.to_json(),
            "paper": [{**asdict(row), "card": row.card.to_json()} for row in self.paper],
            "caveats": list(self.caveats),
            "card": self.card.to_json(),
        }


# Caption scores as a table of 80 columns, times 100, the paper's Tables 4 and 5 beside.


# BLEU-1 to 3 are narrow: the paper has none of them, and their intervals are in the JSON only.
_WIDE = 11  # an interval such as 100.0 to 115.7
_COLUMNS = (
    ("", 14),
    ("B-1", 5),
    ("B-2", 5),
    ("B-3", 5),
    ("BLEU-4", _WIDE),
    ("METEOR", _WIDE),
    ("ROUGE-L", _WIDE),
    ("CIDEr", _WIDE),
)  # 80 with the gaps
_WIDTH = 80
_WITH_INTERVAL = ("bleu4", "meteor", "rouge_l", "cider")


def caption_table(results: Sequence[CaptionResult]) -> RenderableType:
    """One block per test set: the metrics with their intervals, the paper's rows, caveats at the foot."""
    return Fitting(_wide(results), _WIDTH, _narrow(results))


def _narrow(results: Sequence[CaptionResult]) -> RenderableType:
    parts: list[RenderableType] = []
    for result in results:
        grid = Table.grid(padding=(0, 1))
        grid.add_row("", "ours" if result.paper else "", *(_paper_cells(row)[0] for row in result.paper))
        papers = [dict(zip(METRICS, _paper_cells(row)[1:], strict=True)) for row in result.paper]
        for (heading, _), metric in zip(_COLUMNS[1:], METRICS, strict=True):
            bound = result.scores.intervals.get(metric) if metric in _WITH_INTERVAL else None
            spread = f" ({from_to(bound, _number)})" if bound else ""
            ours = Text(f"{_number(getattr(result.scores, metric))}{spread}")
            grid.add_row(Text(heading, style="bold"), ours, *(paper[metric] for paper in papers))
        parts += [_heading(result), grid, ""]
    return Group(*parts, *_footnotes(results))


def _wide(results: Sequence[CaptionResult]) -> RenderableType:
    parts = metric_header(_COLUMNS, _WIDTH)
    for result in results:
        parts += [_heading(result), _rows(result), ""]
    return Group(*parts, *_footnotes(results))


def _heading(result: CaptionResult) -> Text:
    labels = result.labels
    domain = "→ " if labels.dataset and labels.trained_on not in ("", labels.dataset) else ""
    heading = Text(f"{domain}{labels.dataset or result.name} {labels.protocol}".strip(), style="bold")
    facts = [labels.system, f"trained on {labels.trained_on}" if labels.trained_on else ""]
    facts.append(f"{counted(result.scores.n, 'caption')}, {counted(result.scores.n_references, 'reference')}")
    heading.append(f"  {', '.join(fact for fact in facts if fact)}", style="not bold")
    return heading


def _rows(result: CaptionResult) -> Table:
    grid = metric_grid(_COLUMNS)
    values = {metric: getattr(result.scores, metric) for metric in METRICS}
    grid.add_row("ours" if result.paper else "", *(Text(_number(value)) for value in values.values()))
    if result.scores.intervals:
        bounds = [result.scores.intervals.get(metric) if metric in _WITH_INTERVAL else None for metric in METRICS]
        grid.add_row("", *(Text(from_to(bound, _number) if bound else "", style="dim") for bound in bounds))
    if result.paper:
        grid.add_row(Text(f"paper, Table {result.paper[0].table}", style="italic"))
    for row in result.paper:
        grid.add_row(*_paper_cells(row))
    return grid


def _paper_cells(row: PaperCaptioning) -> list[Text]:
    values = [f"{value:z.1f}" for value in (row.bleu4, row.meteor, row.rouge_l, row.cider)]
    mark = " *" if row.note else ""
    return [Text(text, style="italic") for text in (f"{row.method}{mark}", "", "", "", *values)]


def _number(value: float | None) -> str:
    if value is None:
        return "n/a"
    # CIDEr ends at 1000, and an interval of such numbers has no room for decimals.
    return f"{100 * value:z.1f}" if value < 9.99 else f"{100 * value:z.0f}"


def _footnotes(results: Sequence[CaptionResult]) -> list[Text]:
    below = "; below them 95 % bootstrap intervals over clips"
    shown = any(result.scores.intervals for result in results)
    tokenizers = ", ".join(dict.fromkeys(result.scores.tokenizer for result in results))
    notes = [
        Text(f"all numbers times 100{below if shown else ''}", style="dim"),
        Text(f"tokenizer {tokenizers}; no SPICE (docs/caption-scoring.md)", style="dim"),
    ]
    rows = [row for result in results for row in result.paper]
    if rows:
        notes.append(Text("paper: Tables 4 and 5, one run without a seed, tokenizer not stated", style="dim"))
    notes += [Text(f"* {row.method}: {row.note}", style="dim") for row in dict.fromkeys(rows) if row.note]
    caveats = dict.fromkeys(caveat for result in results for caveat in result.caveats)
    return notes + [Text(f"!! {caveat}", style="bold red") for caveat in caveats]
