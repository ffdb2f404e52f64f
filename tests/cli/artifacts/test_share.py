"""`calmctl export`, `calmctl push` and a run of a hub, as their user meets them."""

import json
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from calmctl.cli.main import app
from calmctl.errors import BadInput, RunFailed

GOLDEN = Path(__file__).parents[2] / "golden"


@pytest.fixture
def place(tmp_path: Path, tiny_world: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(GOLDEN / "runs/tiny-001", tmp_path / "runs/tiny-001")
    (tmp_path / "world").symlink_to(tiny_world)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def call(*arguments: str, input: str | None = None) -> Result:
    return CliRunner().invoke(app, list(arguments), input=input)


def test_a_run_is_exported(place):
    made = call("export", "tiny-001", "out")
    assert made.exit_code == 0 and "names no licence" in made.stderr and "calmctl eval out" in made.stdout
    assert max(map(len, made.stdout.splitlines())) <= 80
    files = json.loads(call("export", "tiny-001", "other", "--json", "--licence", "apache-2.0").stdout)["files"]
    assert files == {path.name: path.stat().st_size for path in (place / "other").iterdir()}
    shown = json.loads(call("runs", "show", "out", "--json").stdout)
    assert shown["run"]["state"] == "finished" and shown["run"]["epoch"] == 3 and shown["run"]["task"] == "retrieval"


def test_a_run_is_pushed_and_used_wherever_a_run_is_taken(place, hub, monkeypatch):
    refused = call("push", "tiny-001", "me/my-model")
    assert isinstance(refused.exception, BadInput) and not hub.requests, "nothing is published unasked"
    monkeypatch.setattr("calmctl.cli.console._somebody_is_there", lambda: True)
    assert call("push", "tiny-001", "me/my-model", input="n\n").exit_code == 1 and not hub.requests
    pushed = call("push", "tiny-001", "me/my-model", input="y\n")
    assert pushed.exit_code == 0, pushed.output
    assert f"{hub.endpoint}/me/my-model" in pushed.stderr and "private" in pushed.stderr
    run = "hf://me/my-model"
    assert "hf://me/my-model" in call("runs", "show", run).stdout
    evaluated = call("eval", run, "--root", "world", "--json")
    expected = json.loads((GOLDEN / "expected/eval.json").read_text())["results"][0]["metrics"]
    assert json.loads(evaluated.stdout)["results"][0]["metrics"]["text_to_video"] == pytest.approx(
        expected["text_to_video"]
    )
    clips = place / "clips"
    clips.mkdir()
    shutil.copy(next((place / "world/clips").glob("test*.mp4")), clips)
    assert call("search", "a circle", "--in", "clips", "--run", run).exit_code == 0
    compared = call("compare", "tiny-001", run, "--root", "world", "--json")
    assert [each["name"] for each in json.loads(compared.stdout)[0]["systems"]] == ["tiny-001", run]
    assert isinstance(call("train", "--resume", run).exception, RunFailed)
    assert isinstance(call("runs", "rm", run, "--yes").exception, BadInput)
