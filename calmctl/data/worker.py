"""The inside of a decoding worker: one item in, one array or one reason out, until the input ends.

Started by `calmctl.data.workers` as a process of its own; imports no torch.

Parent to worker: pickles, of our own objects. Worker to parent: a JSON line and raw bytes only, so a decoder
that a malicious video has taken over can send wrong pixels and nothing else.
"""

from __future__ import annotations

import faulthandler
import json
import os
import pickle
import signal
import sys
from collections.abc import Callable
from typing import Any, BinaryIO

import numpy as np

from calmctl.errors import VideoError

# Longer than the parent's own limit, which is the one that counts: this ends an orphan.
_ORPHAN_GRACE_S = 30.0


def main() -> None:
    """Serve the parent on standard input and what was standard output."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
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
        # Where the parent has been killed nobody would end a hang: then the worker ends itself.
        faulthandler.dump_traceback_later(timeout_s + _ORPHAN_GRACE_S, exit=True, file=limit)
        array, header = _answer(job, item)
        _send(replies, header, array)
        faulthandler.cancel_dump_traceback_later()


def _answer(job: Callable[[Any], np.ndarray], item: Any) -> tuple[np.ndarray | None, dict[str, Any]]:
    try:
        array = np.ascontiguousarray(job(item))
    except VideoError as error:
        return None, {"reason": str(error)}
    except MemoryError:
        return None, {"reason": "not enough memory to decode it"}
    except Exception as error:  # whatever a decoder throws is this one clip's fault, never the run's
        return None, {"reason": f"{type(error).__name__}: {error}"}
    return array, {"shape": array.shape, "dtype": array.dtype.str}


def _send(replies: BinaryIO, header: dict[str, Any], array: np.ndarray | None = None) -> None:
    replies.write(json.dumps(header).encode() + b"\n")
    if array is not None:
        replies.write(array.reshape(-1).view(np.uint8).data)
    replies.flush()
