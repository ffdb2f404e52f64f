"""The two halves of a backbone's preprocessing against open_clip's own, and what a fingerprint tells apart."""

import hashlib
import json
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from calmctl.model.backbone import Backbone, fingerprint, parameters_digest, split_preprocess
from calmctl.model.openclip import open_clip
from calmctl.model.weights import load_backbone

PreprocessCfg, image_transform_v2 = open_clip.transform.PreprocessCfg, open_clip.transform.image_transform_v2


@pytest.fixture
def backbone() -> Backbone:
    return load_backbone("demo-clip", None)


def theirs(frames: np.ndarray, **config: object) -> torch.Tensor:
    """open_clip's own evaluation transform."""
    transform = image_transform_v2(PreprocessCfg(**config), is_train=False)
    return torch.stack([transform(Image.fromarray(frame)) for frame in frames])


@pytest.mark.parametrize(("height", "width"), [(48, 48), (96, 128), (131, 77), (30, 40), (49, 500)])
def test_halves_equal_the_whole_exactly(backbone: Backbone, height: int, width: int) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (3, height, width, 3), dtype=np.uint8)
    resize, normalise = split_preprocess(backbone)
    halves = normalise(torch.from_numpy(resize(frames)))
    assert halves.is_contiguous()
    assert torch.equal(halves, theirs(frames, size=48)) and torch.equal(halves, backbone.preprocess(frames))


@pytest.mark.parametrize("size", [(48, 48), (32, 64), (56, 24)], ids=str)
@pytest.mark.parametrize(
    ("mode", "interpolation"), list(product(("shortest", "longest", "squash"), ("bicubic", "bilinear")))
)
def test_every_transform_of_open_clip_is_ours(
    backbone: Backbone, mode: str, interpolation: str, size: tuple[int, int]
) -> None:
    config = {"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.3, 0.4), "interpolation": interpolation}
    backbone.spec = backbone.spec.model_copy(update={**config, "resize": mode, "fill": 7, "image_size": size})
    resize, normalise = split_preprocess(backbone)
    for shape in ((61, 90), (90, 61), (20, 33), size):
        frames = np.random.default_rng(1).integers(0, 256, (2, *shape, 3), dtype=np.uint8)
        expected = theirs(frames, size=size, resize_mode=mode, fill_color=7, **config)
        assert torch.equal(normalise(torch.from_numpy(resize(frames))), expected)


def test_normalise_takes_any_leading_dimensions(backbone: Backbone) -> None:
    frames = torch.randint(0, 256, (2, 3, 48, 48, 3), dtype=torch.uint8)
    _, normalise = split_preprocess(backbone)
    assert torch.equal(normalise(frames)[1, 2], normalise(frames[1, 2]))


def test_fingerprint_follows_the_weights_in_memory(backbone: Backbone) -> None:
    before = fingerprint(backbone)
    assert before == fingerprint(backbone)
    with torch.no_grad():
        backbone.clip.visual.proj[0, 0] += 1e-6
    after = fingerprint(backbone)
    assert {key for key in before if before[key] != after[key]} == {"parameters_sha256"}


def test_digest_tells_shapes_and_names_apart(backbone: Backbone) -> None:
    twin = load_backbone("demo-clip", None)
    assert parameters_digest(twin) != parameters_digest(backbone), "two random initialisations"
    twin.clip.load_state_dict(backbone.clip.state_dict())
    assert parameters_digest(twin) == parameters_digest(backbone)


def test_fingerprint_holds_no_path(backbone: Backbone, tmp_path: Path) -> None:
    save_file(backbone.clip.state_dict(), tmp_path / "demo.safetensors")
    recorded = fingerprint(load_backbone("demo-clip", str(tmp_path / "demo.safetensors")))
    assert recorded["weights"] == "demo.safetensors" and str(tmp_path) not in json.dumps(recorded)
    assert recorded["weights_sha256"] == hashlib.sha256((tmp_path / "demo.safetensors").read_bytes()).hexdigest()
