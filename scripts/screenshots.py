"""Make the screenshots of docs/ again, from a running `calmctl serve` and headless Chromium.

    python scripts/screenshots.py holidays --run demo-001
    python scripts/screenshots.py --page runs/demo.html

`holidays` holds clips test0000 to test0011 of the drawn world, as docs/search.md has it; the page is that of
`calmctl demo`.
"""

from __future__ import annotations

import argparse
import contextlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY / "tests" / "explain"))
from browser import chromium, missing  # noqa: E402


@contextlib.contextmanager
def served(folder: str, run: str) -> Iterator[str]:
    """The address of a folder's page for as long as the block lasts."""
    command = [sys.executable, "-m", "calmctl", "serve", folder, "--run", run, "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            yield server.stdout.readline().split()[0]
        finally:
            server.terminate()


def main() -> None:
    """Write docs/assets/serve.png, or demo.png of a page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?")
    parser.add_argument("--run")
    parser.add_argument("--page", type=Path)
    options = parser.parse_args()
    if reason := missing():
        sys.exit(reason)
    if options.page:
        with tempfile.TemporaryDirectory() as folder, chromium(Path(folder, "log")) as window:
            window.open(options.page, width=1000, height=740)
            window.screenshot(REPOSITORY / "docs" / "assets" / "demo.png", whole=False)
        return
    if not (options.folder and options.run):
        parser.error("name a folder and its run, or a page")
    with (
        served(options.folder, options.run) as address,
        tempfile.TemporaryDirectory() as folder,
        chromium(Path(folder, "log")) as window,
    ):
        window.visit(f"{address}#q=a+single+large+pink+triangle+sliding+from+side+to+side", width=900, height=560)
        until = time.monotonic() + 60
        loaded = "return document.images.length > 3 && [...document.images].every((i) => i.complete)"
        while not window.run(loaded) and time.monotonic() < until:
            time.sleep(0.2)
        window.screenshot(REPOSITORY / "docs" / "assets" / "serve.png", whole=False)


if __name__ == "__main__":
    main()
