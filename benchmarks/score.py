"""Scoring all pairs: ours, the dense chunked form, and the procedure that T-MASS released.

    python benchmarks/score.py                       # 1,000 x 1,000, a minute or two
    OMP_NUM_THREADS=1 python benchmarks/score.py --large    # and 27,763 x 670, the MSVD test split
    python benchmarks/score.py --device cuda         # on a GPU, both sizes

Each row runs in a process of its own. `CPU s` counts the time of all its threads, and the cost of a pair and the ratios
are of CPU time: other programs on the machine hardly change it (`seconds` is what a clock says). What cannot
bear the whole size is measured on a smaller one, which the row names; its cost per pair is compared. `extra MB` is the
peak of the process above what it held with inputs in memory and libraries warm, less the score matrix. Features
and weights are random, the weights moved away from their initial values; 12 frames, 512 dimensions, 20 trials.

On a GPU: the clock's time from features on the GPU to scores on the host, the median of ten calls after two; beside it
the floor, one float32 matrix product of as many multiply-adds as the pairs' dot products take.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor

from calmctl.evaluation.retrieval import score_all, score_dense, score_tmass_released
from calmctl.model.heads.tmass import NoiseLaw, TMassHead
from calmctl.model.heads.xpool import XPoolHead

DIM, FRAMES, TRIALS = 512, 12, 20
Head = XPoolHead | TMassHead
Scorer = Callable[..., Tensor]


@torch.no_grad()
def score_released(head: TMassHead, texts: Tensor, frames: Tensor, *, loops: bool = True) -> Tensor:
    """The released inference, step by step as its code proceeds, one caption a video, leak included.

    With `loops`, the choosing of trials and the regrouping by video are Python loops over every pair, as released.
    Without them they are one indexing and nothing: the same procedure as fast as it can be.
    """
    n_texts, n_videos, dim = len(texts), len(frames), texts.shape[1]
    pooled = head.pooling(texts, frames)  # [N_v, N_t, D], all at once
    chosen = torch.empty(n_videos, n_texts, dim)
    for video in range(n_videos):
        trials, similarities = [], []
        for _ in range(head.trials):
            radii = head.radius(texts, frames[video].repeat(n_texts, 1, 1))
            moved = F.normalize(texts + head.noise.sample_like(texts) * radii, dim=-1)
            trials.append(moved)
            similarities.append((moved * F.normalize(pooled[video], dim=-1)).sum(-1))
        best = torch.stack(similarities).argmax(0)
        if not loops:
            chosen[video] = torch.stack(trials)[best, torch.arange(n_texts)]
            continue
        for text in range(n_texts):
            chosen[video, text] = trials[best[text]][text]

    grouped_texts, grouped_videos = chosen, pooled
    if loops:
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
    "t-mass vectorised": ("T-MASS", "released, no loops", partial(score_released, loops=False)),
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
    seconds, cpu_seconds, repeats = float("inf"), float("inf"), 0
    started = time.perf_counter()
    while repeats < 5 and (repeats == 0 or time.perf_counter() - started < 20):
        begun, spent = time.perf_counter(), time.process_time()
        scores = scorer(head, texts, frames)
        seconds = min(seconds, time.perf_counter() - begun)
        cpu_seconds = min(cpu_seconds, time.process_time() - spent)
        repeats += 1
    extra = memory_peak_mb() - held - scores.numel() * scores.element_size() / 1e6
    some = torch.randperm(n_texts)[:64], torch.randperm(n_videos)[:64]
    if METHODS[method][1] in ("as released (leaks)", "released, no loops"):
        error = released_error(scorer)
    else:
        exact = score_dense(head.double(), texts[some[0]].double(), frames[some[1]].double())
        error = (scores[some[0]][:, some[1]] - exact).abs().max().item()
    return {"seconds": seconds, "cpu_seconds": cpu_seconds, "extra_mb": extra, "error": error}


def released_error(scorer: Scorer) -> float:
    """How far the transcription is from the package's audit of the same leak, where noise cannot differ."""
    head, texts, frames = problem("t-mass released", 20, 20)
    assert isinstance(head, TMassHead)
    head.noise = NoiseLaw("normal", 0.0)
    audit = score_tmass_released(head, texts, frames, torch.arange(20))
    return (scorer(head, texts, frames) - audit).abs().max().item()


def macs(scoring: str) -> int:
    """Multiply-adds of a pair's dot products of length D: keys and basis; for T-MASS radii, V and three a trial too."""
    products = 2 * FRAMES + 2
    return DIM * (products if scoring == "xpool" else products + 2 * FRAMES + 2 + 3 * TRIALS)


def measure_on_gpu(method: str, n_texts: int, n_videos: int) -> dict[str, float | str | int]:
    """Milliseconds of one method on the GPU, and of its floor; memory and error."""
    head, texts, frames = problem(method, n_texts, n_videos)
    head, texts, frames = head.cuda(), texts.cuda(), frames.cuda()
    scorer = METHODS[method][2]

    def timed(call: Callable[[], Tensor], warm_up: int = 2, rounds: int = 10) -> float:
        times = []
        for _ in range(warm_up + rounds):
            torch.cuda.synchronize()
            begun = time.perf_counter()
            call()
            torch.cuda.synchronize()
            times.append(1000 * (time.perf_counter() - begun))
        return statistics.median(times[warm_up:])

    torch.cuda.reset_peak_memory_stats()
    held = torch.cuda.memory_allocated()
    rounds = 10 if n_texts * n_videos <= 10**6 else 3
    taken = timed(lambda: scorer(head, texts, frames).cpu(), rounds=rounds)
    extra = (torch.cuda.max_memory_allocated() - held) / 1e6
    scores = scorer(head, texts, frames).cpu()
    some = torch.randperm(n_texts)[:64], torch.randperm(n_videos)[:64]
    exact = score_dense(head.cpu().double(), texts[some[0]].cpu().double(), frames[some[1]].cpu().double())
    error = (scores[some[0]][:, some[1]] - exact).abs().max().item()
    side = 4096
    inner = max(8, round(n_texts * n_videos * macs(method.split()[0]) / side**2))
    left, right = torch.randn(side, inner, device="cuda"), torch.randn(inner, side, device="cuda")
    floor = timed(lambda: left @ right, rounds=rounds)
    size = {"method": method, "texts": n_texts, "videos": n_videos}
    return {**size, "ms": taken, "floor_ms": floor, "extra_mb": extra, "error": error}


def run_on_gpu(large: bool = True) -> list[dict[str, float | str | int]]:
    """Print what scoring on a GPU takes; returns the rows."""
    small = (1000, 1000)
    cases = [(f"{head} {way}", small) for head in ("xpool", "t-mass") for way in ("ours", "dense")]
    cases += [("xpool ours", (27_763, 670)), ("t-mass ours", (27_763, 670))] if large else []
    print(f"scoring on {torch.cuda.get_device_name()}, torch {torch.__version__}, float32")
    print(f"{'method':14}{'texts x videos':>16}{'ms':>9}{'floor ms':>10}{'extra MB':>10}{'error':>9}")
    rows = []
    for method, (n_texts, n_videos) in cases:
        row = measure_on_gpu(method, n_texts, n_videos)
        rows.append(row)
        print(
            f"{method:14}{f'{n_texts:,} x {n_videos:,}':>16}{row['ms']:>9.1f}{row['floor_ms']:>10.2f}"
            f"{row['extra_mb']:>10,.0f}{row['error']:>9.0e}",
            flush=True,
        )
    return rows


def run(method: str, n_texts: int, n_videos: int) -> dict[str, float]:
    """`measure` in a fresh process."""
    command = [sys.executable, __file__, "--one", method, f"{n_texts}x{n_videos}"]
    found: dict[str, float] = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--large", action="store_true", help="also 27,763 texts x 670 videos")
    parser.add_argument("--released", type=int, default=200, metavar="N", help="N x N for the released procedure")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--one", nargs=2, metavar=("METHOD", "SIZE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        n_texts, n_videos = map(int, options.one[1].split("x"))
        print(json.dumps(measure(options.one[0], n_texts, n_videos)))
        return

    if options.device == "cuda":
        run_on_gpu()
        return

    small, bearable = (1000, 1000), (options.released, options.released)
    cases: list[tuple[str, tuple[int, int]]] = [("xpool dense", small), ("xpool ours", small)]
    cases += [("t-mass released", bearable), ("t-mass vectorised", bearable), ("t-mass dense", bearable)]
    cases += [("t-mass ours", small)]
    if options.large:
        cases += [("xpool dense", (27_763, 16)), ("xpool ours", (27_763, 670)), ("t-mass ours", (27_763, 670))]

    table = Table(title=f"{torch.get_num_threads()} threads, torch {torch.__version__}, {platform.machine()}")
    for name in ("scoring", "method", "texts x videos", "seconds", "CPU s", "µs a pair", "vs dense", "vs released"):
        table.add_column(name, justify="left" if name in ("scoring", "method") else "right")
    table.add_column("extra MB", justify="right")
    table.add_column("error", justify="right")
    cost: dict[str, float] = {}
    for method, (n_texts, n_videos) in cases:
        found = run(method, n_texts, n_videos)
        scoring, label, _ = METHODS[method]
        per_pair = 1e6 * found["cpu_seconds"] / (n_texts * n_videos)
        cost[method] = per_pair
        head = method.split()[0]
        ratios = [f"{cost[k] / per_pair:,.1f}x" if (k := f"{head} {o}") in cost else "" for o in ("dense", "released")]
        size, memory = f"{n_texts:,} x {n_videos:,}", f"{max(0.0, found['extra_mb']):,.0f}"
        times = f"{found['seconds']:.2f}", f"{found['cpu_seconds']:.2f}", f"{per_pair:,.2f}"
        table.add_row(scoring, label, size, *times, *ratios, memory, f"{found['error']:.0e}")
        print(f"{scoring}, {label}, {size}: {times[0]} s, of CPUs {times[1]} s, {times[2]} µs a pair", file=sys.stderr)
    Console(width=130).print(table)
    print(f"load of the last minute at the end: {os.getloadavg()[0]:.1f}")
    print("error: largest difference from the dense form in float64; for the released procedure, from the package's")
    print("audit of the same leak (score_tmass_released) without noise.")


if __name__ == "__main__":
    main()
