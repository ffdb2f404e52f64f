"""Processor time and memory of decoding a film's windows: in one pass, as search does it, and each by itself.

    python benchmarks/windows.py --minutes 10 --window 10

The film is drawn, 64 x 48 at 10 frames a second; one worker.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

import av
import numpy as np

from calmctl.samples import Clip
from calmctl.video.pixels import FrameResize
from calmctl.video.pool import decode_clips

RATE = 10


def draw(path: Path, minutes: float) -> None:
    """Write the film."""
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=RATE, options={"preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.codec_context.gop_size = 50
        for number in range(int(minutes * 60 * RATE)):
            picture = np.full((48, 64, 3), number % 20 * 10, np.uint8)
            out.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        out.mux(stream.encode(None))


def measure(what: str, calls: Callable[[], Iterable[object]]) -> None:
    """Print how many windows came, and what they cost the workers."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    count = sum(1 for _ in calls())
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    print(f"{what}: {count} windows, {spent:.1f} s of processor time, at most {after.ru_maxrss // 1024} MB so far")


def main() -> None:
    """Measure both."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--window", type=float, default=10.0)
    parser.add_argument("--frames", type=int, default=12)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "film.mp4"
        draw(path, options.minutes)
        starts = np.arange(0.0, options.minutes * 60 - 1e-9, options.window).tolist()
        clips = [Clip(f"{start:g}", path, start, start + options.window) for start in starts]
        # Backwards no window follows another: each is sought by itself.
        for what, some in (("one pass", clips), ("each by itself", clips[::-1])):
            measure(what, lambda some=some: decode_clips(some, options.frames, workers=1, transform=FrameResize(224)))  # type: ignore[misc]


if __name__ == "__main__":
    main()
