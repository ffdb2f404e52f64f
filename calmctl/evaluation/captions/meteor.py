"""METEOR 1.5 by its own jar, over its line protocol.

A line "SCORE ||| reference ||| ... ||| hypothesis" is answered with the 23 statistics of that segment, a line
"EVAL ||| statistics ||| ..." with the score of each segment and then that of them all together.
"""

from __future__ import annotations

import contextlib
import math
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from calmctl.evaluation.captions.corpus import Doubles
from calmctl.evaluation.captions.java import Java, JavaFailed, JavaProcess, java_process

_N_STATISTICS = 23
_LENGTH, _REFERENCE_LENGTH, _CHUNKS, _MATCHED, _REFERENCE_MATCHED = 0, 1, 20, 21, 22  # columns of the statistics
_PROGRESS_EVERY = 50


class Meteor:
    """A running METEOR; see `meteor_process`."""

    def __init__(self, process: JavaProcess) -> None:
        self._process = process

    def statistics(
        self,
        hypotheses: Sequence[str],
        references: Sequence[Sequence[str]],
        progress: Callable[[int, int], None] | None = None,
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
                progress(number, len(lines))
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


def addable(statistics: Sequence[str]) -> Doubles:
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


def written(numbers: Doubles) -> list[str]:
    """Sums of `addable` statistics [R, 23] as lines for METEOR."""
    return [" ".join(map(repr, row)) for row in numbers.tolist()]


@contextlib.contextmanager
def meteor_process(java: Java) -> Iterator[Meteor]:
    """Start METEOR, which takes seconds to read its paraphrases; questions may be asked at once.

    Raises:
        JavaFailed: It cannot be started.
    """
    from pycocoevalcap.meteor import meteor as pycocoevalcap_meteor

    # -a: the paraphrases by relative path; METEOR's own search fails where the install path has a blank.
    arguments = ["-Xmx2G", "-jar", pycocoevalcap_meteor.METEOR_JAR, "-", "-", "-stdio", "-l", "en", "-norm"]
    arguments += ["-a", "data/paraphrase-en.gz"]
    folder = Path(pycocoevalcap_meteor.__file__).parent
    with java_process(java, folder, arguments, name="METEOR") as process:
        yield Meteor(process)


def _segment(hypothesis: str, references: Sequence[str]) -> str:
    """One question; the separator inside a caption would be taken for one more reference."""
    parts = [*(each.replace("|||", "") for each in references), hypothesis.replace("|||", "").replace("  ", " ")]
    return " ||| ".join(["SCORE", *parts])
