"""From what annotation files tell to splits of clips that are there."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from calmctl.data.layout import listing
from calmctl.data.samples import Clip, LeftOut, Split
from calmctl.errors import DatasetError


@dataclass(frozen=True, slots=True)
class Annotated:
    """One split as its annotation files tell it, whatever clips are at hand.

    Attributes:
        clip_ids: In the protocol's order.
        captions: (clip id, sentence), in the protocol's order.
        start_s: Start of the window that the protocol shows of every clip, in seconds.
        end_s: End of that window; None for the end of the clip.
        notes: What a report must say about the reading.
    """

    clip_ids: Sequence[str]
    captions: Sequence[tuple[str, str]]
    start_s: float = 0.0
    end_s: float | None = None
    notes: tuple[str, ...] = ()


def split_digest(annotated: Annotated) -> str:
    """SHA-256 of a split's clip ids and of its (clip id, caption) pairs, both in sorted order.

    The same for every file that tells the same split: two releases of MSR-VTT list its sentences in another order.
    """
    content = [sorted(set(annotated.clip_ids)), sorted(annotated.captions)]
    return hashlib.sha256(json.dumps(content, separators=(",", ":")).encode("ascii")).hexdigest()


class Splits(dict[str, Split]):
    """Splits by name. Asking for one whose annotation files are missing raises what is missing, and where."""

    def __init__(self, splits: Mapping[str, Split], absent: Mapping[str, str]) -> None:
        super().__init__(splits)
        self.absent = dict(absent)

    def __missing__(self, name: str) -> Split:
        raise DatasetError(self.absent.get(name, f"there is no {name} split, only {listing(list(self))}"))


def build_split(
    title: str,
    name: str,
    annotated: Annotated,
    find: Callable[[str], Path | str],
    *,
    need_captions: bool = True,
) -> Split:
    """Join the annotations of a split with its clips.

    Args:
        title: Of the dataset, for messages.
        name: Of the split.
        annotated: Its annotations; captions of other clips are ignored.
        find: Gives a clip's file, or the reason why there is none.
        need_captions: Leave out clips without a caption, which can neither be trained on nor be an answer.

    Raises:
        DatasetError: When text is not valid Unicode.
    """
    captions = [(sentence, clip_id) for clip_id, sentence in annotated.captions if sentence.strip()]
    captioned = {clip_id for _, clip_id in captions}
    clips: dict[str, Clip] = {}
    left_out: list[LeftOut] = []
    check_text(annotated.clip_ids, f"{title}: a clip id of the {name} split")
    for clip_id in dict.fromkeys(annotated.clip_ids):
        path = find(clip_id)
        if need_captions and clip_id not in captioned:
            left_out.append(LeftOut(clip_id, "no caption in the annotation files"))
        elif isinstance(path, str):
            left_out.append(LeftOut(clip_id, path))
        else:
            clips[clip_id] = Clip(clip_id, path, annotated.start_s, annotated.end_s)
    check_text([sentence for sentence, _ in captions], f"{title}: a caption of the {name} split")
    index = {clip_id: position for position, clip_id in enumerate(clips)}
    captions = [(sentence, clip_id) for sentence, clip_id in captions if clip_id in index]
    return Split(
        name=name,
        clips=tuple(clips.values()),
        captions=tuple(sentence for sentence, _ in captions),
        owners=tuple(index[clip_id] for _, clip_id in captions),
        left_out=tuple(left_out),
    )


def check_text(texts: Sequence[str], place: str) -> None:
    """Refuse what JSON can hold and UTF-8 cannot."""
    try:
        "".join(texts).encode("utf-8")
    except UnicodeEncodeError as error:
        raise DatasetError(f"{place} holds half a character (the surrogate {error.object[error.start]!r})") from None


def carve_val(
    splits: Mapping[str, Split], title: str, wanted: int | None, default: int, seed: int
) -> tuple[dict[str, Split], str]:
    """Move clips from train to a new validation split, with their captions.

    The clips whose SHA-256 of seed and id is smallest are taken: the list depends on nothing else, so that a
    few missing clips change it by as few. Of a train split too small for the default a tenth is taken.

    Args:
        splits: With "train", without "val".
        title: Of the dataset, for messages.
        wanted: How many clips the user asked for; 0 for no validation split; None for the default.
        default: How many clips the protocol takes.
        seed: Changes the list.

    Returns:
        The splits with "val" (absent where no clip is taken), and a note for the report.
    """
    train = splits["train"]
    n_val = min(default, -(-len(train.clips) // 10)) if wanted is None else wanted
    if wanted is None and len(train.clips) < 2:
        n_val = 0
    if n_val < 0 or n_val >= max(len(train.clips), 1):
        raise DatasetError(
            f"{title}: cannot carve {n_val} validation clips from {len(train.clips)} train clips; "
            "bring the clips that are missing, or set data.val_clips to fewer"
        )
    if not n_val:
        return dict(splits), "val: none; nothing can be selected on it"
    ranked = sorted(train.clips, key=lambda clip: hashlib.sha256(f"{seed} {clip.id}".encode()).digest())
    taken = {clip.id for clip in ranked[:n_val]}
    val = _part(train, "val", taken.__contains__)
    rest = _part(train, "train", lambda clip_id: clip_id not in taken)
    note = f"val: {n_val:,} of {len(train.clips):,} train clips, carved with seed {seed}; they are not trained on"
    return {"train": rest, "val": val} | {n: s for n, s in splits.items() if n != "train"}, note


def _part(split: Split, name: str, keep: Callable[[str], bool]) -> Split:
    kept = [position for position, clip in enumerate(split.clips) if keep(clip.id)]
    index = {position: new for new, position in enumerate(kept)}
    pairs = [(c, index[o]) for c, o in zip(split.captions, split.owners, strict=True) if o in index]
    return Split(
        name=name,
        clips=tuple(split.clips[position] for position in kept),
        captions=tuple(caption for caption, _ in pairs),
        owners=tuple(owner for _, owner in pairs),
        left_out=split.left_out if name == split.name else (),
        differs=split.differs if name == split.name else (),
    )
