"""The two readers: decord for what it is known to do right, PyAV for everything.

decord 0.6 counts frames from the nearest key frame and does not look at what it gets. Measured: with open
groups of pictures, intra refresh, reordered MPEG-4, H.264 in AVI, MPEG-PS and MPEG-TS it returns other frames
than those asked for, up to 54 of 60 frames away, without a word; with a display matrix it fails or mirrors
wrongly; AV1 and GIF it cannot open. So it is asked only where none of this can happen, and only believed when
its time line is the one PyAV found. Both give the same frames then, which the tests pin.
"""

from __future__ import annotations

import os
from collections.abc import Generator
from contextlib import closing
from functools import cache
from itertools import chain, repeat
from typing import Any

import av
import numpy as np
from av.video.frame import PictureType

from calmctl.data.inspection import Source, open_video, reasons, upright
from calmctl.data.sampling import displayed_frames, instants_before
from calmctl.errors import VideoError

_DECORD_DOES = {
    "mov": {"h264", "mpeg4", "vp9", "mjpeg"},
    "matroska": {"h264", "mpeg4", "vp8", "vp9"},
    "avi": {"mpeg4", "mjpeg"},
}
_MOST_UNDECODED = 0.1
# No codec shows a frame more than so many places after it was decoded.
_DEEPEST_REORDERING = 16
# What is shown before the first key frame refers to what is not there; these decoders know where it does not.
_KNOW_LEADING = {"mpeg1video", "mpeg2video", "hevc", "vvc"}


def suits_decord(source: Source) -> bool:
    """Whether decord can be asked for frames of `source`."""
    return (
        source.codec in _DECORD_DOES.get(source.container, ())
        and source.closed_groups
        and source.orientation == (1, 0, 0, 1)
    )


def read_with_decord(source: Source, times_s: np.ndarray) -> np.ndarray | None:
    """Frames [F, H, W, 3] on the screen at `times_s` [F], or None where decord cannot be believed.

    That is: it fails, its time line differs from the one of `source`, or frames that start at different times
    come back equal more often than not (it repeats frames where it cannot decode).
    """
    decord = _decord()
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


def read_with_pyav(source: Source, times_s: np.ndarray) -> np.ndarray:
    """Frames [F, H, W, 3] on the screen at `times_s` [F] (ascending); raises as `stream_with_pyav`."""
    return np.stack(list(stream_with_pyav(source, times_s)))


def stream_with_pyav(source: Source, times_s: np.ndarray) -> Generator[np.ndarray, None, None]:
    """Frames [H, W, 3] on the screen at `times_s` [F] (ascending), decoded in order up to the last needed.

    One pass and one frame in memory, however long the video. A frame that cannot be decoded leaves the one
    before it on the screen, as in a player.

    Raises:
        VideoError: When more than a tenth of the frames cannot be decoded.
    """
    n_shown = 0
    on_screen: Any = None
    with reasons(), closing(_decoded(source)) as decoded:
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


def _decoded(source: Source) -> Generator[tuple[float, Any], None, None]:
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


def _by_time(source: Source, packets_s: np.ndarray) -> Generator[tuple[float, Any], None, None]:
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


def _check_lost(source: Source, lost: int) -> None:
    if lost > _MOST_UNDECODED * len(source.starts_s):
        raise VideoError(f"damaged: {lost} or more of {len(source.starts_s)} frames cannot be decoded")


def _placed(source: Source) -> np.ndarray:
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


def _frames(source: Source) -> Generator[tuple[int, int, Any], None, None]:
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
            for each in [None, packet] if cut else [packet]:
                if each is not None:
                    # The one number that decoders hand on from a packet to its frame, whatever their order.
                    each.pts = each.dts = n_fed
                    if each.is_keyframe:
                        keys.add(n_fed)
                        unseen = unseen or each.is_discard  # before the beginning that an edit list sets
                    n_fed += 1
                try:
                    frames = video.decode(each)
                except av.error.FFmpegError:
                    if each is not None:
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
                if cut and each is None:
                    video.codec_context.flush_buffers()
                    opened = False
                    keys.clear()


def _rgb(frame: Any, source: Source) -> np.ndarray:
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
