"""`calmctl runs` and `calmctl compare` as their user meets them, on the committed runs of tests/golden."""

import csv
import io
import json
import shlex
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from calmctl.cli import options
from calmctl.cli.main import app
from calmctl.errors import BadInput, CalmError, RunNotFound
from calmctl.runs.identity import recipe_digest
from calmctl.runs.run import Run

GOLDEN = Path(__file__).parents[2] / "golden"


@pytest.fixture
def place(tmp_path: Path, tiny_world: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a retrieval run, one of captioning, and the data they were trained on."""
    for name in ("tiny-001", "told-001"):
        shutil.copytree(GOLDEN / "runs" / name, tmp_path / "runs" / name)
    (tmp_path / "world").symlink_to(tiny_world)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def call(*arguments: str, input: str | None = None) -> Result:
    return CliRunner().invoke(app, list(arguments), input=input)


def test_runs_are_listed_and_shown(place):
    (place / "runs/tiny-001/state.safetensors").write_bytes(b"0" * 2_000_000)
    (place / "runs/told-001/results.json").unlink()
    listed = call("runs", "ls")
    assert listed.exit_code == 0 and "tiny-001" in listed.stdout and "told-001 unfinished" in listed.stdout
    assert "demo retrieval, 12 clips" in listed.stdout and max(map(len, listed.stdout.splitlines())) <= 80
    records = {record["name"]: record for record in json.loads(call("runs", "ls", "--json").stdout)}
    results = json.loads((place / "runs/tiny-001/results.json").read_text())
    assert records["tiny-001"]["validation"] == results["best"]["t2v_r1"]
    assert records["tiny-001"]["test"] == results["test"][0]["metrics"]["text_to_video"]["r1"]
    assert list(map(len, (json.loads(call("runs", "ls", "--task", "caption", "--json").stdout),))) == [1]
    shown = call("runs", "show", "tiny-001")
    assert shown.exit_code == 0 and "optim.epochs" in shown.stdout and "state.safetensors 2.0 MB" in shown.stdout
    assert json.loads(call("runs", "show", "told-001", "--json").stdout)["recipe"]["task"] == "caption"


def test_show_lists_the_files_of_a_run_and_no_lock(place):
    (place / "runs/tiny-001/evals").mkdir(exist_ok=True)
    (place / "runs/tiny-001/evals/.lock").touch()
    files = json.loads(call("runs", "show", "tiny-001", "--json").stdout)["files"]
    assert "recipe.json" in files and not [name for name in files if ".lock" in name]


def test_help_names_the_extra_of_reports():
    assert "calmctl[report]" in call("report", "--help").stdout


def test_the_best_run_s_path_can_be_used(place):
    best = call("runs", "best", "--task", "retrieval")
    assert best.stdout == "runs/tiny-001\n" and "on validation" in best.stderr
    assert isinstance(call("runs", "best").exception, BadInput)
    assert isinstance(call("runs", "best", "--trained-on", "msrvtt").exception, RunNotFound)
    assert "retrieval, caption" in str(call("runs", "ls", "--task", "talking").exception)


def test_nothing_is_removed_unasked(place, monkeypatch):
    (place / "runs/tiny-001/state.safetensors").write_bytes(b"0" * 2_000_000)
    for arguments in (("runs", "prune"), ("runs", "rm", "tiny-001")):
        refused = call(*arguments)
        assert isinstance(refused.exception, BadInput) and "--yes" in str(refused.exception)
    monkeypatch.setattr("calmctl.cli.console._somebody_is_there", lambda: True)
    asked = call("runs", "rm", "tiny-001", input="n\n")
    assert asked.exit_code == 1 and "for good?" in asked.output and (place / "runs/tiny-001/recipe.json").exists()
    with Run(place / "runs/tiny-001").locked():
        busy = call("runs", "prune", "--yes")
    assert "in use by another process" in busy.stderr and "freed 0.0 kB" in busy.stderr and busy.exit_code == 0
    pruned = call("runs", "prune", input="y\n")
    assert pruned.exit_code == 0 and "freed 2.0 MB" in pruned.stderr
    assert not (place / "runs/tiny-001/state.safetensors").exists()
    assert "nothing to remove" in call("runs", "prune").stderr
    assert call("runs", "rm", "tiny-001", "told-001", "--yes").exit_code == 0
    assert list((place / "runs").iterdir()) == []


def begin_with(folder, recipe):
    """Let a run say that it was begun with another recipe."""
    (folder / "recipe.json").write_text(json.dumps(recipe))
    about = json.loads((folder / "run.json").read_text())
    about["identity"]["recipe"] = recipe_digest(recipe)
    (folder / "run.json").write_text(json.dumps(about))


def test_runs_are_compared_from_what_is_kept_and_else_evaluated_now(place):
    shutil.rmtree(place / "runs/tiny-001/evals")  # what its training kept
    shutil.copytree(place / "runs/tiny-001", place / "runs/tiny-002")
    said = call("compare", "tiny-001", "tiny-002")
    assert said.exit_code == 0, said.output
    assert "loading runs/tiny-001, runs/tiny-002" in said.stderr and "recipes do not differ" in said.stdout
    assert max(map(len, said.stdout.splitlines())) <= 80
    again = call("compare", "tiny-001", "tiny-002", "--json")
    assert "loading" not in again.stderr, "it is kept"
    (comparison,) = json.loads(again.stdout)
    first, second = comparison["systems"]
    assert second["differences"]["text_to_video"]["r1"]["difference"] == 0.0
    evaluated = json.loads((GOLDEN / "expected/eval.json").read_text())["results"][0]["metrics"]["text_to_video"]
    assert first["metrics"]["text_to_video"]["r1"]["mean"] == pytest.approx(evaluated["r1"])
    # A run of another seed, from what is kept alone: its weights would not go with such a recipe.
    recipe = json.loads((place / "runs/tiny-002/recipe.json").read_text())
    begin_with(place / "runs/tiny-002", {**recipe, "seed": 25})
    (comparison,) = json.loads(call("compare", "tiny-001", "tiny-002", "--json").stdout)
    (system,) = comparison["systems"]
    assert system["seeds"] == [24, 25] and system["metrics"]["text_to_video"]["r1"]["std"] == 0.0
    begin_with(place / "runs/tiny-002", {**recipe, "optim": {"epochs": 9}})
    rows = list(csv.DictReader(io.StringIO(call("compare", "tiny-001", "tiny-002", "--csv").stdout)))
    assert {row["system"] for row in rows} == {"tiny-001", "tiny-002"} and len(rows) == 30
    assert r"\toprule" in call("compare", "tiny-001", "tiny-002", "--latex").stdout
    assert "|---|" in call("compare", "tiny-001", "tiny-002", "--markdown").stdout
    assert "optim.epochs" in call("compare", "tiny-001", "tiny-002").stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["compare", "tiny-001"], "at least two runs"),
        (["compare", "tiny-001", "runs/tiny-001"], "each once"),
        (["compare", "tiny-001", "told-001"], "share no number"),
        (["compare", "tiny-001", "told-001", "--json", "--csv"], "exclude each other"),
        (["compare", "tiny-001", "tiny-003"], "did you mean"),
        (["runs", "show", "tiny"], "did you mean"),
        (["runs", "ls", "--runs", "nowhere"], "makes one"),
    ],
)
def test_mistakes_are_sentences(place, arguments, message):
    result = call(*arguments)
    assert isinstance(result.exception, CalmError) and message in str(result.exception), result.output


def completed(*words: str) -> list[str]:
    """What bash is offered behind these words."""
    environment = {"_CALMCTL_COMPLETE": "complete_bash", "COMP_WORDS": shlex.join(("calmctl", *words))}
    environment["COMP_CWORD"] = str(len(words))
    result = CliRunner().invoke(app, [], prog_name="calmctl", env=environment)
    return result.stdout.split()


def test_a_shell_completes_names(place):
    assert completed("compare", "t") == ["tiny-001", "told-001"]
    assert completed("search", "a dog", "--run", "runs/ti") == ["runs/tiny-001"]
    assert completed("eval", "--runs", "nowhere", "t") == []
    assert "msrvtt-caption" in completed("train", "msrvtt")
    assert completed("explain", "x.mp4", "a dog", "--vocabulary", "sh") == ["shapes@1"]
    assert options.complete_vocabulary("coco") == ["coco@1"]
