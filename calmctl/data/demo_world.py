"""The demo's small world: what a clip shows, which clips there are, and how sentences describe them.

A scene is a foreground (shape, colour, size, count, motion) before a background. Each attribute is visible
without knowing the order of the frames, because mean pooling and the attention heads see a set of frames:
a motion is one of several ways to change, never a direction in time. No two clips share a foreground and
every sentence of a validation or test clip names the whole of it, so such a sentence describes exactly one clip.
A training sentence may be asked to name less: that is the dial of information imbalance (`DIALS`).

What the shipped CLIP is pretrained on (`scripts/pretrain_demo_clip.py`) has foregrounds that no split has.
"""

from __future__ import annotations

import random
import re
from dataclasses import asdict, dataclass, replace
from itertools import product

VERSION = 2
"""Raised whenever the same seed would give other clips or other sentences."""

SHAPES = (
    *("circle", "square", "triangle", "star", "cross", "heart"),
    *("crescent", "arrow", "diamond", "ring", "bar", "bolt"),
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
    described = scene if "count" in chosen else replace(scene, count=1)
    words = phrases(described, grammar, rng)
    noun = words["shape"] if "shape" in chosen else ("shapes" if described.count > 1 else "shape")
    adjectives = [words[name] for name in ("count", "size", "colour") if name in chosen]
    values = {
        "noun": " ".join([*adjectives, noun]),
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
            for dial in DIALS if prefix == "train" else ():
                named = round(dial * len(FOREGROUND))
                partial[str(dial)] = tuple(describe_less(scene, grammar, rng, named) for _ in range(CAPTIONS_PER_CLIP))
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
