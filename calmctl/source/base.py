"""What every source of clips and captions promises: training, evaluation and explanation know nothing else of data."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from calmctl.data.identity import SplitRecord
from calmctl.model.calm import AlignedModel, Batch
from calmctl.recipe.schema import Data
from calmctl.samples import LeftOut, Split, StoredSplit
from calmctl.source.batches import Sampling
from calmctl.source.encoding import EncodedSplit
from calmctl.video.cache import CacheFolder
from calmctl.words import Progress


@dataclass(frozen=True, slots=True)
class SourceSpec:
    """Which data, and where it lies: parsed once from a recipe or a command line, then handed on whole.

    Attributes:
        dataset: Its name.
        root, annotations, videos: Where it lies; a root of None means beside a run's training data, else data/NAME.
        protocol: Its protocol, None for the default of the run's task.
        features: A feature store instead of videos.
    """

    dataset: str
    # None is not "data": an evaluation out of domain looks beside the training's data first.
    root: Path | None = None
    annotations: Path | None = None
    videos: Path | None = None
    protocol: str | None = None
    features: Path | None = None

    @classmethod
    def of(cls, data: Data) -> SourceSpec:
        """What a recipe trains on."""
        annotations, videos, features = (
            None if place is None else Path(place) for place in (data.annotations, data.videos, data.features)
        )
        return cls(data.dataset, Path(data.root), annotations, videos, data.protocol, features)


class Batches(Protocol):
    """Batches of training pairs: the same ones in the same order for the same recipe, whoever asks.

    Attributes:
        ids: The ids of the clips that `Batch.clips` counts.
        left_out: Clips met so far that cannot be used, by id.
    """

    # Known before the first clip is read: the schedule, and the place at which a run goes on, hang on it.
    steps_per_epoch: int
    ids: Sequence[str]
    left_out: dict[str, LeftOut]

    # None and no shorter epoch: which clips decode on a machine must not change what a step's number means.
    def epoch(self, epoch: int, skip: int) -> Iterator[Batch | None]:
        """This process's part of the batches of `epoch` after the first `skip`; None: no usable clip in it."""
        ...

    def blank(self) -> Batch:
        """One row that looks like any other: a process without a usable clip computes on it to keep in step."""
        ...


class Source(Protocol):
    """Splits of clips and captions that a model can be trained and tested on.

    To add one (a web data set, say), write a class in a file of its own that inherits from this and has the methods
    without a body here, and let `source.source.open_source` choose it. It promises:

    - Names and counts are those of what was read, never of what was asked for: labels are made of them.
    - The same data gives the same splits in the same order, on every machine and in every process: the order of
      batches is a function of seed and epoch over that order, and a run is resumed by it.
    - A clip that cannot be used is in `left_out` or in `EncodedSplit.left_out` with its reason, and its captions go
      with it. It is never turned into zeros.
    - `encode` and `batches` give the features that `model` has of a clip now; features of other towers are refused.

    Attributes:
        name: The dataset's name.
        protocol: Its protocol, "" where there is only one.
        splits: The names of its splits.
        notes: Facts that a report of the data must show.
        absent: Why a split that the protocol has is not there, by its name.
        unread: Folders and files of it that could not be read.
        cache: The folder of kept frames and what came of it, once it is in use.
    """

    name: str
    protocol: str
    # A split that the protocol has and the folder lacks is not among them; `absent` has the reason, so that training
    # and evaluation give the same one.
    splits: tuple[str, ...]
    notes: tuple[str, ...] = ()
    absent: Mapping[str, str] = {}
    unread: tuple[LeftOut, ...] = ()
    cache: CacheFolder | None = None

    def split(self, name: str) -> Split | StoredSplit:
        """One split. Raises `DatasetError` or `StoreError` where it is not there."""
        ...

    def record(self, split: str) -> SplitRecord:
        """What a split is, in digests: every file of it is looked into, a few seconds of work."""
        ...

    # Asked before the first step: features of other towers would train, and give numbers, without a complaint.
    def require_fit(self, model: AlignedModel, n_frames: int) -> None:
        """Raise `CalmError` unless `model` can be trained on this, with `n_frames` frames per clip."""
        ...

    def encode(
        self, model: AlignedModel, split: str, progress: Progress | None = None, *, keep: bool = False
    ) -> EncodedSplit:
        """The features of a split with the model's weights of now, on the CPU.

        `keep` says that the split will be encoded again, as validation is after every epoch: what can be kept of it
        may be kept, where the recipe's `data.cache` says so.

        Raises:
            DatasetError: No clip of the split is usable.
            StoreError: The features are of other towers.
        """
        ...

    def batches(self, model: AlignedModel, split: str, sampling: Sampling, progress: Progress | None = None) -> Batches:
        """Batches of the (clip, caption) pairs of a split, for the input size, tokens and captioner of `model`.

        What the recipe keeps in memory is read now, and `progress` told of it.
        """
        ...

    def keeping(self, model: AlignedModel) -> str:
        """How much a training keeps on disk, in words, before it begins; "" where it keeps nothing.

        Raises:
            BadInput: There is no room for it.
        """
        return ""

    def counts(self) -> dict[str, dict[str, int]]:
        """Clips, captions and clips left out, by split."""
        # In one place for all sources: what a table says of clips and captions is counted in one way.
        splits = {name: self.split(name) for name in self.splits}
        return {
            name: {"clips": len(split.ids), "captions": len(split.captions), "left_out": len(split.left_out)}
            for name, split in splits.items()
        }

    def left_out(self) -> dict[str, list[LeftOut]]:
        """Clips known to be missing, by split."""
        return {name: list(self.split(name).left_out) for name in self.splits}
