"""Captioning evaluated: captions of a split's clips, scored against all sentences of each clip."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from calmctl.captions import files as corpus
from calmctl.captions.generate import Caption, Search, caption_features
from calmctl.captions.score import CaptionResult, TokenizerChoice, score_captions
from calmctl.captions.tokens import tokenize, tokenize_references
from calmctl.errors import BadInput, DatasetError
from calmctl.evaluation.result import Labels
from calmctl.evaluation.runs import Progress, check_complete, labels_of
from calmctl.evaluation.statistics import ClipSums, PairedDifference, differences_over_seeds
from calmctl.model.captioner import CaptionModel
from calmctl.recipe.schema import CaptionSection
from calmctl.runs.checkpoint import load_captioner
from calmctl.runs.run import Run
from calmctl.samples import LeftOut
from calmctl.source.base import SourceSpec
from calmctl.source.encoding import EncodedSplit
from calmctl.source.source import open_source

CAPTION_METRICS = ("cider", "rouge_l")
"""Metrics that are means over clips; BLEU and METEOR are not, so a difference of clips says nothing about theirs."""


@dataclass(frozen=True, slots=True)
class CaptionEvaluation:
    """Captions of one test set, and what they score.

    Attributes:
        result: The scores, labelled.
        search: How captions were found.
        captions: By clip.
        references: All sentences of each clip.
        left_out: Clips of the protocol that could not be captioned.
    """

    result: CaptionResult
    search: Search
    captions: Mapping[str, Caption]
    references: Mapping[str, tuple[str, ...]]
    left_out: tuple[LeftOut, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain data for `--json` and for the record of a run; captions with their references are in it."""
        return {
            **self.result.to_json(),
            "search": self.search.describe(),
            "captions": {
                clip: {"caption": caption.text, "log_prob": caption.log_prob, "references": list(self.references[clip])}
                for clip, caption in self.captions.items()
            },
        }

    @property
    def variant(self) -> str:
        """There is one way to score captions."""
        return ""

    def record(self) -> dict[str, Any]:
        """The numbers, the captions, and each clip's part of the metrics that are means over clips."""
        return {
            "result": self.result.to_json(),
            "captions": {clip: caption.text for clip, caption in self.captions.items()},
            "clip_scores": {metric: self.result.scores.segments[metric] for metric in CAPTION_METRICS},
        }


def references_of(encoded: EncodedSplit) -> dict[str, tuple[str, ...]]:
    """All sentences of each clip, by id; clips without a sentence are not in it."""
    found: dict[str, list[str]] = {}
    for sentence, owner in zip(encoded.captions, encoded.owners, strict=True):
        found.setdefault(encoded.ids[owner], []).append(sentence)
    return {clip: tuple(found[clip]) for clip in encoded.ids if clip in found}


def caption_split(model: CaptionModel, encoded: EncodedSplit, search: Search) -> dict[str, Caption]:
    """A caption for every clip of a split, by id."""
    return dict(zip(encoded.ids, caption_features(model, encoded.frames, search), strict=True))


def caption_validation(model: CaptionModel, encoded: EncodedSplit, keys: CaptionSection) -> dict[str, float]:
    """Numbers of the validation split; "score" chooses the best epoch.

    The score is CIDEr x 100 over the tokens of "ptb-python", with document frequencies of these references: it is
    there after every epoch without starting Java (our choice). Results are scored by CoreNLP's tokenizer.
    """
    references = references_of(encoded)
    captions = caption_split(model, encoded, Search(keys.validation_beam, keys.length_penalty))
    cider = corpus.cider(
        tokenize([captions[clip].text for clip in references], "ptb-python"),
        tokenize_references(list(references.values()), "ptb-python"),
    )
    n_tokens = sum(caption.n_tokens for caption in captions.values())
    score = 100 * float(cider.mean())
    return {
        "score": score,
        "cider": score,
        "log_prob_per_token": sum(caption.log_prob for caption in captions.values()) / n_tokens,
        "tokens": n_tokens / len(captions),
    }


def evaluate_captions(
    model: CaptionModel,
    encoded: EncodedSplit,
    search: Search,
    labels: Labels,
    *,
    tokenizer: TokenizerChoice = "ptb",
) -> CaptionEvaluation:
    """Caption a split and score it.

    Raises:
        DatasetError: No clip of the split has a sentence to be compared with.
        CalmError: As `score_captions`.
    """
    references = references_of(encoded)
    if not references:
        raise DatasetError(
            f"{labels.dataset}: no clip of the {labels.split} split has captions, so there is nothing to score with"
        )
    captions = {clip: made for clip, made in caption_split(model, encoded, search).items() if clip in references}
    result = CaptionResult(
        score_captions({clip: made.text for clip, made in captions.items()}, references, tokenizer=tokenizer),
        **labels.values(),
        left_out=len(encoded.left_out),
    )
    return CaptionEvaluation(result, search, captions, references, encoded.left_out)


def compare_captions(first: CaptionEvaluation, second: CaptionEvaluation) -> Mapping[str, PairedDifference]:
    """`second` minus `first` of `CAPTION_METRICS`, times 100, paired over clips.

    Raises:
        BadInput: They did not caption the same clips, or were scored by other references.
    """
    if first.references != second.references:
        raise BadInput(f"{first.result.dataset}: the two runs captioned other clips: they cannot be paired")
    return differences_over_seeds([_sums(first)], [_sums(second)])


def _sums(evaluation: CaptionEvaluation) -> ClipSums:
    segments = evaluation.result.scores.segments
    clips = tuple(segments["cider"])
    sums = np.array([[100.0 * segments[metric][clip] for metric in CAPTION_METRICS] for clip in clips])
    return ClipSums(clips, CAPTION_METRICS, sums, np.ones(len(clips)))


# Evaluating a finished captioning run, in and out of its domain.


def evaluate_caption_run(
    run: Run,
    tests: Sequence[SourceSpec],
    *,
    which: str = "best",
    split: str = "test",
    tokenizer: TokenizerChoice = "ptb",
    device: torch.device,
    require_complete: bool = False,
    progress: Progress | None = None,
) -> list[CaptionEvaluation]:
    """Caption the `split` of each test set with the weights `which` of `run` and its recipe's beam search, and score.

    Args:
        run: A captioning run.
        tests: What to evaluate on; a protocol of None is the dataset's captioning protocol.
        which: "best", "last" or "slim".
        split: "test" or "val".
        tokenizer: As for `score_captions`.
        device: Where to compute.
        require_complete: Any clip left out is an error.
        progress: Called with what is read, how many clips are done, and of how many.

    Raises:
        CalmError: A test set is missing, has no usable clip, or was trained on; see also `score_captions`.
    """
    recipe = run.recipe()
    sources = [open_source(test, recipe, val=split != "test") for test in tests]
    records = [source.record(split) for source in sources]
    model = load_captioner(run, which, device)
    evaluations = []
    for test, source, record in zip(tests, sources, records, strict=True):
        labels = labels_of(run, which, test, record)
        encoded = source.encode(model, split, progress)
        if require_complete:
            check_complete(encoded, test.dataset, split)
        if progress:
            progress("writing captions and scoring them", 0, 0)
        evaluations.append(evaluate_captions(model, encoded, Search.of(recipe.caption), labels, tokenizer=tokenizer))
    return evaluations
