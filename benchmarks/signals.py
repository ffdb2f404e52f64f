"""Interrupts long commands at random moments by Ctrl-C, SIGTERM, SIGHUP or a closed terminal, and times their end.

    python benchmarks/signals.py                      # 10 moments of each command and signal
    python benchmarks/signals.py --signal TERM --moments 3 --only train

Each command runs in a fork on a small world (forked.py), and a signal goes to it alone, or to all of its group, at a
moment drawn from the time that it takes. It must end within 3 s with one sentence that says how to go on (behind a
terminal that is closed nobody reads it), leave no process, and nothing half written; the same command again must end as
one that was never disturbed. "cpu" is the processor time between signal and end, which a loaded machine does not
stretch. The program ends with 1 where one of these fails.
"""

from __future__ import annotations

import argparse
import json
import os
import pty
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import forked

LIMIT_S = 3.0
SIGNALS = {"INT": signal.SIGINT, "TERM": signal.SIGTERM, "HUP": signal.SIGHUP, "closed": None}
"""By name; `closed` is a terminal whose other end goes away."""
_LONG = (
    "extract", "extract, a folder", "extract --merge", "train", "train, frames kept", "train, on features",
    "train, a folder", "train, captioner", "eval", "eval, captions", "caption --srt", "search", "search, an index",
    "reproduce", "reproduce --jobs", "demo", "data check", "data reencode", "serve",
)  # fmt: skip


@dataclass
class Tally:
    """What came of the signals to one command."""

    sent: Counter[str] = field(default_factory=Counter)
    ended_before: int = 0
    longest_s: float = 0.0
    longest_cpu_s: float = 0.0
    wrong: list[str] = field(default_factory=list)


def interrupt(
    unbroken: forked.Unbroken, name: str, delay_s: float, whole_group: bool
) -> tuple[float, float, list[str]]:
    """Send a signal `delay_s` seconds after the start; the seconds until the end, processor time, and what is wrong.

    The seconds are negative where the command had ended before.
    """
    job, place = unbroken.job, unbroken.place
    forked.fresh(job, unbroken.stage, place)
    notes, terminal = place.with_name("notes"), pty.openpty() if name == "closed" else None
    notes.write_bytes(b"")
    child = forked.start(job.words, place, lambda: None, notes, terminal)
    if terminal:
        os.close(terminal[1])
        os.set_blocking(terminal[0], False)
    while not (place / "printed").exists():  # it is not more than a copy of this process yet
        time.sleep(0.001)
    until = time.perf_counter() + delay_s
    while time.perf_counter() < until and not forked.is_over(child):
        time.sleep(0.002)
        if terminal:
            _read_away(terminal[0])
    over, used_s = forked.is_over(child), forked.cpu_s(child)
    if terminal:
        os.close(terminal[0])
    elif not over:
        (os.killpg if whole_group else os.kill)(child, SIGNALS[name])
    ended = forked.finish(child, place, notes, limit_s=30.0)
    wrong = [f"{each} outlived it" for each in ended.left]
    if not ended.is_told:
        wrong.append("no sentence")
    if ended.code not in (0, 1):
        wrong.append(f"exit code {ended.code}")
    if ended.code == 1 and name != "closed" and not (len(ended.errors) == 1 and "interrupted" in ended.errors[0]):
        wrong.append(f"it says {ended.errors}")
    if not over and ended.seconds > LIMIT_S and ended.cpu_s - used_s > LIMIT_S / 2:
        wrong.append(f"it ended {ended.seconds:.1f} s later")
    if wrong:
        print(ended.notes[-2500:], file=sys.stderr)
    wrong += [f"half written: {each}" for each in unbroken.half_written()]
    wrong += unbroken.goes_on() if job.ends else []
    return (-1.0 if over else ended.seconds), ended.cpu_s - used_s, wrong


def _read_away(terminal: int) -> None:
    try:
        os.read(terminal, 1 << 16)
    except OSError:  # nothing to read, or nobody there any more
        return


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--signal", choices=SIGNALS, help="this one alone")
    parser.add_argument("--moments", type=int, default=10, help="of each command and signal")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="send none after so many")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--only", action="append", help="these commands alone, by a part of their name")
    parser.add_argument("--json", action="store_true", help="print the counts as JSON")
    options = parser.parse_args()
    begun, rng = time.monotonic(), random.Random(options.seed)
    forked.warm()
    with tempfile.TemporaryDirectory() as base:
        stage, place = forked.make_stage(Path(base)), Path(base).resolve() / "place"
        chosen = [job for job in forked.jobs() if job.name in _LONG]
        chosen = [job for job in chosen if not options.only or any(name in job.name for name in options.only)]
        unbroken = [forked.Unbroken(job, stage, place) for job in chosen]
        for job, each in zip(chosen, unbroken, strict=True):
            print(f"{job.name}: {each.seconds:.2f} s", file=sys.stderr)
        tallies = [Tally() for _ in chosen]
        # In turn, so that a limit of time leaves no command out.
        for _ in range(options.moments):
            for name in [options.signal] if options.signal else SIGNALS:
                for job, each, tally in zip(chosen, unbroken, tallies, strict=True):
                    if time.monotonic() - begun > options.minutes * 60:
                        continue
                    delay_s, whole_group = rng.random() * each.seconds, rng.random() < 0.5
                    seconds, cpu_s, wrong = interrupt(each, name, delay_s, whole_group)
                    tally.sent[name] += 1
                    if seconds < 0:
                        tally.ended_before += 1
                    else:
                        tally.longest_s = max(tally.longest_s, seconds)
                        tally.longest_cpu_s = max(tally.longest_cpu_s, cpu_s)
                    if wrong:
                        tally.wrong.append(f"{name} after {delay_s:.3f} s: {wrong[0]}")
                        print(f"  {job.name}, {name} after {delay_s:.3f} s, {whole_group=}:", *wrong, sep="\n    ",
                              file=sys.stderr)  # fmt: skip
    names = [job.name for job in chosen]
    if options.json:
        record = {name: {**vars(t), "sent": dict(t.sent)} for name, t in zip(names, tallies, strict=True)}
        print(json.dumps(record, indent=2))
    else:
        print(table(names, tallies))
    sys.exit(any(tally.wrong for tally in tallies))


def table(names: list[str], tallies: list[Tally]) -> str:
    """The counts in Markdown."""
    heads = [*SIGNALS, "ended before", "longest, s", "cpu, s", "wrong"]
    rows = [f"| command | {' | '.join(heads)} |", "|---|" + "--:|" * len(heads)]
    for name, t in zip(names, tallies, strict=True):
        sent = [str(t.sent[each]) for each in SIGNALS]
        rows.append(
            f"| {name} | {' | '.join(sent)} | {t.ended_before} | {t.longest_s:.2f} | {t.longest_cpu_s:.2f} | "
            f"{len(t.wrong)} |"
        )
    sent = [str(sum(t.sent[each] for t in tallies)) for each in SIGNALS]
    longest, cpu = max(t.longest_s for t in tallies), max(t.longest_cpu_s for t in tallies)
    before, wrong = sum(t.ended_before for t in tallies), sum(len(t.wrong) for t in tallies)
    return "\n".join([*rows, f"| together | {' | '.join(sent)} | {before} | {longest:.2f} | {cpu:.2f} | {wrong} |"])


if __name__ == "__main__":
    main()
