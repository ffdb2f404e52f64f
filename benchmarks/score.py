"""Scoring all pairs: ours, the dense chunked form, and the procedure that T-MASS released.

    python benchmarks/score.py            # 1,000 x 1,000, a minute or two
    python benchmarks/score.py --large    # and 27,763 x 670, the MSVD test split; some more minutes

Each row runs in a process of its own. `extra MB` is the peak of that process above what it held with inputs in
memory and libraries warm, less the score matrix. Features and weights are random, the weights moved away from
their initial values; 12 frames, 512 dimensions, 20 trials. Run it on an idle machine.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor

from calmctl.evaluation.dense import score_dense
from calmctl.evaluation.released import score_tmass_released
from calmctl.evaluation.scoring import score_all
from calmctl.model.heads.tmass import TMassHead
from calmctl.model.heads.xpool import XPoolHead
from calmctl.model.stochastic import NoiseLaw

DIM, FRAMES, TRIALS = 512, 12, 20
Head = XPoolHead | TMassHead
Scorer = Callable[..., Tensor]


@torch.no_grad()
def score_released(head: TMassHead, texts: Tensor, frames: Tensor) -> Tensor:
    """The released inference, step by step as its code proceeds, one caption a video, leak included.

    Where that leaves a choice it is the fast one: only the choosing and the regrouping are Python loops.
    """
    n_texts, n_videos, dim = len(texts), len(frames), texts.shape[1]
    pooled = head.pooling(texts, frames)  # [N_v, N_t, D], all at once
    chosen = torch.empty(n_videos, n_texts, dim)
    for video in range(n_videos):
        trials, similarities = [], []
        for _ in range(head.trials):
            radii = head.radius(texts, frames[video].expand(n_texts, -1, -1))
            moved = F.normalize(texts + head.noise.sample_like(texts) * radii, dim=-1)
            trials.append(moved)
            similarities.append((moved * F.normalize(pooled[video], dim=-1)).sum(-1))
        best = torch.stack(similarities).argmax(0)
        for text in range(n_texts):
            chosen[video, text] = trials[best[text]][text]

    grouped_texts = torch.full((n_videos, n_texts, dim), -torch.inf)
    grouped_videos = torch.full((n_videos, n_texts, dim), -torch.inf)
    for video in range(n_videos):
        for text in range(n_texts):
            grouped_texts[video, text] = chosen[video, text]
            grouped_videos[video, text] = pooled[video, text]
    # For every candidate video: all texts against its poolings for all texts, of which one diagonal is kept.
    products = grouped_texts @ F.normalize(grouped_videos, dim=-1).mT
    return products.diagonal(dim1=0, dim2=2)


METHODS: dict[str, tuple[str, str, Scorer]] = {
    "xpool ours": ("X-Pool", "ours", score_all),
    "xpool dense": ("X-Pool", "dense, chunked", score_dense),
    "t-mass ours": ("T-MASS", "ours", score_all),
    "t-mass dense": ("T-MASS", "dense, chunked", score_dense),
    "t-mass released": ("T-MASS", "as released (leaks)", score_released),
}


def problem(method: str, n_texts: int, n_videos: int) -> tuple[Head, Tensor, Tensor]:
    """A head with trained-like weights, and features on the scale of CLIP's."""
    torch.manual_seed(0)
    head: Head = XPoolHead(DIM) if method.startswith("xpool") else TMassHead(DIM, FRAMES, trials=TRIALS)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter += 0.02 * torch.randn_like(parameter)
    texts = torch.randn(n_texts, DIM).mul_(0.4)
    frames = torch.randn(n_videos, FRAMES, DIM).mul_(0.2).add_(0.4 * torch.randn(n_videos, 1, DIM))
    return head.eval(), texts, frames


def memory_peak_mb() -> float:
    """The largest resident size of this process so far."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def measure(method: str, n_texts: int, n_videos: int) -> dict[str, float]:
    """Time, extra memory and error of one method, in this process."""
    head, texts, frames = problem(method, n_texts, n_videos)
    scorer = METHODS[method][2]
    scorer(head, texts[:8], frames[:8])
    held = memory_peak_mb()
    seconds, repeats = float("inf"), 0
    started = time.perf_counter()
    while repeats < 5 and (repeats == 0 or time.perf_counter() - started < 20):
        begun = time.perf_counter()
        scores = scorer(head, texts, frames)
        seconds = min(seconds, time.perf_counter() - begun)
        repeats += 1
    extra = memory_peak_mb() - held - scores.numel() * scores.element_size() / 1e6
    some = torch.randperm(n_texts)[:64], torch.randperm(n_videos)[:64]
    if method == "t-mass released":
        error = released_error()
    else:
        exact = score_dense(head.double(), texts[some[0]].double(), frames[some[1]].double())
        error = (scores[some[0]][:, some[1]] - exact).abs().max().item()
    return {"seconds": seconds, "extra_mb": extra, "error": error}


def released_error() -> float:
    """How far the transcription is from the package's audit of the same leak, where noise cannot differ."""
    head, texts, frames = problem("t-mass released", 20, 20)
    assert isinstance(head, TMassHead)
    head.noise = NoiseLaw("normal", 0.0)
    audit = score_tmass_released(head, texts, frames, torch.arange(20))
    return (score_released(head, texts, frames) - audit).abs().max().item()


def run(method: str, n_texts: int, n_videos: int) -> dict[str, float]:
    """`measure` in a fresh process."""
    command = [sys.executable, __file__, "--one", method, f"{n_texts}x{n_videos}"]
    found: dict[str, float] = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--large", action="store_true", help="also 27,763 texts x 670 videos")
    parser.add_argument("--released", type=int, default=200, metavar="N", help="N x N for the released procedure")
    parser.add_argument("--one", nargs=2, metavar=("METHOD", "SIZE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        n_texts, n_videos = map(int, options.one[1].split("x"))
        print(json.dumps(measure(options.one[0], n_texts, n_videos)))
        return

    small = (1000, 1000)
    # T-MASS is D numbers a pair and a trial in the dense form: a smaller size tells its cost per pair as well.
    cases: list[tuple[str, tuple[int, int]]] = [("xpool dense", small), ("xpool ours", small)]
    cases += [("t-mass dense", (300, 300)), ("t-mass released", (options.released, options.released))]
    cases += [("t-mass ours", small)]
    if options.large:
        msvd = (27_763, 670)
        cases += [("xpool dense", msvd), ("xpool ours", msvd), ("t-mass ours", msvd)]

    table = Table(title=f"{torch.get_num_threads()} threads, torch {torch.__version__}, {platform.machine()}")
    for name in ("scoring", "method", "texts x videos", "seconds", "µs a pair", "vs dense", "vs released"):
        table.add_column(name, justify="left" if name in ("scoring", "method") else "right")
    table.add_column("extra MB", justify="right")
    table.add_column("error", justify="right")
    cost: dict[str, float] = {}
    for method, (n_texts, n_videos) in cases:
        found = run(method, n_texts, n_videos)
        scoring, label, _ = METHODS[method]
        per_pair = 1e6 * found["seconds"] / (n_texts * n_videos)
        cost[method] = per_pair
        head = method.split()[0]
        ratios = [f"{cost[k] / per_pair:,.1f}x" if (k := f"{head} {o}") in cost else "" for o in ("dense", "released")]
        size, memory = f"{n_texts:,} x {n_videos:,}", f"{max(0.0, found['extra_mb']):,.0f}"
        cells = scoring, label, size, f"{found['seconds']:.2f}", f"{per_pair:,.2f}", *ratios, memory
        table.add_row(*cells, f"{found['error']:.0e}")
        print(f"{label}, {size}: {found['seconds']:.2f} s", file=sys.stderr)
    Console(width=120).print(table)
    print("error: largest difference from the dense form in float64; for the released procedure, from the package's")
    print("audit of the same leak (score_tmass_released) without noise.")


if __name__ == "__main__":
    main()
