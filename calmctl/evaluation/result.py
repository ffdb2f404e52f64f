"""One evaluation of one system on one test set, with everything its numbers need to be read rightly."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from calmctl.evaluation.card import Card, list_facts
from calmctl.evaluation.metrics import Direction, Ranks, RetrievalMetrics
from calmctl.evaluation.paper import PaperRetrieval, paper_retrieval
from calmctl.evaluation.statistics import Intervals, bootstrap_intervals
from calmctl.words import counted

HONEST_SCORER = "leak-free"
RERANKED = "re-ranked"
_CAVEATS = {  # what a reader must know of every scorer but the honest one
    "tmass-released": "this scorer saw the answers: each candidate was pooled with its own caption. An audit of "
    "T-MASS's released code, never to be compared with an honest number",
    "given": "calmctl did not compute these scores and cannot know what their scorer saw",
    RERANKED: "scores of a query's best candidates depend on which others are among them, as a single search has them, "
    "but on no other query and no answer; the leak-free numbers of the first stage stand beside",
    "dual-softmax": "re-ranked with the whole set of test queries, which a single search does not have; compare "
    "with other re-ranked numbers only",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Labels:
    """What a number is of, and what must be said of that wherever it is shown.

    Attributes:
        dataset: Name of the dataset tested on, "" where it is not known.
        protocol: Its protocol, "" where there is only one.
        split: "test" or "val".
        trained_on: Name of the dataset trained on, "" where nothing was trained or it is not known.
        system: What was evaluated: "last", "best-on-validation", ...
        scorer: How pairs were scored, with a word on it in parentheses where that needs one; anything but "leak-free"
            is labelled wherever it is shown. "" for captions, whose scores say it themselves.
        published: Whether training and test split are the published ones, as far as is known: the paper's numbers
            stand beside nothing else.
        concerns: Caveats about the data, the training and the run (`calmctl.runs.identity.judge`).
        test_set: What was tested on, in digests (`SplitRecord.summary`); None where it is not known.
        card: How the number was made, as far as that is known before it is there (`RetrievalResult.card`).
    """

    dataset: str = ""
    protocol: str = ""
    split: str = "test"
    trained_on: str = ""
    trained_protocol: str = ""
    system: str = ""
    scorer: str = HONEST_SCORER
    published: bool = False
    concerns: tuple[str, ...] = ()
    test_set: Mapping[str, Any] | None = None
    card: Card = field(default_factory=Card)

    def with_list(self, ids: Sequence[str], captions: Sequence[str], owners: Sequence[int]) -> Labels:
        """With a card that tells the clips and captions that were used, as in `list_facts`."""
        return replace(self, card=replace(self.card, **list_facts(ids, captions, owners)))

    def of_system(self, system: str) -> Labels:
        """The labels of the same weights under another name of how they were chosen."""
        return replace(self, system=system, card=replace(self.card, selection=system))

    @property
    def known_card(self) -> Card:
        """The card with what these labels say themselves."""
        card = replace(self.card, dataset=self.dataset, protocol=self.protocol) if self.dataset else self.card
        trained = f"{self.trained_on} {self.trained_protocol}".strip()
        return replace(card, split=self.split, trained_on=trained or card.trained_on)

    def to_json(self) -> dict[str, Any]:
        """Plain data; concerns are among a result's caveats, and the card is the result's."""
        values = asdict(self)
        del values["concerns"], values["card"]
        # Scores of captions name their scorer themselves.
        return values if self.scorer else {name: each for name, each in values.items() if name != "scorer"}


@dataclass(frozen=True, slots=True, kw_only=True)
class RetrievalResult:
    """Retrieval on one test set.

    Attributes:
        paper_method: The method of the paper's Tables 1 to 3 to stand beside, "" for none.
        n_clips, n_captions: How many were evaluated.
        left_out: Clips of the protocol that could not be evaluated.
        metrics: By direction.
        intervals: By direction; None where one clip leaves nothing to resample, or nobody asked.
    """

    labels: Labels
    paper_method: str
    n_clips: int
    n_captions: int
    left_out: int
    metrics: Mapping[Direction, RetrievalMetrics]
    intervals: Mapping[Direction, Intervals | None]

    @property
    def card(self) -> Card:
        """How these numbers were made, sentences being the queries."""
        return replace(
            self.labels.known_card,
            queries=self.n_captions,
            candidates=self.n_clips,
            left_out=self.left_out,
            scorer=self.labels.scorer,
        )

    @property
    def paper(self) -> PaperRetrieval | None:
        """The paper's text-to-video numbers where training set, test set and frames are the paper's, and whole."""
        row = self._paper
        return None if row is None or self.paper_apart else row

    @property
    def paper_apart(self) -> str:
        """Why the paper's numbers of this data are not beside these, "" where they are or there are none."""
        row = self._paper
        # Its lists are compared by digests (`Labels.published`); of its card only how clips are seen is looked at here.
        if row is None or None in (ours := self.card.frames, theirs := row.card.frames) or ours == theirs:
            return ""
        return f"paper: not beside {self.labels.dataset}, because it has {theirs} frames a clip, and this {ours}"

    @property
    def _paper(self) -> PaperRetrieval | None:
        labels = self.labels
        # A clip fewer is an easier test: the row stands beside the whole set alone.
        if labels.split != "test" or not labels.published or self.left_out:
            return None
        return paper_retrieval(
            labels.trained_on,
            labels.dataset,
            trained_protocol=labels.trained_protocol,
            tested_protocol=labels.protocol,
            method=self.paper_method,
        )

    @property
    def caveats(self) -> tuple[str, ...]:
        """What must be said wherever these numbers are shown."""
        labels, caveats = self.labels, []
        if labels.scorer != HONEST_SCORER:
            why = _CAVEATS.get(labels.scorer.partition(" (")[0], "not the default scorer")
            caveats.append(f"{labels.scorer}: {why}")
        caveats += left_out_caveats(labels.dataset, self.n_clips, self.left_out)
        if labels.split != "test":
            caveats.append(f"{labels.dataset}: the {labels.split} split, not the test set")
        return (*caveats, *labels.concerns)

    def to_json(self) -> dict[str, Any]:
        """Plain data for `--json` and for the record of a run."""
        paper, values = self.paper, asdict(self)
        return {
            **self.labels.to_json(),
            **{name: each for name, each in values.items() if name != "labels"},
            "paper": None if paper is None else {**asdict(paper), "card": paper.card.to_json()},
            "caveats": list(self.caveats),
            "card": self.card.to_json(),
        }


def left_out_caveats(dataset: str, n_clips: int, left_out: int) -> tuple[str, ...]:
    """What must be said of a number on `n_clips` clips of a test set when `left_out` of it were not used."""
    if not left_out:
        return ()
    return (
        f"{dataset}: {left_out:,} of {counted(n_clips + left_out, 'clip')} left out; fewer "
        "candidates make retrieval easier, so these are no numbers for the whole test set",
    )


def retrieval_result(
    ranks: Mapping[Direction, Ranks],
    labels: Labels,
    *,
    paper_method: str = "CALM",
    left_out: int = 0,
    intervals: bool = True,
    replicates: int = 2000,
) -> RetrievalResult:
    """Metrics of every direction (`rank_all`), with their intervals where somebody will look at them.

    The other arguments are those of `RetrievalResult` and of `bootstrap_intervals`, and so are the errors.
    """
    forward = ranks["text_to_video"]
    return RetrievalResult(
        labels=labels,
        paper_method=paper_method,
        n_clips=forward.n_candidates,
        n_captions=len(forward.clips),
        left_out=left_out,
        metrics={direction: each.metrics() for direction, each in ranks.items()},
        intervals={
            direction: bootstrap_intervals(each, replicates=replicates) if intervals else None
            for direction, each in ranks.items()
        },
    )
