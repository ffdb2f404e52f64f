"""Vectors and residuals: against what was drawn, against the standard sample by sample, and on every codec."""

from collections.abc import Iterator
from fractions import Fraction
from io import BytesIO
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from av.video.frame import PictureType

from calmctl.errors import VideoError
from calmctl.samples import Clip
from calmctl.video.compressed import (
    CompressedReader,
    Planes,
    Reencode,
    compensate,
    encoded_side,
    picks,
    planes,
    vector_grid,
)

SIZE = 64
EXPORT = {
    "libx264": "mp4", "mpeg4": "avi", "mpeg1video": "mpg", "mpeg2video": "mpg", "h263": "avi", "flv1": "flv",
    "msmpeg4v2": "avi", "msmpeg4": "avi", "wmv1": "wmv", "wmv2": "wmv", "rv20": "rm",
}  # fmt: skip
"""Encoders whose decoders export vectors, and a container for each."""


# With B pictures libx264 gives other bytes now and then for pictures this small, and finds other scene cuts.
PLAIN = {"bf": "0"}


def texture(height: int, width: int) -> np.ndarray:
    """Smooth noise [H, W, 3]: every place looks different, and there is something to see between pixels."""
    rng = np.random.default_rng(0)
    coarse = np.fft.rfft2(rng.standard_normal((height, width)))
    y, x = np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)
    smooth = np.fft.irfft2(coarse * np.exp(-((x**2 + y**2) * 220)), (height, width))
    gray = ((smooth - smooth.min()) / np.ptp(smooth) * 220 + 16).astype(np.uint8)
    return np.repeat(gray[..., None], 3, axis=2)


def window(picture: np.ndarray, x: float, y: float, size: int = 80) -> np.ndarray:
    """A window of `picture` [H, W, 3] that begins at `x`, `y`, between pixels too, by Fourier's shift."""
    whole = np.fft.fft2(picture[..., 0].astype(float))
    fy, fx = np.fft.fftfreq(picture.shape[0])[:, None], np.fft.fftfreq(picture.shape[1])
    moved = np.fft.ifft2(whole * np.exp(2j * np.pi * (fx * x + fy * y))).real.round().clip(0, 255).astype(np.uint8)
    return np.repeat(moved[:size, :size, None], 3, axis=2)


def encoded(path: Path, pictures: list[np.ndarray], codec: str = "libx264", **more: Any) -> Path:
    """A file of pictures [H, W, 3] at 25 frames a second."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25, options=more.pop("options", {}))
        stream.height, stream.width, stream.pix_fmt = *pictures[0].shape[:2], "yuv420p"
        stream.thread_count = 1
        for name, value in more.items():
            setattr(stream.codec_context, name, value)
        for picture in pictures:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return path


def decoded(path: Path) -> Iterator[Any]:
    with av.open(str(path)) as container:
        video = container.streams.video[0]
        video.codec_context.options = {"flags2": "+export_mvs"}
        yield from container.decode(video)


@pytest.fixture(scope="module")
def sliding(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """20 pictures, each 3 pixels further right and 1 down, encoded by x264 as it likes."""
    scene = texture(160, 256)
    return encoded(tmp_path_factory.mktemp("sliding") / "a.mp4", [window(scene, 3 * k, k) for k in range(20)])


def reencode(path: Path, side: int = 80) -> Path:
    target = path.with_name(f"{path.stem}-reencoded.mp4")
    target.write_bytes(Reencode(side)(path).tobytes())
    return target


def parts(reader: CompressedReader, path: Path, **window_s: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """I pictures [G, S, S, 3], vectors [G, N, 4, S/4, S/4] and residuals [G, N, 3, S, S]."""
    row = reader(Clip("x", path, **window_s))
    assert row.shape == reader.shape and row.dtype == np.uint8
    a, b, _ = reader.lengths
    size, cells, gops = reader.size, reader.size // 4, reader.gops
    vectors = row[:, a : a + b].copy().view(np.int16).reshape(gops, -1 if b else 0, 4, cells, cells)
    residual = row[:, a + b :]
    return (
        row[:, :a].reshape(gops, size, size, 3),
        vectors,
        residual.reshape(gops, -1 if residual.size else 0, 3, size, size),
    )


# Prediction.


def by_the_standard(plane: np.ndarray, y4: int, x4: int) -> int:
    """One luma sample of H.264 8.4.2.2.1, letter by letter."""
    height, width = plane.shape

    def g(y: int, x: int) -> int:
        return int(plane[min(max(y, 0), height - 1), min(max(x, 0), width - 1)])

    def six(v: list[int]) -> int:
        return v[0] - 5 * v[1] + 20 * v[2] + 20 * v[3] - 5 * v[4] + v[5]

    def cut(v: int) -> int:
        return min(max(v, 0), 255)

    def mean(a: int, b: int) -> int:
        return (a + b + 1) >> 1

    def row(y: int, x: int) -> int:
        return six([g(y, x + k) for k in range(-2, 4)])

    def column(y: int, x: int) -> int:
        return six([g(y + k, x) for k in range(-2, 4)])

    y, x, fy, fx = y4 >> 2, x4 >> 2, y4 & 3, x4 & 3
    b, s = (cut((row(y + k, x) + 16) >> 5) for k in (0, 1))
    h, m = (cut((column(y, x + k) + 16) >> 5) for k in (0, 1))
    j = cut((six([row(y + k, x) for k in range(-2, 4)]) + 512) >> 10)
    whole, right, below = g(y, x), g(y, x + 1), g(y + 1, x)
    table = [
        [whole, mean(whole, b), b, mean(b, right)],
        [mean(whole, h), mean(b, h), mean(b, j), mean(b, m)],
        [h, mean(h, j), j, mean(j, m)],
        [mean(h, below), mean(h, s), mean(j, s), mean(s, m)],
    ]
    return table[fy][fx]


def test_prediction_is_the_standards_sample_by_sample() -> None:
    rng = np.random.default_rng(0)
    luma, chroma = (rng.integers(0, 256, shape).astype(np.uint8) for shape in ((32, 24), (16, 12)))
    vectors = rng.integers(-70, 70, (2, 5, 4))  # far beyond every edge
    moved, first, _ = compensate((luma, chroma, chroma), vectors, top=8, left=4)
    for y in range(20):
        for x in range(16):
            vx, vy = vectors[:, y // 4, x // 4]
            assert moved[y, x] == by_the_standard(luma, 4 * (8 + y) + vy, 4 * (4 + x) + vx)
    for y in range(10):
        for x in range(8):
            vx, vy = vectors[:, y // 2, x // 2]
            py, px = 8 * (4 + y) + vy, 8 * (2 + x) + vx
            corners = np.pad(chroma, 20, mode="edge")[(py >> 3) + 20 :, (px >> 3) + 20 :][:2, :2].astype(int)
            fy, fx = np.array([8 - (py & 7), py & 7]), np.array([8 - (px & 7), px & 7])
            assert first[y, x] == (fy @ corners @ fx + 32) >> 6


@pytest.mark.parametrize("codec", EXPORT)
def test_prediction_and_residual_are_the_picture_in_every_codec_that_exports_vectors(
    codec: str, tmp_path: Path
) -> None:
    scene = texture(160, 256)
    pictures = [window(scene, 2 * k, 0, 128)[:96] for k in range(16)]  # sub-QCIF, which H.263 wants
    try:
        path = encoded(tmp_path / f"a.{EXPORT[codec]}", pictures, codec, bit_rate=4_000_000)
    except (av.error.FFmpegError, ValueError) as error:
        pytest.skip(f"no encoder here: {error}")
    previous: Planes | None = None
    smaller, n_predicted = [], 0
    for frame in decoded(path):
        picture = planes(frame)
        grid, known = vector_grid(frame)
        # A P picture may be coded by itself, every block of it.
        if frame.pict_type == PictureType.P and known.any():
            assert previous is not None
            for plane, last, moved in zip(picture, previous, compensate(previous, grid[:2]), strict=True):
                residual = plane.astype(np.int16) - moved
                assert residual.dtype == np.int16
                assert np.array_equal(moved + residual, plane)
                if plane.shape == picture[0].shape:
                    covered = known[0].repeat(4, 0).repeat(4, 1)
                    still = np.abs(plane.astype(np.int16) - last)[covered].mean()
                    smaller.append(np.abs(residual)[covered].mean() / still)
            n_predicted += 1
        if frame.pict_type != PictureType.B:
            previous = picture
    # Equal by construction; that it is a prediction shows in what is left of the difference to the last picture.
    assert n_predicted >= 3 and np.median(smaller) < 0.5


@pytest.mark.parametrize("step", [(4, 0), (-3, 2), (0.5, 0), (0.25, 0.75), (-1.25, 0.5)])
def test_vectors_are_the_shift_that_was_drawn(step: tuple[float, float], tmp_path: Path) -> None:
    scene = texture(160, 160)
    pictures = [window(scene, 40 + step[0] * k, 40 + step[1] * k) for k in range(8)]
    path = reencode(encoded(tmp_path / "a.mp4", pictures, options={"crf": "4", "bf": "0"}))
    _, vectors, residual = parts(CompressedReader(SIZE, gops=1, pictures=7), path)
    x, y = (np.median(vectors[0, :, channel]) / 4 for channel in (0, 1))
    assert (x, y) == step
    assert not vectors[:, :, 2:].any()
    assert np.abs(residual.astype(int) - 128).mean() < 3


def test_a_still_picture_leaves_nothing(tmp_path: Path) -> None:
    path = reencode(encoded(tmp_path / "a.mp4", [window(texture(160, 160), 0, 0)] * 10))
    pictures, vectors, residual = parts(CompressedReader(SIZE, gops=2, pictures=5), path)
    assert not vectors.any() and (residual == 128).all()
    assert np.abs(pictures[0].astype(int) - window(texture(160, 160), 0, 0)[8:72, 8:72]).mean() < 6


def test_what_a_skipped_block_leaves_is_zero(sliding: Path) -> None:
    """The loop filter is off: blocks without coefficients are the prediction, to the last bit."""
    _, vectors, residual = parts(CompressedReader(SIZE, gops=1, pictures=19), reencode(sliding))
    assert (np.abs(vectors[0, 1:, 0] - 12).mean()) < 1 and np.abs(vectors[0, 1:, 1] - 4).mean() < 1
    assert (residual == 128).mean() > 0.5


# The clip.


def test_the_i_picture_is_the_decoded_one_and_the_crop_is_the_middle(sliding: Path) -> None:
    path = reencode(sliding)
    first = next(decoded(path)).to_ndarray(format="rgb24")
    pictures, _, _ = parts(CompressedReader(SIZE, gops=1, pictures=1), path)
    assert np.array_equal(pictures[0], first[8:72, 8:72])


def test_fewer_groups_and_pictures_than_asked_repeat(tmp_path: Path) -> None:
    scene = texture(80, 400)
    path = reencode(
        encoded(tmp_path / "a.mp4", [scene[:, 2 * k : 2 * k + 80].copy() for k in range(130)], options=PLAIN)
    )
    pictures, vectors, _ = parts(CompressedReader(SIZE, gops=8, pictures=80), path)
    # 60, 60 and 10 pictures.
    assert len(np.unique(pictures.reshape(8, -1), axis=0)) == 3
    last = vectors[7]
    assert len(np.unique(last.reshape(80, -1), axis=0)) <= 9


@pytest.mark.parametrize("length", [1, 2])
def test_a_clip_of_one_or_two_pictures_is_read(length: int, tmp_path: Path) -> None:
    path = reencode(encoded(tmp_path / "a.mp4", [window(texture(160, 160), 4 * k, 0) for k in range(length)]))
    pictures, vectors, residual = parts(CompressedReader(SIZE, gops=2, pictures=3), path)
    assert pictures.any() and vectors.any() == (length == 2) and residual.shape == (2, 3, 3, SIZE, SIZE)


def test_settings_leave_parts_out_and_the_others_stay(sliding: Path) -> None:
    path = reencode(sliding)
    whole = CompressedReader(SIZE, gops=2, pictures=4)
    pictures, vectors, residual = parts(whole, path)
    alone = CompressedReader(SIZE, gops=2, pictures=4, vectors="none", residual=False)
    assert np.array_equal(parts(alone, path)[0], pictures) and alone.lengths[1:] == (0, 0)
    moving = parts(CompressedReader(SIZE, gops=2, pictures=4, residual=False), path)
    assert np.array_equal(moving[1], vectors) and not moving[2].size
    left = parts(CompressedReader(SIZE, gops=2, pictures=4, vectors="none"), path)
    assert np.array_equal(left[2], residual) and not left[1].size
    cut = parts(CompressedReader(SIZE, gops=2, pictures=4, vectors="whole"), path)[1]
    assert np.array_equal(cut, np.trunc(vectors / 4) * 4)


def test_a_flip_mirrors_everything_and_turns_the_vectors(sliding: Path) -> None:
    path = reencode(sliding)
    reader = CompressedReader(SIZE, gops=2, pictures=3)
    seeds = [seed for seed in range(20) if np.random.default_rng((seed,)).random() < 0.5]
    other = next(seed for seed in range(20) if seed not in seeds)
    flipped = parts(reader.augmented((seeds[0],), flip=True), path)
    # The same draws without the flip: they begin behind the coin.
    plain = _unflipped(reader, seeds[0], path)
    assert np.array_equal(flipped[0], plain[0][:, :, ::-1])
    assert np.array_equal(flipped[1][:, :, 1::2], plain[1][:, :, 1::2, :, ::-1])
    assert np.array_equal(flipped[1][:, :, ::2], -plain[1][:, :, ::2, :, ::-1])
    assert np.array_equal(flipped[2], plain[2][..., ::-1])
    once = parts(reader.augmented((other,), flip=True), path)
    assert np.array_equal(once[0], parts(reader.augmented((other,), flip=True), path)[0])
    assert once[1][..., 0, :, :].mean() > 0 > flipped[1][..., 0, :, :].mean()


def _unflipped(reader: CompressedReader, seed: int, path: Path) -> Any:
    class Heads:
        """The generator of this seed, whose coin fell the other way."""

        def __init__(self, seeds: tuple[int, ...]) -> None:
            self._rng = make(seeds)

        def random(self) -> float:
            self._rng.random()
            return 1.0

        def integers(self, *bounds: int) -> int:
            return int(self._rng.integers(*bounds))

    make = np.random.default_rng
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(np.random, "default_rng", Heads)
        return parts(reader.augmented((seed,), flip=True), path)


def test_picks_are_the_middles_of_even_intervals_or_inside_them() -> None:
    assert picks(8, 4, None) == [1, 3, 5, 7]
    assert picks(3, 6, None) == [0, 0, 1, 1, 2, 2]
    assert picks(1, 3, None) == [0, 0, 0]
    drawn = [picks(40, 4, np.random.default_rng(seed)) for seed in range(50)]
    assert all(10 * n <= each < 10 * (n + 1) for draw in drawn for n, each in enumerate(draw))
    assert len({draw[0] for draw in drawn}) == 10


def test_a_window_has_the_groups_that_begin_in_it(tmp_path: Path) -> None:
    scene = texture(80, 400)
    path = reencode(
        encoded(tmp_path / "a.mp4", [scene[:, 2 * k : 2 * k + 80].copy() for k in range(150)], options=PLAIN)
    )
    reader = CompressedReader(SIZE, gops=2, pictures=3)
    whole, _, _ = parts(CompressedReader(SIZE, gops=3, pictures=3), path)  # groups begin at 0, 2.4 and 4.8 s
    assert np.array_equal(parts(reader, path, start_s=2.0, end_s=4.7)[0][0], whole[1])
    assert np.array_equal(parts(reader, path, start_s=3.0, end_s=4.0)[0][0], whole[1])
    with pytest.raises(VideoError, match="holds nothing"):
        reader(Clip("x", path, start_s=8.0))


# Files.


def test_a_file_as_it_is_is_refused_with_the_command_or_reencoded_where_that_is_asked(
    sliding: Path, tmp_path: Path
) -> None:
    reader = CompressedReader(SIZE, gops=1, pictures=3)
    with pytest.raises(VideoError, match=r"h264 as it is.*'calmctl data reencode ROOT OUT'"):
        reader(Clip("x", sliding))
    without = encoded(tmp_path / "a.webm", [window(texture(160, 160), k, 0) for k in range(5)], "libvpx-vp9")
    assert not any(vector_grid(frame)[1].any() for frame in decoded(without))
    with pytest.raises(VideoError, match=r"vp9 as it is.*'calmctl data reencode ROOT OUT'"):
        reader(Clip("x", without))
    anyway = CompressedReader(SIZE, gops=1, pictures=3, reencode=True)
    assert anyway(Clip("x", without)).shape == anyway.shape
    ours = tmp_path / "ours.mp4"
    ours.write_bytes(Reencode(encoded_side(SIZE))(sliding).tobytes())
    assert np.array_equal(anyway(Clip("x", sliding)), reader(Clip("x", ours)))


def test_pictures_smaller_than_the_crop_are_refused(sliding: Path) -> None:
    with pytest.raises(VideoError, match=r"80 x 80 pixels, and 96 are cut.*--side 102"):
        CompressedReader(96)(Clip("x", reencode(sliding)))


def test_reencoding_keeps_times_orientation_and_the_picture(movies: Any, tmp_path: Path) -> None:
    scene = texture(200, 240)
    with av.open(str(tmp_path / "uneven.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.height, stream.width, stream.pix_fmt = 64, 96, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        for pts in (0, 40, 200, 240, 700):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(scene[:64, pts // 10 :][:, :96]), format="rgb24")
            frame.pts, frame.time_base = pts, Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    path = reencode(tmp_path / "uneven.mp4", 48)
    times = [round(float(frame.pts * frame.time_base), 3) for frame in decoded(path)]
    assert times == [0, 0.04, 0.2, 0.24, 0.7]
    assert {(frame.height, frame.width) for frame in decoded(path)} == {(48, 72)}
    turned = movies.turn(tmp_path / "uneven.mp4", (0, 1, -1, 0))
    assert {(frame.height, frame.width) for frame in decoded(reencode(turned, 48))} == {(72, 48)}


def test_what_cannot_be_decoded_has_a_reason(tmp_path: Path) -> None:
    broken = tmp_path / "a.mp4"
    broken.write_bytes(b"not a video" * 100)
    with pytest.raises(VideoError, match="not a video"):
        Reencode(80)(broken)
    with pytest.raises(VideoError, match="not a video"):
        CompressedReader(SIZE)(Clip("x", broken))


def test_the_bytes_are_the_same_each_time(sliding: Path) -> None:
    first, second = (Reencode(80)(sliding).tobytes() for _ in range(2))
    assert first == second
    with av.open(BytesIO(first)) as container:
        assert container.streams.video[0].codec_context.name == "h264"
