"""Whether the reader shows the right frame at every instant, over thousands of files that are made here.

    python benchmarks/timeline.py [--sample N --seed S]

Every clip is grey, and its level says the time (20 + 35 a second). PyAV and FFmpeg's own muxers write it in every codec
and container that the installed PyAV can write: at constant and variable rates, of one to ten frames and more, starting
late, behind edit lists, with open groups of pictures, cut at every packet, joined with and without a jump of the clock.
Each is read at 1, 8 and 12 instants as extraction reads it, and held against what is known here without the reader:
which frame was drawn for which time, and what a plain decode of the uncut source looks like. A packet of a cut file
counts as decodable when a plain decode of that cut gives the very picture that the uncut source gives.

A clip is right when every frame is the one to be shown; refused when more than a tenth of it cannot be decoded, or its
clock jumps where no player repairs it, and the reason says so; and wrong otherwise. Wrong must be 0.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cache
from itertools import zip_longest
from pathlib import Path
from random import Random
from typing import Any

import av
import numpy as np

from calmctl.errors import VideoError
from calmctl.samples import Clip
from calmctl.video.frames import read_frames

INSTANTS = (1, 8, 12)
TOLERANCE_S = 0.0025  # Matroska, FLV and ASF round to milliseconds
TICKS = 90_000


@dataclass(frozen=True)
class Codec:
    """An encoder and how it is asked: options, pixel format (None: its first), size."""

    encoder: str
    options: tuple[tuple[str, str], ...] = ()
    pixels: str | None = None
    size: tuple[int, int] = (64, 48)
    b_frames: int = 0
    group: int = 12
    noisy: bool = False


QUALITY = (("qmin", "1"), ("qmax", "3"), ("sc_threshold", "1000000000"))
X264 = (("crf", "10"), ("x264-params", "scenecut=0:log-level=none"))
X264_OPEN = (("crf", "10"), ("x264-params", "open-gop=1:bframes=3:scenecut=0:log-level=none"))
X264_REFRESH = (("crf", "10"), ("x264-params", "intra-refresh=1:keyint=12:bframes=0:log-level=none"))
X265 = (("x265-params", "log-level=none:keyint=12:open-gop=0:crf=10"),)
X265_OPEN = (("x265-params", "log-level=none:keyint=12:open-gop=1:bframes=3:crf=10"),)
VPX = (("crf", "10"), ("b", "2000000"), ("deadline", "realtime"), ("cpu-used", "8"))
VPX_HIDDEN = (("crf", "10"), ("b", "2000000"), ("auto-alt-ref", "1"), ("lag-in-frames", "8"), ("cpu-used", "8"))
AV1 = (("crf", "20"), ("preset", "12"), ("svtav1-params", "keyint=12:lookahead=0"))

# Program Streams give a time only to what begins in a pack of 2 KB: frames must be as large as real ones.
DISC: Any = {"size": (176, 144), "noisy": True}

# Those that predict: what is cut matters. The others (every frame a key frame) follow from FFmpeg's list.
PREDICTING = {
    "h264": Codec("libx264", X264, b_frames=2),
    "h264-plain": Codec("libx264", X264),
    "h264-open": Codec("libx264", X264_OPEN, b_frames=3),
    "h264-refresh": Codec("libx264", X264_REFRESH),
    "hevc": Codec("libx265", X265, b_frames=2),
    "hevc-open": Codec("libx265", X265_OPEN, b_frames=3),
    "mpeg1": Codec("mpeg1video", QUALITY, **DISC),
    "mpeg1-open": Codec("mpeg1video", QUALITY, b_frames=2, **DISC),
    "mpeg2": Codec("mpeg2video", QUALITY, **DISC),
    "mpeg2-open": Codec("mpeg2video", QUALITY, b_frames=2, **DISC),
    "mpeg2-closed": Codec("mpeg2video", (*QUALITY, ("flags", "+cgop")), b_frames=2, **DISC),
    "mpeg4": Codec("mpeg4", QUALITY),
    "mpeg4-open": Codec("mpeg4", QUALITY, b_frames=2),
    "vp8": Codec("libvpx", VPX),
    "vp8-hidden": Codec("libvpx", VPX_HIDDEN),
    "vp9": Codec("libvpx-vp9", VPX),
    "vp9-hidden": Codec("libvpx-vp9", VPX_HIDDEN),
    "av1": Codec("libsvtav1", AV1, size=(128, 96)),
    "h261": Codec("h261", QUALITY, size=(176, 144)),
    "h263": Codec("h263", QUALITY, size=(128, 96)),
    "h263p": Codec("h263p", QUALITY, size=(128, 96)),
    "flv1": Codec("flv", QUALITY),
    "msmpeg4v2": Codec("msmpeg4v2", QUALITY),
    "msmpeg4v3": Codec("msmpeg4", QUALITY),
    "wmv1": Codec("wmv1", QUALITY),
    "wmv2": Codec("wmv2", QUALITY),
    "rv10": Codec("rv10", QUALITY, size=(128, 96)),
    "rv20": Codec("rv20", QUALITY, size=(128, 96)),
    "snow": Codec("snow", QUALITY),
    "svq1": Codec("svq1", QUALITY),
}
# Their encoders want sizes, formats or streams of their own, or keep no grey (one bit, text, a fixed palette).
_LEFT_ASIDE = {
    *("a64multi", "a64multi5", "alias_pix", "bitpacked", "dnxhd", "dvvideo", "fits", "gif", "msrle", "smc", "vnull"),
    *("wrapped_avframe", "wbmp", "xbm", "xface", "roqvideo", "zmbv", "pbm", "hdr", "phm", "pfm", "exr", "av1"),
}
CONTAINERS = {
    "mp4": "mp4", "mov": "mov", "m4v": "ipod", "f4v": "f4v", "3gp": "3gp", "3g2": "3g2", "mkv": "matroska",
    "webm": "webm", "avi": "avi", "flv": "flv", "wmv": "asf", "asf": "asf", "ts": "mpegts", "mts": "mpegts",
    "m2ts": "mpegts", "mpg": "mpeg", "mpeg": "svcd", "vob": "vob", "m2v": "mpeg2video", "ogv": "ogg", "gif": "gif",
}  # fmt: skip
MUXER = {"m2ts": {"mpegts_m2ts_mode": "1"}}
# Bare streams and GIF have no clock of packets to move, AVI and Program Streams of one rate no variable one.
_CONSTANT = {"avi", "m2v", "gif", "mpg", "mpeg", "vob"}
# One time a packet, that of decoding: nothing about a late start, and of reordered frames only the order.
_ORDER_ONLY = {"avi", "asf", "wmv", "m2v"}
_PROGRAM_STREAMS = {"mpg", "mpeg", "vob"}
_JOINED = ("ts", "mts", "m2ts", "mpg", "vob", "mpeg")


@dataclass(frozen=True)
class Recording:
    """An encoded source that is whole: its packets, and what it looks like when it is decoded plainly.

    Attributes:
        path: The file.
        container: What FFmpeg takes it for.
        packets: Bytes, number of the frame shown (None: hidden) and whether it is a key frame, in file order.
        starts_s: When each frame is shown, ascending, [N].
        lengths_s: For how long, [N].
        pictures: Every frame, [N] of [H, W, 3].
    """

    path: Path
    container: str
    packets: list[tuple[bytes, int | None, bool]]
    starts_s: np.ndarray
    lengths_s: np.ndarray
    pictures: list[np.ndarray]


@dataclass(frozen=True)
class Case:
    """A file, and what is to be seen of it.

    Attributes:
        kind: The row of the table.
        path: The file.
        starts_s: When each frame that is in the file is to be shown, from the first, ascending, [n].
        ends_s: When the last one ends.
        pictures: What each looks like.
        good: Whether it can be decoded.
        sure: Whether each comes behind a key frame: what decodes by luck before one may be shown or not.
        others: All pictures of the source, to say which one was seen instead.
        reasons: How a refusal must begin; empty where there is no reason to refuse.
    """

    kind: str
    path: Path
    starts_s: np.ndarray
    ends_s: float
    pictures: list[np.ndarray]
    good: list[bool]
    sure: list[bool]
    others: list[np.ndarray]
    reasons: tuple[str, ...] = ()


@dataclass
class Tally:
    """One row: files by how their readings at all numbers of instants came out."""

    right: int = 0
    refused: int = 0
    wrong: list[str] = field(default_factory=list)


# Drawing and writing


def draw(codec: Codec, time_s: float, pixels: str) -> av.VideoFrame:
    height, width = codec.size[1], codec.size[0]
    # Without a texture that stays, encoders would code every frame for itself, and nothing would depend on anything.
    texture = np.random.default_rng(0).integers(-12, 13, (height // 4, width // 4)).repeat(4, 0).repeat(4, 1)
    grey = 20 + 35 * time_s + texture - texture.mean()
    if codec.noisy:
        grey = grey + np.random.default_rng(round(1000 * time_s)).integers(-6, 7, (height, width))
    grey = np.round(grey).clip(0, 255).astype(np.uint8)
    grey = np.repeat(grey[..., None], 3, axis=-1)
    return av.VideoFrame.from_ndarray(grey, format="rgb24").reformat(format=pixels)


def encode(path: Path, container: str, codec: Codec, ticks: Sequence[int], rate: Fraction) -> Path:
    """Write frames at `ticks` (in 1/90,000 s) by way of the encoder."""
    with (
        path.open("wb") as handle,
        av.open(handle, "w", format=container, options=MUXER.get(path.suffix[1:], {})) as out,
    ):
        stream = out.add_stream(codec.encoder, rate=rate, options=dict(codec.options))
        stream.width, stream.height = codec.size
        formats = av.codec.Codec(codec.encoder, "w").video_formats
        stream.pix_fmt = pixels = codec.pixels or formats[0].name
        context = stream.codec_context
        context.thread_count = 1
        context.gop_size = codec.group
        if "265" not in codec.encoder and "vpx" not in codec.encoder and "av1" not in codec.encoder:
            context.max_b_frames = codec.b_frames
        base = Fraction(1) / rate
        if any(tick * rate % TICKS for tick in ticks):
            base = Fraction(1, 1000)
        context.time_base = base
        stamps = [round(tick / (TICKS * base)) for tick in [*ticks, ticks[-1] + round(TICKS / rate)]]
        for tick, stamp, following in zip(ticks, stamps, stamps[1:], strict=False):
            frame = draw(codec, (tick - ticks[0]) / TICKS, pixels)
            frame.pts, frame.duration, frame.time_base = stamp, following - stamp, base
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    return path


def record(path: Path) -> Recording:
    """Read a whole file back with plain PyAV: packets in order, frames as they come out."""
    with av.open(str(path)) as source:
        video = source.streams.video[0]
        packets = [(bytes(p), p.pts, p.is_keyframe, p.duration or 0) for p in source.demux(video) if p.size]
        tick_s = float(video.time_base)
        container = source.format.name.split(",")[0]
    with av.open(str(path)) as source:
        pictures = [frame.to_ndarray(format="rgb24") for frame in source.decode(video=0)]
    stamps = sorted(pts for _, pts, _, _ in packets if pts is not None)
    hidden = len(stamps) - len(pictures)
    if hidden:  # VP8's alternate references stand in packets of their own
        stamps = sorted(pts for data, pts, _, _ in packets if data[0] & 0x10)
    numbers = {pts: number for number, pts in enumerate(stamps)}
    shown = [(data, None if hidden and not data[0] & 0x10 else numbers.get(pts), key) for data, pts, key, _ in packets]
    starts_s = np.array(stamps, np.float64) * tick_s
    last_s = next((d * tick_s for _, pts, _, d in packets if stamps and pts == stamps[-1] and d), 0.0)
    lengths_s = np.append(np.diff(starts_s), last_s or (starts_s[-1] - starts_s[-2] if len(stamps) > 1 else 0.1))
    return Recording(path, container, shown, starts_s - starts_s[0] if len(stamps) else starts_s, lengths_s, pictures)


def _demuxer(muxer: str) -> str:
    """What a file of one of FFmpeg's muxers is taken for."""
    names = {"mp4": "mov", "ipod": "mov", "f4v": "mov", "3gp": "mov", "3g2": "mov", "webm": "matroska"}
    return names.get(muxer, {"vob": "mpeg", "svcd": "mpeg", "mpeg2video": "mpegvideo"}.get(muxer, muxer))


def shows_the_time(pictures: Sequence[np.ndarray], times_s: Sequence[float]) -> bool:
    """Whether an encoder did what the test needs: one picture a frame, each near enough to the level drawn."""
    return len(pictures) == len(times_s) and all(
        abs(float(picture.mean()) - (20 + 35 * time_s)) < 6 for picture, time_s in zip(pictures, times_s, strict=True)
    )


def remux(
    recording: Recording, chosen: Sequence[int], path: Path, container: str, *, late_s: float = 0.0, muxer: Any = None
) -> Path | None:
    """Some packets of a recording in another file, the first frame at `late_s`; None where it cannot hold them."""
    numbers = [recording.packets[k][1] for k in chosen]
    shown = sorted(number for number in numbers if number is not None)
    if not shown:
        return None
    origin_s = recording.starts_s[shown[0]] - late_s
    times = [recording.starts_s[n] - origin_s if n is not None else None for n in numbers]
    for k in reversed(range(len(times))):  # a hidden frame is decoded just before the one behind it
        if times[k] is None:
            times[k] = (times[k + 1] if k + 1 < len(times) else late_s) - 0.001
    pts = [round(time * TICKS) for time in times]
    orders = sorted(pts)
    delay = max(order - stamp for order, stamp in zip(orders, pts, strict=True))
    try:
        with (
            av.open(str(recording.path)) as source,
            path.open("wb") as handle,
            av.open(handle, "w", format=container, options=muxer or {}) as out,
        ):
            stream = out.add_stream_from_template(source.streams.video[0], opaque=True)
            stream.time_base = Fraction(1, 10) if container == "avi" else Fraction(1, TICKS)
            for k, stamp, order in zip(chosen, pts, orders, strict=True):
                data, number, key = recording.packets[k]
                packet = av.Packet(data)
                packet.stream, packet.time_base = stream, Fraction(1, TICKS)
                packet.pts, packet.dts, packet.is_keyframe = stamp, order - delay, key
                packet.duration = round(recording.lengths_s[number] * TICKS) if number is not None else 0
                out.mux_one(packet)
    except (av.error.FFmpegError, ValueError):
        return None
    return path


@cache
def holds(make: Callable[[], Recording | None], suffix: str, folder: Path) -> bool:
    """Whether a container holds a source as it is: all of it, remuxed and decoded plainly, shows the same pictures."""
    recording = make()
    path = folder / f"whole.{suffix}"
    every = range(len(recording.packets)) if recording else ()
    if not recording or not remux(recording, every, path, CONTAINERS[suffix], muxer=MUXER.get(suffix)):
        return False
    try:
        again = record(path)
    except (av.error.FFmpegError, IndexError):
        return False
    pictures = again.pictures
    if again.container != _demuxer(CONTAINERS[suffix]):
        return False
    return len(pictures) == len(recording.pictures) and all(map(np.array_equal, pictures, recording.pictures))


def decodable(recording: Recording, chosen: Sequence[int], path: Path) -> tuple[set[int], set[int]] | None:
    """Frames that a plain decode of a file with some packets gives as the uncut source has them; and hidden ones.

    Those lie outside the edit list that FFmpeg's muxer writes for some pieces. None where the file has another number
    of packets: FFmpeg's parsers may lose some of a bare piece.
    """
    good: set[int] = set()
    hidden: set[int] = set()
    try:
        file = av.open(str(path))
    except av.error.FFmpegError:
        return good, hidden
    with file:
        if not file.streams.video:
            return good, hidden
        video = file.streams.video[0]
        packets = [packet for packet in file.demux(video) if packet.size]
        if len(packets) != len(chosen):
            return None
        for k, packet in zip([*chosen, None], [*packets, None], strict=True):
            if packet is not None:
                number = recording.packets[k][1]
                packet.pts = packet.dts = -1 if number is None else number
                if packet.is_discard and number is not None:
                    hidden.add(number)
            try:
                frames = video.codec_context.decode(packet)
            except av.error.FFmpegError:
                continue
            for frame in frames:
                picture = frame.to_ndarray(format="rgb24")
                if frame.pts is not None and frame.pts >= 0 and np.array_equal(picture, recording.pictures[frame.pts]):
                    good.add(frame.pts)
    return good, hidden


# The kinds


def whole(kind: str, recording: Recording, path: Path, times_s: np.ndarray, ends_s: float) -> Case:
    every = [True] * len(times_s)
    return Case(kind, path, times_s, ends_s, recording.pictures, every, every, recording.pictures)


Part = tuple[Sequence[int], "tuple[set[int], set[int]] | None"]


def some(kind: str, recording: Recording, parts: Sequence[Part], path: Path, reasons: Any = ()) -> Case | None:
    """What is to be seen of parts of a recording, one behind the other: packets, and what of them can be decoded."""
    starts: list[float] = []
    pictures: list[np.ndarray] = []
    usable: list[bool] = []
    sure: list[bool] = []
    end_s = 0.0
    for chosen, decoded in parts:
        if decoded is None:
            return None
        good, hidden = decoded
        shown = sorted(n for k in chosen if (n := recording.packets[k][1]) is not None and n not in hidden)
        keys = [k for k in chosen if recording.packets[k][2]]
        first_key = recording.packets[keys[0]][1] if keys else None
        behind = {recording.packets[k][1] for k in chosen if keys and k >= keys[0]}
        first_s = recording.starts_s[shown[0]]
        starts += [end_s + recording.starts_s[n] - first_s for n in shown]
        pictures += [recording.pictures[n] for n in shown]
        usable += [n in good for n in shown]
        sure += [n in good and n in behind and (first_key is None or n >= first_key) for n in shown]
        end_s += float(recording.starts_s[shown[-1]] + recording.lengths_s[shown[-1]] - first_s)
    if sure.count(False) > 0.1 * len(sure):
        # FFmpeg may not even see what a piece is of which nothing can be decoded.
        reasons = ("damaged: ", *reasons) if any(usable) else ("",)
    return Case(kind, path, np.array(starts), end_s, pictures, usable, sure, recording.pictures, tuple(reasons))


Make = Callable[[Path], "Case | None"]


def codecs() -> dict[str, Codec]:
    """Every encoder of the installed PyAV that runs without special hardware."""
    named = dict(PREDICTING)
    taken = {codec.encoder for codec in named.values()}
    for name in sorted(av.codec.codecs_available):
        try:
            codec = av.codec.Codec(name, "w")
        except av.codec.codec.UnknownCodecError:
            continue
        hardware = name.endswith(("_qsv", "_nvenc", "_amf", "_v4l2m2m", "_vaapi"))
        if codec.type == "video" and not hardware and name not in taken | _LEFT_ASIDE:
            named.setdefault(name, Codec(name, pixels=None if codec.video_formats else "rgb24"))
    return named


def belongs(name: str, suffix: str) -> bool:
    """Whether anybody would put this codec there: Program Streams hold MPEG-1 and MPEG-2."""
    return suffix not in _PROGRAM_STREAMS or name.startswith(("mpeg1", "mpeg2"))


def plans(folder: Path, only: Sequence[str] = ()) -> Iterator[tuple[str, Make]]:
    """Every case as a kind and a function that makes it; making nothing means that FFmpeg cannot write it.

    Of some codecs alone where `only` names them.
    """
    every = {name: codec for name, codec in codecs().items() if not only or name in only}
    for name, codec in every.items():
        for suffix in (each for each in CONTAINERS if belongs(name, each)):
            lengths = (1, 2, 3, 5, 10, 45) if name in PREDICTING else (1, 7, 30)
            for count in lengths:
                yield "constant rate", direct("constant rate", name, codec, suffix, count, Fraction(10))
            if name in PREDICTING:
                for count in (1, 3, 6):
                    yield "constant rate", direct("constant rate", name, codec, suffix, count, Fraction(3, 2))
                yield "constant rate", direct("constant rate", name, codec, suffix, 90, Fraction(30000, 1001))
            if suffix not in _CONSTANT | {"ogv"} and not (suffix in _ORDER_ONLY and codec.b_frames):
                for seed in range(3 if name in PREDICTING else 1):
                    yield "variable rate", varying(name, codec, suffix, seed)
    for name in (name for name in PREDICTING if name in every):
        source = _source(folder, name)
        for suffix in (each for each in CONTAINERS if belongs(name, each)):
            # The first are twins of others; Ogg's own muxer rounds VP8's clock so that its demuxer reads another.
            if suffix in ("gif", "asf", "3g2", "mts", "mpeg", "ogv"):
                continue
            for late_s in (0.4, 2.0) if suffix != "avi" else ():
                yield "starting late", late(source, name, suffix, late_s)
            if suffix in ("mp4", "mov"):
                for skip in (1, 5, 9, 14, 20):
                    yield "edit list", edited(source, name, suffix, skip)
            for first in range(1, 26):
                kind = "cut at a packet (open groups)" if name.endswith("open") else "cut at a packet"
                yield kind, cut(kind, source, name, suffix, first, None)
            for last in (1, 4, 8, 13, 23, 31):
                yield "cut at the end", cut("cut at the end", source, name, suffix, 0, last)
            for first, last in ((3, 40), (12, 20), (12, 13), (7, 12)):
                yield "cut at both ends", cut("cut at both ends", source, name, suffix, first, last)
        for suffix in (each for each in _JOINED if belongs(name, each)):
            for first, second, jump_s in (
                *((24, 24, 0.0), (24, 24, 3600.0), (24, 12, 0.0), (12, 36, 40.0)),
                *((24, 30, 0.0), (24, 25, 3600.0), (30, 24, 0.0)),
            ):
                yield "joined", joined(source, name, suffix, first, second, jump_s)
        for suffix in ("flv",):
            for first in (12, 24):
                yield "joined, not repaired by players", joined(source, name, suffix, first, first, 0.0)


def direct(kind: str, name: str, codec: Codec, suffix: str, count: int, rate: Fraction) -> Make:
    def make(folder: Path) -> Case | None:
        ticks = [round(TICKS * n / rate) for n in range(count)]
        path = folder / f"{name}-{count}-{float(rate):.2f}.{suffix}"
        return _written(kind, codec, suffix, path, ticks, rate, count / float(rate))

    return make


def varying(name: str, codec: Codec, suffix: str, seed: int) -> Make:
    def make(folder: Path) -> Case | None:
        steps = np.random.default_rng(seed).integers(1, 6, 24) * 50  # milliseconds; the last two alike: see `_tails`
        steps[-2:] = 100
        ticks = [int(tick) * 90 for tick in np.append(0, np.cumsum(steps[:-1]))]
        path = folder / f"{name}-v{seed}.{suffix}"
        return _written("variable rate", codec, suffix, path, ticks, Fraction(10), (ticks[-1] + 9000) / TICKS)

    return make


def _written(
    kind: str, codec: Codec, suffix: str, path: Path, ticks: list[int], rate: Fraction, ends_s: float
) -> Case | None:
    times_s = np.array(ticks, np.float64) / TICKS
    try:
        encode(path, CONTAINERS[suffix], codec, ticks, rate)
        recording = record(path)
    except (av.error.FFmpegError, ValueError, IndexError, TypeError, NotImplementedError):
        return None
    # Some muxers drop what they write without its container, and a bare stream has no rate.
    if not shows_the_time(recording.pictures, times_s) or recording.container != _demuxer(CONTAINERS[suffix]):
        return None
    return whole(kind, recording, path, times_s, ends_s)


@cache
def _source(folder: Path, name: str) -> Callable[[], Recording | None]:
    @cache
    def make() -> Recording | None:
        for container in ("matroska", "nut", "avi"):
            path = folder / f"source-{name}.{container}"
            try:
                encode(path, container, PREDICTING[name], [n * 9000 for n in range(48)], Fraction(10))
                recording = record(path)
            except (av.error.FFmpegError, ValueError):
                continue
            numbered = [n for _, n, _ in recording.packets if n is not None]
            if shows_the_time(recording.pictures, np.arange(48) / 10) and sorted(numbered) == list(range(48)):
                return recording
        return None

    return make


def late(source: Any, name: str, suffix: str, late_s: float) -> Make:
    def make(folder: Path) -> Case | None:
        return _remuxed("starting late", source, range(48), folder / f"{name}-late{late_s}.{suffix}", late_s=late_s)

    return make


def edited(source: Any, name: str, suffix: str, skip: int) -> Make:
    """The first frames lie before zero: MP4 decodes them and shows none."""

    def make(folder: Path) -> Case | None:
        recording = source()
        path = folder / f"{name}-edit{skip}.{suffix}"
        muxer = {"avoid_negative_ts": "disabled"}
        if not recording or not holds(source, suffix, folder):
            return None
        every = range(len(recording.packets))
        if not remux(recording, every, path, CONTAINERS[suffix], late_s=-skip / 10, muxer=muxer):
            return None
        starts_s = recording.starts_s[skip:] - recording.starts_s[skip]
        every = [True] * len(starts_s)
        ends_s = float(starts_s[-1]) + 0.1
        pictures = recording.pictures
        return Case("edit list", path, starts_s, ends_s, pictures[skip:], every, every, pictures)

    return make


def cut(kind: str, source: Any, name: str, suffix: str, first: int, last: int | None) -> Make:
    def make(folder: Path) -> Case | None:
        return _remuxed(kind, source, slice(first, last), folder / f"{name}-{first}-{last}.{suffix}")

    return make


def _remuxed(kind: str, source: Any, chosen: Any, path: Path, late_s: float = 0.0) -> Case | None:
    recording, suffix = source(), path.suffix[1:]
    if recording is None or not holds(source, suffix, path.parent):
        return None
    every = range(len(recording.packets))
    packets = every[chosen] if isinstance(chosen, slice) else every
    shown = sorted(n for k in packets if (n := recording.packets[k][1]) is not None)
    if suffix in _ORDER_ONLY and shown != list(range(shown[0], shown[-1] + 1)):
        return None  # a hole in the order of display, of which such a file knows nothing
    made = remux(recording, packets, path, CONTAINERS[suffix], late_s=late_s, muxer=MUXER.get(suffix))
    return made and some(kind, recording, [(packets, decodable(recording, packets, path))], path)


def joined(source: Any, name: str, suffix: str, first: int, second: int, jump_s: float) -> Make:
    """The bytes of two files behind one another: packets to `first`, then from `second` on, on a clock of their own."""

    def make(folder: Path) -> Case | None:
        recording = source()
        if recording is None or not holds(source, suffix, folder):
            return None
        every = range(len(recording.packets))
        parts = [every[:first], every[second:]]
        path = folder / f"{name}-{first}+{second}-{jump_s:.0f}.{suffix}"
        content, seen = b"", []
        for chosen, late_s in zip(parts, (0.0, jump_s), strict=True):
            if not remux(recording, chosen, path, CONTAINERS[suffix], late_s=late_s, muxer=MUXER.get(suffix)):
                return None
            seen.append((chosen, decodable(recording, chosen, path)))
            part = path.read_bytes()
            content += part[13:] if suffix == "flv" and content else part  # one header: a stream that began anew
        path.write_bytes(content)
        kind = "joined" if suffix in _JOINED else "joined, not repaired by players"
        return some(kind, recording, seen, path, () if suffix in _JOINED else ("timestamps jump: ",))

    return make


# Judging


def judge(case: Case, n_frames: int) -> tuple[str, str]:
    """Whether a reading is "right", "refused" or "wrong", and what was seen."""
    try:
        frames = read_frames(Clip("x", case.path), n_frames)
    except VideoError as error:
        return ("refused" if str(error).startswith(case.reasons or "\0") else "wrong"), str(error)
    seen, expected = [], []
    for k, frame in enumerate(frames):
        time_s = (k + 0.5) / n_frames * case.ends_s
        near = (time_s - TOLERANCE_S, time_s, time_s + TOLERANCE_S)
        rules = (case.sure, case.good, [True] * len(case.sure))
        # What decodes only by luck may be shown: it is the right picture all the same.
        allowed = [_shown(case, each, usable) for each in near for usable in rules]
        distances = [_distance(frame, picture) for picture in case.others]
        nearest = int(np.argmin(distances))
        seen.append(nearest)
        # decord's and PyAV's conversions may differ by a level; neighbouring frames differ by more.
        fits = min((_distance(frame, picture) for picture in allowed if picture is not None), default=255.0)
        expected.append(fits <= distances[nearest] + 0.25 and fits < 3)
    return ("right" if all(expected) else "wrong"), f"frames {seen}, {len(expected) - sum(expected)} of them wrong"


def _shown(case: Case, time_s: float, usable: Sequence[bool]) -> np.ndarray | None:
    """The last frame that can be decoded and has begun; before the first such, that one."""
    best = None
    for start_s, picture, use in zip(case.starts_s, case.pictures, usable, strict=True):
        if use and (best is None or start_s <= time_s):
            best = picture
    return best


def _distance(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.abs(one.astype(np.int16) - other).mean())


def run(
    sample: int | None, seed: int, folder: Path, *, only: Sequence[str] = (), progress: bool = False
) -> dict[str, Tally]:
    """Make and judge `sample` files drawn from all kinds (None: all there are); the table by kind."""
    av.logging.set_level(av.logging.PANIC)
    by_kind: dict[str, list[Make]] = defaultdict(list)
    for kind, make in plans(folder, only):
        by_kind[kind].append(make)
    random = Random(seed)
    for makes in by_kind.values():
        random.shuffle(makes)
    # In turns, so that a small sample has some of every kind.
    turns = zip_longest(*([(kind, make) for make in makes] for kind, makes in by_kind.items()))
    order = [each for turn in turns for each in turn if each is not None]
    table = {kind: Tally() for kind in by_kind}
    done = 0
    for kind, make in order:
        if sample is not None and done >= sample:
            break
        case = make(folder)
        if case is None:
            continue
        done += 1
        outcomes = [judge(case, n_frames) for n_frames in INSTANTS]
        verdicts = Counter(verdict for verdict, _ in outcomes)
        row = table[kind]
        if verdicts["wrong"]:
            n_frames, (_, what) = next(
                (n, outcome) for n, outcome in zip(INSTANTS, outcomes, strict=True) if outcome[0] == "wrong"
            )
            row.wrong.append(f"{case.path.name} at {n_frames} instants: {what}")
        elif verdicts["refused"]:
            row.refused += 1
        else:
            row.right += 1
        case.path.unlink()
        if progress and done % 250 == 0:
            print(f"{done} files, {sum(len(each.wrong) for each in table.values())} wrong", file=sys.stderr, flush=True)
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sample", type=int, help="files in all (default: every one)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--show", type=int, default=20, help="wrong files that are named")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        table = run(arguments.sample, arguments.seed, Path(folder), progress=True)
    total = Tally(
        sum(row.right for row in table.values()),
        sum(row.refused for row in table.values()),
        [line for row in table.values() for line in row.wrong],
    )
    print(f"{'kind':34} {'files':>6} {'right':>6} {'refused':>8} {'wrong':>6}")
    for kind, row in {**table, "all": total}.items():
        n_files = row.right + row.refused + len(row.wrong)
        print(f"{kind:34} {n_files:6} {row.right:6} {row.refused:8} {len(row.wrong):6}")
    for line in total.wrong[: arguments.show]:
        print("wrong:", line)
    sys.exit(bool(total.wrong))


if __name__ == "__main__":
    main()
