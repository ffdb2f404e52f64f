"""Dot products with all frames, converted or where they lie, against float64."""

import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from calmctl.search import scorers as module
from calmctl.search.rows import MappedFrames, searched_rows
from calmctl.search.scorers import MOST_ERROR, HalfProducts, products, products_with, usable_numkong


@pytest.fixture
def numkong():
    """The package, where it is installed and adds up in float32; it is in this project's lock."""
    return usable_numkong() or pytest.skip("no numkong that adds up in float32 on this processor")


def mapped(store) -> MappedFrames:
    return MappedFrames(store, searched_rows(store))


def expected(features, directions) -> np.ndarray:
    frames = torch.stack(list(features.values())).half().double()
    return torch.einsum("md,nfd->mnf", directions.double(), frames).numpy()


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("many", [2, 40])
@pytest.mark.parametrize("block", [None, 3])
def test_every_way_gives_the_products(dtype, many, block, write_store, drawn):
    features = {key: value.half().float() for key, value in drawn(23).items()}
    frames = mapped(write_store(features, dtype=dtype))
    directions = torch.randn(many, 16)
    told = []
    found = products_with(frames, directions, block)(2, 21, told.append)
    assert found.shape == (many, 19, 4)
    assert found.numpy() == pytest.approx(expected(features, directions)[:, 2:21], abs=2e-5)
    assert told[-1] == 21 and told == sorted(told)


def test_where_they_lie_nothing_is_converted(write_store, drawn, monkeypatch, numkong):
    """Few directions and float16 features."""
    features = drawn(23)
    frames = mapped(write_store(features))
    monkeypatch.setattr(MappedFrames, "block", lambda *_: pytest.fail("frames were converted"))
    monkeypatch.setattr(module, "CLIPS_AT_ONCE", 5)
    directions = torch.randn(3, 16)
    found = products_with(frames, directions)(0, 23, lambda _: None)
    assert found.numpy() == pytest.approx(expected(features, directions), abs=2e-5)


def test_float16_rows_cost_no_digits_of_a_direction(numkong):
    """Directions whose numbers lie far apart, and far from what float16 can say, keep float32's accuracy."""
    torch.manual_seed(0)
    rows = torch.randn(200, 512).half()
    directions = torch.randn(4, 512) * torch.tensor([1e-9, 1.0, 1e3, 1e9])[:, None]
    directions[1] *= torch.logspace(-6, 3, 512)
    directions = torch.cat([directions, torch.zeros(1, 512)])
    found = HalfProducts(numkong, directions)([rows[:64], rows[64:70], rows[70:]]).double()
    truth = directions.double() @ rows.double().T
    size = directions.double().norm(dim=1)[:, None] * rows.double().norm(dim=1)
    assert ((found - truth).abs() <= MOST_ERROR * size).all()
    plain = products(rows.float()[:, None], directions)[..., 0].double()
    assert (found - truth).abs().max() < 4 * (plain - truth).abs().max()


class Rounding:
    """A numkong that adds up in float16, as instructions of some processors do."""

    def dots_pack(self, b):
        return b

    def dots_packed(self, a, b):
        return (torch.from_numpy(a) @ torch.from_numpy(b).T).float().numpy()


@pytest.mark.parametrize("package", [None, SimpleNamespace(), Rounding()], ids=["missing", "too old", "rounding"])
def test_without_a_sound_numkong_frames_are_converted(package, write_store, drawn, monkeypatch):
    features, directions = drawn(5), torch.randn(2, 16)
    frames = mapped(write_store(features))
    monkeypatch.setitem(sys.modules, "numkong", package)
    usable_numkong.cache_clear()
    try:
        assert usable_numkong() is None
        found = products_with(frames, directions)(0, 5, lambda _: None)
        assert found.numpy() == pytest.approx(expected(features, directions), abs=2e-5)
    finally:
        usable_numkong.cache_clear()
