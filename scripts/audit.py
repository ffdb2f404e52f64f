"""Audit pages with axe-core in headless Chromium: can people who read with their ears, or without a mouse, use them?

    npm pack axe-core && tar xf axe-core-*.tgz
    python benchmarks/axe.py package/axe.min.js PAGE.html [PAGE.html ...]

A page may be an address too: `http://127.0.0.1:8765/#q=a+dog` of `calmctl serve`.

Each page is opened wide and at phone width, light and dark. Findings of impact "serious" and "critical" end it with
code 1; a page wider than its window does too, since nobody should have to push a page sideways.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "explain"))
from browser import chromium, missing

BAD = ("serious", "critical")


def main() -> None:
    """Print each page's findings and end with 1 where one is bad."""
    if reason := missing():
        sys.exit(reason)
    axe, *pages = sys.argv[1:]
    program, bad = Path(axe).read_text(encoding="utf-8"), 0
    with TemporaryDirectory() as folder, chromium(Path(folder, "log")) as window:
        for page in pages:
            for width, dark in ((1100, False), (1100, True), (375, False), (375, True)):
                address = page if page.startswith("http://") else Path(page).resolve().as_uri()
                window.visit(address, width=width, height=900, dark=dark)
                time.sleep(3 if page.startswith("http://") else 0)  # a served page asks for its hits first
                window.run(program)
                found = window.run("return axe.run(document, {resultTypes: ['violations']})")
                wide = window.run("return document.documentElement.scrollWidth") - width
                shown = f"{page} at {width}, {'dark' if dark else 'light'}"
                worse = [each for each in found["violations"] if each["impact"] in BAD]
                bad += len(worse) + (wide > 0)
                print(f"{shown}: {len(found['violations'])} findings, {len(worse)} of them serious", end="")
                print(f"; {wide} pixels wider than its window" if wide > 0 else "")
                for each in found["violations"]:
                    first = each["nodes"][0]["html"][:100]
                    print(f"  {each['impact']}: {each['help']} ({len(each['nodes'])} x, {first})")
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main()
