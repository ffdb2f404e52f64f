"""A decoding worker as its parent sees it: start it, ask it, end it, say why it died."""

from __future__ import annotations

import ctypes
import faulthandler
import json
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, BinaryIO

import numpy as np

from calmctl.errors import DecodingStopped, RunFailed, VideoError

_START_LIMIT_S = 120.0
_HEADER_LIMIT = 1 << 20
_TICK_S = 1.0
# What a process does to itself. Any other signal came from outside, and says nothing of the file.
_OWN_FAULTS = {"SIGSEGV", "SIGBUS", "SIGFPE", "SIGILL", "SIGABRT", "SIGSYS", "SIGTRAP"}

# The worker imports from exactly where the parent does, and never from the folder it happens to stand in (-P).
_PYTHON = (sys.executable, "-P")
_BOOT = "import json,sys; sys.path[:]=json.loads(sys.argv[1]); from calmctl.video.worker import main; main()"


class WorkerDied(Exception):
    """The process is gone, and not by our hand.

    Attributes:
        reason: What a report says, should the clip be to blame.
    """

    def __init__(self, status: int) -> None:
        super().__init__(status)
        if status >= 0:
            self.reason = VideoError(f"the decoder ended with exit code {status}")
            return
        name = signal.Signals(-status).name
        if name in _OWN_FAULTS:
            self.reason = VideoError(f"the decoder crashed ({name})")
        else:
            memory = ", often: out of memory" if name == "SIGKILL" else ""
            self.reason = DecodingStopped(f"the decoder was killed twice ({name}{memory})", limit_s=0.0)


class Worker:
    """One worker process, used by one thread. Raises `RunFailed` when it cannot be started."""

    def __init__(self, start: bytes) -> None:
        # One thread a worker: parallel are the files. More would fight the encoder for the cores.
        environment = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        paths = json.dumps([str(folder) for folder in sys.path])
        try:
            self._errors = tempfile.TemporaryFile()  # noqa: SIM115  (lives as long as the process)
            with _parents_signals_held():
                self._process = subprocess.Popen(
                    [*_PYTHON, "-c", _BOOT, paths, str(os.getpid())],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=self._errors,
                    env=environment,
                    # Out of reach of what is sent to the parent's group: it must end the run, not fault a clip.
                    start_new_session=True,
                    creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),  # the same on Windows
                )
        except OSError as error:
            raise RunFailed(f"cannot start a decoding worker: {error.strerror or error}") from error
        self._start = start

    @property
    def ended(self) -> bool:
        """Whether the process is gone."""
        return self._process.poll() is not None

    def kill(self) -> None:
        """End the process now; safe from any thread."""
        self._process.kill()

    def wait_until_ready(self) -> None:
        """Hand over the job.

        Raises `WorkerDied` where a signal ended the process before it was ready, and `RunFailed`, with the
        worker's own words, where it cannot begin.
        """
        with _Limit(self, _START_LIMIT_S) as limit:
            header = self._ask(self._start)
        if header is None or "ready" not in header:
            with suppress(subprocess.TimeoutExpired):  # it may be about to say why
                self._process.wait(timeout=1.0)
            self._process.kill()
            status = self._process.wait()
            self._errors.seek(0)
            complaints = self._errors.read().decode(errors="replace").strip().splitlines()
            self.finish()
            if status < 0 and not complaints and not limit.hit:
                raise WorkerDied(status)
            late = f"not ready after {_START_LIMIT_S:g} s" if limit.hit else "no reason given"
            raise RunFailed(f"a decoding worker does not start: {complaints[-1] if complaints else late}")

    def run(self, item: Any, timeout_s: float) -> Iterator[np.ndarray | VideoError]:
        """What the job makes of `item`: arrays, or reasons why there are none.

        Raises `WorkerDied` where the item, or somebody else, brings the process down. No two signs of life may be
        more than `timeout_s` apart.
        """
        message: bytes | None = pickle.dumps(item)
        while True:
            with _Limit(self, timeout_s) as limit:
                header = self._ask(message)
                array = None if header is None else self._array(header)
            message = None
            if array is not None:  # also where it came just as its time was up
                yield array
            elif header is not None and "end" in header:
                return
            elif header is not None and "reason" in header:
                yield VideoError(str(header["reason"]))
            elif limit.hit:
                self.finish()
                yield DecodingStopped(f"decoding took longer than {timeout_s:g} s", limit_s=timeout_s)
                return
            elif header is None or "going" not in header:
                try:  # a crash closes the pipes a moment before the status is there: give it that moment
                    status = self._process.wait(timeout=1.0)
                except subprocess.TimeoutExpired:
                    self.finish()
                    yield VideoError("the decoder answered with what is no frame")
                    return
                self.finish()
                raise WorkerDied(status)

    def _ask(self, message: bytes | None) -> dict[str, Any] | None:
        """Send a message, if any, and read the next header; None when the worker is gone or talks nonsense."""
        requests, replies = self._pipes()
        try:
            if message is not None:
                requests.write(message)
                requests.flush()
            header = json.loads(replies.readline(_HEADER_LIMIT))
        except (OSError, ValueError, RecursionError):
            return None
        return header if isinstance(header, dict) else None

    def _array(self, header: dict[str, Any]) -> np.ndarray | None:
        if "shape" not in header:
            return None
        try:
            dtype = np.dtype(header["dtype"])
            count = 1
            for length in header["shape"]:
                count *= int(length)
            if count < 0 or count * dtype.itemsize > MEMORY_BYTES:  # more than it can have itself
                return None
            array = np.empty(header["shape"], dtype=dtype)
            view = array.reshape(-1).view(np.uint8).data
        except (KeyError, TypeError, ValueError, MemoryError):
            return None
        return array if self._pipes()[1].readinto(view) == len(view) else None  # type: ignore[attr-defined]

    def _pipes(self) -> tuple[IO[bytes], IO[bytes]]:
        assert self._process.stdin is not None and self._process.stdout is not None
        return self._process.stdin, self._process.stdout

    def finish(self) -> None:
        """End the process if it still runs and free its pipes."""
        self._process.kill()
        self._process.wait()
        for handle in (*self._pipes(), self._errors):
            with suppress(OSError):
                handle.close()


class _Limit:
    """Kills the worker when the block takes longer than `limit_s`; `hit` tells whether it did.

    Counted in ticks: a process that was stopped (Ctrl-Z, a scheduler that suspends the job) has not used its time.
    """

    def __init__(self, worker: Worker, limit_s: float) -> None:
        self.hit = False
        self._worker = worker
        self._limit_s = limit_s
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def _watch(self) -> None:
        spent_s, before_s = 0.0, time.monotonic()
        while spent_s < self._limit_s:
            if self._over.wait(min(self._limit_s - spent_s, _TICK_S)):
                return
            now_s = time.monotonic()
            spent_s += min(now_s - before_s, 2 * _TICK_S)
            before_s = now_s
        self.hit = True
        self._worker.kill()

    def __enter__(self) -> _Limit:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self._thread.join()  # after this `hit` is final


@contextmanager
def _parents_signals_held() -> Iterator[None]:
    """Hold back the parent's signals in this thread: a process that it starts begins, and stays, without them.

    Python takes a while to start; a worker that ignores them from its first line on can still be ended before that.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    former = signal.pthread_sigmask(signal.SIG_BLOCK, PARENTS_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, former)


# The inside of a decoding worker: one item in, its arrays or a reason out, until the input ends.
#
# Started by `calmctl.video.pool` as a process of its own; imports no torch.
#
# Parent to worker: pickles, of our own objects. Worker to parent: JSON lines and raw bytes only, so a decoder
# that a malicious video has taken over can send wrong pixels and nothing else. Every answer ends with a line that
# says so; before it come the arrays (a line with shape and type, then the bytes), reasons, and signs of life.


MEMORY_BYTES = 4 << 30
"""Address space of a worker, where the system can limit it (our choice): a file may claim what it likes."""

PARENTS_SIGNALS = tuple(
    getattr(signal, name)
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT", "SIGUSR1", "SIGUSR2")
    if hasattr(signal, name)
)
"""What a terminal or a scheduler sends to all processes of a job: the parent answers it, for its workers too."""

# Longer than the parent's own limit, which is the one that counts: this ends an orphan.
_ORPHAN_GRACE_S = 30.0
_PR_SET_PDEATHSIG = 1

Transform = Callable[[np.ndarray], np.ndarray]
"""What is done to some frames of a clip, uint8 [n, H, W, 3] -> [n, ...] of one shape."""

Result = np.ndarray | VideoError | None
"""An array, the reason why there is none, or None: nothing yet, but the decoder gets on."""


def main() -> None:
    """Serve the parent on standard input and what was standard output."""
    for number in PARENTS_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    _end_with_parent(int(sys.argv[2]))
    _bound_memory()
    if hasattr(os, "nice"):
        # The encoder's threads wait for one another at every layer: a worker that takes the core of one of
        # them stalls all. Decoding fills the gaps instead.
        os.nice(5)
    replies = os.fdopen(os.dup(1), "wb")
    # Decoders print what they like; none of it may end up between our replies or on the user's terminal.
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 1)
    requests = sys.stdin.buffer
    job, timeout_s = pickle.load(requests)
    _send(replies, {"ready": True})
    os.dup2(quiet, 2)  # only now: why a worker cannot start must reach the parent
    limit = open(os.devnull, "w")  # noqa: SIM115  (faulthandler needs it for as long as the process lives)
    while True:
        try:
            item = pickle.load(requests)
        except EOFError:
            return
        results = _results(job, item)
        while True:
            # Where the parent has been killed nobody would end a hang: then the worker ends itself.
            faulthandler.dump_traceback_later(timeout_s + _ORPHAN_GRACE_S, exit=True, file=limit)
            header, array = next(results, ({"end": True}, None))
            faulthandler.cancel_dump_traceback_later()  # sending may wait for the parent as long as it likes
            _send(replies, header, array)
            if "end" in header:
                break


def _results(job: Callable[[Any], Any], item: Any) -> Iterator[tuple[dict[str, Any], np.ndarray | None]]:
    try:
        output = job(item)
        for result in [output] if isinstance(output, np.ndarray) else output:
            if result is None:
                yield {"going": True}, None
            elif isinstance(result, VideoError):
                yield {"reason": str(result)}, None
            else:
                array = np.ascontiguousarray(result)
                yield {"shape": array.shape, "dtype": array.dtype.str}, array
    except VideoError as error:
        yield {"reason": str(error)}, None
    except MemoryError:
        yield {"reason": f"decoding what it claims takes more than {in_gib(MEMORY_BYTES)} of memory"}, None
    except Exception as error:  # whatever a decoder throws is this one clip's fault, never the run's
        yield {"reason": f"{type(error).__name__}: {error}"}, None


def in_gib(size: int) -> str:
    """A number of bytes for people: "4 GiB"."""
    return f"{size / (1 << 30):.3g} GiB"


def _send(replies: BinaryIO, header: dict[str, Any], array: np.ndarray | None = None) -> None:
    replies.write(json.dumps(header).encode() + b"\n")
    if array is not None:
        replies.write(array.reshape(-1).view(np.uint8).data)
    replies.flush()


def _end_with_parent(parent: int) -> None:
    """Have the kernel kill this process with its parent, even in a decoder that hangs; elsewhere its pipe ends it."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:  # it went before the kernel knew
            sys.exit("its parent is gone")


def _bound_memory() -> None:
    """Limit what a file's claims may take, and be the first to go where the machine's memory ends all the same."""
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")
    try:
        import resource
    except ImportError:  # Windows has no such limits
        return
    with suppress(OSError, ValueError):  # macOS refuses this one
        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        most = MEMORY_BYTES if hard == resource.RLIM_INFINITY else min(MEMORY_BYTES, hard)
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
