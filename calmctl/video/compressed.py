"""Clips as CoCap reads them: I pictures, motion vectors and residuals, from what PyAV exports alone.

Shen et al. 2023, "Accurate and Fast Compressed Video Captioning". Its reader is a patched FFmpeg, whose "residual" is
another signal (docs/science.md); ours is the codec's own: the picture minus its prediction, which is exact where the
file has one reference a picture, no B pictures, no weights and no loop filter. `reencode` writes such files.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from io import BytesIO
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np

from calmctl.errors import VideoError
from calmctl.samples import Clip
from calmctl.words import counted

CELL = 4
"""Side in pixels of the cells that vectors are laid out on."""
NEUTRAL = 128
"""A residual of 0 as uint8."""

# Re-encoding: files whose prediction can be done again from outside.


_X264 = "keyint=60:min-keyint=1:bframes=0:ref=1:weightp=0:no-deblock=1"
# What x264 writes of that into the stream, as text: by it a file is known.
_OPTIONS = (b"keyint=60 ", b"keyint_min=1 ", b"bframes=0 ", b"ref=1 ", b"weightp=0 ", b"deblock=0:")
_CLOCK = 90_000


def encoded_side(size: int) -> int:
    """Short side of pictures for crops of `size`: CoCap's 240 for 224, and in proportion."""
    return round(size * 240 / 224 / 2) * 2


@dataclass(frozen=True, slots=True)
class Reencode:
    """A job for decoding workers: a video file as the bytes of an mp4 file that `CompressedReader` reads.

    H.264 with a key frame every 60 pictures and at scene cuts, as CoCap has it; without B pictures, with one
    reference, no weights and no loop filter, which is ours. Times and orientation are kept, sound is not.

    Attributes:
        side: Short side in pixels, even.
    """

    side: int

    def __call__(self, path: Path) -> np.ndarray:
        """The file, uint8 [bytes]. Raises `VideoError` where `path` cannot be decoded."""
        import av

        from calmctl.video.frames import decoded_frames
        from calmctl.video.inspect import inspect, reasons, upright

        source = inspect(path)
        scale = self.side / min(source.height, source.width)
        # 4:2:0 needs even sizes.
        height, width = (max(2, round(length * scale / 2) * 2) for length in (source.height, source.width))
        rate = Fraction(max(1, len(source.starts_s))) / Fraction(max(source.duration_s, 1e-3)).limit_denominator(1000)
        buffer = BytesIO()
        with reasons(), av.open(buffer, "w", format="mp4") as container:
            options = {"preset": "medium", "crf": "23", "x264-params": _X264}
            stream = container.add_stream("libx264", rate=rate.limit_denominator(1000), options=options)
            stream.thread_count = 1  # the bytes depend on it
            stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
            stream.codec_context.time_base = Fraction(1, _CLOCK)
            last = -1
            for start_s, frame in decoded_frames(source):
                if source.orientation != (1, 0, 0, 1):
                    shown = upright(frame.to_ndarray(format="rgb24"), source.orientation)
                    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(shown), format="rgb24")
                picture = frame.reformat(width=width, height=height, format="yuv420p")
                picture.pict_type = av.video.frame.PictureType.NONE  # else the encoder repeats the source's types
                picture.time_base = Fraction(1, _CLOCK)
                picture.pts = last = max(last + 1, round(start_s * _CLOCK))
                container.mux(stream.encode(picture))
            container.mux(stream.encode())
        return np.frombuffer(buffer.getvalue(), np.uint8)


def _is_ours(container: Any, video: Any) -> bool:
    first = next((packet for packet in container.demux(video) if packet.size), None)
    if video.codec_context.name != "h264" or first is None:
        return False
    head = bytes(first)[:4096]
    return all(option in head for option in _OPTIONS)


# Prediction: the last picture, moved by quarter pels as H.264 moves it (8.4.2.2).


Planes = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Luma [H, W] and two chromas [H / 2, W / 2], uint8."""

# Three taps reach beyond the edge, and further out all samples of a row or column are equal.
_PAD = 8


def planes(frame: Any) -> Planes:
    """The planes of a decoded frame of even size."""
    height, width = frame.height, frame.width
    whole = frame.to_ndarray(format="yuv420p")
    chroma = whole[height:].reshape(2, height // 2, width // 2)
    return whole[:height], chroma[0], chroma[1]


def vector_grid(frame: Any) -> tuple[np.ndarray, np.ndarray]:
    """Motion vectors of a decoded frame on cells of 4 x 4 pixels.

    Returns:
        Displacements to where each cell is predicted from, in quarter pels, int16 [4, H / 4, W / 4] (rounded up to
        whole macroblocks): x and y into the past, x and y into the future; and whether there is one, bool
        [2, H / 4, W / 4]. Cells without are coded by themselves (intra), as all of an I picture are; so are all of a
        codec whose decoder exports no vectors (HEVC, VP8, VP9, AV1).
    """
    from av.sidedata.sidedata import Type

    rows, columns = (-(-length // 16) * 4 for length in (frame.height, frame.width))
    grid = np.zeros((4, rows, columns), np.int16)
    known = np.zeros((2, rows, columns), bool)
    exported = frame.side_data.get(Type.MOTION_VECTORS)
    if exported is None:
        return grid, known
    table = exported.to_ndarray()
    # In B pictures a half that does not use a list has a zero for it; what is written last, wins.
    lefts, tops = (np.maximum(table[f"dst_{c}"] - table[s] // 2, 0) // CELL for c, s in (("x", "w"), ("y", "h")))
    scale = np.maximum(table["motion_scale"], 1).astype(np.int64)
    xs, ys = (4 * table[f"motion_{c}"].astype(np.int64) // scale for c in "xy")
    future = (table["source"] > 0).astype(int)
    blocks = zip(lefts, tops, table["w"] // CELL, table["h"] // CELL, xs, ys, future, strict=True)
    for left, top, width, height, x, y, ahead in blocks:
        cells = np.s_[top : top + height, left : left + width]
        grid[(2 * ahead, *cells)], grid[(2 * ahead + 1, *cells)] = x, y
        known[(ahead, *cells)] = True
    return grid, known


def compensate(reference: Planes, vectors: np.ndarray, top: int = 0, left: int = 0) -> Planes:
    """The prediction from `reference` by `vectors` [2, h, w] of 4 x 4 cells, in quarter pels.

    Args:
        reference: Planes of the whole picture.
        vectors: x and y of the cells of a crop.
        top: Where the crop begins in luma pixels, a multiple of 4.
        left: Likewise.
    """
    luma, *chroma = reference
    x, y = (each.astype(np.int32).repeat(CELL, 0).repeat(CELL, 1) for each in vectors)
    rows, columns = np.mgrid[top : top + x.shape[0], left : left + x.shape[1]].astype(np.int32)
    moved = _six_tap(luma, 4 * rows + y, 4 * columns + x)
    half = CELL // 2
    x, y = (each.astype(np.int32).repeat(half, 0).repeat(half, 1) for each in vectors)
    rows, columns = np.mgrid[top // 2 : top // 2 + x.shape[0], left // 2 : left // 2 + x.shape[1]].astype(np.int32)
    # A quarter of a luma pixel is an eighth of a chroma pixel.
    first, second = (_bilinear(plane, 8 * rows + y, 8 * columns + x) for plane in chroma)
    return moved, first, second


def _six_tap(plane: np.ndarray, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Samples of `plane` at `y`, `x` in quarter pels (8.4.2.2.1)."""
    around, rows, columns = _around(plane, y >> 2, x >> 2)
    phase = (y & 3) * 4 + (x & 3)
    made, needed = _Phases(around), np.flatnonzero(np.bincount(phase.ravel(), minlength=16))
    place = np.zeros(16, np.intp)
    place[needed] = np.arange(len(needed))
    # One gather from all copies at once.
    copies = np.stack([made(int(each)) for each in needed])
    samples: np.ndarray = copies.ravel()[(place[phase] * copies.shape[1] + rows) * copies.shape[2] + columns]
    return samples.astype(np.uint8)


def _around(plane: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The part of a plane that samples at these whole places need, int16, and the places in it.

    Outside the plane a sample is that of the edge: what lies further out than the padding has no other either.
    """
    cut, places = plane, []
    for axis, each in enumerate((rows, columns)):
        length = plane.shape[axis]
        inside = each.clip(-_PAD + 3, length + _PAD - 5)
        first, last = int(inside.min()) - 3, int(inside.max()) + 4
        low, high = max(first, 0), min(last, length)
        low = min(low, length - 1)
        cut = cut.take(range(low, max(high, low + 1)), axis)
        margins = [(0, 0), (0, 0)]
        margins[axis] = (low - first, last - max(high, low + 1))
        cut = np.pad(cut, margins, mode="edge")
        places.append(inside - first)
    return cut.astype(np.int16), places[0], places[1]


class _Phases:
    """The sixteen quarter-pel copies of a plane, each made when it is asked for."""

    def __init__(self, plane: np.ndarray) -> None:
        self._whole = plane
        self._made: dict[str, np.ndarray] = {}

    def __call__(self, phase: int) -> np.ndarray:
        """4 times the vertical quarter plus the horizontal one; letters are the standard's (figure 8-4)."""
        fy, fx = divmod(phase, 4)
        if fy == 0:
            return [self._whole, _mean(self._whole, self._b), self._b, _mean(self._b, _right(self._whole))][fx]
        if fx == 0:
            return [self._whole, _mean(self._whole, self._h), self._h, _mean(self._h, _below(self._whole))][fy]
        if fx == 2:
            return [self._b, _mean(self._b, self._j), self._j, _mean(self._j, _below(self._b))][fy]
        if fy == 2:
            return [self._h, _mean(self._h, self._j), self._j, _mean(self._j, _right(self._h))][fx]
        # The four corners are means along a diagonal.
        return _mean(self._b if fy == 1 else _below(self._b), self._h if fx == 1 else _right(self._h))

    @property
    def _b(self) -> np.ndarray:
        return self._once("b", lambda: _rounded(_taps(self._whole, 1), 5))

    @property
    def _h(self) -> np.ndarray:
        return self._once("h", lambda: _rounded(_taps(self._whole, 0), 5))

    @property
    def _j(self) -> np.ndarray:
        return self._once("j", lambda: _rounded(_taps(_taps(self._whole, 1).astype(np.int32), 0), 10))

    def _once(self, name: str, make: Callable[[], np.ndarray]) -> np.ndarray:
        if name not in self._made:
            self._made[name] = make()
        return self._made[name]


def _taps(plane: np.ndarray, axis: int) -> np.ndarray:
    """1, -5, 20, 20, -5, 1 around each half-pel place behind a sample; the edges, where some are missing, are 0."""
    sums = np.zeros(plane.shape, np.int32 if axis == 0 and plane.dtype == np.int32 else np.int16)
    inner = sums[2:-3] if axis == 0 else sums[:, 2:-3]
    length = inner.shape[axis]
    e, f, g, h, i, j = (plane[k : k + length] if axis == 0 else plane[:, k : k + length] for k in range(6))
    inner += g + h
    inner *= 4
    inner -= f + i
    inner *= 5
    inner += e + j
    return sums


def _rounded(sums: np.ndarray, bits: int) -> np.ndarray:
    return ((sums + (1 << bits >> 1)) >> bits).clip(0, 255).astype(np.int16)


def _mean(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    mean: np.ndarray = (a + b + 1) >> 1
    return mean


def _right(plane: np.ndarray) -> np.ndarray:
    return np.roll(plane, -1, 1)


def _below(plane: np.ndarray) -> np.ndarray:
    return np.roll(plane, -1, 0)


def _bilinear(plane: np.ndarray, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Samples of `plane` at `y`, `x` in eighths (8.4.2.2.2)."""
    fy, fx = (y & 7).astype(np.int16), (x & 7).astype(np.int16)
    around, rows, columns = _around(plane, y >> 3, x >> 3)
    flat, width = around.ravel(), around.shape[1]
    place = rows * width + columns
    above = (8 - fx) * flat[place] + fx * flat[place + 1]
    below = (8 - fx) * flat[place + width] + fx * flat[place + width + 1]
    samples: np.ndarray = (((8 - fy) * above + fy * below + 32) >> 6).astype(np.uint8)
    return samples


# A clip: some groups of pictures, and of each its I picture and some of those behind it.


@dataclass(frozen=True, slots=True)
class CompressedReader:
    """Reads a clip as one array: a row for each group of pictures, uint8 [G, bytes].

    A row is the I picture [S, S, 3], then the vectors of N pictures [N, 4, S / 4, S / 4] as int16 in quarter pels
    (`vector_grid`), then their residuals [N, 3, S, S] with 128 for 0: one array, because one array is what workers,
    caches and batches hand on. Pictures are cropped at their centre, never scaled: vectors cannot be.

    A clip with fewer groups than G, or a group with fewer pictures than N, repeats them; groups of two pictures or
    fewer are dropped where there are others (CoCap's sampling). A picture that nothing follows has vectors of 0.

    Attributes:
        size: S, a multiple of 4.
        gops: G.
        pictures: N.
        vectors: In quarter pels, cut to whole pels as CoCap's reader has them, or left out.
        residual: Whether residuals are read.
        reencode: Re-encode files that are not yet, each time they are read; otherwise they are refused.
        seed: Pictures are drawn at random by it; None: the middle of each interval.
        flip: Whether half of the draws are mirrored, vectors included (CoCap forgets these).
    """

    size: int
    gops: int = 8
    pictures: int = 59
    vectors: Literal["quarter", "whole", "none"] = "quarter"
    residual: bool = True
    reencode: bool = False
    seed: tuple[int, ...] | None = None
    flip: bool = False

    @property
    def lengths(self) -> tuple[int, int, int]:
        """Bytes of a row's three parts."""
        cells = (self.size // CELL) ** 2
        vectors = 0 if self.vectors == "none" else self.pictures * 4 * cells * 2
        return 3 * self.size**2, vectors, self.pictures * 3 * self.size**2 if self.residual else 0

    @property
    def shape(self) -> tuple[int, int]:
        """Of what it gives."""
        return self.gops, sum(self.lengths)

    def __str__(self) -> str:
        """What it reads, as people say it: "8 groups of 59 pictures, vectors and residuals"."""
        read = [] if self.vectors == "none" else [f"{self.vectors}-pel vectors"]
        read += ["residuals"] if self.residual else []
        groups = counted(self.gops, "group")
        return f"{groups} of {counted(self.pictures, 'picture')}, {' and '.join(read)}" if read else f"{groups}"

    def augmented(self, seed: tuple[int, ...], *, flip: bool) -> CompressedReader:
        """The same reader with a draw of its own."""
        return replace(self, seed=seed, flip=flip)

    def __call__(self, clip: Clip) -> np.ndarray:
        """The clip, uint8 [G, bytes].

        Raises:
            VideoError: It cannot be decoded, was not re-encoded, or is smaller than the crop.
        """
        from calmctl.video.inspect import open_video, reasons

        with reasons():
            container, video = open_video(clip.path)
            with container:
                ours, codec = _is_ours(container, video), video.codec_context.name
        if ours:
            return self._read(clip, lambda: open_video(clip.path))
        if not self.reencode:
            raise VideoError(
                f"{codec} as it is, and CoCap reads the vectors and residuals of files that 'calmctl data reencode "
                "ROOT OUT' made; run that, or set data.compressed.reencode=true"
            )
        encoded = BytesIO(Reencode(encoded_side(self.size))(clip.path).tobytes())
        return self._read(clip, lambda: _open_bytes(encoded))

    def _read(self, clip: Clip, open_: Any) -> np.ndarray:
        from calmctl.video.inspect import reasons

        rng = None if self.seed is None else np.random.default_rng(self.seed)
        mirrored = rng is not None and self.flip and rng.random() < 0.5
        with reasons():
            container, video = open_()
            with container:
                times, keys = _index(container, video)
            groups = _groups(clip, np.array([float(time * video.time_base) for time in times]), keys)
            wanted = self._wanted(groups, rng)
            container, video = open_()
            with container:
                container.seek(times[min(wanted)], stream=video)
                read = dict(self._pictures(container, video, times, wanted))
        if missing := wanted.keys() - read.keys():
            raise VideoError(f"damaged: {len(missing)} of {len(wanted)} pictures cannot be decoded")
        return self._packed(groups, wanted, read, mirrored)

    def _wanted(self, groups: Sequence[range], rng: np.random.Generator | None) -> dict[int, list[tuple[int, int]]]:
        """Places (group, picture) of the array by the number of the picture that is there; picture 0 is the I."""
        wanted: dict[int, list[tuple[int, int]]] = {}
        for row, chosen in enumerate(picks(len(groups), self.gops, rng)):
            group = groups[chosen]
            wanted.setdefault(group[0], []).append((row, 0))
            if len(group) > 1 and (self.vectors != "none" or self.residual):
                for place, number in enumerate(picks(len(group) - 1, self.pictures, rng), start=1):
                    wanted.setdefault(group[1 + number], []).append((row, place))
        return wanted

    def _pictures(
        self, container: Any, video: Any, times: Sequence[int], wanted: dict[int, list[tuple[int, int]]]
    ) -> Iterator[tuple[int, tuple[np.ndarray | None, np.ndarray | None, np.ndarray | None]]]:
        """Number, I picture [S, S, 3], vectors [4, h, w] and residual [3, S, S] of the pictures that are wanted."""
        video.codec_context.options = {"flags2": "+export_mvs"}
        video.codec_context.thread_count = 1
        numbers = {time: number for number, time in enumerate(times)}
        last, previous = max(wanted), None
        for frame in container.decode(video):
            number = numbers.get(frame.pts)
            if number is None or number > last:
                break
            if number in wanted:
                if any(place == 0 for _, place in wanted[number]):
                    yield number, (self._crop(frame), None, None)
                else:
                    yield number, (None, *self._moved(frame, previous))
            previous = frame

    def _place(self, frame: Any) -> tuple[int, int]:
        if min(frame.height, frame.width) < self.size:
            raise VideoError(
                f"{frame.width} x {frame.height} pixels, and {self.size} are cut from the middle; re-encode it with "
                f"'calmctl data reencode ROOT OUT --side {encoded_side(self.size)}'"
            )
        top, left = ((length - self.size) // 2 // CELL * CELL for length in (frame.height, frame.width))
        return top, left

    def _crop(self, frame: Any) -> np.ndarray:
        top, left = self._place(frame)
        picture: np.ndarray = frame.to_ndarray(format="rgb24")[top : top + self.size, left : left + self.size]
        return picture

    def _moved(self, frame: Any, previous: Any) -> tuple[np.ndarray | None, np.ndarray | None]:
        if previous is None:
            raise VideoError("damaged: the picture that another is predicted from cannot be decoded")
        found = vector_grid(frame)
        top, left = self._place(frame)
        cells = np.s_[:, top // CELL : (top + self.size) // CELL, left // CELL : (left + self.size) // CELL]
        grid, known = found[0][cells], found[1][cells]
        vectors = None
        if self.vectors != "none":
            # CoCap's reader truncates toward zero and so loses most of the small ones.
            vectors = (np.fix(grid / 4) * 4).astype(np.int16) if self.vectors == "whole" else grid
        if not self.residual:
            return vectors, None
        return vectors, residual_picture(planes(frame), planes(previous), grid[:2], known[0], top, left)

    def _packed(
        self,
        groups: Sequence[range],
        wanted: dict[int, list[tuple[int, int]]],
        read: dict[int, tuple[np.ndarray | None, np.ndarray | None, np.ndarray | None]],
        mirrored: bool,
    ) -> np.ndarray:
        cells = self.size // CELL
        n_picture, n_vectors, _ = self.lengths
        packed = np.full(self.shape, NEUTRAL, np.uint8)
        vectors = np.zeros((self.gops, self.pictures, 4, cells, cells), np.int16)
        residual = packed[:, n_picture + n_vectors :].reshape(self.gops, -1, 3, self.size, self.size)
        for number, places in wanted.items():
            picture, moved, rest = read[number]
            for row, place in places:
                if picture is not None:
                    shown = picture[:, ::-1] if mirrored else picture
                    packed[row, :n_picture] = np.ascontiguousarray(shown).reshape(-1)
                if moved is not None:
                    vectors[row, place - 1] = moved[..., ::-1] if mirrored else moved
                if rest is not None:
                    residual[row, place - 1] = rest[..., ::-1] if mirrored else rest
        if mirrored:
            vectors[:, :, ::2] *= -1
        if n_vectors:
            packed[:, n_picture : n_picture + n_vectors] = vectors.reshape(self.gops, -1).view(np.uint8)
        return packed


def residual_picture(
    picture: Planes, reference: Planes, vectors: np.ndarray, known: np.ndarray, top: int, left: int
) -> np.ndarray:
    """What prediction leaves of the crop of `vectors` [2, h, w], as RGB with 128 for 0: uint8 [3, S, S].

    Cells that are not `known` [h, w] have no prediction that could be had, and are neutral (our choice).
    """
    import av

    height, width = (length * CELL for length in known.shape)
    yuv = np.empty((height * 3 // 2, width), np.uint8)
    chroma = yuv[height:].reshape(2, height // 2, width // 2)
    parts = zip(picture, compensate(reference, vectors, top, left), (yuv[:height], *chroma), (1, 2, 2), strict=True)
    for plane, predicted, target, step in parts:
        own = plane[top // step :, left // step :][: predicted.shape[0], : predicted.shape[1]]
        rest = own.astype(np.int16) - predicted
        covered = known.repeat(CELL // step, 0).repeat(CELL // step, 1)
        target[:] = (NEUTRAL + rest * covered).clip(0, 255)
    # The full range, so that no difference stays 128 in all three colours (theirs is 130).
    frame = av.VideoFrame.from_ndarray(yuv, format="yuvj420p")
    colours: np.ndarray = frame.to_ndarray(format="rgb24").transpose(2, 0, 1)
    return colours


def picks(length: int, count: int, rng: np.random.Generator | None) -> list[int]:
    """`count` of `length` places: one of each interval between count + 1 even steps, its middle or at random.

    Where there are fewer places than intervals, places repeat.
    """
    edges = np.linspace(0, length, count + 1).astype(int)
    chosen = []
    for start, stop in pairwise(edges):
        inside = max(1, stop - start)
        chosen.append(min(int(start + (inside // 2 if rng is None else rng.integers(inside))), length - 1))
    return chosen


def _groups(clip: Clip, times_s: np.ndarray, keys: Sequence[int]) -> list[range]:
    """The groups of pictures of a clip's window, as numbers of pictures, the I picture first.

    Those that begin in it, up to its end; where none does, the one that is on the screen when it begins.
    """
    times_s = times_s - times_s[0]
    end = len(times_s) if clip.end_s is None else int(np.searchsorted(times_s, clip.end_s, side="left"))
    groups = [range(first, min(stop, end)) for first, stop in zip(keys, [*keys[1:], len(times_s)], strict=True)]
    begun = [group for group in groups if len(group) and times_s[group[0]] >= clip.start_s]
    shown = [group for group in groups if len(group) and times_s[group[0]] < clip.start_s]
    if clip.start_s and (not end or clip.start_s > times_s[-1]):
        raise VideoError(f"the window from {clip.start_s:g} s holds nothing of a clip of {times_s[-1]:g} s")
    chosen = begun or shown[-1:]
    return [group for group in chosen if len(group) > 2] or chosen


def _index(container: Any, video: Any) -> tuple[list[int], list[int]]:
    """Times of all pictures in the stream's own clock, in order, and the numbers of the key frames."""
    from calmctl.video.inspect import MOST_PACKETS

    times: list[int] = []
    keys: list[int] = []
    for packet in container.demux(video):
        if not packet.size:
            continue
        if packet.is_keyframe:
            keys.append(len(times))
        if packet.pts is None or len(times) == MOST_PACKETS:
            raise VideoError("damaged: pictures without a time, or too many of them")
        times.append(packet.pts)
    if not keys or keys[0] or sorted(times) != times:
        raise VideoError("damaged: its pictures do not begin with a key frame, or are out of order")
    return times, keys


def _open_bytes(encoded: BytesIO) -> tuple[Any, Any]:
    import av

    encoded.seek(os.SEEK_SET)
    container = av.open(encoded)
    return container, container.streams.video[0]
