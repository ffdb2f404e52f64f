"""The steps that several tests compare."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

from calmctl.words import Watcher


class Killed(BaseException):
    """Stands for a kill: nothing catches it."""


class Stop(Watcher):
    """A watcher that behaves like a kill at one step."""

    def __init__(self, at: int) -> None:
        self.at = at

    def step(self, done: int, total: int, loss: float) -> None:
        """Die after step `at`."""
        if done == self.at:
            raise Killed


@pytest.fixture(scope="session")
def killed() -> type[BaseException]:
    """What `stop_at` raises."""
    return Killed


@pytest.fixture(scope="session")
def stop_at() -> type[Watcher]:
    """A watcher that behaves like a kill at the step that it is made with."""
    return Stop


@pytest.fixture(scope="session")
def parity() -> ModuleType:
    """`parity.py`, which also runs as a program."""
    spec = importlib.util.spec_from_file_location("parity", Path(__file__).with_name("parity.py"))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["parity"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def alike(parity: ModuleType, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The same, with draws that do not depend on who makes them."""
    from calmctl.model.captioners import semsynan
    from calmctl.model.heads.tmass import NoiseLaw
    from calmctl.model.vae import Posterior
    from calmctl.parallel import World

    monkeypatch.setattr(World, "same_random", World.same_random)
    monkeypatch.setattr(Posterior, "sample", Posterior.sample)  # put back afterwards
    monkeypatch.setattr(NoiseLaw, "sample_like", NoiseLaw.sample_like)
    monkeypatch.setattr(semsynan, "tag_captions", semsynan.tag_captions)
    parity.be_deterministic()
    return parity
