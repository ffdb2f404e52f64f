"""Videos that tests encode themselves: every frame shows its own number, as eight black or white stripes."""

import struct
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

STRIPES = 8


def draw(number: int, width: int = 64, height: int = 48) -> np.ndarray:
    stripes = (number >> np.arange(STRIPES)) & 1
    row = np.repeat(np.where(stripes, 235, 16), width // STRIPES)
    return np.broadcast_to(row[None, :, None], (height, width, 3)).astype(np.uint8)


class Movies:
    """What the fixture `movies` gives to tests."""

    draw = staticmethod(draw)

    @staticmethod
    def write(
        path: Path,
        *,
        n_frames: int = 60,
        rate: int = 30,
        codec: str = "libx264",
        container: str | None = None,
        pixels: str = "yuv420p",
        size: tuple[int, int] = (64, 48),
        b_frames: int | None = 2,
        pts: Sequence[int] | None = None,
        time_base: Fraction | None = None,
        still: bool = False,
        audio_s: float = 0.0,
        options: dict[str, str] | None = None,
        muxer: dict[str, str] | None = None,
    ) -> Path:
        """Encode frames 0, 1, 2, ... with a key frame every 12; `pts` are in units of `time_base`."""
        path.parent.mkdir(parents=True, exist_ok=True)
        base = time_base or Fraction(1, rate)
        with (
            path.open("wb") as handle,
            av.open(handle, "w", format=container or path.suffix[1:], options=muxer or {}) as out,
        ):
            if n_frames:
                stream = out.add_stream(codec, rate=rate, options=options or {})
                stream.width, stream.height = size
                stream.pix_fmt = pixels
                stream.codec_context.gop_size = 12
                stream.codec_context.thread_count = 1
                if b_frames is not None:
                    stream.codec_context.max_b_frames = b_frames
                if time_base is not None:
                    stream.codec_context.time_base = time_base
            if audio_s:
                sound = out.add_stream("aac", rate=16000)
                sound.layout = "mono"
            for number in range(n_frames):
                frame = av.VideoFrame.from_ndarray(draw(7 if still else number, *size), format="rgb24")
                frame.pts = number if pts is None else pts[number]
                frame.time_base = base
                out.mux(stream.encode(frame))
            if n_frames:
                out.mux(stream.encode(None))
            if audio_s:
                for k in range(int(audio_s * 16)):
                    tone = av.AudioFrame.from_ndarray(np.zeros((1, 1000), np.float32), format="fltp", layout="mono")
                    tone.sample_rate = 16000
                    tone.pts = k * 1000
                    out.mux(sound.encode(tone))
                out.mux(sound.encode(None))
        return path

    @staticmethod
    def number(frame: np.ndarray) -> int:
        """The number that a frame [H, W, 3] shows."""
        height, width = frame.shape[:2]
        centres = (np.arange(STRIPES) * 2 + 1) * width // (2 * STRIPES)
        return int(((frame[height // 4, centres].mean(axis=-1) > 125) << np.arange(STRIPES)).sum())

    def numbers(self, frames: np.ndarray) -> list[int]:
        return [self.number(frame) for frame in frames]

    @staticmethod
    def turn(path: Path, matrix: tuple[int, int, int, int]) -> Path:
        """Write another display matrix (a, b, c, d) into the track header of an MP4 file."""
        content = bytearray(path.read_bytes())
        start = content.index(b"tkhd") + 4 + 4 + 36  # version 0: 36 bytes of times, ids and volume come before
        a, b, c, d = (entry << 16 for entry in matrix)
        content[start : start + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
        path.write_bytes(content)
        return path


@pytest.fixture(scope="session")
def movies() -> Movies:
    return Movies()
