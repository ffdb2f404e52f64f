"""Captioning evaluated: captions of a split's clips, scored against all sentences of each clip."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from calmctl.captioning.generate import Caption, Search, caption_features
from calmctl.data.samples import LeftOut
from calmctl.errors import DatasetError
from calmctl.evaluation.captions import corpus
from calmctl.evaluation.captions.result import CaptionResult
from calmctl.evaluation.captions.scorer import TokenizerChoice, score_captions
from calmctl.evaluation.captions.tokens import tokenize, tokenize_references
from calmctl.evaluation.encoding import EncodedSplit
from calmctl.evaluation.result import Labels
from calmctl.model.caption import CaptionModel
from calmctl.recipe.schema import CaptionSection


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
