"""Look at the decoded pixels and find what the scene says: nothing here uses the drawing code's internals."""

import io
import random
from collections import deque

import av
import numpy as np
import pytest

from calmctl.data.demo_drawing import draw, encode
from calmctl.data.demo_world import BACKGROUNDS, COLOURS, COUNTS, MOTIONS, SHAPES, SHIFTED_BACKGROUNDS, Scene

HUES = {  # degrees on the colour wheel; white has none
    "red": 0,
    "orange": 30,
    "yellow": 55,
    "green": 130,
    "turquoise": 178,
    "blue": 230,
    "purple": 285,
    "pink": 330,
}


def decoded(scene: Scene, *, shifted: bool = False, seed: int = 0) -> np.ndarray:
    """The clip's frames [F, H, W, 3] after a round trip through the H.264 file."""
    data = encode(draw(scene, random.Random(seed), shifted=shifted))
    with av.open(io.BytesIO(data)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]).astype(int)


def masks(scene: Scene, seed: int = 0) -> np.ndarray:
    """Where the shapes are [F, H, W] in a clip on black."""
    return decoded(scene, seed=seed).max(axis=-1) > 110


def components(mask: np.ndarray) -> int:
    """The number of 4-connected regions of more than 8 pixels."""
    left = set(map(tuple, np.argwhere(mask)))
    regions = 0
    while left:
        queue, size = deque([left.pop()]), 0
        while queue:
            y, x = queue.popleft()
            size += 1
            for neighbour in ((y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)):
                if neighbour in left:
                    left.remove(neighbour)
                    queue.append(neighbour)
        regions += size > 8
    return regions


def hue_of(rgb: np.ndarray) -> float:
    red, green, blue = rgb / 255
    return float(np.degrees(np.arctan2(np.sqrt(3) * (green - blue), 2 * red - green - blue)) % 360)


def test_file_is_h264_with_the_stated_size_and_rate():
    frames = draw(Scene("star", "red", "big", 1, "spinning", "checked"), random.Random(1), shifted=False)
    assert frames.shape == (20, 64, 64, 3) and frames.dtype == np.uint8
    with av.open(io.BytesIO(encode(frames))) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
        assert stream.average_rate == 10 and (stream.width, stream.height) == (64, 64)
        assert float(container.duration / av.time_base) == pytest.approx(2.0)
        back = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(stream)])
    assert back.shape == frames.shape
    assert abs(back.astype(int) - frames).mean() < 6


def test_same_seed_same_bytes_and_another_seed_another_clip():
    for seed, background in enumerate(SHIFTED_BACKGROUNDS * 3):
        scene = Scene("heart", "blue", "small", 2, MOTIONS[seed % 6], background)
        first, again, other = (draw(scene, random.Random(s), shifted=True) for s in (seed, seed, seed + 1))
        assert len({encode(first), encode(again), encode(first)}) == 1
        assert (first != other).any()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("size", ["small", "big"])
def test_as_many_shapes_as_the_count_says(shape, size):
    for count in COUNTS:
        mask = masks(Scene(shape, "yellow", size, count, "still", "black"), seed=count)[5]
        assert components(mask) == count


@pytest.mark.parametrize("shape", SHAPES)
def test_big_covers_more_than_twice_what_small_covers(shape):
    small, big = (
        [masks(Scene(shape, "white", size, 1, "still", "black"), seed)[0].sum() for seed in range(4)]
        for size in ("small", "big")
    )
    assert min(big) > 2 * max(small)


@pytest.mark.parametrize("shifted", [False, True])
@pytest.mark.parametrize("colour", COLOURS)
def test_colour_has_the_hue_of_its_name(colour, shifted):
    background = "shaded" if shifted else "black"
    frame = decoded(Scene("square", colour, "big", 1, "still", background), shifted=shifted)[0]
    middle = frame[29:35, 29:35].reshape(-1, 3).mean(axis=0)
    if colour == "white":
        assert middle.min() > 220
        return
    assert middle.max() - middle.min() > 80
    distance = {name: abs((hue_of(middle) - hue + 180) % 360 - 180) for name, hue in HUES.items()}
    assert min(distance, key=distance.__getitem__) == colour


@pytest.mark.parametrize("shifted", [False, True])
def test_every_colour_can_be_seen_on_every_background(shifted):
    for background in SHIFTED_BACKGROUNDS if shifted else BACKGROUNDS:
        for colour in COLOURS:
            for seed in range(2):
                frame = draw(
                    Scene("square", colour, "big", 1, "still", background), random.Random(seed), shifted=shifted
                )[0].astype(int)
                edge = frame[:6].reshape(-1, 3)
                assert abs(edge - frame[32, 32]).max(axis=1).min() > 25, (background, colour)


def test_no_two_shapes_look_alike():
    outlines = {shape: masks(Scene(shape, "white", "big", 1, "still", "black"))[0] for shape in SHAPES}
    for first in SHAPES:
        for second in SHAPES:
            if first < second:
                union = (outlines[first] | outlines[second]).sum()
                assert (outlines[first] & outlines[second]).sum() / union < 0.85, (first, second)


def observed_motion(mask: np.ndarray) -> str:
    """Tell the motion from a set of 12 frames: minima, maxima and spreads, never their order."""
    chosen = mask[((np.arange(12) + 0.5) * len(mask) / 12).astype(int)]
    area = chosen.sum(axis=(1, 2))
    if area.min() == 0:
        return "blinking"
    if area.max() > 2 * area.min():
        return "pulsing"
    where = np.array([np.argwhere(frame).mean(axis=0) for frame in chosen])
    rise, run = np.ptp(where, axis=0)
    if max(rise, run) > 8:
        return "bouncing" if rise > run else "sliding"
    changed = (chosen.max(axis=0) & ~chosen.min(axis=0)).sum() / area.mean()
    return "spinning" if changed > 0.3 else "still"


@pytest.mark.parametrize("motion", MOTIONS)
def test_motion_can_be_told_without_the_order_of_the_frames(motion):
    for seed, shape in enumerate(SHAPES):
        if motion == "spinning" and shape in ("circle", "ring"):
            continue
        for size in ("small", "big"):
            mask = masks(Scene(shape, "white", size, 1, motion, "black"), seed)
            assert observed_motion(mask) == motion, (shape, size)


def test_patterns_are_what_they_are_called():
    def backdrop(background, *, shifted):
        scene = Scene("circle", "red", "small", 1, "still", background)
        return draw(scene, random.Random(3), shifted=shifted)[0].astype(int)[:16].mean(axis=-1)

    assert backdrop("black", shifted=False).max() < 30
    assert 105 < backdrop("grey", shifted=False).mean() < 131
    striped, checked = backdrop("striped", shifted=False), backdrop("checked", shifted=False)
    assert np.ptp(striped, axis=0).max() == 0 and np.ptp(striped, axis=1).min() > 40
    assert np.ptp(checked, axis=0).min() > 40 and np.ptp(checked, axis=1).min() > 40
    assert np.array_equal(checked[:, 20:], checked[:, :-20])
    assert 0.1 < (backdrop("dotted", shifted=False) > 60).mean() < 0.3
    shaded = backdrop("shaded", shifted=True)
    assert (np.diff(shaded[:, 0]) >= 0).all() and np.ptp(shaded, axis=1).max() == 0
