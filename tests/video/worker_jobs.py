"""Jobs that behave as decoders do on a bad day. Imported by name in worker processes: see `test_workers`."""

import ctypes
import os
import signal
import sys
import time
from collections.abc import Iterator

import numpy as np

from calmctl.errors import VideoError


def misbehave(item: str) -> np.ndarray:
    """Do what the item says."""
    match item.split()[0]:
        case "crash":
            os.kill(os.getpid(), signal.SIGSEGV)
        case "read-nowhere":
            ctypes.string_at(0)  # a real segmentation fault inside C code
        case "hang":
            time.sleep(60)
        case "hang-in-c":
            ctypes.PyDLL(None).sleep(60)  # as a `PyDLL` it keeps the GIL
        case "exit":
            os._exit(3)
        case "reason":
            raise VideoError("no video stream")
        case "bug":
            raise KeyError("frame")
        case "memory":
            raise MemoryError
        case "noise":
            print("between the replies", flush=True)
            os.write(1, b'{"shape": [1], "dtype": "|u1"}\n')
            os.write(2, b"error spam" * 1000)
        case "empty":
            return np.empty((0, 3), dtype=np.float32)
    return np.frombuffer(item.encode(), dtype=np.uint8)


def pid(item: object) -> np.ndarray:
    """The worker's process id."""
    return np.array([os.getpid()])


def pid_to_file(item: str) -> np.ndarray:
    """Write the worker's process id to the file `item`."""
    with open(item, "w") as handle:
        handle.write(str(os.getpid()))
    return np.zeros(1)


class TorchSeen:
    """Stands for the reader of a training's clips: whether torch is there after all that it takes to read one."""

    shape = (1,)

    def __call__(self, clip: object) -> np.ndarray:
        """As a reader is called."""
        return np.array(["torch" in sys.modules])


def has_torch(item: object) -> np.ndarray:
    """Whether torch was imported by everything a decoding worker needs."""
    import calmctl.video.frames
    import calmctl.video.pixels  # noqa: F401

    return np.array(["torch" in sys.modules])


def large(item: int) -> np.ndarray:
    """More bytes than a pipe holds, in an order of its own."""
    return np.random.default_rng(item).integers(0, 256, (12, 100, 100, 3), dtype=np.uint8)[:, :, ::-1]


def die(item: tuple[str, str, int]) -> np.ndarray:
    """End this very process with a signal, as often as the item says; the file counts how often it was tried."""
    name, file, times = item
    with open(file, "ab") as handle:
        handle.write(b".")
        handle.flush()
        tries = handle.tell()
        if tries <= times:
            # Of what a worker ignores, only a fault in itself or the kernel can end it.
            os.kill(os.getpid(), signal.Signals[name])
            time.sleep(60)
    return np.array([tries])


def stream(item: tuple[int, str, int]) -> Iterator[np.ndarray | VideoError | None]:
    """Count to a number, dying at one of them once: the file tells whether that was."""
    count, file, deadly = item
    for number in range(count):
        yield None
        if number == deadly and not os.path.exists(file):
            with open(file, "w"):
                os.kill(os.getpid(), signal.SIGKILL)
        yield VideoError("three") if number == 3 else np.array([number])


def signals(item: object) -> np.ndarray:
    """Get what a scheduler sends to a job, and live; whether the session is its own."""
    for name in ("SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1", "SIGUSR2"):
        os.kill(os.getpid(), signal.Signals[name])
    return np.array([os.getsid(0) == os.getpid()])


def slow_pid_to_file(item: str) -> np.ndarray:
    """Write the worker's process id to the file `item` and hang, the interpreter's lock held."""
    pid_to_file(item)
    ctypes.PyDLL(None).sleep(60)
    return np.zeros(1)


def limits(item: object) -> np.ndarray:
    """What the kernel will take from this process: address space, and how soon it goes."""
    import resource
    from pathlib import Path

    return np.array(
        [resource.getrlimit(resource.RLIMIT_AS)[0], int(Path("/proc/self/oom_score_adj").read_text())], np.int64
    )
