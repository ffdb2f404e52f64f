import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from calmctl.video.pixels import RATIO, SCALE, CropFlip, Shrink, _box


def clip(height: int = 60, width: int = 80, frames: int = 3) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (frames, height, width, 3), dtype=np.uint8)


@given(st.integers(1, 400), st.integers(1, 400), st.integers(0, 1000))
def test_boxes_lie_inside_and_keep_area_and_ratio(height, width, seed):
    top, left, h, w = _box(height, width, np.random.default_rng(seed))
    assert 0 <= top <= top + h <= height and 0 <= left <= left + w <= width and h > 0 and w > 0
    if min(height, width) > 100 and RATIO[0] < width / height < RATIO[1]:
        assert SCALE[0] * 0.97 <= h * w / (height * width) <= SCALE[1]
        assert RATIO[0] * 0.97 <= w / h <= RATIO[1] * 1.03


def test_all_frames_of_a_clip_get_the_same_box_and_the_seed_decides():
    still = np.repeat(clip(frames=1), 3, axis=0)
    first = CropFlip(32, True, (1, 2, 3))(still)
    assert first.shape == (3, 32, 32, 3) and first.dtype == np.uint8
    assert (first[0] == first[1]).all() and (first[0] == first[2]).all()
    assert (first == CropFlip(32, True, (1, 2, 3))(still)).all()
    assert any((CropFlip(32, True, (1, 2, i))(still) != first).any() for i in range(5))


def test_crop_against_pillow_done_by_hand():
    frames = clip()
    top, left, h, w = _box(60, 80, np.random.default_rng((7,)))
    expected = Image.fromarray(frames[1]).resize((16, 16), Image.Resampling.BICUBIC, box=(left, top, left + w, top + h))
    np.testing.assert_array_equal(CropFlip(16, False, (7,))(frames)[1], np.asarray(expected))


@pytest.mark.parametrize("flip", [True, False])
def test_about_half_of_the_clips_are_mirrored(flip):
    ramp = np.broadcast_to(np.arange(64, dtype=np.uint8)[None, None, :, None], (1, 64, 64, 3))
    mirrored = [
        int(result[0, 8, 0, 0]) > int(result[0, 8, -1, 0])
        for result in (CropFlip(16, flip, (seed,))(ramp) for seed in range(200))
    ]
    assert (60 < sum(mirrored) < 140) == flip and (flip or not any(mirrored))


def test_a_rectangle_has_its_height_first():
    frames = np.random.default_rng(0).integers(0, 256, (2, 40, 60, 3), dtype=np.uint8)
    assert CropFlip((16, 24), False, (1,))(frames).shape == (2, 16, 24, 3)


def test_larger_frames_are_shrunk_to_their_short_side_once():
    frames = clip(60, 81)
    small = Shrink(40)(frames)
    expected = Image.fromarray(frames[1]).resize((54, 40), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(small[1], np.asarray(expected))
    assert Shrink(40)(frames.transpose(0, 2, 1, 3)).shape == (3, 54, 40, 3)
    assert all(Shrink(side)(each) is each for side, each in ((40, small), (60, frames), (61, frames), (None, frames)))
    crop = CropFlip(16, True, (7,), 40)
    np.testing.assert_array_equal(crop(frames), CropFlip(16, True, (7,))(small))
    np.testing.assert_array_equal(crop(small), crop(frames))
