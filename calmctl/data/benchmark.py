"""From what annotation files tell to splits of clips that are there."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from calmctl.data.annotations import shown
from calmctl.data.locate import Missing, Places, VideoFiles, listing, places
from calmctl.data.packed import find_archives, how_to_unpack
from calmctl.errors import DatasetError
from calmctl.files import sha256_file
from calmctl.samples import Clip, Dataset, LeftOut, Span, Split
from calmctl.words import counted


@dataclass(frozen=True, slots=True)
class VideoPart:
    """The part of a video that a clip is.

    Attributes:
        video: Name of the video, found as a clip id is. Where it is not the clip's own id, a file that goes by the
            clip's id is the segment, cut out already, and is shown whole.
        start_s: Its start in the video, in seconds.
        end_s: Its end; None for the end of the video.
        cut: What the segment's own file is called in some copy, where that is not the clip's id.
    """

    video: str
    start_s: float = 0.0
    end_s: float | None = None
    cut: str = ""


@dataclass(frozen=True, slots=True)
class Annotated:
    """One split as its annotation files tell it, whatever clips are at hand.

    Attributes:
        clip_ids: In the protocol's order.
        captions: (clip id, sentence), in the protocol's order.
        start_s: Start of the window that the protocol shows of every clip, in seconds.
        end_s: End of that window; None for the end of the clip.
        notes: What a report must say about the reading.
        segments: By clip id, of clips that are shown through a window of their own.
        moments: As in `Split`, of `captions`.
    """

    clip_ids: Sequence[str]
    captions: Sequence[tuple[str, str]]
    start_s: float = 0.0
    end_s: float | None = None
    notes: tuple[str, ...] = ()
    segments: Mapping[str, VideoPart] = field(default_factory=dict)
    moments: Sequence[tuple[Span, ...]] = ()

    @classmethod
    def of_rows(cls, rows: Iterable[tuple[str, Sequence[str]]]) -> Annotated:
        """The clips of rows with all their captions, as copies of data sets have them: a row a clip."""
        rows = list(rows)
        return cls([clip for clip, _ in rows], [(clip, text) for clip, texts in rows for text in texts])

    def place(self, clip_id: str, find: Callable[[str], Path | Missing]) -> Clip | Missing:
        """A clip where its file is, or why it is nowhere."""
        segment = self.segments.get(clip_id, VideoPart(clip_id, self.start_s, self.end_s))
        path = find(segment.cut or clip_id)
        if segment.video == clip_id:
            return path if isinstance(path, Missing) else Clip(clip_id, path, segment.start_s, segment.end_s)
        if isinstance(path, Path):
            return Clip(clip_id, path)
        whole = find(segment.video)
        if isinstance(whole, Missing):
            return Missing(f"{whole.reason}, nor of {segment.video}" if whole == path else whole.reason)
        return Clip(clip_id, whole, segment.start_s, segment.end_s)


def untimed_note(moments: Sequence[tuple[Span, ...]]) -> tuple[str, ...]:
    """What a report says of sentences whose published times are none."""
    if not (untimed := sum(not spans for spans in moments)):
        return ()
    ends = "ends before it begins, and has" if untimed == 1 else "end before they begin, and have"
    return (f"{counted(untimed, 'sentence')} {ends} no time here",)


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
    find: Callable[[str], Path | Missing],
    *,
    need_captions: bool = True,
) -> Split:
    """Join the annotations of a split with its clips.

    Args:
        title: Of the dataset, for messages.
        name: Of the split.
        annotated: Its annotations; captions of other clips are ignored.
        find: Gives a clip's file.
        need_captions: Leave out clips without a caption, which can neither be trained on nor be an answer.

    Raises:
        DatasetError: When text is not valid Unicode.
    """
    timed = annotated.moments or [()] * len(annotated.captions)
    captions = [
        (sentence, clip_id, spans)
        for (clip_id, sentence), spans in zip(annotated.captions, timed, strict=True)
        if sentence.strip()
    ]
    captioned = {clip_id for _, clip_id, _ in captions}
    clips: dict[str, Clip] = {}
    left_out: list[LeftOut] = []
    check_text(annotated.clip_ids, f"{title}: a clip id of the {name} split")
    # Lists repeat some clips; each is one candidate.
    for clip_id in dict.fromkeys(annotated.clip_ids):
        clip = annotated.place(clip_id, find)
        if need_captions and clip_id not in captioned:
            left_out.append(LeftOut(clip_id, "no caption in the annotation files"))
        elif isinstance(clip, Missing):
            left_out.append(LeftOut(clip_id, clip.reason))
        else:
            clips[clip_id] = clip
    check_text([sentence for sentence, _, _ in captions], f"{title}: a caption of the {name} split")
    index = {clip_id: position for position, clip_id in enumerate(clips)}
    captions = [caption for caption in captions if caption[1] in index]
    return Split(
        name=name,
        clips=tuple(clips.values()),
        captions=tuple(sentence for sentence, _, _ in captions),
        owners=tuple(index[clip_id] for _, clip_id, _ in captions),
        left_out=tuple(left_out),
        moments=tuple(spans for _, _, spans in captions) if annotated.moments else (),
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
    # A tenth, rounded up: two clips are enough for both splits.
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
    taken = [place for place, owner in enumerate(split.owners) if owner in index]
    return Split(
        name=name,
        clips=tuple(split.clips[position] for position in kept),
        captions=tuple(split.captions[place] for place in taken),
        owners=tuple(index[split.owners[place]] for place in taken),
        moments=tuple(split.moments[place] for place in taken) if split.moments else (),
        # What is missing is counted once, with the part that keeps the name. Nothing is published that carved clips
        # could differ from.
        left_out=split.left_out if name == split.name else (),
        differs=split.differs if name == split.name else (),
    )


# What the published datasets have in common: which files define a split, who has them, and how large it is.


@dataclass(frozen=True, slots=True)
class Published:
    """What is known of a published split.

    Attributes:
        clips: How many; None where no count is known.
        captions: How many; None where no count is known.
        sha256: `split_digest` of it, where the real annotation files were at hand.
        reported: Whether the counts are what others report, and not what was counted or its owners say: another count
            is told, and is no fault.
    """

    clips: int | None
    captions: int | None
    sha256: str | None = None
    reported: bool = False


@dataclass(frozen=True, slots=True)
class Protocol:
    """One published way to split a dataset.

    Attributes:
        files: For each split the sets of annotation files that define it; the first complete set is read.
        read: Reads a split's files, given as {name: path}.
        published: Published sizes and digests of splits.
        val_clips: How many clips to carve from train for validation, where no file defines such a split.
    """

    files: Mapping[str, Sequence[Sequence[str]]]
    read: Callable[[str, Mapping[str, Path]], Annotated]
    published: Mapping[str, Published]
    val_clips: int = 0


@dataclass(frozen=True, slots=True)
class Benchmark:
    """A published dataset.

    Attributes:
        name: As on the command line.
        description: One line.
        owners: Who gives out each annotation file, in words; "clips" for the clips.
        clip_names: How a clip's file is found, in words.
        protocols: By name; "" where there is only one.
        default_protocol: The one taken where none is named.
        caption_protocol: The one for captioning, which needs all references of every clip; None where any does.
        id_of: Clip id of a video file's name, where that is not the name without its last suffix.
        copies: Who has each file of another layout, in words; such files are read, and not asked for.
    """

    name: str
    description: str
    owners: Mapping[str, str]
    clip_names: str
    protocols: Mapping[str, Protocol]
    default_protocol: str = ""
    caption_protocol: str | None = None
    id_of: Callable[[str], str] | None = None
    copies: Mapping[str, str] = field(default_factory=dict)

    def missing(self, choices: Sequence[Sequence[str]], where: Places) -> list[list[str]]:
        """The files of its owners to get, one way or another; ways that only ask for more than another are left out."""
        own = [choice for choice in choices if not any(name in self.copies for name in choice)]
        ways = [[name for name in choice if where.find(name) is None] for choice in own]
        return [way for way in ways if not any(set(other) < set(way) for other in ways)]


def load_benchmark(
    benchmark: Benchmark,
    protocol_name: str,
    root: Path | None,
    *,
    annotations: Path | None = None,
    videos: Path | None = None,
    val_clips: int | None = None,
    val_seed: int = 0,
) -> Dataset:
    """Read the annotation files of one protocol and find its clips.

    Splits whose annotation files are missing are absent (see `Splits`); clips whose file is missing are listed.

    Raises:
        DatasetError: When no split is defined, a file is malformed, or not one clip is found.
    """
    title = f"{benchmark.name} {protocol_name}".strip()
    protocol = benchmark.protocols[protocol_name]
    where = places(benchmark.name, root, annotations, videos)
    annotated_splits: dict[str, Annotated] = {}
    absent: dict[str, str] = {}
    used: dict[Path, None] = {}
    for name, files, annotated in read_splits(benchmark, protocol_name, where):
        if not files:
            absent[name] = str(annotated)
        elif isinstance(annotated, DatasetError):
            raise annotated
        else:
            used |= dict.fromkeys(files.values())
            annotated_splits[name] = annotated
    if not annotated_splits:
        raise DatasetError(next(iter(absent.values())))

    # Clips are looked for last: where no split can be read, what lies in the folders says nothing.
    listed = list_videos(benchmark, where, annotated_splits.values())
    splits = {
        name: replace(
            build_split(title, name, split, listed.find),
            differs=_differences(split, protocol.published.get(name), reported=False),
        )
        for name, split in annotated_splits.items()
    }
    if not any(split.clips for split in splits.values()):
        n_clips = len({clip_id for split in annotated_splits.values() for clip_id in split.clip_ids})
        raise DatasetError(
            f"{title}: not one of its {n_clips:,} clips is in {listing(where.videos)}; get them from "
            f"{benchmark.owners['clips']}, or say where they are with --videos{_packed(where)}"
        )
    notes = [f"annotations: {listing([f'{file.name} (SHA-256 {sha256_file(file)[:12]})' for file in used])}"]
    for name, split in annotated_splits.items():
        reported = _differences(split, protocol.published.get(name), reported=True)
        every = (*split.notes, *_oddities(split), *reported, *splits[name].differs)
        notes += [f"{name}: {note}" for note in every]
    notes += [f"{name}: not one of its clips was found" for name, split in splits.items() if not split.clips]
    notes += absent.values()
    if "val" not in protocol.files and "train" in splits:
        splits, note = carve_val(splits, title, val_clips, protocol.val_clips, val_seed)
        notes.append(note)
    elif val_clips is not None and "val" in protocol.files:
        raise DatasetError(f"{title}: no validation clips can be carved, it has a val split; leave val_clips out")
    if "val" not in protocol.files and "train" in absent:
        absent["val"] = absent["train"]
    return Dataset(benchmark.name, protocol_name, Splits(splits, absent), tuple(notes), listed.unread)


def _packed(where: Places) -> str:
    """What to do about archives that lie where clips are looked for, "" where there are none."""
    archives = find_archives(where.videos)
    if not archives:
        return ""
    lie = "lies" if len(archives) == 1 else "lie"
    how = how_to_unpack([each.paths[0] for each in archives])
    return f"; {listing([each.name for each in archives])} {lie} there packed: {how}"


def read_splits(
    benchmark: Benchmark, protocol_name: str, where: Places
) -> Iterator[tuple[str, Mapping[str, Path], Annotated | DatasetError]]:
    """Each split of a protocol with the files it is read from, none where they are missing, and what they tell.

    What is wrong comes in the place of what they tell: loading raises the first of these, a check tells all.
    """
    title, protocol = f"{benchmark.name} {protocol_name}".strip(), benchmark.protocols[protocol_name]
    for name, choices in protocol.files.items():
        # A complete set alone is read: half of one with half of another would be a split that nobody published.
        files = first_complete(choices, where)
        if files is None:
            ways = benchmark.missing(choices, where)
            owners = dict.fromkeys(benchmark.owners[file] for way in ways for file in way)
            copied = any(file in benchmark.copies for choice in choices for file in choice)
            copies = f"; calmctl data where {benchmark.name} names copies that are read as well" if copied else ""
            yield (
                name,
                {},
                DatasetError(
                    f"{title}: no {name} split, because {', or '.join(map(listing, ways))} cannot be found in "
                    f"{listing(where.annotations)}; get it from {', or '.join(owners)}, or say where it is with "
                    f"--annotations{copies}"
                ),
            )
            continue
        try:
            annotated = protocol.read(name, files)
            _check_names(annotated, f"{title}: the {name} split")
        except DatasetError as fault:
            yield name, files, fault
        else:
            yield name, files, annotated


def first_complete(choices: Sequence[Sequence[str]], where: Places) -> dict[str, Path] | None:
    """The first set of annotation files that is there, {name: path}."""
    for choice in choices:
        files = {name: path for name in choice if (path := where.find(name)) is not None}
        if len(files) == len(choice):
            return files
    return None


def _check_names(split: Annotated, place: str) -> None:
    """Refuse ids that could name something outside the folder of clips."""
    for clip_id in (*split.clip_ids, *(segment.video for segment in split.segments.values())):
        # A second lock: ids are looked up in listings and never joined to a path.
        if clip_id in ("", ".", "..") or set(clip_id) & set("/\\\0"):
            raise DatasetError(f"{place} names {shown(clip_id)}, which is not the name of a clip")


def list_videos(benchmark: Benchmark, where: Places, splits: Iterable[Annotated]) -> VideoFiles:
    """The first folder's files that hold any clip of the dataset."""
    names = {clip_id for split in splits for clip_id in split.clip_ids}
    names |= {segment.video for split in splits for segment in split.segments.values()}
    listed = VideoFiles(where.videos[0], benchmark.id_of)
    for folder in where.videos[1:]:
        # One clip is enough: a folder that holds some of them is the one that is meant, and its gaps are told.
        if any(isinstance(listed.find(name), Path) for name in names):
            break
        listed = VideoFiles(folder, benchmark.id_of)
    return listed


def _differences(split: Annotated, published: Published | None, *, reported: bool) -> tuple[str, ...]:
    """`differences` from what is published, or from what others only report, which are no fault."""
    return () if published is None or published.reported != reported else tuple(differences(split, published))


def _oddities(split: Annotated) -> list[str]:
    """A note for what could not be used."""
    notes = []
    blank = sum(not sentence.strip() for _, sentence in split.captions)
    repeated = len(split.clip_ids) - len(set(split.clip_ids))
    if blank:
        notes.append(f"{counted(blank, 'empty caption')} left out")
    if repeated:
        are = "is" if repeated == 1 else "are"
        notes.append(f"{counted(repeated, 'clip')} {are} listed more than once; each is taken once")
    return notes


def differences(split: Annotated, published: Published) -> list[str]:
    """In what a split that was read is not the published one; nothing where it is, as far as that is known."""
    sizes = (
        ("clip", len(set(split.clip_ids)), published.clips),
        ("caption", len(split.captions), published.captions),
    )
    how = "reported by others" if published.reported else "published"
    differing = [
        f"{counted(count, what)} in the annotation files, {known:,} {how}"
        for what, count, known in sizes
        if known is not None and count != known
    ]
    # Counts first, because they say how it differs. A digest is known where the real files were at hand.
    if not differing and published.sha256 not in (None, split_digest(split)):
        differing.append("as many clips and captions as published, but not the same ones (their digest differs)")
    return differing
