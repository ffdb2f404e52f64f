"""What a dataset needs and where that belongs; and what of it is there: `calmctl data where` and `data check`."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import chain, combinations
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import numpy as np

from calmctl.data.annotations import clip_name
from calmctl.data.benchmark import Annotated, Benchmark, Protocol, differences, first_complete, list_videos, read_splits
from calmctl.data.identity import contents_of
from calmctl.data.locate import Missing, Places, candidates, listing, places
from calmctl.data.packed import find_archives, how_to_unpack, list_archive
from calmctl.data.registry import BENCHMARKS, DATASETS, load_dataset, resolve
from calmctl.errors import DatasetError, VideoError
from calmctl.samples import Clip, LeftOut
from calmctl.video.pool import TIMEOUT_S, run_isolated
from calmctl.words import Progress, counted

_WIDTH = 80
FRAMES = 12
"""Of a clip, that `data check --decode` decodes."""
_OWN = {
    "folder": "any folder; its clips are every video file below it, its captions captions.csv, captions.json or\n"
    "captions.jsonl in it, its splits a column `split`, or train.txt, val.txt and test.txt.",
    "demo": "drawn by `calmctl demo` into data/demo; nothing is to be brought.",
    "demo-shifted": "drawn by `calmctl demo` into data/demo; nothing is to be brought.",
}


def overview() -> str:
    """All datasets in a line each, and the layout they share."""
    lines = [_wrapped(info.description, " " * 14, name) for name, info in DATASETS.items()]
    return "\n".join(
        [
            *chain.from_iterable(lines),
            "",
            *_layout("NAME"),
            "",
            "calmctl downloads nothing: bring the files as their owners give them out.",
            "The files of one dataset: calmctl data where msrvtt",
            "Whether they are all there: calmctl data check msrvtt --root ROOT",
        ]
    )


def kept_for_searches() -> str:
    """What searches keep below ./features, and how large it is; "" where there is nothing."""
    features = Path("features")
    folders = [folder for folder in (features / "search", *features.glob("*/search")) if folder.is_dir()]
    # Not what links lead to: that is nobody's to delete here.
    size = sum(file.lstat().st_size for folder in folders for file in folder.rglob("*") if not file.is_dir())
    if not size:
        return ""
    names = listing([str(folder) for folder in folders])
    return f"Searches keep {size / 1e6:,.1f} MB in {names}: it may be deleted, the next search makes it again."


def explain_dataset(name: str) -> str:
    """The annotation files and clips of one dataset, who gives them out, and where they are looked for.

    Raises:
        DatasetError: There is no dataset of that name.
    """
    default = resolve(name, None)
    lines = [*_wrapped(DATASETS[name].description), ""]
    if name not in BENCHMARKS:
        return "\n".join([*lines, *_wrapped(_OWN[name])])
    benchmark = BENCHMARKS[name]
    for protocol_name, protocol in benchmark.protocols.items():
        if protocol_name:
            lines.append(f"protocol {protocol_name}{' (default)' if protocol_name == default else ''}")
        for split, ways in protocol.files.items():
            choices = [choice for choice in ways if not any(name in benchmark.copies for name in choice)]
            for number, choice in enumerate(choices, start=1):
                way = listing(choice) + (", or" if number < len(choices) else "")
                lines += _wrapped(way, " " * 9, f"  {split}" if number == 1 else "")
        if protocol.val_clips:
            lines.append(f"  val    {protocol.val_clips} clips are carved from train")
        lines.append("")
    lines += ["who gives them out", *_holders(benchmark.owners)]
    if benchmark.copies:
        lines += ["", "copies in other layouts, which are read where they lie in the same places"]
        lines += _holders(benchmark.copies)
    lines += ["", "how clips are named", *_wrapped(benchmark.clip_names, "  ")]
    return "\n".join(
        [*lines, "", *_layout(name), "", f"Whether they are all there: calmctl data check {name} --root ROOT"]
    )


def _holders(holder_of: Mapping[str, str]) -> Iterator[str]:
    """Whoever has files, below the names of these."""
    for holder in dict.fromkeys(holder_of.values()):
        files = [file for file, each in holder_of.items() if each == holder]
        yield from (*_wrapped(listing(files), "  "), *_wrapped(holder, "      "))


def _layout(name: str) -> list[str]:
    """The folders of a root, first match first."""
    return [
        "where they are looked for, below ROOT (--root, or data.root), first match first",
        *_wrapped(", ".join(candidates("annotations", name)), " " * 15, "  annotations"),
        *_wrapped(f"{', '.join(candidates('videos', name))}; each with all below it", " " * 15, "  clips"),
        "or where --annotations and --videos (data.annotations, data.videos) say.",
    ]


def _wrapped(text: str, indent: str = "", label: str = "") -> list[str]:
    first = label.ljust(len(indent))
    # Names of files break at no hyphen: they are copied from here.
    return textwrap.wrap(text, _WIDTH, initial_indent=first, subsequent_indent=indent, break_on_hyphens=False)


# What a check of a dataset found.


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of a check.

    Attributes:
        part: What kind of thing it is about.
        name: The file, or the split.
        state: "unused" is for an annotation file that another one makes superfluous, "note" for what costs nothing.
        text: What was found; for a missing file also what it is for and who gives it out.
        command: What to call about it, to be copied.
    """

    part: Literal["annotation file", "split", "video files", "shared file", "notes", "not read", "decoding"]
    name: str
    state: Literal["ok", "unused", "note", "missing", "wrong"]
    text: str
    command: str = ""


@dataclass(frozen=True, slots=True)
class CheckReport:
    """What was found.

    Attributes:
        dataset: Its name.
        protocol: "" where there is only one.
        annotations: Folders in which annotation files were looked for.
        videos: Folders in which clips were looked for.
        findings: In the order of a table.
        missing: For each split the clips without a file, {id: reason}.
        unread: Folders and files that were not read or followed, {name: reason}; what is in them is lost.
        undecodable: For each split the clips that do not decode, {id: reason}; None unless they were tried.
    """

    dataset: str
    protocol: str
    annotations: tuple[Path, ...]
    videos: tuple[Path, ...]
    findings: tuple[Finding, ...]
    missing: Mapping[str, Mapping[str, str]]
    unread: Mapping[str, str] = field(default_factory=dict)
    undecodable: Mapping[str, Mapping[str, str]] | None = None

    @property
    def complete(self) -> bool:
        """Nothing is missing and nothing is wrong."""
        return all(finding.state in ("ok", "unused", "note") for finding in self.findings)

    def to_json(self) -> dict[str, Any]:
        """The report for programs."""
        folders = {"annotations": [*map(str, self.annotations)], "videos": [*map(str, self.videos)]}
        return {**asdict(self), **folders, "complete": self.complete}


# What of a dataset is there, what is missing, and whether it is the published split.


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
    workers: int | None = None,
    timeout_s: float = TIMEOUT_S,
    progress: Progress | None = None,
    cut_captions: CutCaptions = lambda captions: None,
) -> CheckReport:
    """Look for everything that a dataset needs.

    Args:
        name: One of `DATASETS`.
        root: As for `load_dataset`, and so are `protocol`, `annotations` and `videos`.
        protocol: One of the dataset's protocols; None for its default.
        annotations: Folder of the annotation files, where they are elsewhere.
        videos: Folder of the clips, where they are elsewhere.
        decode: Decode `FRAMES` of every clip that is there, in worker processes, as extraction does.
        workers: Decoding processes; None for one per core.
        timeout_s: Time limit for one clip, in seconds.
        progress: Told after every clip decoded.
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
    undecodable = _undecodable(clips, workers, timeout_s, progress)
    decoding = tuple(_decoding(split, clips[split], undecodable[split]) for split in clips if clips[split])
    return replace(report, findings=(*report.findings, *decoding), undecodable=undecodable)


Clips = dict[str, list[Clip]]
"""Of each split, those that are there."""


def _copies(clips: Clips) -> Iterator[Finding]:
    """A finding for each two splits that share files: what was trained on tests nothing."""
    # By content: a copy of a training clip under another name once tested at R@1 100, and nothing said so.
    contents = {split: contents_of(some) for split, some in clips.items()}
    for first, second in combinations(contents, 2):
        known_contents = set(contents[first].values())
        if shared := [key for key, content in contents[second].items() if content in known_contents]:
            text = f"{counted(len(shared), 'clip')} shared with {first}: the files are the same (first: {shared[0]})"
            yield Finding("shared file", second, "wrong", text)


def _check_benchmark(
    benchmark: Benchmark, protocol_name: str, where: Places, cut_captions: CutCaptions
) -> tuple[CheckReport, Clips]:
    protocol = benchmark.protocols[protocol_name]
    findings = list(_annotation_files(benchmark, protocol, where))
    annotated_splits: dict[str, Annotated] = {}
    for split, files, annotated in read_splits(benchmark, protocol_name, where):
        if not files:
            findings.append(Finding("split", split, "missing", "its annotation files are not complete"))
        elif isinstance(annotated, DatasetError):
            findings.append(Finding("split", split, "wrong", str(annotated)))
        else:
            annotated_splits[split] = annotated
            findings.append(_split(split, annotated, protocol))
    clips: Clips = {}
    missing: dict[str, dict[str, str]] = {}
    unread: tuple[LeftOut, ...] = ()
    notes = [
        _cut(split, [text for _, text in annotated.captions], cut_captions)
        for split, annotated in annotated_splits.items()
    ]
    if annotated_splits and where.videos:
        listed = list_videos(benchmark, where, annotated_splits.values())
        unread = listed.unread
        for split, annotated in annotated_splits.items():
            # With the protocol's windows: decoding is tried on what will be read, not on whole files.
            placed = {each: annotated.place(each, listed.find) for each in dict.fromkeys(annotated.clip_ids)}
            clips[split] = [each for each in placed.values() if isinstance(each, Clip)]
            missing[split] = {key: each.reason for key, each in placed.items() if isinstance(each, Missing)}
            owner_named = any(map(missing.get, list(missing)[:-1]))  # who has them need only be said once
            findings.append(
                _videos(split, len(clips[split]), missing[split], None if owner_named else benchmark.owners["clips"])
            )
    if any(missing.values()):
        findings += _packed(benchmark, where, {each for of_split in missing.values() for each in of_split})
    findings += [*(note for note in notes if note), *_not_read(unread)]
    reasons = {folder.id: folder.reason for folder in unread}
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
        first, *others = benchmark.missing(choices, where)
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
            # Said, so that nobody wonders why a file that is there changes nothing.
            yield Finding("annotation file", name, "unused", "recognised; nothing is read from it here")


def _split(name: str, annotated: Annotated, protocol: Protocol) -> Finding:
    size = f"{counted(len(set(annotated.clip_ids)), 'clip')}, {counted(len(annotated.captions), 'caption')}"
    published = protocol.published.get(name)
    if published is None or (published.clips, published.captions) == (None, None):
        return Finding("split", name, "ok", f"{size}; nothing is published to compare with")
    notes = "".join(f"; {note}" for note in annotated.notes)
    # A difference is a fault even if every clip is there: numbers on another split stand beside no published ones.
    if differing := differences(annotated, published):
        state: Literal["note", "wrong"] = "note" if published.reported else "wrong"
        return Finding("split", name, state, "; ".join(differing) + notes)
    if published.sha256:
        same = f"the published split (SHA-256 {published.sha256[:12]})"
    else:
        how = "others report" if published.reported else "published"
        same = f"as many captions as {how}" if published.clips is None else f"as many as {how}"
    return Finding("split", name, "ok", f"{size}: {same}{notes}")


def _videos(split: str, n_found: int, missing: Mapping[str, str], owner: str | None = None) -> Finding:
    total = n_found + len(missing)
    if not missing:
        return Finding("video files", split, "ok", f"all {total:,} are there" if total > 1 else "it is there")
    source = f": get them from {owner}" if owner else ""
    return Finding("video files", split, "missing", f"{n_found:,} of {total:,} are there{source}")


def _packed(benchmark: Benchmark, where: Places, missing: set[str]) -> Iterator[Finding]:
    """What of the missing clips lies beside in archives, which are listed and not unpacked."""
    for archive in find_archives(where.videos):
        try:
            contents = list_archive(archive)
        except DatasetError as fault:
            yield Finding("video files", archive.name, "missing", str(fault))
            continue
        names = [PurePosixPath(name).name for name in contents.videos]
        ids = {benchmark.id_of(name) if benchmark.id_of else clip_name(name) for name in names}
        text = f"{counted(len(names), 'video')} packed in it, {len({*ids, *names} & missing):,} of those missing"
        if contents.refused:
            stay = "stays" if len(contents.refused) == 1 else "stay"
            text += f"; {counted(len(contents.refused), 'member')} {stay} packed ({contents.refused[0].reason})"
        yield Finding("video files", archive.name, "note", text, how_to_unpack([archive.paths[0]]))


def _cut(split: str, captions: Sequence[str], cut_captions: CutCaptions) -> Finding | None:
    """Nothing of the data set is lost; what a model makes of it is."""
    sentence = cut_captions(captions)
    return None if sentence is None else Finding("notes", split, "note", sentence)


def _not_read(unread: Sequence[LeftOut]) -> list[Finding]:
    """One line per reason, with the first names."""
    by_reason: dict[str, list[str]] = {}
    for place in unread:
        by_reason.setdefault(place.reason, []).append(place.id)
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
        all_clips = counted(len(split.clips) + len(split.left_out), "clip")
        size = f"{all_clips}, {counted(len(split.captions), 'caption')}"
        findings.append(Finding("split", split.name, "ok", size))
    missing = {split.name: {clip.id: clip.reason for clip in split.left_out} for split in dataset.splits.values()}
    findings += [_videos(split.name, len(split.clips), missing[split.name]) for split in dataset.splits.values()]
    clips = {split.name: list(split.clips) for split in dataset.splits.values()}
    findings += _copies(clips)
    findings += [Finding("notes", "", "note", note) for note in dataset.notes]
    cut = [_cut(split.name, split.captions, cut_captions) for split in dataset.splits.values()]
    findings += [*(note for note in cut if note), *_not_read(dataset.unread)]
    folders = [tuple(path for path in (given or root,) if path) for given in (annotations, videos)]
    reasons = {place.id: place.reason for place in dataset.unread}
    report = CheckReport(name, protocol, folders[0], folders[1], tuple(findings), missing, reasons)
    return report, clips


def _undecodable(
    clips: Clips, workers: int | None, timeout_s: float, progress: Progress | None
) -> dict[str, dict[str, str]]:
    every = [(split, clip) for split, of_split in clips.items() for clip in of_split]
    reasons: dict[str, dict[str, str]] = {split: {} for split in clips}
    results = run_isolated(_decodes, (clip for _, clip in every), workers=workers, timeout_s=timeout_s)
    for done, ((split, clip), (_, result)) in enumerate(zip(every, results, strict=True), start=1):
        if isinstance(result, VideoError):
            reasons[split][clip.id] = str(result)
        if progress:
            progress("decoding clips", done, len(every))
    return reasons


def _decodes(clip: Clip) -> np.ndarray:
    """Nothing, if the clip decodes; raises otherwise."""
    from calmctl.video.frames import read_frames

    # The worker throws the frames away: no pixel has to cross to a process that only asks whether there are any.
    return read_frames(clip, FRAMES, _nothing)


def _nothing(frames: np.ndarray) -> np.ndarray:
    return np.empty((len(frames), 0), np.uint8)


def _decoding(split: str, clips: list[Clip], undecodable: Mapping[str, str]) -> Finding:
    if not undecodable:
        return Finding("decoding", split, "ok", f"all {len(clips):,} decode" if len(clips) > 1 else "it decodes")
    return Finding("decoding", split, "wrong", f"{len(undecodable):,} of {len(clips):,} do not decode")
