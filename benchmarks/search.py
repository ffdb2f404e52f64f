"""Searching many clips: exact and two-stage beside a plain matrix product over mean-pooled vectors, the floor.

    python benchmarks/search.py                          # 10,000 and 100,000 clips
    python benchmarks/search.py --sizes 1000000          # 16 GB of disk, and memory that keeps them cached

Clips are drawn, 12 frames of 512 dimensions, float16 on disk, in the very files that `calmctl extract` writes. They
have the structure that makes recall mean something: one direction that all share (CLIP's cone), a topic for every 100
clips, what a clip has of its own, and noise on every frame (standard deviations 0.4, 0.3, 0.2 and 0.15). A query is
about one clip: another common direction, its topic, 0.7 of what it has of its own, and as much noise. The head is
X-Pool with all weights moved from their start by 0.01 times a normal number.

A size runs in a process of its own. Every query is answered by all methods in turn, so that a busy machine slows all
of them; the first queries are not counted. `x floor` is the median over queries of the ratio to the floor of the same
turn. Texts are encoded before: what is measured begins with a sentence's features. Anonymous memory is what a method
adds to what the process held before; mapped files are in the page cache, where the system takes them back at will.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor

from calmctl.files import sha256_file
from calmctl.model.heads.xpool import XPoolHead
from calmctl.search import scorers as products
from calmctl.search.exact import Judge, measure_recall, open_graph, require_usearch, search_exact, search_two_stage
from calmctl.search.rows import searched_rows
from calmctl.search.scorers import choose_scorer, open_index
from calmctl.store import format as fmt
from calmctl.store.store import FeatureStore
from calmctl.store.writer import CLIPS_PER_SHARD
from calmctl.tensors import save_tensors

DIM, FRAMES, PER_TOPIC, TOP = 512, 12, 100, 10


class World:
    """Drawn clips and queries; clip n is the same whatever else is drawn."""

    def __init__(self, n_clips: int) -> None:
        generator = torch.Generator().manual_seed(0)
        self.cone = torch.randn(2, DIM, generator=generator).mul_(0.4)
        self.topics = torch.randn(max(1, n_clips // PER_TOPIC), DIM, generator=generator).mul_(0.3)

    def clips(self, shard: int) -> tuple[Tensor, Tensor]:
        """The frames [n, F, D] of a shard's clips, and each clip without its noise and the cone, [n, D]."""
        generator = torch.Generator().manual_seed(1 + shard)
        topics = torch.randint(len(self.topics), (CLIPS_PER_SHARD,), generator=generator)
        own = torch.randn(CLIPS_PER_SHARD, DIM, generator=generator).mul_(0.2)
        noise = torch.randn(CLIPS_PER_SHARD, FRAMES, DIM, generator=generator).mul_(0.15)
        said = self.topics[topics] + 0.7 * own
        return (self.cone[0] + self.topics[topics] + own)[:, None] + noise, said

    def queries(self, count: int, shards: int) -> Tensor:
        """Sentence features [count, D], each about a clip of its own."""
        generator = torch.Generator().manual_seed(10**9)
        chosen = torch.randint(shards, (count,), generator=generator).tolist()
        said = torch.stack([self.clips(shard)[1][n % CLIPS_PER_SHARD] for n, shard in enumerate(chosen)])
        return self.cone[1] + said + torch.randn(count, DIM, generator=generator).mul_(0.2)


def write_store(
    path: Path,
    n_clips: int,
    world: World,
    backbone: dict[str, Any] | None = None,
    files: dict[str, list[Any]] | None = None,
) -> FeatureStore:
    """A store as `StoreWriter` leaves it; its index is written once and not after every shard.

    `files` are the clips' sources by id; None for clips without files.
    """
    names = list(files) if files else [f"clip{n:07d}" for n in range(n_clips)]
    groups = [names[start : start + CLIPS_PER_SHARD] for start in range(0, n_clips, CLIPS_PER_SHARD)]
    shards = {}
    for number, keys in enumerate(groups):
        file = path / fmt.shard_file("frames", number)
        sources = {key: files[key] for key in keys} if files else {}
        frames = world.clips(number)[0][: len(keys)].half()
        save_tensors(file, {"frames": frames}, {"keys": keys, "sources": sources})
        shards[file.name] = fmt.ShardEntry(sha256=sha256_file(file))
    ids = [key for keys in groups for key in keys]
    split = fmt.CatalogueSplit(clips=ids, captions=[], owners=[], left_out=[])
    name = "folder" if files else "drawn"
    header = fmt.Header(dataset=name, backbone=backbone or {"dim": DIM}, n_frames=FRAMES, dtype="float16")
    fmt.write_document(path / fmt.CATALOGUE, fmt.Catalogue(clips=groups, splits={"test": split}))
    fmt.write_document(path / fmt.INDEX, fmt.Index(header=header, shards=shards))
    return FeatureStore.open(path)


def trained_like() -> XPoolHead:
    torch.manual_seed(0)
    head = XPoolHead(DIM)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter += 0.01 * torch.randn_like(parameter)
    return head.eval()


def measure(n_clips: int, options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Everything about one size, in this process."""
    if options.converted:
        products.MOST_DIRECTIONS = 0
    world = World(n_clips)
    found: dict[str, Any] = {"clips": n_clips}
    store, found["store_s"] = timed(lambda: write_store(folder, n_clips, world))
    rows = searched_rows(store)
    found["store_mb"] = sum((folder / shard.name).stat().st_size for shard in rows) / 1e6
    head = trained_like()
    scorer, judge = choose_scorer(head, None, torch.device("cpu"), (FRAMES, DIM)), Judge(head, None)
    index, found["table_s"] = timed(lambda: open_index(store, rows, scorer))
    found["table_mb"] = sum(file.stat().st_size for file in index.folder.iterdir()) / 1e6
    texts = world.queries(options.queries + options.warm, len(rows))
    graph = None
    if not options.exact_only:
        require_usearch()
        graph, found["graph_s"] = timed(lambda: open_graph(store, rows, index, None))
        found["graph_mb"] = graph.path.stat().st_size / 1e6
    index, found["open_s"] = timed(lambda: open_index(FeatureStore.open(folder), rows, scorer))

    means = np.concatenate([pooled(index.frames.block(i, min(i + 4096, n_clips))) for i in range(0, n_clips, 4096)])
    unit = F.normalize(texts, dim=-1).numpy()

    def floor(n: int) -> object:
        return np.argpartition(-(means @ unit[n]), TOP - 1)[:TOP]

    methods: dict[str, Callable[[int], object]] = {
        "floor": floor,
        "exact": lambda n: search_exact(index, scorer, judge, texts[n : n + 1], TOP),
    }
    for count in options.candidates if graph is not None else ():
        methods[f"two-stage {count}"] = lambda n, count=count: search_two_stage(
            index, scorer, judge, graph, texts[n : n + 1], texts[n : n + 1], TOP, candidates=count
        )
    spent: dict[str, list[float]] = {name: [] for name in methods}
    found["memory_mb"] = {}
    for n in range(len(texts)):
        for name, method in methods.items():
            held = anonymous_mb()
            _, seconds = timed(lambda: method(n))  # noqa: B023
            if n >= options.warm:
                spent[name].append(seconds)
            found["memory_mb"][name] = max(found["memory_mb"].get(name, 0.0), anonymous_mb() - held)
    base = np.array(spent["floor"])
    found["latency"] = {
        name: {
            "p50_ms": 1e3 * float(np.median(each)),
            "p99_ms": 1e3 * float(np.quantile(each, 0.99)),
            "x_floor": float(np.median(np.array(each) / base)),
            "min_x_floor": float(min(each) / base.min()),
        }
        for name, each in spent.items()
    }
    if graph is not None:
        exact = search_exact(index, scorer, judge, texts, TOP)
        found["recall"] = {
            str(count): measure_recall(exact, graph, texts, candidates=count, at=TOP).kept
            for count in options.candidates
        }
        found["recall_of_best_10"] = measure_recall(exact, graph, texts, candidates=TOP, at=TOP).first
    found["peak_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    found["load"] = os.getloadavg()[0]
    return found


def pooled(frames: Tensor) -> np.ndarray:
    return F.normalize(F.normalize(frames, dim=-1).mean(1), dim=-1).numpy()


def timed(work: Callable[[], Any]) -> tuple[Any, float]:
    started = time.perf_counter()
    result = work()
    return result, time.perf_counter() - started


def anonymous_mb() -> float:
    """What this process holds that is no file's page (Linux)."""
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) / 1e3 for line in status if line.startswith("RssAnon"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument("--queries", type=int, default=50)
    parser.add_argument("--warm", type=int, default=3, help="queries before those that count")
    parser.add_argument("--candidates", type=int, nargs="+", default=[100, 300, 1000])
    parser.add_argument("--exact-only", action="store_true", help="no graph, which takes longest to make")
    parser.add_argument("--converted", action="store_true", help="convert frames, as where numkong is not installed")
    parser.add_argument("--folder", type=Path, help="where the stores are put for the run; a temporary one by default")
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(options.one, options, options.folder)))
        return
    results = []
    for size in options.sizes:
        folder = Path(tempfile.mkdtemp(dir=options.folder))
        needed = size * (FRAMES * DIM * 2 + 2100 + 1500)
        if shutil.disk_usage(folder).free < 1.1 * needed:
            print(f"{size:,} clips need {needed / 1e9:.0f} GB of disk, which are not free: left out", file=sys.stderr)
            shutil.rmtree(folder)
            continue
        try:
            command = [sys.executable, __file__, *sys.argv[1:], "--folder", str(folder), "--one", str(size)]
            results.append(json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout))
            print(json.dumps(results[-1]), file=sys.stderr)
        finally:
            shutil.rmtree(folder)
    show(results)


def show(results: list[dict[str, Any]]) -> None:
    out = Console(width=110)
    out.print(
        f"{torch.get_num_threads()} threads, torch {torch.__version__}, load {results[-1]['load']:.1f} at the end"
    )
    made = Table(title="made once")
    for name in ("clips", "store MB", "table s", "table MB", "graph s", "graph MB", "open again s", "peak RSS MB"):
        made.add_column(name, justify="right")
    answered = Table(title="one query at a time, the best 10")
    for name in ("clips", "method", "median ms", "p99 ms", "x floor", "recall@10", "extra MB"):
        answered.add_column(name, justify="left" if name == "method" else "right")
    for found in results:
        keys = ("store_mb", "table_s", "table_mb", "graph_s", "graph_mb", "open_s", "peak_mb")
        made.add_row(f"{found['clips']:,}", *(f"{found[key]:,.1f}" if key in found else "" for key in keys))
        for name, each in found["latency"].items():
            recall = {"exact": 1.0, "floor": found.get("recall_of_best_10")}
            kept = recall.get(name, found.get("recall", {}).get(name.split()[-1]))
            cells = f"{each['p50_ms']:,.1f}", f"{each['p99_ms']:,.1f}", f"{each['x_floor']:.1f}"
            share = "" if kept is None else f"{kept:.3f}"
            answered.add_row(f"{found['clips']:,}", name, *cells, share, f"{found['memory_mb'][name]:,.0f}")
    out.print(made, answered)


if __name__ == "__main__":
    main()
