"""Captioning evaluated: captions of a split's clips, scored against all sentences of each clip."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from calmctl.captions import files as corpus
from calmctl.captions.generate import Caption, CaptionSearch, caption_features
from calmctl.captions.score import CaptionResult, TokenizerChoice, score_captions
from calmctl.captions.tokens import tokenize, tokenize_references
from calmctl.errors import BadInput, DatasetError
from calmctl.evaluation.result import Labels
from calmctl.evaluation.retrieval import Retrieval
from calmctl.evaluation.runs import Task
from calmctl.evaluation.statistics import ClipSums, PairedDifference, differences_over_seeds
from calmctl.model.captioner import CaptionModel
from calmctl.recipe import Recipe
from calmctl.runs.checkpoint import load_captioner
from calmctl.runs.run import Run
from calmctl.samples import LeftOut
from calmctl.source.encoding import EncodedSplit
from calmctl.words import Progress

CAPTION_METRICS = ("cider", "rouge_l")
"""Metrics that are means over clips; BLEU and METEOR are not, so a difference of clips says nothing about theirs."""


@dataclass(frozen=True, slots=True)
class CaptionEvaluation:
    """Captions of one test set, and what they score.

    Attributes:
        search: How captions were found.
        captions: By clip.
        references: All sentences of each clip.
        left_out: Clips of the protocol that could not be captioned.
    """

    result: CaptionResult
    search: CaptionSearch
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

    def record(self) -> dict[str, Any]:
        """The numbers, the captions, and each clip's part of the metrics that are means over clips."""
        return {
            "result": self.result.to_json(),
            "captions": {clip: caption.text for clip, caption in self.captions.items()},
            "clip_scores": {metric: self.result.scores.segments[metric] for metric in CAPTION_METRICS},
        }


def references_of(encoded: EncodedSplit) -> dict[str, tuple[str, ...]]:
    """All sentences of each clip, by id; clips without a sentence are not in it."""
    return {clip: captions for clip, captions in zip(encoded.ids, encoded.captions_by_clip(), strict=True) if captions}


def caption_split(model: CaptionModel, encoded: EncodedSplit, search: CaptionSearch) -> dict[str, Caption]:
    """A caption for every clip of a split, by id."""
    return dict(zip(encoded.ids, caption_features(model, encoded.frames, search), strict=True))


@dataclass(frozen=True, slots=True)
class Captioning:
    """Captioning as a task that runs are evaluated on (`evaluation.runs.Task`), by the beam search of their recipe.

    Attributes:
        tokenizer: As for `score_captions`.
    """

    tokenizer: TokenizerChoice = "ptb"

    @property
    def scorer(self) -> str:
        """No pairs are scored."""
        return ""

    def load(self, run: Run, which: str, device: torch.device) -> CaptionModel:
        """The weights `which` of a captioning run."""
        return load_captioner(run, which, device)

    def validate(self, model: CaptionModel, encoded: EncodedSplit) -> dict[str, float]:
        """Numbers of the validation split; "score" chooses the best epoch.

        The score is CIDEr x 100 over the tokens of "ptb-python", with document frequencies of these references: it is
        there after every epoch without starting Java (our choice). Results are scored by CoreNLP's tokenizer.
        """
        keys, references = model.caption_keys, references_of(encoded)
        captions = caption_split(model, encoded, CaptionSearch(keys.validation_beam, keys.length_penalty))
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

    def evaluate(
        self, model: CaptionModel, encoded: EncodedSplit, labels: Labels, progress: Progress | None = None
    ) -> CaptionEvaluation:
        """Caption a split and score it.

        Raises:
            DatasetError: No clip of the split has a sentence to be compared with.
            CalmError: As `score_captions`.
        """
        if progress:
            progress("writing captions and scoring them", 0, 0)
        references, search = references_of(encoded), CaptionSearch.of(model.caption_keys)
        if not references:
            raise DatasetError(
                f"{labels.dataset}: no clip of the {labels.split} split has captions, so there is nothing to score with"
            )
        captions = {
            clip: caption for clip, caption in caption_split(model, encoded, search).items() if clip in references
        }
        scores = score_captions(
            {clip: caption.text for clip, caption in captions.items()}, references, tokenizer=self.tokenizer
        )
        labels = labels.with_list(encoded.ids, encoded.captions, encoded.owners.tolist())
        result = CaptionResult(scores, labels, left_out=len(encoded.left_out))
        return CaptionEvaluation(result, search, captions, references, encoded.left_out)


def task_of(recipe: Recipe) -> Task[Any, Any]:
    """The task of a recipe, with the options that training tests with."""
    return Captioning() if recipe.task == "caption" else Retrieval()


def compare_captions(first: CaptionEvaluation, second: CaptionEvaluation) -> Mapping[str, PairedDifference]:
    """`second` minus `first` of `CAPTION_METRICS`, times 100, paired over clips.

    Raises:
        BadInput: They did not caption the same clips, or were scored by other references.
    """
    if first.references != second.references:
        raise BadInput(f"{first.result.labels.dataset}: the two runs captioned other clips: they cannot be paired")
    return differences_over_seeds([caption_sums(first)], [caption_sums(second)])


def caption_sums(evaluation: CaptionEvaluation) -> ClipSums:
    """Each clip's part of `CAPTION_METRICS`, times 100."""
    segments = evaluation.result.scores.segments
    clips = tuple(segments["cider"])
    sums = np.array([[100.0 * segments[metric][clip] for metric in CAPTION_METRICS] for clip in clips])
    return ClipSums(clips, CAPTION_METRICS, sums, np.ones(len(clips)))
