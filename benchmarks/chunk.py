"""Gradient caching (`optim.chunk`): the memory and the time of one training step, and how exact it is.

    python benchmarks/chunk.py                                  # on a CPU, ViT-B/32, some minutes
    python benchmarks/chunk.py --device cuda --batch 1024 --frames 12 --chunks 0 64 16

Each row runs in a process of its own. `peak MB` is the most memory that the step held above model and batch: on a CPU
the peak of the resident size, on a GPU that of allocated tensors. Weights are random (their values do not matter
here). `error` is the largest difference of a gradient from that of the plain step, relative to the largest gradient.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from calmctl.anchors.shipped import resolve_vocabulary
from calmctl.model.build import build_model
from calmctl.model.calm import AlignedModel, Batch
from calmctl.recipe import recipe_from_dict
from calmctl.tensors import load_tensors, save_tensors


def problem(options: argparse.Namespace, chunk: int) -> tuple[AlignedModel, Batch]:
    """The paper's model without dropout, and a batch of noise."""
    values = {
        "name": "chunk",
        "data": {"dataset": "demo", "frames": options.frames},
        "backbone": {"model": options.model, "weights": None},
        "head": {"kind": options.head, "dropout": 0},
        "alignment": {"kind": "kl"},
        "optim": {"chunk": chunk or None},
    }
    torch.manual_seed(0)
    model = build_model(recipe_from_dict(values), resolve_vocabulary("charades@1")).train().to(options.device)
    size, _ = model.backbone.spec.image_size
    frames = torch.randint(256, (options.batch, options.frames, size, size, 3), dtype=torch.uint8)
    texts = model.backbone.tokenize(["a person opens a door and walks through it"] * options.batch)
    return model, Batch(texts, frames, torch.arange(options.batch)).to(torch.device(options.device))


def peak_mb(device: str) -> float:
    """The most memory held so far."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e6


def measure(options: argparse.Namespace, chunk: int, gradients: Path) -> dict[str, float]:
    """One step in this process, after a step on two pairs that warms up and fills the gradients' memory."""
    model, batch = problem(options, chunk)
    few = Batch(batch.texts[:2], batch.frames[:2], batch.clips[:2])
    seconds = 0.0
    for each in (few, batch):
        model.zero_grad(set_to_none=each is few)
        held = peak_mb(options.device)
        begun = time.perf_counter()
        with torch.autocast(options.device, torch.bfloat16, enabled=options.bf16):
            total = model(each).total
        total.backward()
        if options.device == "cuda":
            torch.cuda.synchronize()
        seconds = time.perf_counter() - begun
    extra = peak_mb(options.device) - held
    ours = torch.cat([p.grad.flatten().cpu() for p in model.parameters() if p.grad is not None])
    if not gradients.exists():
        save_tensors(gradients, {"gradients": ours}, {})
    plain = load_tensors(gradients, what="gradients of the plain step")[0]["gradients"]
    return {"peak_mb": extra, "seconds": seconds, "error": float((ours - plain).abs().max() / plain.abs().max())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="ViT-B-32-quickgelu")
    parser.add_argument("--head", default="xpool")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--frames", type=int, default=2)
    parser.add_argument("--chunks", type=int, nargs="+", default=[0, 16, 8, 4, 2], help="0: without chunks, first")
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--one", nargs=2, metavar=("CHUNK", "GRADIENTS"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(options, int(options.one[0]), Path(options.one[1]))))
        return
    what = f"{options.model}, {options.head}, batch {options.batch} x {options.frames} frames"
    table = Table(title=f"{what}, {options.device}, {torch.get_num_threads()} threads, {platform.machine()}")
    for name in ("chunk", "peak MB", "of plain", "seconds", "of plain", "error"):
        table.add_column(name, justify="right")
    plain: dict[str, float] | None = None
    with tempfile.TemporaryDirectory() as folder:
        for chunk in options.chunks:
            command = [sys.executable, __file__, *sys.argv[1:], "--one", str(chunk), f"{folder}/gradients.pt"]
            found = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
            plain = plain or found
            shares = [f"{found[key] / plain[key]:.2f}" for key in ("peak_mb", "seconds")]
            memory, seconds = f"{found['peak_mb']:,.0f}", f"{found['seconds']:.1f}"
            table.add_row(str(chunk or "-"), memory, shares[0], seconds, shares[1], f"{found['error']:.0e}")
            print(f"chunk {chunk}: {found}", file=sys.stderr)
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
