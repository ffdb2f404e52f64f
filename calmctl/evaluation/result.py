"""One evaluation of one system on one test set, with everything its numbers need to be read rightly."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from numpy.typing import ArrayLike

from calmctl.counting import counted
from calmctl.evaluation.bootstrap import Intervals, bootstrap_intervals
from calmctl.evaluation.metrics import DIRECTIONS, Direction, RetrievalMetrics, rank_queries
from calmctl.evaluation.paper import PaperRetrieval, paper_retrieval

HONEST_SCORER = "leak-free"
_CAVEATS = {  # what a reader must know of every scorer but the honest one
    "tmass-released": "this scorer saw the answers: each candidate was pooled with its own caption. An audit of "
    "T-MASS's released code, never to be compared with an honest number",
    "dual-softmax": "re-ranked with the whole set of test queries, which a single search does not have; compare "
    "with other re-ranked numbers only",
}


@dataclass(frozen=True, slots=True)
class RetrievalResult:
    """Retrieval on one test set.

    Attributes:
        dataset: Name of the dataset tested on.
        protocol: Its protocol, "" where there is only one.
        split: "test" or "val".
        trained_on: Name of the dataset trained on, "" where nothing was trained.
        trained_protocol: Its protocol.
        system: What was evaluated: "last", "best-on-validation", ...
        scorer: Protocol of the scores; anything but "leak-free" is labelled wherever it is shown.
        paper_method: The method of the paper's Tables 1 to 3 to stand beside, "" for none.
        n_clips: Clips evaluated.
        n_captions: Captions evaluated.
        left_out: Clips of the protocol that could not be evaluated.
        metrics: By direction.
        intervals: By direction; None where one clip leaves nothing to resample.
    """

    dataset: str
    protocol: str
    split: str
    trained_on: str
    trained_protocol: str
    system: str
    scorer: str
    paper_method: str
    n_clips: int
    n_captions: int
    left_out: int
    metrics: Mapping[Direction, RetrievalMetrics]
    intervals: Mapping[Direction, Intervals | None]

    @property
    def paper(self) -> PaperRetrieval | None:
        """The paper's text-to-video numbers where training set, test set and protocols are the paper's."""
        if self.split != "test":
            return None
        return paper_retrieval(
            self.trained_on,
            self.dataset,
            trained_protocol=self.trained_protocol,
            tested_protocol=self.protocol,
            method=self.paper_method,
        )

    @property
    def caveats(self) -> tuple[str, ...]:
        """What must be said wherever these numbers are shown."""
        caveats = []
        if self.scorer != HONEST_SCORER:
            caveats.append(f"{self.scorer}: {_CAVEATS.get(self.scorer, 'not the default scorer')}")
        if self.left_out:
            caveats.append(
                f"{self.dataset}: {self.left_out:,} of {counted(self.n_clips + self.left_out, 'clip')} left out; fewer "
                "candidates make retrieval easier, so these are no numbers for the whole test set"
            )
        if self.split != "test":
            caveats.append(f"{self.dataset}: the {self.split} split, not the test set")
        return tuple(caveats)

    def to_json(self) -> dict[str, Any]:
        """Plain data for `--json` and for the record of a run."""
        paper = self.paper
        return {
            **asdict(self),
            "paper": None if paper is None else asdict(paper),
            "caveats": list(self.caveats),
        }


def retrieval_result(
    scores: ArrayLike,
    owners: ArrayLike,
    *,
    dataset: str,
    protocol: str = "",
    split: str = "test",
    trained_on: str = "",
    trained_protocol: str = "",
    system: str = "",
    scorer: str = HONEST_SCORER,
    paper_method: str = "CALM",
    left_out: int = 0,
    level: float = 0.95,
    replicates: int = 2000,
    seed: int = 0,
    scores_of_videos: ArrayLike | None = None,
) -> RetrievalResult:
    """Metrics of every direction with their intervals, from scores [N_t, N_v] and owners [N_t].

    `scores_of_videos` [N_t, N_v] is for a scorer whose scores depend on which side asks, as re-ranking's do:
    it is used where the videos are the queries. The other arguments are those of `RetrievalResult` and of
    `bootstrap_intervals`.

    Raises:
        BadInput: As `rank_queries` and `bootstrap_intervals`.
        RunFailed: A score is NaN.
    """
    back = scores if scores_of_videos is None else scores_of_videos
    ranks = {
        direction: rank_queries(scores if direction == "text_to_video" else back, owners, direction)
        for direction in DIRECTIONS
    }
    return RetrievalResult(
        dataset=dataset,
        protocol=protocol,
        split=split,
        trained_on=trained_on,
        trained_protocol=trained_protocol,
        system=system,
        scorer=scorer,
        paper_method=paper_method,
        n_clips=ranks["text_to_video"].n_candidates,
        n_captions=len(ranks["text_to_video"].clips),
        left_out=left_out,
        metrics={direction: each.metrics() for direction, each in ranks.items()},
        intervals={
            direction: bootstrap_intervals(each, level=level, replicates=replicates, seed=seed)
            for direction, each in ranks.items()
        },
    )
