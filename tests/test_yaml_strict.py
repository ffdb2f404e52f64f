"""The strict YAML reader, against its own promises and against plain PyYAML."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from calmctl.errors import RecipeError, VocabularyError
from calmctl.yaml_strict import MAX_BYTES, MAX_DEPTH, dump_yaml, load_yaml, parse_yaml


def parse(text: str) -> Any:
    return parse_yaml(text, where="recipe: x.yaml", error=RecipeError)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("no", "no"),
        ("off", "off"),
        ("Yes", "Yes"),
        ("1e-5", 1e-5),
        ("1E3", 1000.0),
        ("-.5", -0.5),
        ("1.10", 1.1),
        ("010", 10),
        ("0o10", 8),
        ("0x1F", 31),
        ("+3", 3),
        ("12:30:00", "12:30:00"),
        ("1_000", "1_000"),
        ("2001-01-01", "2001-01-01"),
        ("true", True),
        ("FALSE", False),
        ("null", None),
        ("~", None),
        ("", None),
        ("-.inf", float("-inf")),
        ("'1'", "1"),
        ('"no"', "no"),
        ("=", "="),
        ("a\\nb", "a\\nb"),
    ],
)
def test_scalars_follow_yaml_1_2(text: str, value: object) -> None:
    got = parse(f"key: {text}")["key"]
    assert got == value
    assert type(got) is type(value)


def test_merge_keys_are_ordinary_keys() -> None:
    assert parse("<<: 1\nb: 2") == {"<<": 1, "b": 2}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: 1\nb: 2\na: 3", "line 3: the key 'a' is there twice (first in line 1)"),
        ("x:\n  a: 1\n  a: 1", "line 3: the key 'a' is there twice"),
        ("a: !!python/object/apply:os.system [ls]", "line 1: the tag"),
        ("a: !local 1", "the tag"),
        ("a: !!int x", "the tag"),
        ("a: &x 1\nb: *x", "line 1: '&' and '*'"),
        ("a: *x", "'&' and '*'"),
        ("a:\n\t- b", "line 2: a tab cannot indent"),
        ("a: b: c", "line 1: a ': ' cannot be here"),
        ("a: [1, 2", "a ',' or ']' is missing"),
        ("a: 'b", "a quote is opened and never closed"),
        ("a: %b", "the character '%' cannot start a value"),
        ("a: 1\n---\nb: 1", "line 2: a second document"),
        ("- a\nb: c", "line 2: the indentation"),
        ("? [a]\n: 1", "a key must be a single word"),
        ("? {a: b}\n: 1", "a key must be a single word"),
        ("a: 1\nb: \x00", "line 2: the character U+0000"),
        ("a: " + "9" * 5000, "is too long"),
        ("a: [", "line 1"),
    ],
)
def test_faults_are_one_sentence_with_file_and_line(text: str, said: str) -> None:
    with pytest.raises(RecipeError) as caught:
        parse(text)
    message = str(caught.value)
    assert message.startswith("recipe: x.yaml, line ")
    assert said in message
    assert "\n" not in message


def test_nesting_is_bounded() -> None:
    assert parse("[" * (MAX_DEPTH - 1) + "]" * (MAX_DEPTH - 1)) is not None
    with pytest.raises(RecipeError, match="nested more than"):
        parse("[" * MAX_DEPTH + "1" + "]" * MAX_DEPTH)
    with pytest.raises(RecipeError, match="nested more than"):
        parse("[" * 200_000)  # would exhaust the stack of a plain loader
    with pytest.raises(RecipeError, match="nested more than"):
        parse("- " * 5_000 + "x")


def test_size_is_bounded(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="larger than 4,096 KiB"):
        parse("#" * (MAX_BYTES + 1))
    path = tmp_path / "big.yaml"
    path.write_bytes(b"#" * (MAX_BYTES + 1))
    with pytest.raises(VocabularyError, match=r"big\.yaml is larger"):
        load_yaml(path, what="vocabulary", error=VocabularyError)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"recipe: .*none\.yaml does not exist"):
        load_yaml(tmp_path / "none.yaml", what="recipe", error=RecipeError)
    with pytest.raises(RecipeError, match="cannot read"):
        load_yaml(tmp_path, what="recipe", error=RecipeError)
    latin = tmp_path / "latin.yaml"
    latin.write_bytes("a: 1\nb: café".encode("latin-1"))
    with pytest.raises(RecipeError, match=r"latin\.yaml, line 2: not UTF-8"):
        load_yaml(latin, what="recipe", error=RecipeError)
    marked = tmp_path / "bom.yaml"
    marked.write_bytes(b"\xef\xbb\xbfa: 1\r\nb: 2\r\n")
    assert load_yaml(marked, what="recipe", error=RecipeError) == {"a": 1, "b": 2}


_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
_SCALARS = st.one_of(st.none(), st.booleans(), st.integers(-(2**70), 2**70), st.floats(allow_nan=False), _TEXT)
_VALUES = st.recursive(
    _SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_TEXT, inner, max_size=4),
    max_leaves=12,
)


@settings(deadline=None)
@given(_VALUES)
def test_what_is_written_reads_back_alike(value: object) -> None:
    assert parse(dump_yaml(value)) == value


@settings(deadline=None)
@given(st.dictionaries(_TEXT, _TEXT, max_size=6))
def test_strings_read_alike_in_plain_yaml_1_1(value: dict[str, str]) -> None:
    assert yaml.safe_load(dump_yaml(value)) == value


@settings(deadline=None)
@given(st.text(alphabet="ab:-[]{}&*!|>'\"#%@ \n\t,?~0.", max_size=30))
def test_any_text_parses_or_is_a_recipe_error(text: str) -> None:
    try:
        parse(text)
    except RecipeError as fault:
        assert str(fault).startswith("recipe: x.yaml")
