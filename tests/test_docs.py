"""What the documentation promises: its commands parse, its links lead somewhere, its version is the package's."""

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from calmctl import __version__
from calmctl.cli.main import app

REPOSITORY = Path(__file__).parents[1]
PAGES = [*sorted((REPOSITORY / "docs").glob("*.md")), *sorted(REPOSITORY.glob("*.md"))]


def commands() -> list[Any]:
    """Every `calmctl ...` in the documentation's code: lines of blocks, and between backticks."""
    found = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        fenced = "\n".join(re.findall(r"^```.*?^```$", text, re.DOTALL | re.MULTILINE))
        lines = re.findall(r"^(?:\$ )?(calmctl .+)$", fenced, re.MULTILINE)
        lines += re.findall(r"^ {4,}(calmctl .+)$", text, re.MULTILINE)
        lines += re.findall(r"`(calmctl [^`\n]+)`", text)
        # What stands behind two blanks explains the command.
        unique = dict.fromkeys(re.split(r" {2,}| # ", line)[0].strip() for line in lines)
        found += [pytest.param(line, id=f"{page.name}: {line}") for line in unique]
    return found


@pytest.mark.parametrize("line", commands())
def test_commands_parse(line: str) -> None:
    command: Any = typer.main.get_command(app)
    words = shlex.split(line)[1:]
    while hasattr(command, "commands") and words and not words[0].startswith("-"):
        assert words[0] in command.commands, f"there is no command {words[0]}"
        command, *words = command.commands[words[0]], *words[1:]
    try:
        command.make_context("calmctl", words).close()
    except Exception as fault:  # an example may leave out what a command needs; it may not make anything up
        assert type(fault).__name__ in ("MissingParameter", "NoArgsIsHelpError", "Exit"), fault


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)]+)\)", page.read_text(encoding="utf-8")):
        if link.startswith("https://"):
            continue
        file, _, heading = link.partition("#")
        target = (page.parent / file) if file else page
        assert target.exists(), link
        assert not heading or heading in headings(target), link


def headings(page: Path) -> set[str]:
    """The anchors that headings of a page get: lower case, punctuation dropped, blanks to hyphens."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    titles = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def test_the_citation_names_this_version() -> None:
    citation = yaml.safe_load((REPOSITORY / "CITATION.cff").read_text(encoding="utf-8"))
    assert str(citation["version"]) == __version__
    assert citation["license"] == "Apache-2.0"


def test_every_reading_of_the_paper_names_keys_that_exist() -> None:
    from calmctl.recipe.load import recipe_keys

    table = re.findall(r"^\| (\d+) \|[^|]+\|([^|]+)\|", (REPOSITORY / "docs/science.md").read_text(), re.MULTILINE)
    assert [int(number) for number, _ in table] == list(range(1, 31))
    named = {key for _, cell in table for key in re.findall(r"`([a-z_]+\.[a-z_]+)`", cell)}
    assert len(named) > 20 and named <= set(recipe_keys())
