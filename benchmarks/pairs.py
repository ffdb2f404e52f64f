"""Starts every two commands of calmctl that write together, on one folder, and checks what they leave.

    python benchmarks/pairs.py                          # 50 times each; the long ones a fifth of that
    python benchmarks/pairs.py --times 5 --only "export, export"

Both run in forks of one warm process, with tiny towers and small worlds, and begin at the same moment or with a random
offset of up to what one takes. Each has to end right, or to say in a sentence, with exit code 1 or 2, that the other is
at work; one of them at least ends right. What is on disk afterwards must be what one of them alone leaves, or one
behind the other, bit for bit but for times; no temporary file, no lock that is held, no process. Where one reads what
the other is about to change, a third command settles it first: a search that comes after both. The program ends with 1
where one of these fails, and says what.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from forks import Ended, Fork, Job, locks_free, orphans_gone, warm
from kill_jobs import Bench
from outcomes import differences, load_all, outcome, temporaries

LONG = 5
"""A long pair is started this much less often (our choice)."""
MOST_FAULTS = 3
"""Of one pair that is then left alone (our choice): enough to look at."""


@dataclass(frozen=True, slots=True)
class Pair:
    """Two commands on one folder.

    Attributes:
        name: What they are.
        first, second: The commands.
        refusal: What the one says that does not do its work, as a regular expression.
        prepare: What lies in the folder before.
        settle: A command after both, on whose outcome alone it depends.
        long: Whether it is started less often.
    """

    name: str
    first: Job
    second: Job
    refusal: str = "(?!)"
    prepare: Callable[[], None] = lambda: None
    settle: Job | None = None
    long: bool = False


@dataclass
class Tally:
    """What came of a pair.

    Attributes:
        times: Started together.
        both: Both ended right.
        refused: One ended right, and the other said why it did nothing.
        sentences: What was said, and how often.
        faults: What was wrong, in words.
    """

    times: int = 0
    both: int = 0
    refused: int = 0
    sentences: dict[str, int] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)


def all_pairs(bench: Bench) -> list[Pair]:
    """Every two commands that write into one place."""
    at, given = bench.at, bench.given
    run, runs = str(at / "tiny-001"), ("--runs", str(at))
    fresh = bench.command("train", str(given / "tiny.yaml"), *runs)
    resumed = bench.command("train", "--resume", run, *runs)
    evaluated = bench.command("eval", run, "--device", "cpu")
    last = bench.command("eval", run, "--device", "cpu", "--weights", "last")
    merged = bench.command("extract", "--merge", str(given / "1"), str(given / "2"), "--out", f"{at}/store")
    in_store = bench.command(
        "search", "a red circle", "--in", f"{at}/store", "--run", str(given / "tiny-001"), "--device", "cpu"
    )
    exported = bench.command("export", run, f"{at}/given-away")
    removed = bench.command("runs", "rm", "tiny-001", "--yes", *runs)
    pruned = bench.command("runs", "prune", "--yes", *runs)
    built, other = (
        bench.command("anchors", "build", str(given / name), "--out", f"{at}/anchors.yaml", "--name", "mine")
        for name in ("labels.txt", "others.txt")
    )
    frames = bench.command("data", "frames", str(given / "frames.yaml"))
    on_disk = bench.command("train", str(given / "frames.yaml"), *runs)
    shown = bench.demonstration()
    half, whole, parted = partial(bench.with_run, "half"), partial(bench.with_run, "tiny-001"), bench.with_half_store
    extracting = "another process is extracting into"
    in_use, gone = "in use by another process", "has been removed|no run at|does not exist|cannot read|No such file"
    return [
        Pair("extract, extract", bench.extraction(), bench.extraction(), extracting),
        Pair("extract --merge, extract --merge", merged, merged, extracting),
        Pair("extract --merge, extract", merged, bench.extraction(), extracting),
        Pair("search, search", bench.searching(), bench.searching()),
        Pair("search --window, search --window", *[bench.searching("--window", "0.5")] * 2),
        Pair("search --in STORE, extract", in_store, bench.extraction(), prepare=parted, settle=in_store),
        Pair("search --in STORE, search --in STORE", in_store, in_store, prepare=parted),
        Pair("train, train (one name)", fresh, fresh),
        Pair("train --resume, train --resume", resumed, resumed, f"{in_use}|is finished", half),
        Pair("train --resume, eval", resumed, evaluated, "its training goes on", half),
        Pair("eval, eval", evaluated, evaluated, prepare=whole),
        Pair("eval, eval --weights last", evaluated, last, prepare=whole),
        Pair("runs rm, train --resume", removed, resumed, f"{in_use}|{gone}|is finished", half),
        Pair("runs prune, train --resume", pruned, resumed, prepare=half),
        Pair("runs prune, train", pruned, fresh, f"{in_use}|{gone}|no run in", prepare=half),
        Pair("runs rm, eval", removed, evaluated, gone, whole),
        Pair("runs prune, eval", pruned, evaluated, prepare=whole),
        Pair("runs rm, runs rm", removed, removed, f"{in_use}|{gone}", whole),
        Pair("export, export", exported, exported, "exists and is not empty", whole),
        Pair("export, runs rm", exported, removed, gone, whole),
        Pair("anchors build, anchors build", built, built),
        Pair("anchors build, anchors build (other labels)", built, other, "other contents|already"),
        Pair("data frames, data frames", frames, frames),
        Pair("data frames, train", frames, on_disk),
        Pair("reproduce, reproduce", *[bench.reproduction()] * 2, "reproduce or demo is at work in", long=True),
        Pair("demo, demo", shown, shown, "reproduce or demo is at work in", long=True),
        Pair("demo, reproduce", shown, bench.reproduction(), "reproduce or demo is at work in", long=True),
    ]


class Together:
    """Starts one pair, and knows what each of it leaves alone and behind the other."""

    def __init__(self, bench: Bench, pair: Pair, rng: random.Random) -> None:
        """Run both alone and in both orders, for what may be on disk afterwards."""
        self._bench, self._pair, self._rng = bench, pair, rng
        self.tally, self.seconds = Tally(), 0.0
        self.expected: dict[str, dict[str, str]] = {}
        for name, jobs in {
            "the first": (pair.first,),
            "the second": (pair.second,),
            "the first, then the second": (pair.first, pair.second),
            "the second, then the first": (pair.second, pair.first),
        }.items():
            self._begin()
            for number, job in enumerate(jobs):
                ended = warm(job, bench.at, bench.out)
                self._require_sentence(ended, alone=number == 0)
                self.seconds = ended.seconds if number == 0 else self.seconds
            self._settle()
            self.expected[name] = outcome(bench.at)

    def _begin(self) -> None:
        self._bench.empty()
        self._pair.prepare()

    def _settle(self) -> None:
        if self._pair.settle is not None:
            ended = Fork(self._pair.settle, self._bench.at, self._bench.out).wait()
            assert ended.status == 0, f"what comes after both fails:\n{ended.said}"

    def _require_sentence(self, ended: Ended, *, alone: bool) -> str:
        """What a command says that did not do its work; "" for one that did."""
        if ended.status == 0:
            return ""
        said = " ".join(line for line in ended.said.splitlines() if line.startswith("error: "))
        right = ended.status in (1, 2) and re.search(self._pair.refusal, said) and "unexpected" not in said
        assert right and not alone, f"status {ended.status}:\n{ended.said}"
        return said

    def round(self) -> None:
        """Start both, and check; what is wrong is noted."""
        self._begin()
        self.tally.times += 1
        try:
            self._round()
        except (AssertionError, ValueError, OSError) as fault:
            self.tally.faults.append(f"{type(fault).__name__}: {fault}")
            print(f"FAULT {self._pair.name}: {fault}", file=sys.stderr, flush=True)

    def _round(self) -> None:
        bench, rng = self._bench, self._rng
        # Half of them within a fiftieth of a second: both then look before either has written.
        offset = rng.random() * (0.02 if rng.random() < 0.5 else self.seconds)
        delays = (0.0, offset) if rng.random() < 0.5 else (offset, 0.0)
        jobs = (self._pair.first, self._pair.second)
        forks = [
            Fork(job, bench.at, bench.out, delay_s=delay, label=str(number))
            for number, (job, delay) in enumerate(zip(jobs, delays, strict=True))
        ]
        ended = [fork.wait() for fork in forks]
        for fork in forks:
            orphans_gone(fork)
        said = [self._require_sentence(each, alone=False) for each in ended]
        locks_free(bench.at)
        load_all(bench.at)
        assert not all(said), f"neither did its work: {said}"
        assert not (left := temporaries(bench.at)), f"left behind: {[str(path.relative_to(bench.at)) for path in left]}"
        self._settle()
        self._require_expected(outcome(bench.at), said)
        self.tally.refused += any(said)
        self.tally.both += not any(said)
        for sentence in filter(None, said):
            plain = re.sub(r"\S*/", "", sentence)
            self.tally.sentences[plain] = self.tally.sentences.get(plain, 0) + 1

    def _require_expected(self, found: dict[str, str], said: list[str]) -> None:
        wrong = {name: differences(found, expected) for name, expected in self.expected.items()}
        if all(wrong.values()):
            nearest = min(wrong, key=lambda name: len(wrong[name]))
            raise AssertionError(f"not what {nearest} leaves: {wrong[nearest]}; said: {said}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=50, help="how often to start each pair")
    parser.add_argument("--minutes", type=float, help="begin no round after so many")
    parser.add_argument("--only", action="append", help="this pair alone; may be given again")
    parser.add_argument("--seed", type=int, default=0, help="of the offsets")
    parser.add_argument("--json", action="store_true", help="print the counts as JSON")
    options = parser.parse_args()
    torch.set_num_threads(1)  # forks follow, and threads do not survive them
    rng, begun = random.Random(options.seed), time.monotonic()
    with tempfile.TemporaryDirectory() as base:
        bench = Bench(Path(base))
        bench.need("tiny-001", "half", "1", "2")
        pairs = {pair.name: pair for pair in all_pairs(bench)}
        if unknown := set(options.only or ()) - pairs.keys():
            raise SystemExit(f"no pair {unknown.pop()!r} is started here; there is {'; '.join(pairs)}")
        together: dict[str, Together] = {}
        # In turn, so that a limit of time leaves no pair out.
        for turn in range(options.times):
            for name in options.only or pairs:
                late = options.minutes is not None and time.monotonic() - begun > 60 * options.minutes
                if late or (pairs[name].long and turn % LONG):
                    continue
                if name not in together:
                    together[name] = Together(bench, pairs[name], rng)
                if len(together[name].tally.faults) < MOST_FAULTS:
                    together[name].round()
                    print(f"{name}: {together[name].tally}", file=sys.stderr, flush=True)
        tallies = {name: each.tally for name, each in together.items()}
    record = summary(tallies, time.monotonic() - begun)
    print(json.dumps(record, indent=2) if options.json else table(record, tallies))
    sys.exit(1 if record["faults"] else 0)


def summary(tallies: dict[str, Tally], wall_s: float) -> dict[str, Any]:
    """All counts as plain data."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return {
        "times": sum(each.times for each in tallies.values()),
        "faults": sum(len(each.faults) for each in tallies.values()),
        "pairs": {name: asdict(each) for name, each in tallies.items()},
        "wall_s": round(wall_s),
        "cpu_s": round(sum(each.ru_utime + each.ru_stime for each in used)),
    }


def table(record: dict[str, Any], tallies: dict[str, Tally]) -> str:
    """The counts as a table in Markdown, and a sentence."""
    lines = ["| two commands | times | both right | one refused | faults |", "|---|--:|--:|--:|--:|"]
    for name, each in tallies.items():
        lines.append(f"| {name} | {each.times} | {each.both} | {each.refused} | {len(each.faults)} |")
    lines.append("")
    lines.append(
        f"{record['times']} pairs started, {record['faults']} faults; {record['cpu_s']} s of processor, "
        f"{record['wall_s']} s"
    )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
