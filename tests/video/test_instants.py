from pathlib import Path
from typing import Any

import numpy as np
import pytest

from calmctl.errors import VideoError
from calmctl.samples import Clip
from calmctl.video import frames as decode
from calmctl.video.frames import FRAMES_PER_WINDOW, frame_times, read_frames
from calmctl.video.inspect import inspect
from calmctl.video.instants import instants_of, sample_video
from calmctl.video.pixels import jpeg, shrink


@pytest.fixture
def video(tiny_world: Path) -> Path:
    return sorted((tiny_world / "clips").glob("*.mp4"))[0]


def test_the_same_frames_as_decoding_the_clip(video: Path) -> None:
    clip, many = Clip("v", video), 2 * FRAMES_PER_WINDOW + 3
    found = sample_video(clip, 4, instants=many, transform=np.ascontiguousarray, picture=shrink)
    assert (found.start_s, found.end_s) == (0, pytest.approx(inspect(video).duration_s))
    np.testing.assert_array_equal(found.frames, read_frames(clip, 4))
    np.testing.assert_array_equal(found.instants, read_frames(clip, many))
    np.testing.assert_array_equal(found.times_s, frame_times(found.end_s, 4))
    np.testing.assert_array_equal(found.instants_s, frame_times(found.end_s, many))
    np.testing.assert_array_equal(found.pictures, shrink(read_frames(clip, 4)))


def test_a_window_of_a_video(video: Path) -> None:
    clip = Clip("v", video, 0.5, 1.25)
    found = sample_video(clip, 3, instants=3, transform=np.ascontiguousarray)
    assert (found.start_s, found.end_s) == (0.5, 1.25) and len(found.pictures) == 0
    np.testing.assert_array_equal(found.frames, read_frames(clip, 3))
    np.testing.assert_array_equal(found.instants, found.frames)


def test_times_are_those_of_the_file(tmp_path: Path, movies: Any) -> None:
    """Sound from 0 s, pictures from 2 s to 5 s: that is where a player shows them."""
    path = movies.write(tmp_path / "late.mp4", n_frames=30, rate=10, pts=range(20, 50), audio_s=5)
    found = sample_video(Clip("v", path, 0.5, 2.5), 4, instants=8, transform=np.ascontiguousarray)
    assert (found.start_s, found.end_s) == (pytest.approx(2.5), pytest.approx(4.5))
    np.testing.assert_allclose(found.times_s, [2.75, 3.25, 3.75, 4.25])
    np.testing.assert_allclose(found.instants_s, 2.5 + (np.arange(8) + 0.5) / 4)
    assert movies.numbers(found.frames) == [7, 12, 17, 22], "which frames are looked at does not change"


def test_instants_are_bounded_however_long_the_video() -> None:
    assert [instants_of(length_s) for length_s in (0.1, 10, 60, 3600)] == [12, 20, 120, 240]


@pytest.mark.parametrize("decord", [True, False])
def test_never_more_than_a_window_of_frames(video: Path, monkeypatch: pytest.MonkeyPatch, decord: bool) -> None:
    if not decord:  # as for a file that it cannot be trusted with
        monkeypatch.setattr(decode, "suits_decord", lambda source: False)
    source = inspect(video)
    times_s = frame_times(source.duration_s, 5 * FRAMES_PER_WINDOW + 1)
    windows = list(decode.frame_windows(source, times_s))
    assert max(map(len, windows)) == FRAMES_PER_WINDOW
    np.testing.assert_array_equal(np.concatenate(windows), read_frames(Clip("v", video), len(times_s)))


def test_pyav_takes_over_where_decord_gives_up(video: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    decord = decode.read_with_decord

    def gives_up(source, times_s):
        asked.append(len(times_s))
        return None if len(asked) == 2 else decord(source, times_s)

    monkeypatch.setattr(decode, "read_with_decord", gives_up)
    source = inspect(video)
    times_s = frame_times(source.duration_s, 4 * FRAMES_PER_WINDOW)
    found = np.concatenate(list(decode.frame_windows(source, times_s)))
    assert asked == [FRAMES_PER_WINDOW] * 2
    np.testing.assert_array_equal(found, read_frames(Clip("v", video), len(times_s)))


def test_a_file_that_is_no_video_is_named(tmp_path: Path) -> None:
    path = tmp_path / "notes.mp4"
    path.write_text("not a video")
    with pytest.raises(VideoError, match=r"notes\.mp4: "):
        sample_video(Clip("notes", path), 4, transform=np.ascontiguousarray)


def test_pictures_are_whole_and_small() -> None:
    wide = np.zeros((2, 720, 1280, 3), np.uint8)
    assert shrink(wide).shape == (2, 144, 256, 3)
    tall = np.zeros((1, 4000, 2, 3), np.uint8)
    assert shrink(tall).shape == (1, 256, 1, 3)
    drawn = np.random.default_rng(0).integers(0, 255, (1, 48, 64, 3), dtype=np.uint8)
    assert shrink(drawn).shape == (1, 192, 256, 3)
    np.testing.assert_array_equal(shrink(drawn)[:, ::4, ::4], drawn)
    assert jpeg(drawn[0]).startswith(b"\xff\xd8")
