"""`calmctl train` and `calmctl eval` as their user meets them."""

import json
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner, Result

from calmctl.cli.main import app
from calmctl.errors import BadInput, CalmError


def call(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


@pytest.fixture(scope="module")
def workplace(tmp_path_factory, tiny_world, tiny_recipe_values) -> Path:
    """A folder with a recipe and one finished run of it."""
    folder = tmp_path_factory.mktemp("workplace")
    values = tiny_recipe_values(tiny_world) | {"head": {"kind": "t-mass"}}
    (folder / "tiny.yaml").write_text(yaml.safe_dump(values))
    result = call("train", str(folder / "tiny.yaml"), "optim.epochs=1", "--runs", str(folder / "runs"), "--json")
    assert result.exit_code == 0, result.output
    record = json.loads(result.stdout)
    assert record["run"].endswith("tiny-001") and record["test"][0]["metrics"]["text_to_video"]["n_queries"] == 6
    return folder


def test_eval_finds_the_newest_run_and_goes_out_of_domain(workplace, monkeypatch):
    monkeypatch.chdir(workplace)
    own = call("eval")
    assert own.exit_code == 0 and "newest run, runs/tiny-001" in own.stderr and "demo retrieval" in own.stdout
    assert max(map(len, own.stdout.splitlines())) <= 80
    cross = call("eval", "--cross", "demo-shifted", "--cross", "demo", "--json")
    record = json.loads(cross.stdout)
    assert [result["dataset"] for result in record["results"]] == ["demo-shifted", "demo"]
    assert record["packages"]["torch"] and record["results"][0]["trained_on"] == "demo"


def test_weights_and_scorers(workplace, monkeypatch):
    monkeypatch.chdir(workplace)
    numbers = {}
    for weights in ("best", "last", "slim"):
        record = json.loads(call("eval", "--weights", weights, "--json").stdout)
        numbers[weights] = record["results"][0]["metrics"]
    assert numbers["best"] == numbers["last"] == numbers["slim"]  # one epoch: the same weights
    for scorer in ("tmass-released", "dual-softmax"):
        labelled = call("eval", "--scorer", scorer)
        assert labelled.exit_code == 0 and "!!" in labelled.stdout and scorer in labelled.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["eval", "--scorer", "honest"], "leak-free, tmass-released, dual-softmax"),
        (["eval", "--weights", "worst"], "best, last, slim"),
        (["eval", "nothing"], "no run at nothing"),
        (["eval", "--cross", "lsmdc"], "LSMDC"),
        (["eval", "--cross", "msrvt"], "did you mean msrvtt"),
        (["eval", "--device", "cuda"], "device"),
        (["train"], "a recipe or --resume"),
        (["train", "tiny.yaml", "optim.epoch=1"], "did you mean optim.epochs"),
        (["train", "missing.yaml"], "missing.yaml does not exist"),
        (["train", "tiny.yaml", "data.root=nowhere"], "calmctl demo"),
        (["train", "tiny.yaml", "anchors.vocabulary=charade"], "did you mean 'charades'"),
        (["train", "--resume", "runs/tiny-001"], "is finished"),
        (["train", "didemo"], "DiDeMo"),
        (["train", "lsmdc", "backbone.model=demo-clip", "backbone.weights=null"], "LSMDC"),
    ],
)
def test_mistakes_are_sentences(workplace, monkeypatch, arguments, message):
    monkeypatch.chdir(workplace)
    result = call(*arguments)
    assert isinstance(result.exception, CalmError), result.output
    text = str(result.exception)
    assert message.lower() in text.lower() and "Traceback" not in text


def test_dry_run_prints_the_plan(workplace, monkeypatch):
    monkeypatch.chdir(workplace)
    before = sorted(workplace.rglob("*"))
    plan = call("train", "tiny.yaml", "--dry-run")
    assert plan.exit_code == 0 and "one batch" in plan.stdout and "alignment" in plan.stdout
    assert sorted(workplace.rglob("*")) == before


def test_the_process_ends_with_the_right_code_and_no_traceback(workplace, monkeypatch, capsys):
    from calmctl.cli.main import main

    monkeypatch.setattr("sys.argv", ["calmctl", "train", "missing.yaml"])
    with pytest.raises(SystemExit) as ended:
        main()
    shown = capsys.readouterr().err
    assert ended.value.code == 2 == BadInput.exit_code
    assert shown.startswith("error: recipe: missing.yaml") and "Traceback" not in shown
    monkeypatch.setattr("sys.argv", ["calmctl", "train", "missing.yaml", "--debug"])
    with pytest.raises(SystemExit):
        main()
    assert "Traceback" in capsys.readouterr().err


def test_messages_cannot_carry_markup_or_terminal_controls(capsys):
    from calmctl.cli.console import note, printable

    note(printable("[red]x[/red] \x1b[2J evil \x07"))
    shown = capsys.readouterr().err
    assert "[red]x[/red]" in shown and "\x1b" not in shown and "\x07" not in shown


def test_saved_scores_give_the_same_numbers_by_the_referee(workplace, monkeypatch):
    monkeypatch.chdir(workplace)
    own = json.loads(call("eval", "--save-scores", "all.npz", "--json").stdout)["results"][0]
    found = json.loads(call("score", "matrix", "all.npz", "--json").stdout)
    assert found["metrics"] == own["metrics"] and found["intervals"] == own["intervals"]
    again = call("eval", "--save-scores", "all.npz")
    assert again.exit_code == 0  # ours may be written anew


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--save-scores", "all.json"], "written as .npz"),
        (["--save-scores", "tiny.npz"], "is not scores that calmctl wrote"),
        (["--save-scores", "all.npz", "--against", "runs/tiny-001"], "one run on one test set"),
    ],
)
def test_scores_that_cannot_be_saved(workplace, monkeypatch, arguments, message):
    monkeypatch.chdir(workplace)
    Path("tiny.npz").write_text("mine")
    with pytest.raises(BadInput, match=message):
        raise call("eval", *arguments).exception
