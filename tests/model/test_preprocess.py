"""The two halves of a backbone's transform, and what a fingerprint tells apart."""

from itertools import product

import numpy as np
import pytest
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2

from calmctl.model.backbone import Backbone
from calmctl.model.preprocess import fingerprint, parameters_digest, split_preprocess
from calmctl.model.weights import load_backbone


@pytest.fixture
def backbone() -> Backbone:
    return load_backbone("demo-clip", None)


@pytest.mark.parametrize(("height", "width"), [(48, 48), (96, 128), (131, 77), (30, 40), (49, 500)])
def test_halves_equal_the_whole_exactly(backbone: Backbone, height: int, width: int) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (3, height, width, 3), dtype=np.uint8)
    resize, normalise = split_preprocess(backbone)
    halves = normalise(torch.from_numpy(resize(frames)))
    assert halves.is_contiguous()
    assert torch.equal(halves, backbone.preprocess(frames))


@pytest.mark.parametrize(
    ("mode", "interpolation"), list(product(("shortest", "longest", "squash"), ("bicubic", "bilinear")))
)
def test_every_transform_of_open_clip_is_understood(backbone: Backbone, mode: str, interpolation: str) -> None:
    config = PreprocessCfg(
        size=48, resize_mode=mode, interpolation=interpolation, fill_color=7, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4)
    )
    other = Backbone(backbone.clip, backbone._tokenizer, image_transform_v2(config, is_train=False), backbone.identity)
    frames = np.random.default_rng(1).integers(0, 256, (2, 61, 90, 3), dtype=np.uint8)
    resize, normalise = split_preprocess(other)
    assert (resize.mode, resize.interpolation) == (mode, interpolation)
    assert torch.equal(normalise(torch.from_numpy(resize(frames))), other.preprocess(frames))
    assert fingerprint(other) != fingerprint(backbone)


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


def test_fingerprint_holds_no_path(backbone: Backbone) -> None:
    backbone.identity["weights"] = "/somewhere/on/this/machine/demo.safetensors"
    assert fingerprint(backbone)["weights"] == "demo.safetensors"
