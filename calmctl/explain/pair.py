"""One pair explained: everything that the terminal, the page and `--json` show."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from calmctl.anchors.distribution import entropy, kl_divergence
from calmctl.errors import BadInput
from calmctl.explain import score
from calmctl.explain.anchors import AnchorComparison, Reconstruction, compare, reconstruct, without
from calmctl.explain.collection import Collection, Standing, standing
from calmctl.explain.explainer import Explainer, SeenVideo


@dataclass(frozen=True, slots=True)
class Without:
    """The pair once more, without some anchors.

    Attributes:
        removed: Their places in the vocabulary.
        mass: The shares of V_p and of S_p that they had.
        divergence: KL(S_p || V_p) over the others, in nats.
        video_entropy, text_entropy: H of both over the others.
        score: The head's score when what is particular to these anchors is taken out of all features.
        standing: In the collection, None without one.
    """

    removed: tuple[int, ...]
    mass: tuple[float, float]
    divergence: float
    video_entropy: float
    text_entropy: float
    score: float
    standing: Standing | None


@dataclass(frozen=True, slots=True)
class Explanation:
    """Everything about one pair; see the attributes' own classes."""

    explainer: Explainer
    seen: SeenVideo
    sentence: str
    comparison: AnchorComparison
    reconstruction: Reconstruction | None
    pair: score.ScoredPair
    split: score.ScoreParts
    timeline: score.Timeline
    without: Without | None
    standing: Standing | None
    collection: str | None

    @property
    def labels(self) -> tuple[str, ...]:
        """The K anchor labels."""
        return self.explainer.vocabulary.texts

    def to_json(self) -> dict[str, Any]:
        """Everything as plain data; distributions in the order of "anchors"."""
        explainer, seen, line = self.explainer, self.seen, self.timeline
        pair, split = self.pair, self.split
        return {
            "video": str(seen.clip.path),
            "sentence": self.sentence,
            "explained_by": explainer.name,
            "notes": list(explainer.notes),
            "vocabulary": {"name": explainer.vocabulary.reference, "digest": explainer.vocabulary.digest},
            "temperature": explainer.temperature,
            "video_temperature": explainer.video_temperature,
            "anchors": list(self.labels),
            "distributions": _plain(self.comparison),
            "vae": None if self.reconstruction is None else _plain(self.reconstruction),
            "score": {
                "head": explainer.model.head.name,
                "score": pair.score,
                "frame_times_s": _numbers(seen.times_s),
                "frame_weights": _numbers(pair.weights),
                "frame_weights_depend_on_sentence": pair.conditioned,
                "frame_cosines": _numbers(pair.cosines),
                "contributions": _plain(split),
            },
            "timeline": {
                "instants_s": _numbers(line.instants_s),
                "video": _numbers(line.video),
                "entropy": _numbers(line.entropy),
                "cosines": _numbers(line.cosines),
                "segments": [_plain(segment) for segment in line.segments],
            },
            "without": None
            if self.without is None
            else {**asdict(self.without), "removed": [self.labels[k] for k in self.without.removed]},
            "collection": self.collection,
            "standing": None if self.standing is None else asdict(self.standing),
        }


def explain(
    explainer: Explainer,
    seen: SeenVideo,
    sentence: str,
    *,
    removed: tuple[int, ...] = (),
    collection: Collection | None = None,
) -> Explanation:
    """Explain a video that was seen, by `see_video` with the same explainer, and a sentence.

    The pair is looked at without the anchors `removed`, too, which `calmctl.anchors.vocabulary.find_anchors` gives. The
    video is ranked for the sentence among the clips of `collection`, of which the same file is not counted twice.

    Raises:
        BadInput: The collection's clips have another number of frames than the video was seen with.
    """
    # A rank is only as good as the clips it is among, so what must be said of them is said here.
    if collection is not None and collection.caveats:
        explainer = replace(explainer, notes=(*explainer.notes, *collection.caveats))
    text = explainer.encode_texts([sentence])[0]
    log_s, log_v = explainer.log_s(text), explainer.log_v(seen.frames)
    pair = score.score_pair(explainer.model.head, text, seen.frames)
    candidates = None if collection is None else _candidates(collection, seen)
    return Explanation(
        explainer=explainer,
        seen=seen,
        sentence=sentence,
        comparison=compare(log_v, log_s),
        reconstruction=None if explainer.vae is None else reconstruct(explainer.vae, log_v, log_s),
        pair=pair,
        split=score.split_score(pair, score.anchor_directions(explainer.anchors)),
        # A frame is held against all of the sentence, also where the head reads its words.
        timeline=score.timeline(explainer, seen, explainer.model.sentences(text)),
        without=_without(explainer, text, seen, list(removed), candidates) if removed else None,
        standing=None if candidates is None else standing(explainer, text, candidates),
        collection=None if collection is None else f"{collection.dataset} {collection.split}",
    )


def _without(
    explainer: Explainer, text: Tensor, seen: SeenVideo, removed: list[int], candidates: Tensor | None
) -> Without:
    log_s, log_v = explainer.log_s(text), explainer.log_v(seen.frames)
    # Two ways of going without: the distributions lose the anchors, and the score, which never looks at anchors,
    # loses what is particular to them.
    less_s, less_v = without(log_s, removed), without(log_v, removed)
    directions = score.anchor_directions(explainer.anchors).centred[removed]
    return Without(
        removed=tuple(removed),
        mass=(float(log_v.exp()[removed].sum()), float(log_s.exp()[removed].sum())),
        divergence=float(kl_divergence(less_s, less_v)),
        video_entropy=float(entropy(less_v)),
        text_entropy=float(entropy(less_s)),
        score=score.score_pair(
            explainer.model.head, score.project_out(text, directions), score.project_out(seen.frames, directions)
        ).score,
        standing=None if candidates is None else standing(explainer, text, candidates, removed),
    )


def _candidates(collection: Collection, seen: SeenVideo) -> Tensor:
    """Frames [N_v, F, D] of the video, first, and of the collection's other clips."""
    theirs, own = collection.encoded.frames.shape[1], len(seen.frames)
    if theirs != own:
        raise BadInput(
            f"the stored clips of {collection.dataset} have {theirs} frames each and the video was looked at with "
            f"{own}; leave out --collection, or use a run whose data.frames is that of its feature store"
        )
    # By file and window: ids are the data set's, and the video came by a path.
    ours = seen.clip.path.resolve()
    others = [
        place
        for place, name in enumerate(collection.encoded.ids)
        if not (
            (clip := collection.clips.get(name))
            and clip.path.resolve() == ours
            and (clip.start_s, clip.end_s) == (seen.clip.start_s, seen.clip.end_s)
        )
    ]
    return torch.cat([seen.frames[None], collection.encoded.frames[others]])


def _plain(record: Any) -> dict[str, Any]:
    """A dataclass of numbers and tensors as plain data."""
    fields = {name: getattr(record, name) for name in record.__slots__}
    return {name: _numbers(value) if isinstance(value, Tensor) else value for name, value in fields.items()}


def _numbers(values: Any) -> Any:
    return values.tolist()
