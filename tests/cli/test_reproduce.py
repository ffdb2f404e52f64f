"""`calmctl reproduce` as its user meets it: plans without data, refusals, and the demo's stand-in end to end."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from calmctl.cli.main import app
from calmctl.cli.reproduce import TABLES
from calmctl.data.demo import generate_demo
from calmctl.data.demo_world import DemoCounts
from calmctl.errors import CalmError, RunFailed
from calmctl.reproduce import reproduce, stand_in
from calmctl.reproduce.rows import PUBLISHED
from calmctl.reproduce.work import reproducing
from calmctl.store.store import FeatureStore
from calmctl.store.writer import StoreWriter
from calmctl.words import SILENT


def call(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["reproduce", *arguments])


def test_the_tables_are_those_of_the_library() -> None:
    assert tuple(PUBLISHED) == TABLES


def test_a_dry_run_says_what_nobody_can_run() -> None:
    shown = " ".join(call("table4", "--dry-run").stdout.split())
    assert "left out of table4: TextKG: its regions, speech and knowledge graphs are published by nobody" in shown
    plan = json.loads(call("table4", "--dry-run", "--json").stdout)
    assert list(plan["left_out"]["table4"]) == ["TextKG"]


@pytest.mark.parametrize("name", TABLES)
def test_a_dry_run_needs_no_data(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shown = call(name, "--dry-run")
    assert shown.exit_code == 0, shown.output
    assert "missing" in shown.stdout and "runs (" in shown.stdout and "not measured" in shown.stdout
    assert max(map(len, shown.stdout.splitlines())) <= 80
    assert not list(tmp_path.iterdir()), "a dry run writes nothing"
    plan = json.loads(call(name, "--dry-run", "--json", "--seeds", "2").stdout)
    assert plan["tables"] == [name] and len(plan["runs"]) == 2 * len(PUBLISHED[name]().rows)
    assert {run["state"] for run in plan["runs"]} == {"new"} and plan["seconds"] is None


def test_weights_that_are_yet_to_be_downloaded_are_not_called_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for cached, mark in ((None, "online"), ("a path", "there")):
        monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_, cached=cached: cached)
        found = [line.split()[:2] for line in call("table6", "--dry-run").stdout.splitlines()]
        assert [mark, "ViT-B-32-quickgelu"] in found


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["table2"], "3 of 5 things that table2 needs are missing"),
        (["table4"], "\nmsvd: --root data is not a folder"),
        (["table9"], "there is no table9; name one or more of table1"),
        (["optim.epochs=1"], "name one or more of table1"),
        (["table3", "--data", "demo"], "no stand-in on the demo world"),
        (["table1", "--rows", "x-pool", "--dry-run"], "has no row 'x-pool'"),
        (["table1", "--dry-run", "head.knd=xpool"], "did you mean head.kind"),
        (["table7", "--skip-missing"], "nothing is left to run"),
        (["effect"], "effect is a study of its own, on the drawn world: calmctl reproduce effect --data demo"),
        (["effect", "table7", "--data", "demo"], "effect is a study of its own"),
        (["table7", "--data", "demo", "--small"], "--small and --minutes are for"),
    ],
)
def test_mistakes_are_sentences(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = call(*arguments)
    assert isinstance(result.exception, CalmError), result.output
    assert message in str(result.exception)


def test_the_study_says_what_it_takes_and_draws_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    plan = json.loads(call("effect", "--data", "demo", "--dry-run", "--json", "--seeds", "2").stdout)
    # Rates: three heads, three rates, three seeds; weights: three losses, three weights, three seeds; then the grid.
    assert plan["runs"] == 27 + 27 + 2 * 3 * 3 * 5 and plan["seconds_a_run"] is None
    small = call("effect", "--data", "demo", "--dry-run", "--small", "--jobs", "2", "--device", "cpu")
    assert "75 fine-tunings, 2 at once on cpu: not measured" in small.stdout and not list(tmp_path.iterdir())


@pytest.fixture
def tiny_demo(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty folder in which the stand-in draws a tiny world."""

    def draw(root: Path, **keys: object) -> None:
        generate_demo(root, counts=DemoCounts(train=24, val=6, test=12, shifted=12))

    monkeypatch.setattr(stand_in, "generate_demo", draw)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_demo_from_nothing(tiny_demo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = call("table7", "--data", "demo", "--dry-run")
    assert "not made yet" in before.stdout and not list(tiny_demo.iterdir())
    arguments = ["table7", "--data", "demo", "--rows", "t-mass+calm", "--seeds", "2", "head.trials=2", "optim.epochs=1"]
    write, held = reproduce.write_table, []

    def written(*given: Any) -> Any:
        with pytest.raises(RunFailed, match="another calmctl reproduce"), reproducing(Path("runs/reproduce")):
            pass
        held.append(write(*given))
        return held[-1]

    monkeypatch.setattr(reproduce, "write_table", written)
    done = call(*arguments)
    assert done.exit_code == 0, (done.output, done.exception)
    assert len(held) == 1, "the folder is held until its tables are written"
    assert "4 runs (4 new)" in done.stderr and "measured steps" in done.stderr
    assert max(map(len, done.stdout.splitlines()[:-3])) <= 80
    for words in ("demo → demo-shifted", "VAE (CALM)", "AUDIT, NOT A RESULT", "±", "Demo stand-in", "wrote"):
        assert words in done.stdout
    record = json.loads(Path("runs/reproduce/table7-demo.json").read_text())
    assert record["stand_in"] and record["seeds"] == [24, 25]
    assert [block["n_clips"] for block in record["blocks"]] == [12, 12]
    assert "| system |" in Path("runs/reproduce/table7-demo.md").read_text()
    again = call(*arguments, "--json")
    assert "4 runs (4 finished)" in again.stderr
    assert json.loads(again.stdout)[0]["blocks"] == record["blocks"]
    plan = json.loads(call(*arguments, "--dry-run", "--json").stdout)
    assert plan["seconds"] == 0 and {run["state"] for run in plan["runs"]} == {"finished"}


def test_another_start_is_another_table(tiny_demo: Path) -> None:
    """Features and recipes are tied to the weights of the CLIP that made them."""
    world = stand_in.make_stand_in(Path("data/demo"), Path("runs"), SILENT)
    assert stand_in.find_stand_in(Path("data/demo"), Path("runs")) == world
    assert stand_in.find_stand_in(Path("data/demo"), Path("elsewhere")) is None
    features = world.tests["demo"].features
    assert features is not None and features.is_dir() and "features-" in str(features)
    own = world.recipe(stand_in.stand_in_table("table7", Path("runs")).rows[0], 0)
    assert own.data.features == str(features) and own.frozen
    # Stopped when the second store was begun, and nothing of it was planned: no world yet, and the next call makes it.
    shifted = world.tests["demo-shifted"].features
    assert shifted is not None
    header = FeatureStore.open(shifted).header
    shutil.rmtree(shifted)
    with StoreWriter.create(shifted, header):
        pass
    assert stand_in.find_stand_in(Path("data/demo"), Path("runs")) is None
    assert stand_in.make_stand_in(Path("data/demo"), Path("runs"), SILENT) == world
    assert FeatureStore.open(shifted).is_complete


def test_two_at_once_do_not_train_everything_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / ".table7-demo.md.x1y2.tmp").write_text("what a killed one left")
    with reproducing(tmp_path / "runs"):
        for command in (["reproduce", "table7", "--data", "demo"], ["demo", "--root", "data/demo"]):
            result = CliRunner().invoke(app, [*command, "--runs", "runs"])
            assert "another calmctl reproduce or demo is at work in runs" in str(result.exception), result.output
    assert [path.name for path in tmp_path.iterdir()] == ["runs"], "the second one made nothing"
    assert [path.name for path in (tmp_path / "runs").iterdir()] == [".lock"]
