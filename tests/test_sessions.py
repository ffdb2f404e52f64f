"""The recorded sessions of the documentation: a command prints what is shown, numbers apart."""

import importlib.util
import re
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "scripts" / "sessions.py"
spec = importlib.util.spec_from_file_location("sessions", SCRIPT)
assert spec is not None and spec.loader is not None
sessions = importlib.util.module_from_spec(spec)
spec.loader.exec_module(sessions)
BLOCKS = [(page, block) for page in sessions.PAGES for block in sessions.BLOCK.findall(page.read_text("utf-8"))]


@pytest.fixture(scope="module")
def place(tiny_world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sessions.golden_place(tiny_world, tmp_path_factory.mktemp("sessions"))


@pytest.mark.parametrize(("page", "block"), BLOCKS, ids=[f"{p.name}: {sessions.commands(b)[0]}" for p, b in BLOCKS])
def test_a_command_prints_what_is_shown(page: Path, block: str, place: Path) -> None:
    assert shape(sessions.recorded(block, place)) == shape(block), "run: python scripts/sessions.py"


def test_there_are_sessions_and_a_changed_word_is_found() -> None:
    assert len(BLOCKS) >= 5 and all(len(line) <= 80 for _, block in BLOCKS for line in block.splitlines())
    assert shape("R@1 66.0 (59-72)\n") == shape("R@1  7.25 (6-9)\n") != shape("R@5 66.0 (59-72)\n")


def shape(text: str) -> list[list[str]]:
    """The words of each line; a number is one of any size, and a bar of any length."""
    text = re.sub(r"[▁-█▉-▏]+", "▄", text)
    return [re.sub(r"[-+]?(?<!@)\d+(?:[.,:]\d+)*", "0", line).split() for line in text.splitlines()]
