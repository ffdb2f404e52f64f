import math
import os
import signal
import subprocess
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import pytest
from pycocoevalcap.meteor import meteor as pycocoevalcap_meteor

from calmctl.captions.java import Java, JavaFailed, meteor_process, statistics_lines, summable

HYPOTHESES = ["a man rides a bike", "a couch and a dog", "", "some guy speaks of bicycles", "café ||| naïve", "x"]
REFERENCES = [
    ["a man is riding a bicycle", "some guy rides"],
    ["a sofa near dogs"],
    ["a cat", "the dog"],
    ["a man is talking about a bike", "", "a bike"],
    ["café naïve", "a ||| b"],
    [""],
]


@pytest.fixture(scope="module")
def expected(java: Java, with_small_meteor: Callable[[], AbstractContextManager[None]]) -> tuple[float, list[float]]:
    with with_small_meteor():
        return scored(java)


def scored(java: Java) -> tuple[float, list[float]]:
    with meteor_process(java) as meteor:
        return meteor.scores(meteor.statistics(HYPOTHESES, REFERENCES))


@pytest.mark.usefixtures("small_meteor")
def test_scores_are_those_of_pycocoevalcap(java: Java, their_meteor: pycocoevalcap_meteor.Meteor) -> None:
    references = {number: each for number, each in enumerate(REFERENCES) if number != 4}  # it takes ||| for two
    hypotheses = {number: [HYPOTHESES[number]] for number in references}
    theirs_all, theirs = their_meteor.compute_score(references, hypotheses)
    with meteor_process(java) as meteor:
        ours_all, ours = meteor.scores(
            meteor.statistics([each[0] for each in hypotheses.values()], list(references.values()))
        )
    assert ours_all == theirs_all
    assert ours == theirs
    assert ours[2] == 0 < min(ours[0], ours[1], ours[3])  # an empty caption is worth nothing, nor is it a reference


@pytest.mark.usefixtures("small_meteor")
def test_sums_are_scored_as_the_whole(java: Java) -> None:
    """Also with captions that are a reference word by word, which METEOR counts differently in a whole."""
    hypotheses = [*HYPOTHESES, "a dog", "a man sits sits", "a man a man", "man a sits", "dog"]
    references = [*REFERENCES, ["a dog"], ["a man sits"], ["a man"], ["a man sits"], ["dog dog"]]
    rng = np.random.default_rng(0)
    with meteor_process(java) as meteor:
        statistics = meteor.statistics(hypotheses, references)
        numbers = summable(statistics)
        assert meteor.scores(statistics_lines(numbers.sum(axis=0, keepdims=True)))[0] == meteor.scores(statistics)[0]
        for _ in range(50):
            drawn = rng.integers(0, len(hypotheses), 4)
            (total, _), (of_sum, _) = (
                meteor.scores([statistics[number] for number in drawn]),
                meteor.scores(statistics_lines(numbers[drawn].sum(axis=0, keepdims=True))),
            )
            assert of_sum == pytest.approx(total, abs=1e-12)


@pytest.mark.usefixtures("small_meteor")
def test_the_separator_in_a_caption_makes_no_reference(java: Java) -> None:
    with meteor_process(java) as meteor:
        first, second = meteor.statistics(["a dog", "a dog"], [["a ||| dog ||| cat"], ["a  dog  cat"]])
    assert first == second


def test_any_install_path_will_do_and_nothing_is_written_there(
    tmp_path: Path, installed: Callable[[Path], Path], java: Java, expected: tuple[float, list[float]]
) -> None:
    folder = installed(tmp_path / "in stall:100% é;+") / "meteor"
    before = sorted(folder.rglob("*"))
    folder.chmod(0o555)
    assert scored(java) == expected
    assert sorted(folder.rglob("*")) == before


@pytest.mark.parametrize("variable", ["JAVA_TOOL_OPTIONS", "_JAVA_OPTIONS", "JDK_JAVA_OPTIONS"])
def test_a_locale_with_decimal_commas(
    variable: str,
    small_meteor: Path,
    java: Java,
    expected: tuple[float, list[float]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(variable, "-Duser.language=de -Duser.country=DE")
    command = [java.command, "-jar", "meteor-1.5.jar", "-", "-", "-stdio", "-l", "en", "-a", "data/paraphrase-en.gz"]
    asked = f"EVAL ||| {' '.join(['1.0'] * 23)}\n"
    unguarded = subprocess.run(command, cwd=small_meteor / "meteor", input=asked, capture_output=True, text=True)
    assert "InputMismatchException" in unguarded.stderr  # what is guarded against is there
    assert scored(java) == expected


@pytest.mark.usefixtures("small_meteor")
def test_meteor_that_is_killed_is_an_error_and_no_score(java: Java, is_running: Callable[[int], bool]) -> None:
    with meteor_process(java) as meteor:
        pid = meteor._process.pid

        def kill_it(what: str, done: int, total: int, left_out: int = 0, /) -> None:
            os.kill(pid, signal.SIGKILL)

        meteor.statistics(["a dog"], [["a dog"]], kill_it)
        with pytest.raises(JavaFailed, match="METEOR was killed by signal 9 before it was done"):
            meteor.statistics(["a dog"] * 500, [["a dog"] * 20] * 500)
        with pytest.raises(JavaFailed, match="killed by signal 9"):
            meteor.scores(["1.0"])
    assert not is_running(pid)


def test_paraphrases_that_are_missing_are_told(small_meteor: Path, java: Java) -> None:
    (small_meteor / "meteor" / "data" / "paraphrase-en.gz").unlink()
    with (
        meteor_process(java) as meteor,
        pytest.raises(JavaFailed, match=r"METEOR ended before it was done: .*paraphrase"),
    ):
        meteor.statistics(["a dog"], [["a dog"]])


@pytest.mark.usefixtures("small_meteor")
@pytest.mark.parametrize("answer", ["0,5", "NaN", "1.0 2.0", "Error: no", "", "inf"])
def test_an_answer_that_is_no_score_is_an_error(answer: str, script: Callable[[str], Java]) -> None:
    with (
        meteor_process(script(f"read line; echo '{answer}'; cat > /dev/null")) as meteor,
        pytest.raises(JavaFailed, match=r"METEOR answered .* instead of"),
    ):
        meteor.scores(["1.0"])


@pytest.mark.usefixtures("small_meteor")
def test_more_questions_than_pipes_hold(java: Java) -> None:
    """Neither side waits for the other when both pipes are full."""
    told: list[tuple[str, int, int]] = []
    # 150 kB of questions and more than 64 of answers: one long word takes METEOR no longer than a short one.
    reference = f"a man is riding a {'bicycle' * 15}"
    with meteor_process(java) as meteor:
        statistics = meteor.statistics(["a man rides"] * 1210, [[reference]] * 1210, lambda *each: told.append(each))
        score, _ = meteor.scores(statistics)
    assert len(set(statistics)) == 1
    assert min(1210 * len(reference), sum(map(len, statistics))) > 2**16  # what a pipe holds
    assert 0 < score < 1
    assert math.isfinite(score)
    assert told[0] == ("METEOR", 50, 1210)
    assert told[-1] == ("METEOR", 1210, 1210)
