"""The library of benchmarks/failing.py, and what writes all files of ours, with each of its calls failing once."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or shutil.which("cc") is None, reason="a library that is loaded first: Linux, and cc"
)

TRIED = """
import os, random, shutil, sys
from pathlib import Path
import failing
from calmctl import files, locks
from calmctl.errors import RunFailed

orders, place = failing.Orders(os.environ["FAILING_ORDERS"]), Path(sys.argv[1]).resolve()

def writes():
    files.write_text(place / "deep" / "a", "new" * 5000)
    files.append_text(place / "log", "a line\\n")
    with files.new_folder(place / "made") as begun:
        files.write_text(begun / "b", "b")

def reset():
    shutil.rmtree(place, ignore_errors=True)
    (place / "deep").mkdir(parents=True)
    (place / "deep" / "a").write_text("old")
    locks._tidied.clear()

def here():
    return {path.relative_to(place).as_posix(): path.read_text() for path in place.rglob("*") if path.is_file()}

reset()
orders.arm(place, None)
writes()
names, whole = orders.names(orders.disarm()[0]), here()
faults = failing.plan(names, random.Random(0))
ended = {"told": 0, "done": 0}
for fault in faults:
    reset()
    orders.arm(place, fault)
    try:
        writes()
        end = "done"
    except RunFailed as error:
        end = "told"
        assert "cannot" in str(error)
    _, failed = orders.disarm()
    ended[end] += 1
    assert failed, fault
    left = here()
    assert left["deep/a"] in ("old", whole["deep/a"]), fault
    assert "made/b" not in left or left["made/b"] == "b", fault
    if end == "done":
        assert left == whole, (fault, left)
    shutil.rmtree(place / "made", ignore_errors=True)
    (place / "log").unlink(missing_ok=True)
    locks._tidied.clear()
    writes()
    assert here() == whole, (fault, here().keys())
assert ended["done"], "a short write is no error"
print(len(names), len(faults), ended["told"])
"""


def test_each_call_fails_once_and_every_file_is_the_old_or_the_new_one(tmp_path: Path) -> None:
    library, orders = tmp_path / "failing.so", tmp_path / "orders"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, BENCHMARKS / "failing.c", "-ldl"], check=True)
    orders.write_bytes(bytes(1 << 19))
    environment = {
        "LD_PRELOAD": str(library),
        "FAILING_ORDERS": str(orders),
        "PYTHONPATH": os.pathsep.join([str(BENCHMARKS), str(BENCHMARKS.parent)]),
    }
    words = [sys.executable, "-c", TRIED, str(tmp_path / "place")]
    ended = subprocess.run(words, env=os.environ | environment, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    calls, faults, told = map(int, ended.stdout.split())
    assert calls >= 20 and faults > 2 * calls and told > calls
