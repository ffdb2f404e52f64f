"""Adding to a feature store: plan, add shards, take over the shards of another; one writer at a time."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from calmctl.errors import StoreError
from calmctl.files import (
    content_digest,
    make_folder,
    read_regular,
    sha256_bytes,
    sha256_file,
    stamp,
    whole_digest,
    write_bytes,
    write_text,
)
from calmctl.locks import locked, remove_unfinished
from calmctl.samples import Clip, Dataset, LeftOut
from calmctl.store import format as fmt
from calmctl.store.format import Catalogue, Header, Index, Kind, LeftOutClip, ShardEntry, shard_file
from calmctl.store.store import ClipSource, FeatureStore, read_sources
from calmctl.tensors import save_tensors

CLIPS_PER_SHARD = 64
"""Clips per shard: what a killed extraction loses at most, and what one changed file costs (our choice)."""
# 8 MB at D = 512, where 64 clips of 12 frames have 1.6 MB: sentences are quick to encode again.
SENTENCES_PER_SHARD = 4096

_ORIGIN = ".origin"  # no part of what makes stores equal


class StoreWriter(FeatureStore):
    """A feature store that is being added to. Every shard is on disk before the index speaks of it."""

    @classmethod
    @contextmanager
    def create(
        cls, path: Path, header: Header, on_wait: Callable[[], None] | None = None
    ) -> Generator[StoreWriter, None, None]:
        """Open the store at `path` for adding, or start an empty one, and keep other writers out.

        Args:
            path: The store's folder.
            header: What its features are.
            on_wait: Called before waiting for another process that adds to it; None makes that an error.

        Raises:
            StoreError: It holds features of another backbone, dataset, sampling or number format; another
                process is adding to it; the folder holds something else.
            RunFailed: The folder cannot be written.
        """
        if not (path / fmt.INDEX).exists():
            _require_vacant(path)  # before anything is put into what may be somebody's folder
        make_folder(path)
        busy = StoreError(
            f"another process is extracting into {path}; wait for it, or give each its own --out and merge them"
        )
        with locked(path, busy, on_wait):
            remove_unfinished(path)
            # Only now: another process may have begun the store between the look above and the lock.
            if not (path / fmt.INDEX).exists():
                _require_vacant(path)
                fmt.write_document(path / fmt.CATALOGUE, Catalogue())
                fmt.write_document(path / fmt.INDEX, Index(header=header))
            index = fmt.read_document(path / fmt.INDEX, Index)
            store = cls(path, index, fmt.read_document(path / fmt.CATALOGUE, Catalogue))
            store.require(header)
            yield store

    def plan(self, dataset: Dataset) -> None:
        """Take up a dataset: its splits, and new groups for the clips and sentences not known yet.

        Groups never change once they are planned, so what is extracted stays valid when a dataset grows, and
        machines that extract some of the groups each make the shards that one machine would make.

        Raises:
            StoreError: The store holds the features of another folder, which have the same names.
        """
        if dataset.folder is not None:
            self._require_folder(dataset.folder, dataset)
        splits = dataset.splits.values()
        clips = _extended(self._catalogue.clips, (clip.id for split in splits for clip in split.clips), CLIPS_PER_SHARD)
        sentences = _extended(
            self._catalogue.sentences,
            (caption for split in splits for caption in split.captions),
            SENTENCES_PER_SHARD,
        )
        number = {text: place for place, text in enumerate(text for group in sentences for text in group)}
        self._record(
            Catalogue(
                clips=clips,
                sentences=sentences,
                splits={
                    name: fmt.CatalogueSplit(
                        clips=[clip.id for clip in split.clips],
                        captions=[number[caption] for caption in split.captions],
                        owners=list(split.owners),
                        left_out=_entries(split.left_out),
                        differs=list(split.differs),
                    )
                    for name, split in dataset.splits.items()
                },
            ),
            dataset.protocol,
        )

    def _require_folder(self, folder: Path, dataset: Dataset) -> None:
        """Refuse a dataset from another folder than that of the features; a folder that was moved is the same one."""
        ours, here = _read_origin(self.path), _origin(folder)
        clips = {clip.id: clip for split in dataset.splits.values() for clip in split.clips}
        if ours != here:
            complete = [group for group in range(len(self.groups("frames"))) if self.shard("frames", group)[1] is None]
            held = [key for group in complete for key in self.groups("frames")[group]]
            changed = {key for group in complete for key in self.changed_clips(group, clips)}
            kept = sum(key in clips and key not in changed for key in held)
            # A single clip that is not here would lose its features: two folders may share most of their clips.
            if kept < len(held):
                raise StoreError(
                    f"{self.path} holds features of another folder than {folder}: of its {len(held):,} clips "
                    f"{kept:,} are here unchanged; give this folder a store of its own with --out, or delete that one"
                )
        record_origin(self.path, folder)

    def changed_clips(self, group: int, clips: Mapping[str, Clip], *, by_date: bool = False) -> list[str]:
        """The clips of a complete shard whose file is not the one it was extracted from, of those in `clips`.

        With `by_date` also those that have another date, whose content would have to be read.
        """
        known = [key for key in self.groups("frames")[group] if key in clips]
        sources, since_ns = read_sources(self.path / shard_file("frames", group))
        same = has_stamp if by_date else is_unchanged
        return [key for key in known if not same(clips[key], sources.get(key), since_ns)]

    def add_frames(
        self, group: int, features: Tensor, sources: Mapping[str, ClipSource | None], left_out: Sequence[LeftOut]
    ) -> None:
        """Write the shard of a group of clips, then the index.

        Args:
            group: Number of the group.
            features: [n, F, D] of the group's clips in order, without those left out.
            sources: `source_of` each clip of the group, taken before it was decoded.
            left_out: The group's clips that have no features, with reasons.
        """
        self._add("frames", group, features, {"sources": dict(sources)}, left_out)

    def add_texts(self, group: int, features: Tensor) -> None:
        """Write the shard of a group of sentences, features [n, D] in order, then the index."""
        self._add("texts", group, features, {}, ())

    def _add(
        self, kind: Kind, group: int, features: Tensor, metadata: dict[str, Any], left_out: Sequence[LeftOut]
    ) -> None:
        missing = {clip.id for clip in left_out}
        keys = [key for key in self.groups(kind)[group] if key not in missing]
        if features.shape != self.shape(kind, len(keys)):
            raise ValueError(
                f"{kind} of group {group} must be {self.shape(kind, len(keys))}, got {tuple(features.shape)}"
            )
        features = features.to(getattr(torch, self.header.dtype))
        # Told here, and not by the evaluation that finds a score that is no number.
        finite = features.flatten(1).isfinite().all(dim=1)
        if not finite.all():
            raise StoreError(
                f"the backbone gave a feature that is no {self.header.dtype} number for "
                f"{keys[int(finite.int().argmin())]!r}: its weights are damaged, or too large for float16"
            )
        path = self.path / shard_file(kind, group)
        save_tensors(path, {kind: features}, {"keys": keys, **metadata})
        self._put(kind, group, ShardEntry(sha256=sha256_file(path), left_out=_entries(left_out)))

    def take(self, other: FeatureStore) -> int:
        """Take over every shard of `other` that this store lacks; returns how many.

        Raises:
            StoreError: The two were not planned from the same clips and sentences, hold different features
                for the same clips, or a shard of `other` is damaged.
        """
        other.require(self.header)
        # Also where a merge was killed that had taken up the list, and no shard yet.
        begins = not self._index.shards and (not self._catalogue.clips or self._catalogue == other._catalogue)
        own_origin, origin = _read_origin(self.path), _read_origin(other.path)
        if begins and own_origin is None and origin is not None:
            write_text(self.path / _ORIGIN, origin + "\n")
        elif own_origin != origin:
            (self.path / _ORIGIN).unlink(missing_ok=True)  # two machines, two paths: the clips tell
        if begins:
            self._record(other._catalogue, other.protocol)
        if (self._catalogue, self.protocol) != (other._catalogue, other.protocol):
            raise StoreError(
                f"{other.path} and {self.path} were not made from the same list of clips and captions: only "
                "the parts of one extraction (--shard i/n of the same dataset) can be merged"
            )
        taken = 0
        for kind in self._rows:
            for group in range(len(self.groups(kind))):
                theirs, ours = other.entry(kind, group), self.entry(kind, group)
                # A shard of ours that is damaged is taken again.
                if theirs is None or (theirs == ours and self.shard(kind, group)[1] is None):
                    continue
                content, fault = other.shard(kind, group)
                name = shard_file(kind, group)
                if fault is not None:
                    raise StoreError(f"{other.path / name} {fault}; extract that part again")
                if ours is not None and theirs != ours:
                    raise StoreError(
                        f"{other.path / name} and {self.path / name} hold different features of the same "
                        f"{len(self.groups(kind)[group])} keys; extract that part again"
                    )
                # Bytes and no features, so that a merge is the store that one machine would have made.
                write_bytes(self.path / name, content)
                self._put(kind, group, theirs)
                taken += 1
        return taken

    def _put(self, kind: Kind, group: int, entry: ShardEntry) -> None:
        shards = {**self._index.shards, shard_file(kind, group): entry}
        # Sorted, or the order in which shards arrived would show.
        self._index = self._index.model_copy(update={"shards": dict(sorted(shards.items()))})
        fmt.write_document(self.path / fmt.INDEX, self._index)
        self._locate(kind, group)

    def _record(self, catalogue: Catalogue, protocol: str) -> None:
        # Groups only ever grow, so an index that is still the old one fits the new catalogue too.
        if catalogue != self._catalogue:
            self._catalogue = catalogue
            fmt.write_document(self.path / fmt.CATALOGUE, catalogue)
        if protocol != self.protocol:
            self._index = self._index.model_copy(update={"protocol": protocol})
            fmt.write_document(self.path / fmt.INDEX, self._index)


def source_of(clip: Clip, *, whole: bool = False) -> ClipSource | None:
    """What tells a clip's file from a changed one: size, modification time, the window used of it, its content.

    Args:
        clip: The clip.
        whole: Read the file to its end for a second digest, by which its features are known under any name.
    """
    try:
        size, changed_ns, *_ = stamp(clip.path)
        source: ClipSource = [size, changed_ns, clip.start_s, clip.end_s, content_digest(clip.path)]
        return [*source, whole_digest(clip.path)] if whole else source
    except OSError:
        return None


def is_unchanged(clip: Clip, source: ClipSource | None, since_ns: int) -> bool:
    """Whether a clip's file is the one that `source` tells of: its content decides, whatever its date."""
    try:
        if has_stamp(clip, source, since_ns):
            return True
        if source is None or len(source) == 4 or not _fits(source, clip, stamp(clip.path)[0]):
            return False
        # All of it where that is known: pieces tell two videos apart, but not what somebody edited between them.
        return source[5] == whole_digest(clip.path) if len(source) > 5 else source[4] == content_digest(clip.path)
    except OSError:
        return False


def has_stamp(clip: Clip, source: ClipSource | None, since_ns: int) -> bool:
    """Whether that can be told without reading the file.

    Copies have another time of change, and what was written over may have the same one, by accident or by intent.
    Nobody can set back the time of change of a file's entry: where the first is the same and the second is before
    `since_ns`, when the features were written, the content need not be read.
    """
    try:
        size, changed_ns, entry_ns, _ = stamp(clip.path)  # once: a search asks it of 10^5 files
        if source is None or not _fits(source, clip, size):
            return False
        # Stores made before there were digests say four things of a file, and go by its date.
        return source[1] == changed_ns and (len(source) == 4 or entry_ns < since_ns)
    except OSError:
        return False


def _fits(source: ClipSource, clip: Clip, size: int) -> bool:
    """Whether a file has the size, and a clip the window, that features were made of."""
    return [source[0], *source[2:4]] == [size, clip.start_s, clip.end_s]


def record_origin(store: Path, folder: Path) -> None:
    """Note whose features a store holds: a digest, because a store may be given away and tells no paths."""
    if _read_origin(store) != _origin(folder):
        write_text(store / _ORIGIN, _origin(folder) + "\n")


def _read_origin(store: Path) -> str | None:
    try:
        return read_regular(store / _ORIGIN, 1 << 16).decode("utf-8", "replace").strip()
    except OSError:
        return None


def _origin(folder: Path) -> str:
    return sha256_bytes(os.fsencode(os.path.realpath(folder)))


def _entries(left_out: Iterable[LeftOut]) -> list[LeftOutClip]:
    return [LeftOutClip(id=clip.id, reason=clip.reason, limit_s=clip.limit_s) for clip in left_out]


def _extended(groups: Sequence[list[str]], keys: Iterable[str], size: int) -> list[list[str]]:
    """`groups` and behind them new groups of `size` for the keys that are in none."""
    known = {key for group in groups for key in group}
    new = [key for key in dict.fromkeys(keys) if key not in known]
    return [*groups, *(new[start : start + size] for start in range(0, len(new), size))]


def _require_vacant(path: Path) -> None:
    """Refuse a folder that holds something else; a store whose making was cut short does not count."""
    try:
        names = [file.name for file in path.iterdir()]
    except FileNotFoundError:
        return
    except OSError as error:
        raise StoreError(f"{path} cannot be a feature store: {error.strerror or error}") from error
    foreign = [name for name in names if name != fmt.CATALOGUE and not name.startswith(".")]
    if foreign:
        raise StoreError(f"{path} holds other things ({min(foreign)}, ...) and no feature store; choose another folder")


# Merging the stores of one extraction that was divided over machines or a job array.


@dataclass(frozen=True, slots=True)
class MergeReport:
    """What a merge did.

    Attributes:
        store: The merged store's folder.
        shards_taken: Shards copied into it by this merge.
        clips: Clips that have features in it now.
        sentences: Sentences that have features in it now.
        incomplete: Shards that none of the parts had: those parts are still to be extracted.
    """

    store: Path
    shards_taken: int
    clips: int
    sentences: int
    incomplete: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """The report for programs."""
        return {**asdict(self), "store": str(self.store)}


def merge_stores(parts: Sequence[Path], out: Path) -> MergeReport:
    """Merge the stores that `extract` with `shard=(i, n)` made into one at `out`.

    The result is, byte for byte, the store a single extraction would have made. Merging again, with more
    parts, continues.

    Raises:
        StoreError: A part is no store, is damaged, or comes from another dataset or backbone.
        RunFailed: `out` cannot be written.
    """
    stores = [FeatureStore.open(part) for part in parts]
    if not stores:
        raise StoreError("nothing to merge: name the stores that `calmctl extract --shard i/n` made")
    for store in stores:  # before anything is written
        store.require(stores[0].header)
    with StoreWriter.create(out, stores[0].header) as merged:
        taken = sum(merged.take(store) for store in stores)
        return MergeReport(out, taken, len(merged.ids), len(merged.sentences), merged.verify())
