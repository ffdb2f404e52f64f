"""Write what the commands of the documentation print into its `console` blocks, again.

    python scripts/sessions.py

A block of README or docs/ that is fenced as `console` is a recorded session: lines that begin with `$ calmctl` are
commands, the others what they print on 80 columns, notes left out. They are run where the tests' golden runs lie
(tests/golden): `runs/`, `clips/` and `world`. `tests/test_sessions.py` fails when a command no longer prints what is
shown, numbers apart.
"""

from __future__ import annotations

import contextlib
import importlib.util
import re
import shlex
import sys
import tempfile
from pathlib import Path
from types import ModuleType

REPOSITORY = Path(__file__).resolve().parent.parent
PAGES = (REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md")))
BLOCK = re.compile(r"(?m)^```console\n(.*?)^```$", re.DOTALL)


def commands(block: str) -> list[str]:
    """The commands of a block, in order, as they stand behind the dollar."""
    return re.findall(r"(?m)^\$ (calmctl .*)$", block)


def recorded(block: str, place: Path) -> str:
    """The block as its commands print it now, run in `place` (`golden_place`)."""
    from typer.testing import CliRunner

    from calmctl.cli.main import app

    lines = []
    for command in commands(block):
        with contextlib.chdir(place):
            words = shlex.split(command)[1:]
            result = CliRunner().invoke(app, words, env={"COLUMNS": "80", "NO_COLOR": "1"})
        if result.exit_code:
            raise SystemExit(f"{command}: {result.exception!r}\n{result.output}")
        printed = result.stdout.partition("\nNext:\n")[0]  # what is shown is the answer
        lines += [f"$ {command}", *(line.rstrip() for line in printed.strip("\n").splitlines()), ""]
    return "\n".join(lines[:-1]) + "\n"


def golden_place(world: Path, folder: Path) -> Path:
    """A folder with the committed runs, the drawn world and its test clips."""
    place: Path = _golden().make_place(folder, world)
    return place


def _golden() -> ModuleType:
    spec = importlib.util.spec_from_file_location("golden", REPOSITORY / "tests" / "golden" / "commands.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def main() -> None:
    """Record every block of every page, and say which changed."""
    from calmctl.data.demo import generate_demo
    from calmctl.data.demo_world import DemoCounts

    with tempfile.TemporaryDirectory() as folder:
        world = Path(folder, "drawn")
        generate_demo(world, counts=DemoCounts(train=12, val=6, test=6, shifted=6))
        Path(folder, "place").mkdir()
        place = golden_place(world, Path(folder, "place"))
        for page in PAGES:
            text = page.read_text(encoding="utf-8")
            new = BLOCK.sub(lambda found: f"```console\n{recorded(found[1], place)}```", text)
            if new != text:
                page.write_text(new, encoding="utf-8")
                print(f"recorded {page.relative_to(REPOSITORY)}")


if __name__ == "__main__":
    sys.exit(main())
