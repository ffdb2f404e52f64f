"""The demo's small world: what a clip shows, which clips there are, and how sentences describe them.

A scene is a foreground (shape, colour, size, count, motion) before a background. Each attribute is visible
without knowing the order of the frames, because mean pooling and the attention heads see a set of frames:
a motion is one of several ways to change, never a direction in time. No two clips share a foreground and
every sentence names the whole of it, so a sentence describes exactly one clip.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

VERSION = 1
"""Raised whenever the same seed would give other clips or other sentences."""

SHAPES = ("circle", "square", "triangle", "star", "cross", "heart", "crescent", "arrow")
COLOURS = ("red", "orange", "yellow", "green", "turquoise", "blue", "purple", "white")
SIZES = ("small", "big")
COUNTS = (1, 2, 3)
MOTIONS = ("still", "spinning", "pulsing", "bouncing", "sliding", "blinking")
BACKGROUNDS = ("black", "grey", "brown", "striped", "checked", "dotted")
SHIFTED_BACKGROUNDS = ("grid", "wavy", "brick", "speckled", "shaded", "ringed")

CAPTIONS_PER_CLIP = 5


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
    """How many clips to make: three splits in domain, and the test split of the shifted domain."""

    train: int = 1500
    val: int = 100
    test: int = 200
    shifted: int = 200


@dataclass(frozen=True, slots=True)
class PlannedClip:
    """A clip of the world before it is drawn."""

    id: str
    shifted: bool
    split: str
    scene: Scene
    captions: tuple[str, ...]


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
    },
    colour={colour: (colour,) for colour in COLOURS},
    size={"small": ("small", "little", "tiny"), "big": ("big", "large")},
    count={1: ("one", "a single"), 2: ("two", "a pair of"), 3: ("three", "a group of three")},
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
    count={1: ("one", "only one"), 2: ("two", "exactly two"), 3: ("three", "as many as three")},
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
    """Every (shape, colour, size, count, motion). A circle that spins would be a circle that is still."""
    combinations = product(SHAPES, COLOURS, SIZES, COUNTS, MOTIONS)
    return [values for values in combinations if not (values[0] == "circle" and values[4] == "spinning")]


def describe(scene: Scene, grammar: Grammar, rng: random.Random) -> tuple[str, ...]:
    """`CAPTIONS_PER_CLIP` different sentences, each naming the whole foreground of `scene`."""
    sentences = []
    for template in rng.sample(grammar.templates, CAPTIONS_PER_CLIP):
        plural = scene.count > 1
        shape = rng.choice(grammar.shape[scene.shape])
        sentences.append(
            template.format(
                shape=shape + ("es" if shape[-1] in "sx" else "s") if plural else shape,
                colour=rng.choice(grammar.colour[scene.colour]),
                size=rng.choice(grammar.size[scene.size]),
                count=rng.choice(grammar.count[scene.count]),
                motion=rng.choice(grammar.motion[scene.motion]),
                background=rng.choice(grammar.background[scene.background]),
                is_="are" if plural else "is",
                keep_="keep" if plural else "keeps",
            )
        )
    return tuple(sentences)


def plan(seed: int, counts: DemoCounts) -> list[PlannedClip]:
    """Every clip of the world. No foreground occurs twice: what is tested was never trained on.

    Raises:
        ValueError: `counts` asks for more clips than there are foregrounds.
    """
    pool = foregrounds()
    wanted = counts.train + counts.val + counts.test + counts.shifted
    if wanted > len(pool):
        raise ValueError(f"the demo world has {len(pool)} foregrounds, too few for {wanted} clips")
    random.Random(f"calmctl demo {VERSION}: foregrounds {seed}").shuffle(pool)
    foreground = iter(pool)
    clips = []
    for prefix, split, count in (
        ("train", "train", counts.train),
        ("val", "val", counts.val),
        ("test", "test", counts.test),
        ("shifted", "test", counts.shifted),
    ):
        shifted = prefix == "shifted"
        for index in range(count):
            identifier = f"{prefix}{index:04d}"
            rng = random.Random(f"calmctl demo {VERSION}: clip {seed} {identifier}")
            background = rng.choice(SHIFTED_BACKGROUNDS if shifted else BACKGROUNDS)
            scene = Scene(*next(foreground), background)
            captions = describe(scene, SHIFTED if shifted else IN_DOMAIN, rng)
            clips.append(PlannedClip(identifier, shifted, split, scene, captions))
    return clips


_NAME = re.compile(r"(train|val|test|shifted)\d{4}(-[0-9a-f]{8})?")


def drawn(names: Sequence[str]) -> bool:
    """Whether clips, by id or by file name without the suffix, are this world's: at least half have its names."""
    ours = sum(_NAME.fullmatch(name) is not None for name in names)
    return ours > 0 and 2 * ours >= len(names)
