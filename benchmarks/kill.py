"""Kills calmctl with SIGKILL at random moments and checks that nothing is lost, half written or different.

    python benchmarks/kill.py                              # 100 kills, some minutes
    python benchmarks/kill.py --kills 1000 --seed 1
    python benchmarks/kill.py --only "score captions" --kills 10 --json

Commands on a small drawn world are killed in forks of one warm process: trainings (frames in memory, on disk, or
decoded in every epoch), extraction, also on Ray, merging, the frame cache, evaluation, scoring captions with Java,
searches of a folder, a table reproduced (also two runs at once), an export. Half of the kills come before an operation
on a file (a temporary file made, renamed, removed), drawn from all that the command does; half at any other moment. A
command is killed again and again, and given again each time, until it ends.

After every kill: each file loads, is temporary, or is a log whose last line is cut short; nobody holds a lock; whatever
the command started (decoders, Java, Ray) ends by itself; and a training goes on with the step behind its checkpoint.
At the end no temporary file is left, and all that is on disk is what an undisturbed command leaves, bit for bit but for
times. The program ends with 1 where one of these fails, and says what.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import sys
import tempfile
import time
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from forks import Ended, Fork, locks_free, orphans_gone, warm
from kill_jobs import SAVE_EVERY, Bench, Killed
from outcomes import differences, load_all, outcome, plain, temporaries

from calmctl.tensors import read_metadata

MOST_KILLS = 10
"""Of one command before it is let go on to its end (our choice)."""
MOST_FAULTS = 5
"""Of one command that is then left alone (our choice): enough to look at."""


@dataclass
class Tally:
    """What came of killing one command.

    Attributes:
        kills: SIGKILLs that reached it.
        at_files: Of these, before an operation on a file.
        ended: Times that it ended in the end, as the undisturbed one.
        temporary: Temporary files and folders that kills left.
        orphans: Processes that outlived a kill at all.
        longest_s: How long one did at most.
        repeated: Steps of trainings that were done again.
        faults: What was wrong, in words.
        operations: Before which operations it was killed.
        cpu_s: Seconds of processor, without those of processes that outlived a kill.
    """

    kills: int = 0
    at_files: int = 0
    ended: int = 0
    temporary: int = 0
    orphans: int = 0
    longest_s: float = 0.0
    repeated: int = 0
    faults: list[str] = field(default_factory=list)
    operations: dict[str, int] = field(default_factory=dict)
    cpu_s: float = 0.0


class Tormentor:
    """Kills one command, and knows how it ends when nobody does."""

    def __init__(self, bench: Bench, killed: Killed, rng: random.Random) -> None:
        """Run it once undisturbed, and a second time: what differs then says nothing about kills."""
        self._bench, self._killed, self._rng = bench, killed, rng
        self.tally = Tally()
        self._whole = self._undisturbed()
        self.expected = self._outcome()
        # Of the second one libraries are there already.
        self._seconds = self._undisturbed().seconds
        if unstable := differences(self._outcome(), self.expected):
            self._note(f"not the same twice: {unstable}")

    def _undisturbed(self) -> Ended:
        self._begin()
        ended = warm(self._killed.job, self._bench.at, self._bench.out)
        if ended.status != 0:
            self._note(f"it fails by itself (status {ended.status}):\n{ended.said}")
        return ended

    def _begin(self) -> None:
        self._bench.empty()
        self._killed.prepare()

    def _outcome(self) -> dict[str, str]:
        found = outcome(self._bench.at)
        if self._killed.prints:
            found["what it printed"] = plain(json.loads(self._bench.out.with_name("said.out").read_text()))
        return found

    def round(self, most: int) -> None:
        """Kill it up to `most` times and let it end; what is wrong is noted, and ends the round."""
        self._begin()
        try:
            self._round(most)
            self.tally.ended += 1
        except (AssertionError, ValueError, OSError) as fault:
            self._note(f"{type(fault).__name__}: {fault}")

    def _note(self, fault: str) -> None:
        self.tally.faults.append(fault)
        print(f"FAULT {self._killed.name}: {fault}", file=sys.stderr, flush=True)

    def _round(self, most: int) -> None:
        tally, at, reached = self.tally, self._bench.at, 0
        for number in range(most + 1):
            saved = self._saved_step()
            if self._killed.trains:
                assert reached - saved <= SAVE_EVERY, f"{reached} steps done, and the checkpoint has {saved}"
            ended = self._attempt(lets_live=number == most)
            if done := [int(line.split()[1]) for line in ended.told if line.startswith("step ")]:
                assert done[0] == saved + 1, f"the checkpoint is of step {saved}, and it went on with {done[0]}"
                tally.repeated += max(0, reached - saved)
                reached = done[-1]
            locks_free(at)
            if ended.status == 0:
                break
            assert ended.status == -9, f"status {ended.status} after {number} kills:\n{ended.said}"
            tally.temporary += load_all(at)
        assert not (left := temporaries(at)), f"left behind: {[str(path.relative_to(at)) for path in left]}"
        assert not (wrong := differences(self._outcome(), self.expected)), f"not as the undisturbed one: {wrong}"

    def _attempt(self, *, lets_live: bool) -> Ended:
        """Begin it, and kill it or let it live; all that it started has to end, too."""
        rng, tally = self._rng, self.tally
        at_file = not lets_live and rng.random() < 0.5
        # What is left to do after a kill is less than the whole: of its operations and its time the first are likelier.
        share = rng.random() ** 1.5
        die_at = 1 + int(share * len(self._whole.operations)) if at_file else None
        fork = Fork(self._killed.job, self._bench.at, self._bench.out, die_at=die_at)
        if not lets_live and not at_file and not fork.ends_within(share * self._seconds):
            fork.kill()
        ended = fork.wait()
        tally.cpu_s += ended.cpu_s
        if ended.status == -9:
            tally.kills += 1
            if at_file:
                tally.at_files += 1
                operation = ended.operations[-1].split()[0]
                tally.operations[operation] = tally.operations.get(operation, 0) + 1
        orphans, seconds = orphans_gone(fork, self._killed.grace_s)
        tally.orphans, tally.longest_s = tally.orphans + orphans, max(tally.longest_s, seconds)
        return ended

    def _saved_step(self) -> int:
        state = self._bench.at / "tiny-001" / "state.safetensors"
        return int(read_metadata(state, what="state")["step"]) if state.exists() else 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100, help="how often to kill, at least")
    parser.add_argument("--minutes", type=float, help="begin no round after so many")
    parser.add_argument("--only", action="append", help="this command alone; may be given again")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--json", action="store_true", help="print the counts as JSON")
    options = parser.parse_args()
    torch.set_num_threads(1)  # forks follow, and threads do not survive them
    rng, begun = random.Random(options.seed), time.monotonic()
    with tempfile.TemporaryDirectory() as base:
        bench = Bench(Path(base))
        every = {killed.name: killed for killed in bench.killed()}
        shares = {name: each.share for name, each in every.items()}
        if unknown := set(options.only or ()) - every.keys():
            raise SystemExit(f"no command {unknown.pop()!r} is killed here; there is {', '.join(every)}")
        tormentors: dict[str, Tormentor] = {}
        left = list(options.only or every)
        while left and sum(each.tally.kills for each in tormentors.values()) < options.kills:
            if options.minutes is not None and time.monotonic() - begun > 60 * options.minutes:
                break
            # The command that is furthest behind its share.
            name = min(left, key=lambda each: tormentors[each].tally.kills / shares[each] if each in tormentors else 0)
            if name not in tormentors:
                tormentors[name] = Tormentor(bench, every[name], rng)
            else:
                tormentors[name].round(rng.randint(1, MOST_KILLS))
                kills = {name: each.tally.kills for name, each in tormentors.items()}
                print(f"{sum(kills.values())} kills: {kills}", file=sys.stderr, flush=True)
            if len(tormentors[name].tally.faults) >= MOST_FAULTS:
                left.remove(name)
    tallies = {name: each.tally for name, each in tormentors.items()}
    record = summary(tallies, time.monotonic() - begun)
    print(json.dumps(record, indent=2) if options.json else table(record, tallies))
    sys.exit(1 if record["faults"] else 0)


def summary(tallies: dict[str, Tally], wall_s: float) -> dict[str, Any]:
    """All counts as plain data."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return {
        "kills": sum(each.kills for each in tallies.values()),
        "ended": sum(each.ended for each in tallies.values()),
        "faults": sum(len(each.faults) for each in tallies.values()),
        "commands": {name: asdict(each) for name, each in tallies.items()},
        "wall_s": round(wall_s),
        "cpu_s": round(sum(each.ru_utime + each.ru_stime for each in used)),
    }


def table(record: dict[str, Any], tallies: dict[str, Tally]) -> str:
    """The counts as a table in Markdown, and a sentence."""
    headings = (
        "kills",
        "before an operation",
        "ended equal",
        "temporary left",
        "outlived",
        "s",
        "CPU s",
        "faults",
    )
    lines = [f"| command | {' | '.join(headings)} |", "|---|" + "--:|" * len(headings)]
    for name, each in tallies.items():
        counts = (each.kills, each.at_files, each.ended, each.temporary, each.orphans)
        numbers = (*counts, f"{each.longest_s:.2f}", f"{each.cpu_s:.0f}", len(each.faults))
        lines.append(f"| {name} | {' | '.join(map(str, numbers))} |")
    operations = sum((Counter(each.operations) for each in tallies.values()), Counter[str]())
    lines.append("")
    lines.append(
        f"{record['kills']} kills, {record['ended']} commands that ended as the undisturbed one, {record['faults']} "
        f"faults; before {', '.join(f'{name} {n}' for name, n in operations.most_common())}; "
        f"{record['cpu_s']} s of processor, {record['wall_s']} s"
    )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
