"""Which instants of a clip are looked at, and which frame is on the screen at each of them."""

from __future__ import annotations

import os
import re
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from functools import cache
from itertools import chain, repeat
from typing import Any

import av
import numpy as np
from av.video.frame import PictureType

from calmctl.errors import VideoError
from calmctl.samples import Clip
from calmctl.video.inspect import VideoFile, inspect, open_video, reasons, upright
from calmctl.video.worker import MEMORY_BYTES, Transform, in_gib

# A frame that starts at the very instant asked for is the one on the screen, whatever the rounding of floats.
_TICK_S = 1e-6


def frame_times(duration_s: float, n_frames: int, start_s: float = 0.0, end_s: float | None = None) -> np.ndarray:
    """Centres of `n_frames` equal intervals of a clip, or of a window of it.

    Released code samples by frame number; we sample by time, which is the same at a constant frame rate and
    right at a variable one (T-MASS's released settings; the choice of time is ours).

    Args:
        duration_s: Length of the clip in seconds.
        n_frames: How many instants.
        start_s: Start of the window in seconds from the first frame.
        end_s: End of the window, clipped to the duration; None for the clip's end.

    Returns:
        Seconds from the first frame, float64 [F].

    Raises:
        VideoError: When nothing of the clip lies inside the window.
    """
    if n_frames < 1:
        raise ValueError(f"n_frames must be at least 1, not {n_frames}")
    stop_s = duration_s if end_s is None else min(end_s, duration_s)
    if start_s < 0 or stop_s < start_s or (stop_s == start_s and start_s > 0):
        raise VideoError(
            f"the window from {start_s:g} s to {'the end' if end_s is None else f'{end_s:g} s'} "
            f"holds nothing of a clip of {duration_s:g} s"
        )
    return start_s + (stop_s - start_s) * (np.arange(n_frames, dtype=np.float64) + 0.5) / n_frames


def displayed_frames(starts_s: np.ndarray, times_s: np.ndarray) -> np.ndarray:
    """Index of the frame on the screen at each instant: the last that starts no later.

    Args:
        starts_s: Start of every frame in seconds, ascending, float64 [N].
        times_s: The instants, float64 [F].

    Returns:
        Indices into `starts_s`, int64 [F]; instants before the first frame get the first.
    """
    return np.maximum(np.searchsorted(starts_s, times_s + _TICK_S, side="right") - 1, 0)


def instants_before(start_s: float, times_s: np.ndarray) -> int:
    """How many of the ascending instants [F] come before a frame that starts at `start_s` is on the screen."""
    return int(np.searchsorted(times_s + _TICK_S, start_s, side="left"))


# The two readers: decord for what it is known to do right, PyAV for everything.
#
# decord 0.6 counts frames from the nearest key frame and does not look at what it gets. Measured: with open
# groups of pictures, intra refresh, reordered MPEG-4, H.264 in AVI, MPEG-PS and MPEG-TS it returns other frames
# than those asked for, up to 54 of 60 frames away, without a word; with a display matrix it fails or mirrors
# wrongly; AV1 and GIF it cannot open. So it is asked only where none of this can happen, and only believed when
# its time line is the one PyAV found. Both give the same frames then, which the tests pin.


_DECORD_DOES = {
    "mov": {"h264", "mpeg4", "vp9", "mjpeg"},
    "matroska": {"h264", "mpeg4", "vp8", "vp9"},
    "avi": {"mpeg4", "mjpeg"},
}
# How such files begin: no playlist does, which decord's FFmpeg might follow, whatever ours made of the file.
_BEGINNINGS = {
    "mov": rb"\0[\0-\xff]{3}(ftyp|moov|mdat|free|skip|wide|pnot|styp)",
    "matroska": rb"\x1a\x45\xdf\xa3",
    "avi": rb"RIFF[\0-\xff]{4}AVI",
    "flv": rb"FLV",
}
_MOST_UNDECODED = 0.1
# No codec shows a frame more than so many places after it was decoded.
_DEEPEST_REORDERING = 16
# What is shown before the first key frame refers to what is not there; these decoders know where it does not.
_KNOW_LEADING = {"mpeg1video", "mpeg2video", "hevc", "vvc"}


def suits_decord(source: VideoFile) -> bool:
    """Whether decord can be asked for frames of `source`."""
    return (
        source.codec in _DECORD_DOES.get(source.container, ())
        and source.closed_groups
        and source.orientation == (1, 0, 0, 1)
    )


def read_with_decord(source: VideoFile, times_s: np.ndarray) -> np.ndarray | None:
    """Frames [F, H, W, 3] on the screen at `times_s` [F], or None where decord cannot be believed.

    That is: it fails, its time line differs from the one of `source`, or frames that start at different times
    come back equal more often than not (it repeats frames where it cannot decode).
    """
    decord = _decord()
    with source.path.open("rb") as handle:
        if not re.match(_BEGINNINGS[source.container], handle.read(12)):
            return None
    try:
        # Opened, read and dropped: readers kept or shared across threads and forks dead-lock.
        reader = decord.VideoReader(os.path.abspath(source.path), num_threads=1)
        if len(reader) != len(source.starts_s):
            return None
        starts_s = reader.get_frame_timestamp(range(len(reader)))[:, 0].astype(np.float64)
        # Its times are float32.
        if not np.allclose(starts_s - starts_s[0], source.starts_s, rtol=1e-6, atol=1e-3):
            return None
        wanted = displayed_frames(source.starts_s, times_s)
        frames: np.ndarray = reader.get_batch(wanted.tolist()).asnumpy()
    except (decord.DECORDError, RuntimeError, AssertionError, IndexError):
        return None
    changes = np.flatnonzero(np.diff(wanted))
    repeats = sum(np.array_equal(frames[i], frames[i + 1]) for i in changes)
    return None if repeats > len(changes) / 2 else frames


def stream_with_pyav(source: VideoFile, times_s: np.ndarray) -> Generator[np.ndarray, None, None]:
    """Frames [H, W, 3] on the screen at `times_s` [F] (ascending), decoded in order up to the last needed.

    One pass and one frame in memory, however long the video. A frame that cannot be decoded leaves the one
    before it on the screen, as in a player.

    Raises:
        VideoError: When more than a tenth of the frames cannot be decoded.
    """
    n_shown = 0
    on_screen: Any = None
    with reasons(), closing(decoded_frames(source)) as decoded:
        for start_s, frame in decoded:
            # Every instant before this frame starts belongs to the one on the screen.
            n_more = instants_before(start_s, times_s) - n_shown if on_screen is not None else 0
            if n_more > 0:
                yield from repeat(_rgb(on_screen, source), n_more)
                n_shown += n_more
            if n_shown == len(times_s):
                return
            on_screen = frame
        if on_screen is None:
            raise VideoError("damaged: no frame can be decoded")
        yield from repeat(_rgb(on_screen, source), len(times_s) - n_shown)


def decoded_frames(source: VideoFile) -> Generator[tuple[float, Any], None, None]:
    """All frames in display order, each with its start in seconds from the first."""
    if source.timed:
        yield from _by_time(source, source.packets_s)
        return
    # Packets have an order only. FFmpeg's guesses are wrong for reordered H.264; but frames come out in display
    # order, so the n-th belongs to the n-th place, and a packet that gives no frame leaves one place empty.
    waiting: set[int] = set()
    n_out = gone = lost = n_seen = 0
    for n_fed, packet, frame in _frames(source):
        # How much of a head is lost shows only at the end.
        if frame is not None and not n_out and (packet or source.open_head):
            yield from _by_time(source, _placed(source))
            return
        waiting.update(k for k in range(n_seen, n_fed) if not np.isnan(source.packets_s[k]))
        n_seen = n_fed
        waiting.discard(packet)
        empty = {k for k in waiting if k < n_fed - _DEEPEST_REORDERING or (k in source.silent and k < packet)}
        waiting -= empty
        gone += len(empty) + (frame is None)
        lost += len(empty - source.silent) + (frame is None)
        _check_lost(source, lost)
        if frame is not None:
            yield float(source.starts_s[min(n_out + gone, len(source.starts_s) - 1)]), frame
            n_out += 1
    _check_lost(source, lost + len(waiting - source.silent))


def _by_time(source: VideoFile, packets_s: np.ndarray) -> Generator[tuple[float, Any], None, None]:
    """Frames at the times of the packets [P] they were decoded from; FFmpeg drops some without an error."""
    waiting: set[int] = set()  # packets whose frames did not come out yet
    excused = set(source.silent)
    lost = n_seen = 0
    for n_fed, packet, frame in _frames(source):
        waiting.update(k for k in range(n_seen, n_fed) if not np.isnan(packets_s[k]))
        n_seen = n_fed
        if frame is None or packet not in waiting:
            continue
        waiting.discard(packet)
        if frame.interlaced_frame:  # its second field may be a packet of its own
            excused.add(packet + 1)
        # Frames come out in display order: what should have been shown before this one will not come any more.
        passed = {k for k in waiting if packets_s[k] < packets_s[packet]}
        waiting -= passed
        lost += len(passed - excused)
        _check_lost(source, lost)
        yield float(packets_s[packet]), frame
    _check_lost(source, lost + len(waiting - excused))


def _check_lost(source: VideoFile, lost: int) -> None:
    if lost > _MOST_UNDECODED * len(source.starts_s):
        raise VideoError(f"damaged: {lost} or more of {len(source.starts_s)} frames cannot be decoded")


def _placed(source: VideoFile) -> np.ndarray:
    """The start of every packet's frame [P], where packets have an order only: by decoding all of them once."""
    shown = np.flatnonzero(~np.isnan(source.packets_s))
    decoded = (packet for _, packet, frame in _frames(source) if frame is not None)
    came = np.array([packet for packet in dict.fromkeys(decoded) if packet in shown])
    lost = np.setdiff1d(shown, came)
    # What is lost behind the first key frame was to be shown before it, as what is lost before it.
    behind = came[0] + 1
    while behind in lost:
        behind += 1
    places = np.arange(len(came)) + np.searchsorted(lost, np.maximum(came, behind))
    packets_s = source.packets_s.copy()
    packets_s[came] = source.starts_s[places]
    packets_s[lost] = np.delete(source.starts_s, places)
    return packets_s


def _frames(source: VideoFile) -> Generator[tuple[int, int, Any], None, None]:
    """Frames as they come out of the decoder: packets fed so far, the frame's own packet, and the frame.

    The frame is None where that packet raises an error. Nothing comes out before the first key frame: some
    decoders invent what is missing there (MPEG-4 part 2 starts from grey, H.264 from whatever it has).
    """
    container, video = open_video(source.path)
    with closing(container):
        keys: set[int] = set()
        opened = unseen = False
        n_fed = 0
        packets = (packet for packet in container.demux(video) if packet.size)
        for packet in chain(packets, [None]):  # None: the end, and the decoder hands out what it still holds
            cut = packet is not None and n_fed in source.cuts
            for fed in [None, packet] if cut else [packet]:
                if fed is not None:
                    # The one number that decoders hand on from a packet to its frame, whatever their order.
                    fed.pts = fed.dts = n_fed
                    if fed.is_keyframe:
                        keys.add(n_fed)
                        unseen = unseen or fed.is_discard  # before the beginning that an edit list sets
                    n_fed += 1
                try:
                    frames = video.decode(fed)
                except av.error.FFmpegError:
                    if fed is not None:
                        yield n_fed, n_fed - 1, None
                    continue
                for frame in frames:
                    number = n_fed - 1 if frame.pts is None else frame.pts
                    opened = opened or frame.key_frame or frame.pict_type == PictureType.I
                    # Containers call things key frames that are none; they are asked where the decoder is silent.
                    silent = frame.pict_type not in (PictureType.P, PictureType.B)
                    opened = opened or (silent and (number in keys or not source.keyed))
                    # H.264 may come to rest without a key frame (intra refresh), and then says so with a P frame.
                    opened = opened or (source.codec == "h264" and frame.pict_type == PictureType.P)
                    opened = opened or (unseen and any(key < number for key in keys))
                    if opened or source.codec in _KNOW_LEADING:
                        yield n_fed, number, frame
                if cut and fed is None:
                    video.codec_context.flush_buffers()
                    opened = False
                    keys.clear()


def _rgb(frame: Any, source: VideoFile) -> np.ndarray:
    """One frame as it is shown; where the size changes within a file, brought to the first frame's."""
    stored = (source.width, source.height) if source.orientation[0] else (source.height, source.width)
    array = frame.to_ndarray(format="rgb24", width=stored[0], height=stored[1])
    return upright(array, source.orientation)


@cache
def _decord() -> Any:
    """The decord module, told to keep FFmpeg's messages off the terminal.

    A file it cannot open makes it write to the terminal all the same; those `inspect` has refused before.
    """
    import decord

    decord.logging.set_level(decord.logging.QUIET)
    return decord


# Frames of a video file, by time; the only door between video files and the rest of the package.
#
# Memory does not grow with the number of frames asked for: whole frames go through a window of `WINDOW_BYTES`, and
# what a transform makes of them is kept.


FRAMES_PER_WINDOW = 16
WINDOW_BYTES = 128 << 20
"""Whole frames held at once: 16, fewer where they are larger than 1080p (our choice)."""
OPEN_BYTES = 256 << 20
"""What the windows of one file that overlap may hold together; beyond that the file is passed over again."""

# Below this, too few whole frames fit into a window for decord's answers to be checked against one another.
_FEWEST_CHECKED = 4
# Seconds of video from one sign of life to the next: the way to a window may take longer than a clip may.
_SIGN_S = 10.0


def read_frames(clip: Clip, n_frames: int, transform: Transform | None = None) -> np.ndarray:
    """The frames on the screen at the centres of `n_frames` equal intervals of `clip`.

    A clip of fewer frames shows some of them at several instants, and they repeat.

    Args:
        clip: The file, and the window of it.
        n_frames: How many frames.
        transform: Makes [n, ...] of one shape of RGB, uint8 [n, H, W, 3], upright; None keeps whole frames.

    Returns:
        What the transform made of all frames, [F, ...].

    Raises:
        VideoError: The short reason why the clip cannot be decoded.
    """
    source = inspect(clip.path)
    times_s = frame_times(source.duration_s, n_frames, clip.start_s, clip.end_s)
    frames: np.ndarray | None = None
    done = 0
    for window in frame_windows(source, times_s):
        transformed = window if transform is None else transform(window)
        if frames is None:
            if len(transformed) == n_frames:
                return transformed
            frames = np.empty((n_frames, *transformed.shape[1:]), transformed.dtype)
        frames[done : done + len(transformed)] = transformed
        done += len(transformed)
    assert frames is not None
    return frames


def read_windows(
    clips: Sequence[Clip], n_frames: int, transform: Transform | None = None
) -> Iterator[np.ndarray | VideoError | None]:
    """The same for windows of one file, by their beginnings, in one pass over it: as `read_frames` of each, in order.

    Where a window holds nothing of the file, its place has the reason; None is a sign of life.

    Raises:
        VideoError: The file cannot be decoded, or not any further.
    """
    source = inspect(clips[0].path)
    times: list[np.ndarray | VideoError] = []
    for clip in clips:
        try:
            times.append(frame_times(source.duration_s, n_frames, clip.start_s, clip.end_s))
        except VideoError as fault:
            times.append(fault)
    blank = np.zeros((1, source.height, source.width, 3), np.uint8)
    window_bytes = n_frames * (blank if transform is None else transform(blank)).nbytes
    most = max(1, OPEN_BYTES // window_bytes)
    some = len(times) if _most_open(times) <= most else most
    for first in range(0, len(times), some):
        yield from _one_pass(source, times[first : first + some], transform)


def _most_open(times: Sequence[np.ndarray | VideoError]) -> int:
    """How many windows are under way at once, when all of them are read in one pass."""
    spans = [(instants[0], instants[-1]) for instants in times if isinstance(instants, np.ndarray)]
    begun = np.array([start for start, _ in spans])
    ended = np.sort([end for _, end in spans])
    return int(np.max(np.arange(1, len(spans) + 1) - np.searchsorted(ended, begun), initial=0))


def _one_pass(
    source: VideoFile, times: Sequence[np.ndarray | VideoError], transform: Transform | None
) -> Iterator[np.ndarray | VideoError | None]:
    """Each window in its turn; those that others overlap are held until they are whole."""
    chosen = [number for number, each in enumerate(times) if isinstance(each, np.ndarray)]
    spans = [each for each in times if isinstance(each, np.ndarray)]
    every_s = np.concatenate([np.empty(0), *spans])
    signs_s = np.arange(0.0, every_s.max(initial=0.0), _SIGN_S)
    owners = np.repeat(np.array([-1, *chosen]), [len(signs_s), *map(len, spans)])
    every_s = np.concatenate([signs_s, every_s])
    order = np.argsort(every_s, kind="stable")
    under_way: dict[int, list[np.ndarray]] = {number: [] for number in chosen}
    next_one = 0
    shown = transformed = np.empty(0)
    for owner, frame in zip(owners[order], _streamed_frames(source, every_s[order]), strict=True):
        if owner < 0:
            yield None
            continue
        if frame is not shown:
            shown, transformed = frame, frame if transform is None else transform(frame[None])[0]
        under_way[owner].append(transformed)
        while next_one < len(times):
            reason = times[next_one]
            if isinstance(reason, np.ndarray):
                if len(under_way[next_one]) < len(reason):
                    break
                yield np.stack(under_way.pop(next_one))
            else:
                yield reason
            next_one += 1
    yield from (each for each in times[next_one:] if isinstance(each, VideoError))


def frame_windows(source: VideoFile, times_s: np.ndarray) -> Iterator[np.ndarray]:
    """Whole frames [n, H, W, 3] of consecutive instants."""
    size = min(FRAMES_PER_WINDOW, max(1, WINDOW_BYTES // (source.width * source.height * 3)))
    windows = [times_s[i : i + size] for i in range(0, len(times_s), size)]
    by_decord = suits_decord(source) and size >= _FEWEST_CHECKED
    for done, window in enumerate(windows):
        with _within_memory(source):
            frames = read_with_decord(source, window) if by_decord else None
        if frames is None:  # from here on in one pass: PyAV would start from the beginning for every window
            yield from _streamed(source, np.concatenate(windows[done:]), size)
            return
        yield frames


def _streamed(source: VideoFile, times_s: np.ndarray, size: int) -> Iterator[np.ndarray]:
    waiting: list[np.ndarray] = []
    for frame in _streamed_frames(source, times_s):
        waiting.append(frame)
        if len(waiting) == size:
            yield np.stack(waiting)
            waiting = []
    if waiting:
        yield np.stack(waiting)


def _streamed_frames(source: VideoFile, times_s: np.ndarray) -> Iterator[np.ndarray]:
    with _within_memory(source):
        yield from stream_with_pyav(source, times_s)


@contextmanager
def _within_memory(source: VideoFile) -> Iterator[None]:
    """What the decoders cannot hold is what the file claims, whatever machine this is."""
    try:
        yield
    except MemoryError:
        raise VideoError(
            f"{source.width} x {source.height} pixels in {len(source.starts_s):,} frames: "
            f"decoding takes more than {in_gib(MEMORY_BYTES)} of memory"
        ) from None
