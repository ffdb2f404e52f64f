"""How long the model library takes to import: ours (calmctl/model/openclip.py) beside `import open_clip`, after torch.

    python benchmarks/imports.py [--rounds 5]

Both are imported in turn, each in a process of its own, so that a busy machine slows both. Prints medians in seconds.
"""

import argparse
import statistics
import subprocess
import sys

WAYS = {"import open_clip": "import open_clip", "calmctl.model.openclip": "import calmctl.model.openclip"}
TIMED = "import time, torch; begin = time.perf_counter(); {}; print(time.perf_counter() - begin)"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
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


if __name__ == "__main__":
    main()
