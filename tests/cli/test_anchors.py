"""`calmctl anchors`, as a user types it."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from calmctl.anchors import shipped
from calmctl.anchors.shipped import resolve_vocabulary, shipped_path, shipped_vocabularies
from calmctl.anchors.vocabulary import load_vocabulary
from calmctl.cli.anchors import app
from calmctl.errors import VocabularyError


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERMINAL_WIDTH", "80")


def run(*arguments: str) -> Result:
    result = CliRunner().invoke(app, list(arguments))
    if isinstance(result.exception, VocabularyError):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result


def test_build_without_arguments_checks_what_ships_and_writes_nothing(tmp_path: Path) -> None:
    installed = {path: path.stat().st_mtime_ns for path in shipped_path("coco", 1).parent.rglob("*")}
    output = run("build").output
    assert output.count("ok ") == len(shipped_vocabularies())
    assert f"The {len(shipped_vocabularies())} shipped vocabularies are what their label lists give" in output
    assert {path: path.stat().st_mtime_ns for path in installed} == installed and not list(tmp_path.iterdir())


def test_build_without_arguments_names_a_damaged_vocabulary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "anchors"
    shutil.copytree(shipped_path("charades", 1).parent, folder)
    monkeypatch.setattr(shipped, "shipped_folder", lambda name: folder)
    damaged = folder / "coco@1.yaml"
    damaged.write_text(damaged.read_text().replace("person", "human"))
    before = damaged.read_bytes()
    result = CliRunner().invoke(app, ["build"])
    assert isinstance(result.exception, VocabularyError)
    assert str(result.exception) == "1 of 4 vocabularies have faults; they are listed above"
    assert "FAULT  coco@1" in result.output and "changed by hand" in result.output
    assert damaged.read_bytes() == before


def test_build_from_a_list() -> None:
    Path("pets.txt").write_text("cat\ndog\ncat\n")
    with pytest.raises(VocabularyError, match=r"'cat' \(line 1, line 3\)"):
        run("build", "pets.txt")
    assert not Path("pets@1.yaml").exists()
    output = run("build", "pets.txt", "--keep-first", "--licence", "CC0", "--source", "us").output
    assert "repeat of 'cat' (line 1, line 3)" in output
    assert "new        pets@1.yaml  (pets@1, 2 labels, sha256:" in output
    assert "unchanged" in run("build", "pets.txt", "--keep-first", "--licence", "CC0", "--source", "us").output
    vocabulary = load_vocabulary(Path("pets@1.yaml"))
    assert (vocabulary.licence, vocabulary.source) == ("CC0", "us")


def test_build_from_a_shipped_vocabulary() -> None:
    run("build", "charades")
    assert load_vocabulary(Path("charades@1.yaml")) == resolve_vocabulary("charades")
    with pytest.raises(VocabularyError, match="shipped vocabulary with other contents"):
        run("build", "charades", "--prompt", "a {label}")
    run("build", "charades", "--prompt", "a {label}", "--name", "mine", "--out", "folder/mine.yaml")
    assert load_vocabulary(Path("folder/mine.yaml")).prompts[0] == "a Holding some clothes"


def test_build_refuses_options_without_a_source() -> None:
    with pytest.raises(VocabularyError, match="options need a SOURCE"):
        run("build", "--keep-first")
    with pytest.raises(VocabularyError, match="options need a SOURCE"):
        run("build", "--name", "x")


def test_labels_that_look_like_markup_are_shown_as_they_are() -> None:
    Path("pets.txt").write_text("[red]cat\n[/bold]\n[red]cat\n")
    assert "repeat of '[red]cat'" in run("build", "pets.txt", "--keep-first").output
    assert "[/bold]" in run("show", "pets.txt@1.yaml" if Path("pets.txt@1.yaml").exists() else "pets@1.yaml").output


def test_list() -> None:
    output = run("list").output
    assert all(f"{name}@{versions[-1]}" in output for name, versions in shipped_vocabularies().items())
    assert max(len(line) for line in output.splitlines()) <= 80
    rows = {row["name"]: row for row in json.loads(run("list", "--json").output)}
    assert rows["charades"]["n_labels"] == 157
    assert rows["coco"]["digest"] == resolve_vocabulary("coco").digest


def test_show() -> None:
    output = run("show", "charades+coco").output
    assert "Table 6 of the CALM paper prints 258" in " ".join(output.split())
    assert all(text in output for text in resolve_vocabulary("coco").texts)
    assert max(len(line) for line in output.splitlines()) <= 80
    shown = json.loads(run("show", "charades", "--count", "5", "--seed", "1", "--json").output)
    assert [label["id"] for label in shown["labels"]] == ["c018", "c086", "c091", "c095", "c139"]
    assert shown["name"] == "charades-5-seed1"


def test_merge() -> None:
    Path("pets.txt").write_text("cat\nhamster\n")
    output = run("merge", "coco", "pets.txt", "--name", "animals").output
    assert "'cat' of pets@1, already in coco@1" in output
    assert "91 + 2 labels, 1 duplicates removed: 92" in output
    assert len(load_vocabulary(Path("animals@1.yaml"))) == 92
    run("merge", "charades", "coco")
    assert load_vocabulary(Path("charades+coco@1.yaml")).digest == resolve_vocabulary("charades+coco").digest


def test_check() -> None:
    assert run("check").output.count("ok") == len(shipped_vocabularies())
    run("build", "coco")
    text = Path("coco@1.yaml").read_text()
    assert "ok     coco@1.yaml  (91)" in run("check", "coco@1.yaml").output
    Path("bad.yaml").write_text(text.replace("person", "human"))
    result = CliRunner().invoke(app, ["check", "coco", "bad.yaml", "nothing", "--json"])
    assert isinstance(result.exception, VocabularyError)
    assert str(result.exception).startswith("2 of 3 vocabularies have faults")
    assert result.exception.exit_code == 2
    rows = json.loads(result.output)
    assert [bool(row["fault"]) for row in rows] == [False, True, True]
    assert "changed by hand" in rows[1]["fault"]


@pytest.mark.parametrize("command", ["build", "list", "show", "merge", "check"])
def test_help_ends_in_examples(command: str) -> None:
    lines = [line.strip() for line in run(command, "--help").output.splitlines() if line.strip()]
    examples = lines[lines.index("Examples:") + 1 :]
    assert examples and all(line.startswith(f"calmctl anchors {command}") for line in examples)


def test_importing_the_subcommand_imports_no_torch() -> None:
    code = "import sys, calmctl.cli.anchors; sys.exit(bool({'torch', 'open_clip', 'numpy'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
