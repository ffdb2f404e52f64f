"""The inside of a decoding worker: one item in, its arrays or a reason out, until the input ends.

Started by `calmctl.data.workers` as a process of its own; imports no torch.

Parent to worker: pickles, of our own objects. Worker to parent: JSON lines and raw bytes only, so a decoder
that a malicious video has taken over can send wrong pixels and nothing else. Every answer ends with a line that
says so; before it come the arrays (a line with shape and type, then the bytes), reasons, and signs of life.
"""

from __future__ import annotations

import ctypes
import faulthandler
import json
import os
import pickle
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from calmctl.errors import VideoError

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
        made = job(item)
        for result in [made] if isinstance(made, np.ndarray) else made:
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
