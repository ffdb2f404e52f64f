"""What CALM adds to a training step: time, memory and parameters with and without it, for each head.

    python benchmarks/train_step.py
    python benchmarks/train_step.py --model ViT-B-32-quickgelu --batch 128 --frames 12 --device cuda --precision bf16
    python benchmarks/train_step.py --heads xpool --encode frozen --prompts 77
    python benchmarks/train_step.py --heads xpool --ways before separate now
    python benchmarks/train_step.py --model ViT-B-32-quickgelu --batch 128 --chunk 8 --heads xpool --steps 1 --warm-up 0

A step is forward, backward, clipping and the optimiser, on one batch of drawn frames and different sentences of about
ten words; nothing is decoded. Steps with and without CALM alternate, after a few of each to warm up, and medians are
printed, because a machine is rarely quiet. On a CPU the time is that of the process's own threads (one), which
other processes disturb less than the clock on the wall; on a GPU it is the clock's, of five steps in a row between
synchronisations, as a training takes them.

Ways: `now`; `compiled`, with the towers' blocks through torch.compile (`optim.compile`); `separate`, without what
sentences and prompts have in common (on a CPU); `before`, the step as it once was, with the same weights: patches
through a convolution, prompts in a pass of their own, every token of each text block, pixels in float32, and a host
that waits for each loss.
Memory is what a step needs beyond what lies in memory before it: of a GPU as its allocator counts it, on a CPU
as the profiler counts live tensors, in a step of its own; not where `--chunk` is given, whose memory
benchmarks/chunk.py measures.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from typing import Any

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from calmctl.anchors.distribution import AnchorBank
from calmctl.anchors.shipped import resolve_vocabulary
from calmctl.model.backbone import encode_in_chunks
from calmctl.model.build import build_model
from calmctl.model.calm import Batch, CalmModel
from calmctl.recipe import recipe_from_dict
from calmctl.training.optim import build_optimizer, set_learning_rate

HEADS = ("meanp", "seqlstm", "seqtransf", "xpool", "t-mass", "emcl", "wti", "uatvr")
WAYS = ("before", "now", "compiled")
BURST = 5
"""Steps in a row on a GPU."""
SENTENCES = [
    f"{who} in a {colour} shirt is {action} on stage"
    for action in ("playing a guitar", "singing a song", "dancing with a friend", "talking about cars", "cooking")
    for colour in ("red", "blue", "white", "green", "black", "yellow")
    for who in ("a man", "a woman", "the girl", "one of two boys", "somebody")
]


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo-clip")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--frames", type=int, default=12)
    parser.add_argument("--vocabulary", default="charades@1")
    parser.add_argument("--heads", nargs="+", default=HEADS, choices=HEADS)
    parser.add_argument("--steps", type=int, default=15, help="measured, of each kind")
    parser.add_argument("--warm-up", type=int, default=3, help="steps of each kind before")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", default="fp32", choices=("fp32", "bf16"))
    parser.add_argument("--encode", default="gradient", help="anchors.encode")
    parser.add_argument("--prompts", type=int, help="pad the prompts to this many tokens, to see what it costs")
    parser.add_argument("--chunk", type=int, help="optim.chunk: large batches in little memory")
    parser.add_argument("--ways", nargs="+", choices=(*WAYS, "separate"), help="default: now; on a GPU all three")
    options = parser.parse_args()
    run(options)


def run(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Print the table; returns its rows."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # torch's profiler tells when it starts, a line each time
    if options.device == "cpu":
        torch.set_num_threads(1)
    where = torch.cuda.get_device_name() if options.device == "cuda" else "1 thread"
    print(
        f"{options.model}, batch {options.batch}, {options.frames} frames, {options.vocabulary}, "
        f"anchors.encode {options.encode}, {options.precision}, {options.device} ({where}), torch {torch.__version__}\n"
    )
    columns = ("way", "step ms", "with CALM", "share", "memory MB", "with CALM", "parameters", "CALM's")
    print(f"{'head':12}" + "".join(f"{name:>12}" for name in columns), flush=True)
    ways = options.ways or (WAYS if options.device == "cuda" else ("now",))
    return [measure(options, kind, way) for kind in options.heads for way in ways]


def measure(options: argparse.Namespace, kind: str, way: str) -> dict[str, Any]:
    """Print the row of one head and one way; returns it."""
    plain, calm = (Stepper(options, kind, alignment, way) for alignment in ("none", "vae"))
    for stepper in (plain, calm) * options.warm_up:
        stepper.step()
    times = [(plain.seconds(), calm.seconds()) for _ in range(options.steps)]
    without, within = (1000 * statistics.median(column) for column in zip(*times, strict=True))
    share = statistics.median((b - a) / b for a, b in times)
    memory = ["", ""] if options.chunk else [f"{each.peak_mb():.0f}" for each in (plain, calm)]
    added = calm.n_parameters - plain.n_parameters
    print(
        f"{kind:12}{way:>12}{without:>12.1f}{within:>12.1f}{share:>12.1%}{memory[0]:>12}{memory[1]:>12}"
        f"{plain.n_parameters:>12,}{added:>12,}",
        flush=True,
    )
    row = {"head": kind, "way": way, "precision": options.precision, "step_ms": without, "with_calm_ms": within}
    row |= {"share": share, "memory_mb": memory[0], "memory_with_calm_mb": memory[1]}
    if options.device == "cuda":
        row["peak_gb"] = torch.cuda.max_memory_allocated() / 1e9
        del plain, calm, stepper
        torch.cuda.empty_cache()
    return row


def as_before(model: CalmModel) -> CalmModel:
    """A model whose steps are taken as they once were; same weights, same losses up to rounding."""
    backbone = model.backbone
    mean, std = (torch.tensor(each) for each in (backbone.spec.mean, backbone.spec.std))

    def normalise(frames: Tensor) -> Tensor:
        scaled = frames.movedim(-1, -3).float().div_(255)
        return scaled.sub_(mean.to(frames.device).view(3, 1, 1)).div_(std.to(frames.device).view(3, 1, 1)).contiguous()

    def texts_and_anchors(texts: Tensor) -> tuple[Tensor, None]:
        return encode_in_chunks(model.encode_texts, texts, model.chunk), None

    backbone.clip.visual.conv1.__class__ = nn.Conv2d
    model.normalise = normalise  # type: ignore[assignment]
    model.texts_and_anchors = texts_and_anchors  # type: ignore[method-assign]
    backbone.text_pass = "whole"
    return model


class Stepper:
    """One model with its optimiser and its batch."""

    def __init__(self, options: argparse.Namespace, kind: str, alignment: str, way: str = "now") -> None:
        self.device, self.bf16 = torch.device(options.device), options.precision == "bf16"
        self.waits = way == "before"
        torch.manual_seed(0)
        self.model = build(options, kind, alignment).to(self.device).train()
        if options.prompts and self.model.anchors is not None:
            pad_prompts(self.model.anchors, options.prompts)
        self.n_parameters = sum(p.numel() for p in self.model.parameters())
        recipe = recipe_from_dict({"name": "x", "data": {"dataset": "demo"}})
        self.optimizer = build_optimizer(self.model, recipe.optim)
        set_learning_rate(self.optimizer, 1e-3)
        if way == "before":
            as_before(self.model)
        if way == "separate":
            self.model.backbone.text_pass = "ends"
        if way == "compiled":
            self.model.backbone.compile_blocks()
        size, _ = self.model.backbone.spec.image_size
        self.batch = Batch(
            self.model.backbone.tokenize([SENTENCES[row % len(SENTENCES)] for row in range(options.batch)]),
            torch.randint(
                0, 256, (options.batch, options.frames, size, size, 3), dtype=torch.uint8, device=self.device
            ),
            torch.arange(options.batch),
        ).to(self.device)

    def step(self) -> None:
        """One step of training."""
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.bf16):
            total: Tensor = self.model(self.batch).total
        if self.waits:
            total.item()
        self.optimizer.zero_grad(set_to_none=True)
        total.backward()  # type: ignore[no-untyped-call]
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        if self.waits:
            norm.item()
        self.optimizer.step()

    def seconds(self) -> float:
        """The time of one step."""
        if self.device.type != "cuda":
            start = time.process_time()
            self.step()
            return time.process_time() - start
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(BURST):
            self.step()
        torch.cuda.synchronize()
        return (time.perf_counter() - start) / BURST

    def peak_mb(self) -> float:
        """Memory of one step beyond what is held before it."""
        self.optimizer.zero_grad(set_to_none=True)
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            self.step()
            return float(torch.cuda.max_memory_allocated() - before) / 2**20
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
            self.step()
        held = peak = 0
        for event in recorded.profiler.kineto_results.events():
            if event.name() == "[memory]":
                held += event.nbytes()
                peak = max(peak, held)
        return peak / 2**20


def build(options: argparse.Namespace, kind: str, alignment: str) -> CalmModel:
    """The model of a head, with CALM or without, over random towers: they cost what trained ones cost."""
    values: dict[str, Any] = {
        "name": "x",
        "data": {"dataset": "demo", "frames": options.frames},
        "backbone": {"model": options.model, "weights": None},
        "anchors": {"vocabulary": options.vocabulary, "encode": options.encode},
        "head": {"kind": kind, "layers": 4, "init": "random", "support_weight": 0.8},
        "alignment": {"kind": alignment},
        "optim": {"chunk": options.chunk},
    }
    return build_model(recipe_from_dict(values), resolve_vocabulary(options.vocabulary))


def pad_prompts(anchors: AnchorBank, length: int) -> None:
    """Prompts as long as they would be without `Backbone.tokenize`'s shortening."""
    missing = length - anchors.tokens.shape[1]
    anchors.tokens = torch.nn.functional.pad(anchors.tokens, (0, missing))


if __name__ == "__main__":
    main()
