"""Makes every call that writes fail once, and checks what calmctl says, what lies there, and that it goes on.

    python benchmarks/failing.py --minutes 25        # as many as fit
    python benchmarks/failing.py                     # all of them, an hour and more
    python benchmarks/failing.py --sample 3          # three of each command
    python benchmarks/failing.py --record tried.jsonl --minutes 30   # go on with what an earlier one has not tried
    python benchmarks/failing.py --only extract --fault 7:ENOSPC:lasting

SQLite is tested so. A command runs once and its calls below its folder are counted: open for writing, write, fsync,
rename, mkdir, link, truncate, remove, chmod, lock. Then it runs anew for each of them, and that one fails: alone, or
with all behind it, as on a disk that stays full; a write may also take half of its bytes. The library that does it
(failing.c) is compiled into a temporary folder. After each fault:

- the command ends with 1 and one sentence, or with 0 and all of its results; no traceback, no process left behind;
- what has a final name loads, or is as it was before;
- the same command again (`train --resume`, where there is a run) ends as one that never failed: every file equal, times
  apart, and no other file there.

The program ends with 1 where one of these fails.
"""

from __future__ import annotations

import argparse
import errno
import json
import mmap
import os
import random
import struct
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import forked

LIBRARY = Path(__file__).with_name("failing.c")
ERRORS = {
    "open": ("ENOSPC", "EACCES", "EMFILE", "EDQUOT", "EIO"),
    "write": ("ENOSPC", "EIO", "EDQUOT"),
    "fsync": ("EIO", "ENOSPC", "EDQUOT"),
    "rename": ("EACCES", "EIO", "ENOSPC", "EDQUOT"),
    "mkdir": ("ENOSPC", "EACCES", "EDQUOT", "EIO"),
    "link": ("EACCES", "ENOSPC", "EDQUOT"),
    "truncate": ("EIO", "ENOSPC"),
    "remove": ("EACCES", "EIO"),
    "chmod": ("EPERM", "EIO"),
    "lock": ("ENOLCK", "EIO"),
}
SHORT = "short"  # a write that takes half: no error, and the program must write the rest
_HEAD = struct.Struct("6q1024s")
_NAMES, _NAME = 4096, 64


class Orders:
    """What failing.c is told to do, in the file that all processes map."""

    def __init__(self, place: str) -> None:
        with open(place, "r+b") as handle:
            self._map = mmap.mmap(handle.fileno(), 0)

    def arm(self, folder: Path, fault: Fault | None) -> None:
        """From now on calls below `folder` count, and those of `fault` fail."""
        first, error, lasting = (0, 0, 0) if fault is None else (fault.number, fault.errno, int(fault.lasting))
        self._map[: _HEAD.size] = _HEAD.pack(1, first, error, lasting, 0, 0, os.fsencode(folder))

    def disarm(self) -> tuple[int, int]:
        """Every call passes again; how many there were, and how many failed."""
        counts: tuple[int, int] = _HEAD.unpack(self._map[: _HEAD.size])[4:6]
        self._map[:8] = bytes(8)
        return counts

    def names(self, count: int) -> list[str]:
        """What the calls were: "write index.json"."""
        cells = (self._map[_HEAD.size + n * _NAME :][:_NAME] for n in range(min(count, _NAMES)))
        return [cell.split(b"\0")[0].decode("utf-8", "replace") for cell in cells]


@dataclass(frozen=True)
class Fault:
    """The `number`-th call of a command fails with `error`, and where it is `lasting` all behind it do."""

    number: int
    error: str
    lasting: bool
    call: str = ""

    @property
    def errno(self) -> int:
        """0 for a short write."""
        return 0 if self.error == SHORT else getattr(errno, self.error)

    @property
    def kind(self) -> str:
        """What fails: "write"."""
        return self.call.split(" ")[0]

    def __str__(self) -> str:
        return f"{self.number}:{self.error}:{'lasting' if self.lasting else 'once'}"


@dataclass
class Tally:
    """What came of the faults of one command."""

    calls: int = 0
    planned: int = 0
    ends: Counter[str] = field(default_factory=Counter)
    by_call: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)

    def add(self, fault: str, call: str, end: str, wrong: list[str]) -> None:
        """Count one."""
        self.ends[end] += 1
        self.by_call[call] += 1
        self.wrong += [f"{fault}: {each}" for each in wrong[:1]]


class Record:
    """What came of every fault, in a file to which it is added at once; or in none."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        lines = path.read_text().splitlines() if path is not None and path.exists() else []
        self._tried = [json.loads(line) for line in lines]

    def into(self, job: str, tally: Tally) -> set[str]:
        """Count what is there of one command; the faults that this is."""
        tried = [each for each in self._tried if each["command"] == job]
        for each in tried:
            tally.add(each["fault"], each["call"], each["end"], each["wrong"])
        return {each["fault"] for each in tried}

    def add(self, job: str, fault: Fault, end: str, wrong: list[str], seconds: float) -> None:
        """Write one down."""
        if self._path is not None:
            line = {"command": job, "fault": str(fault), "call": fault.kind, "end": end, "wrong": wrong}
            with self._path.open("a") as file:
                file.write(json.dumps(line | {"seconds": round(seconds, 2)}) + "\n")


def plan(names: list[str], rng: random.Random) -> list[Fault]:
    """One fault of each sort for every call, errors in turn, in an order that is drawn."""
    faults, turns = [], Counter[str]()
    for number, name in enumerate(names, start=1):
        call = name.split(" ")[0]
        for lasting in (False, True):
            error = ERRORS[call][turns[call] % len(ERRORS[call])]
            turns[call] += 1
            faults.append(Fault(number, error, lasting, name))
        if call == "write":
            faults.append(Fault(number, SHORT, False, name))
    rng.shuffle(faults)
    return faults


class Trial:
    """One command, tried with faults."""

    def __init__(self, job: forked.Job, stage: Path, place: Path, orders: Orders) -> None:
        """Run it as it should be, and count its calls."""
        self.orders = orders
        self.unbroken = forked.Unbroken(job, stage, place, lambda: orders.arm(place, None))
        self.calls, _ = orders.disarm()
        self.names = orders.names(self.calls)
        self.tally, self.left = Tally(), list[Fault]()

    def prepare(self, options: argparse.Namespace, record: Record) -> None:
        """Plan what is tried, but for what stands in the record."""
        faults = plan(self.names, random.Random(f"{options.seed} {self.unbroken.job.name}"))
        if options.fault:
            number, error, how = options.fault.split(":")
            faults = [Fault(int(number), error, how == "lasting", self.names[int(number) - 1])]
        self.tally = Tally(self.calls, len(faults))
        tried = record.into(self.unbroken.job.name, self.tally)
        self.left = [fault for fault in faults if str(fault) not in tried][: options.sample]
        print(f"{self.unbroken.job.name}: {self.calls} calls, {len(self.left)} faults left", file=sys.stderr)

    def next(self, record: Record, *, show: bool) -> None:
        """Try one more."""
        fault, started = self.left.pop(0), time.monotonic()
        end, wrong = self.attempt(fault, show=show)
        self.tally.add(str(fault), fault.kind, end, wrong)
        record.add(self.unbroken.job.name, fault, end, wrong, time.monotonic() - started)

    def attempt(self, fault: Fault, *, show: bool = False) -> tuple[str, list[str]]:
        """How the command ended under a fault, and all that is wrong with it."""
        unbroken, job, place = self.unbroken, self.unbroken.job, self.unbroken.place
        forked.fresh(job, unbroken.stage, place)
        ended = forked.run(job.words, place, lambda: self.orders.arm(place, fault))
        _, failed = self.orders.disarm()
        wrong = [f"{name} outlived it" for name in ended.left]
        if not ended.is_told:
            wrong.append("no sentence")
        if ended.code not in (0, 1):
            wrong.append(f"exit code {ended.code}")
        if len(ended.errors) != (ended.code != 0) and not (job.lists and not ended.errors):
            wrong.append(f"{len(ended.errors)} sentences")
        wrong += [f"half written: {name}" for name in unbroken.half_written()]
        if ended.code == 0:
            if not job.counts and forked.printed(ended) != unbroken.printed:
                wrong.append("it printed something else and ended with 0")
            wrong += [f"ended with 0: {each}" for each in unbroken.differences()]
        wrong += unbroken.goes_on()
        if show or wrong:
            print(f"  {job.name} --fault {fault} ({fault.call}): {ended.code} {ended.errors}", file=sys.stderr)
            print(*(f"    {each}" for each in wrong), sep="\n", file=sys.stderr)
        if show or not ended.is_told or ended.code not in (0, 1):
            print(ended.notes[-3000:], file=sys.stderr)
        return "no call failed" if not failed else ("told" if ended.code else "done without"), wrong


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sample", type=int, help="so many faults of each command, drawn")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin no fault after so many")
    parser.add_argument("--seed", type=int, default=0, help="of the order in which faults are tried")
    parser.add_argument("--only", action="append", help="these commands alone, by a part of their name")
    parser.add_argument("--fault", help="this one alone: NUMBER:ERROR:once or :lasting, as a wrong one is printed")
    parser.add_argument("--record", type=Path, help="add what comes of each to this file; what is there is counted")
    parser.add_argument("--list", action="store_true", help="print the calls of each command, and try nothing")
    parser.add_argument("--json", action="store_true", help="print the counts as JSON")
    options = parser.parse_args()
    if "FAILING_ORDERS" not in os.environ:
        sys.exit(_with_library())
    begun = time.monotonic()
    orders = Orders(os.environ["FAILING_ORDERS"])
    forked.warm(fork_workers=True)
    record = Record(options.record)
    with tempfile.TemporaryDirectory(dir=os.environ.get("FAILING_BASE")) as base:
        stage, place = forked.make_stage(Path(base)), Path(base).resolve() / "place"
        chosen = [job for job in forked.jobs() if job.writes]
        chosen = [job for job in chosen if not options.only or any(name in job.name for name in options.only)]
        if options.list:
            for job in chosen:
                trial = Trial(job, stage, place, orders)
                print(f"{job.name}: {trial.calls} calls, {trial.unbroken.seconds:.2f} s", file=sys.stderr)
                print(job.name, *(f"  {number} {name}" for number, name in enumerate(trial.names, 1)), sep="\n")
            return
        # Next is always the command that has had the least time: a limit leaves none out, and the quick ones get far.
        trials: dict[str, Trial] = {}
        waiting = {job.name: 0.0 for job in chosen}
        by_name = {job.name: job for job in chosen}
        while waiting and time.monotonic() - begun < options.minutes * 60:
            name, started = min(waiting, key=lambda each: waiting[each]), time.monotonic()
            if name not in trials:
                trials[name] = Trial(by_name[name], stage, place, orders)
                trials[name].prepare(options, record)
            elif trials[name].left:
                trials[name].next(record, show=bool(options.fault))
            else:
                del waiting[name]
                continue
            waiting[name] += time.monotonic() - started
    tallies = {name: trial.tally for name, trial in trials.items()}
    if options.json:
        counts = {
            name: {"calls": t.calls, "planned": t.planned, **t.ends, "wrong": t.wrong, "by_call": t.by_call}
            for name, t in tallies.items()
        }
        print(json.dumps(counts, indent=2))
    else:
        print(table(tallies))
    sys.exit(any(tally.wrong for tally in tallies.values()))


def table(tallies: dict[str, Tally]) -> str:
    """The counts in Markdown."""
    heads = ["calls", "faults tried", "of", "told, exit code 1", "done without", "wrong"]
    rows = [f"| command | {' | '.join(heads)} |", "|---|" + "--:|" * len(heads)]
    cells = {
        name: [t.calls, t.ends.total(), t.planned, t.ends["told"], t.ends["done without"], len(t.wrong)]
        for name, t in tallies.items()
    }
    cells["together"] = [sum(column) for column in zip(*cells.values(), strict=True)]
    for name, row in cells.items():
        rows.append(f"| {name} | {' | '.join(f'{number:,}' for number in row)} |")
    by_call = sum((t.by_call for t in tallies.values()), Counter[str]())
    return "\n".join([*rows, "", ", ".join(f"{count:,} {call}" for call, count in by_call.most_common())])


def _with_library() -> int:
    """Compile the library and run this program once more behind it."""
    with tempfile.TemporaryDirectory() as folder:
        library, orders = Path(folder, "failing.so"), Path(folder, "orders")
        subprocess.run(["cc", "-O1", "-Wall", "-shared", "-fPIC", "-o", library, LIBRARY, "-ldl"], check=True)
        orders.write_bytes(bytes(_HEAD.size + _NAMES * _NAME))
        environment = {"LD_PRELOAD": str(library), "FAILING_ORDERS": str(orders), "OMP_NUM_THREADS": "1"}
        return subprocess.run([sys.executable, *sys.argv], env=os.environ | environment).returncode


if __name__ == "__main__":
    main()
