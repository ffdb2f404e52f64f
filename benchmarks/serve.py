"""How long an answer takes: a command from nothing (cold), the next question of the same process (warm), the page.

    python benchmarks/serve.py --sizes 10000 100000 --queries 100

Clips are drawn as in benchmarks/search.py. The backbone is a small CLIP with random weights and features of 512
dimensions, the head mean pooling: a sentence is encoded and answered, but what its answers mean plays no part. Cold is
`calmctl search` as a process of its own, after one that made the tables. A page's question goes over HTTP to
`calmctl serve`'s application and comes back as JSON; with it is measured whether anything matches.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.parse
import urllib.request
from pathlib import Path
from threading import Thread

import numpy as np
import torch
import uvicorn
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parent))
from search import FRAMES, World, write_store

from calmctl.model.backbone import fingerprint
from calmctl.model.weights import load_backbone
from calmctl.search.collection import open_collection
from calmctl.search.confidence import Rule
from calmctl.search.model import bare_search_model
from calmctl.search.search import Search
from calmctl.search.serve import AskedTerm, Engine, web_app
from calmctl.store import format as fmt
from calmctl.tensors import save_tensors

TINY = Path(__file__).resolve().parents[1] / "tests" / "tiny-clip.json"


def measure(n_clips: int, queries: int, cold: int, folder: Path) -> dict[str, object]:
    config, weights, store = folder / "clip.json", folder / "clip.safetensors", folder / "store"
    values = json.loads(TINY.read_text())
    (values.get("model_cfg") or values)["embed_dim"] = 512
    config.write_text(json.dumps(values))
    torch.manual_seed(0)
    save_tensors(weights, load_backbone(str(config), None).clip.state_dict(), {})
    store.mkdir()
    write_store(store, n_clips, World(n_clips))
    model = bare_search_model(torch.device("cpu"), backbone=str(config), weights=str(weights))
    index = json.loads((store / fmt.INDEX).read_text())
    header = fmt.Header(dataset="drawn", backbone=fingerprint(model.model.backbone), n_frames=FRAMES, dtype="float16")
    shards = {name: fmt.ShardEntry(**each) for name, each in index["shards"].items()}
    fmt.write_document(store / fmt.INDEX, fmt.Index(header=header, shards=shards))
    search = Search(model, open_collection(store, model))
    engine = Engine(search, Rule())
    command = [sys.executable, "-m", "calmctl", "search", "a dog", "--in", str(store)]
    command += ["--backbone", str(config), "--backbone-weights", str(weights), "--json"]
    times: dict[str, list[float]] = {"cold": [], "warm": [], "page": []}
    for _ in range(cold):
        started = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        times["cold"].append(time.perf_counter() - started)
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
            started = time.perf_counter()
            if name == "warm":
                search.sentences([sentence], 10)
            else:
                asked = urllib.parse.urlencode({"q": sentence, "top": 10})
                opener.open(f"http://127.0.0.1:{port}/api/search?{asked}").read()
            if number >= 3:
                times[name].append(time.perf_counter() - started)
    server.should_exit = True
    thread.join()
    answers = engine.ask([AskedTerm(text="a dog")], 10)
    assert len(answers["hits"]) == 10
    return {"clips": n_clips, "load": os.getloadavg()[0], "s": times}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument("--queries", type=int, default=100)
    parser.add_argument("--cold", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where the stores are put for the run; a temporary one by default")
    options = parser.parse_args()
    table = Table()
    for column in ("clips", "what", "times", "median ms", "p99 ms"):
        table.add_column(column, justify="left" if column == "what" else "right")
    for size in options.sizes:
        folder = Path(tempfile.mkdtemp(dir=options.folder))
        try:
            found = measure(size, options.queries, options.cold, folder)
        finally:
            shutil.rmtree(folder)
        for name, each in found["s"].items():
            cells = f"{1e3 * np.median(each):,.1f}", f"{1e3 * np.quantile(each, 0.99):,.1f}"
            table.add_row(f"{size:,}", name, str(len(each)), *cells)
        print(f"{size:,} clips: load {found['load']:.1f}, {torch.get_num_threads()} threads", file=sys.stderr)
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
