"""Lengths of files, and windows of one in one pass, against reading each by itself."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from calmctl.errors import VideoError
from calmctl.samples import Clip
from calmctl.video import frames as decode
from calmctl.video import pool as workers
from calmctl.video.frames import read_frames, read_windows
from calmctl.video.instants import MOST_PARTS, is_length, require_countable, video_extent
from calmctl.video.pool import decode_clips


def smaller(frames: np.ndarray) -> np.ndarray:
    return frames[:, ::2, ::4]


@pytest.fixture
def video(tmp_path: Path, movies: Any) -> Path:
    return movies.write(tmp_path / "long.mp4", n_frames=240)


def windows(path: Path, window_s: float, stride_s: float, end_s: float = 8.0) -> list[Clip]:
    starts = np.arange(0.0, end_s, stride_s).tolist()
    return [Clip(f"{start:g}", path, start, start + window_s) for start in starts]


@pytest.mark.parametrize(("window_s", "stride_s"), [(1.0, 1.0), (1.0, 0.25), (3.0, 0.1), (0.5, 1.5)])
@pytest.mark.parametrize("transform", [smaller, None])
def test_one_pass_gives_what_reading_each_window_gives(
    video: Path, window_s: float, stride_s: float, transform: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decode, "OPEN_BYTES", 7 * 5 * 64 * 48 * 3)  # seven windows of whole frames at once
    clips = windows(video, window_s, stride_s)
    found = [frames for frames in read_windows(clips, 5, transform) if frames is not None]
    assert len(found) == len(clips)
    for clip, frames in zip(clips, found, strict=True):
        np.testing.assert_array_equal(frames, read_frames(clip, 5, transform))


def test_a_file_is_read_once_for_all_its_windows(video: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[Path] = []
    inspect, stream = decode.inspect, decode.stream_with_pyav
    monkeypatch.setattr(decode, "inspect", lambda path: opened.append(path) or inspect(path))
    monkeypatch.setattr(
        decode, "stream_with_pyav", lambda source, times_s: opened.append(source.path) or stream(source, times_s)
    )
    list(read_windows(windows(video, 0.5, 0.25), 5, smaller))
    assert opened == [video] * 2, "once for its time line, once for its frames"


def test_a_window_that_holds_nothing_has_its_own_reason(video: Path) -> None:
    clips = [*windows(video, 1.0, 1.0), Clip("behind", video, 50.0, 51.0), Clip("far", video, 60.0, 61.0)]
    *found, behind, far = (each for each in read_windows(clips, 5, smaller) if each is not None)
    assert all(isinstance(each, np.ndarray) for each in found) and len(found) == 8
    assert "50 s to 51 s" in str(behind) and "60 s to 61 s" in str(far)


def test_there_is_a_sign_of_life_on_the_way_to_a_far_window(video: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode, "_SIGN_S", 1.0)
    signs = [each is None for each in read_windows(windows(video, 1.0, 0.5)[13:], 3, smaller)]
    assert signs[:6] == [True] * 6 and signs.count(False) == 3


def test_windows_of_a_file_come_together_and_others_alone(tmp_path: Path) -> None:
    one, two = tmp_path / "1", tmp_path / "2"
    whole = Clip("w", one)
    far = [Clip("f", one, 900.0, 910.0), Clip("g", one, 910.0, 920.0)]
    back = [Clip("x", two, 5.0, 10.0), Clip("y", two, 0.0, 5.0)]
    clips = [*windows(one, 2, 2), *windows(two, 2, 2), whole, *far, *back, whole]
    passes = list(workers._passes(iter(clips)))
    assert [clip for each in passes for clip in each] == clips
    assert [len(each) for each in passes] == [4, 4, 1, 1, 1, 1, 1, 1]


def test_workers_give_windows_in_order_and_a_broken_file_is_broken_in_all(video: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"no video")
    clips = [*windows(video, 0.5, 0.25), *windows(broken, 1.0, 1.0), *windows(video, 2.0, 2.0)]
    decoded = list(decode_clips(clips, 5, workers=2))
    assert [clip for clip, _ in decoded] == clips
    for clip, frames in decoded:
        if clip.path == broken:
            assert "not a video" in str(frames)
        else:
            np.testing.assert_array_equal(frames, read_frames(clip, 5))


def test_frames_too_large_for_a_window_go_through_it_one_by_one(video: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = read_frames(Clip("x", video), 12)
    most: list[int] = []
    monkeypatch.setattr(decode, "WINDOW_BYTES", 64 * 48 * 3 * 2)
    found = read_frames(Clip("x", video), 12, lambda frames: most.append(len(frames)) or frames)
    np.testing.assert_array_equal(found, expected)
    assert max(most) == 2


def test_what_is_no_video_is_told_with_its_name(tmp_path: Path) -> None:
    path = tmp_path / "no.mp4"
    path.write_bytes(b"no video")
    with pytest.raises(VideoError, match=r"no\.mp4"):
        video_extent(path)


def test_when_a_video_begins_is_told_with_its_length(tmp_path: Path, movies: Any) -> None:
    late = movies.write(tmp_path / "late.mp4", n_frames=30, rate=10, pts=range(20, 50), audio_s=5)
    assert video_extent(late) == (pytest.approx(3), pytest.approx(2))
    alone = movies.write(tmp_path / "alone.mp4", n_frames=30, rate=10, pts=range(20, 50))
    assert video_extent(alone).begins_s == 0


def test_a_claimed_length_is_not_listed() -> None:
    require_countable(3600.0, MOST_PARTS, "windows")
    with pytest.raises(VideoError, match=r"claims 42,949,672,940 s, which is 4,294,967,294 windows"):
        require_countable(42949672940.0, 4294967294.0, "windows")
    lengths = [0.0, 1, 1e10]
    assert all(map(is_length, lengths)) and all(a < b for a, b in pairwise(lengths))
    assert not any(map(is_length, [float("nan"), float("inf"), -1.0, True, "3", None, [1.0]]))
