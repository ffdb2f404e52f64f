"""What a split is, in digests that can be compared: its clips, their sentences, their files.

A name tells what somebody meant; a place and a date tell where and when. What a number was made of is told by none of
them. A `SplitRecord` is small enough to travel with weights and results (about 24 bytes per clip), holds no path and no
sentence, and answers two questions: is this the split of then, and does it share clips with that one?
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from calmctl.files import content_digest
from calmctl.samples import Clip, Split, StoredSplit
from calmctl.words import counted

ORDER = "the order of its clips and captions differs"
FEATURES = "features were extracted anew"
_SHORT = 6
"""Bytes of a digest of one clip: 100,000 training clips meet one of 1,000 test clips by chance in 1 of 3 million."""
# No content has six zero bytes for a digest but in one of 2^48 cases, so zeros can stand for "not known".
_UNKNOWN = bytes(_SHORT)
_READERS = 8


def contents_of(clips: Iterable[Clip]) -> dict[str, str]:
    """`content_digest` of the files of clips, with the window of each, by clip id.

    Files that cannot be read, or have nothing in them, have none.
    """
    clips = list(clips)
    # Windows of one video share its file, which is read once.
    paths = list(dict.fromkeys(clip.path for clip in clips))
    with ThreadPoolExecutor(_READERS) as readers:  # on a network's disk the time goes in waiting
        digests = dict(zip(paths, readers.map(_content, paths), strict=True))
    return {
        clip.id: windowed(content, clip.start_s, clip.end_s)
        for clip in clips
        if (content := digests[clip.path]) is not None
    }


def _content(path: Path) -> str | None:
    try:
        return content_digest(path) if path.stat().st_size else None
    except OSError:
        return None


def windowed(content: str, start_s: float, end_s: float | None) -> str:
    """The digest of a clip that is a window of a file; the file's own where it is all of it."""
    return content if (start_s, end_s) == (0.0, None) else f"{content} {float(start_s)} {end_s}"


@dataclass(frozen=True, slots=True)
class SplitRecord:
    """One split as it was read.

    Attributes:
        dataset, protocol, name: What it is called.
        clips, captions: How many are used.
        left_out: How many clips of the protocol are missing.
        differs: In what it is not the published split; None where that was not recorded.
        digest: SHA-256 of the clips' ids, each with its captions in order; the order of the clips does not matter.
        order: SHA-256 of ids and captions in the order that batches are drawn from.
        ids, sentences, contents: Six bytes per clip in base64, in the order of sorted ids: of dataset and id, of its
            captions, of its file. Zeros where a file's content is not known; "" where all are not.
        dtype: Number format of the features, "" where videos were decoded.
        features: Digest of the shards that the features came from, "" where videos were decoded.
    """

    dataset: str
    protocol: str
    name: str
    clips: int
    captions: int
    left_out: int
    differs: tuple[str, ...] | None
    digest: str
    order: str
    ids: str
    sentences: str = ""
    contents: str = ""
    dtype: str = ""
    features: str = ""

    def __post_init__(self) -> None:
        for packed in (self.ids, self.sentences, self.contents):
            # Records come with weights and stores that others made: what cannot be compared clip by clip ends here.
            if len(base64.b64decode(packed, validate=True)) not in (0, _SHORT * self.clips):
                raise ValueError(f"digests of {self.name} are not those of {self.clips} clips")

    @property
    def title(self) -> str:
        """Dataset and protocol, "msrvtt 9k"."""
        return f"{self.dataset} {self.protocol}".strip()

    @property
    def whole(self) -> str:
        """SHA-256 of everything here: another one means that a number has to be measured again."""
        return _sha(asdict(self))

    @property
    def knows_files(self) -> bool:
        """Whether the content of every clip's file is known."""
        return self.clips == 0 or (bool(self.contents) and _UNKNOWN not in _unpacked(self.contents))

    def lean(self) -> SplitRecord:
        """What it takes to find its clips in another split: without the sentences."""
        values = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return SplitRecord(**{**values, "sentences": ""})

    def summary(self) -> dict[str, Any]:
        """What a result says of the split that it is of."""
        names = ("dataset", "protocol", "name", "clips", "captions", "left_out", "differs", "digest", "dtype")
        return {name: getattr(self, name) for name in names} | {"features": self.features or None}


def record_split(
    dataset: str,
    protocol: str,
    split: Split | StoredSplit,
    contents: Mapping[str, str],
    *,
    dtype: str = "",
    features: str = "",
) -> SplitRecord:
    """The record of a split.

    Args:
        dataset: Of the dataset that was read, never of the one that was asked for.
        protocol: Its protocol.
        split: The split.
        contents: By clip id, `contents_of` the clips or what a feature store noted.
        dtype: Of features.
        features: Digest of features.
    """
    ids = split.ids
    captions_of: dict[str, list[str]] = {clip: [] for clip in ids}
    for caption, owner in zip(split.captions, split.owners, strict=True):
        captions_of[ids[owner]].append(caption)
    known = sorted(captions_of)
    return SplitRecord(
        dataset=dataset,
        protocol=protocol,
        name=split.name,
        clips=len(known),
        captions=len(split.captions),
        left_out=len(split.left_out),
        differs=split.differs,
        digest=_sha([[clip, captions_of[clip]] for clip in known]),
        order=_sha([ids, split.captions, split.owners]),
        ids=_packed(_sha([dataset, clip]) for clip in known),
        sentences=_packed(_sha(captions_of[clip]) for clip in known),
        contents=_packed(_sha(contents[clip]) if clip in contents else None for clip in known),
        dtype=dtype,
        features=features,
    )


def shared_clips(test: SplitRecord, train: SplitRecord) -> int:
    """How many clips of `test` are in `train` as well: by dataset and id, or because their files are the same.

    Ids of two folders say nothing of each other, nor of one folder whose splits were changed: there files count alone.
    """
    # Two folders may both hold a clip01.mp4.
    ids = set() if test.dataset == "folder" else set(_unpacked(train.ids))
    files = set(_unpacked(train.contents)) - {_UNKNOWN}
    contents = _unpacked(test.contents) or [_UNKNOWN] * test.clips
    pairs = zip(_unpacked(test.ids), contents, strict=True)
    return sum(key in ids or content in files for key, content in pairs)


def changes(before: SplitRecord, now: SplitRecord) -> list[str]:
    """What has changed in a split, each in a few words; nothing where it is the same."""
    differences = []
    if (before.title, before.name) != (now.title, now.name):
        differences.append(f"{before.title} became {now.title}")
    then, today = _by_clip(before), _by_clip(now)
    gone, new = len(then.keys() - today.keys()), len(today.keys() - then.keys())
    if gone:
        differences.append(f"{counted(gone, 'clip')} gone")
    if new:
        differences.append(f"{counted(new, 'clip')} new")
    both = then.keys() & today.keys()
    for place, what in ((0, "captions"), (1, "files")):
        pairs = [(then[clip][place], today[clip][place]) for clip in both]
        # A clip whose file nobody noted then cannot be said to have another one now.
        differ = sum(a != b and _UNKNOWN not in (a, b) for a, b in pairs)
        if differ:
            differences.append(f"{what} of {counted(differ, 'clip')} differ")
    # The same clips as float16, or encoded by other weights, give other numbers.
    if (before.dtype, before.features) != (now.dtype, now.features):
        differences.append(FEATURES)
    # Said alone: every change above moves the order too.
    if not differences and before.order != now.order:
        differences.append(ORDER)
    return differences


def _by_clip(record: SplitRecord) -> dict[bytes, tuple[bytes, bytes]]:
    ids = _unpacked(record.ids)
    blank = [_UNKNOWN] * len(ids)
    columns = (_unpacked(record.sentences) or blank, _unpacked(record.contents) or blank)
    return dict(zip(ids, zip(*columns, strict=True), strict=True))


def _sha(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode("ascii")).hexdigest()


def _packed(digests: Iterable[str | None]) -> str:
    content = b"".join(_UNKNOWN if digest is None else bytes.fromhex(digest)[:_SHORT] for digest in digests)
    return base64.b64encode(content).decode("ascii")


def _unpacked(packed: str) -> list[bytes]:
    content = base64.b64decode(packed)
    return [content[start : start + _SHORT] for start in range(0, len(content), _SHORT)]
