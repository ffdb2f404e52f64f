"""Frames of a video at any instants, against reading the whole clip."""

import numpy as np
import pytest

from calmctl.data.decode import read_frames
from calmctl.data.long import frames_at, video_extent
from calmctl.data.registry import load_dataset
from calmctl.data.sampling import frame_times
from calmctl.errors import VideoError


def smaller(frames: np.ndarray) -> np.ndarray:
    return frames[:, ::2, ::2]


def test_frames_are_those_of_a_clip_read_whole(tiny_world):
    clip = load_dataset("demo", tiny_world, protocol="captioning").splits["test"].clips[0]
    times_s = frame_times(video_extent(clip.path)[1], 20)  # more than one window of whole frames
    np.testing.assert_array_equal(frames_at(clip.path, times_s, smaller), smaller(read_frames(clip, 20)))


def test_what_is_no_video_is_told_with_its_name(tmp_path):
    path = tmp_path / "no.mp4"
    path.write_bytes(b"no video")
    for read in (video_extent, lambda video: frames_at(video, np.array([0.0]), smaller)):
        with pytest.raises(VideoError, match=r"no\.mp4"):
            read(path)


def test_when_a_video_begins_is_told_with_its_length(tmp_path, movies):
    late = movies.write(tmp_path / "late.mp4", n_frames=30, rate=10, pts=range(20, 50), audio_s=5)
    assert video_extent(late) == (pytest.approx(2), pytest.approx(3))
    assert video_extent(movies.write(tmp_path / "alone.mp4", n_frames=30, rate=10, pts=range(20, 50)))[0] == 0
