"""Hits as files of their own: packets are copied, and nothing is encoded again."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

import av

from calmctl.errors import MACHINE_ERRORS, BadInput, RunFailed, VideoError
from calmctl.files import make_folder
from calmctl.search.results import Hit
from calmctl.video.inspect import open_video

_COPIED = ("audio", "subtitle")


def require_folder_for_cuts(folder: Path) -> None:
    """Raise `BadInput` where hits cannot be written into `folder` because it is something else."""
    if folder.exists() and not folder.is_dir():
        raise BadInput(f"--cut {folder} is a file; name a folder that hits are written into")


def cut(hit: Hit, folder: Path) -> Path:
    """Write a hit into a new file of the same container, and return it; no file is replaced.

    A picture can be decoded from a key frame on: the file begins at the last one before the hit, and so may begin
    earlier by the distance of two.

    Raises:
        BadInput: The hit's file is not known.
        VideoError: The container or the file does not allow it.
        RunFailed: The folder cannot be written.
    """
    if hit.file is None:
        raise BadInput(f"{hit.clip}: its file is not known; say where clips lie with --videos")
    make_folder(folder)
    path = _unused(folder, hit)
    # An unfinished file has another name, and the ending tells the container.
    begun = path.with_name(f".{path.stem}.tmp{path.suffix}")
    try:
        _copy(hit, begun)
        os.replace(begun, path)
    except (OSError, av.FFmpegError) as fault:
        # FFmpeg's errors are errors of the system as well, where the disk and not the container is to blame.
        if isinstance(fault, av.FFmpegError) and fault.errno not in MACHINE_ERRORS:
            what = f"{hit.file}: its container does not allow a cut without encoding ({fault.strerror})"
            raise VideoError(what) from None
        raise RunFailed(f"cannot write {path}: {fault.strerror or fault}") from None
    finally:
        with suppress(OSError):
            begun.unlink(missing_ok=True)
    return path


def _copy(hit: Hit, path: Path) -> None:
    assert hit.file is not None
    # The reader's own way to open a file: no playlist, no other file, no address.
    source, video = open_video(hit.file)
    # An absolute path cannot be taken for a protocol.
    with source, av.open(os.path.abspath(path), "w") as target:
        streams = [each for each in source.streams if each is video or each.type in _COPIED]
        copies = {each.index: target.add_stream_from_template(each) for each in streams}
        # The file's own clock, which a hit has too, in microseconds.
        source.seek(round(hit.start_s * 1_000_000), backward=True, any_frame=False)
        first_s = None
        ended: set[int] = set()
        for packet in source.demux(streams):
            if packet.dts is None:  # the end of a stream
                continue
            time_s = float((packet.pts if packet.pts is not None else packet.dts) * packet.time_base)
            if first_s is None:
                if packet.stream.index != video.index or not packet.is_keyframe:
                    continue
                first_s = float(packet.dts * packet.time_base)
            if hit.end_s is not None and float(packet.dts * packet.time_base) >= hit.end_s:
                ended.add(packet.stream.index)
                if len(ended) == len(streams):
                    break
                continue
            if time_s < first_s:
                continue
            shift = round(first_s / packet.time_base)
            packet.pts = None if packet.pts is None else packet.pts - shift
            packet.dts = packet.dts - shift
            packet.stream = copies[packet.stream.index]
            target.mux(packet)


def _unused(folder: Path, hit: Hit) -> Path:
    assert hit.file is not None
    end = "end" if hit.end_s is None else f"{hit.end_s:z.1f}"
    stem, suffix = f"{hit.file.stem}-{hit.start_s:z.1f}-{end}", hit.file.suffix
    number, path = 1, folder / f"{stem}{suffix}"
    while path.exists():
        number += 1
        path = folder / f"{stem}-{number}{suffix}"
    return path
