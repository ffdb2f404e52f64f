"""Caption scores of one system on one test set, with the paper's numbers to stand beside."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from calmctl.counting import counted
from calmctl.evaluation.captions.scores import CaptionScores
from calmctl.evaluation.paper import CAPTIONING, PaperCaptioning
from calmctl.evaluation.result import Labels

# The paper captions MSR-VTT's full split: 6,513 / 497 / 2,990 clips (docs/captioning.md); "" stands for the paper's.
_PROTOCOLS = {"msrvtt": {"", "full"}}


@dataclass(frozen=True, slots=True)
class CaptionResult(Labels):
    """Captions of one test set, scored, under the labels of what they are of.

    Attributes:
        scores: The metrics.
        name: What is shown as its name where no dataset is known, such as a file's name.
        left_out: Clips of the protocol that could not be captioned.
    """

    scores: CaptionScores
    name: str = ""
    left_out: int = 0

    @property
    def paper(self) -> tuple[PaperCaptioning, ...]:
        """The rows of Tables 4 and 5 for this training and test set; none where they are not the paper's, and whole."""
        if (
            self.split != "test"
            or not self.published
            or self.left_out
            or self.protocol not in _PROTOCOLS.get(self.dataset, {self.protocol})
            or self.trained_protocol not in _PROTOCOLS.get(self.trained_on, {self.trained_protocol})
        ):
            return ()
        return tuple(row for row in CAPTIONING if (row.trained_on, row.tested_on) == (self.trained_on, self.dataset))

    @property
    def caveats(self) -> tuple[str, ...]:
        """What must be said wherever these numbers are shown."""
        caveats = list(self.scores.caveats)
        if self.left_out:
            caveats.append(f"{counted(self.left_out, 'clip')} left out; these are no numbers for the whole test set")
        if self.split != "test":
            caveats.append(f"the {self.split} split, not the test set")
        label = self.dataset or self.name
        return (*(f"{label}: {caveat}" if label else caveat for caveat in caveats), *self.concerns)

    def to_json(self) -> dict[str, Any]:
        """Plain data for `--json` and for the record of a run."""
        labels = {name: value for name, value in self.values().items() if name != "concerns"}  # among the caveats
        return {
            "name": self.name,
            **labels,
            "left_out": self.left_out,
            "scores": self.scores.to_json(),
            "paper": [asdict(row) for row in self.paper],
            "caveats": list(self.caveats),
        }
