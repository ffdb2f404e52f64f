"""What of a dataset is there, what is missing, and whether it is the published split."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import combinations
from pathlib import Path

import numpy as np

from calmctl.counting import counted
from calmctl.data.benchmark import (
    Benchmark,
    Protocol,
    check_names,
    differences,
    first_complete,
    list_videos,
    missing_ways,
)
from calmctl.data.check_report import CheckReport, Finding
from calmctl.data.identity import contents_of
from calmctl.data.layout import Places, listing, places
from calmctl.data.registry import BENCHMARKS, load_dataset, resolve
from calmctl.data.samples import Clip, LeftOut
from calmctl.data.splits import Annotated
from calmctl.data.workers import TIMEOUT_S, run_isolated
from calmctl.errors import DatasetError, VideoError

OnClip = Callable[[int, int], None]
"""Told how many clips have been decoded, and of how many."""

CutCaptions = Callable[[Sequence[str]], str | None]
"""Of some captions, a sentence on those that a text tower would not read to their end."""


def check_dataset(
    name: str,
    root: Path | None,
    *,
    protocol: str | None = None,
    annotations: Path | None = None,
    videos: Path | None = None,
    decode: bool = False,
    n_frames: int = 12,
    workers: int | None = None,
    timeout_s: float = TIMEOUT_S,
    on_clip: OnClip | None = None,
    cut_captions: CutCaptions = lambda captions: None,
) -> CheckReport:
    """Look for everything that a dataset needs.

    Args:
        name: One of `DATASETS`.
        root: As for `load_dataset`, and so are `protocol`, `annotations` and `videos`.
        protocol: One of the dataset's protocols; None for its default.
        annotations: Folder of the annotation files, where they are elsewhere.
        videos: Folder of the clips, where they are elsewhere.
        decode: Decode `n_frames` of every clip that is there, in worker processes, as extraction does.
        n_frames: Frames of a clip to decode.
        workers: Decoding processes; None for one a core.
        timeout_s: Time limit for one clip, in seconds.
        on_clip: Called after every clip decoded.
        cut_captions: `model.tokens.Tokens.cut` of the text tower that is to read the captions.

    Raises:
        DatasetError: An unknown name or protocol, a folder that is none, or, of a dataset without published
            splits, a malformed file. What is wrong with a published dataset's files is in the report.
    """
    protocol = resolve(name, protocol)
    if name in BENCHMARKS:
        where = places(name, root, annotations, videos)
        report, clips = _check_benchmark(BENCHMARKS[name], protocol, where, cut_captions)
    else:
        report, clips = _check_other(name, protocol, root, annotations, videos, cut_captions)
    if not decode:
        return report
    undecodable = _undecodable(clips, n_frames, workers, timeout_s, on_clip)
    decoding = tuple(_decoding(split, clips[split], undecodable[split]) for split in clips if clips[split])
    return replace(report, findings=(*report.findings, *decoding), undecodable=undecodable)


Clips = dict[str, list[Clip]]
"""Of each split, those that are there."""


def _copies(clips: Clips) -> Iterator[Finding]:
    """A finding for each two splits that share files: what was trained on tests nothing."""
    contents = {split: contents_of(some) for split, some in clips.items()}
    for first, second in combinations(contents, 2):
        seen = set(contents[first].values())
        if shared := [key for key, content in contents[second].items() if content in seen]:
            text = f"{counted(len(shared), 'clip')} shared with {first}: the files are the same (first: {shared[0]})"
            yield Finding("shared file", second, "wrong", text)


def _check_benchmark(
    benchmark: Benchmark, protocol_name: str, where: Places, cut_captions: CutCaptions
) -> tuple[CheckReport, Clips]:
    protocol = benchmark.protocols[protocol_name]
    findings = list(_annotation_files(benchmark, protocol, where))
    found: dict[str, Annotated] = {}
    for split, choices in protocol.files.items():
        files = first_complete(choices, where)
        if files is None:
            findings.append(Finding("split", split, "missing", "its annotation files are not complete"))
            continue
        try:
            annotated = protocol.read(split, files)
            check_names(annotated, f"{benchmark.name}: the {split} split")
        except DatasetError as fault:
            findings.append(Finding("split", split, "wrong", str(fault)))
        else:
            found[split] = annotated
            findings.append(_split(split, annotated, protocol))
    clips: Clips = {}
    missing: dict[str, dict[str, str]] = {}
    unread: tuple[LeftOut, ...] = ()
    notes = [_cut(split, [text for _, text in annotated.captions], cut_captions) for split, annotated in found.items()]
    if found and where.videos:
        listed = list_videos(benchmark, where, found.values())
        unread = listed.unread
        for split, annotated in found.items():
            files_of = {clip_id: listed.find(clip_id) for clip_id in dict.fromkeys(annotated.clip_ids)}
            window = annotated.start_s, annotated.end_s
            clips[split] = [Clip(key, path, *window) for key, path in files_of.items() if isinstance(path, Path)]
            missing[split] = {key: reason for key, reason in files_of.items() if isinstance(reason, str)}
            told = any(map(missing.get, list(missing)[:-1]))  # who has them need only be said once
            findings.append(
                _videos(split, len(clips[split]), missing[split], None if told else benchmark.owners["clips"])
            )
    findings += [*(note for note in notes if note), *_not_read(unread)]
    reasons = {each.id: each.reason for each in unread}
    report = CheckReport(
        benchmark.name, protocol_name, where.annotations, where.videos, tuple(findings), missing, reasons
    )
    return report, clips


def _annotation_files(benchmark: Benchmark, protocol: Protocol, where: Places) -> Iterator[Finding]:
    """A line for every file that is read, one that is there for nothing, and one that is missing."""
    used: dict[str, list[str]] = {}
    wanted: dict[str, list[str]] = {}
    instead: dict[str, str] = {}
    every = dict.fromkeys(name for choices in protocol.files.values() for choice in choices for name in choice)
    for split, choices in protocol.files.items():
        files = first_complete(choices, where)
        if files is not None:
            for name in files:
                used.setdefault(name, []).append(split)
            continue
        first, *others = missing_ways(choices, where)
        for name in first:
            wanted.setdefault(name, []).append(split)
            ways = [[file for file in way if file not in first] for way in others if name not in way]
            instead[name] = "".join(f"; {listing(way)} can take its place" for way in ways if way)
    for name in every:
        path = where.find(name)
        if name in wanted and path is None:
            text = f"for {listing(wanted[name])}: get it from {benchmark.owners[name]}{instead[name]}"
            yield Finding("annotation file", name, "missing", text)
        elif name in used:
            yield Finding("annotation file", name, "ok", f"read for {listing(used[name])}")
        elif path is not None:
            yield Finding("annotation file", name, "unused", "recognised; nothing is read from it here")


def _split(name: str, annotated: Annotated, protocol: Protocol) -> Finding:
    size = f"{len(set(annotated.clip_ids)):,} clips, {len(annotated.captions):,} captions"
    published = protocol.published.get(name)
    if published is None:
        return Finding("split", name, "ok", f"{size}; nothing is published to compare with")
    notes = "".join(f"; {note}" for note in annotated.notes)
    if differing := differences(annotated, published):
        return Finding("split", name, "wrong", "; ".join(differing) + notes)
    if published.sha256:
        same = f"the published split (SHA-256 {published.sha256[:12]})"
    elif published.clips is None:
        same = "as many captions as published"
    else:
        same = "as many as published"
    return Finding("split", name, "ok", f"{size}: {same}{notes}")


def _videos(split: str, n_found: int, missing: Mapping[str, str], owner: str | None = None) -> Finding:
    total = n_found + len(missing)
    if not missing:
        return Finding("video files", split, "ok", f"all {total:,} are there")
    source = f": get them from {owner}" if owner else ""
    return Finding("video files", split, "missing", f"{n_found:,} of {total:,} are there{source}")


def _cut(split: str, captions: Sequence[str], cut_captions: CutCaptions) -> Finding | None:
    """Nothing of the data set is lost; what a model makes of it is."""
    sentence = cut_captions(captions)
    return None if sentence is None else Finding("notes", split, "note", sentence)


def _not_read(unread: Sequence[LeftOut]) -> list[Finding]:
    """A line a reason, with the first names."""
    by_reason: dict[str, list[str]] = {}
    for each in unread:
        by_reason.setdefault(each.reason, []).append(each.id)
    return [
        Finding("not read", ", ".join(names[:3]) + (f", ... ({len(names):,})" if names[3:] else ""), "missing", reason)
        for reason, names in by_reason.items()
    ]


def _check_other(
    name: str,
    protocol: str,
    root: Path | None,
    annotations: Path | None,
    videos: Path | None,
    cut_captions: CutCaptions,
) -> tuple[CheckReport, Clips]:
    """A dataset of which nothing is published: what it says of itself."""
    dataset = load_dataset(name, root, protocol=protocol, annotations=annotations, videos=videos)
    findings = []
    for split in dataset.splits.values():
        size = f"{len(split.clips) + len(split.left_out):,} clips, {len(split.captions):,} captions"
        findings.append(Finding("split", split.name, "ok", size))
    missing = {split.name: {clip.id: clip.reason for clip in split.left_out} for split in dataset.splits.values()}
    findings += [_videos(split.name, len(split.clips), missing[split.name]) for split in dataset.splits.values()]
    clips = {split.name: list(split.clips) for split in dataset.splits.values()}
    findings += _copies(clips)
    findings += [Finding("notes", "", "note", note) for note in dataset.notes]
    cut = [_cut(split.name, split.captions, cut_captions) for split in dataset.splits.values()]
    findings += [*(note for note in cut if note), *_not_read(dataset.unread)]
    folders = [tuple(path for path in (given or root,) if path) for given in (annotations, videos)]
    reasons = {each.id: each.reason for each in dataset.unread}
    report = CheckReport(name, protocol, folders[0], folders[1], tuple(findings), missing, reasons)
    return report, clips


def _undecodable(
    clips: Clips, n_frames: int, workers: int | None, timeout_s: float, on_clip: OnClip | None
) -> dict[str, dict[str, str]]:
    every = [(split, clip) for split, of_split in clips.items() for clip in of_split]
    reasons: dict[str, dict[str, str]] = {split: {} for split in clips}
    job = partial(_decodes, n_frames=n_frames)
    results = run_isolated(job, (clip for _, clip in every), workers=workers, timeout_s=timeout_s)
    for done, ((split, clip), (_, result)) in enumerate(zip(every, results, strict=True), start=1):
        if isinstance(result, VideoError):
            reasons[split][clip.id] = str(result)
        if on_clip is not None:
            on_clip(done, len(every))
    return reasons


def _decodes(clip: Clip, *, n_frames: int) -> np.ndarray:
    """Nothing, if the clip decodes; raises otherwise."""
    from calmctl.data.decode import read_frames

    return read_frames(clip, n_frames, _nothing)


def _nothing(frames: np.ndarray) -> np.ndarray:
    return np.empty((len(frames), 0), np.uint8)


def _decoding(split: str, clips: list[Clip], undecodable: Mapping[str, str]) -> Finding:
    if not undecodable:
        return Finding("decoding", split, "ok", f"all {len(clips):,} decode")
    return Finding("decoding", split, "wrong", f"{len(undecodable):,} of {len(clips):,} do not decode")
