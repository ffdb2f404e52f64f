"""Several runs at once, each in a process of its own: none of them outlives this one, however it ends."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

from calmctl.errors import RunFailed

_SAVE_S = 60.0
"""How long a training that is ended may take to save where it is (our choice)."""

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


def at_once(
    items: Iterable[_Item],
    do: Callable[[_Item], _Result],
    *,
    processes: int,
    begin: Callable[..., None] | None = None,
    arguments: tuple[Any, ...] = (),
    may_begin: Callable[[_Item], bool] = lambda _: True,
) -> Iterator[tuple[_Item, _Result]]:
    """Do every item in one of several processes.

    No process outlives this one: those that are at work end with the first fault, with a signal, and where this
    process was killed.

    Args:
        items: What is to be done. They are begun in their order, as far as `may_begin` says so.
        do: A function of a module, or a partial one: it is sent to the processes.
        processes: Items at once.
        begin: What a process does first, with `arguments`.
        arguments: Of `begin`.
        may_begin: Whether an item may begin now. What may not is asked again when another one has ended; what never
            may is left out.

    Yields:
        An item and its result, in the order in which they end.

    Raises:
        RunFailed: A process was killed.
        Exception: Whatever `do` raises.
    """
    waiting = list(items)
    context = multiprocessing.get_context("spawn")  # a forked process could not use the GPU
    # What it begins with may take seconds to import, and is unpacked when the process already watches over its parent.
    packed = pickle.dumps((begin, arguments))
    with _without_interrupts():  # a process that looks after the pool's locks is started here
        pool = ProcessPoolExecutor(processes, context, _begin, (packed,))
    with pool:
        running: dict[Future[_Result], _Item] = {}
        try:
            while True:
                for item in [*waiting]:
                    if len(running) < processes and may_begin(item):
                        with _without_interrupts():
                            running[pool.submit(do, item)] = item
                        waiting.remove(item)
                if not running:
                    return
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    yield running.pop(future), future.result()
        except BrokenProcessPool:
            raise RunFailed(
                "a process that was at work was killed (by the system, where memory ran out); "
                "give the same command again, with fewer at once: it goes on"
            ) from None
        finally:
            # Whoever leaves early would otherwise wait for what is being done to its end. An item that is still waiting
            # may have been begun: an interrupt can come between the two.
            if running or waiting:
                pool.shutdown(wait=False, cancel_futures=True)
                _end_all()


def _end_all() -> None:
    """End the processes that are at work, and wait until they have ended: a training saves where it is first."""
    children, until = multiprocessing.active_children(), time.monotonic() + _SAVE_S
    for child in children:
        child.terminate()
    for child in children:
        while child.is_alive() and (left := until - time.monotonic()) > 0:
            # Whoever is interrupted again is leaving already. Python would take the pool's thread for ended where an
            # interrupt meets the wait for it, and then wait for ever for processes that nobody tells to end.
            with suppress(KeyboardInterrupt):
                child.join(left)
        child.kill()


@contextmanager
def _without_interrupts() -> Iterator[None]:
    """Processes that are started in the block never hear of Ctrl-C or a closed terminal: they end with this one."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    former = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGHUP})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, former)


def _begin(packed: bytes) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    begin: Callable[..., None] | None
    begin, arguments = pickle.loads(packed)
    if begin is not None:
        begin(*arguments)


def _end_with_parent() -> None:
    """A process of a pool waits for work for ever, also where nobody is left to give it any."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
