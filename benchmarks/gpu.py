"""All that is measured on a GPU, in one go: the tests marked `gpu`, a training step before and now, scoring.

    make gpu                                # into ./gpu
    python benchmarks/gpu.py FOLDER         # the same, where calmctl can be imported

Takes about five minutes. Writes FOLDER/gpu.json and FOLDER/gpu.md, which name the card and the date, and
FOLDER/tests.log; what was measured is kept where a later part fails. Ends with 1 where a test failed.
"""

from __future__ import annotations

import argparse
import datetime
import json
import re
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import score
import torch
import train_step

ROOT = Path(__file__).parents[1]
TESTS_S = 240
PARTS = ("scoring", "step bf16", "step fp32", "tests")
STEP = {
    "model": "ViT-B-32-quickgelu",
    "batch": 128,
    "frames": 12,
    "vocabulary": "charades@1",
    "heads": ("t-mass",),
    "device": "cuda",
    "encode": "gradient",
    "prompts": None,
    "chunk": None,
    "warm_up": 2,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, metavar="PART", help="; ".join(PARTS))
    parser.add_argument("--batch", type=int, default=STEP["batch"], help="of the training step")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("error: no CUDA device here; run this on a machine with an NVIDIA GPU and a torch that can use it")
    options.folder.mkdir(parents=True, exist_ok=True)
    card = {"card": torch.cuda.get_device_name(), "torch": torch.__version__, "date": str(datetime.date.today())}
    found: dict[str, Any] = {**card, "seconds": {}, "failed": []}
    parts: dict[str, Callable[[], Any]] = {
        "scoring": score.run_on_gpu,
        "step bf16": lambda: step(options.batch, precision="bf16", steps=4, ways=train_step.WAYS),
        "step fp32": lambda: step(options.batch, precision="fp32", steps=1, ways=("compiled",)),
        "tests": lambda: tests(options.folder),
    }
    for name in options.parts:
        begun = time.perf_counter()
        try:
            found[name] = parts[name]()
        except Exception:  # what else there is to measure is measured: the machine may be lent for minutes
            traceback.print_exc()
            found["failed"].append(name)
        found["seconds"][name] = round(time.perf_counter() - begun, 1)
        (options.folder / "gpu.json").write_text(json.dumps(found, indent=1))
        (options.folder / "gpu.md").write_text(as_markdown(found))
    print((options.folder / "gpu.md").read_text())
    sys.exit(1 if found["failed"] or found.get("tests", {}).get("failed") else 0)


def step(batch: int, **more: Any) -> list[dict[str, Any]]:
    """The rows of benchmarks/train_step.py."""
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    return train_step.run(argparse.Namespace(**{**STEP, "batch": batch, **more}))


def tests(folder: Path) -> dict[str, int]:
    """The tests marked `gpu`, in a process of their own: how many passed, failed, were skipped."""
    torch.cuda.empty_cache()
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "tests/training/test_gpu.py", "-W", "default", "--tb=short"]
    try:
        with (folder / "tests.log").open("w") as log:
            subprocess.run([*command, "-rfEs", "--durations=10"], cwd=ROOT, stdout=log, stderr=log, timeout=TESTS_S)
    except subprocess.TimeoutExpired:
        print(f"the tests were stopped after {TESTS_S} s", file=sys.stderr)
        return {"failed": 1}
    last = (folder / "tests.log").read_text()
    print(last[-6000:])
    counts = re.findall(r"(\d+) (passed|failed|errors?|skipped)", last.splitlines()[-1] if last else "")
    return {name: int(count) for count, name in counts} or {"failed": 1}


def as_markdown(found: dict[str, Any]) -> str:
    """One page of tables."""
    lines = [f"Measured on one {found['card']}, torch {found['torch']}, on {found['date']} (`make gpu`).", ""]
    steps = [*found.get("step bf16", []), *found.get("step fp32", [])]
    if steps:
        lines += [
            f"A training step, {STEP['model']}, batch {STEP['batch']}, {STEP['frames']} frames, 157 anchors:",
            "",
            "| head, precision | way | step | with CALM | CALM's share | memory of a step, with CALM |",
            "|---|---|--:|--:|--:|--:|",
        ]
        for row in steps:
            memory = f"{float(row['memory_with_calm_mb']) / 1000:.1f} GB"
            lines.append(
                f"| {row['head']}, {row['precision']} | {row['way']} | {row['step_ms']:.1f} ms | "
                f"{row['with_calm_ms']:.1f} ms | {row['share']:.1%} | {memory} |"
            )
        lines.append("")
    if found.get("scoring"):
        lines += ["| scoring | texts x videos | ms | floor | extra memory | error |", "|---|--:|--:|--:|--:|--:|"]
        for row in found["scoring"]:
            lines.append(
                f"| {row['method']} | {row['texts']:,} x {row['videos']:,} | {row['ms']:.1f} | {row['floor_ms']:.2f} | "
                f"{row['extra_mb']:,.0f} MB | {row['error']:.0e} |"
            )
        lines.append("")
    if "tests" in found:
        told = ", ".join(f"{count} {name}" for name, count in found["tests"].items())
        lines.append(f"Tests marked `gpu`: {told}.")
    if found["failed"]:
        lines.append(f"Failed: {', '.join(found['failed'])}.")
    lines.append("Seconds: " + ", ".join(f"{name} {taken}" for name, taken in found["seconds"].items()) + ".")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
