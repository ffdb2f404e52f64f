"""Extraction: every clip decoded and encoded once, every sentence encoded once, into a feature store."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch

from calmctl.data.samples import Clip, Dataset, LeftOut
from calmctl.data.store_format import Header
from calmctl.data.store_writer import StoreWriter
from calmctl.data.workers import TIMEOUT_S
from calmctl.errors import VideoError
from calmctl.extraction.cluster import Task, cluster_shards
from calmctl.extraction.encoder import BATCH_FRAMES, Encoder
from calmctl.extraction.report import ExtractReport, OnProgress, Progress
from calmctl.extraction.shards import Decode, FrameShard, decoder, frame_shards
from calmctl.extraction.work import Work, plan_work
from calmctl.files import append_text
from calmctl.interruption import interruptible
from calmctl.model.backbone import Backbone
from calmctl.model.preprocess import fingerprint
from calmctl.provenance import environment

LOG = "extractions.jsonl"
"""In a store: one line a run, with what it did, versions and device. No part of what makes stores equal."""


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
    on_progress: OnProgress | None = None,
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
        n_frames: Frames a clip, F.
        dtype: Number format of the stored features.
        device: Where the backbone runs.
        batch_frames: Frames the backbone sees at once, of several clips.
        workers: Decoding processes, of each actor with Ray; None for one a core.
        timeout_s: Time limit for decoding one clip, in seconds; a longer one tries again what took longer.
        shard: (i, n): do the i-th of n parts of the work, counted from 1.
        retry: Decode clips again whose files could not be decoded before.
        strict: A clip that is missing or cannot be decoded is an error.
        ray_actors: Make the shards on so many actors of Ray (`calmctl.extraction.cluster`); 0 for this process.
        on_progress: Called often, with how far the work is.
        on_wait: Called before waiting for another process that extracts into the store; None makes that an error.

    Returns:
        What was done, and every clip left out with its reason. It is also a line of `extractions.jsonl`
        in the store, with versions and device.

    Raises:
        BadInput: `shard` makes no sense; with `strict`, `VideoError` for clips without features.
        StoreError: The store holds something that cannot be mixed with these features, or another folder's.
        RunFailed: The store cannot be written, or a decoding process cannot be started.
    """
    tell = on_progress or (lambda progress: None)
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
        frames = plan_work(store, "frames", clips, shard=shard, retry=retry, timeout_s=timeout_s)
        texts = plan_work(store, "texts", clips, shard=shard, retry=retry, timeout_s=timeout_s)
        started = time.perf_counter()
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
            _extract_on_cluster(store, make, frames, texts, clips, strict, tell)
            duration_s = time.perf_counter() - started
        else:
            encoder = Encoder(backbone, device=device, n_frames=n_frames, batch_frames=batch_frames)
            decode = decoder(encoder, n_frames, workers=workers, timeout_s=timeout_s)
            _extract_clips(store, encoder, decode, frames, clips, strict, tell)
            duration_s = time.perf_counter() - started
            _extract_texts(store, encoder, texts, tell)
        report = ExtractReport(
            store=path,
            dataset=dataset.name,
            protocol=dataset.protocol,
            shard=shard,
            clips_extracted=sum(len(store.present("frames", group)) for group in frames.todo),
            clips_kept=sum(len(store.present("frames", group)) for group in frames.kept),
            texts_extracted=sum(len(store.groups("texts")[group]) for group in texts.todo),
            texts_kept=sum(len(store.groups("texts")[group]) for group in texts.kept),
            redone=(*frames.redone, *texts.redone),
            undecodable=tuple(clip for group in frames.mine for clip in store.left_out_of(group)),
            missing=missing,
            duration_s=duration_s,
            notes=(*dataset.notes, *([cut] if cut else [])),
            unread=dataset.unread,
        )
        _log(path / LOG, {"report": report.as_json(), "device": str(device), **environment()})
    if strict:
        _refuse(report.undecodable)
    return report


def _extract_clips(
    store: StoreWriter,
    encoder: Encoder,
    decode: Decode,
    work: Work,
    clips: Mapping[str, Clip],
    strict: bool,
    tell: OnProgress,
) -> None:
    """Decode and encode the groups that have to be made; each is on disk before the next one begins."""
    groups = [store.groups("frames")[group] for group in work.todo]
    counted = _Counted(sum(map(len, groups)), strict, tell)
    with closing(frame_shards(groups, clips, encoder, decode, lambda left_out: counted(1, left_out))) as shards:
        for group, shard in zip(work.todo, shards, strict=True):
            store.add_frames(group, shard.features, shard.sources, shard.left_out)


class _Counted:
    """Counts the clips that are finished, and tells; with `strict` one that is left out is an error."""

    def __init__(self, total: int, strict: bool, tell: OnProgress) -> None:
        self._step = Progress("clips", 0, total)
        self._strict, self._tell = strict, tell
        tell(self._step)

    def __call__(self, done: int, *left_out: LeftOut | None) -> None:
        """`done` clips more are finished, these of them left out."""
        faults = [clip for clip in left_out if clip is not None]
        if self._strict:
            _refuse(faults)
        step = self._step
        self._step = replace(step, done=step.done + done, left_out=step.left_out + len(faults))
        self._tell(self._step)


def _extract_texts(store: StoreWriter, encoder: Encoder, work: Work, tell: OnProgress) -> None:
    total = sum(len(store.groups("texts")[group]) for group in work.todo)
    before = 0

    def on_batch(done: int) -> None:
        tell(Progress("captions", before + done, total))

    on_batch(0)
    for group in work.todo:
        sentences = store.groups("texts")[group]
        store.add_texts(group, encoder.texts(sentences, on_batch))
        before += len(sentences)


def _extract_on_cluster(
    store: StoreWriter,
    make: Callable[[Sequence[Task]], Iterable[tuple[Task, FrameShard | torch.Tensor]]],
    frames: Work,
    texts: Work,
    clips: Mapping[str, Clip],
    strict: bool,
    tell: OnProgress,
) -> None:
    """Have all groups made by others, in whatever order they come; each is on disk as soon as it is here."""
    tasks = [_task(store, group, clips) for group in frames.todo]
    tasks += [Task(group, store.groups("texts")[group], None) for group in texts.todo]
    counted = _Counted(sum(len(task.keys) for task in tasks if task.clips is not None), strict, tell)
    for task, made in make(tasks):
        if isinstance(made, FrameShard):
            store.add_frames(task.group, made.features, made.sources, made.left_out)
            counted(len(task.keys), *made.left_out)
        else:
            store.add_texts(task.group, made)
    n_sentences = sum(len(task.keys) for task in tasks if task.clips is None)
    tell(Progress("captions", n_sentences, n_sentences))


def _task(store: StoreWriter, group: int, clips: Mapping[str, Clip]) -> Task:
    keys = store.groups("frames")[group]
    return Task(group, keys, {key: clips[key] for key in keys if key in clips})


def _log(path: Path, entry: dict[str, Any]) -> None:
    # Added to and never read here: what else is in it cannot fail an extraction whose work is done.
    append_text(path, json.dumps(entry) + "\n")


def _refuse(left_out: Iterable[LeftOut]) -> None:
    """Raise `VideoError` when there is any clip without features."""
    clips = tuple(left_out)
    if clips:
        raise VideoError(f"{clips[0].id}: {clips[0].reason} (clips without features: {len(clips)}, with --strict)")
