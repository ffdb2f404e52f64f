"""The modality gap of runs, and of the backbone that each started from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from calmctl.anchors.distribution import anchor_log_probabilities, mean_frame_feature
from calmctl.anchors.vocabulary import Vocabulary
from calmctl.evaluation.gap import Gap, measure_gap, one_sentence_a_clip
from calmctl.evaluation.runs import Progress, TestSet, encode_test_set
from calmctl.model.build import build_model, recipe_backbone
from calmctl.model.calm import CalmModel
from calmctl.recipe import Recipe
from calmctl.runs.folder import Run
from calmctl.runs.load import load_run, without_alignment

TEMPERATURE = 100.0
"""Of the distributions that are compared, whatever a run was trained with: others would be other numbers."""


@dataclass(frozen=True, slots=True)
class SystemGap:
    """The gap of one system on one test set.

    Attributes:
        system: "before training", or a run's folder.
        loss: The run's `alignment.kind`, "" before training.
        dataset: Tested on.
        vocabulary: The anchors that S_p and V_p are over, as bare prompts.
    """

    system: str
    loss: str
    dataset: str
    vocabulary: str
    gap: Gap


def gaps_of_runs(
    runs: Sequence[Run],
    tests: Sequence[TestSet],
    *,
    which: str = "best",
    split: str = "test",
    device: torch.device,
    progress: Progress | None = None,
) -> list[SystemGap]:
    """The gap of each run on each test set, those of the backbones that they started from first.

    All distributions are over the prompts of the first run's vocabulary as the system's own text tower encodes
    them, without learned offsets: so systems without anchors can be measured too, and all by one measure.

    Raises:
        CalmError: A run or a test set cannot be read, or the start of a run is not at hand any more.
    """
    vocabulary = runs[0].anchors()
    found = []
    starts: dict[tuple[str, str | None, int | None], str] = {}
    for run in runs:
        recipe = run.recipe()
        weights = recipe.backbone.weights
        start = (recipe.backbone.model, weights, recipe.seed if weights is None else None)
        if start not in starts:
            starts[start] = "before training" if not starts else f"before {run.folder.name}"
            found.append((starts[start], "", recipe, _untrained(recipe, vocabulary, device)))
    for run in runs:
        found.append((str(run.folder), run.recipe().alignment.kind, run.recipe(), load_run(run, which, device)))
    return [
        SystemGap(
            system,
            kind,
            test.dataset,
            vocabulary.reference,
            _gap(model, recipe, test, split, vocabulary, device, progress),
        )
        for test in tests
        for system, kind, recipe, model in found
    ]


def _untrained(recipe: Recipe, vocabulary: Vocabulary, device: torch.device) -> CalmModel:
    """The backbone that a run started from; the head around it is untrained and takes no part."""
    bare = without_alignment(recipe)
    bare = bare.model_copy(update={"backbone": bare.backbone.model_copy(update={"adapter": "none"})})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)  # as `prepare` does: without weights, training began with the draw of its seed
        return build_model(bare, vocabulary, recipe_backbone(recipe)).eval().to(device)


def _gap(
    model: CalmModel,
    recipe: Recipe,
    test: TestSet,
    split: str,
    vocabulary: Vocabulary,
    device: torch.device,
    progress: Progress | None,
) -> Gap:
    encoded, _ = encode_test_set(model, recipe, test, split, device, progress)
    clips = mean_frame_feature(encoded.frames, recipe.anchors.frame_mean)
    texts, videos = one_sentence_a_clip(encoded, model.sentences(encoded.texts), clips)
    with torch.no_grad():
        tokens = model.backbone.tokenize(vocabulary.prompts).to(device)
        anchors = model.sentences(model.encode_texts(tokens)).double().cpu()
    log_s, log_v = _over(anchors, texts), _over(anchors, videos)
    return measure_gap(texts, videos, log_s, log_v)


def _over(anchors: Tensor, features: Tensor) -> Tensor:
    return anchor_log_probabilities(features, anchors, TEMPERATURE)
