"""Decoding workers as users have them."""

import sys

import pytest

from calmctl.video import worker


@pytest.fixture(autouse=True)
def real_decoders(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "_PYTHON", (sys.executable, "-P"))
