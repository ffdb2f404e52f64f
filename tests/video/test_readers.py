"""Both readers against files whose every frame shows its number."""

from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from calmctl.samples import Clip
from calmctl.video.frames import frame_times, read_frames, read_with_decord, stream_with_pyav, suits_decord
from calmctl.video.inspect import VideoFile, inspect


# 60 frames in 12 equal intervals: the centres lie in the middle of frames 2, 7, 12, ...
def read_with_pyav(source: VideoFile, times_s: np.ndarray) -> np.ndarray:
    """All of `stream_with_pyav` at once."""
    return np.stack(list(stream_with_pyav(source, times_s)))


CENTRES = list(range(2, 60, 5))

OPEN_GROUPS = {"x264-params": "open-gop=1:bframes=3:scenecut=0"}
INTRA_REFRESH = {"x264-params": "intra-refresh=1:keyint=12:bframes=0:scenecut=0"}
HIDDEN_FRAMES = {"auto-alt-ref": "1", "lag-in-frames": "16"}
TILES = {**HIDDEN_FRAMES, "tile-columns": "2", "row-mt": "1"}
HEVC = {"x265-params": "log-level=none:keyint=12"}

DECORD_DOES: dict[str, dict[str, Any]] = {
    "h264.mp4": {},
    "h264.mov": {},
    "h264.mkv": {"container": "matroska"},
    "h264-offset.mp4": {"pts": range(100, 160)},
    "h264-with-sound.mp4": {"audio_s": 3},
    "mpeg4.avi": {"codec": "mpeg4", "b_frames": 0},
    "mjpeg.avi": {"codec": "mjpeg", "pixels": "yuvj420p", "b_frames": None},
    "vp8.webm": {"codec": "libvpx", "b_frames": None},
    "vp9.webm": {"codec": "libvpx-vp9", "b_frames": None},
    "vp9.mp4": {"codec": "libvpx-vp9", "b_frames": None},
    "vp9-hidden-frames.webm": {"codec": "libvpx-vp9", "b_frames": None, "options": HIDDEN_FRAMES},
    "vp9-tiles.webm": {"codec": "libvpx-vp9", "b_frames": None, "size": (1024, 96), "options": TILES},
}
# Of these decord returns other frames than those asked for, silently, or nothing at all.
DECORD_DOES_NOT: dict[str, dict[str, Any]] = {
    "h264.flv": {},
    "h264-open-groups.mp4": {"options": OPEN_GROUPS},
    "h264-intra-refresh.mp4": {"options": INTRA_REFRESH},
    "h264-reordered.avi": {},
    "h264.avi": {"b_frames": 0},
    "h264.ts": {"container": "mpegts"},
    "h264.mts": {"container": "mpegts"},
    "h264.m2ts": {"container": "mpegts", "muxer": {"mpegts_m2ts_mode": "1"}},
    "h264.mpg": {"container": "mpeg"},
    "transport-stream-named.mp4": {"container": "mpegts"},
    "hevc.mp4": {"codec": "libx265", "options": HEVC},
    "mpeg1.mpg": {"codec": "mpeg1video", "container": "mpeg"},
    "mpeg2.mpg": {"codec": "mpeg2video", "container": "mpeg"},
    "mpeg4-reordered.mov": {"codec": "mpeg4"},
    "mpeg4-reordered.avi": {"codec": "mpeg4"},
    "wmv2.wmv": {"codec": "wmv2", "container": "asf", "b_frames": 0},
    "h263.3gp": {"codec": "h263", "size": (128, 96), "b_frames": 0},
    "av1.mp4": {"codec": "libsvtav1", "size": (128, 96), "b_frames": None},
    "gif.gif": {"codec": "gif", "pixels": "rgb8", "rate": 25, "b_frames": None},
}


@pytest.mark.parametrize("name", [*DECORD_DOES, *DECORD_DOES_NOT])
def test_the_right_frames_whatever_the_format(tmp_path: Path, movies: Any, name: str) -> None:
    path = movies.write(tmp_path / name, **(DECORD_DOES | DECORD_DOES_NOT)[name])
    frames = read_frames(Clip("x", path), 12)
    assert frames.dtype == np.uint8
    assert movies.numbers(frames) == CENTRES
    assert suits_decord(inspect(path)) == (name in DECORD_DOES)


@pytest.mark.parametrize("name", DECORD_DOES)
def test_both_readers_give_the_same_bytes(tmp_path: Path, movies: Any, name: str) -> None:
    source = inspect(movies.write(tmp_path / name, **DECORD_DOES[name]))
    assert suits_decord(source)
    times_s = frame_times(source.duration_s, 7)
    frames = read_with_decord(source, times_s)
    assert frames is not None
    np.testing.assert_array_equal(frames, read_with_pyav(source, times_s))


@pytest.mark.parametrize(("name", "container"), [("v.mp4", "mp4"), ("v.mkv", "matroska"), ("v.ts", "mpegts")])
def test_variable_frame_rate_is_sampled_by_time(tmp_path: Path, movies: Any, name: str, container: str) -> None:
    """Slow at first, fast at the end: by frame number the samples would crowd into the fast part."""
    ticks = np.cumsum(np.random.default_rng(0).integers(1, 10, 60) * np.repeat([9, 1], 30))
    ticks -= ticks[0]
    path = movies.write(tmp_path / name, container=container, pts=(ticks * 20).tolist(), time_base=Fraction(1, 1000))
    source = inspect(path)
    times_s = frame_times(source.duration_s, 12)
    starts_s = ticks * 0.02
    expected = [max(i for i, start in enumerate(starts_s) if start <= t) for t in times_s]
    assert expected != CENTRES
    assert movies.numbers(read_frames(Clip("x", path), 12)) == expected
    assert movies.numbers(read_with_pyav(source, times_s)) == expected


@pytest.mark.parametrize("name", ["w.mp4", "w.ts"])
def test_a_window_of_a_clip(tmp_path: Path, movies: Any, name: str) -> None:
    path = movies.write(tmp_path / name, container={"w.ts": "mpegts"}.get(name))
    assert movies.numbers(read_frames(Clip("x", path, 0.5, 1.0), 5)) == [16, 19, 22, 25, 28]
    assert movies.numbers(read_frames(Clip("x", path, 1.0, 31.0), 3)) == [35, 45, 55]


@pytest.mark.parametrize("name", ["s.mp4", "s.avi", "s.gif"])
@pytest.mark.parametrize("n_frames", [1, 2, 5])
def test_fewer_frames_than_asked_for_repeat(tmp_path: Path, movies: Any, name: str, n_frames: int) -> None:
    path = movies.write(
        tmp_path / name,
        n_frames=n_frames,
        **({"codec": "gif", "pixels": "rgb8", "b_frames": None, "rate": 25} if name == "s.gif" else {}),
    )
    expected = [(2 * k + 1) * n_frames // 24 for k in range(12)]
    assert movies.numbers(read_frames(Clip("x", path), 12)) == expected


def test_a_still_picture_as_a_video(tmp_path: Path, movies: Any) -> None:
    """decord repeats frames where it fails; equal frames are believed only when PyAV says the same."""
    source = inspect(movies.write(tmp_path / "still.mp4", still=True))
    times_s = frame_times(source.duration_s, 12)
    assert suits_decord(source)
    assert read_with_decord(source, times_s) is None
    assert movies.numbers(read_frames(Clip("x", source.path), 12)) == [7] * 12


def test_decord_decodes_in_one_thread(tmp_path: Path, movies: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """With several, decord 0.6 has failed on VP9 files that it reads with one."""
    import decord

    asked: list[int] = []
    reader = decord.VideoReader

    def spy(path: str, *, num_threads: int) -> Any:
        asked.append(num_threads)
        return reader(path, num_threads=num_threads)

    monkeypatch.setattr(decord, "VideoReader", spy)
    path = movies.write(tmp_path / "tiles.webm", **DECORD_DOES["vp9-tiles.webm"])
    assert movies.numbers(read_frames(Clip("x", path), 12)) == CENTRES
    assert asked == [1]


def test_decord_is_not_believed_with_another_time_line(tmp_path: Path, movies: Any) -> None:
    source = inspect(movies.write(tmp_path / "reordered.avi"))
    assert read_with_decord(source, frame_times(source.duration_s, 12)) is None


MATRICES = {
    (1, 0, 0, 1): lambda a: a,
    (0, 1, -1, 0): lambda a: np.rot90(a, -1),
    (-1, 0, 0, -1): lambda a: np.rot90(a, 2),
    (0, -1, 1, 0): lambda a: np.rot90(a, 1),
    (-1, 0, 0, 1): np.fliplr,
    (1, 0, 0, -1): np.flipud,
    (0, 1, 1, 0): lambda a: a.swapaxes(0, 1),
    (0, -1, -1, 0): lambda a: np.rot90(a, 2).swapaxes(0, 1),
}


@pytest.mark.parametrize("matrix", MATRICES)
def test_rotated_and_mirrored_files_are_shown_upright(tmp_path: Path, movies: Any, matrix: tuple[int, ...]) -> None:
    plain = movies.write(tmp_path / "plain.mp4")
    turned = movies.turn(movies.write(tmp_path / "turned.mp4"), matrix)
    stored = read_frames(Clip("x", plain), 4)
    expected = np.stack([MATRICES[matrix](frame) for frame in stored])
    np.testing.assert_array_equal(read_frames(Clip("x", turned), 4), expected)
    assert (inspect(turned).height, inspect(turned).width) == expected.shape[1:3]


def test_what_is_known_of_a_file(tmp_path: Path, movies: Any) -> None:
    source = inspect(movies.write(tmp_path / "p.mp4", n_frames=45, audio_s=4))
    assert (source.width, source.height, source.codec, len(source.starts_s)) == (64, 48, "h264", 45)
    assert suits_decord(source) and source.duration_s == pytest.approx(1.5)
    assert np.diff(source.starts_s).mean() == pytest.approx(1 / 30)
    assert inspect(movies.write(tmp_path / "p1.mp4", codec="libsvtav1", size=(128, 96), b_frames=None)).codec == "av1"
