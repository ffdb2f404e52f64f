"""The two readers: decord for what it is known to do right, PyAV for everything.

decord 0.6 counts frames from the nearest key frame and does not look at what it gets. Measured: with open
groups of pictures, intra refresh, reordered MPEG-4, H.264 in AVI, MPEG-PS and MPEG-TS it returns other frames
than those asked for, up to 54 of 60 frames away, without a word; with a display matrix it fails or mirrors
wrongly; AV1 and GIF it cannot open. So it is asked only where none of this can happen, and only believed when
its time line is the one PyAV found. Both give the same frames then, which the tests pin.
"""

from __future__ import annotations

import os
import re
from collections.abc import Generator
from contextlib import closing
from functools import cache
from itertools import chain, repeat
from typing import Any

import av
import numpy as np

from calmctl.data.inspection import Source, open_video, reasons, upright
from calmctl.data.sampling import displayed_frames, instants_before
from calmctl.errors import VideoError

_DECORD_DOES = {
    "mov": {"h264", "mpeg4", "vp9", "mjpeg"},
    "matroska": {"h264", "mpeg4", "vp8", "vp9"},
    "avi": {"mpeg4", "mjpeg"},
    "flv": {"h264"},
}
# How such files begin: no playlist does, which decord's FFmpeg might follow, whatever ours made of the file.
_BEGINNINGS = {
    "mov": rb"\0[\0-\xff]{3}(ftyp|moov|mdat|free|skip|wide|pnot|styp)",
    "matroska": rb"\x1a\x45\xdf\xa3",
    "avi": rb"RIFF[\0-\xff]{4}AVI",
    "flv": rb"FLV",
}
_MOST_UNDECODED = 0.1


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
    container, video = open_video(source.path)
    with closing(container):
        n_decoded = failed = 0
        tick_s = float(video.time_base)  # the frames that the decoder held to the end do not know theirs
        first: int | None = None
        packets = (packet for packet in container.demux(video) if packet.size)
        for packet in chain(packets, [None]):  # None: the end, and the decoder hands out what it still holds
            try:
                frames = video.decode(packet)
            except av.error.FFmpegError:
                failed += 1
                if failed > _MOST_UNDECODED * len(source.starts_s):
                    raise VideoError(
                        f"damaged: {failed} or more of {len(source.starts_s)} frames cannot be decoded"
                    ) from None
                continue
            for frame in frames:
                if source.timed and frame.pts is not None:
                    first = frame.pts if first is None else first
                    start_s = (frame.pts - first) * tick_s
                else:  # FFmpeg's guesses are wrong for reordered H.264; frames do come out in display order
                    start_s = float(source.starts_s[min(n_decoded + failed, len(source.starts_s) - 1)])
                n_decoded += 1
                yield start_s, frame


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
