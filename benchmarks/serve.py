"""How long an answer takes: a command from nothing (cold), the next question of the same process (warm), the page.

    python benchmarks/serve.py --sizes 10000 100000 --queries 100

Clips are drawn as in benchmarks/search.py. The backbone is a small CLIP with random weights and features of 512
dimensions, the head mean pooling: a sentence is encoded and answered, but what its answers mean plays no part. Cold is
`calmctl search` as a process of its own, after one that made the tables: of a feature store, and of a folder with as
many files, whose names and dates are compared with what was extracted (they are empty, and never decoded). A page's
question goes over HTTP to `calmctl serve`'s application and comes back as JSON; with it is measured whether anything
matches. Beside each time stands the processor time, of all threads: on a busy machine it is what can be compared.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.parse
import urllib.request
from collections.abc import Callable
from functools import partial
from pathlib import Path
from threading import Thread

import numpy as np
import torch
import uvicorn
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parent))
from search import FRAMES, World, write_store

from calmctl.files import stamp
from calmctl.model.backbone import fingerprint
from calmctl.model.weights import load_backbone
from calmctl.search.collection import open_collection, store_name
from calmctl.search.confidence import Rule
from calmctl.search.model import bare_search_model
from calmctl.search.search import Search
from calmctl.search.serve import AskedTerm, Engine, web_app
from calmctl.tensors import save_tensors

TINY = Path(__file__).resolve().parents[1] / "tests" / "tiny-clip.json"


def write_files(folder: Path, n_clips: int) -> dict[str, list[object]]:
    """Files, a thousand in a folder, and what a store says of each, by the clip's id."""
    sources = {}
    for n in range(n_clips):
        file = folder / f"{n // 1000:03d}" / f"clip{n:07d}.mp4"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"\0")
        size, changed_ns, *_ = stamp(file)
        sources[f"{file.parent.name}/{file.stem}"] = [size, changed_ns, 0.0, None, "0" * 32, "0" * 64]
    return sources


def timed(work: Callable[[], object], of: int = resource.RUSAGE_SELF) -> tuple[float, float]:
    """Seconds by the clock and of the processor, of this process or of those it has waited for."""
    before, started = resource.getrusage(of), time.perf_counter()
    work()
    seconds, after = time.perf_counter() - started, resource.getrusage(of)
    return seconds, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def measure(n_clips: int, queries: int, cold: int, folder: Path) -> dict[str, object]:
    config, weights, store = folder / "clip.json", folder / "clip.safetensors", folder / "store"
    videos, features = folder / "videos", folder / "features"
    values = json.loads(TINY.read_text())
    (values.get("model_cfg") or values)["embed_dim"] = 512
    config.write_text(json.dumps(values))
    torch.manual_seed(0)
    save_tensors(weights, load_backbone(str(config), None).clip.state_dict(), {})
    model = bare_search_model(torch.device("cpu"), backbone=str(config), weights=str(weights))
    backbone = fingerprint(model.model.backbone)
    of_folder = features / store_name(videos, backbone, FRAMES, None, None)
    for path, files in ((store, None), (of_folder, write_files(videos, n_clips))):
        path.mkdir(parents=True)
        write_store(path, n_clips, World(n_clips), backbone, files)
    search = Search(model, open_collection(store, model))
    engine = Engine(search, Rule())
    times: dict[str, list[tuple[float, float]]] = {"cold, a store": [], "cold, a folder": [], "warm": [], "page": []}
    for number in range(-1, cold):  # the first makes tables
        for name, where in (("cold, a store", store), ("cold, a folder", videos)):
            command = [sys.executable, "-m", "calmctl", "search", "a dog", "--in", str(where), "--json"]
            command += ["--cache", str(features), "--backbone", str(config), "--backbone-weights", str(weights)]
            quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
            spent = timed(partial(subprocess.run, command, check=True, **quiet), resource.RUSAGE_CHILDREN)
            if number >= 0:
                times[name].append(spent)
    place = socket.socket()
    place.bind(("127.0.0.1", 0))
    place.listen()
    port = place.getsockname()[1]
    server = uvicorn.Server(uvicorn.Config(web_app(engine, port), log_level="warning", lifespan="off", ws="none"))
    thread = Thread(target=server.run, kwargs={"sockets": [place]})
    thread.start()
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    for number in range(queries + 3):
        sentence = f"a clip of number {number}"
        for name in ("warm", "page"):
            asked = urllib.parse.urlencode({"q": sentence, "top": 10})
            address = f"http://127.0.0.1:{port}/api/search?{asked}"
            work = partial(search.sentences, [sentence], 10) if name == "warm" else partial(fetched, opener, address)
            spent = timed(work)
            if number >= 3:
                times[name].append(spent)
    server.should_exit = True
    thread.join()
    answers = engine.ask([AskedTerm(text="a dog")], 10)
    assert len(answers["hits"]) == 10
    return {"clips": n_clips, "load": os.getloadavg()[0], "s": times}


def fetched(opener: urllib.request.OpenerDirector, address: str) -> bytes:
    with opener.open(address) as answer:
        content: bytes = answer.read()
    return content


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument("--queries", type=int, default=100)
    parser.add_argument("--cold", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where the stores are put for the run; a temporary one by default")
    options = parser.parse_args()
    table = Table()
    for column in ("clips", "what", "times", "median ms", "p99 ms", "processor, median ms"):
        table.add_column(column, justify="left" if column == "what" else "right")
    for size in options.sizes:
        folder = Path(tempfile.mkdtemp(dir=options.folder))
        try:
            found = measure(size, options.queries, options.cold, folder)
        finally:
            shutil.rmtree(folder)
        for name, each in found["s"].items():
            clock, processor = 1e3 * np.array(each).T
            cells = f"{np.median(clock):,.1f}", f"{np.quantile(clock, 0.99):,.1f}", f"{np.median(processor):,.1f}"
            table.add_row(f"{size:,}", name, str(len(each)), *cells)
        print(json.dumps(found), file=sys.stderr)  # before the next size, which takes long
        print(f"{size:,} clips: load {found['load']:.1f}, {torch.get_num_threads()} threads", file=sys.stderr)
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
