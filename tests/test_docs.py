"""What the documentation promises: its commands parse, its links lead somewhere, its version is the package's."""

import ast
import re
import shlex
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from calmctl import __version__
from calmctl.cli.main import app

REPOSITORY = Path(__file__).parents[1]
PAGES = [*sorted((REPOSITORY / "docs").glob("*.md")), *sorted(REPOSITORY.glob("*.md"))]


ROOT: Any = typer.main.get_command(app)
SHELL = r"(?:\$ )?(?:[A-Z_]+=\S+ )*(?:cat \S+ \| |torchrun [^#\n]*-m )?(calmctl .+)"
"""A line of a shell that runs calmctl, alone, after settings, behind a pipe, or in several processes."""
OTHERS = {
    *("--help", "--debug", "--nproc-per-node", "--local-dir", "--revision", "--cache-dir", "--porcelain"),
    *("--error-unmatch", "--epochs", "--install-completion", "--start", "--start-time"),
}
"""Options that are spoken of and that no command of ours declares: what typer and main() take, torchrun's, hf's, git's,
players', and the CHANGELOG's example of a recipe key that somebody wrote as an option."""


def subcommands(command: Any = ROOT, name: str = "") -> Iterator[tuple[str, Any]]:
    """Every command below `command` by its full name."""
    for word, each in getattr(command, "commands", {}).items():
        yield f"{name} {word}".strip(), each
        yield from subcommands(each, f"{name} {word}".strip())


def written(text: str) -> list[str]:
    """Commands in a text: lines of code blocks; and between backticks, with `calmctl` before them or without."""
    fenced = "\n".join(re.findall(r"^```.*?^```$", text, re.DOTALL | re.MULTILINE))
    lines = re.findall(rf"^{SHELL}$", fenced, re.MULTILINE) + re.findall(rf"^ {{4,}}{SHELL}$", text, re.MULTILINE)
    for code in inline(text):
        words = code.split(" ")
        if words[0] == "calmctl":
            lines.append(code)
        elif words[0] in ROOT.commands and len(words) > 1:
            lines.append(f"calmctl {code}")
    return [bare(line) for line in lines]


def bare(line: str) -> str:
    """A command without what explains it, behind two blanks, a mark or a semicolon."""
    return re.split(r" {2,}| # |; ", line)[0].strip()


def inline(text: str) -> list[str]:
    """What stands between backticks outside of blocks, a line's end in it taken as a blank."""
    prose = re.sub(r"^```.*?^```$|^ {4,}\S.*$", "", text, flags=re.DOTALL | re.MULTILINE)
    return [re.sub(r"\s*\n\s*", " ", code) for code in re.findall(r"(?<!`)`((?:[^`\n]|\n(?!\s*\n))+)`", prose)]


@cache
def strings(file: Path, part: str) -> list[str]:
    """The texts in a file of the package, with 7 where something is put in; none where `part` is not in the file."""
    texts: list[str] = []
    source = file.read_text(encoding="utf-8")
    if part not in source:  # every process of the tests would parse the whole package to collect them
        return texts
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.JoinedStr):
            texts.append("".join(str(each.value) if isinstance(each, ast.Constant) else "7" for each in node.values))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            texts.append(node.value)
    return texts


@cache
def commands() -> list[Any]:
    """Every command that a reader can copy: of documentation, recipes' comments, ends of helps, errors and pages."""
    places = {page.name: written(page.read_text(encoding="utf-8")) for page in PAGES}
    for recipe in sorted((REPOSITORY / "recipes").glob("*.yaml")):
        comments = re.findall(r"^#(.*)$", recipe.read_text(encoding="utf-8"), re.MULTILINE)
        quoted = [line for comment in comments for line in re.findall(r"'(calmctl [^']+)'", comment)]
        plain = [re.search(SHELL, comment) for comment in comments if "'calmctl" not in comment]
        places[recipe.name] = [bare(line) for line in [*quoted, *(found[1] for found in plain if found)]]
    for name, command in subcommands():
        places[f"{name} --help"] = written("    " + (command.epilog or "").replace("\n", "\n    "))
    for file in sorted((REPOSITORY / "calmctl").rglob("*.py")):
        lines = [
            line
            for text in strings(file, "calmctl ")
            for line in (*re.findall(r"'(calmctl [^']+)'", text), *inline(text))
        ]
        places[file.name] = [bare(line) for line in lines if line.startswith("calmctl ") and " ..." not in line]
    for file in sorted((REPOSITORY / "calmctl").rglob("*.j2")):
        named = re.findall(r"calmctl [a-z][^.;<{]*", file.read_text(encoding="utf-8"))
        places[file.name] = [line.strip() for line in named]
    return [
        pytest.param(line, id=f"{place}: {line}") for place, lines in places.items() for line in dict.fromkeys(lines)
    ]


def parse(line: str) -> None:
    """Parse a command as `calmctl` would; an example may leave out what it needs, it may not make anything up."""
    command, words = ROOT, shlex.split(line)[1:]
    context = command.make_context("calmctl", ["demo"])
    while hasattr(command, "commands") and words and not words[0].startswith("-"):
        _, command, words = command.resolve_command(context, words)
    try:
        command.make_context("calmctl", words, parent=context).close()
    except Exception as fault:
        incomplete = type(fault).__name__ in ("MissingParameter", "NoArgsIsHelpError", "Exit")
        if not incomplete and "requires an argument" not in str(fault):
            raise


@pytest.mark.parametrize("line", commands())
def test_commands_parse(line: str) -> None:
    parse(line)


@pytest.mark.parametrize(
    "line",
    [
        "calmctl eval --gap",
        "calmctl eval RUN --protocol tmass-released",
        "calmctl explain --failures 20",
        "calmctl search --video clip.mp4",
        "calmctl search similar clip.mp4 --why",
        "calmctl score matrices x",
        "calmctl anchors coverage",
        "calmctl trian demo",
        "calmctl train recipes/demo.yaml --optim.epochs=2",
    ],
)
def test_a_command_that_is_none_is_found(line: str) -> None:
    with pytest.raises(Exception, match=r"[Nn]o such (option|command)|there is no option|unexpected extra argument"):
        parse(line)


@pytest.mark.parametrize("name", ["eval", "score captions", "diagnose gap", "search similar", "anchors build", "train"])
def test_the_commands_of_every_help_are_among_them(name: str) -> None:
    assert any(
        param.values[0].startswith(f"calmctl {name}") and f"{name} --help" in str(param.id) for param in commands()
    )


def test_every_option_that_is_spoken_of_exists() -> None:
    """In the documentation's code, and in what the package says: errors, notes, pages."""
    known = {option for _, command in subcommands() for param in command.params for option in param.opts} | OTHERS
    spoken = {page.name: [*inline(page.read_text(encoding="utf-8")), *written(page.read_text())] for page in PAGES}
    for file in (REPOSITORY / "calmctl").rglob("*.py"):
        spoken[file.name] = strings(file, "--")
    unknown = {
        (place, option)
        for place, texts in spoken.items()
        for text in texts
        if not text.startswith(("python ", "pip ", "uv "))
        for option in re.findall(r"(?<![\w-])--[a-z][a-z-]+", text)
        if option not in known
    }
    assert sorted(unknown) == []


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


@pytest.mark.parametrize("page", [page for page in PAGES if page.name != "CHANGELOG.md"], ids=lambda page: page.name)
def test_files_that_are_named_are_there(page: Path) -> None:
    """Of other folders a page names other projects' files, too."""
    text = page.read_text(encoding="utf-8")
    named = re.findall(r"(?<![\w/])((?:tests|benchmarks|scripts|calmctl)/[\w/]+\.(?:py|json|md))\b", text)
    assert [name for name in named if not (REPOSITORY / name).is_file()] == []


def test_the_citation_names_this_version() -> None:
    citation = yaml.safe_load((REPOSITORY / "CITATION.cff").read_text(encoding="utf-8"))
    assert str(citation["version"]) == __version__
    assert citation["license"] == "Apache-2.0"


def test_every_reading_of_the_paper_names_keys_that_exist() -> None:
    from calmctl.recipe.load import recipe_keys

    table = re.findall(r"^\| (\d+) \|[^|]+\|([^|]+)\|", (REPOSITORY / "docs/science.md").read_text(), re.MULTILINE)
    assert [int(number) for number, _ in table] == list(range(1, 32))
    named = {key for _, cell in table for key in re.findall(r"`([a-z_]+\.[a-z_]+)`", cell)}
    assert len(named) > 20 and named <= set(recipe_keys())
