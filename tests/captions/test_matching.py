import pytest
from hypothesis import given
from hypothesis import strategies as st

from calmctl.captions.java import match, one_line
from calmctl.errors import BadInput


def test_the_order_is_the_references() -> None:
    found = match({"b": "B\n one", "a": " A "}, {"a": ["x"], "c": ["y"], "b": ["z", "\tw\r\nv"]})
    assert found.ids == ("a", "b")
    assert found.hypotheses == ("A", "B one")
    assert found.references == (("x",), ("z", "w v"))
    assert found.unscored == ("c",)


def test_references_without_a_caption_are_an_error_on_demand() -> None:
    references = {str(number): ["x"] for number in range(10)}
    with pytest.raises(
        BadInput, match=r"9 of 10 \(1, 2, 3, ...\) ids with references have no caption; .*empty caption"
    ):
        match({"0": "a"}, references, require_complete=True)
    assert match(dict.fromkeys(references, ""), references, require_complete=True).unscored == ()


def test_captions_without_references_are_refused() -> None:
    with pytest.raises(BadInput, match=r"1 of 2 \(video9\) captions have no references"):
        match({"video9": "a", "video1": "b"}, {"video1": ["x"]})


@pytest.mark.parametrize(
    ("hypotheses", "references", "message"),
    [
        ({}, {"a": ["x"]}, "no captions to score"),
        ({"a": "x"}, {"a": []}, "'a' has an empty list of references"),
        ({"a": "x"}, {"a": "y"}, r"the references of 'a' are not a list; write \[caption\]"),
        ({"a": "x"}, {"a": ["y", None]}, "a reference of 'a' is not text but NoneType"),
        ({"a": ["x"]}, {"a": ["y"]}, "the caption of 'a' is not text but list"),
        ({"a": None}, {"a": ["y"]}, "the caption of 'a' is not text but NoneType"),
        ({"a": 3}, {"a": ["y"]}, "the caption of 'a' is not text but int"),
        ({"a": "x\ud83d"}, {"a": ["y"]}, r"the caption of 'a' holds U\+D83D, half of a surrogate pair"),
    ],
)
def test_what_cannot_be_scored_is_refused(hypotheses: dict, references: dict, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        match(hypotheses, references)


@given(st.text(st.characters(codec="utf-8")))
def test_one_line_is_one_line_for_everyone(text: str) -> None:
    line = one_line(text, "it")
    assert len(line.splitlines()) <= 1
    assert line == line.strip() == " ".join(line.split())
    assert not any(ord(character) < 32 or 0x7F <= ord(character) < 0xA0 for character in line)
    kept = [character for character in text if not character.isspace() and character.isprintable()]
    assert [character for character in line if character.isprintable() and character != " "] == kept
