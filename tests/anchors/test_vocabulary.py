"""Vocabularies: schema, digest, reading and writing."""

import hashlib
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from calmctl.anchors.vocabulary import (
    Vocabulary,
    format_vocabulary,
    load_vocabulary,
    make_vocabulary,
    save_vocabulary,
)
from calmctl.errors import VocabularyError

FIELDS: dict[str, Any] = {"name": "pets", "source": "us", "licence": "CC0"}
PAIRS = [("a000", "cat"), ("a001", "dog")]


def pets(**changes: Any) -> Vocabulary:
    return make_vocabulary(PAIRS, where="test", **{**FIELDS, **changes})


_LABELS = (
    st.text(st.characters(exclude_categories=["C", "Z"]) | st.just(" "), min_size=1, max_size=30)
    .map(lambda text: " ".join(text.split()))
    .filter(bool)
)
_VOCABULARIES = st.dictionaries(_LABELS, _LABELS, min_size=2, max_size=8).filter(
    lambda labels: len(set(labels.values())) == len(labels)
)


def test_prompts_put_the_label_into_the_template() -> None:
    assert pets().prompts == ("The content of cat", "The content of dog")
    assert pets(prompt="a {label}, moving").prompts == ("a cat, moving", "a dog, moving")


def test_digest_is_sha256_of_prompt_ids_and_labels_in_order() -> None:
    canonical = b'{"labels":[["a000","cat"],["a001","dog"]],"prompt":"The content of {label}"}'
    assert pets().digest == "sha256:" + hashlib.sha256(canonical).hexdigest()


def test_digest_ignores_what_does_not_matter_and_sees_what_does() -> None:
    one = pets()
    assert pets(name="other", version=7, source="them", licence="MIT", note="n").digest == one.digest
    changed = [
        pets(prompt="A {label}"),
        make_vocabulary(PAIRS[::-1], where="t", **FIELDS),
        make_vocabulary([("b", "cat"), ("a001", "dog")], where="t", **FIELDS),
        make_vocabulary([("a000", "Cat"), ("a001", "dog")], where="t", **FIELDS),
        make_vocabulary([*PAIRS, ("a002", "cow")], where="t", **FIELDS),
    ]
    assert len({each.digest for each in [one, *changed]}) == 6


@settings(deadline=None)
@given(_VOCABULARIES, st.integers(1, 99))
def test_what_is_saved_loads_alike(
    tmp_path_factory: pytest.TempPathFactory, labels: dict[str, str], version: int
) -> None:
    vocabulary = make_vocabulary(labels.items(), where="t", **FIELDS, version=version)
    path = tmp_path_factory.mktemp("v") / "v.yaml"
    save_vocabulary(vocabulary, path)
    assert load_vocabulary(path) == vocabulary
    assert path.read_text(encoding="utf-8") == format_vocabulary(vocabulary)
    # Any other YAML reader must see the same labels.
    assert yaml.safe_load(path.read_bytes())["labels"] == labels


def test_labels_that_other_yaml_readers_misread_are_quoted(tmp_path: Path) -> None:
    labels = {"1": "no", "0x10": "1e-5", "on": "12:30:00", "null": "~", "c: d": "# e", "- f": "2001-01-01"}
    save_vocabulary(make_vocabulary(labels.items(), where="t", **FIELDS), tmp_path / "v.yaml")
    assert load_vocabulary(tmp_path / "v.yaml").texts == tuple(labels.values())
    assert yaml.safe_load((tmp_path / "v.yaml").read_bytes())["labels"] == labels


@pytest.mark.parametrize(
    ("pairs", "changes", "said"),
    [
        ([("a", "cat"), ("b", "cat")], {}, "the label 'cat' is there twice (entries 1 and 2)"),
        ([("a", "cat"), ("a", "dog")], {}, "the id 'a' is there twice (entries 1 and 2)"),
        ([("a", "cat"), ("b", "  ")], {}, "entry 2 of labels, text: is empty"),
        ([("a", "cat"), ("b", "dog\n")], {}, "entry 2 of labels, text: has control characters"),
        ([("a", "cat"), ("b", " dog")], {}, "or space at its ends"),
        ([("a", "cat"), ("", "dog")], {}, "entry 2 of labels, id"),
        ([("a", "cat"), ("b", "x" * 301)], {}, "entry 2 of labels, text"),
        ([("a", "cat")], {}, "at least 2 labels"),
        ([], {}, "at least 2 labels"),
        (PAIRS, {"prompt": "no place"}, "prompt: must be one line with '{label}' exactly once"),
        (PAIRS, {"prompt": "{label} {label}"}, "exactly once"),
        (PAIRS, {"prompt": "{label}\n"}, "one line"),
        (PAIRS, {"name": "Pets"}, "name: 'Pets' may hold only lower-case letters"),
        (PAIRS, {"name": "a/b"}, "may hold only"),
        (PAIRS, {"version": 0}, "version: "),
        (PAIRS, {"version": True}, "version: "),
        (PAIRS, {"version": "1"}, "version: "),
        (PAIRS, {"schema_version": 2}, "schema_version: "),
        (PAIRS, {"licens": "x"}, "unknown key 'licens'; did you mean 'licence'?"),
        (PAIRS, {"zzz": "x"}, "unknown key 'zzz'"),
    ],
)
def test_invalid_vocabularies_are_named(pairs: list[tuple[str, str]], changes: dict[str, Any], said: str) -> None:
    with pytest.raises(VocabularyError) as caught:
        make_vocabulary(pairs, where="here", **{**FIELDS, **changes})
    assert str(caught.value).startswith("here: ")
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_key_is_named() -> None:
    with pytest.raises(VocabularyError, match="here: the key 'licence' is missing"):
        make_vocabulary(PAIRS, where="here", name="pets", source="us")


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("a000: cat", "a000: cats", "says digest sha256:"),
        ("  a000: cat\n  a001: dog", "  a001: dog\n  a000: cat", "says digest sha256:"),
        ("prompt: The", "prompt: A", "says digest sha256:"),
        ("digest: sha256", "digest: md5", "says digest md5:"),
        ("digest: ", "licence_url: x\ndigest: ", "unknown key 'licence_url'; did you mean 'licence'?"),
        ("a001: dog", "a000: dog", "line 10: the key 'a000' is there twice (first in line 9)"),
        ("a001: dog", "a001: cat", "the label 'cat' is there twice"),
        ("a001: dog", "a001:", "the label of 'a001' None is not text"),
        ("a001: dog", "a001: 5", "the label of 'a001' 5 is not text; put it in quotes"),
        ("a001: dog", "1: dog", "the id 1 is not text; put it in quotes"),
        ("version: 1\nname", "version: 2\nname", "schema_version"),
    ],
)
def test_edited_files_are_refused(tmp_path: Path, old: str, new: str, said: str) -> None:
    path = tmp_path / "pets@1.yaml"
    text = format_vocabulary(pets())
    assert old in text
    path.write_text(text.replace(old, new))
    with pytest.raises(VocabularyError) as caught:
        load_vocabulary(path)
    assert str(path) in str(caught.value)
    assert said in str(caught.value)


def test_a_missing_digest_is_refused_unless_the_caller_renews_it(tmp_path: Path) -> None:
    path = tmp_path / "v.yaml"
    path.write_text("\n".join(line for line in format_vocabulary(pets()).splitlines() if "digest" not in line))
    with pytest.raises(VocabularyError, match="has no digest, but its contents give"):
        load_vocabulary(path)
    assert load_vocabulary(path, check_digest=False) == pets()


@pytest.mark.parametrize("text", ["", "[]", "labels: [a, b]", "labels:", "just text", "{}"])
def test_files_that_are_no_vocabulary(tmp_path: Path, text: str) -> None:
    path = tmp_path / "v.yaml"
    path.write_text(text)
    with pytest.raises(VocabularyError, match=r"v\.yaml is no vocabulary"):
        load_vocabulary(path)


def test_vocabularies_are_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        pets().name = "x"  # type: ignore[misc]
