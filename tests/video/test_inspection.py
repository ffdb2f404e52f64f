"""Files that cannot be decoded, each with its reason; and names that only look wrong."""

import os
import struct
import sys
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from calmctl.errors import VideoError
from calmctl.samples import Clip
from calmctl.video import inspect as inspection
from calmctl.video.frames import frame_times, read_frames, stream_with_pyav
from calmctl.video.inspect import VideoFile, inspect


def read_with_pyav(source: VideoFile, times_s: np.ndarray) -> np.ndarray:
    """All of `stream_with_pyav` at once."""
    return np.stack(list(stream_with_pyav(source, times_s)))


def cut(path: Path, share: float) -> Path:
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    return path


def written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def fifo(path: Path) -> Path:
    os.mkfifo(path)
    return path


def link(path: Path) -> Path:
    path.symlink_to(path.parent / "gone.mp4")
    return path


def folder(path: Path) -> Path:
    path.mkdir()
    return path


def image(path: Path, movies: Any) -> Path:
    Image.fromarray(movies.draw(3)).save(path)
    return path


def cover_art(path: Path, movies: Any) -> Path:
    """An audio file whose only picture is its cover, as music files have it."""
    import av

    cover = image(path.with_name("cover.png"), movies)
    with path.open("wb") as handle, av.open(handle, "w", format="mp3") as out, av.open(str(cover)) as art:
        sound = out.add_stream("libmp3lame", rate=44100)
        picture = out.add_stream_from_template(art.streams.video[0])
        picture.disposition = av.stream.Disposition.attached_pic
        for packet in art.demux(video=0):
            if packet.size:
                packet.stream = picture
                out.mux(packet)
        tone = av.AudioFrame.from_ndarray(np.zeros((2, 44100), np.float32), format="fltp", layout="stereo")
        tone.sample_rate = 44100
        out.mux(sound.encode(tone))
        out.mux(sound.encode(None))
    return path


FASTSTART = {"movflags": "faststart"}
Make = Callable[[Path, Any], Path]
BAD: dict[str, tuple[Make, str]] = {
    "missing.mp4": (lambda p, m: p, "missing file"),
    "link.mp4": (lambda p, m: link(p), "dangling link"),
    "folder.mp4": (lambda p, m: folder(p), "a folder, not a file"),
    "fifo.mp4": (lambda p, m: fifo(p), "not a regular file"),
    "empty.mp4": (lambda p, m: written(p, b""), "empty file"),
    "text.mp4": (lambda p, m: written(p, b"hello world\n" * 99), "not a video"),
    "noise.mp4": (lambda p, m: written(p, np.random.default_rng(0).bytes(9999)), "not a video"),
    "zeros.mp4": (lambda p, m: written(p, bytes(9999)), "not a video"),
    "playlist.mp4": (lambda p, m: written(p, b"#EXTM3U\n#EXTINF:1,\nother.ts\n"), "not a video"),
    "concat.mp4": (lambda p, m: written(p, b"ffconcat version 1.0\nfile other.mp4\n"), "a playlist"),
    "image.mp4": (lambda p, m: image(p.with_suffix(".png"), m).rename(p), "a still image"),
    "photo.jpg": (lambda p, m: image(p, m), "a still image"),
    "sound.mp4": (lambda p, m: m.write(p, n_frames=0, audio_s=2), "audio only"),
    "song.mp3": (cover_art, "audio only"),
    "no-index.mp4": (lambda p, m: cut(m.write(p), 0.5), "truncated or damaged: an MP4 without"),
    "half.mp4": (lambda p, m: cut(m.write(p, muxer=FASTSTART), 0.5), r"truncated: \d.\d s of 2.0 s"),
    "half.mov": (lambda p, m: cut(m.write(p, muxer=FASTSTART), 0.5), r"truncated: \d.\d s of 2.0 s"),
    "half.mkv": (lambda p, m: cut(m.write(p, container="matroska"), 0.5), r"truncated: \d.\d s of 2.0 s"),
    "half.flv": (lambda p, m: cut(m.write(p), 0.5), r"truncated: \d.\d s of 2.\d s"),
    "half.avi": (
        lambda p, m: cut(m.write(p, codec="mjpeg", pixels="yuvj420p", b_frames=None), 0.5),
        r"truncated: \d.\d s of \d.\d s",
    ),
    "head.mkv": (lambda p, m: cut(m.write(p, container="matroska"), 0.1), "no frames|truncated|damaged"),
}


@pytest.mark.parametrize("name", BAD)
def test_every_unusable_file_has_a_short_reason(
    tmp_path: Path, movies: Any, name: str, capfd: pytest.CaptureFixture[str]
) -> None:
    make, reason = BAD[name]
    path = make(tmp_path / name, movies)
    capfd.readouterr()  # what encoders print
    with pytest.raises(VideoError, match=reason) as caught:
        read_frames(Clip("x", path), 12)
    assert len(str(caught.value)) < 100 and "\n" not in str(caught.value)
    assert str(tmp_path) not in str(caught.value), "reports name the clip themselves"
    with pytest.raises(VideoError, match=reason):
        inspect(path)
    assert capfd.readouterr().err == "", "decoders must not talk over the progress bar"


@pytest.mark.skipif(sys.platform == "darwin", reason="the file system refuses such names")
def test_a_name_that_is_not_utf8(tmp_path: Path, movies: Any) -> None:
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.mp4"))
    movies.write(tmp_path / "x.mp4").rename(path)
    with pytest.raises(VideoError, match="not valid UTF-8"):
        inspect(path)


NAMES = [
    "a b.mp4",
    'it\'s "quoted".mp4',
    "café 映像 🎬.mp4",
    "two\nlines.mp4",
    "-dash.mp4",
    "100%d.mp4",
    "a:b.mp4",
    "bare.",
]


@pytest.mark.parametrize("name", NAMES)
def test_odd_names_decode(tmp_path: Path, movies: Any, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    movies.write(tmp_path / "plain.mp4").rename(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    assert movies.numbers(read_frames(Clip("x", Path(name)), 12)) == list(range(2, 60, 5))
    source = inspect(Path(name))
    assert movies.number(read_with_pyav(source, np.array([1.0]))[0]) == 30


def test_a_link_to_a_video(tmp_path: Path, movies: Any) -> None:
    movies.write(tmp_path / "real.mp4")
    (tmp_path / "link.mp4").symlink_to("real.mp4")
    assert len(inspect(tmp_path / "link.mp4").starts_s) == 60


def test_a_few_lost_frames_leave_the_one_before_on_the_screen(tmp_path: Path, movies: Any) -> None:
    """Every frame is a key frame, and the pictures of two are overwritten."""
    path = movies.write(tmp_path / "x.avi", codec="mjpeg", pixels="yuvj420p", b_frames=None)
    _overwrite_frames(path, {30, 40})
    source = inspect(path)
    got = movies.numbers(read_with_pyav(source, np.arange(60) / 30))
    assert got == [29 if k == 30 else 39 if k == 40 else k for k in range(60)]


def test_many_lost_frames_are_damage(tmp_path: Path, movies: Any) -> None:
    path = movies.write(tmp_path / "x.avi", codec="mjpeg", pixels="yuvj420p", b_frames=None)
    _overwrite_frames(path, set(range(20, 40)))
    source = inspect(path)
    with pytest.raises(VideoError, match="damaged: 7 or more of 60 frames"):
        read_with_pyav(source, frame_times(source.duration_s, 12))


SHORT = {
    "flv": {"codec": "flv", "b_frames": None},
    "wmv": {"codec": "wmv2", "container": "asf", "b_frames": None},
    "webm": {"codec": "libvpx", "b_frames": None},
    "mkv": {"codec": "mpeg4", "container": "matroska", "b_frames": None},
}


@pytest.mark.parametrize("suffix", SHORT)
@pytest.mark.parametrize("n_frames", [1, 2, 3, 9])
@pytest.mark.parametrize("rate", [2, 10])
def test_a_short_file_whose_last_frame_has_no_length_is_whole(
    tmp_path: Path, movies: Any, suffix: str, n_frames: int, rate: int
) -> None:
    path = movies.write(tmp_path / f"s.{suffix}", n_frames=n_frames, rate=rate, **SHORT[suffix])
    expected = [(2 * k + 1) * n_frames // 16 for k in range(8)]
    assert movies.numbers(read_frames(Clip("x", path), 8)) == expected
    assert inspect(path).duration_s == pytest.approx(n_frames / rate, abs=2e-3)


@pytest.mark.parametrize("suffix", [suffix for suffix in SHORT if suffix != "wmv"])  # it pads, and cuts only padding
def test_a_file_that_lacks_its_second_half_is_truncated_however_short(tmp_path: Path, movies: Any, suffix: str) -> None:
    path = movies.write(tmp_path / f"s.{suffix}", n_frames=8, rate=2, **SHORT[suffix])
    with pytest.raises(VideoError, match=r"truncated|damaged|no frames"):
        read_frames(Clip("x", cut(path, 0.5)), 8)


@pytest.mark.parametrize(("codec", "pixels", "b_frames"), [("mpeg4", "yuv420p", None), ("libx264", "yuv420p", 2)])
@pytest.mark.parametrize("dropped", [1, 9, 30])
def test_an_avi_whose_first_frames_were_dropped_is_whole(
    tmp_path: Path, movies: Any, codec: str, pixels: str, b_frames: int | None, dropped: int
) -> None:
    """Chunks of no bytes stand for frames that were dropped; the header counts them, as it does in real files."""
    path = movies.write(tmp_path / "a.avi", n_frames=20, rate=10, codec=codec, pixels=pixels, b_frames=b_frames)
    _drop_first(path, dropped)
    source = inspect(path)
    assert source.duration_s == pytest.approx(2.0) and source.begins_s == pytest.approx(dropped / 10)
    assert movies.numbers(read_frames(Clip("x", path), 4)) == [2, 7, 12, 17]


@pytest.mark.parametrize("size", [(16_000, 16_000), (8_193, 8_192)])
def test_a_picture_of_too_many_pixels_is_not_decoded(tmp_path: Path, size: tuple[int, int]) -> None:
    path = tmp_path / "large.mov"
    with av.open(str(path), "w") as out:  # black and white, one bit a pixel: 32 MB as it is drawn, 32 kB as a file
        stream = out.add_stream("png", rate=10)
        stream.width, stream.height, stream.pix_fmt = *size, "monob"
        frame = av.VideoFrame(*size, "monob")
        for plane in frame.planes:
            plane.update(bytes(plane.buffer_size))
        frame.pts = 0
        out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    with pytest.raises(VideoError, match="of more than the 67,108,864 pixels that are decoded: no frame"):
        inspect(path)


def test_samples_that_a_header_claims(tmp_path: Path, movies: Any) -> None:
    """30 million of the pictures are refused; of the sound, which is not decoded, they change nothing."""
    path = movies.write(tmp_path / "a.mp4", n_frames=20, rate=10, audio_s=1.0)
    whole = path.read_bytes()
    for track, claimed in ((0, True), (1, False)):
        content = bytearray(whole)
        for box, place in (
            ("stsz", 12),
            ("stsc", 16),
            ("stts", 12),
        ):  # how many, how many a chunk, how many of a length
            at = [number for number in range(len(whole)) if whole.startswith(box.encode(), number)][track]
            content[at + place : at + place + 4] = (30_000_000).to_bytes(4, "big")
        if claimed:
            with pytest.raises(VideoError, match="claims 30,000,000 frames, more than the 10,000,000 that are read"):
                inspect(written(path, bytes(content)))
        else:
            assert len(inspect(written(path, bytes(content))).starts_s) == 20


@pytest.mark.parametrize("suffix", ["mp4", "mov", "mkv"])
def test_a_frame_that_stays_for_an_age_is_no_video(tmp_path: Path, movies: Any, suffix: str) -> None:
    """A damaged header claims centuries, and windows would be cut from them."""
    container = {"mkv": "matroska"}.get(suffix)
    slow = movies.write(
        tmp_path / f"a.{suffix}", container=container, n_frames=5, pts=[0, 1, 2, 3, 590], time_base=Fraction(1)
    )
    assert inspect(slow).starts_s.tolist() == [0, 1, 2, 3, 590]
    age = movies.write(
        tmp_path / f"b.{suffix}", container=container, n_frames=5, pts=[0, 1, 2, 3, 2000], time_base=Fraction(1)
    )
    with pytest.raises(VideoError, match="timestamps jump: one frame stays for 1,997 s"):
        inspect(age)


def test_a_turn_is_known_beside_data_that_pyav_has_no_name_for() -> None:
    class Frame:
        rotation = -90

        @property
        def side_data(self) -> Any:
            raise ValueError("31 is not a valid Type")

    assert inspection._orientation(Frame()) == (0, 1, -1, 0)


def _drop_first(path: Path, count: int) -> None:
    """Put chunks of no bytes before the first frame of an AVI, and count them in its headers and its index."""
    content = path.read_bytes()
    begin = content.index(b"movi") + 4
    end = begin - 4 + int.from_bytes(content[begin - 8 : begin - 4], "little")
    frames = b"00dc\0\0\0\0" * count + content[begin:end]
    index = content.index(b"idx1", end)
    entries = [(b"00dc", 0, 4 + 8 * number, 0) for number in range(count)]
    for at in range(index + 8, index + 8 + int.from_bytes(content[index + 4 : index + 8], "little"), 16):
        chunk, flags, offset, size = struct.unpack("<4sIII", content[at : at + 16])
        entries.append((chunk, flags, offset + 8 * count, size))
    head = bytearray(content[: begin - 8])
    for at in (head.index(b"avih") + 8 + 16, head.index(b"strh") + 8 + 32):
        head[at : at + 4] = (int.from_bytes(head[at : at + 4], "little") + count).to_bytes(4, "little")
    table = b"".join(struct.pack("<4sIII", *entry) for entry in entries)
    body = struct.pack("<I4s", 4 + len(frames), b"movi") + frames + struct.pack("<4sI", b"idx1", len(table)) + table
    head[4:8] = (len(head) + len(body) - 8).to_bytes(4, "little")
    path.write_bytes(head + body)


def _overwrite_frames(path: Path, numbers: set[int]) -> None:
    content = bytearray(path.read_bytes())
    position = content.index(b"movi") + 4
    for number in range(60):
        size = int.from_bytes(content[position + 4 : position + 8], "little")
        if number in numbers:
            content[position + 8 : position + 8 + size] = bytes(size)
        position += 8 + size + size % 2
    path.write_bytes(content)


@settings(max_examples=60, deadline=None)
@given(data=st.data(), name=st.sampled_from(["f.mp4", "f.avi", "f.ts", "f.mkv"]))
def test_damaged_bytes_give_a_description_or_a_reason(
    tmp_path_factory: pytest.TempPathFactory, movies: Any, data: st.DataObject, name: str
) -> None:
    base = tmp_path_factory.getbasetemp() / f"whole-{name}"
    if not base.exists():
        movies.write(base, n_frames=12, container={"f.ts": "mpegts", "f.mkv": "matroska"}.get(name))
    content = bytearray(base.read_bytes())
    for _ in range(data.draw(st.integers(1, 8))):
        position = data.draw(st.integers(0, len(content) - 1))
        content[position] = data.draw(st.integers(0, 255))
    path = written(tmp_path_factory.getbasetemp() / name, bytes(content[: data.draw(st.integers(1, len(content)))]))
    try:
        source = inspect(path)
        frames = read_with_pyav(source, frame_times(source.duration_s, 3))
    except VideoError:
        return
    assert frames.shape == (3, source.height, source.width, 3)


@pytest.mark.parametrize(("size", "fine"), [((1, 65), False), ((6400, 98), False), ((2, 128), True)])
def test_a_strip_is_refused(movies: Any, tmp_path: Path, size: tuple[int, int], fine: bool) -> None:
    """1 x 60,000 pixels, six kilobytes, would be scaled to 224 x 13 million."""
    path = movies.write(tmp_path / "a.gif", codec="gif", pixels="rgb8", b_frames=None, n_frames=2)
    content = bytearray(path.read_bytes())
    content[6:10] = struct.pack("<HH", *size)
    path.write_bytes(content)
    if fine:
        assert inspect(path).width == 2
    else:
        with pytest.raises(VideoError, match=rf"claims {size[0]} x {size[1]} pixels, a strip more than 64 times"):
            inspect(path)
