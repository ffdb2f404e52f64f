"""Decoding in isolated processes: a crash or a hang costs one clip, never the run.

Each worker is a fresh Python process without torch. It is not a `multiprocessing` child, so a script that
uses this needs no `if __name__ == "__main__"`, and nothing is forked beside torch's threads.
"""

from __future__ import annotations

import os
import pickle
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from itertools import islice
from typing import Any, TypeVar

import numpy as np

from calmctl.data.samples import Clip
from calmctl.data.worker_process import Worker
from calmctl.errors import RunFailed, VideoError

Item = TypeVar("Item")
Job = Callable[[Item], np.ndarray]
Resize = Callable[[np.ndarray], np.ndarray]

TIMEOUT_S = 120.0
"""Time limit for one clip unless told otherwise (our choice)."""


def decode_clips(
    clips: Iterable[Clip],
    n_frames: int,
    *,
    workers: int | None = None,
    timeout_s: float = TIMEOUT_S,
    transform: Resize | None = None,
    ahead: int | None = None,
) -> Generator[tuple[Clip, np.ndarray | VideoError], None, None]:
    """Decode clips in worker processes, in order.

    Args:
        clips: The clips.
        n_frames: Frames a clip, F: the centres of F equal intervals.
        workers: Processes; None for one a core.
        timeout_s: Time limit a clip in seconds.
        transform: Picklable and importable by name, applied in the worker to uint8 [F, H, W, 3], for
            example `calmctl.data.pixels.FrameResize`.
        ahead: Clips that may be decoded before they are asked for; None for four a worker.

    Yields:
        Each clip with its frames uint8 [F, H, W, 3] (or what `transform` made of them), or with the
        `VideoError` that says why it has none: unreadable, crashed the decoder, or took too long.
    """
    job = partial(_decode, n_frames=n_frames, transform=transform)
    yield from run_isolated(job, clips, workers=workers, timeout_s=timeout_s, ahead=ahead)


def _decode(clip: Clip, *, n_frames: int, transform: Resize | None) -> np.ndarray:
    from calmctl.data.decode import read_frames

    frames = read_frames(clip, n_frames)
    return frames if transform is None else transform(frames)


def run_isolated(
    job: Job[Item],
    items: Iterable[Item],
    *,
    workers: int | None = None,
    timeout_s: float = TIMEOUT_S,
    ahead: int | None = None,
) -> Generator[tuple[Item, np.ndarray | VideoError], None, None]:
    """Run `job` on every item in worker processes; yields (item, array or reason) in order.

    Whatever an item does to its worker (an exception, a crash, more than `timeout_s` seconds) becomes a
    `VideoError` in its place, and the worker is started anew. Closing the generator ends all workers.

    Raises:
        RunFailed: A worker process cannot be started at all.
    """
    count = workers or available_cores()
    pool = _Pool(job, timeout_s)
    window = count + (4 * count if ahead is None else ahead)
    remaining = iter(items)
    waiting: deque[tuple[Item, Future[np.ndarray | VideoError]]] = deque()
    threads = ThreadPoolExecutor(count, thread_name_prefix="decode")
    try:
        while True:
            for item in islice(remaining, window - len(waiting)):
                waiting.append((item, threads.submit(pool.run, item)))
            if not waiting:
                return
            item, future = waiting.popleft()
            yield item, future.result()
    finally:
        pool.stop()
        threads.shutdown(cancel_futures=True)
        pool.release()


def available_cores() -> int:
    """Cores this process may use, which a scheduler may have limited, or which torchrun's processes share."""
    cores = os.cpu_count() or 1
    with suppress(AttributeError):
        cores = len(os.sched_getaffinity(0))
    return max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


class _Pool:
    """One worker for each thread that asks."""

    def __init__(self, job: Callable[[Any], np.ndarray], timeout_s: float) -> None:
        self._start = pickle.dumps((job, timeout_s))
        self._timeout_s = timeout_s
        self._own = threading.local()
        self._lock = threading.Lock()
        self._alive: set[Worker] = set()
        self._closed = False

    def run(self, item: Any) -> np.ndarray | VideoError:
        worker: Worker | None = getattr(self._own, "worker", None)
        if worker is None or worker.ended:
            worker = self._own.worker = self._new(worker)
        return worker.run(item, self._timeout_s)

    def _new(self, former: Worker | None) -> Worker:
        with self._lock:
            if self._closed:  # a thread that was between two items when the consumer went away
                raise RunFailed("decoding was stopped")
            if former is not None:
                self._alive.discard(former)
            worker = Worker(self._start)
            self._alive.add(worker)
        worker.wait_until_ready()
        return worker

    def stop(self) -> None:
        """End all workers, so that no thread waits for one any more."""
        with self._lock:
            self._closed = True
            for worker in self._alive:
                worker.kill()

    def release(self) -> None:
        """Free what the ended workers held."""
        for worker in self._alive:
            worker.finish()
