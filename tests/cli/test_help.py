"""The helps: each fits a screen or is read by subject, ends in lines to copy, and says the same of the same option."""

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from calmctl import cli
from calmctl.cli import main
from calmctl.cli.main import app

SCREEN = 40
MADE_BY_EACH = {"--out"}
"""What a command makes is written there, and each says in what form."""


def subcommands(command: Any, words: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    for name, each in getattr(command, "commands", {}).items():
        yield (*words, *name.split()), each
        yield from subcommands(each, (*words, name))


COMMANDS = dict(subcommands(typer.main.get_command(app)))


@cache
def shown(*words: str, width: int = 80, charset: str = "utf-8") -> list[str]:
    surroundings = {"COLUMNS": str(width), "NO_COLOR": "1"}
    result = CliRunner(charset=charset).invoke(app, [*words, "--help"], env=surroundings)
    assert result.exit_code == 0, result.output
    return [line.rstrip() for line in result.output.splitlines()]


@pytest.mark.parametrize("width", [60, 200])
def test_a_help_is_whole_at_other_widths(width: int) -> None:
    for words, command in COMMANDS.items():
        lines = shown(*words, width=width)
        assert max(map(len, lines)) <= width, words
        assert not any("…" in line for line in lines), f"{words}: something is cut"
        options = {name for param in command.params for name in param.opts if name.startswith("--")}
        assert options <= set(re.findall(r"--[\w-]+", " ".join(lines))), words


@pytest.mark.parametrize("charset", ["cp437", "cp1252"])
def test_a_help_can_be_written_where_windows_has_a_code_page(charset: str) -> None:
    for words in ((), ("search",), ("train",), ("data", "where")):
        assert "\\u" not in "".join(shown(*words, charset=charset))


@pytest.mark.parametrize("words", [(), *COMMANDS], ids=" ".join)
def test_a_help_fits_a_screen_or_is_read_by_subject(words: tuple[str, ...]) -> None:
    lines = shown(*words)
    assert max(map(len, lines)) <= 80
    assert not any(noise in line for line in lines for noise in ("<bool>", "<=x<="))
    panels = sum(line.startswith("╭─") for line in lines)
    assert len(lines) <= SCREEN or panels >= 4, f"{len(lines)} lines in {panels} panels"


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_a_help_ends_in_examples_that_can_be_copied(words: tuple[str, ...]) -> None:
    lines = [line.strip() for line in shown(*words) if line.strip()]
    copied = lines[lines.index("Examples:") + 1 :]
    assert copied == COMMANDS[words].epilog.split("\n")[2:], "a line is broken"
    assert all(" ".join(("calmctl", *words)) in line for line in copied)


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_a_help_says_what_every_option_and_argument_is(words: tuple[str, ...]) -> None:
    command = COMMANDS[words]
    assert command.help and all(param.help for param in command.params if param.name != "help")
    # Typer keeps the breaks of a paragraph's lines: each must be one line of the source.
    assert all("\n" not in paragraph for paragraph in command.help.split("\n\n"))


def test_a_list_says_of_a_command_what_its_own_help_begins_with() -> None:
    program: Any = typer.main.get_command(app)
    told = {name: command.help.split("\n\n")[0] for name, command in program.commands.items()}
    assert {name: later.help for name, later in main.COMMANDS.items()} == told


def test_names_are_listed_and_completed_without_an_import(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(module: str) -> None:
        raise AssertionError(f"{module} was imported")

    monkeypatch.setattr(main, "import_module", refused)
    shown.__wrapped__()
    words = {"_CALMCTL_COMPLETE": "complete_bash", "COMP_WORDS": "calmctl se", "COMP_CWORD": "1"}
    completed = CliRunner().invoke(app, [], env=words, prog_name="calmctl").output.splitlines()
    assert completed == ["search", "search similar", "search captions", "search moments", "search recall", "serve"]


def test_an_option_means_the_same_in_every_command() -> None:
    meanings = defaultdict(set)
    for command in COMMANDS.values():
        for param in command.params:
            for name in (option for option in param.opts if option.startswith("--")):
                meanings[name].add((param.help, param.metavar, getattr(param, "rich_help_panel", None)))
    assert len(meanings) > 60
    assert {name: said for name, said in meanings.items() if len(said) > 1 and name not in MADE_BY_EACH} == {}


def test_no_command_imports_another() -> None:
    shared = {f"calmctl.cli.{part}" for part in ("console", "options", "results", "artifacts.downloads")}
    # The verbs of search share how it is opened and shown, and `serve` its options.
    shared |= {f"calmctl.cli.search.{part}" for part in ("opening", "shown", "search")}
    files = [file for file in Path(str(cli.__file__)).parent.rglob("*.py") if file.stem not in ("main", "__init__")]
    assert len(files) > 10
    for file in files:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module == "calmctl.cli":
                assert {alias.name for alias in node.names} == {"options"}, file
            elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("calmctl.cli."):
                assert node.module in shared, file
