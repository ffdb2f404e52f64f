"""Drawing the demo's clips: a scene in, RGB frames out, and the frames as an H.264 file.

Apart from the world itself, because whoever only reads one needs neither numpy nor PIL, which take a while to load.
"""

from __future__ import annotations

import io
import random
from collections.abc import Callable

import av
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from calmctl.data.demo_world import SHIFTED_BACKGROUNDS, Scene

SIDE_PX = 64
FRAMES_PER_S = 10
DURATION_S = 2.0

_Points = NDArray[np.complex128]
_Floats = NDArray[np.float64]

# They vary by 4 %, so small ends at 7.8 px and big begins at 12.0: one clip alone tells its size.
_RADIUS_PX = {"small": 7.5, "big": 12.5}
_CENTRES_PX = {
    1: (32 + 32j,),
    2: (16 + 32j, 48 + 32j),
    3: (16 + 19j, 48 + 19j, 32 + 46j),
    4: (16 + 15j, 48 + 15j, 16 + 49j, 48 + 49j),
}
_REACH_PX = 10.0  # how far bouncing and sliding go from the middle: further than the placement jitter by far
# PIL draws polygons without antialiasing.
_SUPERSAMPLING = 4

_PALETTE = {
    "red": (225, 30, 30),
    "orange": (255, 135, 0),
    "yellow": (250, 230, 40),
    "green": (30, 180, 50),
    "turquoise": (60, 225, 215),
    "blue": (40, 70, 235),
    "purple": (165, 50, 200),
    "white": (245, 245, 245),
    "pink": (255, 105, 180),
}
_SHIFTED_PALETTE = {
    "red": (180, 25, 45),
    "orange": (225, 115, 30),
    "yellow": (220, 195, 20),
    "green": (25, 135, 60),
    "turquoise": (40, 170, 165),
    "blue": (45, 60, 190),
    "purple": (130, 50, 160),
    "white": (255, 255, 255),
    "pink": (220, 100, 160),
}


def draw(scene: Scene, rng: random.Random, *, shifted: bool) -> NDArray[np.uint8]:
    """Draw a scene as uint8 RGB frames [F, H, W, 3].

    `rng` decides what no caption mentions: exact shade, place, tempo and phase. The shifted domain has
    backgrounds of its own, and a duller palette.
    """
    palette = _SHIFTED_PALETTE if shifted else _PALETTE
    colour = np.array([channel + rng.uniform(-10, 10) for channel in palette[scene.colour]], dtype=np.float32)
    background = _background(scene.background, rng).astype(np.float32)
    coverage = _coverage(scene, rng)[..., None]
    return (background + coverage * (colour.clip(0, 255) - background)).round().astype(np.uint8)


def encode(frames: NDArray[np.uint8]) -> bytes:
    """Encode frames [F, H, W, 3] as an mp4 file: H.264 (libx264), yuv420p, `FRAMES_PER_S`."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        # The bytes depend on the number of threads; and with B-frames libx264 gave, for pictures this small,
        # other bytes now and then for the same frames.
        options = {"crf": "18", "preset": "veryfast", "bf": "0"}
        stream = container.add_stream("libx264", rate=FRAMES_PER_S, options=options)
        stream.thread_count = 1
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return buffer.getvalue()


def _coverage(scene: Scene, rng: random.Random) -> NDArray[np.float32]:
    """How much of every pixel the shapes cover, [F, H, W] in [0, 1]."""
    outline = _OUTLINES[scene.shape]
    radius = _RADIUS_PX[scene.size] * rng.uniform(0.96, 1.04)
    jitter = complex(rng.uniform(-2.5, 2.5), rng.uniform(-2.5, 2.5))
    times_s = np.arange(round(DURATION_S * FRAMES_PER_S)) / FRAMES_PER_S
    offset, similarity = _motion(scene.motion, times_s, rng)
    canvas_px = SIDE_PX * _SUPERSAMPLING
    masks = []
    for frame in range(len(times_s)):
        canvas = Image.new("L", (canvas_px, canvas_px))
        if similarity[frame] != 0:
            pen = ImageDraw.Draw(canvas)
            for centre in _CENTRES_PX[scene.count]:
                points = centre + jitter + offset[frame] + radius * similarity[frame] * outline
                pen.polygon((points * _SUPERSAMPLING).view(np.float64).tolist(), fill=255)
        masks.append(np.asarray(canvas.reduce(_SUPERSAMPLING)))
    coverage: NDArray[np.float32] = np.divide(np.stack(masks), 255, dtype=np.float32)
    return coverage


def _motion(motion: str, times_s: _Floats, rng: random.Random) -> tuple[_Points, _Points]:
    """Per frame, the offset in pixels and the similarity (size times rotation; 0 hides), both complex [F].

    Tempo and phase are random, so that neither says which motion it is. The tempi keep 12 frames in 2 s
    from falling on the same phase again and again.
    """
    offset = np.zeros(len(times_s), dtype=np.complex128)
    similarity = np.ones(len(times_s), dtype=np.complex128)
    turns = times_s / rng.uniform(1.2, 1.7) * rng.choice((-1, 1)) + rng.random()
    if motion == "spinning":
        similarity = np.exp(2j * np.pi * turns)
    elif motion == "pulsing":
        similarity += 0.5 * np.sin(2 * np.pi * turns)
    elif motion == "bouncing":
        offset += 1j * _REACH_PX * (1 - 2 * abs(np.sin(np.pi * turns)))
    elif motion == "sliding":
        offset += _REACH_PX * np.sin(2 * np.pi * turns)
    elif motion == "blinking":
        similarity *= (2 * turns) % 1.0 < 0.5
    return offset, similarity


def _background(background: str, rng: random.Random) -> _Floats:
    """The background [H, W, 3]: neutral tones in domain, tinted and lighter ones in the shifted domain."""
    # Moved at random: no stripe lies in the same place in all clips.
    y, x = np.mgrid[0:SIDE_PX, 0:SIDE_PX] + np.array([rng.uniform(0, 16), rng.uniform(0, 16)])[:, None, None]
    if background in _PLAIN:
        tone = np.array(_PLAIN[background]) + rng.uniform(-8, 8)
        return np.broadcast_to(tone, (SIDE_PX, SIDE_PX, 3))
    low, high = np.full(3, 30.0), np.full(3, 95.0)
    if background in SHIFTED_BACKGROUNDS:
        tint = np.array([rng.uniform(-15, 15) for _ in range(3)])
        low, high = 45.0 + tint, 115.0 + tint
    weight = _noise(rng) if background == "speckled" else _PATTERNS[background](x, y)
    low, high = low + rng.uniform(-8, 8), high + rng.uniform(-8, 8)
    return low + np.asarray(weight, dtype=np.float64)[..., None] * (high - low)


def _noise(rng: random.Random) -> _Floats:
    """Uniform noise in blocks of 2 x 2 pixels (finer grain would not survive the video codec), [H, W]."""
    blocks = np.random.default_rng(rng.getrandbits(64)).random((SIDE_PX // 2, SIDE_PX // 2))
    return blocks.repeat(2, axis=0).repeat(2, axis=1)


_PLAIN = {"black": (14, 14, 14), "grey": (118, 118, 118), "brown": (104, 66, 38)}
_PATTERNS: dict[str, Callable[[_Floats, _Floats], _Floats | NDArray[np.bool_]]] = {
    "striped": lambda x, y: x % 12 < 6,
    "checked": lambda x, y: (x % 20 < 10) ^ (y % 20 < 10),
    "dotted": lambda x, y: np.hypot(x % 13 - 6.5, y % 13 - 6.5) < 3.2,
    "grid": lambda x, y: (x % 11 < 2) | (y % 11 < 2),
    "wavy": lambda x, y: 0.5 + 0.5 * np.sin(2 * np.pi * (y + 4 * np.sin(x / 5)) / 14),
    "brick": lambda x, y: (y % 10 > 2) & ((x + 10 * (y // 10 % 2)) % 20 > 2),
    "shaded": lambda x, y: y / (SIDE_PX + 16),
    "ringed": lambda x, y: np.hypot(x - 40, y - 40) % 12 < 6,
}


def _arc(start: float, stop: float, points: int) -> _Points:
    """Points on the unit circle between two angles given in turns."""
    return np.asarray(np.exp(2j * np.pi * np.linspace(start, stop, points)))


def _heart() -> _Points:
    t = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    x = 16 * np.sin(t) ** 3
    y = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    return np.asarray((x - 1j * y) / 15.5)


# Outlines of about unit radius, as complex numbers x + iy with y pointing down.
_OUTLINES: dict[str, _Points] = {
    "circle": _arc(0, 1, 33)[:-1],
    "square": 1.15 * _arc(1 / 8, 9 / 8, 5)[:-1],
    "triangle": 1.2 * _arc(-1 / 4, 3 / 4, 4)[:-1],
    "star": 1.25 * _arc(-1 / 4, 3 / 4, 11)[:-1] * np.tile([1, 0.42], 5),
    "cross": np.outer([1, 1j, -1, -1j], [1.1 - 0.36j, 1.1 + 0.36j, 0.36 + 0.36j]).ravel(),
    "heart": _heart(),
    "crescent": 1.1 * np.append(_arc(0.15, 0.85, 24), 0.81 * _arc(0.76, 0.24, 16) + 0.55) + 0.25,
    "arrow": np.array([1.15, 0.1 - 1j, 0.1 - 0.4j, -1.05 - 0.4j, -1.05 + 0.4j, 0.1 + 0.4j, 0.1 + 1j]),
    "diamond": np.array([1.2j, 0.7, -1.2j, -0.7]),
    # Out along one circle and back along another: the seam between them has no width.
    "ring": np.append(1.1 * _arc(0, 1, 33), 0.6 * _arc(1, 0, 33)),
    "bar": np.array([1.1 + 0.4j, 1.1 - 0.4j, -1.1 - 0.4j, -1.1 + 0.4j]),
    "bolt": np.array([0.55 - 1.2j, -0.85 + 0.25j, -0.1 + 0.25j, -0.55 + 1.2j, 0.85 - 0.35j, 0.1 - 0.35j]),
}
