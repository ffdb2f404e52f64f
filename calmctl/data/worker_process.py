"""A decoding worker as its parent sees it: start it, ask it, end it, say why it died."""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import threading
from contextlib import suppress
from typing import IO, Any

import numpy as np

from calmctl.errors import RunFailed, VideoError

_START_LIMIT_S = 120.0
_HEADER_LIMIT = 1 << 20

# The worker imports from exactly where the parent does, and never from the folder it happens to stand in (-P).
_BOOT = "import json,sys; sys.path[:]=json.loads(sys.argv[1]); from calmctl.data.worker import main; main()"


class Worker:
    """One worker process, used by one thread. Raises `RunFailed` when it cannot be started."""

    def __init__(self, start: bytes) -> None:
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115  (lives as long as the process)
        # One thread a worker: parallel are the files. More would fight the encoder for the cores.
        environment = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-c", _BOOT, json.dumps([str(folder) for folder in sys.path])],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                env=environment,
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
        """Hand over the job; raises `RunFailed` with the worker's own words when it cannot begin."""
        with _Limit(self, _START_LIMIT_S):
            header = self._ask(self._start)
        if header is None or "ready" not in header:
            with suppress(subprocess.TimeoutExpired):  # it may be about to say why
                self._process.wait(timeout=1.0)
            self._process.kill()
            self._process.wait()
            self._errors.seek(0)
            words = self._errors.read().decode(errors="replace").strip().splitlines()
            self.finish()
            raise RunFailed(f"a decoding worker does not start: {words[-1] if words else 'no reason given'}")

    def run(self, item: Any, timeout_s: float) -> np.ndarray | VideoError:
        """The job's result for `item`; afterwards the worker has `ended` if the item brought it down."""
        with _Limit(self, timeout_s) as limit:
            header = self._ask(pickle.dumps(item))
            array = None if header is None else self._array(header)
        if limit.hit:
            self.finish()
            return VideoError(f"decoding took longer than {timeout_s:g} s")
        if header is not None and "reason" in header:
            return VideoError(str(header["reason"]))
        if array is None:
            return VideoError(_last_words(self.finish()))
        return array

    def _ask(self, message: bytes) -> dict[str, Any] | None:
        """Send a message and read the reply's header; None when the worker is gone or talks nonsense."""
        requests, replies = self._pipes()
        try:
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
            array = np.empty(header["shape"], dtype=np.dtype(header["dtype"]))
            view = array.reshape(-1).view(np.uint8).data
        except (KeyError, TypeError, ValueError, MemoryError):
            return None
        return array if self._pipes()[1].readinto(view) == len(view) else None  # type: ignore[attr-defined]

    def _pipes(self) -> tuple[IO[bytes], IO[bytes]]:
        assert self._process.stdin is not None and self._process.stdout is not None
        return self._process.stdin, self._process.stdout

    def finish(self) -> int:
        """End the process if it still runs, free its pipes, return its exit status."""
        # A crash closes the pipes a moment before the status is there: give it that moment first.
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=1.0)
        self._process.kill()
        status = self._process.wait()
        for handle in (*self._pipes(), self._errors):
            with suppress(OSError):
                handle.close()
        return status


class _Limit:
    """Kills the worker when the block takes longer than `limit_s`; `hit` tells whether it did."""

    def __init__(self, worker: Worker, limit_s: float) -> None:
        self.hit = False
        self._worker = worker
        self._timer = threading.Timer(limit_s, self._expire)
        self._timer.daemon = True

    def _expire(self) -> None:
        self.hit = True
        self._worker.kill()

    def __enter__(self) -> _Limit:
        self._timer.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._timer.cancel()
        self._timer.join()  # after this `hit` is final


def _last_words(status: int) -> str:
    """Why a worker died, from its exit status."""
    if status >= 0:
        return f"the decoder ended with exit code {status}"
    name = signal.Signals(-status).name
    memory = " (often: out of memory)" if name == "SIGKILL" else ""
    return f"the decoder crashed ({name}){memory}"
