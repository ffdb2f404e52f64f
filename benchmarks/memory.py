"""Memory of an extraction over thousands of clips: the process and its decoding workers, in MB, from start to end.

    python benchmarks/memory.py
    python benchmarks/memory.py --clips 8000 --workers 4 --model ViT-B-32-quickgelu

A few clips of several formats are drawn and linked under many names, so every clip is opened, decoded, resized and
encoded like any other. Resident memory is read from /proc (Linux) at equal shares of the work; a worker that leaked
one frame a clip would grow by hundreds of megabytes.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import av
import numpy as np

from calmctl.model.weights import load_backbone
from calmctl.samples import Clip, Dataset, Split
from calmctl.store.extract import extract

FORMATS = {"mp4": "libx264", "mkv": "libx264", "ts": "libx264", "avi": "mpeg4", "webm": "libvpx"}
ROWS = 12


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="demo-clip", help="open_clip model name, or demo-clip")
    parser.add_argument("--clips", type=int, default=3000)
    parser.add_argument("--broken", type=float, default=0.05, help="share of clips that are no videos")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--frames", type=int, default=12)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        drawn = [draw(Path(folder) / f"drawn{n}.{suffix}", n) for n, suffix in enumerate([*FORMATS] * 4)]
        broken = Path(folder) / "broken.mp4"
        broken.write_bytes(drawn[0].read_bytes()[:2000])
        rng = np.random.default_rng(0)
        clips = []
        for number in range(options.clips):
            source = broken if rng.random() < options.broken else drawn[number % len(drawn)]
            path = Path(folder) / f"clip{number:06d}{source.suffix}"
            path.symlink_to(source)
            clips.append(Clip(path.stem, path))
        print(f"{options.clips} clips, {options.frames} frames each; {options.model}; {options.workers} workers")
        measure(clips, Path(folder), options)


def measure(clips: list[Clip], folder: Path, options: argparse.Namespace) -> None:
    started = time.perf_counter()
    marks = [len(clips) * part // ROWS for part in range(ROWS + 1)]
    seen: list[tuple[int, float, float]] = []
    print(f"{'clips':>8}{'seconds':>9}{'process MB':>12}{'workers MB, each':>24}", flush=True)

    def tell(what: str, done: int, total: int, left_out: int = 0, /) -> None:
        if what == "clips" and done >= marks[len(seen)] and len(seen) < len(marks) - 1 + (done == len(clips)):
            own, workers = resident_mb(os.getpid()), [resident_mb(child) for child in children(os.getpid())]
            seen.append((done, own, max(workers, default=0.0)))
            listed = ", ".join(f"{size:.0f}" for size in workers) or "not started"
            print(f"{done:>8,}{time.perf_counter() - started:>9.1f}{own:>12.0f}{listed:>24}", flush=True)

    dataset = Dataset("folder", "", {"test": Split("test", tuple(clips), ("a clip",), (0,))})
    report = extract(
        dataset,
        load_backbone(options.model, None),
        folder / "store",
        n_frames=options.frames,
        workers=options.workers,
        progress=tell,
    )
    (warm_clips, *warm), (_, *end) = seen[len(seen) // 4], seen[-1]
    print(f"{report.clips_extracted:,} clips extracted, {len(report.undecodable):,} left out")
    print(
        f"from clip {warm_clips:,} to the end the process grew by {end[0] - warm[0]:+.0f} MB, "
        f"the largest worker by {end[1] - warm[1]:+.0f} MB"
    )


def resident_mb(process: int) -> float:
    """Resident memory of a process in MB, or nothing where it has ended."""
    try:
        return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE") / 1e6
    except FileNotFoundError:
        return 0.0


def children(process: int) -> list[int]:
    """The processes that a process has started."""
    found = []
    for thread in Path(f"/proc/{process}/task").iterdir():
        with suppress(FileNotFoundError):  # a thread that has just ended
            found += [int(child) for child in (thread / "children").read_text().split()]
    return sorted(found)


def draw(path: Path, seed: int) -> Path:
    """One second of a drifting pattern, 96 x 72."""
    picture = np.random.default_rng(seed).integers(0, 256, (9, 12, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
    with av.open(str(path), "w", format={"ts": "mpegts", "mkv": "matroska"}.get(path.suffix[1:])) as container:
        stream = container.add_stream(FORMATS[path.suffix[1:]], rate=25)
        stream.width, stream.height, stream.pix_fmt = 96, 72, "yuv420p"
        for number in range(25):
            image = np.ascontiguousarray(np.roll(picture, 2 * number, axis=1))
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    return path


if __name__ == "__main__":
    if not Path("/proc/self/statm").exists():
        sys.exit("this reads /proc, which only Linux has")
    main()
