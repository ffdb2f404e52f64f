"""Clips that reach a training step a second: decoded each time, kept in memory, kept on disk; beside the step's rate.

    python benchmarks/feed.py
    python benchmarks/feed.py --size 640x360 --cores 1 2 4
    python benchmarks/feed.py --device cuda --model ViT-B-32-quickgelu --batch 128 --clips 128 --cores 1 4 15

Clips are drawn and encoded (H.264) for the run. First what one core does with a clip, in CPU time, which a busy
machine disturbs least: decoding, or reading what was kept, and then a crop of its own for each pair (`crop`) or the
one frame size (`resized`). Then epochs of `source.epoch` as a trainer sees them, by the clock, decoding processes and
their start included: "decoded" and "filling" over a caption a clip, the others over `--captions`; a crop a pair, but
for memory, which keeps input size. Last the step (forward, backward and optimiser of X-Pool with CALM) in the same
run. "Ratio" is to the first row of each part. It takes a minute of two cores.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))
from extract import draw

from calmctl.model.build import build_model
from calmctl.model.calm import Batch, CalmModel
from calmctl.recipe import Recipe, recipe_from_dict
from calmctl.samples import Clip, Dataset, Split
from calmctl.source.batches import Sampling
from calmctl.source.source import VideoSource
from calmctl.training.optim import build_optimizer
from calmctl.training.prepare import recipe_vocabulary
from calmctl.video.cache import CachedReader, FrameCache
from calmctl.video.pixels import FrameReader
from calmctl.video.pool import available_cores


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo-clip")
    parser.add_argument("--clips", type=int, default=16)
    parser.add_argument("--captions", type=int, default=10, help="of a clip")
    parser.add_argument("--size", default="320x240", help="width x height of the clips")
    parser.add_argument("--seconds", type=int, default=5, help="length of a clip")
    parser.add_argument("--frames", type=int, default=12)
    parser.add_argument("--side", type=int, default=224, help="input size of the backbone")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--cores", type=int, nargs="+", default=[1, 2], help="decoding processes")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    width, height = (int(side) for side in options.size.split("x"))
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        clips = tuple(
            draw(root / f"clip{number:04d}.mp4", number, width, height, options.seconds)
            for number in range(options.clips)
        )
        first = recipe(root, options, "none", 1)
        model = build_model(first, recipe_vocabulary(first)).to(options.device)
        print(
            f"{len(clips)} clips of {options.seconds} s, {options.size}, H.264; {options.frames} frames; "
            f"{available_cores()} cores, load {os.getloadavg()[0]:.1f}"
        )
        one_core(clips, model, root, options)
        print(f"{'by the clock':<32}{'clips/s':>10}{'ratio':>8}")
        for cores in options.cores:
            epochs(clips, model, root, options, cores)
        print(f"{'a step of ' + options.model:<32}{options.batch / step_s(clips, model, root, options):>10.1f}")


def one_core(clips: tuple[Clip, ...], model: CalmModel, root: Path, options: argparse.Namespace) -> None:
    """CPU time of a clip in this process."""
    resized = model.reader(options.frames)
    assert isinstance(resized, FrameReader)
    crop = resized.augmented((0, 0, 0), flip=True)
    print(f"{'one core':<32}{'CPU ms a clip':>14}{'ratio':>8}")
    for name, reader in (("crop", crop), ("resized", resized)):
        cached = CachedReader(FrameCache.of(root / "kept-here", reader), reader)
        ways = {"decoded": lambda clip, read=reader: read(clip), "kept": lambda clip, read=cached: list(read(clip))}
        spent = {}
        for way, read in ways.items():
            for clip in clips[:8]:  # what is kept is written here
                read(clip)
            began = time.process_time()
            for clip in clips[:8]:
                read(clip)
            spent[way] = (time.process_time() - began) / len(clips[:8])
            print(f"{f'{way}, {name}':<32}{1e3 * spent[way]:>14.1f}{spent['decoded'] / spent[way]:>8.1f}")


def recipe(root: Path, options: argparse.Namespace, cache: str, cores: int) -> Recipe:
    """Frames of `options.side` for a small backbone, or for one by name."""
    memory = cache == "memory"
    return recipe_from_dict(
        {
            "name": "feed",
            "device": options.device,
            "data": {
                "dataset": "folder",
                "root": str(root),
                "frames": options.frames,
                "augment": "none" if memory else "crop-flip",
                "cache": cache,
                "cache_folder": str(root / f"kept-{cores}"),
                "workers": cores,
            },
            "backbone": {"model": options.model, "weights": None, "image_size": options.side},
            "head": {"kind": "xpool"},
        }
    )


def source(clips: tuple[Clip, ...], captions: int, keys: Recipe) -> VideoSource:
    """The clips with as many sentences each."""
    owners = tuple(range(len(clips))) * captions
    split = Split("train", clips, tuple(f"a clip of number {owner}" for owner in owners), owners)
    return VideoSource(Dataset("folder", "", {"train": split}), keys.data)


def epochs(clips: tuple[Clip, ...], model: CalmModel, root: Path, options: argparse.Namespace, cores: int) -> None:
    """Each way to read, with as many processes."""
    decoded = 0.0
    for name, way, captions in (
        ("decoded", "none", 1),
        ("disk, filling", "disk", 1),
        ("disk, filled", "disk", options.captions),
        ("memory", "memory", options.captions),
    ):
        data = source(clips, captions, recipe(root, options, way, cores))
        batches = data.batches(model, "train", Sampling(options.batch, seed=0))
        began = time.perf_counter()
        seen = sum(len(batch.clips) for batch in batches.epoch(0, 0) if batch is not None)
        rate = seen / (time.perf_counter() - began)
        assert seen == len(clips) * captions, f"{seen} pairs"
        decoded = decoded or rate
        print(f"{f'{name}, {cores} processes':<32}{rate:>10.1f}{rate / decoded:>8.1f}")


def step_s(clips: tuple[Clip, ...], model: CalmModel, root: Path, options: argparse.Namespace) -> float:
    """Seconds of a training step, the median of three after one to warm up."""
    keys = recipe(root, options, "none", 1)
    blank = source(clips, 1, keys).batches(model, "train", Sampling(options.batch, seed=0)).blank()
    frames = blank.frames.expand(options.batch, *blank.frames.shape[1:])
    batch = Batch(blank.texts.repeat(options.batch, 1), frames, torch.arange(options.batch))
    batch = batch.to(torch.device(options.device))
    optimizer = build_optimizer(model, keys.optim)
    times = []
    for _ in range(4):
        began = time.perf_counter()
        optimizer.zero_grad(set_to_none=True)
        model(batch).total.backward()
        optimizer.step()
        if options.device == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - began)
    return statistics.median(times[1:])


if __name__ == "__main__":
    main()
