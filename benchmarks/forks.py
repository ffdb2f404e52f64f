"""Commands in forks of one warm process: begun in milliseconds, killed where one likes, and what they leave is watched.

A fork has all libraries loaded, so a command costs what it does and not the ten seconds of its imports. An audit hook
of Python's counts the operations on files, so a fork can die before exactly the n-th of them; a clock kills at any
other moment. All that a fork starts is in its process group or carries a mark in its environment, by which it is found
in /proc when the fork is dead.
"""

from __future__ import annotations

import fcntl
import gc
import importlib
import os
import select
import signal
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path

OPERATIONS = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.chmod", "os.link")
"""Audit events that change what lies on a disk; "open" only where it is for writing."""
MARK = "CALMCTL_BENCHMARK_FORK"
GRACE_S = 5.0
"""How long what a killed process started may outlive it (our choice)."""

Tell = Callable[[str], None]
Job = Callable[[Tell], None]

_numbers = count(1)
_alone = ("ray",)  # starts threads when it is imported, which a fork would not have


@dataclass(frozen=True, slots=True)
class Ended:
    """A fork that has ended.

    Attributes:
        status: Its exit code, or minus the signal that killed it.
        told: What its job told, in order.
        operations: What it did to files in the folder that was watched.
        seconds: From its beginning to its end.
        said: What it printed on standard error.
        cpu_s: Seconds of processor, with those of the children that it waited for.
    """

    status: int
    told: tuple[str, ...]
    operations: tuple[str, ...]
    seconds: float
    said: str
    cpu_s: float


class Fork:
    """A job in a fork of this process."""

    def __init__(
        self, job: Job, watched: Path, out: Path, *, die_at: int | None = None, delay_s: float = 0.0, label: str = ""
    ) -> None:
        """Begin `job` in a fork.

        Args:
            job: What is done; what it raises is printed, and the fork ends with 1.
            watched: The folder below which operations are counted.
            out: Where standard output, standard error and what is told go: files beginning with this path.
            die_at: The fork kills itself before its `die_at`-th operation, counted from 1.
            delay_s: It begins so much later.
            label: Part of the names of these files.
        """
        self.mark = f"{os.getpid()}-{next(_numbers)}"
        self._files = [out.with_name(f"{out.name}{label}.{end}") for end in ("out", "err", "told")]
        for file in self._files:
            file.write_bytes(b"")
        self._begun = time.perf_counter()
        self.pid = os.fork()
        if self.pid == 0:
            self._run(job, watched, die_at, delay_s)
        self._ended = os.pidfd_open(self.pid)

    def _run(self, job: Job, watched: Path, die_at: int | None, delay_s: float) -> None:
        status = 1
        try:
            os.setpgid(0, 0)
            os.environ[MARK] = self.mark
            for descriptor, file in ((1, self._files[0]), (2, self._files[1])):
                os.dup2(os.open(file, os.O_WRONLY | os.O_APPEND), descriptor)
            told = os.open(self._files[2], os.O_WRONLY | os.O_APPEND)
            time.sleep(delay_s)
            _count_operations(watched, lambda text: os.write(told, f"! {text}\n".encode()), die_at)
            job(lambda text: os.write(told, f"{text}\n".encode()) and None)
            status = 0
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else 1
        except BaseException:
            traceback.print_exc()
        finally:
            with suppress(OSError, ValueError):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(status)

    def kill(self) -> None:
        """SIGKILL, if it still runs."""
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._ended, signal.SIGKILL)

    def ends_within(self, seconds: float) -> bool:
        """Wait so long for its end; whether it came."""
        return bool(select.select([self._ended], [], [], seconds)[0])

    def wait(self, limit_s: float = 300.0) -> Ended:
        """Its end. Raises `AssertionError` where it hangs."""
        hangs = not self.ends_within(limit_s)
        if hangs:
            self.kill()
        _, status, used = os.wait4(self.pid, 0)
        os.close(self._ended)
        seconds = time.perf_counter() - self._begun
        said = self._files[1].read_text(errors="replace")
        if hangs:
            raise AssertionError(f"it was not over after {limit_s:g} s:\n{said}")
        lines = self._files[2].read_text().splitlines()
        return Ended(
            os.waitstatus_to_exitcode(status),
            tuple(line for line in lines if not line.startswith("! ")),
            tuple(line[2:] for line in lines if line.startswith("! ")),
            seconds,
            said,
            used.ru_utime + used.ru_stime,
        )

    def printed(self) -> str:
        """What it printed on standard output."""
        return self._files[0].read_text(errors="replace")


def _count_operations(watched: Path, tell: Tell, die_at: int | None) -> None:
    """From now on tell each operation below `watched`, and die before one of them."""
    below, own, done = f"{watched}{os.sep}", os.getpid(), 0

    def look(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal done
        if event not in OPERATIONS or not str(arguments[0]).startswith(below) or os.getpid() != own:
            return
        if event == "open" and not (isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)):
            return
        done += 1
        tell(f"{event} {Path(str(arguments[0])).name}")
        if done == die_at:
            os.kill(own, signal.SIGKILL)

    sys.addaudithook(look)


def warm(job: Job, watched: Path, out: Path) -> Ended:
    """Run a job in a fork to its end, and import here what it imported, so that later forks need not."""

    def whole(tell: Tell) -> None:
        before = set(sys.modules)
        try:
            job(tell)
        finally:
            for name in [name for name in sys.modules if name not in before]:
                tell(f"import {name}")

    ended = Fork(whole, watched, out).wait()
    for line in ended.told:
        name = line.removeprefix("import ")
        if line.startswith("import ") and name.partition(".")[0] not in _alone:
            with suppress(ImportError):  # a module that another one makes as it goes
                importlib.import_module(name)
    gc.freeze()  # or every fork looks through all of it for garbage, and copies it
    told = tuple(line for line in ended.told if not line.startswith("import "))
    return replace(ended, told=told)


# --- what a dead fork left ------------------------------------------------------------------------------------


def still_running(fork: Fork) -> dict[int, str]:
    """Command lines of the processes that a fork started: those in its group, and those that carry its mark."""
    wanted, found = f"{MARK}={fork.mark}\0".encode(), {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal():
            with suppress(OSError):
                # A fork of a fork has no environment of its own in /proc.
                state, _, group = (folder / "stat").read_text().rpartition(")")[2].split()[:3]
                of_group = int(group) == fork.pid and state != "Z"
                if of_group or wanted in (folder / "environ").read_bytes():
                    found[int(folder.name)] = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()[:200]
    return found


def orphans_gone(fork: Fork, limit_s: float = GRACE_S) -> tuple[int, float]:
    """How many processes a dead fork left behind, and after how many seconds all of them had ended.

    Raises `AssertionError` where one lives longer than `limit_s`; it is killed then.
    """
    begun, most = time.perf_counter(), 0
    while left := still_running(fork):
        most = max(most, len(left))
        if time.perf_counter() - begun > limit_s:
            for pid in left:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            raise AssertionError(f"these outlive the process that started them by {limit_s:g} s: {left}")
        time.sleep(0.01)
    return most, time.perf_counter() - begun if most else 0.0


def locks_free(folder: Path) -> int:
    """The lock files below `folder`, none of which anybody holds. Raises `AssertionError`."""
    locks = [path for path in folder.rglob(".lock*") if path.is_file()]
    for lock in locks:
        with lock.open("rb") as handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise AssertionError(f"{lock} is held, and nobody is there who holds it") from None
    return len(locks)
