"""Open a video file far enough to know whether, and how, it can be decoded.

The readers of `readers.py` both start from what is found here: one time line, one orientation. Every way in
which a file can be unusable is told apart here too, in words that fit a list ("empty file", "audio only").
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np

from calmctl.data.layout import utf8_name
from calmctl.errors import VideoError

# FFmpeg would follow what these name to other files, or to the network.
_PLAYLISTS = (b"#EXTM3U", b"ffconcat", b"<?xml", b"<MPD", b"v=0")
# Formats whose header says how long the video is, and those that say it for the whole file only. The others
# (MPEG-TS, MPEG-PS) are measured from the file itself, so a truncated one is merely a shorter one.
_DECLARE_STREAM = {"mov", "avi"}
_DECLARE_FILE = {"matroska", "flv", "asf"}
_LEAST_PRESENT = 0.9


@dataclass(frozen=True, slots=True)
class Source:
    """A video file that opens.

    Attributes:
        path: The file.
        container: FFmpeg's first name for the format ("mov", "avi", "matroska", ...).
        codec: FFmpeg's name for the codec ("h264", ...).
        width: Displayed width in pixels, after rotation.
        height: Displayed height in pixels, after rotation.
        starts_s: Start of every frame in seconds from the first, in display order, float64 [N].
        duration_s: From the start of the first frame to the end of the last.
        timed: The file says when each frame is shown. Otherwise (AVI, some MPEG-PS, bare H.264) it gives only the
            order of decoding and a rate, and the n-th frame to come out belongs to the n-th place in `starts_s`.
        orientation: Upper left of the display matrix (a, b, c, d); (1, 0, 0, 1) shows frames as stored.
        closed_groups: Every key frame can be decoded without anything before it, and nothing after it in the
            file is shown before it; only then is counting frames from a key frame right.
    """

    path: Path
    container: str
    codec: str
    width: int
    height: int
    starts_s: np.ndarray
    duration_s: float
    timed: bool
    orientation: tuple[int, int, int, int]
    closed_groups: bool


def inspect(path: Path) -> Source:
    """Open `path`, read its packets and decode its first frame.

    Raises:
        VideoError: The short reason why it cannot be used.
    """
    head = _check_file(path)
    with reasons(head), closing(_open(path)) as container:
        return _read(path, container)


def open_video(path: Path) -> tuple[Any, Any]:
    """An open PyAV container, to be closed by the caller, and its best video stream."""
    container = _open(path)
    return container, _video_stream(container)


def upright(frame: np.ndarray, orientation: tuple[int, int, int, int]) -> np.ndarray:
    """Turn and mirror a stored frame [H, W, 3] into the displayed one.

    A stored point (x, y) is shown at (a x + c y, b x + d y), y pointing down; the translation of the matrix
    only brings the picture back to the corner.
    """
    a, b, c, d = orientation
    if not a:  # a quarter turn: columns become rows
        frame, a, d = frame.swapaxes(0, 1), c, b
    return frame[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1]


@contextmanager
def reasons(head: bytes = b"") -> Iterator[None]:
    """Turn what PyAV raises into `VideoError`; `head` is the start of the file."""
    try:
        yield
    except (av.error.InvalidDataError, av.error.EOFError):
        if head[4:8] == b"ftyp":
            raise VideoError("truncated or damaged: an MP4 without a readable index") from None
        raise VideoError("not a video, or damaged beyond opening") from None
    except (av.error.FFmpegError, IndexError) as error:  # IndexError: a stream that appears half-way in damage
        raise VideoError(f"damaged: {getattr(error, 'strerror', None) or error}") from None


def _check_file(path: Path) -> bytes:
    """Its first bytes, if `path` is a file with anything in it."""
    if unusable := utf8_name(os.fspath(path))[1]:
        raise VideoError(unusable)
    try:
        mode = os.stat(path).st_mode
        if stat.S_ISDIR(mode):
            raise VideoError("a folder, not a file")
        if not stat.S_ISREG(mode):
            raise VideoError("not a regular file")
        with path.open("rb") as handle:
            head = handle.read(16)
    except FileNotFoundError:
        raise VideoError("dangling link" if path.is_symlink() else "missing file") from None
    except OSError as error:
        raise VideoError(f"cannot be read: {error.strerror or error}") from None
    if not head:
        raise VideoError("empty file")
    if head.lstrip().startswith(_PLAYLISTS):
        raise VideoError("a playlist, not a video")
    return head


def _open(path: Path) -> Any:
    # An absolute path cannot be taken for a protocol ("concat:...") by FFmpeg.
    return av.open(os.path.abspath(path), metadata_errors="replace")


def _video_stream(container: Any) -> Any:
    """The stream a player would show, decoding in one thread (files are what is done in parallel)."""
    if container.format.name.endswith(("_pipe", "image2")):
        raise VideoError("a still image, not a video")
    video = container.streams.best("video")
    if video is None or video.disposition & av.stream.Disposition.attached_pic:
        raise VideoError("audio only" if container.streams.audio else "no video stream")
    if video.codec_context is None:
        raise VideoError("no decoder for its codec")
    video.codec_context.thread_count = 1
    return video


def _read(path: Path, container: Any) -> Source:
    """Read every packet (cheap: nothing but the first frame is decoded) and lay out the time line."""
    video = _video_stream(container)
    name = container.format.name.split(",")[0]
    rate = video.average_rate or video.guessed_rate
    gap_s = float(1 / rate) if rate else 0.0
    shown: list[tuple[float, float]] = []  # start and length of every frame, in file order
    furthest_s = 0.0
    stamped, timed = True, name != "avi"
    closed = True
    first: Any = None
    for packet in container.demux(*(container.streams if name in _DECLARE_FILE else [video])):
        if not packet.size:  # the end of a stream, or an AVI's "same picture again"
            continue
        tick_s = float(packet.time_base)
        stamp = packet.pts if packet.pts is not None else packet.dts
        start_s = stamp * tick_s if stamp is not None else 0.0
        length_s = (packet.duration or 0) * tick_s
        furthest_s = max(furthest_s, start_s + length_s)
        if packet.stream is not video:
            continue
        first = first or _decoded(packet)
        if packet.is_discard:  # outside the edit list: decoded, never shown; decord counts it
            closed = False
            continue
        if video.codec.canonical_name == "h264":
            closed = closed and (not packet.is_keyframe or _is_idr(packet))
        else:
            closed = closed and (not shown or start_s > shown[-1][0])
        timed = timed and packet.pts is not None
        stamped = stamped and stamp is not None
        shown.append((start_s, length_s or gap_s))
    first = first or _decoded(None, video)
    if not shown:
        raise VideoError("no frames")
    starts_s, lengths_s = np.array(sorted(shown), dtype=np.float64).T
    if not stamped:
        starts_s = np.arange(len(shown)) * gap_s
    duration_s = float(starts_s[-1] + lengths_s[-1] - starts_s[0])
    if name in _DECLARE_STREAM:
        _check_length(duration_s, float(video.duration * video.time_base) if video.duration else 0.0)
    elif name in _DECLARE_FILE:
        _check_length(furthest_s, container.duration / 1e6 if container.duration else 0.0)
    if first is None:
        raise VideoError("damaged: no frame can be decoded")
    orientation = _orientation(first)
    sideways = not orientation[0]
    return Source(
        path=path,
        container=name,
        codec=video.codec.canonical_name,
        width=first.height if sideways else first.width,
        height=first.width if sideways else first.height,
        starts_s=starts_s - starts_s[0],
        duration_s=duration_s,
        timed=timed,
        orientation=orientation,
        closed_groups=closed,
    )


def _decoded(packet: Any, video: Any = None) -> Any:
    """First frame that `packet` completes; the end of the stream where it is None; None for none."""
    try:
        frames = packet.decode() if packet is not None else video.codec_context.decode(None)
    except av.error.FFmpegError:  # the reader counts these; here the next packet may do
        return None
    return frames[0] if frames else None


def _is_idr(packet: Any) -> bool:
    """Whether an H.264 key frame resets the decoder, read off its first picture slice (NAL types 5 and 1).

    Only length-prefixed units are understood, as MP4, Matroska and FLV have them.
    """
    data = memoryview(packet)
    position = 0
    while position + 5 <= len(data):
        kind = data[position + 4] & 0x1F
        if kind in (1, 5):
            return kind == 5
        position += 4 + int.from_bytes(data[position : position + 4], "big")
    return False


def _check_length(present_s: float, declared_s: float) -> None:
    if present_s < _LEAST_PRESENT * declared_s:
        raise VideoError(f"truncated: {present_s:.1f} s of {declared_s:.1f} s are in the file")


def _orientation(frame: Any) -> tuple[int, int, int, int]:
    """The display matrix to the nearest quarter turn, each entry -1, 0 or 1."""
    matrix = frame.side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return (1, 0, 0, 1)
    a, b, _, c, d = (int(entry) for entry in np.frombuffer(matrix, dtype=np.int32)[:5])
    if abs(b) + abs(c) > abs(a) + abs(d):
        return (0, -1 if b < 0 else 1, -1 if c < 0 else 1, 0)
    return (-1 if a < 0 else 1, 0, 0, -1 if d < 0 else 1)
