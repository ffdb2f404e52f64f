"""Extraction beside its floors: decode alone, encoder alone, and the pipeline that does both, in clips/s.

    python benchmarks/extract.py
    python benchmarks/extract.py --model ViT-B-32-quickgelu --clips 48 --size 640x360 --seconds 20
    python benchmarks/extract.py --device cuda

Clips are drawn and encoded (H.264) for the run; weights are random, which costs the same time as trained ones.
All three are measured in each round, in turn, and the median over the rounds is printed, because a machine is
rarely quiet. On a CPU decoder and encoder want the same cores: the most a pipeline can reach there is
1 / (1/decode + 1/encode), printed as "both on these cores". Where the encoder has a device of its own it is
the slower of the two floors.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np

from calmctl.errors import VideoError
from calmctl.model.backbone import Backbone
from calmctl.model.weights import load_backbone
from calmctl.samples import Clip, Dataset, Split
from calmctl.store.extract import extract
from calmctl.store.shards import BATCH_FRAMES, Encoder
from calmctl.video.pool import available_cores, decode_clips


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="demo-clip", help="open_clip model name, or demo-clip")
    parser.add_argument("--clips", type=int, default=96)
    parser.add_argument("--size", default="320x240", help="width x height of the clips")
    parser.add_argument("--seconds", type=int, default=5, help="length of a clip")
    parser.add_argument("--frames", type=int, default=12)
    parser.add_argument("--workers", type=int, default=available_cores())
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    width, height = (int(side) for side in options.size.split("x"))
    backbone = load_backbone(options.model, None)
    with tempfile.TemporaryDirectory() as folder:
        clips = [
            draw(Path(folder) / f"clip{number:04d}.mp4", number, width, height, options.seconds)
            for number in range(options.clips)
        ]
        print(
            f"{options.clips} clips of {options.seconds} s, {width}x{height}, H.264; {options.frames} frames each; "
            f"{options.model} on {options.device}; {options.workers} workers, {available_cores()} cores"
        )
        measure(clips, backbone, Path(folder), options)


def measure(clips: list[Clip], backbone: Backbone, folder: Path, options: argparse.Namespace) -> None:
    encoder = Encoder(backbone, device=options.device, n_frames=options.frames)
    frames = [decoded for _, decoded in decode_clips(clips, options.frames, transform=encoder.resize)]
    broken = [str(result) for result in frames if isinstance(result, VideoError)]
    if broken:
        sys.exit(f"cannot decode what was just encoded: {broken[0]}")
    encoder.frames(frames[: encoder.n_clips])  # the first call is never typical

    def decode_alone() -> None:
        for _ in decode_clips(clips, options.frames, workers=options.workers, transform=encoder.resize):
            pass

    def encode_alone() -> None:
        for start in range(0, len(frames), encoder.n_clips):
            encoder.frames(frames[start : start + encoder.n_clips])

    split = Split("test", tuple(clips), ("a clip",), (0,))
    dataset = Dataset("folder", "", {"test": split})

    def pipeline() -> None:
        with tempfile.TemporaryDirectory(dir=folder) as store:
            extract(
                dataset,
                backbone,
                Path(store),
                n_frames=options.frames,
                workers=options.workers,
                device=options.device,
            )

    stages = {"decode alone": decode_alone, "encoder alone": encode_alone, "pipeline": pipeline}
    rounds = [{name: spent(stage) for name, stage in stages.items()} for _ in range(options.rounds)]
    wall_s = {name: statistics.median(each[name][0] for each in rounds) for name in stages}
    cpu_s = {name: statistics.median(each[name][1] for each in rounds) for name in stages}
    wall_s["both on these cores"] = wall_s["decode alone"] + wall_s["encoder alone"]
    cpu_s["both on these cores"] = cpu_s["decode alone"] + cpu_s["encoder alone"]
    slower_s = max(wall_s["decode alone"], wall_s["encoder alone"])
    print(f"{'':<20}{'clips/s':>10}{'of the slower floor':>22}{'of both':>10}{'CPU s/clip':>12}")
    for name, seconds in wall_s.items():
        shares = f"{slower_s / seconds:>22.1%}{wall_s['both on these cores'] / seconds:>10.1%}"
        print(f"{name:<20}{len(clips) / seconds:>10.2f}{shares}{cpu_s[name] / len(clips):>12.3f}")
    print(
        f"load average {os.getloadavg()[0]:.1f}; batches of {BATCH_FRAMES} frames; median of {options.rounds} rounds: "
        + "; ".join(", ".join(f"{len(clips) / wall:.1f}" for wall, _ in each.values()) for each in rounds)
    )


def spent(stage: Callable[[], None]) -> tuple[float, float]:
    """Wall time and CPU time, ended child processes included, in seconds."""
    wall_s, cpu_s = time.perf_counter(), sum(os.times()[:4])
    stage()
    return time.perf_counter() - wall_s, sum(os.times()[:4]) - cpu_s


def draw(path: Path, seed: int, width: int, height: int, seconds: int) -> Clip:
    """A drifting coarse pattern with noise on it, 25 frames a second: content that costs bits to decode."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (height // 16 + 1, width // 16 + 1, 3), dtype=np.uint8)
    picture = coarse.repeat(16, 0).repeat(16, 1)[:height, :width]
    noise = rng.integers(0, 24, (height, width, 1), dtype=np.uint8)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"preset": "veryfast", "threads": "1"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for number in range(seconds * 25):
            image = np.roll(picture, 2 * number, axis=1) // 2 + np.roll(noise, 3 * number, axis=0)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image.astype(np.uint8), format="rgb24")))
        container.mux(stream.encode())
    return Clip(path.stem, path)


if __name__ == "__main__":
    main()
