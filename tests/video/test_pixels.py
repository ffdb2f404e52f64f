"""FrameResize against open_clip's own transform, which it must equal to the last bit."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from calmctl.model.openclip import open_clip
from calmctl.video.pixels import FrameResize

PreprocessCfg, image_transform_v2 = open_clip.transform.PreprocessCfg, open_clip.transform.image_transform_v2

MODES = ("shortest", "longest", "squash")
FILTERS = ("bicubic", "bilinear")


def reference(frames: np.ndarray, resize: FrameResize) -> np.ndarray:
    """open_clip's transform with a normalisation that changes nothing, back as uint8."""
    config = PreprocessCfg(
        size=resize.size,
        mean=(0.0, 0.0, 0.0),
        std=(1.0, 1.0, 1.0),
        resize_mode=resize.mode,
        interpolation=resize.interpolation,
        fill_color=resize.fill,
    )
    transform = image_transform_v2(config, is_train=False)
    pixels = [transform(Image.fromarray(frame)).mul(255).round().byte().permute(1, 2, 0) for frame in frames]
    return np.stack([image.numpy() for image in pixels])


@pytest.mark.parametrize(("mode", "interpolation"), list(product(MODES, FILTERS)))
@settings(max_examples=25, deadline=None)
@given(
    height=st.integers(8, 120),
    width=st.integers(8, 120),
    size=st.integers(16, 64),
    fill=st.integers(0, 255),
    seed=st.integers(0, 99),
)
def test_equals_open_clip(
    mode: str, interpolation: str, height: int, width: int, size: int, fill: int, seed: int
) -> None:
    resize = FrameResize(size, mode, interpolation, fill=fill if mode == "longest" else 0)
    frames = np.random.default_rng(seed).integers(0, 256, (2, height, width, 3), dtype=np.uint8)
    resized = resize(frames)
    assert resized.shape == (2, size, size, 3) and resized.dtype == np.uint8
    np.testing.assert_array_equal(resized, reference(frames, resize))


@pytest.mark.parametrize("mode", MODES)
@settings(max_examples=25, deadline=None)
@given(
    shape=st.tuples(st.integers(8, 120), st.integers(8, 120)),
    size=st.tuples(st.integers(16, 64), st.integers(16, 64)).filter(lambda size: size[0] != size[1]),
)
def test_rectangles_equal_open_clip(mode: str, shape: tuple[int, int], size: tuple[int, int]) -> None:
    resize = FrameResize(size, mode)
    frames = np.random.default_rng(1).integers(0, 256, (2, *shape, 3), dtype=np.uint8)
    assert resize(frames).shape == (2, *size, 3)
    np.testing.assert_array_equal(resize(frames), reference(frames, resize))


def test_frames_of_the_right_size_are_untouched() -> None:
    frames = np.random.default_rng(0).integers(0, 256, (3, 48, 48, 3), dtype=np.uint8)
    np.testing.assert_array_equal(FrameResize(48)(frames), frames)
