"""What the walk of DiffusionRet's second stage changes: for a run, its own setting against others on the same queries.

    python benchmarks/diffusion.py runs/msrvtt-diffusionret-2-001

A line each for the first stage alone, the run as it is, one step of the walk instead of all, a start from zeros, and
three other starts; with text-to-video R@1 on the test split, the share of sentences whose best clip is another than the
run's own, and the seconds that re-ranking took. Nothing is chosen by these numbers.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from calmctl.device import choose_device
from calmctl.evaluation.metrics import text_to_video
from calmctl.evaluation.retrieval import score_split
from calmctl.model.heads.diffusionret import DiffusionRetHead
from calmctl.runs.checkpoint import load_run
from calmctl.runs.run import find_run
from calmctl.source.source import recipe_source


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="a run with head.kind: diffusionret")
    parser.add_argument("--split", default="test", choices=("test", "val"))
    parser.add_argument("--device", default="auto")
    options = parser.parse_args()
    run, device = find_run(options.run, Path("runs")), choose_device(options.device)
    model = load_run(run, "best", device)
    head = model.head
    if not isinstance(head, DiffusionRetHead):
        parser.error(f"{run.folder} has the head {head.name}, which re-ranks nothing")
    encoded = recipe_source(run.recipe()).encode(model, options.split)
    first = torch.from_numpy(score_split(model, encoded))
    steps, own_starts = head.sample_steps, head.starts
    torch.manual_seed(0)
    settings = {
        f"the run: {steps} steps, {len(own_starts)} start": (steps, own_starts),
        "1 step": (1, own_starts),
        f"{steps} steps from zeros": (steps, torch.zeros_like(own_starts)),
        **{f"{steps} steps, other start {n}": (steps, torch.randn_like(own_starts)) for n in range(1, 4)},
    }
    size = f"{len(encoded.captions):,} sentences, {len(encoded.ids):,} clips"
    table = Table(title=f"{run.folder}, {options.split}: {size}")
    for name in ("", "R@1", "best clip differs", "seconds"):
        table.add_column(name, justify="left" if not name else "right")
    found: dict[str, tuple[torch.Tensor, float]] = {}
    for name, (head.sample_steps, head.starts) in settings.items():
        started = time.perf_counter()
        found[name] = head.rerank_videos(encoded.texts, encoded.frames, first), time.perf_counter() - started
    own = next(iter(found.values()))[0].argmax(1)
    for name, (scores, seconds) in {"first stage": (first, 0.0), **found}.items():
        r1 = text_to_video(scores.numpy(), encoded.owners).r1
        differs = 100 * (scores.argmax(1) != own).float().mean().item()
        table.add_row(name, f"{r1:.1f}", f"{differs:.1f} %", f"{seconds:.1f}" if seconds else "")
    Console().print(table)


if __name__ == "__main__":
    main()
