"""Videos that are damaged on purpose, in the worker processes in which calmctl decodes them.

Seeds are small files that PyAV writes in many containers. They are cut short, their bytes and numbers are changed, and
they are taken apart by the rules of their containers: boxes (MP4), elements (Matroska), chunks (AVI, PNG), packets
(MPEG-TS) and blocks of other files are removed, doubled, exchanged, and told another length; GIF and PNG claim other
sizes. Playlists that name another file of the folder are among the seeds: that file must not be read.

A worker must answer with frames or with a reason, in time, within its limit of memory, and live on. What its Python
code executes, connects to, or opens beside the video is noted (`fuzz_base.Watch`); of FFmpeg's own code only that no
other file of the folder is read (by its time of access).
"""

from __future__ import annotations

import io
import os
import random
import re
import resource
import struct
import time
import zlib
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np
from fuzz_base import Corpus, Tally, Watch, mutated, peak_bytes

from calmctl.samples import Clip
from calmctl.video.compressed import CompressedReader
from calmctl.video.pixels import FrameResize
from calmctl.video.pool import decode_clips, run_isolated

LIMIT_S = 10.0
BAIT = "bait.mp4"

_FORMS = (
    *(("mp4", "libx264", {}), ("mp4", "libx264", {"movflags": "frag_keyframe+empty_moov"}), ("mp4", "libx265", {})),
    *(("mov", "mpeg4", {}), ("avi", "mpeg4", {}), ("avi", "mjpeg", {}), ("matroska", "libx264", {})),
    *(("webm", "libvpx", {}), ("webm", "libvpx-vp9", {}), ("gif", "gif", {}), ("flv", "flv", {})),
    *(("mpegts", "mpeg2video", {}), ("mpegts", "libx264", {}), ("mpeg", "mpeg1video", {}), ("asf", "wmv2", {})),
    *(("3gp", "h263", {}), ("apng", "apng", {}), ("m4v", "mpeg4", {}), ("nut", "mpeg4", {})),
)
"""Container, codec and options of the muxer; those that this FFmpeg cannot write are left out."""


@dataclass(frozen=True)
class Way:
    """One of the ways in which commands read videos.

    Attributes:
        clips: What is read of a file.
        compressed: Whether its motion is read, and no frames.
    """

    clips: tuple[tuple[float, float | None], ...] = ((0.0, None),)
    compressed: bool = False


def ways() -> dict[str, Way]:
    return {
        "videos": Way(),
        "videos, windows": Way(((0.0, 0.2), (0.1, 0.3), (0.3, 0.9))),
        "videos, compressed": Way(compressed=True),
    }


def fuzz(way: Way, inputs: int, seed: int, corpus: Corpus, until: float, place: Path) -> Tally:
    """What workers make of `inputs` videos, which lie in `place` until they are read."""
    tally = Tally()
    drawn: dict[str, bytes] = {}
    (place / BAIT).write_bytes(seeds()[0])
    os.utime(place / BAIT, (0, time.time()))  # read once, it has another time of access
    told = os.stat(place / BAIT).st_atime

    def paths() -> Iterator[Path]:
        for number in range(inputs):
            if time.monotonic() > until:
                return
            path = place / f"{number}.mp4"
            content = _drawn(random.Random(f"{seed} {number}"), corpus)
            drawn[path.name] = content
            path.write_bytes(content)
            yield path

    started = time.perf_counter()
    for path, results in _read(way, paths(), place):
        took_s, started = time.perf_counter() - started, time.perf_counter()
        tally.slowest_s = max(tally.slowest_s, took_s)
        content = drawn.pop(path.name)
        before = len(tally.faults)
        for kind in dict.fromkeys(_judged(results, tally, path.stem)):
            if kind not in tally.kinds:
                tally.kinds.add(kind)
                corpus.keep({"video": content})
        if os.stat(place / BAIT).st_atime != told:
            told = os.stat(place / BAIT).st_atime
            tally.faults.append(f"input {path.stem}, or one just before it: another file was read")
        if (note := place / "seen").exists():
            tally.faults += [f"input {path.stem}: {line}" for line in note.read_text().splitlines()]
            note.unlink()
        if len(tally.faults) > before:
            corpus.fail({"video": content})
        path.unlink()
    tally.peak_bytes = peak_bytes(resource.RUSAGE_CHILDREN)
    return tally


def _judged(results: list[Any], tally: Tally, number: str) -> Iterator[str]:
    """Count an input by its worst result; the kinds of all."""
    worst = "results"
    for result in results:
        if isinstance(result, np.ndarray):
            yield f"frames {result.dtype}"
            continue
        reason = str(result)
        kind = re.sub(r"\d[\d,.]*", "_", reason)
        yield kind
        if "crashed" in reason or "killed" in reason or "exit code" in reason:
            worst = "crashes"
        elif "took longer" in reason:
            worst = "hangs"
        elif re.match(r"[A-Z]\w*(Error|Exception|Warning)\b", reason):  # the worker's last net: nobody thought of it
            worst = "anything else"
        else:
            worst = worst if worst != "results" else "our errors"
            continue
        tally.faults.append(f"input {number}: {reason[:200]}")
    tally.outcomes[worst] += 1


def _read(way: Way, paths: Iterator[Path], place: Path) -> Iterator[tuple[Path, list[Any]]]:
    """Each file with what a worker made of each of its clips."""
    if way.compressed:
        reader = Watched(CompressedReader(32, gops=2, pictures=3, reencode=True), place)
        clips = (Clip(path.name, path) for path in paths)
        with closing(run_isolated(reader, clips, workers=1, timeout_s=LIMIT_S)) as answers:
            yield from ((clip.path, [result]) for clip, result in answers)
        return
    transform = Watched(FrameResize(32), place)
    every = (Clip(path.name, path, start_s, end_s) for path in paths for start_s, end_s in way.clips)
    with closing(decode_clips(every, 3, workers=1, timeout_s=LIMIT_S, transform=transform, ahead=2)) as answers:
        results: list[Any] = []
        for clip, result in answers:
            results.append(result)
            if len(results) == len(way.clips):
                yield clip.path, results
                results = []


class Watched:
    """A job, or a part of one, whose worker is watched from the moment on at which it is sent there."""

    def __init__(self, inner: Any, place: Path) -> None:
        self.inner, self.place = inner, place

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        Watch(self.place, self.place / "seen", armed=True).install()

    def __call__(self, given: Any) -> Any:
        """What the inner one gives."""
        return self.inner(given)


# Seeds.


@cache
def seeds() -> tuple[bytes, ...]:
    """Videos of 12 frames, 64 x 48 or what the codec wants; the first is an MP4."""
    made = [_written(*form) for form in _FORMS if form[1] in av.codecs_available]
    sound = _written("mp4", "libx264", {}, sound=True), _written("matroska", "libx264", {}, sound=True)
    return (*made, *sound, *_playlists())


def _written(container: str, codec: str, options: dict[str, str], *, sound: bool = False) -> bytes:
    stream = io.BytesIO()
    size = (176, 144) if codec == "h263" else (64, 48)
    with av.open(stream, "w", format=container, options=options) as out:
        quiet = {"x265-params": "log-level=none"} if codec == "libx265" else {}
        video: Any = out.add_stream(codec, rate=25, options=quiet)
        video.width, video.height = size
        video.pix_fmt = {"gif": "rgb8", "apng": "rgb24", "mjpeg": "yuvj420p"}.get(codec, "yuv420p")
        video.codec_context.gop_size, video.codec_context.thread_count = 5, 1
        tone: Any = out.add_stream("aac", rate=16000) if sound else None
        for number in range(12):
            pixels = np.full((size[1], size[0], 3), 20 * number, np.uint8)
            pixels[: 4 * number] = 255
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24").reformat(format=video.pix_fmt)
            frame.pts, frame.time_base = number, Fraction(1, 25)
            out.mux(video.encode(frame))
        out.mux(video.encode(None))
        for number in range(16 if sound else 0):
            samples = av.AudioFrame.from_ndarray(np.zeros((1, 1000), np.float32), format="fltp", layout="mono")
            samples.sample_rate, samples.pts = 16000, 1000 * number
            out.mux(tone.encode(samples))
    return stream.getvalue()


def _playlists() -> tuple[bytes, ...]:
    """Small texts that have FFmpeg open another file, were they read."""
    return (
        f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{BAIT}\n#EXT-X-ENDLIST\n".encode(),
        f"ffconcat version 1.0\nfile {BAIT}\n".encode(),
        b"v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 9 RTP/AVP 96\n",
        f'<?xml version="1.0"?><MPD><Period><AdaptationSet><Representation><BaseURL>{BAIT}</BaseURL>'
        "</Representation></AdaptationSet></Period></MPD>".encode(),
        f"<smil><body><video src='{BAIT}'/></body></smil>".encode(),
    )


# Mutations.


def _drawn(rng: random.Random, corpus: Corpus) -> bytes:
    if corpus.inputs and rng.random() < 0.3:
        content = rng.choice(corpus.inputs).get("video") or b""
    else:
        content = rng.choice(seeds())
    kind = rng.random()
    if kind < 0.02:
        return rng.choice(seeds())
    if kind < 0.022:
        return rng.choice(bombs())
    if kind < 0.1:
        return content[: rng.randrange(len(content) + 1)]
    if kind < 0.4:
        return mutated(content, rng)
    if kind < 0.5:
        other = rng.choice(seeds())  # the beginning of one, the end of another
        return content[: rng.randrange(len(content) + 1)] + other[rng.randrange(len(other)) :]
    for _ in range(rng.choice((1, 1, 2, 4))):
        content = _operated(content, rng)
    return content


class Part(NamedTuple):
    """A part of a container: where it begins and ends, and where its length stands."""

    start: int
    end: int
    size_at: int
    size_length: int
    order: str = "big"
    marked: bool = False  # a length of Matroska, with a bit that says how long it is itself
    parents: tuple[int, ...] = ()  # places of the four-byte lengths of the parts around it


def _operated(content: bytes, rng: random.Random) -> bytes:
    """With one part removed, doubled, exchanged, or of another length; a block of 188 bytes where none is known."""
    parts = _parts(content)
    if not parts:
        block = 188 if content[:1] == b"G" else rng.choice((16, 188, 512))
        starts = range(0, max(1, len(content) - block), block)
        some = rng.sample(starts, min(9, len(starts)))
        parts = [Part(start, min(start + block, len(content)), start, 0) for start in some]
    part, other = rng.choice(parts), rng.choice(parts)
    inside, kind = content[part.start : part.end], rng.random()
    if kind < 0.2:
        return _resized(content, part, b"", rng)
    if kind < 0.35:
        return _resized(content, part, inside * rng.choice((2, 2, 3, 20)), rng)
    if kind < 0.5:
        return _resized(content, part, content[other.start : other.end], rng)
    if kind < 0.75 and part.size_length:
        number = rng.choice((0, 1, 7, 8, len(inside) - 1, len(inside) + 1, 1 << 20, 1 << 31, (1 << 32) - 1, 1 << 62))
        return _with_size(content, part, number)
    head = part.size_at + part.size_length
    inner = content[head : part.end] if head < part.end else inside
    return content[: part.end - len(inner)] + mutated(inner, rng) + content[part.end :]


def _with_size(content: bytes, part: Part, number: int) -> bytes:
    bits = 7 * part.size_length if part.marked else 8 * part.size_length
    number = (number % (1 << bits)) | (1 << bits if part.marked else 0)
    return (
        content[: part.size_at]
        + number.to_bytes(part.size_length, part.order)  # type: ignore[arg-type]
        + content[part.size_at + part.size_length :]
    )


def _resized(content: bytes, part: Part, instead: bytes, rng: random.Random) -> bytes:
    """With other bytes for a part; half of the time what is around it is told its new length."""
    grown = len(instead) - (part.end - part.start)
    changed = bytearray(content)
    for place in part.parents if rng.random() < 0.5 else ():
        order: Any = part.order
        size = int.from_bytes(changed[place : place + 4], order) + grown
        changed[place : place + 4] = (size % (1 << 32)).to_bytes(4, order)
    return bytes(changed[: part.start]) + instead + content[part.end :]


def _parts(content: bytes) -> list[Part]:
    if content[4:8] in (b"ftyp", b"styp", b"moov"):
        return list(_boxes(content, 0, len(content), ()))
    if content[:4] == b"\x1aE\xdf\xa3":
        return list(_elements(content, 0, len(content)))
    if content[:4] == b"RIFF":
        return list(_chunks(content, 0, len(content), ()))
    if content[:8] == b"\x89PNG\r\n\x1a\n":
        return list(_png_chunks(content))
    if content[:3] == b"GIF":  # the size of the screen, and every other number of two bytes near the beginning
        places = (6, 8, *range(10, min(900, len(content) - 2), 9))
        return [Part(place, place + 2, place, 2, "little") for place in places]
    return []


_FULL_OF_BOXES = {b"moov", b"trak", b"mdia", b"minf", b"stbl", b"edts", b"udta", b"moof", b"traf", b"mvex", b"dinf"}


def _boxes(content: bytes, start: int, end: int, parents: tuple[int, ...]) -> Iterator[Part]:
    while start + 8 <= end:
        size = int.from_bytes(content[start : start + 4], "big")
        if not 8 <= size <= end - start:
            return
        yield Part(start, start + size, start, 4, parents=parents)
        if content[start + 4 : start + 8] in _FULL_OF_BOXES:
            yield from _boxes(content, start + 8, start + size, (*parents, start))
        start += size


_FULL_OF_ELEMENTS = {0x18538067, 0x1654AE6B, 0xAE, 0xE0, 0x1F43B675, 0xA0, 0x1C53BB6B, 0xBB, 0x1549A966, 0x114D9B74}


def _elements(content: bytes, start: int, end: int) -> Iterator[Part]:
    while start + 2 <= end and content[start]:
        id_length = 9 - content[start].bit_length()
        size_at = start + id_length
        if size_at >= end or not content[size_at]:
            return
        size_length = 9 - content[size_at].bit_length()
        number = int.from_bytes(content[size_at : size_at + size_length], "big") & ((1 << 7 * size_length) - 1)
        body = size_at + size_length
        stop = min(end, body + number)  # an unknown length is all ones: to the end
        yield Part(start, stop, size_at, size_length, marked=True)
        if int.from_bytes(content[start:size_at], "big") in _FULL_OF_ELEMENTS:
            yield from _elements(content, body, stop)
        start = stop


def _chunks(content: bytes, start: int, end: int, parents: tuple[int, ...]) -> Iterator[Part]:
    while start + 8 <= end:
        size = int.from_bytes(content[start + 4 : start + 8], "little")
        stop = min(end, start + 8 + size + size % 2)
        yield Part(start, stop, start + 4, 4, "little", parents=parents)
        if content[start : start + 4] in (b"RIFF", b"LIST"):
            yield from _chunks(content, start + 12, stop, (*parents, start + 4))
        start = stop


def _png_chunks(content: bytes) -> Iterator[Part]:
    start = 8
    while start + 12 <= len(content):
        stop = start + 12 + int.from_bytes(content[start : start + 4], "big")
        if stop > len(content):
            return
        yield Part(start, stop, start, 4)
        start = stop


@cache
def bombs() -> tuple[bytes, ...]:
    """A few kilobytes each that claim pictures of up to 4 thousand million pixels."""
    sizes = ((65_535, 65_535), (16_000, 16_000), (8192, 8193), (8192, 8192), (60_000, 1), (1, 60_000), (0, 0))
    return tuple(bomb(*size) for bomb in (_gif_of, _png_of) for size in sizes)


def _gif_of(width: int, height: int) -> bytes:
    first = next(seed for seed in seeds() if seed[:3] == b"GIF")
    return first[:6] + struct.pack("<HH", width, height) + first[10:]


def _png_of(width: int, height: int) -> bytes:
    """An animated PNG of one frame."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    parts = (
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)),
        (b"acTL", struct.pack(">II", 1, 0)),
        (b"fcTL", struct.pack(">IIIIIHHBB", 0, width, height, 0, 0, 1, 12, 0, 0)),
        (b"IDAT", zlib.compress(bytes(1 << 20))),
        (b"IEND", b""),
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)
