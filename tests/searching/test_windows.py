"""Windows cover a video, each second of it, and files are measured once."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from calmctl.data.demo_draw import encode
from calmctl.data.samples import Clip
from calmctl.errors import BadInput
from calmctl.files import write_json
from calmctl.searching.windows import check_windows, window_bounds, windows_of


@given(st.floats(0.05, 5000), st.floats(0.1, 60), st.floats(0.1, 1))
def test_windows_cover_all_of_a_video(duration: float, window: float, share: float) -> None:
    stride = max(0.1, window * share)
    bounds = window_bounds(duration, window, min(stride, window))
    assert bounds[0][0] == 0 and bounds[-1][1] == pytest.approx(duration)
    for (start, end), (following, _) in pairwise(bounds):
        assert start < following <= end + 1e-9
    assert all(0 <= start < end <= duration + 1e-9 for start, end in bounds)
    assert len(bounds) == 1 or all(end - start >= window - 1e-6 for start, end in bounds)
    assert all(end - start <= window + min(stride, window) / 2 + 1e-6 for start, end in bounds)


@pytest.mark.parametrize(
    ("duration", "window", "stride", "expected"),
    [
        (10, 5, 5, [(0, 5), (5, 10)]),
        (12, 5, 5, [(0, 5), (5, 12)]),
        (13, 5, 5, [(0, 5), (5, 10), (8, 13)]),
        (10, 4, 2, [(0, 4), (2, 6), (4, 8), (6, 10)]),
        (3, 5, 5, [(0, 3)]),
    ],
)
def test_examples(duration, window, stride, expected):
    assert window_bounds(duration, window, stride) == expected


@pytest.mark.parametrize(
    ("window", "stride", "message"),
    [
        (None, 1.0, "give their length too"),
        (0.0, None, "at least 0.1"),
        (float("nan"), None, "at least 0.1"),
        (5.0, 6.0, "no second is skipped"),
        (5.0, 0.0, "no second is skipped"),
    ],
)
def test_what_makes_no_windows_is_refused(window, stride, message):
    with pytest.raises(BadInput, match=message):
        check_windows(window, stride)


def test_the_stride_is_the_length_by_default():
    assert (check_windows(5.0, None), check_windows(5.0, 2.5), check_windows(None, None)) == (5.0, 2.5, None)


def test_files_are_measured_once_and_broken_ones_named(tmp_path: Path) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (20, 48, 64, 3), dtype=np.uint8)
    (tmp_path / "a.mp4").write_bytes(encode(frames))
    (tmp_path / "b.mp4").write_text("no video")
    clips = [Clip("a", tmp_path / "a.mp4"), Clip("b", tmp_path / "b.mp4")]
    cache, told = tmp_path / "lengths.json", []

    def cut() -> tuple:
        return windows_of(clips, 0.5, 0.5, cache, lambda *step: told.append(step))

    windows, left_out = cut()
    assert len(windows) > 1 and {each.path for each in windows} == {tmp_path / "a.mp4"}
    assert windows[0].id == "a#t=0,0.5" and (windows[0].start_s, windows[0].end_s) == (0, 0.5)
    assert [(clip.id, "not a video" in clip.reason) for clip in left_out] == [("b", True)]
    assert told[-1] == ("measuring videos", 2, 2)
    told.clear()
    assert cut() == (windows, left_out) and not told
    (tmp_path / "b.mp4").write_bytes(encode(frames[:10]))
    assert not cut()[1] and len(told) == 1, "only the file that changed"
    cache.write_text("[]")
    assert len(cut()[0]) > len(windows)


def test_windows_are_named_by_the_files_own_clock(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(b"measured before")
    status, cache = (tmp_path / "a.mp4").stat(), tmp_path / "lengths.json"
    clips = [Clip("a", tmp_path / "a.mp4")]

    def cut(length_s: float, begins_s: float) -> list[Clip]:
        write_json(cache, {"a": [status.st_size, status.st_mtime_ns, length_s, begins_s]})
        return windows_of(clips, 0.5, 0.5, cache)[0]

    late = cut(1.0, 2.0)
    assert [each.id for each in late] == ["a#t=2,2.5", "a#t=2.5,3"]
    assert [(each.start_s, each.end_s, each.begins_s) for each in late] == [(0, 0.5, 2), (0.5, 1, 2)]
    day = cut(100_800.0, 0.1)
    assert len({each.id for each in day}) == len(day) == 201_600
    assert day[-1].id == "a#t=100799.6,100800.1"
