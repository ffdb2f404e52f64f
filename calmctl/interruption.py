"""Ctrl-C, and the SIGTERM by which a scheduler takes a machine back: either ends in one sentence."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from calmctl.errors import RunFailed


@contextmanager
def interruptible(way_on: str) -> Iterator[None]:
    """Turn SIGINT and SIGTERM in the block into `RunFailed`: "interrupted; " and `way_on`.

    Outside the main thread, where signals are not ours to handle, only SIGINT's own exception is turned.
    """
    try:
        former = signal.signal(signal.SIGTERM, _raise)
    except ValueError:
        former = None
    try:
        yield
    except KeyboardInterrupt:
        raise RunFailed(f"interrupted; {way_on}") from None
    finally:
        if former is not None:
            signal.signal(signal.SIGTERM, former)


def _raise(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
