"""Audit the pages that calmctl writes with axe-core: can people who read with their ears, or without a mouse, use them?

    npm pack axe-core && tar xf axe-core-*.tgz
    python scripts/audit.py package/axe.min.js                                every page, of the tests' small runs
    python scripts/audit.py package/axe.min.js runs/demo.html --shots shots   these, with pictures of what was audited

Without a PAGE, explain, diagnose, search, report and serve write theirs first. A PAGE is a file or an address. Each is
opened in headless Chromium at 1280 and 360 pixels, light and dark. A finding of impact "serious" or "critical" ends it
with code 1, and so does a page wider than its window, since nobody should have to push a page sideways.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(REPOSITORY / "tests" / "explain"), str(REPOSITORY / "scripts")]
from browser import Browser, chromium, missing  # noqa: E402
from screenshots import served  # noqa: E402
from sessions import golden_place  # noqa: E402

BAD = ("serious", "critical")
VIEWS = ((1280, False), (1280, True), (360, False), (360, True))
"""Widths in pixels, and whether the page is dark."""
SENTENCE = "two big blue circles are moving left"
COMMANDS = {
    "explain": ["explain", "clips/test0000.mp4", SENTENCE, "--run", "runs/tiny-001"],
    "failures": ["diagnose", "failures", "runs/tiny-001"],
    "calibration": ["diagnose", "calibration", "runs/tiny-001"],
    "sheet": ["search", SENTENCE, "--in", "clips", "--run", "runs/tiny-001", "--why", "--confident"],
    "report": ["report", "runs/tiny-001"],
}
"""What writes a page with --html, run where the tests' golden runs lie."""


@contextlib.contextmanager
def written_pages(world: Path, folder: Path) -> Iterator[list[str]]:
    """A page of each kind, written in `folder` about a world as the golden tests draw it, and the served one."""
    from typer.testing import CliRunner

    from calmctl.cli.main import app

    place = golden_place(world, folder)
    with contextlib.chdir(place):
        for name, words in COMMANDS.items():
            result = CliRunner().invoke(app, [*words, "--html", f"{name}.html"])
            if result.exit_code:
                raise SystemExit(f"{name}: {result.exception!r}\n{result.output}")
        with served("clips", "runs/tiny-001") as address:
            pages = [str(place / f"{name}.html") for name in COMMANDS]
            yield [*pages, f"{address}#q={SENTENCE.replace(' ', '+')}"]


def findings(window: Browser, axe: str, page: str, width: int, dark: bool) -> list[dict[str, Any]]:
    """What axe-core has against a page, and against a page that is wider than its window."""
    is_address = page.startswith("http://")
    window.visit(page if is_address else Path(page).resolve().as_uri(), width=width, height=900, dark=dark)
    time.sleep(3 if is_address else 0)  # a served page asks for its hits first
    window.run(axe)
    found: list[dict[str, Any]] = window.run("return axe.run(document, {resultTypes: ['violations']})")["violations"]
    if (wider := window.run("return document.documentElement.scrollWidth") - width) > 0:
        found.append({"impact": "serious", "help": f"{wider} pixels wider than its window", "nodes": [{"html": ""}]})
    return found


def audit(axe: str, pages: Sequence[str], shots: Path | None = None) -> int:
    """Print the findings about every page in every view, and return how many are bad.

    Args:
        axe: The text of axe.min.js.
        pages: Files and addresses.
        shots: A folder for a picture of each view.
    """
    bad = 0
    with tempfile.TemporaryDirectory() as folder, chromium(Path(folder, "log")) as window:
        for page in pages:
            for width, dark in VIEWS:
                found = findings(window, axe, page, width, dark)
                worse = sum(each["impact"] in BAD for each in found)
                bad += worse
                shade, name = "dark" if dark else "light", "serve" if page.startswith("http://") else Path(page).stem
                print(f"{name} at {width}, {shade}: {len(found)} findings, {worse} of them serious")
                for each in found:
                    first = each["nodes"][0]["html"][:100]
                    print(f"  {each['impact']}: {each['help']} ({len(each['nodes'])} x, {first})")
                if shots is not None:
                    window.screenshot(shots / f"{name}-{width}-{shade}.png")
    return bad


def main() -> None:
    """Print each page's findings and end with 1 where one is bad."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("axe", type=Path, metavar="axe.min.js")
    parser.add_argument("pages", nargs="*", metavar="PAGE")
    parser.add_argument("--shots", type=Path, metavar="FOLDER", help="write a picture of each view")
    options = parser.parse_args()
    if reason := missing():
        sys.exit(reason)
    axe = options.axe.read_text(encoding="utf-8")
    if options.shots:
        options.shots.mkdir(parents=True, exist_ok=True)
        options.shots = options.shots.resolve()
    if options.pages:
        sys.exit(audit(axe, options.pages, options.shots) > 0)
    from calmctl.data.demo import generate_demo
    from calmctl.data.demo_world import DemoCounts

    with tempfile.TemporaryDirectory() as folder:
        world, place = Path(folder, "drawn"), Path(folder, "place")
        generate_demo(world, counts=DemoCounts(train=12, val=6, test=6, shifted=6))
        place.mkdir()
        with written_pages(world, place) as pages:
            sys.exit(audit(axe, pages, options.shots) > 0)


if __name__ == "__main__":
    main()
