"""Where the numbers of a run go besides its own log (TensorBoard), and which of them are signs of a collapse."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from calmctl.errors import BadInput, RunFailed
from calmctl.files import make_folder, remove
from calmctl.recipe import Recipe

# TensorBoard, where that extra is installed.


Record = Mapping[str, Any]
"""A line of the run's log: "step", "time" and named numbers, or those of a validation under "validation"."""


class Tracker(Protocol):
    """Receives the lines of a run's log."""

    def restart(self, records: Iterable[Record]) -> None:
        """Hold these lines and no others: those that a run which goes on keeps."""
        ...

    def log(self, record: Record) -> None:
        """Take one more line."""
        ...


class NoTracker:
    """Keeps nothing: the run's own log.jsonl has everything."""

    def restart(self, records: Iterable[Record]) -> None:
        """Do nothing."""

    def log(self, record: Record) -> None:
        """Do nothing."""


class TensorBoardTracker:
    """Writes scalars for TensorBoard into `folder`. Raises `BadInput` where the extra is not installed.

    A killed run leaves events of steps that will be done again. So a run that goes on writes its events anew,
    from its log and with their former times: every step is there once, for any reader.
    """

    def __init__(self, folder: Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise BadInput("--tensorboard needs the extra of that name: pip install 'calmctl[tensorboard]'") from None
        _leave_faults_to_the_caller()
        make_folder(folder)  # at once: a run that is killed before its first step must know what it was asked for
        self._folder = folder
        self._open = SummaryWriter
        self._writer: SummaryWriter | None = None

    def restart(self, records: Iterable[Record]) -> None:
        """Write the events of `records` in place of those that are there."""
        self._writer = None
        for former in self._folder.glob("events.out.tfevents.*"):
            remove(former)
        for record in records:
            self._write(record)
        self._flush()

    def log(self, record: Record) -> None:
        """Write one scalar a number; those of a validation are under val/. Raises `RunFailed` when it cannot."""
        self._write(record)
        self._flush()

    def _write(self, record: Record) -> None:
        named = {name: value for name, value in record.items() if name not in ("step", "time", "epoch", "validation")}
        named |= {f"val/{name}": value for name, value in record.get("validation", {}).items()}
        try:
            if self._writer is None:
                self._writer = self._open(str(self._folder))
            for name, value in named.items():
                self._writer.add_scalar(name, value, record["step"], walltime=record["time"])
        except OSError as fault:
            raise self._failed(fault) from fault

    def _flush(self) -> None:
        try:
            if self._writer is not None:
                self._writer.flush()
        except OSError as fault:
            raise self._failed(fault) from fault

    def _failed(self, fault: OSError) -> RunFailed:
        return RunFailed(
            f"cannot write {self._folder}: {fault.strerror or fault}; free space, or go on without it after removing "
            "that folder"
        )


def _leave_faults_to_the_caller() -> None:
    """Let Python print nothing of TensorBoard's thread: what ends it is raised again where the next scalar is added."""
    former = threading.excepthook

    def tell(fault: threading.ExceptHookArgs) -> None:
        if not type(fault.thread).__module__.startswith("tensorboard."):
            former(fault)

    threading.excepthook = tell


# Signs that the alignment is dead or says nothing, told in words (docs/science.md, Is it alive?).


PATIENCE = 20
"""Logged lines in a row that must show a sign before it is told: a single batch, or a start, is no collapse."""
NEARLY_ONE_ANCHOR = 0.05
"""Mean entropy in nats below which a distribution is all but one anchor: a peak of 0.99 and more."""
NEARLY_UNIFORM = 0.99
"""Share of the largest entropy, log K, above which a distribution is all but uniform.

All three are our choice.
"""
ONE_HOT_START, UNIFORM_START = 0.5, 0.95
"""At the first step, mean entropies in nats under the one, and in shares of log K above the other, are told at once.

Our choice. OpenAI's CLIP has 1 to 3.4 nats on real clips with tau 100 (docs/science.md, reading 1).
"""


@dataclass(frozen=True, slots=True)
class _Sign:
    shows: Callable[[Mapping[str, Any]], bool]
    words: str


class CollapseWatch:
    """Looks at the numbers that a training logs, and tells each sign of a collapse once."""

    def __init__(self, recipe: Recipe, anchors: int) -> None:
        """Watch a training of `recipe` over K = `anchors` anchors."""
        aligned = recipe.alignment.kind != "none"
        self._signs = _signs(recipe, anchors) if aligned else []
        self._rows = [0] * len(self._signs)
        self._largest = math.log(anchors) if aligned else None  # None: nothing to look at, or the start is over

    def update(self, numbers: Mapping[str, Any]) -> list[str]:
        """Take the numbers of one more logged step; returns the warnings that are due."""
        due = [] if self._largest is None else _at_start(numbers, self._largest)
        self._largest = None
        for index, sign in enumerate(self._signs):
            if self._rows[index] < PATIENCE:  # afterwards it has been told
                self._rows[index] = self._rows[index] + 1 if sign.shows(numbers) else 0
                if self._rows[index] == PATIENCE:
                    due.append(sign.words)
        return due

    def catch_up(self, records: Iterable[Mapping[str, Any]]) -> None:
        """Take the log that a run which goes on already has: what was told there is not told again."""
        for record in records:
            # Warnings and validations are lines of the log, too.
            if "loss" in record:
                self.update(record)


def _at_start(numbers: Mapping[str, Any], largest: float) -> list[str]:
    """What is wrong with the distributions before anything was learned, `largest` being log K: mostly the tau."""
    due = []
    for name, key in (("S_p, the sentences'", "entropy_s"), ("V_p, the videos'", "entropy_v")):
        value = numbers[key]
        state = "one-hot" if value < ONE_HOT_START else "uniform" if value > UNIFORM_START * largest else ""
        if state:
            due.append(
                f"{name} distribution over anchors, is nearly {state} at the start: a mean entropy of {value:.2f} of "
                f"{largest:.2f} nats, so it says little of how anchors compare; anchors.temperature=auto finds a tau "
                "that fits this backbone"
            )
    return due


def _signs(recipe: Recipe, anchors: int) -> list[_Sign]:
    largest = math.log(anchors)
    signs = []
    # Both are watched: video-text cosines spread less than text-text ones, so V_p may be flat where S_p is not.
    for letter, name, key in (
        ("s", "S_p, the sentences' distribution over anchors,", "anchors.temperature"),
        ("v", "V_p, the videos' distribution over anchors,", "anchors.video_temperature"),
    ):
        entropy = f"entropy_{letter}"
        signs += [
            _Sign(
                lambda numbers, entropy=entropy: numbers[entropy] < NEARLY_ONE_ANCHOR,  # type: ignore[misc]
                f"{name} has all but collapsed onto one anchor: its mean entropy has stayed under "
                f"{NEARLY_ONE_ANCHOR:g} nats of {largest:.2f}, so the other anchors teach nothing; "
                f"try a lower {key}, or a vocabulary with finer anchors",
            ),
            _Sign(
                lambda numbers, entropy=entropy: numbers[entropy] > NEARLY_UNIFORM * largest,  # type: ignore[misc]
                f"{name} is all but uniform: its mean entropy has stayed above {NEARLY_UNIFORM:.0%} of log K, so no "
                f"anchor says anything; try a higher {key}, or a vocabulary that fits the data",
            ),
        ]
    if recipe.alignment.kind == "vae":
        latent = recipe.alignment.latent
        signs.append(
            _Sign(
                lambda numbers: numbers["active_units"] == 0,
                f"none of the VAE's {latent} latent units depends on its input (posterior collapse: the variance of "
                "every mean over the batch is under 0.01), so CALM's loss sees no video; try a lower "
                "alignment.kl_weight, alignment.latent_reduction=mean, or alignment.input=scaled",
            )
        )
    return signs
