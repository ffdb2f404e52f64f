"""The demo's small world: what a clip shows, which clips there are, and how sentences describe them.

A scene is a foreground (shape, colour, size, count, motion) before a background. Each attribute is visible
without knowing the order of the frames, because mean pooling and the attention heads see a set of frames:
a motion is one of several ways to change, never a direction in time. No two clips share a foreground and
every sentence of a validation or test clip names the whole of it, so such a sentence describes exactly one clip.
A training sentence may be asked to name less: that is the dial of information imbalance (`DIALS`).

What the shipped CLIP is pretrained on (`scripts/pretrain_demo_clip.py`) has foregrounds that no split has.
"""

from __future__ import annotations

import io
import random
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from itertools import product

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

VERSION = 2
"""Raised whenever the same seed would give other clips or other sentences."""

SHAPES = (
    "circle",
    "square",
    "triangle",
    "star",
    "cross",
    "heart",
    "crescent",
    "arrow",
    "diamond",
    "ring",
    "bar",
    "bolt",
)
COLOURS = ("red", "orange", "yellow", "green", "turquoise", "blue", "purple", "white", "pink")
SIZES = ("small", "big")
COUNTS = (1, 2, 3, 4)
MOTIONS = ("still", "spinning", "pulsing", "bouncing", "sliding", "blinking")
BACKGROUNDS = ("black", "grey", "brown", "striped", "checked", "dotted")
# Out of domain the background is new and the foreground is not: the same question in another setting.
SHIFTED_BACKGROUNDS = ("grid", "wavy", "brick", "speckled", "shaded", "ringed")

CAPTIONS_PER_CLIP = 5
DIALS = (0.6, 0.4)
"""Shares of the five attributes of a foreground that a training caption may be asked to name, beside all of them."""
FOREGROUND = ("shape", "colour", "size", "count", "motion")


@dataclass(frozen=True, slots=True, order=True)
class Scene:
    """What one clip shows: a value of every attribute."""

    shape: str
    colour: str
    size: str
    count: int
    motion: str
    background: str


@dataclass(frozen=True, slots=True)
class DemoCounts:
    """How many clips to make: three splits in domain, and the test split of the shifted domain.

    The demo's own are few, because it is to be over in minutes. Fewer clips of a split are the first of more.
    """

    train: int = 1500
    val: int = 100
    test: int = 200
    shifted: int = 200


MOST = DemoCounts(train=1600, val=300, test=1000, shifted=1000)
"""Foregrounds are dealt into one pool a split, so that none needs to know how many another has; the rest is for
pretraining."""
STUDY = DemoCounts(train=1500, val=300, test=1000, shifted=1000)
"""The clips of `calmctl reproduce effect --data demo`: enough to resolve a difference of a point or two."""


@dataclass(frozen=True, slots=True)
class PlannedClip:
    """A clip of the world before it is drawn.

    Attributes:
        captions: Sentences that name the whole foreground.
        partial: For a training clip, by the dial's setting as text ("0.6"), sentences that name only that share of it.
    """

    id: str
    shifted: bool
    split: str
    scene: Scene
    captions: tuple[str, ...]
    partial: dict[str, tuple[str, ...]]


Phrases = dict[str | int, tuple[str, ...]]


@dataclass(frozen=True, slots=True)
class Grammar:
    """The sentences of one domain: templates, and the phrases that may stand for each value."""

    templates: tuple[str, ...]
    shape: Phrases
    colour: Phrases
    size: Phrases
    count: Phrases
    motion: Phrases
    background: Phrases


IN_DOMAIN = Grammar(
    templates=(
        "{count} {size} {colour} {shape} {motion}",
        "there {is_} {count} {size} {colour} {shape} {motion}",
        "a video of {count} {size} {colour} {shape}, {motion}",
        "{count} {size} {colour} {shape} {motion} {background}",
        "{background}, {count} {size} {colour} {shape} {is_} {motion}",
        "{background} we see {count} {size} {colour} {shape} {motion}",
        "{count} {colour} {shape}, {size}, {is_} {motion} {background}",
    ),
    shape={
        "circle": ("circle", "disc"),
        "square": ("square", "box"),
        "triangle": ("triangle",),
        "star": ("star",),
        "cross": ("cross", "plus sign"),
        "heart": ("heart",),
        "crescent": ("crescent", "moon"),
        "arrow": ("arrow",),
        "diamond": ("diamond", "rhombus"),
        "ring": ("ring", "hoop"),
        "bar": ("bar", "stick"),
        "bolt": ("bolt", "thunderbolt"),
    },
    colour={colour: (colour,) for colour in COLOURS},
    size={"small": ("small", "little", "tiny"), "big": ("big", "large")},
    count={
        1: ("one", "a single"),
        2: ("two", "a pair of"),
        3: ("three", "a group of three"),
        4: ("four", "a group of four"),
    },
    motion={
        "still": ("standing still", "not moving", "at rest"),
        "spinning": ("spinning", "turning around", "rotating"),
        "pulsing": ("growing and shrinking", "pulsing", "changing size"),
        "bouncing": ("bouncing", "bouncing up and down", "hopping"),
        "sliding": ("sliding", "sliding from side to side", "gliding left and right"),
        "blinking": ("blinking", "flashing", "appearing and disappearing"),
    },
    background={
        "black": ("on a black background", "in front of a black wall"),
        "grey": ("on a grey background", "in front of a grey wall"),
        "brown": ("on a brown background", "in front of a brown wall"),
        "striped": ("on a striped background", "in front of stripes"),
        "checked": ("on a checked background", "in front of a chessboard"),
        "dotted": ("on a dotted background", "in front of dots"),
    },
)

SHIFTED = Grammar(
    templates=(
        "look how {count} {size} {shape} of {colour} colour {keep_} {motion}",
        "{size} {shape}, {count} in all, coloured {colour} and {motion}",
        "what you see {is_} {count} {colour} {shape}, {size} enough, {motion}",
        "the camera shows {count} {shape} that {is_} {colour} and {size}, {motion}",
        "{background} somebody drew {count} {size} {shape} in {colour}, {motion}",
        "this clip has {count} {shape} painted {colour}, {size} and {motion} {background}",
    ),
    shape=IN_DOMAIN.shape,
    colour=IN_DOMAIN.colour,
    size={"small": ("small", "tiny", "rather little"), "big": ("big", "large", "huge")},
    count={
        1: ("one", "only one"),
        2: ("two", "exactly two"),
        3: ("three", "as many as three"),
        4: ("four", "as many as four"),
    },
    motion={
        "still": ("still", "standing motionless"),
        "spinning": ("spinning in place", "rotating on the spot"),
        "pulsing": ("pulsing in size", "shrinking and growing"),
        "bouncing": ("bouncing off the floor", "jumping up and down"),
        "sliding": ("sliding to and fro", "moving left and right"),
        "blinking": ("blinking like a lamp", "disappearing and coming back"),
    },
    background={
        "grid": ("over a grid of lines", "before a wire fence"),
        "wavy": ("over wavy bands", "before rolling waves"),
        "brick": ("over rows of bricks", "before a brickwork facade"),
        "speckled": ("over a speckled floor", "before television noise"),
        "shaded": ("over a smooth gradient", "before a fading sky"),
        "ringed": ("over nested rings", "before ripples on a pond"),
    },
)


def foregrounds() -> list[tuple[str, str, str, int, str]]:
    """Every (shape, colour, size, count, motion). A circle or ring that spins would be one that is still."""
    combinations = product(SHAPES, COLOURS, SIZES, COUNTS, MOTIONS)
    return [values for values in combinations if not (values[0] in ("circle", "ring") and values[4] == "spinning")]


def describe(scene: Scene, grammar: Grammar, rng: random.Random) -> tuple[str, ...]:
    """`CAPTIONS_PER_CLIP` different sentences, each naming the whole foreground of `scene`."""
    # Without repeats: different templates make different sentences.
    return tuple(
        template.format(**phrases(scene, grammar, rng)) for template in rng.sample(grammar.templates, CAPTIONS_PER_CLIP)
    )


# Templates of sentences that may leave a motion out.
LESS = (
    "{noun} {motion}",
    "a video of {noun}, {motion}",
    "a picture of {noun} {motion}",
    "{noun}, {motion}",
    "we see {noun} {motion}",
    "{noun} {motion} {background}",
    "{background}, {noun} {motion}",
)


def describe_less(
    scene: Scene, grammar: Grammar, rng: random.Random, named: int, templates: tuple[str, ...] = LESS
) -> str:
    """A sentence that names only `named` of the five attributes of a foreground, drawn anew for each sentence.

    Where the count is not named the noun stays in the singular, as a keyword does: a plural would tell half of it.
    """
    chosen = set(rng.sample(FOREGROUND, named))
    told = scene if "count" in chosen else replace(scene, count=1)
    words = phrases(told, grammar, rng)
    noun = words["shape"] if "shape" in chosen else ("shapes" if told.count > 1 else "shape")
    said = [words[name] for name in ("count", "size", "colour") if name in chosen]
    values = {
        "noun": " ".join([*said, noun]),
        "motion": words["motion"] if "motion" in chosen else "",
        "background": words["background"],
    }
    # A motion that is not named leaves its place empty.
    return re.sub(r"[ ,]+$", "", re.sub(r" +(?=,| )", "", rng.choice(templates).format(**values)))


def phrases(scene: Scene, grammar: Grammar, rng: random.Random) -> dict[str, str]:
    """What a template's places are filled with for a scene: one phrase for each attribute, and the verbs."""
    plural = scene.count > 1
    shape = rng.choice(grammar.shape[scene.shape])
    return {
        "shape": shape + ("es" if shape[-1] in "sx" else "s") if plural else shape,
        "colour": rng.choice(grammar.colour[scene.colour]),
        "size": rng.choice(grammar.size[scene.size]),
        "count": rng.choice(grammar.count[scene.count]),
        "motion": rng.choice(grammar.motion[scene.motion]),
        "background": rng.choice(grammar.background[scene.background]),
        "is_": "are" if plural else "is",
        "keep_": "keep" if plural else "keeps",
    }


def plan(seed: int, counts: DemoCounts) -> list[PlannedClip]:
    """Every clip of the world. No foreground occurs twice: what is tested was never trained on.

    Raises:
        ValueError: `counts` asks for more clips of a split than there are foregrounds for it.
    """
    clips = []
    for prefix, pool in pools(seed).items():
        count, shifted = getattr(counts, prefix, 0), prefix == "shifted"
        if count > len(pool):
            raise ValueError(f"the demo world has {len(pool)} foregrounds for {prefix}, too few for {count} clips")
        for index, foreground in enumerate(pool[:count]):
            identifier = f"{prefix}{index:04d}"
            # A generator of its own for each clip: what it draws does not depend on how many came before it.
            rng = random.Random(f"calmctl demo {VERSION}: clip {seed} {identifier}")
            grammar = SHIFTED if shifted else IN_DOMAIN
            scene = Scene(*foreground, rng.choice(SHIFTED_BACKGROUNDS if shifted else BACKGROUNDS))
            captions = describe(scene, grammar, rng)
            partial = {}
            if prefix == "train":
                for dial in DIALS:
                    named = round(dial * len(FOREGROUND))
                    partial[str(dial)] = tuple(
                        describe_less(scene, grammar, rng, named) for _ in range(CAPTIONS_PER_CLIP)
                    )
            clips.append(PlannedClip(identifier, shifted, "test" if shifted else prefix, scene, captions, partial))
    return clips


def pools(seed: int) -> dict[str, list[tuple[str, str, str, int, str]]]:
    """The foregrounds of each split, and of pretraining: one shuffled pool, dealt in pieces that never change."""
    pool = foregrounds()
    random.Random(f"calmctl demo {VERSION}: foregrounds {seed}").shuffle(pool)
    pieces = {}
    for prefix, count in asdict(MOST).items():
        pieces[prefix], pool = pool[:count], pool[count:]
    return {**pieces, "pretraining": pool}


# Drawing the demo's clips: a scene in, RGB frames out, and the frames as an H.264 file.


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
    import av  # whoever only reads a world does without

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
