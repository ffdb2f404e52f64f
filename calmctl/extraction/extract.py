"""Extraction: every clip decoded and encoded once, every sentence encoded once, into a feature store."""

from __future__ import annotations

import json
import time
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch

from calmctl.data.samples import Clip, Dataset, LeftOut
from calmctl.data.store_format import Header
from calmctl.data.store_writer import Source, StoreWriter, source_of
from calmctl.data.workers import TIMEOUT_S, available_cores, decode_clips
from calmctl.errors import VideoError
from calmctl.extraction.encoder import BATCH_FRAMES, Encoder
from calmctl.extraction.report import ExtractReport, OnProgress, Progress
from calmctl.extraction.work import Work, plan_work
from calmctl.files import write_text
from calmctl.model.backbone import Backbone
from calmctl.model.preprocess import fingerprint
from calmctl.provenance import environment

LOG = "extractions.jsonl"
"""In a store: one line a run, with what it did, versions and device. No part of what makes stores equal."""


class _Decode(Protocol):
    def __call__(self, clips: Iterable[Clip]) -> Generator[tuple[Clip, np.ndarray | VideoError], None, None]: ...


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
    on_progress: OnProgress | None = None,
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
        workers: Decoding processes; None for one a core.
        timeout_s: Time limit for decoding one clip, in seconds.
        shard: (i, n): do the i-th of n parts of the work, counted from 1.
        retry: Decode clips again that could not be decoded before.
        strict: A clip that is missing or cannot be decoded is an error.
        on_progress: Called often, with how far the work is.

    Returns:
        What was done, and every clip left out with its reason. It is also a line of `extractions.jsonl`
        in the store, with versions and device.

    Raises:
        BadInput: `shard` makes no sense; with `strict`, `VideoError` for clips without features.
        StoreError: The store holds something that cannot be mixed with these features.
        RunFailed: The store cannot be written, or a decoding process cannot be started.
    """
    tell = on_progress or (lambda progress: None)
    missing = tuple(clip for split in dataset.splits.values() for clip in split.left_out)
    if strict:
        _refuse(missing)
    encoder = Encoder(backbone, device=device, n_frames=n_frames, batch_frames=batch_frames)
    header = Header(dataset=dataset.name, backbone=fingerprint(backbone), n_frames=n_frames, dtype=dtype)
    clips = {clip.id: clip for split in dataset.splits.values() for clip in split.clips}
    decode = partial(
        decode_clips,
        n_frames=n_frames,
        workers=workers,
        timeout_s=timeout_s,
        transform=encoder.resize,
        # While one batch is being encoded the next two are being decoded.
        ahead=2 * max(encoder.n_clips, workers or available_cores()),
    )
    with StoreWriter.create(path, header) as store:
        store.plan(dataset)
        frames = plan_work(store, "frames", clips, shard=shard, retry=retry)
        texts = plan_work(store, "texts", clips, shard=shard, retry=retry)
        started = time.perf_counter()
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
        )
        _log(path / LOG, {"report": report.as_json(), "device": str(device), **environment()})
    if strict:
        _refuse(report.undecodable)
    return report


def _extract_clips(
    store: StoreWriter,
    encoder: Encoder,
    decode: _Decode,
    work: Work,
    clips: Mapping[str, Clip],
    strict: bool,
    tell: OnProgress,
) -> None:
    """Decode and encode the groups that have to be made; each is on disk before the next one begins."""
    wanted = [key for group in work.todo for key in store.groups("frames")[group]]
    sources: dict[str, Source | None] = {}

    def to_decode() -> Iterator[Clip]:
        for key in wanted:
            if key in clips:
                sources[key] = source_of(clips[key])  # before the file is read, so no change can slip through
                yield clips[key]

    done = left_out_count = 0
    tell(Progress("clips", done, len(wanted)))
    with closing(decode(to_decode())) as decoded:
        for group in work.todo:
            features: list[torch.Tensor] = []
            batch: list[np.ndarray] = []
            left_out: list[LeftOut] = []
            keys = store.groups("frames")[group]
            for key in keys:
                frames = next(decoded)[1] if key in clips else VideoError("its file is gone")
                if isinstance(frames, VideoError):
                    left_out.append(LeftOut(key, str(frames)))
                    if strict:
                        _refuse(left_out)
                    left_out_count += 1
                else:
                    batch.append(frames)
                if len(batch) == encoder.n_clips:
                    features.append(encoder.frames(batch))
                    batch = []
                done += 1
                tell(Progress("clips", done, len(wanted), left_out_count))
            features.append(encoder.frames(batch))
            store.add_frames(group, torch.cat(features), {key: sources.pop(key, None) for key in keys}, left_out)


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


def _log(path: Path, entry: dict[str, Any]) -> None:
    earlier = path.read_text(encoding="ascii") if path.exists() else ""
    write_text(path, earlier + json.dumps(entry) + "\n")


def _refuse(left_out: Iterable[LeftOut]) -> None:
    """Raise `VideoError` when there is any clip without features."""
    clips = tuple(left_out)
    if clips:
        raise VideoError(f"{clips[0].id}: {clips[0].reason} (clips without features: {len(clips)}, with --strict)")
