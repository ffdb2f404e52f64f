"""The modality gap, measured: how far apart sentences and clips lie, and what the anchors make of both.

Sentences and clips are compared as CALM's loss sees them: sentence features, and the mean of a clip's frame
features, before any head. One sentence per clip is used, its first, so that both sides count equally. Sources:
centroid distance, Liang et al., Mind the Gap (2022); alignment and uniformity, Wang and Isola, Understanding
Contrastive Representation Learning through Alignment and Uniformity on the Hypersphere (2020), with their
alpha = 2 and t = 2; separability by held-out logistic regression, and the divergences, our choice.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from calmctl.anchors.distribution import anchor_log_probabilities, mean_frame_feature
from calmctl.anchors.vocabulary import Vocabulary
from calmctl.errors import BadInput
from calmctl.evaluation.result import left_out_caveats
from calmctl.evaluation.runs import labels_of, labels_of_start
from calmctl.evaluation.statistics import REPLICATES, Interval, draws, percentiles
from calmctl.model.build import build_model, recipe_backbone
from calmctl.model.calm import CalmModel
from calmctl.recipe import Recipe
from calmctl.runs.checkpoint import for_inference, load_run
from calmctl.runs.identity import started_from
from calmctl.runs.run import Run
from calmctl.source.base import SourceSpec
from calmctl.source.encoding import EncodedSplit
from calmctl.source.source import open_source
from calmctl.words import Progress

FOLDS = 5
PENALTY = 1e-2
# At least two clips in each fold.
_FEWEST_CLIPS = 2 * FOLDS


@dataclass(frozen=True, slots=True)
class Measure:
    """A number with its 95 % bootstrap interval over clips."""

    value: float
    interval: Interval


@dataclass(frozen=True, slots=True)
class Gap:
    """The gap of one system on one test set.

    Attributes:
        centroid_distance: Distance of the centroids of unit sentence and unit clip features, 0 to 2.
        alignment: Mean squared distance of true pairs of unit features, 0 to 4: lower is closer.
        uniformity_texts: log of the mean of exp(-2 d^2) over pairs of sentences: lower is more spread out.
        uniformity_videos: The same over pairs of clips.
        separability: Share of features whose modality a linear classifier tells, of clips it was not fitted on: 0.5
            is no gap that a plane could find, 1 a complete one.
        divergence_matched: Mean KL(S_p || V_p) in nats of true pairs.
        divergence_unmatched: The same of all other pairs.
    """

    n_clips: int
    centroid_distance: Measure
    alignment: Measure
    uniformity_texts: Measure
    uniformity_videos: Measure
    separability: Measure
    divergence_matched: Measure
    divergence_unmatched: Measure
    n_anchors: int

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        plain: dict[str, Any] = {"n_clips": self.n_clips, "n_anchors": self.n_anchors}
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, Measure):
                plain[field.name] = {"value": value.value, "low": value.interval.low, "high": value.interval.high}
        return plain


def one_sentence_per_clip(encoded: EncodedSplit, texts: Tensor, videos: Tensor) -> tuple[Tensor, Tensor]:
    """The first sentence of each clip that has one, and that clip: float64 [N, D] each, in the order of the clips.

    Args:
        encoded: Says whose sentences they are.
        texts: Sentence features [N_t, D].
        videos: One feature per clip [N_v, D].

    Raises:
        BadInput: Fewer clips than the classifier's folds need.
    """
    clips, first = np.unique(encoded.owners, return_index=True)
    if len(clips) < _FEWEST_CLIPS:
        raise BadInput(f"the gap of {len(clips)} clips says nothing; evaluate on at least {_FEWEST_CLIPS}")
    return texts[torch.from_numpy(first)].double(), videos[torch.from_numpy(clips)].double()


def measure_gap(texts: Tensor, videos: Tensor, log_s: Tensor, log_v: Tensor, *, seed: int = 0) -> Gap:
    """Measure the gap of paired features.

    Args:
        texts: Sentence features [N, D]; row i belongs to row i of `videos`.
        videos: Mean frame features of clips [N, D].
        log_s: log S_p of the sentences, [N, K].
        log_v: log V_p of the clips, [N, K].
        seed: Of the resampling, and of the classifier's folds.
    """
    # Of unit length, as the loss compares them: by cosine.
    texts, videos = F.normalize(texts.double(), dim=-1), F.normalize(videos.double(), dim=-1)
    n = len(texts)
    # A resample is how often each clip is in it, so every measure is a product of matrices and no feature is copied.
    drawn = torch.from_numpy(np.concatenate(list(draws(n, n, REPLICATES, seed)))).double()  # [R, N]
    ones = torch.ones(1, n, dtype=torch.float64)

    def measured(statistic: Callable[[Tensor], Tensor]) -> Measure:
        """`statistic` maps counts of clips [R, N] to [R]: on every clip once, and on the resamples."""
        return Measure(float(statistic(ones)), percentiles(statistic(drawn).numpy()))

    pairs = divergences(log_s, log_v)
    # Classifiers are fitted once, on all clips; its interval resamples what they got right.
    correct = modality_accuracy(texts, videos, seed=seed)
    return Gap(
        n,
        measured(lambda w: ((w @ texts - w @ videos) / w.sum(1, keepdim=True)).norm(dim=1)),
        measured(_mean_of((texts - videos).square().sum(1))),
        measured(_log_mean_of_pairs(_kernel(texts))),
        measured(_log_mean_of_pairs(_kernel(videos))),
        measured(_mean_of(correct)),
        measured(_mean_of(pairs.diagonal())),
        measured(_mean_of_pairs(pairs)),
        log_s.shape[1],
    )


def divergences(log_s: Tensor, log_v: Tensor) -> Tensor:
    """KL(S_p of sentence i || V_p of clip j) in nats, [N, N], of logarithms [N, K] each."""
    log_s, log_v = log_s.double(), log_v.double()
    share = log_s.exp()
    return (share * log_s).sum(1, keepdim=True) - share @ log_v.T


def modality_accuracy(texts: Tensor, videos: Tensor, *, seed: int = 0) -> Tensor:
    """How many of a clip's two features, its own and its sentence's, a linear classifier gets right: share [N].

    Logistic regression with a ridge penalty, fitted by L-BFGS. The clips are dealt into five folds; those of one
    fold are judged by a classifier fitted on the other four, so no clip is judged by one that saw it; nor is a
    sentence, unless clips of several folds have it word for word. A feature on the plane itself counts half.
    """
    n = len(texts)
    order = np.random.default_rng(seed).permutation(n)
    accuracy = torch.empty(n, dtype=torch.float64)
    for fold in range(FOLDS):
        held_out = torch.from_numpy(np.sort(order[fold::FOLDS]))
        fitted = torch.ones(n, dtype=torch.bool)
        fitted[held_out] = False
        weights = fit_logistic(torch.cat([texts[fitted], videos[fitted]]), int(fitted.sum()))
        of_texts, of_videos = (_with_bias(features[held_out]) @ weights for features in (texts, videos))
        undecided = torch.full_like(of_texts, 0.5)
        accuracy[held_out] = (torch.heaviside(of_texts, undecided) + torch.heaviside(-of_videos, undecided)) / 2
    return accuracy


def fit_logistic(features: Tensor, n_first: int) -> Tensor:
    """Weights [D + 1], the bias last, that tell the first `n_first` rows of [M, D] (positive) from the others.

    Minimises the mean logistic loss plus PENALTY / 2 times the squared norm of the weights without the bias.
    """
    features = _with_bias(features)
    signs = torch.ones(len(features), dtype=torch.float64)
    signs[n_first:] = -1
    weights = torch.zeros(features.shape[1], dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [weights], max_iter=500, tolerance_grad=1e-9, tolerance_change=1e-14, line_search_fn="strong_wolfe"
    )

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = F.softplus(-signs * (features @ weights)).mean() + PENALTY / 2 * weights[:-1].square().sum()
        value.backward()  # type: ignore[no-untyped-call]
        return value

    # Whoever measures has gradients switched off.
    with torch.enable_grad():
        optimizer.step(loss)  # type: ignore[no-untyped-call]
    return weights.detach()


def _with_bias(features: Tensor) -> Tensor:
    return torch.cat([features, torch.ones(len(features), 1, dtype=features.dtype)], dim=1)


def _kernel(unit: Tensor) -> Tensor:
    """exp(-2 d^2) of all pairs of unit vectors [N, D]: [N, N]; d^2 = 2 - 2 cos."""
    return (-2 * (2 - 2 * unit @ unit.T)).exp()


def _mean_of(values: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda w: w @ values / w.sum(1)


def _mean_of_pairs(values: Tensor) -> Callable[[Tensor], Tensor]:
    """Mean over pairs of different clips; one that was drawn twice makes no pair with itself."""
    off = values - values.diagonal().diag()

    def statistic(w: Tensor) -> Tensor:
        return (w @ off * w).sum(1) / (w.sum(1) ** 2 - w.square().sum(1))

    return statistic


def _log_mean_of_pairs(values: Tensor) -> Callable[[Tensor], Tensor]:
    mean = _mean_of_pairs(values)
    return lambda w: mean(w).log()


# The modality gap of runs, and of the backbone that each started from.


TEMPERATURE = 100.0
"""Of the distributions that are compared, whatever a run was trained with: others would be other numbers."""


@dataclass(frozen=True, slots=True)
class SystemGap:
    """The gap of one system on one test set.

    Attributes:
        system: "before training", or a run's folder.
        loss: The run's `alignment.kind`, "" before training.
        vocabulary: The anchors that S_p and V_p are over, as bare prompts.
        caveats: What must be said wherever it is shown.
    """

    system: str
    loss: str
    dataset: str
    vocabulary: str
    gap: Gap
    caveats: tuple[str, ...] = ()


def gaps_of_runs(
    runs: Sequence[Run],
    tests: Sequence[SourceSpec],
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
    systems: list[tuple[str, str, Recipe, CalmModel, Run | None]] = []
    starts: dict[tuple[str, str | None, int | None, int | None], str] = {}
    for run in runs:
        recipe = run.recipe()
        weights = started_from(recipe)
        # Without weights a run starts from the draw of its seed, which is another start for each seed.
        start = (recipe.backbone.model, weights, recipe.backbone.image_size, recipe.seed if weights is None else None)
        if start not in starts:
            starts[start] = "before training" if not starts else f"before {run.folder.name}"
            systems.append((starts[start], "", recipe, _untrained(recipe, vocabulary, device), None))
    for run in runs:
        model = load_run(run, which, device)
        systems.append((str(run.folder), run.recipe().alignment.kind, run.recipe(), model, run))
    measured = []
    for test in tests:
        for system, kind, recipe, model, trained in systems:
            source = open_source(test, recipe, val=split != "test")
            record = source.record(split)
            labels = labels_of_start(recipe, record)
            if trained is not None:
                labels = labels_of(trained, which, test, record)
            encoded = source.encode(model, split, progress)
            gap = _gap(model, recipe, encoded, vocabulary)
            caveats = (*left_out_caveats(labels.dataset, len(encoded.ids), len(encoded.left_out)), *labels.concerns)
            measured.append(SystemGap(system, kind, labels.dataset, vocabulary.reference, gap, caveats))
    return measured


def _untrained(recipe: Recipe, vocabulary: Vocabulary, device: torch.device) -> CalmModel:
    """The backbone that a run started from; the head around it is untrained and takes no part."""
    bare = for_inference(recipe)
    # An adapter belongs to the training: before it, features are the backbone's own.
    bare = bare.model_copy(
        update={"backbone": bare.backbone.model_copy(update={"adapter": "none", "weights": started_from(recipe)})}
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)  # as `prepare` does: without weights, training began with the draw of its seed
        return build_model(bare, vocabulary, recipe_backbone(recipe)).eval().to(device)


def _gap(model: CalmModel, recipe: Recipe, encoded: EncodedSplit, vocabulary: Vocabulary) -> Gap:
    clips = mean_frame_feature(encoded.frames, recipe.anchors.frame_mean)
    texts, videos = one_sentence_per_clip(encoded, model.sentences(encoded.texts), clips)
    anchors = model.prompt_features(vocabulary.prompts).double().cpu()
    log_s, log_v = (anchor_log_probabilities(features, anchors, TEMPERATURE) for features in (texts, videos))
    return measure_gap(texts, videos, log_s, log_v)
