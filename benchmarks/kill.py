"""Kills calmctl with SIGKILL at random moments and checks that nothing is lost, half written or different.

    python benchmarks/kill.py                         # 60 kills, some minutes
    python benchmarks/kill.py --kills 8 --json

Every job runs in a process of its own on a small demo world: trainings (frames kept in memory, or decoded and
augmented in every epoch), extractions, and evaluations of a finished run. A job is killed again and again, at a moment
drawn from one of its phases, and taken up again until it ends. After every kill each file of its folder must load, be a
temporary file, or be a log whose last line is cut short; the job that takes over must begin at the step behind
the last checkpoint. At the end weights, optimiser state, log, TensorBoard events, results, or the feature store must
be those of a job that nobody killed, bit for bit. The program ends with 1 where one of these fails.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import random
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from kill_jobs import SAVE_EVERY, Mark, run_evaluation, run_extraction, run_training, tiny

from calmctl.anchors.vocabulary import load_vocabulary
from calmctl.data.demo import generate_demo
from calmctl.data.demo_world import DemoCounts
from calmctl.files import sha256_file
from calmctl.model.weights import load_backbone
from calmctl.runs.run import Run
from calmctl.store.extract import LOG
from calmctl.store.store import FeatureStore
from calmctl.tensors import load_tensors, read_metadata

PHASES = {
    "train": ("preparation", "training", "checkpoint", "validation", "test"),
    "extract": ("preparation", "extraction", "shard"),
    "evaluate": ("preparation", "evaluation"),
}
Timeline = list[tuple[float, str]]


# --- killing ----------------------------------------------------------------------------------------------


def attempt(job: Callable[[Mark], None], aim: tuple[str, int, float] | None) -> tuple[bool, Timeline]:
    """Run `job` in a fork of this process; returns whether it ended by itself, and the phases that it told.

    `aim` is (phase, n, delay_s): SIGKILL falls `delay_s` seconds after the n-th time the job enters the phase.
    """
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        status = 1
        try:
            job(lambda text: os.write(writing, f"{text}\n".encode()) and None)
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    os.close(writing)
    told: Timeline = [(time.perf_counter(), "preparation")]
    entered: Counter[str] = Counter(preparation=1)
    with os.fdopen(reading) as lines:
        while True:
            if aim is not None and entered[aim[0]] == aim[1]:
                time.sleep(aim[2])
                os.kill(child, signal.SIGKILL)
                aim = None
            if not (line := lines.readline().strip()):
                break
            told.append((time.perf_counter(), line))
            entered[line] += 1
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status not in (0, -signal.SIGKILL):
        raise SystemExit(f"the job failed by itself (status {status})")
    return status == 0, told


def aim_at(phase: str, reference: Timeline, rng: random.Random) -> tuple[str, int, float]:
    """A random moment of a phase: of the n-th time it is entered, up to as long as it lasted in the reference."""
    lengths = [
        following - begun
        for (begun, name), (following, _) in zip(reference, reference[1:] + reference[-1:], strict=True)
        if name == phase
    ]
    return phase, rng.randint(1, max(1, len(lengths) // 2)), rng.random() * max(lengths, default=0.05)


def phases(told: Timeline) -> list[str]:
    """The phases without the steps."""
    return [name for _, name in told if not name.startswith("step ")]


def steps(told: Timeline) -> list[int]:
    """The steps a job did."""
    return [int(name.split()[1]) for _, name in told if name.startswith("step ")]


# --- checking ---------------------------------------------------------------------------------------------


def check_folder(folder: Path) -> int:
    """Load every file that a kill left; returns how many were temporary. Raises for one that is half written."""
    temporary = 0
    for path in sorted(each for each in folder.rglob("*") if each.is_file()):
        if path.name.startswith(".") and path.suffix == ".tmp":
            temporary += 1
        elif path.suffix == ".safetensors":
            load_tensors(path, what="after a kill")
        elif path.suffix == ".json":
            json.loads(path.read_text())
        elif path.suffix == ".jsonl":
            for line in path.read_bytes().splitlines(keepends=True):
                if line.endswith(b"\n"):
                    json.loads(line)
        elif path.suffix == ".yaml":
            load_vocabulary(path)
        elif path.name.startswith("events.out.tfevents"):
            events_of(path.parent)
        elif path.name not in (".lock", ".origin", "numbers"):
            raise AssertionError(f"nobody knows what {path} is")
    return temporary


def events_of(folder: Path) -> list[tuple[str, int, float]]:
    """Every scalar in the event files of a folder, as they lie there."""
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    found = []
    for path in sorted(folder.glob("events.out.tfevents.*")):
        for event in EventFileLoader(str(path)).Load():
            found += [(value.tag, event.step, float(value.tensor.float_val[0])) for value in event.summary.value]
    return sorted(found)


def outcome(folder: Path) -> dict[str, Any]:
    """All that must not depend on kills: digests of files, log and kept evaluations without times, the events."""
    found: dict[str, Any] = {}
    for path in sorted(each for each in folder.rglob("*") if each.is_file()):
        if path.name in (LOG, ".lock", "run.json") or "tfevents" in path.name:
            continue
        if path.parent.name == "evals":
            kept = json.loads(path.read_text())
            found[str(path.relative_to(folder))] = {name: value for name, value in kept.items() if name != "created"}
            continue
        found[str(path.relative_to(folder))] = sha256_file(path)
    for log in folder.rglob("log.jsonl"):
        lines = [json.loads(line) for line in log.read_text().splitlines()]
        found[str(log.relative_to(folder))] = [{k: v for k, v in line.items() if k != "time"} for line in lines]
        found["events"] = events_of(log.parent / "tensorboard")
    return found


def torment(
    job: Callable[[Mark, Path], None], folder: Path, kind: str, reference: Timeline, rng: random.Random, most: int
) -> tuple[Counter[str], int, int]:
    """Kill `job` up to `most` times and let it end; returns kills by phase, temporary files seen, steps done twice."""
    kills: Counter[str] = Counter()
    temporary = repeated = 0
    ended, reached = False, 0
    while not ended:
        state = folder / "tiny-001" / "state.safetensors"
        saved = read_metadata(state, what="state")["step"] if state.exists() else 0
        assert reached - saved <= SAVE_EVERY, f"{reached} steps were done and only {saved} are in the checkpoint"
        aim = aim_at(rng.choice(PHASES[kind]), reference, rng) if kills.total() < most else None
        ended, told = attempt(lambda mark: job(mark, folder), aim)
        if done := steps(told):
            assert done[0] == saved + 1, f"the checkpoint is of step {saved} and the run went on with {done[0]}"
            repeated += max(0, reached - saved)
            reached = done[-1]
        if not ended:
            kills[phases(told)[-1]] += 1
            temporary += check_folder(folder)
            if kind == "extract" and (folder / "store" / "index.json").exists():
                FeatureStore.open(folder / "store")
    assert not list(folder.rglob("*.tmp")), "a temporary file was left behind"
    return kills, temporary, repeated


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=60, help="how often to kill, at least")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--json", action="store_true", help="print the counts as JSON")
    options = parser.parse_args()
    torch.set_num_threads(1)  # forks follow, and threads do not survive them
    load_backbone("demo-clip", None)  # imports what every fork would import anew
    importlib.import_module("torch.utils.tensorboard")
    rng = random.Random(options.seed)
    counts: dict[str, Counter[str]] = {kind: Counter() for kind in PHASES}
    temporary = repeated = jobs = 0
    with tempfile.TemporaryDirectory() as base:
        root, world = Path(base), Path(base) / "world"
        generate_demo(world, counts=DemoCounts(train=12, val=6, test=6, shifted=6))
        cached, streamed = tiny(world), tiny(world, "data.cache=none", "data.augment=crop-flip")
        work: list[tuple[str, Callable[[Mark, Path], None]]] = [
            ("train", lambda mark, folder: run_training(mark, folder, cached)),
            ("extract", lambda mark, folder: run_extraction(mark, folder, world)),
            ("train", lambda mark, folder: run_training(mark, folder, streamed)),
            ("evaluate", lambda mark, folder: run_evaluation(mark, folder, Run(root / "whole0" / "tiny-001"))),
        ]
        timelines = [
            attempt(lambda mark, n=n, job=job: job(mark, root / f"whole{n}"), None)[1]
            for n, (_, job) in enumerate(work)
        ]
        wholes = [outcome(root / f"whole{n}") for n in range(len(work))]
        while sum(count.total() for count in counts.values()) < options.kills:
            n = jobs % len(work)
            kind, job = work[n]
            folder = root / f"killed{jobs}"
            kills, seen, again = torment(job, folder, kind, timelines[n], rng, most=rng.randint(1, 6))
            different = [name for name, value in outcome(folder).items() if wholes[n].get(name) != value]
            missing = wholes[n].keys() - outcome(folder).keys()
            assert not different and not missing, f"after {dict(kills)} these differ: {different} {sorted(missing)}"
            assert outcome(root / "whole0") == wholes[0], "an evaluation changed its run"
            counts[kind] += kills
            jobs, temporary, repeated = jobs + 1, temporary + seen, repeated + again
            print(f"{kind}: {dict(kills)}, ended as the unbroken one", file=sys.stderr)
    record = {
        "kills": sum(count.total() for count in counts.values()),
        "by_phase": {kind: dict(count) for kind, count in counts.items()},
        "jobs": jobs,
        "temporary_files": temporary,
        "steps_repeated": repeated,
    }
    if options.json:
        print(json.dumps(record, indent=2))
        return
    for kind, count in counts.items():
        print(f"{kind:9}", ", ".join(f"{phase} {count[phase]}" for phase in PHASES[kind]))
    print(
        f"{record['kills']} kills of {jobs} jobs; {temporary} temporary files were left and cleared away; "
        f"{repeated} steps were done again; every job ended as the unbroken one, bit for bit"
    )


if __name__ == "__main__":
    main()
