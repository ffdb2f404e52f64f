"""Feeds every reader of files with bytes that nobody meant, and counts what comes out.

    python benchmarks/fuzz.py                                  # 3,000 inputs a reader
    python benchmarks/fuzz.py --inputs 20000 --seed 7
    python benchmarks/fuzz.py --only msvd vocabulary videos
    python benchmarks/fuzz.py --corpus found --minutes 60      # begins with what an earlier one found

An input is a set of well-formed files with pieces put in, cut out, doubled or exchanged, numbers made extreme, any
bytes at all, or a small file that claims something huge (`fuzz_files.bombs`). Videos are taken apart by the rules of
their containers (`fuzz_videos.py`). A reader must give a result or one of our errors (`calmctl.errors`), within ten
seconds and 256 MB (a video: within the limits of a worker), execute nothing, connect to nothing, and neither write nor
look outside the folder that holds its files.

What reaches a new outcome (a sentence that was not seen before) is kept and changed further: in memory, and in the
folder of `--corpus`, from which the next run begins. Everything else is printed with the seed that makes it again, and
its files are put into that folder below `failed`. Each reader runs in a process of its own, so that a crash is counted
too. The program ends with 1 where there was a fault.
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import fuzz_files
import fuzz_runs
import fuzz_videos
from fuzz_base import Corpus, Input, Reader, Tally, Watch, outcome_kind, peak_bytes

from calmctl.errors import CalmError
from calmctl.samples import Dataset

LIMIT_S = 10
LIMIT_BYTES = 256 * 1024**2
FAULTS_SHOWN = 5


def fuzz(
    reader: Reader, inputs: int, seed: int, *, corpus: Corpus | None = None, watch: Watch | None = None,
    place: Path | None = None, until: float = float("inf")
) -> Tally:  # fmt: skip
    """What came out of `inputs` inputs.

    Args:
        reader: The reader.
        inputs: How many.
        seed: Of the draws.
        corpus: What to begin with and where to keep what is new; None for one in memory.
        watch: Sees what the reader does; None where nobody looks.
        place: The folder for the files, empty; None for a temporary one.
        until: When to stop (`time.monotonic`).
    """
    tally, corpus = Tally(), corpus or Corpus(None, "")
    with tempfile.TemporaryDirectory() as temporary:
        folder = place or Path(temporary)
        root, videos = folder / "annotations", folder / "clips"
        for made in (root, videos):
            made.mkdir()
        for clip in fuzz_files.CLIPS:
            (videos / f"{clip}.mp4").touch()
        written: dict[str, bytes | None] = {}
        for number in range(inputs):
            if time.monotonic() > until:
                break
            files = reader.draw(random.Random(f"{seed} {number}"), corpus.inputs)
            well_formed = {file: reader.content(file) for file in reader.files if file not in files}
            write_input(root, {**well_formed, **files}, written)
            if place is not None:  # for whoever finds this process dead
                (place / "number").write_text(str(number))
                if number % 500 == 0:  # native code does not see an alarm: then this ends the process
                    faulthandler.dump_traceback_later(60 * LIMIT_S, exit=True)
            before = len(tally.faults)
            kind = read_one(reader, root, videos, tally, number, watch)
            if len(tally.faults) > before:
                corpus.fail(files)
            if kind not in tally.kinds:
                tally.kinds.add(kind)
                corpus.keep(files)
    tally.peak_bytes = peak_bytes(resource.RUSAGE_SELF)
    return tally


def write_input(root: Path, files: Input, written: dict[str, bytes | None] | None = None) -> None:
    """Put files into the folder, but those that were `written` as they are."""
    written = {} if written is None else written
    for file, content in files.items():
        if file in written and written[file] == content:
            continue
        path = root / file
        if content is None:
            path.unlink(missing_ok=True)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        written[file] = content


def read_one(reader: Reader, root: Path, videos: Path, tally: Tally, number: int, watch: Watch | None) -> str:
    """Read one input; what kind of outcome that had."""
    seen = len(watch.seen) if watch is not None else 0
    started = time.process_time()
    # Of the processor's time: beside other work a second of the clock says little.
    signal.setitimer(signal.ITIMER_PROF, LIMIT_S)
    try:
        if watch is not None:
            watch.armed = True
        try:
            result = reader.read(root, videos)
        finally:
            if watch is not None:
                watch.armed = False
    except CalmError as error:
        tally.outcomes["our errors"] += 1
        kind = outcome_kind(error)
        if not str(error).strip() or len(str(error)) > 4000:
            tally.faults.append(f"input {number}: a message of {len(str(error))} characters")
    except BaseException as error:
        tally.outcomes["hangs" if isinstance(error, TimeoutError) else "anything else"] += 1
        kind = outcome_kind(error)
        tally.faults.append(f"input {number}: {type(error).__name__}: {str(error)[:200]}")
        if isinstance(error, KeyboardInterrupt):
            raise
    else:
        tally.outcomes["results"] += 1
        kind = f"result {type(result).__name__}"
        if outside(result, videos):
            tally.faults.append(f"input {number}: a clip outside its folder")
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    tally.slowest_s = max(tally.slowest_s, time.process_time() - started)
    if watch is not None:
        tally.faults += [f"input {number}: {what}" for what in watch.seen[seen:]]
    return kind


def outside(result: Any, videos: Path) -> bool:
    """Whether a dataset has a clip that is not below the folder of clips."""
    if not isinstance(result, Dataset):
        return False
    paths = [clip.path for split in result.splits.values() for clip in split.clips]
    return not all(Path(os.path.normpath(path)).is_relative_to(videos) for path in paths)


def in_a_process(work: Callable[[Path], Tally], inputs: int) -> Tally:
    """What `work` on a folder gives, in a process of its own; a crash and a hang in native code are counted."""
    place = Path(tempfile.mkdtemp(prefix="fuzz-"))
    report = place / "report.json"
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        report.write_text(json.dumps(work(place).to_json()))
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    if report.exists():
        tally = Tally.from_json(json.loads(report.read_text()))
    else:
        done = int(number.read_text()) if (number := place / "number").exists() else 0
        tally = Tally(Counter({"crashes": 1, "before it": done}))
        tally.faults.append(f"input {done} of {inputs}: the process ended with status {status}; its files: {place}")
        return tally
    shutil.rmtree(place, ignore_errors=True)
    return tally


def out_of_time(*_: object) -> None:
    raise TimeoutError(f"longer than {LIMIT_S} s")


def limit_memory() -> None:
    """Let no reader have more than `LIMIT_BYTES` beyond what the process has now (Linux)."""
    try:
        in_use = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    except FileNotFoundError:
        return
    resource.setrlimit(resource.RLIMIT_AS, (in_use + LIMIT_BYTES, resource.RLIM_INFINITY))


def warm_up(readers: Mapping[str, Reader]) -> None:
    """Read everything once as it should be: what libraries load takes more time and memory than a reader may have."""
    for reader in readers.values():
        fuzz(reader, 1, 0)
    import calmctl.tensors  # noqa: F401


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--inputs", type=int, default=3000, help="for each reader of files")
    parser.add_argument("--videos", type=int, help="for each reader of videos; a third of --inputs where not given")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="*", default=[], help="readers whose name begins so")
    parser.add_argument("--corpus", type=Path, help="a folder of inputs that reached something new, which grows")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="stop after these")
    options = parser.parse_args()
    until = time.monotonic() + 60 * options.minutes
    signal.signal(signal.SIGPROF, out_of_time)
    readers: dict[str, Reader | fuzz_videos.Way] = {**fuzz_files.readers(), **fuzz_runs.readers(), **fuzz_videos.ways()}
    chosen = {name: each for name, each in readers.items() if not options.only or name.startswith(tuple(options.only))}
    warm_up({name: each for name, each in chosen.items() if isinstance(each, Reader)})
    total: Counter[str] = Counter()
    failed = False
    print(
        f"{'reader':<26}{'inputs':>9}{'results':>9}{'our errors':>12}{'else':>6}{'crash':>7}{'hang':>6}"
        f"{'kinds':>7}{'slowest ms':>12}{'peak MB':>9}"
    )
    for name, each in chosen.items():
        corpus = Corpus(options.corpus, name)
        work: Callable[[Path], Tally]
        if isinstance(each, Reader):
            inputs = options.inputs
            work = partial(_work, each, inputs, options.seed, corpus, until)
        else:
            inputs = options.videos or options.inputs // 3
            work = partial(fuzz_videos.fuzz, each, inputs, options.seed, corpus, until)
        tally = in_a_process(work, inputs)
        counts = tally.outcomes
        print(
            f"{name:<26}{counts.total():>9,}{counts['results']:>9,}{counts['our errors']:>12,}"
            f"{counts['anything else']:>6}{counts['crashes']:>7}{counts['hangs']:>6}{len(tally.kinds):>7}"
            f"{tally.slowest_s * 1000:>12.1f}{tally.peak_bytes / 1024**2:>9.0f}",
            flush=True,
        )
        for fault in tally.faults[:FAULTS_SHOWN]:
            print(f"    seed {options.seed}, {fault}")
        failed = failed or bool(tally.faults)
        total += counts
        total["faults"] += len(tally.faults)
        if time.monotonic() > until:
            print("out of time")
            break
    inputs = total.total() - total["faults"]
    print(
        f"{inputs:,} inputs tried: {total['results']:,} results, {total['our errors']:,} of our errors, "
        f"{total['anything else']:,} else, {total['crashes']:,} crashes, {total['hangs']:,} hangs; "
        f"{total['faults']:,} faults in all"
    )
    sys.exit(failed)


def _work(reader: Reader, inputs: int, seed: int, corpus: Corpus, until: float, place: Path) -> Tally:
    limit_memory()
    watch = Watch(place)
    watch.install()
    return fuzz(reader, inputs, seed, corpus=corpus, watch=watch, place=place, until=until)


if __name__ == "__main__":
    main()
