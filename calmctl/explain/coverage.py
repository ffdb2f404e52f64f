"""Which anchors a dataset uses: those that carry mass, those that never do, and those that say the same."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from calmctl.anchors.vocabulary import Vocabulary, make_vocabulary
from calmctl.errors import VocabularyError
from calmctl.explain.collection import Collection
from calmctl.explain.explainer import Explainer

NUCLEUS = 0.9
TWIN_CORRELATION = 0.95


@dataclass(frozen=True, slots=True)
class AnchorUse:
    """How a dataset uses one anchor.

    Attributes:
        id, label: The anchor.
        video_mass: Its mean share of V_p over all clips.
        text_mass: Its mean share of S_p over all captions.
        clips: Clips that it is needed for: it is among the fewest anchors that hold 90 % of V_p.
        captions: The same of captions and S_p.
    """

    id: str
    label: str
    video_mass: float
    text_mass: float
    clips: int
    captions: int

    @property
    def used(self) -> bool:
        """Whether any clip or caption needs it."""
        return self.clips + self.captions > 0


@dataclass(frozen=True, slots=True)
class Twins:
    """Two anchors that rise and fall together.

    Attributes:
        kept, dropped: Their labels; the one with more mass is kept.
        correlation: Of their cosines, each minus the mean over all anchors, over the clips and captions.
    """

    kept: str
    dropped: str
    correlation: float


@dataclass(frozen=True, slots=True)
class Coverage:
    """What a split uses of a vocabulary.

    Attributes:
        vocabulary: `name@version` and its digest.
        clips, captions: How many were looked at.
        anchors: All K, the most used first.
        never: Labels that nothing needs.
        twins: Near-duplicates, the closest first.
        suggested: Ids of a subset without those, in the vocabulary's order.
        kept_mass: The share of the mass, mean of V_p and S_p, that the subset's anchors carry.
        effective: exp of the entropy of the mean mass: how many anchors would carry as much evenly.
    """

    run: str
    vocabulary: str
    digest: str
    dataset: str
    split: str
    clips: int
    captions: int
    anchors: tuple[AnchorUse, ...]
    never: tuple[str, ...]
    twins: tuple[Twins, ...]
    suggested: tuple[str, ...]
    kept_mass: float
    effective: float

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


@torch.inference_mode()
def coverage(explainer: Explainer, collection: Collection) -> Coverage:
    """Measure a run's anchors on an encoded split."""
    encoded, vocabulary = collection.encoded, explainer.vocabulary
    log_v, log_s = explainer.log_v(encoded.frames), explainer.log_s(encoded.texts)
    video, text = log_v.exp().double(), log_s.exp().double()
    clips, captions = needed(video).sum(0), needed(text).sum(0)
    # Both sides weigh the same, however many captions a clip has.
    mass = (video.mean(0) + text.mean(0)) / 2
    used = (clips + captions) > 0
    order = mass.argsort(descending=True, stable=True).tolist()
    correlation = _correlation(log_v, log_s)
    chosen, twins = _suggest(order, used, correlation, vocabulary)
    return Coverage(
        run=explainer.name,
        vocabulary=vocabulary.reference,
        digest=vocabulary.digest,
        dataset=collection.dataset,
        split=collection.split,
        clips=len(video),
        captions=len(text),
        anchors=tuple(
            AnchorUse(
                vocabulary.labels[k].id,
                vocabulary.labels[k].text,
                float(video[:, k].mean()),
                float(text[:, k].mean()),
                int(clips[k]),
                int(captions[k]),
            )
            for k in order
        ),
        never=tuple(vocabulary.texts[k] for k in range(len(vocabulary)) if not used[k]),
        twins=twins,
        suggested=tuple(vocabulary.labels[k].id for k in sorted(chosen)),
        kept_mass=float(mass[chosen].sum() / mass.sum()),
        effective=float(torch.special.entr(mass / mass.sum()).sum().exp()),
    )


def needed(probabilities: Tensor, share: float = NUCLEUS) -> Tensor:
    """Which anchors are among the fewest that hold `share` of each distribution, bool [N, K]."""
    ordered, places = probabilities.sort(dim=-1, descending=True, stable=True)
    # The mass before each anchor, so that the one that crosses the line is among them; one with all the mass is, too.
    before = ordered.cumsum(-1) - ordered
    return torch.zeros_like(probabilities, dtype=torch.bool).scatter(-1, places, before < share)


def suggested_vocabulary(measured: Coverage, vocabulary: Vocabulary) -> Vocabulary:
    """The suggested subset as a vocabulary of its own; raises `VocabularyError` for fewer than two anchors."""
    if len(measured.suggested) < 2:
        raise VocabularyError(f"only {len(measured.suggested)} anchor is of use on {measured.dataset}: no vocabulary")
    chosen = set(measured.suggested)
    return make_vocabulary(
        ((label.id, label.text) for label in vocabulary.labels if label.id in chosen),
        where="suggested subset",
        **{
            **vocabulary.model_dump(exclude={"labels"}),
            # A vocabulary of its own: a subset is not the next version of the whole.
            "name": f"{vocabulary.name}-{measured.dataset}",
            "version": 1,
            "note": f"{len(chosen)} of {len(vocabulary)} labels of {vocabulary.reference} ({vocabulary.digest}): those "
            f"that {measured.run} uses on the {measured.split} split of {measured.dataset}, without near-duplicates",
        },
    )


def _correlation(log_v: Tensor, log_s: Tensor) -> NDArray[np.float64]:
    """How far anchors rise and fall together, [K, K]: the smaller of the correlations over clips and captions.

    Log probabilities minus their mean over the anchors are the cosines minus theirs, times tau.
    """
    correlations = []
    for log_p in (log_v, log_s):
        centred = (log_p - log_p.mean(-1, keepdim=True)).double().numpy()
        centred = centred - centred.mean(0)
        lengths = np.linalg.norm(centred, axis=0)
        # An anchor that never moves rises and falls with nothing.
        unit = np.divide(centred, lengths, out=np.zeros_like(centred), where=lengths > 0)
        correlations.append(unit.T @ unit)
    # Over clips and over captions alike: anchors that only one side cannot tell apart are no twins.
    smaller: NDArray[np.float64] = np.minimum(*correlations)
    return smaller


def _suggest(
    order: list[int], used: Tensor, correlation: NDArray[np.float64], vocabulary: Vocabulary
) -> tuple[list[int], tuple[Twins, ...]]:
    """Take used anchors in the order of their mass, none that is the twin of one already taken."""
    chosen: list[int] = []
    twins = []
    for k in order:
        # Greedy by mass: of two twins the one that carries more stays, and a third is held against what stayed.
        near = max(chosen, key=lambda taken: correlation[k, taken], default=None)
        if near is not None and correlation[k, near] >= TWIN_CORRELATION:
            twins.append(Twins(vocabulary.texts[near], vocabulary.texts[k], float(correlation[k, near])))
        elif used[k]:
            chosen.append(k)
    return chosen, tuple(sorted(twins, key=lambda pair: -pair.correlation))
