"""Extraction: every clip decoded and encoded once, every sentence encoded once, into a feature store."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch

from calmctl.errors import BadInput, VideoError
from calmctl.files import append_text
from calmctl.model.backbone import Backbone, fingerprint
from calmctl.runtime import environment, interruptible
from calmctl.samples import Clip, Dataset, LeftOut
from calmctl.store.cluster import ShardTask, cluster_shards
from calmctl.store.format import Header, Kind, shard_file
from calmctl.store.shards import BATCH_FRAMES, Decode, Encoder, FrameShard, KnownFeatures, decoder, frame_shards
from calmctl.store.writer import StoreWriter
from calmctl.video.pool import TIMEOUT_S
from calmctl.words import Progress

# Which shards an extraction has to make, and why.


# Stores of earlier versions remember faults of the machine, and of a time limit, as faults of the clip.
_EARLIER_FAULTS = re.compile(
    r"decoding took longer|not enough memory"
    r"|the decoder (ended with exit code 1$|crashed \(SIG(TERM|INT|HUP|KILL|USR[12])\))"
)


@dataclass(frozen=True, slots=True)
class Work:
    """The groups of one kind that this run answers for, and those of them that it has to make.

    Attributes:
        mine: Every `n`-th group, for part i of n.
        todo: The groups to make.
        redone: Shards that were there and have to be made again, with the reason.
    """

    mine: range
    todo: tuple[int, ...]
    redone: tuple[str, ...]

    @property
    def kept(self) -> tuple[int, ...]:
        """The groups whose shard stays as it is."""
        return tuple(group for group in self.mine if group not in set(self.todo))


def plan_work(
    store: StoreWriter,
    kind: Kind,
    clips: Mapping[str, Clip],
    *,
    shard: tuple[int, int],
    retry: bool,
    timeout_s: float = TIMEOUT_S,
    reuse: bool = False,
) -> Work:
    """Compare what is planned with what is on disk. Raises `BadInput` for a shard that makes no sense.

    With `reuse` a group is made, at little cost, also where a file is the same and has another date: it would else be
    read each time.
    """
    part, parts = shard
    if not 1 <= part <= parts:
        raise BadInput(f"shard {part}/{parts}: the parts are counted from 1 to n, as in 1/4, 2/4, 3/4, 4/4")
    # Any division will do: a group depends on the data set alone, so whoever makes it makes the same bytes.
    mine = range(part - 1, len(store.groups(kind)), parts)
    reasons = {group: why for group in mine if (why := _reason(store, kind, group, clips, retry, timeout_s, reuse))}
    again = {group: why for group, why in reasons.items() if store.entry(kind, group)}
    return Work(mine, tuple(reasons), tuple(f"{shard_file(kind, group)} {why}" for group, why in again.items()))


def deserves_another_try(clip: LeftOut, timeout_s: float) -> bool:
    """Whether a clip was left out for a reason that may not hold any more: only what is wrong with its file lasts.

    What a limit stopped gets a longer one; what the machine stopped is tried each time.
    """
    if clip.limit_s is not None:
        # 0 is a decoder that was killed from outside, which says nothing of the clip.
        return clip.limit_s == 0 or timeout_s > clip.limit_s
    return _EARLIER_FAULTS.match(clip.reason) is not None


def _reason(
    store: StoreWriter, kind: Kind, group: int, clips: Mapping[str, Clip], retry: bool, timeout_s: float, reuse: bool
) -> str | None:
    """Why a group has to be made, or None."""
    _, fault = store.shard(kind, group)
    # Sentences have no file that could have changed.
    if fault is not None or kind == "texts":
        return fault
    if changed := store.changed_clips(group, clips, by_date=reuse):
        return f"has a clip whose file has changed ({changed[0]})"
    again = any(retry or deserves_another_try(clip, timeout_s) for clip in store.left_out_of(group))
    return "has clips to be tried again" if again else None


# What an extraction did.


@dataclass(frozen=True, slots=True)
class ExtractReport:
    """What an extraction did.

    Attributes:
        store: The store's folder.
        dataset: The dataset's name.
        protocol: Its protocol.
        shard: (i, n): this run did the i-th of n parts, counted from 1.
        clips_extracted: Clips decoded and encoded by this run.
        clips_kept: Clips of this part that were there already.
        texts_extracted: Sentences encoded by this run.
        texts_kept: Sentences of this part that were there already.
        redone: Shards that were there and had to be made again, with the reason.
        undecodable: Clips of this part that could not be decoded, with reasons.
        missing: Clips of the protocol whose file does not exist, with reasons.
        duration_s: Wall time of decoding and encoding clips.
        notes: Facts about the dataset, and on captions that are not read to their end.
        unread: Folders and files of the dataset that were not read, with reasons.
    """

    store: Path
    dataset: str
    protocol: str
    shard: tuple[int, int]
    clips_extracted: int
    clips_kept: int
    texts_extracted: int
    texts_kept: int
    redone: tuple[str, ...]
    undecodable: tuple[LeftOut, ...]
    missing: tuple[LeftOut, ...]
    duration_s: float
    notes: tuple[str, ...] = ()
    unread: tuple[LeftOut, ...] = ()

    @property
    def clips_per_s(self) -> float | None:
        """Clips per second, decoding and encoding together; None when there was nothing to do."""
        return self.clips_extracted / self.duration_s if self.clips_extracted else None

    def to_json(self) -> dict[str, Any]:
        """The report for programs."""
        return {**asdict(self), "store": str(self.store), "clips_per_s": self.clips_per_s}


# The extraction itself.


LOG = "extractions.jsonl"
"""In a store: one line per run, with what it did, versions and device. No part of what makes stores equal."""


def extract(
    dataset: Dataset,
    backbone: Backbone,
    path: Path,
    *,
    n_frames: int = 12,
    dtype: Literal["float32", "float16"] = "float32",
    device: torch.device | str = "cpu",
    batch_frames: int = BATCH_FRAMES,
    workers: int | None = None,
    timeout_s: float = TIMEOUT_S,
    shard: tuple[int, int] = (1, 1),
    retry: bool = False,
    strict: bool = False,
    ray_actors: int = 0,
    reuse: bool = False,
    progress: Progress | None = None,
    on_wait: Callable[[], None] | None = None,
) -> ExtractReport:
    """Extract the features of all clips and captions of `dataset` into the store at `path`.

    What the store has already is kept, unless its shard is damaged or a clip's file has changed. Every shard
    is a group of clips that depends on the dataset alone, encoded in the same batches each time: an
    extraction that was killed and run again, or divided over machines and merged, gives the same bytes.

    Args:
        dataset: The clips and captions.
        backbone: The encoder. Its weights' digest is stored; it is put on `device` and in evaluation mode.
        path: The store's folder.
        n_frames: Frames per clip, F.
        dtype: Number format of the stored features.
        device: Where the backbone runs.
        batch_frames: Frames the backbone sees at once, of several clips.
        workers: Decoding processes, of each actor with Ray; None for one per core.
        timeout_s: Time limit for decoding one clip, in seconds; a longer one tries again what took longer.
        shard: (i, n): do the i-th of n parts of the work, counted from 1.
        retry: Decode clips again whose files could not be decoded before.
        strict: A clip that is missing or cannot be decoded is an error.
        ray_actors: Make the shards on so many actors of Ray (`calmctl.store.cluster`); 0 for this process.
        reuse: Take over the features of files that were renamed, copied or touched. A clip's batch, and so the last
            bits of its features, then depend on what was there before: not for stores that are to be equal, and not
            with Ray.
        progress: Told of clips, those left out included, and then of captions; not where there are none to do.
        on_wait: Called before waiting for another process that extracts into the store; None makes that an error.

    Returns:
        What was done, and every clip left out with its reason. It is also a line of `extractions.jsonl`
        in the store, with versions and device.

    Raises:
        BadInput: `shard` makes no sense; with `strict`, `VideoError` for clips without features.
        StoreError: The store holds something that cannot be mixed with these features, or another folder's.
        RunFailed: The store cannot be written, or a decoding process cannot be started.
    """
    notify = progress or (lambda what, done, total, left_out=0: None)
    missing = tuple(clip for split in dataset.splits.values() for clip in split.left_out)
    if strict:
        _refuse((*dataset.unread, *missing))
    cut = backbone.tokens.cut([caption for split in dataset.splits.values() for caption in split.captions])
    header = Header(dataset=dataset.name, backbone=fingerprint(backbone), n_frames=n_frames, dtype=dtype)
    clips = {clip.id: clip for split in dataset.splits.values() for clip in split.clips}
    with (
        StoreWriter.create(path, header, on_wait) as store,
        interruptible("what is extracted is kept; go on with the same command"),
    ):
        store.plan(dataset)
        frames = plan_work(store, "frames", clips, shard=shard, retry=retry, timeout_s=timeout_s, reuse=reuse)
        texts = plan_work(store, "texts", clips, shard=shard, retry=retry, timeout_s=timeout_s)
        # Behind the plan, which reads what is there: the rate is that of decoding and encoding.
        started = time.perf_counter()
        known = KnownFeatures(store, frames.todo, clips, progress) if reuse else None
        if ray_actors:
            make = partial(
                cluster_shards,
                backbone=backbone,
                actors=ray_actors,
                n_frames=n_frames,
                batch_frames=batch_frames,
                device=torch.device(device).type,
                workers=workers,
                timeout_s=timeout_s,
            )
            _extract_on_cluster(store, make, frames, texts, clips, strict, notify)
            duration_s = time.perf_counter() - started
        else:
            encoder = Encoder(backbone, device=device, n_frames=n_frames, batch_frames=batch_frames)
            decode = decoder(encoder, n_frames, workers=workers, timeout_s=timeout_s)
            _extract_clips(store, encoder, decode, frames, clips, strict, notify, known)
            duration_s = time.perf_counter() - started
            _extract_texts(store, encoder, texts, notify)
        # Counted from the store and not on the way: what is reported is what is there.
        report = ExtractReport(
            store=path,
            dataset=dataset.name,
            protocol=dataset.protocol,
            shard=shard,
            clips_extracted=sum(len(store.present("frames", group)) for group in frames.todo) - len(known or ()),
            clips_kept=sum(len(store.present("frames", group)) for group in frames.kept) + len(known or ()),
            texts_extracted=sum(len(store.groups("texts")[group]) for group in texts.todo),
            texts_kept=sum(len(store.groups("texts")[group]) for group in texts.kept),
            redone=(*frames.redone, *texts.redone),
            undecodable=tuple(clip for group in frames.mine for clip in store.left_out_of(group)),
            missing=missing,
            duration_s=duration_s,
            notes=(*dataset.notes, *([cut] if cut else [])),
            unread=dataset.unread,
        )
        _log(path / LOG, {"report": report.to_json(), "device": str(device), **environment()})
    if strict:
        # At the end: what could be extracted stays, and is in the log.
        _refuse(report.undecodable)
    return report


def _extract_clips(
    store: StoreWriter,
    encoder: Encoder,
    decode: Decode,
    work: Work,
    clips: Mapping[str, Clip],
    strict: bool,
    notify: Progress,
    known: KnownFeatures | None,
) -> None:
    """Decode and encode the groups that have to be made; each is on disk before the next one begins."""
    groups = [store.groups("frames")[group] for group in work.todo]
    counted = _ClipCounter(sum(map(len, groups)), strict, notify)
    # Closed by whatever ends the block: decoding runs ahead in processes of its own.
    shards = frame_shards(groups, clips, encoder, decode, lambda left_out: counted(1, left_out), known)
    with closing(shards):
        for group, shard in zip(work.todo, shards, strict=True):
            store.add_frames(group, shard.features, shard.sources, shard.left_out)


class _ClipCounter:
    """Counts the clips that are finished, and tells; with `strict` one that is left out is an error."""

    def __init__(self, total: int, strict: bool, notify: Progress) -> None:
        self._total, self._strict, self._notify = total, strict, notify
        self._done = self._left_out = 0
        # A bar before the first clip, which may take a while.
        self(0)

    def __call__(self, done: int, *left_out: LeftOut | None) -> None:
        """`done` clips more are finished, these of them left out."""
        faults = [clip for clip in left_out if clip is not None]
        if self._strict:
            _refuse(faults)
        self._done, self._left_out = self._done + done, self._left_out + len(faults)
        if self._total:
            self._notify("clips", self._done, self._total, self._left_out)


def _extract_texts(store: StoreWriter, encoder: Encoder, work: Work, notify: Progress) -> None:
    total = sum(len(store.groups("texts")[group]) for group in work.todo)
    before = 0

    def on_batch(done: int) -> None:
        notify("captions", before + done, total)

    if total:
        on_batch(0)
    for group in work.todo:
        sentences = store.groups("texts")[group]
        store.add_texts(group, encoder.texts(sentences, on_batch))
        before += len(sentences)


def _extract_on_cluster(
    store: StoreWriter,
    make: Callable[[Sequence[ShardTask]], Iterable[tuple[ShardTask, FrameShard | torch.Tensor]]],
    frames: Work,
    texts: Work,
    clips: Mapping[str, Clip],
    strict: bool,
    notify: Progress,
) -> None:
    """Have all groups made by others, in whatever order they come; each is on disk as soon as it is here."""
    tasks = [_task(store, group, clips) for group in frames.todo]
    # One queue for both kinds, so that no actor waits between them.
    tasks += [ShardTask(group, store.groups("texts")[group], None) for group in texts.todo]
    counted = _ClipCounter(sum(len(task.keys) for task in tasks if task.clips is not None), strict, notify)
    for task, content in make(tasks):
        if isinstance(content, FrameShard):
            store.add_frames(task.group, content.features, content.sources, content.left_out)
            counted(len(task.keys), *content.left_out)
        else:
            store.add_texts(task.group, content)
    # In one step, because their shards come in between those of clips.
    n_sentences = sum(len(task.keys) for task in tasks if task.clips is None)
    if n_sentences:
        notify("captions", n_sentences, n_sentences)


def _task(store: StoreWriter, group: int, clips: Mapping[str, Clip]) -> ShardTask:
    keys = store.groups("frames")[group]
    # A clip whose file has vanished is not among them; `frame_shards` leaves it out with that reason.
    return ShardTask(group, keys, {key: clips[key] for key in keys if key in clips})


def _log(path: Path, entry: dict[str, Any]) -> None:
    # Added to and never read here: what else is in it cannot fail an extraction whose work is done.
    append_text(path, json.dumps(entry) + "\n")


def _refuse(left_out: Iterable[LeftOut]) -> None:
    """Raise `VideoError` when there is any clip without features."""
    clips = tuple(left_out)
    if clips:
        raise VideoError(f"{clips[0].id}: {clips[0].reason} (clips without features: {len(clips)}, with --strict)")
