"""The bench of the reader's time line: a small sample of it, and that it can tell right from wrong."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    path = Path(__file__).parents[2] / "benchmarks" / "timeline.py"
    spec = importlib.util.spec_from_file_location("benchmark_timeline", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up there
    spec.loader.exec_module(module)
    return module


def test_no_frame_of_a_small_sample_is_wrong(bench, tmp_path):
    quick = ("h264", "h264-open", "mpeg4-open", "mpeg2", "vp8", "flv1", "wmv2", "mjpeg", "cinepak")
    table = bench.run(60, 7, tmp_path, only=quick)
    assert [line for row in table.values() for line in row.wrong] == []
    assert sum(row.right + row.refused for row in table.values()) == 60
    assert all(row.right + row.refused for row in table.values()), "every kind has its turn"
    assert sum(row.refused for row in table.values()) > 5 and sum(row.right for row in table.values()) > 20


def test_the_bench_sees_a_shift_of_a_frame_and_a_refusal_without_cause(bench, tmp_path):
    make = bench.direct("constant rate", "h264", bench.PREDICTING["h264"], "mp4", 10, Fraction(10))
    case = make(tmp_path)
    assert bench.judge(case, 8)[0] == "right"
    late = replace(case, starts_s=case.starts_s + 0.1)
    assert bench.judge(late, 8)[0] == "wrong"
    case.path.write_bytes(case.path.read_bytes()[:200])
    verdict, reason = bench.judge(case, 8)
    assert verdict == "wrong" and "truncated or damaged" in reason
    assert bench.judge(replace(case, reasons=("truncated",)), 8)[0] == "refused"


@pytest.mark.parametrize("suffix", ["ts", "mkv", "mp4", "mov", "flv"])
def test_a_cut_inside_a_group_is_damage_or_right(bench, tmp_path, suffix):
    """H.264 drops without an error what it cannot decode: of 45 frames 9 here, of 37 one."""
    source = bench._source(tmp_path, "h264")
    verdicts = {}
    for first in (3, 11):
        case = bench.cut("cut at a packet", source, "h264", suffix, first, None)(tmp_path)
        verdicts[first] = {bench.judge(case, n)[0] for n in bench.INSTANTS}
    assert "refused" in verdicts[3] and verdicts[3] <= {"refused", "right"}
    assert verdicts[11] == {"right"}


@pytest.mark.parametrize(("name", "first"), [("mpeg4-open", 10), ("mpeg2-open", 10)])
def test_what_an_avi_lost_at_its_head_shifts_nothing(bench, tmp_path, name, first):
    """It gives an order only; behind an open group's key frame come pictures that were to be shown before it."""
    case = bench.cut("cut at a packet", bench._source(tmp_path, name), name, "avi", first, None)(tmp_path)
    assert {bench.judge(case, n)[0] for n in bench.INSTANTS} == {"right"}


@pytest.mark.parametrize("suffix", ["ts", "mts", "m2ts", "mpg", "vob"])
@pytest.mark.parametrize("jump_s", [0.0, 3600.0])
def test_joined_streams_follow_one_another(bench, tmp_path, suffix, jump_s):
    name = "mpeg2" if suffix in ("mpg", "vob") else "h264"
    case = bench.joined(bench._source(tmp_path, name), name, suffix, 24, 24, jump_s)(tmp_path)
    assert case.ends_s == pytest.approx(4.8)
    assert {bench.judge(case, n)[0] for n in bench.INSTANTS} == {"right"}
