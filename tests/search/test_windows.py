"""Windows cover a video, each second of it, and files are measured once."""

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from calmctl.data.demo_drawing import FRAMES_PER_S, encode
from calmctl.errors import BadInput, DatasetError
from calmctl.files import stamp, write_json
from calmctl.samples import Clip
from calmctl.search.windows import check_windows, shots_of, window_bounds, windows_of


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
    assert not cut()[1], "only the file that changed is read and measured"
    assert told == [("reading videos", 1, 1), ("measuring videos", 1, 1)]
    cache.write_text("[]")
    assert len(cut()[0]) > len(windows)


def test_windows_are_named_by_the_files_own_clock(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(b"measured before")
    cache = tmp_path / "lengths.json"
    clips = [Clip("a", tmp_path / "a.mp4")]

    def cut(length_s: float, begins_s: float) -> list[Clip]:
        write_json(cache, {"a": [*stamp(clips[0].path), length_s, begins_s]})
        return windows_of(clips, 0.5, 0.5, cache)[0]

    late = cut(1.0, 2.0)
    assert [each.id for each in late] == ["a#t=2,2.5", "a#t=2.5,3"]
    assert [(each.start_s, each.end_s, each.begins_s) for each in late] == [(0, 0.5, 2), (0.5, 1, 2)]
    # A file's first frame has a time of its own; a kept store knows it from names, to the millisecond.
    assert {each.begins_s for each in cut(1.0, 1.264009)} == {1.264}
    day = cut(100_800.0, 0.1)
    assert len({each.id for each in day}) == len(day) == 201_600
    assert day[-1].id == "a#t=100799.6,100800.1"


def test_lengths_that_no_file_can_have_cost_neither_memory_nor_the_other_files(tmp_path: Path) -> None:
    """Whether a decoder or the cache says them."""
    frames = np.random.default_rng(0).integers(0, 256, (20, 48, 64, 3), dtype=np.uint8)
    clips = []
    for name in "abcdef":
        path = tmp_path / f"{name}.mp4"
        path.write_bytes(encode(frames))
        clips.append(Clip(name, path))
    cache = tmp_path / "lengths.json"
    windows_of(clips, 0.5, 0.5, cache)
    known = json.loads(cache.read_text())
    for name, length in zip("abcd", (4.3e10, 1e300, -1, [1]), strict=True):
        known[name][-2] = length
    cache.write_text(json.dumps(known))
    windows, left_out = windows_of(clips, 0.5, 0.5, cache)
    assert [clip.id for clip in left_out] == ["a", "b"]
    assert "claims 43,000,000,000 s" in left_out[0].reason and "take longer ones" in left_out[0].reason
    of = {name: [each for each in windows if each.path.stem == name] for name in "cdef"}
    assert all(len(each) == len(of["f"]) > 1 for each in of.values()), "measured again"
    # What is no finite number stands in no JSON of calmctl's: such a file is no cache, and all are measured again.
    for name, length in zip("ef", (float("nan"), float("inf")), strict=True):
        known[name][-2] = length
    cache.write_text(json.dumps(known))
    windows, left_out = windows_of(clips, 0.5, 0.5, cache)
    assert left_out == [] and {len([each for each in windows if each.path.stem == name]) for name in "abcdef"} == {
        len(of["f"])
    }
    assert len({each.id for each in windows}) == len(windows)


def test_a_folder_has_an_end_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clip = Clip("a", tmp_path / "a.mp4")
    clip.path.write_bytes(encode(np.zeros((20, 48, 64, 3), np.uint8)))
    monkeypatch.setattr("calmctl.search.windows.MOST_WINDOWS", 2)
    with pytest.raises(DatasetError, match="more than 2 windows"):
        windows_of([clip], 0.1, 0.1, tmp_path / "lengths.json")


def test_lengths_are_measured_once_and_never_written_through_a_link(tmp_path, monkeypatch):
    from calmctl.search import windows

    clip = Clip("a", tmp_path / "a.mp4")
    clip.path.write_bytes(encode(np.zeros((30, 48, 64, 3), np.uint8)))
    cache = tmp_path / "search" / "lengths.json"
    first = windows.extents_of([clip], cache)
    assert isinstance(first["a"], tuple) and first["a"][0] > 0
    with monkeypatch.context() as patch:
        patch.setattr(windows, "measure", lambda clips: [pytest.fail("a decoder was started")] if list(clips) else [])
        assert windows.extents_of([clip], cache) == first
    mine = tmp_path / "mine"
    mine.mkdir()
    (tmp_path / "link").symlink_to(mine)
    assert windows.extents_of([clip], tmp_path / "link" / "lengths.json") == first
    assert not list(mine.iterdir())


def film(path: Path, shots: list[tuple[int, float]]) -> None:
    """Shots of noise of which each moves a little, one seed and so many seconds each."""
    frames = []
    for seed, seconds in shots:
        picture = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
        frames += [np.roll(picture, n, axis=1) for n in range(round(seconds * FRAMES_PER_S))]
    path.write_bytes(encode(np.stack(frames)))


def test_shots_end_where_the_picture_changes(tmp_path: Path) -> None:
    film(tmp_path / "a.mp4", [(1, 2.0), (2, 3.0), (3, 0.4), (4, 2.5)])
    film(tmp_path / "still.mp4", [(5, 0.5)])
    (tmp_path / "b.mp4").write_text("no video")
    clips = [Clip(name, tmp_path / f"{name}.mp4") for name in ("a", "b", "still")]
    shots, left_out = shots_of(clips, tmp_path / "shots.json")
    of_a = [(each.start_s, each.end_s) for each in shots if each.path.stem == "a"]
    # A flash of 0.4 s joins what follows it.
    assert np.allclose(of_a, [(0, 2), (2, 5), (5, 7.9)], atol=0.051)
    assert [each.id for each in shots[:2]] == ["a#t=0,2", "a#t=2,5"]
    assert [(each.start_s, round(each.end_s, 3)) for each in shots if each.path.stem == "still"] == [(0, 0.5)]
    assert [clip.id for clip in left_out] == ["b"]


def test_shots_are_found_once_and_known_under_another_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from calmctl.search import windows

    film(tmp_path / "a.mp4", [(1, 2.0), (2, 3.0)])
    cache = tmp_path / "shots.json"
    first, _ = shots_of([Clip("a", tmp_path / "a.mp4")], cache)
    monkeypatch.setattr(windows, "find_shots", lambda clips: [pytest.fail("decoded again")] if list(clips) else [])
    assert shots_of([Clip("a", tmp_path / "a.mp4")], cache)[0] == first
    (tmp_path / "a.mp4").rename(tmp_path / "b.mp4")
    again, _ = shots_of([Clip("b", tmp_path / "b.mp4")], cache)
    assert [(each.start_s, each.end_s) for each in again] == [(each.start_s, each.end_s) for each in first]
    known = json.loads(cache.read_text())
    for nonsense in ([], [2.0, 1.0], [-1.0], ["x"], None, 3.0):
        known["b"][-2] = nonsense
        cache.write_text(json.dumps(known))
        with pytest.raises(pytest.fail.Exception, match="decoded again"):
            shots_of([Clip("b", tmp_path / "b.mp4")], cache)
