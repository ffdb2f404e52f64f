"""Decoding in isolated processes: a crash or a hang costs one clip, never the run.

Each worker is a fresh Python process without torch. It is not a `multiprocessing` child, so a script that
uses this needs no `if __name__ == "__main__"`, and nothing is forked beside torch's threads.
"""

from __future__ import annotations

import os
import pickle
import queue
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, suppress
from functools import partial
from itertools import islice
from typing import Any, TypeVar

import numpy as np

from calmctl.errors import BadInput, RunFailed, VideoError
from calmctl.samples import Clip
from calmctl.video.compressed import CompressedReader
from calmctl.video.pixels import FrameReader
from calmctl.video.worker import Result, Transform, Worker, WorkerDied

Item = TypeVar("Item")
Job = Callable[[Item], np.ndarray | Iterator[Result]]

TIMEOUT_S = 120.0
"""Time limit for one clip unless told otherwise (our choice)."""
LONGEST_TIMEOUT_S = 86_400.0
"""The longest limit: a day."""

# Results of one item that wait for their consumer; a worker that is further ahead waits too.
_HELD = 8
# A process that dies twice at the same place of the same item: the item is to blame.
_MOST_DEATHS = 2


def decode_clips(
    clips: Iterable[Clip],
    n_frames: int,
    *,
    workers: int | None = None,
    timeout_s: float = TIMEOUT_S,
    transform: Transform | None = None,
    ahead: int | None = None,
) -> Generator[tuple[Clip, np.ndarray | VideoError], None, None]:
    """Decode clips in worker processes, in order.

    Windows of one file that follow one another, and cover much of it, are decoded in one pass over the file.

    Args:
        clips: The clips.
        n_frames: Frames per clip, F: the centres of F equal intervals.
        workers: Processes; None for one per core.
        timeout_s: Time limit per clip in seconds.
        transform: Picklable and importable by name, applied in the worker to uint8 [n, H, W, 3], some of a clip's
            frames at a time, and giving [n, ...] of one shape: for example `calmctl.video.pixels.FrameResize`.
        ahead: Clips (or files, of windows) that may be decoded before they are asked for; None for four per worker.

    Yields:
        Each clip with its frames uint8 [F, H, W, 3] (or what `transform` made of them), or with the
        `VideoError` that says why it has none: unreadable, crashed the decoder, or took too long.
    """
    job = partial(_decode, n_frames=n_frames, transform=transform)
    with closing(run_answers(job, _passes(clips), workers, timeout_s, ahead)) as decoded:
        for passed, results in decoded:
            last = VideoError("the decoder gave fewer clips than there are")
            for clip in passed:
                result = next(results, last)
                if isinstance(result, VideoError):
                    last = result  # where a pass over a file ends early, the reason is that of all that remains
                yield clip, result


def read_clips(
    clips: Iterable[Clip],
    reader: FrameReader | CompressedReader,
    *,
    workers: int | None = None,
    timeout_s: float = TIMEOUT_S,
) -> Generator[tuple[Clip, np.ndarray | VideoError], None, None]:
    """What `reader` reads of each clip, or the reason why there is nothing, as `decode_clips` does it."""
    if isinstance(reader, FrameReader):
        return decode_clips(clips, reader.n_frames, workers=workers, timeout_s=timeout_s, transform=reader.transform)
    return run_isolated(reader, clips, workers=workers, timeout_s=timeout_s)


def read_with(item: tuple[Clip, FrameReader | CompressedReader]) -> np.ndarray:
    """A clip as a reader of its own reads it, augmented for one pair of an epoch.

    A worker imports the module that its job stands in: this one needs no torch, and callers do.
    """
    clip, reader = item
    return reader(clip)


def _decode(clips: tuple[Clip, ...], *, n_frames: int, transform: Transform | None) -> np.ndarray | Iterator[Result]:
    from calmctl.video.frames import read_frames, read_windows

    if len(clips) == 1:
        return read_frames(clips[0], n_frames, transform)
    return read_windows(clips, n_frames, transform)


def _passes(clips: Iterable[Clip]) -> Iterator[tuple[Clip, ...]]:
    """The clips, those together that one pass over their file shall decode."""
    run: list[Clip] = []
    for clip in clips:
        follows = run and run[-1].path == clip.path and clip.end_s is not None and run[-1].start_s <= clip.start_s
        if not follows:
            yield from _divided(run)
            run = []
        run.append(clip)
        if clip.end_s is None:
            yield (run.pop(),)
    yield from _divided(run)


def _divided(run: Sequence[Clip]) -> Iterator[tuple[Clip, ...]]:
    """One pass where windows cover a quarter of what it has to decode (our choice); else each is sought by itself."""
    covered_s = sum(clip.end_s - clip.start_s for clip in run if clip.end_s is not None)
    if len(run) > 1 and covered_s >= max(clip.end_s or 0.0 for clip in run) / 4:
        yield tuple(run)
    else:
        yield from ((clip,) for clip in run)


def run_isolated(
    job: Job[Item],
    items: Iterable[Item],
    *,
    workers: int | None = None,
    timeout_s: float = TIMEOUT_S,
    ahead: int | None = None,
) -> Generator[tuple[Item, np.ndarray | VideoError], None, None]:
    """Run `job` on every item in worker processes; yields (item, array or reason) in order.

    A job returns an array, or an iterator of arrays, which come one by one. Whatever an item does to its worker (an
    exception, a crash, more than `timeout_s` seconds) becomes a `VideoError` in its place, and the worker is started
    anew. A worker that dies once is given its item again: it may have been the machine. Closing the generator ends
    all workers.

    Raises:
        RunFailed: A worker process cannot be started at all.
    """
    with closing(run_answers(job, items, workers, timeout_s, ahead)) as answered:
        for item, results in answered:
            for result in results:
                yield item, result


def run_answers(
    job: Job[Item], items: Iterable[Item], workers: int | None, timeout_s: float, ahead: int | None
) -> Generator[tuple[Item, Iterator[np.ndarray | VideoError]], None, None]:
    """Every item in order with its results, as they come; what is left of them when the next is asked for is lost."""
    if not 0 < timeout_s <= LONGEST_TIMEOUT_S:
        raise BadInput(f"a time limit of {timeout_s:g} s: give seconds, at most {LONGEST_TIMEOUT_S:g} (a day)")
    count = workers or available_cores()
    pool = _Pool(job, timeout_s)
    window = count + (4 * count if ahead is None else ahead)
    remaining = iter(items)
    waiting: deque[tuple[Item, _Answer]] = deque()
    threads = ThreadPoolExecutor(count, thread_name_prefix="decode")
    try:
        while True:
            for item in islice(remaining, window - len(waiting)):
                answer = _Answer()
                answer.future = threads.submit(pool.answer, item, answer)
                waiting.append((item, answer))
            if not waiting:
                return
            item, answer = waiting.popleft()
            results = answer.results()
            yield item, results
            for _ in results:
                pass
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


class _Answer:
    """Results of one item on their way from the thread that reads them to the consumer; None is their end."""

    future: Future[None]

    def __init__(self) -> None:
        self.queue: queue.Queue[np.ndarray | VideoError | None] = queue.Queue(_HELD)

    def results(self) -> Iterator[np.ndarray | VideoError]:
        while (result := self.queue.get()) is not None:
            yield result
        self.future.result()  # raises what ended the thread's work


class _Pool:
    """One worker for each thread that asks."""

    def __init__(self, job: Callable[[Any], Any], timeout_s: float) -> None:
        self._start = pickle.dumps((job, timeout_s))
        self._timeout_s = timeout_s
        self._own = threading.local()
        self._lock = threading.Lock()
        self._alive: set[Worker] = set()
        self._closed = False

    def answer(self, item: Any, answer: _Answer) -> None:
        """Put all results of `item` into `answer`, waiting where the consumer has enough of them."""
        try:
            for result in self._results(item):
                self._put(answer, result)
        finally:
            self._put(answer, None)

    def _put(self, answer: _Answer, result: np.ndarray | VideoError | None) -> None:
        while not self._closed:
            with suppress(queue.Full):
                answer.queue.put(result, timeout=0.1)
                return

    def _results(self, item: Any) -> Iterator[np.ndarray | VideoError]:
        delivered = deaths = 0
        while True:
            try:
                for number, result in enumerate(self._worker().run(item, self._timeout_s)):
                    if number == delivered:  # after a death the worker begins again: the first ones are there
                        delivered, deaths = delivered + 1, 0
                        yield result
                return
            except WorkerDied as death:
                deaths += 1
                if deaths == _MOST_DEATHS:
                    yield death.reason
                    return

    def _worker(self) -> Worker:
        """This thread's worker, started where there is none or it is gone; twice where the first start is killed."""
        worker: Worker | None = getattr(self._own, "worker", None)
        if worker is None or worker.ended:
            try:
                worker = self._new(worker)
            except WorkerDied:
                try:
                    worker = self._new(None)
                except WorkerDied as death:
                    raise RunFailed(f"a decoding worker does not start: {death.reason}") from None
            self._own.worker = worker
        return worker

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
