"""Pages of the documentation site that are made from the program itself (a hook of mkdocs, see mkdocs.yml).

    make site

Commands come from the command line's own declarations, recipe keys from the schema, the Python API from docstrings:
what is generated cannot disagree with what runs.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages to those of docs/."""
    for path, text in (
        ("reference/commands.md", commands_page()),
        ("reference/recipe-keys.md", keys_page()),
        ("reference/api.md", api_page()),
    ):
        files.append(File.generated(config, path, content=text))
    return files


def commands_page() -> str:
    """Every command with its usage, its arguments and options, and the examples that its help ends in."""
    import typer

    from calmctl.cli.main import app

    parts = ["# Commands\n", "Made from the program's own declarations; `calmctl COMMAND --help` shows the same.\n"]
    for name, command in _commands(typer.main.get_command(app), "calmctl"):
        depth = name.count(" ")
        parts.append(f"{'#' * (depth + 1)} {name}\n\n{_prose(command.help or '')}\n")
        rows = [_row(parameter) for parameter in command.params if not getattr(parameter, "hidden", False)]
        if rows:
            parts.append("\n".join(["| option | what it does | by default |", "|---|---|---|", *rows]) + "\n")
        if getattr(command, "epilog", None):
            parts.append(f"```\n{command.epilog.strip()}\n```\n")
    return "\n".join(parts)


def _commands(command: Any, name: str) -> Iterator[tuple[str, Any]]:
    for word, each in getattr(command, "commands", {}).items():
        if not each.hidden:
            yield f"{name} {word}", each
            yield from _commands(each, f"{name} {word}")


def _row(parameter: Any) -> str:
    names = ", ".join(f"`{each}`" for each in parameter.opts if each.startswith("-"))
    default = parameter.default
    told = "" if default in (None, False, ()) or callable(default) else f"`{default}`"
    cells = (names or f"`{parameter.metavar or parameter.name.upper()}`", getattr(parameter, "help", "") or "", told)
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"


def _prose(text: str) -> str:
    # Help is written for a terminal: a paragraph that starts with \b keeps its lines.
    parts = []
    for paragraph in text.replace("\f", "").split("\n\n"):
        kept = paragraph.strip("\n").startswith("\b")
        parts.append(f"```\n{paragraph.strip().removeprefix(chr(8)).strip()}\n```" if kept else paragraph.strip())
    return "\n\n".join(parts)


def keys_page() -> str:
    """Every recipe key with its default and its meaning."""
    from calmctl.recipe.load import describe_keys

    told = [(key.name, key.default, f"{key.description} ({key.values})") for key in describe_keys(None)]
    rows = [f"| `{name}` | `{default}` | {meaning.replace('|', chr(92) + '|')} |" for name, default, meaning in told]
    head = "# Recipe keys\n\nMade from the schema; `calmctl recipes keys` shows the same.\n"
    return "\n".join([head, "| key | default | what it does, and what it may be |", "|---|---|---|", *rows])


def api_page() -> str:
    """The public names with their docstrings."""
    import calmctl

    names = [name for name in calmctl.__all__ if not name.startswith("__")]
    return "# The Python API, in detail\n\n" + "\n\n".join(f"::: calmctl.{name}" for name in names)


os.environ.setdefault("NO_COLOR", "1")
