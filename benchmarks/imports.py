"""What a start costs: the model library's import, and commands that need no model.

    python benchmarks/imports.py [--rounds 5]                     ours (calmctl/model/openclip.py) beside open_clip's
    python benchmarks/imports.py --commands [--beside CHECKOUT]   processor time of commands, and of another checkout's

All are started in turn, each in a process of its own, so that a busy machine slows all of them. Prints medians.
"""

import argparse
import os
import resource
import statistics
import subprocess
import sys
from pathlib import Path

WAYS = {"import open_clip": "import open_clip", "calmctl.model.openclip": "import calmctl.model.openclip"}
TIMED = "import time, torch; begin = time.perf_counter(); {}; print(time.perf_counter() - begin)"
COMMANDS = ("--version", "--help", "recipes list", "train --help", "eval nosuch")
HERE = Path(__file__).resolve().parents[1]


def libraries(rounds: int) -> None:
    """Print seconds of both ways to import the model library."""
    seconds: dict[str, list[float]] = {name: [] for name in WAYS}
    for _ in range(rounds):
        for name, code in WAYS.items():
            run = subprocess.run([sys.executable, "-c", TIMED.format(code)], capture_output=True, text=True, check=True)
            seconds[name].append(float(run.stdout))
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    for name, value in medians.items():
        print(f"{name:24s} {value:6.2f} s  ({min(seconds[name]):.2f} to {max(seconds[name]):.2f})")
    theirs, ours = medians.values()
    print(f"ratio                    {theirs / ours:6.1f}")


def commands(rounds: int, beside: Path | None) -> None:
    """Print milliseconds of processor time of each command, here and beside, and the ratio."""
    checkouts = [HERE, *([beside.resolve()] if beside else [])]
    for command in COMMANDS:
        used: dict[Path, list[float]] = {checkout: [] for checkout in checkouts}
        for _ in range(rounds):
            for checkout in checkouts:
                before = _children_s()
                subprocess.run(
                    [sys.executable, "-m", "calmctl", *command.split()],
                    env={**os.environ, "PYTHONPATH": str(checkout)},
                    cwd=os.path.sep,
                    capture_output=True,
                )
                used[checkout].append(_children_s() - before)
        here, *theirs = (1000 * statistics.median(values) for values in used.values())
        ratios = (f"  beside {each:5.0f} ms  ratio {each / here:.2f}" for each in theirs)
        print(f"{command:14s} {here:5.0f} ms", *ratios, flush=True)


def _children_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--commands", action="store_true")
    parser.add_argument("--beside", type=Path, metavar="CHECKOUT")
    options = parser.parse_args()
    if options.commands:
        commands(options.rounds or 20, options.beside)
    else:
        libraries(options.rounds or 5)


if __name__ == "__main__":
    main()
