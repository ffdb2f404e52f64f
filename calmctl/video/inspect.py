"""Open a video file far enough to know whether, and how, it can be decoded.

The readers of `frames.py` both start from what is found here: one time line, one orientation. Every way in
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

from calmctl.errors import VideoError
from calmctl.words import utf8_name

# The containers that FFmpeg may open a file as: those that hold their own frames. Its others (playlists, lists of
# files, descriptions of streams, numbered pictures) lead to more files or to the network.
_CONTAINERS = (
    "mov,matroska,avi,flv,live_flv,asf,asf_o,mpegts,mpeg,mpegvideo,ogg,gif,apng,h261,h263,h264,hevc,vvc,m4v,mjpeg,av1,obu,"
    "ivf,vc1,vc1test,dirac,cavsvideo,yuv4mpegpipe,dv,mxf,nut,rm,wtv,3dostr,mp3,aac,ac3,eac3,flac,wav,w64,aiff,caf,amr,au"
)
MOST_PIXELS = 1 << 26
"""Of a frame, 8192 x 8192 (our choice): refused before it is decoded, and by the decoder where it comes later."""
MOST_ASPECT = 64
"""Long side of a frame by its short one (our choice): where the short one is scaled to fit, the long one is endless."""
MOST_PACKETS = 10_000_000
"""Of a file (our choice): 46 hours at 60 frames per second."""
MOST_PACKET_BYTES = 1 << 28
"""Of one frame as it is stored (our choice): a raw one of `MOST_PIXELS`, four bytes each."""
# These give one time a packet, and that is when to decode it.
_ORDER_ONLY = {"avi", "asf"}
# These store no lengths of frames; FFmpeg makes them up from the codec's usual rate.
_NO_LENGTHS = {"asf", "mpegts", "mpeg"}
# Formats whose header says how long the video is, and those that say it for the whole file only. The others
# (MPEG-TS, MPEG-PS) are measured from the file itself, so a truncated one is merely a shorter one.
_DECLARE_STREAM = {"mov", "avi"}
_DECLARE_FILE = {"matroska", "flv", "asf"}
_LEAST_PRESENT = 0.9
# As FFmpeg's own players have it: beyond these a clock was set anew, and what follows goes on where it was.
_JUMP_AHEAD_S, _JUMP_BACK_S = 10.0, 0.1
_LONGEST_DELAY_S = 0.5
# Ten minutes of one picture are no video; damaged headers claim centuries, and windows would be cut from them (our
# choice).
_LONGEST_FRAME_S = 600.0
# The last frame may stay at most this many times as long as any before it, where only the file's length tells.
_LONGEST_TAIL = 2.0
# The matrices of no, one, two and three quarter turns against the clock.
_TURNS = ((1, 0, 0, 1), (0, -1, 1, 0), (-1, 0, 0, -1), (0, 1, -1, 0))


@dataclass(frozen=True, slots=True)
class VideoFile:
    """A video file that opens.

    Attributes:
        path: The file.
        container: FFmpeg's first name for the format ("mov", "avi", "matroska", ...).
        codec: FFmpeg's name for the codec ("h264", ...).
        width: Displayed width in pixels, after rotation.
        height: Displayed height in pixels, after rotation.
        starts_s: Start of every frame in seconds from the first, in display order, float64 [N].
        duration_s: From the start of the first frame to the end of the last.
        begins_s: When the first frame is shown, in seconds from where the file begins (often with sound alone):
            what a player's clock says then.
        packets_s: Start of the frame of every packet in seconds from the first, in file order, float64 [P]; NaN
            where the packet is not shown.
        silent: Packets that may decode to nothing without a loss ("same picture again", or hidden).
        cuts: Packets before which the clock was set anew: nothing behind such a cut refers to anything before it.
        timed: The file says when each frame is shown. Otherwise (AVI, ASF, some MPEG-PS, bare H.264) it gives only the
            order of decoding and a rate, and the n-th frame to come out belongs to the n-th place in `starts_s`.
        orientation: Upper left of the display matrix (a, b, c, d); (1, 0, 0, 1) shows frames as stored.
        open_head: Frames behind the first key frame may be shown before it, and cannot be decoded then.
        keyed: The container says of some packet that it is a key frame.
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
    begins_s: float
    packets_s: np.ndarray
    silent: frozenset[int]
    cuts: frozenset[int]
    timed: bool
    orientation: tuple[int, int, int, int]
    open_head: bool
    keyed: bool
    closed_groups: bool


def inspect(path: Path) -> VideoFile:
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
    except MemoryError:  # of FFmpeg too: who knows what the file claims says so
        raise
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
    return head


def _open(path: Path) -> Any:
    only = {"protocol_whitelist": "file", "format_whitelist": _CONTAINERS, "max_pixels": str(MOST_PIXELS)}
    try:
        # An absolute path cannot be taken for a protocol ("concat:...") by FFmpeg.
        return av.open(os.path.abspath(path), options=only, metadata_errors="replace")
    except av.error.ArgumentError:
        raise VideoError("not a video but a still image, a playlist, or of a format that is not read") from None


def _video_stream(container: Any) -> Any:
    """The stream a player would show, decoding in one thread (files are what is done in parallel)."""
    video = container.streams.best("video")
    if video is None or video.disposition & av.stream.Disposition.attached_pic:
        raise VideoError("audio only" if container.streams.audio else "no video stream")
    if video.codec_context is None:
        raise VideoError("no decoder for its codec")
    width, height = video.codec_context.width, video.codec_context.height
    if width * height > MOST_PIXELS:
        raise VideoError(f"it claims {width} x {height} pixels, more than the {MOST_PIXELS:,} that are decoded")
    if max(width, height) > MOST_ASPECT * min(width, height) > 0:
        raise VideoError(f"it claims {width} x {height} pixels, a strip more than {MOST_ASPECT} times as long as wide")
    if video.frames > MOST_PACKETS:
        raise VideoError(f"it claims {video.frames:,} frames, more than the {MOST_PACKETS:,} that are read")
    video.codec_context.options = {"max_pixels": str(MOST_PIXELS)}
    video.codec_context.thread_count = 1
    return video


@dataclass(slots=True)
class _Packets:
    """What the packets of the video say, in file order.

    Attributes:
        starts_s: When each is shown, NaN for those that are not, [P].
        lengths_s: For how long; 0 where the file does not say, [P].
        orders_s: When to decode it; NaN where the file does not say, [P].
        keys: Whether the container calls it a key frame, [P].
        silent: See `VideoFile`.
        stamped: All that are shown have some time.
        timed: And that time is when they are shown.
        closed: Nothing was seen that makes counting from a key frame wrong.
        resets: The first is an H.264 frame that resets the decoder.
        first: The first frame that came out of the decoder, if any.
        first_pts: The time of the first packet.
        others_end_s: Where the other streams end.
    """

    starts_s: np.ndarray
    lengths_s: np.ndarray
    orders_s: np.ndarray
    keys: np.ndarray
    silent: frozenset[int]
    stamped: bool
    timed: bool
    closed: bool
    resets: bool
    first: Any
    first_pts: int | None
    others_end_s: float


def _bounded(packets: Iterator[Any]) -> Iterator[Any]:
    """The packets, as far as a file may have them."""
    for number, packet in enumerate(packets):
        if packet.size > MOST_PACKET_BYTES:
            raise VideoError(f"a frame of {packet.size:,} bytes, more than the {MOST_PACKET_BYTES:,} that are decoded")
        if number == MOST_PACKETS:
            raise VideoError(f"more than {MOST_PACKETS:,} packets, as many as are read")
        yield packet


def _read(path: Path, container: Any) -> VideoFile:
    """Read every packet (cheap: nothing but the first frame is decoded) and lay out the time line."""
    video = _video_stream(container)
    name = container.format.name.split(",")[0]
    rate = video.average_rate or video.guessed_rate
    gap_s = float(1 / rate) if rate else 0.0
    packets = _packets(container, video, name)
    shown = np.isfinite(packets.starts_s)
    if not shown.any():
        raise VideoError("no frames")
    made_up = bool(container.format.flags & av.format.Flags.no_timestamps.value)
    if made_up or not packets.stamped:  # a bare stream: FFmpeg's own times go by a default until it has seen the rate
        packets.timed = False
        packets.starts_s[shown] = np.arange(shown.sum()) * (float(np.median(packets.lengths_s)) or gap_s)
    cuts: list[int] = []
    if name == "matroska":
        _check_order(packets.starts_s, packets.keys)
    elif name == "flv":
        _check_order(packets.orders_s, np.isfinite(packets.orders_s))
    elif container.format.flags & av.format.Flags.ts_discont.value and not made_up:
        cuts = _jumps(packets.orders_s)
    if name in _NO_LENGTHS:
        packets.lengths_s[~_likely(packets.lengths_s, packets.starts_s, name)] = 0.0
    starts_s = _joined(packets.starts_s, packets.lengths_s, gap_s, cuts)
    origin_s, end_s = float(np.nanmin(starts_s)), _end(path, container, video, packets, starts_s, gap_s)
    if packets.first is None:
        # A decoder that refuses the size of its first picture while the file is opened keeps no size at all.
        large = "" if video.codec_context.width else f", or of more than the {MOST_PIXELS:,} pixels that are decoded"
        raise VideoError(f"damaged{large}: no frame can be decoded")
    # Whatever the container says of its packets: the first of them must have given a picture of its own.
    whole_head = packets.first.key_frame and (not packets.timed or packets.first.pts == packets.first_pts)
    orientation = _orientation(packets.first)
    size = (packets.first.width, packets.first.height)
    begins_s = origin_s - container.start_time / 1e6 if container.start_time is not None else 0.0
    return VideoFile(
        path=path,
        container=name,
        codec=video.codec.canonical_name,
        width=size[0 if orientation[0] else 1],
        height=size[1 if orientation[0] else 0],
        starts_s=np.sort(starts_s[shown]) - origin_s,
        duration_s=end_s - origin_s,
        begins_s=max(begins_s, 0.0),
        packets_s=starts_s - origin_s,
        silent=packets.silent,
        cuts=frozenset(cuts),
        timed=packets.timed,
        orientation=orientation,
        open_head=bool(video.codec_context.has_b_frames) and not packets.resets,
        keyed=bool(packets.keys.any()),
        closed_groups=packets.closed and whole_head and not cuts,
    )


def _packets(container: Any, video: Any, name: str) -> _Packets:
    codec = video.codec.canonical_name
    starts_s: list[float] = []
    lengths_s: list[float] = []
    orders_s: list[float] = []
    keys: list[bool] = []
    silent: set[int] = set()
    others_end_s = latest_s = 0.0
    stamped, timed, closed, resets = True, name not in _ORDER_ONLY, True, False
    first: Any = None
    first_pts: int | None = None
    for packet in _bounded(container.demux(*(container.streams if name in _DECLARE_FILE else [video]))):
        if not packet.size:  # the end of a stream, or an AVI's "same picture again"
            continue
        tick_s = float(packet.time_base)
        stamp = packet.pts if packet.pts is not None and name not in _ORDER_ONLY else packet.dts
        start_s = stamp * tick_s if stamp is not None else 0.0
        length_s = (packet.duration or 0) * tick_s
        if packet.stream is not video:
            others_end_s = max(others_end_s, start_s + length_s)
            continue
        first = first or _decoded(packet)
        first_pts = packet.pts if not starts_s else first_pts
        shown = not packet.is_discard and not _is_hidden(packet, codec)
        if not shown or _is_repeat(packet, codec):  # decoded, never shown, or shown without being decoded
            closed = False  # decord counts these wrongly
            silent.add(len(starts_s))
        if shown:
            timed = timed and packet.pts is not None
            stamped = stamped and stamp is not None
            if codec == "h264":
                reset = packet.is_keyframe and _is_idr(packet)
                resets = reset if not starts_s else resets
                closed = closed and (not packet.is_keyframe or reset)
            else:
                shown_at_s = start_s if packet.pts is None else packet.pts * tick_s
                closed = closed and (not starts_s or shown_at_s > latest_s)
                latest_s = shown_at_s
        starts_s.append(start_s if shown else np.nan)
        lengths_s.append(length_s)
        # Where the clock is set anew FFmpeg carries the old one on for a while when it guesses decoding times.
        guessed = packet.dts is None or not -_LONGEST_DELAY_S < (stamp - packet.dts) * tick_s < _JUMP_AHEAD_S
        orders_s.append((start_s if stamp is not None else np.nan) if guessed else packet.dts * tick_s)
        keys.append(packet.is_keyframe)
    return _Packets(
        np.array(starts_s, np.float64),
        np.array(lengths_s, np.float64),
        np.array(orders_s, np.float64),
        np.array(keys, bool),
        frozenset(silent),
        stamped,
        timed,
        closed,
        resets,
        first or _decoded(None, video),
        first_pts,
        others_end_s,
    )


def _end(path: Path, container: Any, video: Any, packets: _Packets, starts_s: np.ndarray, gap_s: float) -> float:
    """Where the last frame ends, held against the length that the header claims.

    It stays as long as its packet says; but MP4's lengths are steps from one decoding to the next, and some containers
    store none. Then the length of the whole tells, where nothing of it is missing.
    """
    name = container.format.name.split(",")[0]
    shown_s = np.sort(starts_s[np.isfinite(starts_s)])
    last_s = float(shown_s[-1])
    gaps_s = np.diff(shown_s)
    longest_s = float(gaps_s.max(initial=0.0))
    declared_s = 0.0
    if name in _DECLARE_STREAM:
        declared_s = float(video.duration * video.time_base) if video.duration else 0.0
    elif name in _DECLARE_FILE:
        declared_s = container.duration / 1e6 if container.duration else 0.0
    whole = name in _DECLARE_FILE and _is_whole(path, name)
    tail_s = float(packets.lengths_s[int(np.nanargmax(starts_s))]) if name != "mov" else 0.0
    if not tail_s:
        if name == "mov":  # whose length speaks of hidden frames as well
            rest_s = declared_s - (last_s - float(shown_s[0]))
            tells = len(shown_s) == len(starts_s) > 1
        else:
            rest_s = declared_s - last_s
            tells = whole and not packets.others_end_s and (name != "asf" or not len(gaps_s))
        most_s = _LONGEST_TAIL * longest_s if len(gaps_s) else _LONGEST_FRAME_S
        guess_s = float(packets.lengths_s[-1]) or _last_gap(starts_s, gap_s)
        tail_s = rest_s if tells and 1e-3 < rest_s <= most_s else guess_s
    # MP4 declares the length of what is shown, AVI and the others where it ends, ASF with the delay of reordering.
    present_s = last_s + tail_s - float(shown_s[0]) if name == "mov" else max(last_s + tail_s, packets.others_end_s)
    spare_s = (2 if name == "asf" else 1) * _LONGEST_TAIL * longest_s if whole else 0.0
    if present_s < _LEAST_PRESENT * declared_s and declared_s - present_s > spare_s:
        raise VideoError(f"truncated: {present_s:.1f} s of {declared_s:.1f} s are in the file")
    if max(tail_s, longest_s) > _LONGEST_FRAME_S:
        raise VideoError(f"timestamps jump: one frame stays for {max(tail_s, longest_s):,.0f} s")
    return last_s + tail_s


def _likely(lengths_s: np.ndarray, starts_s: np.ndarray, name: str) -> np.ndarray:
    """Which lengths [P] can be believed that FFmpeg makes up: those at which frames do follow one another."""
    steps_s = np.diff(np.sort(starts_s[np.isfinite(starts_s)]))
    if not len(steps_s):
        return np.full(len(lengths_s), name != "asf")
    likely = [length_s for length_s in np.unique(lengths_s) if np.isclose(steps_s, length_s, rtol=0.02).any()]
    return np.isin(lengths_s, likely)


def _jumps(orders_s: np.ndarray) -> list[int]:
    """Packets whose decoding time [P] falls back, or is far ahead of the one before."""
    steps_s = np.diff(orders_s)
    return (np.flatnonzero((steps_s < -_JUMP_BACK_S) | (steps_s > _JUMP_AHEAD_S)) + 1).tolist()


def _check_order(starts_s: np.ndarray, keys: np.ndarray) -> None:
    """A key frame [P] is later than all that lies before it, or a recording began anew inside the file.

    Players do not repair this in Matroska and FLV, so no order is known to be right.
    """
    latest_s = np.fmax.accumulate(np.append(-np.inf, starts_s[:-1]))
    back_s = float((latest_s - starts_s)[keys & np.isfinite(starts_s)].max(initial=0.0))
    if back_s > _JUMP_BACK_S:
        raise VideoError(f"timestamps jump: back by {back_s:.1f} s")


def _joined(starts_s: np.ndarray, lengths_s: np.ndarray, gap_s: float, cuts: list[int]) -> np.ndarray:
    """The starts [P] with every part between two cuts moved to where the part before it ends, as players do."""
    parts = np.split(starts_s, cuts)
    end_s = None
    for part, lengths in zip(parts, np.split(lengths_s, cuts), strict=True):
        if np.isfinite(part).any():
            if end_s is not None:
                part += end_s - np.nanmin(part)
            last = int(np.nanargmax(part))
            end_s = part[last] + (lengths[last] or _last_gap(part, gap_s))
    return np.concatenate(parts)


def _last_gap(starts_s: np.ndarray, otherwise_s: float) -> float:
    """How long the last frame stays where nothing tells: as long as the one before it."""
    starts_s = np.unique(starts_s[np.isfinite(starts_s)])
    return float(starts_s[-1] - starts_s[-2]) if len(starts_s) > 1 else otherwise_s


def _is_whole(path: Path, name: str) -> bool:
    """Whether no byte is missing at the end of a Matroska, FLV or ASF file, by its own structure."""
    size = path.stat().st_size
    with path.open("rb") as handle:
        if name == "flv":  # ends with a tag, and the size of that tag
            handle.seek(max(size - 4, 0))
            tag = int.from_bytes(handle.read(4), "big")
            handle.seek(max(size - 4 - tag, 0))
            return 11 <= tag <= size - 13 and int.from_bytes(handle.read(4)[1:], "big") == tag - 11
        head = handle.read(1 << 16)
    if name == "asf":  # the file properties object holds the size of the file
        at = head.find(bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365"))
        return at >= 0 and int.from_bytes(head[at + 40 : at + 48], "little") <= size
    at = head.find(bytes.fromhex("18538067"))  # the segment: its size as a number of 1 to 8 bytes
    width = 9 - head[at + 4].bit_length() if at >= 0 else 9
    if width > 8:
        return False
    length = int.from_bytes(head[at + 4 : at + 4 + width], "big") - (1 << 7 * width)
    return at + 4 + width + length <= size


def _is_hidden(packet: Any, codec: str) -> bool:
    """Whether a packet is a reference that is never shown, as VP8's alternate reference frames are."""
    return codec == "vp8" and not memoryview(packet)[0] & 0x10


def _is_repeat(packet: Any, codec: str) -> bool:
    """Whether a packet says "same picture again": MPEG-4 writes a header without a picture, of 8 bytes at most."""
    return codec == "mpeg4" and packet.size <= 8


def _decoded(packet: Any, video: Any = None) -> Any:
    """First frame that `packet` completes; the end of the stream where it is None; None for none."""
    try:
        frames = packet.decode() if packet is not None else video.codec_context.decode(None)
    except av.error.FFmpegError:  # the reader counts these; here the next packet may do
        return None
    return frames[0] if frames else None


def _is_idr(packet: Any) -> bool:
    """Whether an H.264 key frame resets the decoder, read off its first picture slice (NAL types 5 and 1).

    MP4, Matroska and FLV put a length before every unit, the others a start code.
    """
    data = memoryview(packet)
    if bytes(data[:3]) == b"\0\0\1" or bytes(data[:4]) == b"\0\0\0\1":
        kinds = [unit[0] & 0x1F for unit in bytes(data[: 1 << 16]).split(b"\0\0\1")[1:] if unit]
        return next((kind == 5 for kind in kinds if kind in (1, 5)), False)
    position = 0
    while position + 5 <= len(data):
        kind = data[position + 4] & 0x1F
        if kind in (1, 5):
            return kind == 5
        position += 4 + int.from_bytes(data[position : position + 4], "big")
    return False


def _orientation(frame: Any) -> tuple[int, int, int, int]:
    """The display matrix to the nearest quarter turn, each entry -1, 0 or 1."""
    try:
        matrix = frame.side_data.get("DISPLAYMATRIX")
    except ValueError:  # beside data of a kind that this PyAV has no name for; the turn alone it tells all the same
        return _TURNS[round(frame.rotation / 90) % 4]
    if matrix is None:
        return (1, 0, 0, 1)
    a, b, _, c, d = (int(entry) for entry in np.frombuffer(matrix, dtype=np.int32)[:5])
    if abs(b) + abs(c) > abs(a) + abs(d):
        return (0, -1 if b < 0 else 1, -1 if c < 0 else 1, 0)
    return (-1 if a < 0 else 1, 0, 0, -1 if d < 0 else 1)
