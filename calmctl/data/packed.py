"""What copies of data sets come packed in: zip, tar and its parts, webdataset, parquet with videos inside.

Archives are listed without unpacking anything. Unpacking writes videos and captions alone, as regular files below one
folder, by names that cannot lead out of it, and no more bytes than a limit, whatever an archive claims.
"""

from __future__ import annotations

import io
import json
import lzma
import os
import re
import shlex
import tarfile
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, BinaryIO

from calmctl.data.annotations import open_parquet, read_lines, shown
from calmctl.data.locate import VIDEO_SUFFIXES
from calmctl.errors import DatasetError, RunFailed
from calmctl.files import NotJson, make_folder, open_regular, parse_json, write_text
from calmctl.runtime import require_packages
from calmctl.samples import LeftOut
from calmctl.words import Progress

_PART = re.compile(r"(.+\.tar)\.?(?:part)?[-_.]?(\d{2,}|[a-z]{2})\Z")
"""DiDeMo_Videos_mp4_train.tar.part-000, X.tar.00, X.tar.aa: pieces of a tar, in the order of their names."""
_COMPRESSED = re.compile(r"\.(?:tgz|tbz2?|txz|tar\.(?:gz|bz2|xz|zst))\Z", re.IGNORECASE)
_MOST_MEMBERS = 2_000_000
"""Members of an archive that are looked at (our choice)."""
_MOST_TEXT = 1 << 20
"""Bytes that are read of a text beside a video (our choice)."""
_PIECE = 1 << 20
GROWTH = 3
"""Videos are packed already: an archive that unfolds to more than this many times its size is refused, unless asked."""
# What the libraries raise for archives that are cut short, damaged, encrypted, or of another kind.
_DAMAGED = (
    *(zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError),
    *(EOFError, ValueError, NotImplementedError, RuntimeError),
)
_TEXTS = (".txt", ".json", ".caption")
_CAPTIONS = ("caption", "captions", "text", "sentence", "enCap")
_NAMES = ("video_id", "videoID", "file_name", "video_path", "id", "key")


@dataclass(frozen=True, slots=True)
class Archive:
    """An archive, or all parts of one.

    Attributes:
        name: Of the whole.
        paths: Its parts in order.
    """

    name: str
    paths: tuple[Path, ...]

    @property
    def size(self) -> int:
        """Bytes on disk."""
        return sum(path.stat().st_size for path in self.paths)


@dataclass(slots=True)
class Contents:
    """What is in an archive.

    Attributes:
        videos: Size in bytes by name.
        refused: Members that are left where they are, with reasons.
        others: How many members are neither videos nor texts.
    """

    videos: dict[str, int] = field(default_factory=dict)
    refused: list[LeftOut] = field(default_factory=list)
    others: int = 0


def find_archives(folders: Sequence[Path]) -> list[Archive]:
    """The archives that lie in folders, each once; parts of one are one."""
    parts_of: dict[str, list[Path]] = {}
    for folder in dict.fromkeys(path.resolve() for path in folders):
        try:
            paths = sorted(folder.iterdir())
        except OSError:  # one that is none, or cannot be read, which the listing of its clips tells
            continue
        for path in paths:
            part = _part_of(path)
            if part or path.suffix.lower() in (".zip", ".tar"):
                parts_of.setdefault(str(folder / part[1]) if part else str(path), []).append(path)
    return [Archive(Path(name).name, tuple(paths)) for name, paths in parts_of.items()]


def archive_of(path: Path) -> Archive:
    """The archive that a file is, with its other parts where it is one of several."""
    part = _part_of(path)
    if part is None or not path.exists():
        return Archive(path.name, (path,))
    parts = sorted(each for each in path.parent.iterdir() if (one := _part_of(each)) and one[1] == part[1])
    return Archive(part[1], tuple(parts))


def _part_of(path: Path) -> re.Match[str] | None:
    """The whole's name and the part's, of a part of a tar."""
    part = _PART.fullmatch(path.name)
    # X.tar.gz is compressed, unless it is the 182nd of X.tar.aa, X.tar.ab ...
    compressed = part is not None and part[2] in ("gz", "xz", "bz", "lz")
    return None if compressed and not path.with_name(f"{path.name[:-2]}aa").exists() else part


def may_be_packed(name: str) -> bool:
    """Whether a file's name is that of an archive, of a part of one, or of a table that may hold videos."""
    return bool(_PART.fullmatch(name)) or name.lower().endswith((".zip", ".tar", ".parquet"))


def how_to_unpack(paths: Sequence[Path], out: Path | None = None) -> str:
    """The command that unpacks some archives (of one in parts any), as a shell takes it: beside the first, or to `out`.

    Of many only their pattern is named.
    """
    ways = [shlex.quote(str(path)) for path in paths]
    if len(ways) > 1:
        ways = [f"{shlex.quote(str(path.parent))}/*{path.suffix}" for path in paths]
    target = shlex.quote(str(out or paths[0].parent / "videos"))
    return f"calmctl data unpack {' '.join(dict.fromkeys(ways))} --out {target}"


def list_archive(archive: Archive) -> Contents:
    """What is in a zip or a tar; nothing is unpacked.

    Raises:
        DatasetError: It cannot be read.
    """
    contents = Contents()
    with _opened(archive) as opened:
        for name, size, why, _ in _members(archive, opened):
            _take(contents, name, size, why)
    return contents


def _take(contents: Contents, name: str, size: int, why: str | None) -> bool:
    """Put a member where it belongs; whether it is one to unpack."""
    suffix = PurePosixPath(name).suffix.lower()
    if why is None and name in contents.videos:
        why = "stands twice in the archive"
    if why is not None:
        contents.refused.append(LeftOut(shown(name), why))
    elif suffix in VIDEO_SUFFIXES:
        contents.videos[name] = size
        return True
    else:
        contents.others += suffix not in _TEXTS
    return why is None and suffix in _TEXTS


def unsafe(name: str) -> str | None:
    """Why a member's name is none to write to; None for a plain path below."""
    parts = PurePosixPath(name).parts
    too_long = len(name) > 1000 or any(len(part.encode("utf-8", "replace")) > 255 for part in parts)
    if not parts or "\0" in name or too_long:
        return "no name of a file"
    if "\\" in name or ".." in parts or name.startswith("/") or PureWindowsPath(name).drive:
        return "leads out of the folder"
    if any(part.startswith(".") for part in parts):
        return "a hidden name"
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        return "no name of a file"
    return None


class _Joined(io.RawIOBase):
    """Files one behind the other as one, which is what a tar in parts is."""

    def __init__(self, handles: Sequence[BinaryIO]) -> None:
        self._handles, self._starts, self._place = handles, [0], 0
        for handle in handles:
            self._starts.append(self._starts[-1] + handle.seek(0, os.SEEK_END))

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._place, os.SEEK_END: self._starts[-1]}[whence]
        self._place = max(0, base + offset)
        return self._place

    def readinto(self, buffer: Any) -> int:
        number = next((n for n, start in enumerate(self._starts[1:]) if self._place < start), None)
        if number is None:
            return 0
        self._handles[number].seek(self._place - self._starts[number])
        piece = self._handles[number].read(min(len(buffer), self._starts[number + 1] - self._place))
        buffer[: len(piece)] = piece
        self._place += len(piece)
        return len(piece)


@contextmanager
def _opened(archive: Archive) -> Iterator[zipfile.ZipFile | tarfile.TarFile]:
    with ExitStack() as stack:
        try:
            handles = [stack.enter_context(open_regular(path)) for path in archive.paths]
            if archive.name.lower().endswith(".zip"):
                yield stack.enter_context(zipfile.ZipFile(handles[0]))
            else:
                joined: Any = handles[0] if len(handles) == 1 else io.BufferedReader(_Joined(handles), _PIECE)
                yield stack.enter_context(tarfile.open(fileobj=joined, mode="r:"))
        except OSError as fault:
            raise DatasetError(f"cannot read {archive.paths[0]}: {fault.strerror or fault}") from None
        except _DAMAGED as fault:
            compressed = "; it is compressed: make a plain .tar of it first (gzip -d, xz -d)"
            advice = compressed if _COMPRESSED.search(archive.name) else ""
            raise DatasetError(
                f"{archive.paths[0]}: not a zip or tar that can be read ({str(fault)[:80]}){advice}"
            ) from None


def _members(archive: Archive, opened: zipfile.ZipFile | tarfile.TarFile) -> Iterator[tuple[str, int, str | None, Any]]:
    """Name, size, why it is not taken, and the library's own record of every member that is no folder."""
    members: Iterable[Any] = opened.infolist() if isinstance(opened, zipfile.ZipFile) else opened
    for count, member in enumerate(members):
        if count == _MOST_MEMBERS:
            raise DatasetError(f"{archive.paths[0]}: more than {_MOST_MEMBERS:,} members")
        if isinstance(member, zipfile.ZipInfo):
            name, size, is_folder = member.filename, member.file_size, member.filename.endswith("/")
            is_file = (member.external_attr >> 28) in (0, 8)  # a link that a zip holds is no regular file
        else:
            name, size, is_file, is_folder = member.name, member.size, member.isreg(), member.isdir()
            opened.members.clear()  # type: ignore[union-attr]  # the library would keep every header
        if not is_folder:
            name = name.removeprefix("./")
            yield name, size, unsafe(name) or (None if is_file else "a link or a device, and no file"), member


# Unpacking.


@dataclass(slots=True)
class Unpacked:
    """What was unpacked.

    Attributes:
        videos: Videos written, or there already with the same size.
        bytes: Of these.
        captions: Captions written to captions.jsonl.
        refused: Members that were not taken, with reasons.
        others: Members that are neither videos nor texts.
    """

    videos: int = 0
    bytes: int = 0
    captions: int = 0
    refused: list[LeftOut] = field(default_factory=list)
    others: int = 0


def unpack(
    paths: Sequence[Path], out: Path, *, most_bytes: int | None = None, progress: Progress | None = None
) -> Unpacked:
    """Unpack the videos of archives and parquet files, and the captions beside them, into a folder that can be read.

    Args:
        paths: .zip, .tar (webdataset's too) or parts of one, .parquet with videos inside.
        out: The folder; made if missing. Files that are there with the same size stay.
        most_bytes: No more than this is written; None: `GROWTH` times the size of the archives.
        progress: Told of bytes.

    Raises:
        DatasetError: An archive cannot be read, or holds more than the limit.
        BadInput: A parquet file, and pyarrow is not installed.
        RunFailed: The folder cannot be written.
    """
    archives = list({each.paths: each for each in map(archive_of, paths)}.values())
    try:
        packed = sum(each.size for each in archives)
    except OSError as fault:
        raise DatasetError(f"cannot read {fault.filename}: {fault.strerror}") from None
    if any(map(_is_parquet, archives)):  # before the folder is made
        require_packages(["pyarrow"], extra="parquet", what="reading .parquet")
    limit = max(GROWTH * packed, _PIECE) if most_bytes is None else most_bytes
    make_folder(out)
    done, captions, texts_bytes = Unpacked(), dict[str, list[str]](), 0
    for archive in archives:
        read = _parquet_videos if _is_parquet(archive) else _archive_videos
        for name, size, content, texts in read(archive, done):
            known = captions.get(name, [])
            # webdataset has one caption twice, as .txt and in .json: it is one query.
            if fresh := [text for text in texts if text not in known]:
                texts_bytes += sum(map(len, fresh))
                if done.bytes + texts_bytes > limit:
                    raise _beyond_limit(archive, name)
                captions[name] = [*known, *fresh]
            if content is not None:
                there = out / PurePosixPath(name)
                kept = there.stat().st_size if there.is_file() else None
                done.bytes += size if kept == size else _write(there, content, limit - done.bytes, archive)
                done.videos += 1
                if progress:
                    progress("unpacking videos", min(done.bytes, packed), packed)
    # A text beside no video, such as a README, describes none; videos may have come from an earlier archive.
    videos = [path.relative_to(out) for path in out.rglob("*") if path.suffix.lower() in VIDEO_SUFFIXES]
    described = {each.as_posix() for path in videos for each in (path, path.with_suffix(""))}
    for name in sorted(captions.keys() - described):
        del captions[name]
        done.refused.append(LeftOut(shown(name), "a text beside no video"))
    done.captions = sum(map(len, captions.values()))
    if captions:
        _add_captions(out / "captions.jsonl", captions)
    return done


def _add_captions(path: Path, captions: dict[str, list[str]]) -> None:
    """Write captions, behind those of other videos that an earlier archive brought."""
    rows = [line for _, line in read_lines(path)] if path.is_file() else []
    try:
        rows = [row for row in rows if parse_json(row).get("video") not in captions]
    except (NotJson, AttributeError):
        raise DatasetError(f"{path}: a line of it is none that calmctl wrote; name another folder") from None
    rows += [
        json.dumps({"video": name, "caption": text}, ensure_ascii=False)
        for name, texts in captions.items()
        for text in texts
    ]
    write_text(path, "\n".join([*rows, ""]))


_Item = tuple[str, int, BinaryIO | None, list[str]]
"""A video's name, bytes, content and captions; or, without content, the captions of a video of that name."""


def _archive_videos(archive: Archive, done: Unpacked) -> Iterator[_Item]:
    contents = Contents()
    with _opened(archive) as opened:
        for name, size, why, member in _members(archive, opened):
            if not _take(contents, name, size, why):
                continue
            content = opened.open(member) if isinstance(opened, zipfile.ZipFile) else opened.extractfile(member)
            if content is None:
                continue
            with content:
                if name in contents.videos:
                    yield name, size, content, []  # type: ignore[misc]
                elif texts := _texts(content.read(_MOST_TEXT), name):
                    yield str(PurePosixPath(name).with_suffix("")), 0, None, texts
    done.refused += contents.refused
    done.others += contents.others


def _texts(content: bytes, name: str) -> list[str]:
    """The captions in a text that lies beside a video; nothing where it holds none."""
    try:
        text = content.decode("utf-8-sig")
        if not name.lower().endswith(".json"):
            return [text.strip()] if text.strip() else []
        record = parse_json(text)
    except (UnicodeDecodeError, NotJson):
        return []
    return _captions_of(record) if isinstance(record, dict) else []


def _captions_of(record: dict[str, Any]) -> list[str]:
    captions: Any = next((record[key] for key in _CAPTIONS if record.get(key) is not None), [])
    captions = captions if isinstance(captions, list) else [captions]
    return [each for each in captions if isinstance(each, str) and each.strip()]


def _is_parquet(archive: Archive) -> bool:
    return archive.name.lower().endswith(".parquet")


def _parquet_videos(archive: Archive, done: Unpacked) -> Iterator[_Item]:
    path = archive.paths[0]
    with open_parquet(path) as table:
        for number, batch in enumerate(table.iter_batches(1)):  # a row is a video: one at a time is in memory
            row = batch.to_pylist()[0]
            video, name = _video_of(row, f"{path.stem}-{number:05d}")
            if video is None:
                done.others += 1
            elif why := unsafe(name):
                done.refused.append(LeftOut(shown(name), why))
            else:
                yield name, len(video), io.BytesIO(video), _captions_of(row)


def _video_of(row: dict[str, Any], otherwise: str) -> tuple[bytes | None, str]:
    """The bytes of a row's video, and the name of its file."""
    for value in row.values():
        content = value.get("bytes") if isinstance(value, dict) else value
        if isinstance(content, bytes) and len(content) > 16:
            name = value.get("path") if isinstance(value, dict) else None
            names = [name, *(row.get(key) for key in _NAMES)]
            name = next((str(each) for each in names if isinstance(each, str | int) and str(each)), otherwise)
            return content, name if PurePosixPath(name).suffix.lower() in VIDEO_SUFFIXES else f"{name}.mp4"
    return None, ""


def _read(content: BinaryIO, archive: Archive, name: str) -> bytes:
    try:
        return content.read(_PIECE)
    except (*_DAMAGED, OSError) as fault:  # bzip2 calls damage an OSError
        raise DatasetError(f"{archive.paths[0]}: {shown(name)} in it cannot be read ({str(fault)[:80]})") from None


def _write(path: Path, content: BinaryIO, room: int, archive: Archive) -> int:
    """Write one file, no more than `room` bytes; returns how many it has."""
    part = path.with_name(f".{path.name}.part")
    written = 0
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with part.open("wb") as handle:
            while piece := _read(content, archive, path.name):
                written += len(piece)
                if written > room:
                    break
                handle.write(piece)
        if written <= room:
            part.replace(path)
    except OSError as fault:
        raise RunFailed(f"cannot write {path}: {fault.strerror or fault}") from None
    finally:
        with suppress(OSError):  # it is written anew the next time
            part.unlink(missing_ok=True)
    if written > room:
        raise _beyond_limit(archive, path.name)
    return written


def _beyond_limit(archive: Archive, name: str) -> DatasetError:
    return DatasetError(
        f"{archive.paths[0]}: it unfolds to more than its limit at {shown(name)}; if it does mean that much, give a "
        "larger one with --limit-gb"
    )
