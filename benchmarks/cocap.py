"""What vectors and residuals tell CoCap on the drawn world, over several seeds; and what a clip takes to caption.

    calmctl demo                                   (once: draws the world)
    python benchmarks/cocap.py
    python benchmarks/cocap.py --time 224          (seconds a clip at full size, random weights)

The acceptance test of `caption.system: cocap`: I pictures alone < with vectors <= with vectors and residuals, in motion
words and in CIDEr. Sentences have two words, a colour and a motion, so that a few hundred steps learn them. Clips are
read once; what a setting leaves out is cut off. The demo's CLIP is frozen.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from calmctl.anchors.shipped import resolve_vocabulary
from calmctl.captions.files import cider
from calmctl.captions.generate import CaptionSearch, caption_features
from calmctl.captions.tokens import tokenize, tokenize_references
from calmctl.data.demo import load_demo
from calmctl.model.build import build_caption_model
from calmctl.model.calm import Batch
from calmctl.model.captioner import CaptionModel, training_vocabulary, whole_vocabulary
from calmctl.model.weights import load_backbone
from calmctl.recipe import Recipe, load_recipe, recipe_from_dict, resolve_recipe
from calmctl.samples import Clip, Split
from calmctl.training.optim import build_optimizer, schedule_factor, set_learning_rate
from calmctl.video.compressed import CompressedReader, Reencode
from calmctl.video.pool import read_clips

SETTINGS = {
    "I": ("data.compressed.vectors=none", "data.compressed.residual=false"),
    "I + MV": ("data.compressed.residual=false",),
    "I + MV + Res": (),
}


def main() -> None:
    """Measure and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=Path("data/demo"))
    parser.add_argument("--backbone", default="drawn-2")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first-seed", type=int, default=24)
    parser.add_argument("--clips", type=int, default=700, help="of the training split")
    parser.add_argument("--tests", type=int, default=200, help="test clips")
    parser.add_argument("--epochs", type=int, default=7)
    parser.add_argument("--pictures", type=int, default=4)
    parser.add_argument("--time", type=int, metavar="SIDE", help="time captioners of this input size instead")
    arguments = parser.parse_args()
    console = Console(width=100)
    if arguments.time:
        console.print(time_captioners(arguments.time))
        return
    torch.set_num_threads(1)
    entries = {entry["id"]: entry for entry in json.loads((arguments.root / "demo.json").read_text())["clips"]}
    motions = {name: entry["attributes"]["motion"] for name, entry in entries.items()}
    world = load_demo(arguments.root, shifted=False, protocol="captioning").splits
    train, test = (
        told(world[name], count, entries) for name, count in (("train", arguments.clips), ("test", arguments.tests))
    )
    keys = [f"data.root={arguments.root}", f"backbone.weights={arguments.backbone}", f"optim.epochs={arguments.epochs}"]
    keys += [f"data.compressed.pictures={arguments.pictures}", "optim.batch_size=24", "optim.lr_head=1.5e-3"]
    whole = model_of(recipe_of(keys), train).reader(0)
    assert isinstance(whole, CompressedReader)
    started = time.perf_counter()
    packed = {split.name: read(split, whole) for split in (train, test)}
    console.print(f"{len(train.clips)} + {len(test.clips)} clips read in {time.perf_counter() - started:.0f} s")
    rows: dict[str, list[tuple[float, float]]] = {name: [] for name in SETTINGS}
    for seed in range(arguments.first_seed, arguments.first_seed + arguments.seeds):
        for name, setting in SETTINGS.items():
            started = time.process_time()
            recipe = recipe_of([*keys, *setting, f"seed={seed}"])
            rows[name].append(run(recipe, train, test, packed, motions))
            words, score = rows[name][-1]
            console.print(
                f"seed {seed}, {name}: motion words {words:.1f} %, CIDEr {score:.1f}, "
                f"{time.process_time() - started:.0f} s of one core"
            )
    table = Table("reads", "motion words %", "CIDEr", box=None, pad_edge=False)
    for name, numbers in rows.items():
        table.add_row(name, *(spread([each[column] for each in numbers]) for column in (0, 1)))
    console.print(table)


def spread(values: Sequence[float]) -> str:
    """Mean and sample standard deviation."""
    return f"{statistics.mean(values):.1f}" + (f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else "")


def recipe_of(overrides: list[str]) -> Recipe:
    """The demo's CoCap with changes."""
    return load_recipe(resolve_recipe("demo-cocap"), overrides)


def told(split: Split, count: int, entries: dict[str, Any]) -> Split:
    """The first clips of a split, each with one sentence of two words: a colour and a motion."""
    clips = split.clips[:count]
    shown = [entries[clip.id]["attributes"] for clip in clips]
    sentences = tuple(f"{scene['colour']} {scene['motion']}" for scene in shown)
    return Split(split.name, clips, sentences, tuple(range(len(clips))), ())


def model_of(recipe: Recipe, train: Split) -> CaptionModel:
    """A fresh model of a recipe."""
    backbone = load_backbone(recipe.backbone.model, recipe.backbone.weights)
    torch.manual_seed(recipe.seed)
    tokens = training_vocabulary(backbone, train.captions)
    return build_caption_model(recipe, resolve_vocabulary("shapes@1"), tokens, backbone)


def read(split: Split, reader: CompressedReader) -> np.ndarray:
    """All clips, uint8 [N, G, bytes]."""
    clips = []
    for clip, result in read_clips(split.clips, reader, workers=2):
        assert isinstance(result, np.ndarray), f"{clip.id}: {result}"
        clips.append(result)
    return np.stack(clips)


def run(
    recipe: Recipe, train: Split, test: Split, packed: dict[str, np.ndarray], motions: dict[str, str]
) -> tuple[float, float]:
    """Train and test: percent of test captions that end with the clip's motion, and CIDEr x 100."""
    model = model_of(recipe, train)
    # I pictures come first in a row, then vectors, then residuals: a setting that leaves some out is a shorter row.
    length = model.reader(0).shape[1]
    kept = {name: np.ascontiguousarray(rows[..., :length]) for name, rows in packed.items()}
    steps = -(-len(train.clips) // recipe.optim.batch_size)
    optimizer, total = build_optimizer(model, recipe.optim), steps * recipe.optim.epochs
    order = np.random.default_rng(recipe.seed)
    model.train()
    for epoch in range(recipe.optim.epochs):
        for number, clips in enumerate(np.array_split(order.permutation(len(train.clips)), steps)):
            set_learning_rate(optimizer, schedule_factor(epoch * steps + number, total, recipe.optim.warmup))
            optimizer.zero_grad()
            features = model.encode_frames(torch.from_numpy(kept["train"][clips]))
            sentences = [train.captions[clip] for clip in clips]
            batch = Batch(torch.empty(0), features, torch.from_numpy(clips), model.caption_tokens(sentences))
            model(batch).total.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.optim.clip_norm)
            optimizer.step()
    model.eval()
    with torch.inference_mode():
        features = torch.cat([model.encode_frames(part) for part in torch.from_numpy(kept["test"]).split(50)])
    captions = [caption.text for caption in caption_features(model, features, CaptionSearch(beam=1))]
    right = [text.split()[-1:] == [motions[clip.id]] for text, clip in zip(captions, test.clips, strict=True)]
    references = [[text] for text in test.captions]
    scores = cider(tokenize(captions, "ptb-python"), tokenize_references(references, "ptb-python"))
    return 100 * statistics.mean(right), 100 * float(scores.mean())


# What a clip takes, reading included.


def time_captioners(side: int) -> Table:
    """Seconds a clip of 240 pictures, reading, encoding and a caption of 20 words, on one thread."""
    torch.set_num_threads(1)
    table = Table("captioner", "read s", "model s", "together", box=None, pad_edge=False)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "drawn.mp4"
        path.write_bytes(drawn_clip())
        started = time.process_time()
        encoded = Path(folder) / "reencoded.mp4"
        encoded.write_bytes(Reencode(240)(path).tobytes())
        table.add_row("re-encoding, once", f"{time.process_time() - started:.2f}", "", "")
        for name, model_name, keys, source in (
            ("12 frames, ViT-B/32", "ViT-B-32-quickgelu", {}, path),
            ("12 frames, ViT-B/16", "ViT-B-16-quickgelu", {}, path),
            ("CoCap, ViT-B/16", "ViT-B-16-quickgelu", {"system": "cocap", "width": 512, "ffn": 512}, encoded),
        ):
            values = {"name": "x", "task": "caption", "data": {"dataset": "demo"}, "alignment": {"kind": "none"}}
            values |= {"backbone": {"model": model_name, "weights": None}, "caption": {**keys, "max_tokens": 20}}
            backbone = load_backbone(model_name, None)
            build = partial(build_caption_model, recipe_from_dict(values), resolve_vocabulary("shapes@1"))
            model = build(whole_vocabulary(backbone), backbone).eval()
            assert side == backbone.spec.image_size[0]
            started = time.process_time()
            clip = model.reader(12)(Clip("drawn", source))
            read_s = time.process_time() - started
            started = time.process_time()
            with torch.inference_mode():
                caption_features(model, model.encode_frames(torch.from_numpy(clip[None])), CaptionSearch(beam=1))
            model_s = time.process_time() - started
            table.add_row(name, f"{read_s:.2f}", f"{model_s:.2f}", f"{read_s + model_s:.2f}")
    return table


def drawn_clip() -> bytes:
    """240 pictures of 320 x 240: smooth noise that moves, H.264."""
    from io import BytesIO

    rng, buffer = np.random.default_rng(0), BytesIO()
    coarse = rng.integers(0, 255, (40, 60, 3), dtype=np.uint8).repeat(16, 0).repeat(16, 1)
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=24)
        stream.height, stream.width, stream.pix_fmt, stream.thread_count = 240, 320, "yuv420p", 1
        for number in range(240):
            window = np.ascontiguousarray(coarse[number : number + 240, 2 * number : 2 * number + 320])
            container.mux(stream.encode(av.VideoFrame.from_ndarray(window, format="rgb24")))
        container.mux(stream.encode())
    return buffer.getvalue()


if __name__ == "__main__":
    main()
