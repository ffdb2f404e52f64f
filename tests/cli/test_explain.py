"""`calmctl explain` and `calmctl diagnose`, as a user types them."""

import json
import re
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from calmctl.anchors.vocabulary import load_vocabulary
from calmctl.cli.explain import sparkline
from calmctl.cli.main import app
from calmctl.errors import BadInput, CheckpointError, RunNotFound, VideoError, VocabularyError


@pytest.fixture(scope="module")
def runs(tiny_world, tiny_recipe_values, tmp_path_factory):
    """A folder of runs with one run."""
    from calmctl.recipe import recipe_from_dict
    from calmctl.training.train import train

    folder = tmp_path_factory.mktemp("runs")
    train(recipe_from_dict(tiny_recipe_values(tiny_world), overrides=["optim.epochs=1"]), folder)
    return folder


@pytest.fixture
def video(tiny_world: Path, tmp_path: Path) -> Path:
    # Under its own name, by which it is known for one of the demo's.
    return Path(shutil.copy(sorted((tiny_world / "clips").glob("test*.mp4"))[0], tmp_path))


@pytest.fixture(autouse=True)
def _plain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "80")


def run(*arguments: object) -> Result:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result


def fits(output: str) -> bool:
    return max(map(len, output.splitlines())) <= 80


def test_a_pair_on_the_terminal(runs, video):
    sentence = "a red \x1b[31mcircle [bold]&[/] more"
    label = load_vocabulary(runs / "tiny-001" / "vocabulary.yaml").texts[0]
    result = run("explain", video, sentence, "--runs", runs, "--without", label, "--collection", "test")
    assert "explaining with the newest run" in result.stderr and "tiny-001" in result.stderr
    assert fits(result.stdout) and "\x1b" not in result.stdout
    assert "a red \\x1b[31mcircle [bold]&[/] more" in result.stdout
    for heading in ("What each says", "What the VAE makes of it", "Why the score is", "When", f"Without {label}"):
        assert heading in result.stdout


def test_a_pair_as_json_and_as_a_page(runs, video, tmp_path):
    label = load_vocabulary(runs / "tiny-001" / "vocabulary.yaml").texts[0]
    page = tmp_path / "page.html"
    result = run(
        *("explain", video, "a red circle", "--run", "tiny-001", "--runs", runs, "--device", "cpu", "--json"),
        *("--without", label, "--collection", "test", "--html", page, "--instants", "5"),
    )
    found = json.loads(result.stdout)
    assert found["without"]["removed"] == [label] and found["standing"]["clips"] == 7
    assert len(found["timeline"]["instants_s"]) == 5
    assert page.read_text().count("<img") == 2 and "wrote" in result.stderr


def test_without_a_run_it_is_the_bare_backbone_and_says_so(runs, video, tiny_recipe):
    weights = runs / "tiny-001" / "slim.safetensors"
    backbone = ("--backbone", tiny_recipe().backbone.model, "--backbone-weights", weights)
    result = run("explain", video, "a man", *backbone, "--json")
    found = json.loads(result.stdout)
    assert found["vocabulary"]["name"] == "charades@1" and len(found["anchors"]) == 157
    assert found["vae"] is None and "nothing was trained" in found["notes"][-1]


def test_no_run_and_no_weights_is_one_sentence_with_the_ways_out(video, hub):
    hub.fault = "503"
    with pytest.raises(CheckpointError) as caught:
        run("explain", video, "a man", "--runs", "nothing-here")
    message = str(caught.value)
    assert "\n" not in message
    assert "not in the local cache" in message and "--backbone-weights" in message and "calmctl demo" in message


def test_failures(runs, tmp_path, monkeypatch):
    monkeypatch.chdir(runs)
    page = tmp_path / "f.html"
    result = run("diagnose", "failures", "tiny-001", "--runs", ".", "--top", 2, "--html", page, "--device", "cpu")
    assert fits(result.stdout)
    assert re.search(r"\d of 6 sentences do not find their clip first among 6 clips", result.stdout)
    assert "confusing" in result.stdout and "pulled by" in result.stdout
    assert page.exists()
    as_json = run("diagnose", "failures", "--runs", runs, "--top", 1, "--json", "--device", "cpu")
    assert len(json.loads(as_json.stdout)["worst"]) == 1


def test_calibration(runs, tmp_path, monkeypatch):
    monkeypatch.chdir(runs)
    result = run("diagnose", "calibration", "tiny-001", "--runs", ".", "--html", tmp_path / "c.html", "--device", "cpu")
    assert fits(result.stdout)
    assert "too few to tell" in result.stdout and "score margin" in result.stdout
    assert "reliability" in (tmp_path / "c.html").read_text().lower()
    as_json = json.loads(run("diagnose", "calibration", runs / "tiny-001", "--json", "--device", "cpu").stdout)
    assert as_json["split"] == "val"
    assert [signal["name"] for signal in as_json["signals"]][:2] == ["score margin", "posterior"]


def test_coverage(runs, tmp_path, monkeypatch):
    monkeypatch.chdir(runs)
    result = run("diagnose", "coverage", "tiny-001", "--runs", ".", "--device", "cpu")
    assert fits(result.stdout) and "5 anchors" in result.stdout and "Suggested" in result.stdout
    found = json.loads(run("diagnose", "coverage", "--runs", runs, "--split", "train", "--json").stdout)
    assert len(found["anchors"]) == 5 and found["clips"] == 12 and found["captions"] == 60
    if len(found["suggested"]) > 1:
        run("diagnose", "coverage", "--runs", runs, "--split", "train", "--out", tmp_path / "used.yaml")
        assert [label.id for label in load_vocabulary(tmp_path / "used.yaml").labels] == found["suggested"]


def test_coverage_of_the_test_split_warns(runs):
    assert "seen the answers" in run("diagnose", "coverage", "--runs", runs, "--split", "test").stderr


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((), BadInput, "give a video and a sentence"),
        (("{video}", " "), BadInput, "give a video and a sentence"),
        (("missing.mp4", "a man"), VideoError, "missing.mp4 is no file"),
        (("{video}", "a man", "--run", "x", "--zero-shot"), BadInput, "exclude each other"),
        (("{video}", "a man", "--run", "nowhere"), RunNotFound, "no run at nowhere"),
        (("{video}", "a man", "--collection", "test"), BadInput, "--collection needs a run"),
        (("{video}", "a man", "--runs", "{runs}", "--without", "zebras"), VocabularyError, "has no anchor 'zebras'"),
    ],
)
def test_mistakes_are_sentences(arguments, error, message, runs, video):
    filled = [str(argument).format(video=video, runs=runs) for argument in arguments]
    with pytest.raises(error, match=re.escape(message)):
        run("explain", *filled)


@pytest.mark.parametrize("verb", ["gap", "calibration", "failures", "coverage"])
def test_a_diagnosis_is_of_a_run(verb):
    with pytest.raises(RunNotFound, match=r"no trained .*run in runs/; make one with .*, or name one$"):
        run("diagnose", verb)
    with pytest.raises(RunNotFound, match="no run at nowhere"):
        run("diagnose", verb, "nowhere")


def test_calibration_needs_anchors_and_vae(runs):
    with pytest.raises(BadInput, match="--weights slim is not known; use one of best, last"):
        run("diagnose", "calibration", runs / "tiny-001", "--weights", "slim")


def test_sparklines():
    assert sparkline([0, 1, 2, 7]) == "▁▂▃█"
    assert sparkline([0.5, 0.5]) == "▁▁"
    assert sparkline([0.6, 1.0], top=1.0) == "▅█"
