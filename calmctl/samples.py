"""What every dataset becomes: clips, captions, and who describes whom."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

Span = tuple[float, float]
"""Start and end in seconds from a video's first frame."""


@dataclass(frozen=True, slots=True)
class Clip:
    """One video clip: a file, or a window of one.

    Attributes:
        id: Unique within its dataset; the field's own name for the clip.
        path: The file.
        start_s: Start of the window in seconds from the first frame.
        end_s: End of the window in seconds (clipped to the duration), or None for the file's end.
        begins_s: When the first frame is shown by the file's own clock, as far as that is known: people and players
            want to hear `begins_s + start_s`.
    """

    id: str
    path: Path
    # Windows count from the first frame, as sampling does. The file's own clock may begin earlier, with its sound:
    # subtitles that were cut without `begins_s` came early by that much.
    start_s: float = 0.0
    end_s: float | None = None
    begins_s: float | None = None


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A clip that is not used, and the reason a report lists.

    Attributes:
        id: The clip's.
        reason: Why.
        limit_s: As in `VideoError`: None for a fault of the file, else how long its decoder had.
    """

    id: str
    reason: str
    # Kept apart from the words of the reason, because whether a clip deserves another try hangs on it.
    limit_s: float | None = None


@dataclass(frozen=True, slots=True)
class Split:
    """Clips of one split with all their captions.

    `captions[i]` describes `clips[owners[i]]`; the number of captions and of clips are unrelated.

    Attributes:
        name: "train", "val" or "test".
        clips: The clips whose file exists, in the protocol's order.
        captions: The sentences, in the protocol's order.
        owners: For each caption the index of its clip.
        moments: For each caption the spans of its clip that it describes, none where nobody timed it; nothing at all
            where no caption of the split is timed.
        left_out: Clips of the protocol that are missing, with reasons.
        differs: In what the annotation files' split is not the published one; nothing where there is none.
    """

    name: str
    clips: tuple[Clip, ...]
    captions: tuple[str, ...]
    owners: tuple[int, ...]
    left_out: tuple[LeftOut, ...] = ()
    # Differences that no missing clip explains: another list, or captions in another order, under a published name.
    differs: tuple[str, ...] = ()
    # Several spans: what is shown twice, or what several annotators marked.
    moments: tuple[tuple[Span, ...], ...] = ()

    @property
    def ids(self) -> tuple[str, ...]:
        """The clips' ids."""
        return tuple(clip.id for clip in self.clips)


@dataclass(frozen=True, slots=True)
class Dataset:
    """A dataset under one protocol.

    Attributes:
        name: As `calmctl.data.registry.DATASETS` has it.
        protocol: The published protocol's name ("9k", "7k", "full", ...), or "" where there is only one.
        splits: Any of "train", "val", "test".
        notes: Facts a report must show (a carved validation list and its seed, captions joined, ...).
        unread: Folders and files of it that could not be read, or were not, with reasons: what is in them is lost.
        folder: Where its clips lie, which tells two folders of one name apart; None where nobody said.
    """

    name: str
    protocol: str
    splits: Mapping[str, Split]
    # Sentences and no flags: they reach reports, run.json and pages as they are.
    notes: tuple[str, ...] = ()
    unread: tuple[LeftOut, ...] = ()
    folder: Path | None = None


@dataclass(frozen=True, slots=True)
class StoredSplit:
    """A split of a feature store, without the clips that have no features.

    `captions[i]` describes `ids[owners[i]]`.

    Attributes:
        name: "train", "val" or "test".
        ids: The clips that have features.
        captions: Their sentences.
        owners: For each caption the index of its clip in `ids`.
        left_out: Clips of the protocol without features, with reasons.
        differs: As in `Split`; None for a store that was made before this was recorded.
    """

    name: str
    ids: tuple[str, ...]
    captions: tuple[str, ...]
    owners: tuple[int, ...]
    left_out: tuple[LeftOut, ...]
    # None and () say different things: nobody looked, and nothing differs.
    differs: tuple[str, ...] | None = None
