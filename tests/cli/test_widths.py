"""Tables of real answers at other widths, in code pages and in pipes: nothing is cut, and nothing is lost."""

import importlib.util
import json
import re
from collections import Counter
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from calmctl.cli.main import app

SENTENCE = "two big blue circles are moving left"
SHOWN = [
    *(("recipes", "list"), ("recipes", "keys"), ("anchors", "list"), ("weights", "ls"), ("data", "where")),
    *(("data", "where", "msrvtt"), ("data", "check", "demo", "--root", "world")),
    *(("runs", "ls"), ("runs", "show", "tiny-001"), ("card", "tiny-001")),
    ("eval", "runs/tiny-001", "--root", "world"),
    ("compare", "tiny-001", "frozen-001"),
    ("search", SENTENCE, "--in", "clips", "--run", "runs/tiny-001", "--why"),
    ("explain", "clips/test0000.mp4", SENTENCE, "--run", "runs/tiny-001"),
    ("caption", "clips/test0000.mp4", "--run", "runs/told-001"),
    ("reproduce", "table7", "--data", "demo", "--demo-root", "world", "--dry-run"),
]


@pytest.fixture(scope="module")
def place(tiny_world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The committed runs, and the world that they were trained on."""
    spec = importlib.util.spec_from_file_location("golden", Path(__file__).parents[1] / "golden" / "commands.py")
    assert spec is not None and spec.loader is not None
    golden = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(golden)
    place: Path = golden.make_place(tmp_path_factory.mktemp("widths"), tiny_world)
    return place


def shown(words: tuple[str, ...], *, width: int | None = 80, charset: str = "utf-8", **more: str) -> Result:
    columns = {"COLUMNS": None if width is None else str(width)}
    result = CliRunner(charset=charset).invoke(app, list(words), env={**columns, "NO_COLOR": "1", **more})
    assert result.exit_code == 0, result.output
    return result


@pytest.mark.parametrize("words", SHOWN, ids=" ".join)
def test_a_table_keeps_all_its_words_and_numbers_at_60_80_and_200_columns(words, place, monkeypatch) -> None:
    monkeypatch.chdir(place)
    whole = None
    for width in (200, 80, 60):
        text = shown(words, width=width).stdout
        assert max(map(len, text.splitlines())) <= width
        assert "…" not in text and "\x1b" not in text
        # Paths, digests and long words may fold between letters; numbers with their points and names of runs may not.
        kept = Counter(re.findall(r"\d+\.\d+|\b[a-z]+-\d{3}\b", text))
        whole = kept if whole is None else whole
        assert set(whole) == set(kept), width


@pytest.mark.parametrize("words", [SHOWN[-6], SHOWN[-4], SHOWN[-3]], ids=" ".join)
@pytest.mark.parametrize("charset", ["cp437", "cp1252", "ascii"])
def test_a_table_has_the_same_shape_where_a_code_page_lacks_its_signs(words, charset, place, monkeypatch) -> None:
    monkeypatch.chdir(place)
    plain, usual = (shown(words, charset=each).stdout for each in (charset, "utf-8"))  # strict: what fails is an error
    assert [len(line.rstrip()) for line in plain.splitlines()] == [len(line.rstrip()) for line in usual.splitlines()]
    assert re.findall(r"\d+\.\d+", plain) == re.findall(r"\d+\.\d+", usual)


def test_json_is_json_in_a_code_page(tmp_path, monkeypatch) -> None:
    """Python's own stand-ins for a letter, \\xe9 and \\U0001f600, are none of JSON's."""
    from calmctl.cli import console

    class Page:
        encoding = "cp437"
        text = ""

        def write(self, text: str) -> int:
            self.text += text.encode("cp437").decode("cp437")
            return len(text)

        def flush(self) -> None:
            pass

    page, value = Page(), {"caption": "un café 😀 – два"}  # noqa: RUF001
    monkeypatch.setattr("sys.stdout", page)
    console.print_json(value)
    monkeypatch.undo()
    assert json.loads(page.text) == value


def test_a_pipe_without_a_width_gets_whole_lines_and_no_colour(place, monkeypatch) -> None:
    monkeypatch.chdir(place)
    text = shown(("runs", "ls"), width=None, NO_COLOR="").stdout
    assert "\x1b" not in text
    assert len([line for line in text.splitlines() if re.match(r"\w+-001 ", line)]) == 3
