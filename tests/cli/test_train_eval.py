"""`calmctl train` and `calmctl eval` as their user meets them."""

import json
import os
import shutil
import signal
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner, Result

from calmctl.cli.main import app
from calmctl.errors import BadInput, CalmError, RunFailed


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
        (["eval", "--scorer", "honest"], "leak-free, re-ranked, tmass-released, dual-softmax"),
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


def test_a_run_tells_no_path_of_the_machine_and_goes_on_from_anywhere(workplace, tiny_world, tmp_path, monkeypatch):
    shutil.copytree(tiny_world, tmp_path / "home" / "world")
    here = tmp_path / "home"
    monkeypatch.chdir(here)
    arguments = ["train", str(workplace / "tiny.yaml"), f"data.root={here}/world", "--runs", f"{here}/runs"]
    monkeypatch.setattr("sys.argv", ["calmctl", *arguments])
    with monkeypatch.context() as patch:
        patch.setattr("calmctl.training.train._test", lambda *arguments, **keys: os.kill(os.getpid(), signal.SIGTERM))
        assert isinstance(call(*arguments).exception, RunFailed)
    run = here / "runs" / "tiny-001"
    for name in ("recipe.json", "run.json"):
        assert str(tmp_path) not in (run / name).read_text().replace(str(workplace), "")
    assert json.loads((run / "recipe.json").read_text())["data"]["root"] == "world"
    assert "data.root=world" in json.loads((run / "run.json").read_text())["command"]
    monkeypatch.chdir("/")
    assert call("train", "--resume", str(run)).exit_code == 0
    assert call("eval", str(run)).exit_code == 0


def test_a_store_each_and_under_its_own_name(workplace, tiny_world, monkeypatch):
    """One `--features` a `--cross`: numbers stand under the name of the data that they are of."""
    monkeypatch.chdir(workplace)
    towers = ["--run", "runs/tiny-001", "--root", str(tiny_world)]
    for name in ("demo", "demo-shifted"):
        assert call("extract", name, *towers, "--out", f"features/{name}").exit_code == 0
    asked = ["eval", "runs/tiny-001", "--cross", "demo", "--cross", "demo-shifted", "--json", "--features"]
    both = call(*asked, "features/demo", "--features", "features/demo-shifted")
    assert [each["dataset"] for each in json.loads(both.stdout)["results"]] == ["demo", "demo-shifted"]
    videos = call(*asked[:-1], "--root", str(tiny_world))
    metrics = [[each["metrics"] for each in json.loads(shown.stdout)["results"]] for shown in (both, videos)]
    assert metrics[0] == metrics[1]
    for stores in (["features/demo", "features/demo"], ["features/demo-shifted", "features/demo"]):
        swapped = call(*asked, stores[0], "--features", stores[1])
        assert "numbers on it would stand under a false name" in str(swapped.exception)
    assert "give one --features for each --cross" in str(call(*asked, "features/demo").exception)
    alone = call("eval", "runs/tiny-001", "--features", "features/demo-shifted")
    assert "holds features of demo-shifted" in str(alone.exception)


def test_what_must_be_said_of_a_number_is_said_where_it_is_shown(workplace, tiny_world, tmp_path, monkeypatch):
    """The `!!` lines of the final tables: training's own, `eval`'s, and the same sentences in every JSON."""
    world = Path(shutil.copytree(tiny_world, tmp_path / "world"))
    train, test = (sorted((world / "clips").glob(f"{split}*.mp4"))[0] for split in ("train", "test"))
    shutil.copy(train, test)
    monkeypatch.chdir(tmp_path)
    trained = call("train", str(workplace / "tiny.yaml"), "optim.epochs=1", "data.root=world", "name=leaky")
    shown = call("eval", "runs/leaky-001")
    for result in (trained, shown):
        assert "!! demo retrieval: 1 of 6 test clips was trained on" in " ".join(result.stdout.split()), result.output
    (caveat,) = json.loads(call("eval", "runs/leaky-001", "--json").stdout)["results"][0]["caveats"]
    assert "1 of 6 test clips was trained on" in caveat
    for result in json.loads(Path("runs/leaky-001/results.json").read_text())["test"]:
        assert result["caveats"] == [caveat]


def test_saved_scores_give_the_same_numbers_by_the_referee(workplace, monkeypatch):
    monkeypatch.chdir(workplace)
    own = json.loads(call("eval", "--save-scores", "all.npz", "--json").stdout)["results"][0]
    found = json.loads(call("score", "matrix", "all.npz", "--json").stdout)
    assert found["metrics"] == own["metrics"] and found["intervals"] == own["intervals"]
    # The card comes along, but for the scorer: whoever edits a file of scores leaves no trace in it.
    apart = {name for name, value in own["card"].items() if found["card"][name] != value}
    assert apart <= {"scorer", "column", "digest"} and found["card"]["scorer"] == "given"
    assert own["card"]["weights"] and own["card"]["list_digest"] == found["card"]["list_digest"]
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
