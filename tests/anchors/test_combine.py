"""Unions and subsets of vocabularies."""

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calmctl.anchors.shipped import merge, resolve_vocabulary, subset
from calmctl.anchors.vocabulary import Vocabulary, make_vocabulary
from calmctl.errors import VocabularyError


@pytest.fixture(scope="module")
def charades() -> Vocabulary:
    return resolve_vocabulary("charades@1")


def make(name: str, *texts: str, prompt: str = "The content of {label}") -> Vocabulary:
    pairs = [(f"a{position:03d}", text) for position, text in enumerate(texts)]
    return make_vocabulary(pairs, where="t", name=name, source=f"s-{name}", licence=f"l-{name}", prompt=prompt)


_PARTS = st.lists(st.lists(st.text("abc", min_size=1, max_size=2), min_size=2, unique=True), min_size=2, max_size=4)


@settings(deadline=None)
@given(_PARTS)
def test_merge_is_the_union_in_order_of_first_appearance(lists: list[list[str]]) -> None:
    parts = [make(f"v{number}", *texts) for number, texts in enumerate(lists)]
    merged = merge(parts)
    flat = [text for texts in lists for text in texts]
    assert merged.vocabulary.texts == tuple(dict.fromkeys(flat))
    assert len(merged.removed) == len(flat) - len(set(flat))
    assert merged.vocabulary.name == "+".join(part.name for part in parts)


def test_merge_says_what_it_removed_and_keeps_ids_and_attribution() -> None:
    merged = merge([make("pets", "cat", "dog"), make("farm", "cow", "dog")], version=2, note="n")
    assert merged.removed == ("'dog' of farm@1, already in pets@1",)
    assert [label.id for label in merged.vocabulary.labels] == ["pets/a000", "pets/a001", "farm/a000"]
    assert merged.vocabulary.source == "pets@1: s-pets; farm@1: s-farm"
    assert merged.vocabulary.licence == "pets@1: l-pets; farm@1: l-farm"
    assert (merged.vocabulary.reference, merged.vocabulary.note) == ("pets+farm@2", "n")


def test_ids_of_a_merge_stay_in_a_further_merge() -> None:
    first = merge([make("pets", "cat", "dog"), make("farm", "cow", "hen")]).vocabulary
    second = merge([first, make("wild", "fox", "owl")], name="all").vocabulary
    assert [label.id for label in second.labels][:4] == [label.id for label in first.labels]
    assert [label.id for label in second.labels][4:] == ["wild/a000", "wild/a001"]


def test_only_exact_duplicates_are_removed() -> None:
    assert len(merge([make("a", "cat", "dog"), make("b", "Cat", "dogs")]).vocabulary) == 4


def test_merge_refuses_what_it_cannot_decide() -> None:
    with pytest.raises(VocabularyError, match="at least two"):
        merge([make("a", "cat", "dog")])
    with pytest.raises(VocabularyError, match="prompts of a@1, b@1 differ"):
        merge([make("a", "cat", "dog"), make("b", "cow", "hen", prompt="A {label}")])
    chosen = merge([make("a", "cat", "dog"), make("b", "cow", "hen", prompt="A {label}")], prompt="A {label}")
    assert chosen.vocabulary.prompt == "A {label}"
    with pytest.raises(VocabularyError, match="merging a@1, a@1: the id 'a/a000' is there twice"):
        merge([make("a", "cat", "dog"), make("a", "cow", "hen")])


@settings(deadline=None)
@given(st.integers(2, 157), st.integers(0, 50))
def test_subsets_keep_order_ids_and_nest(charades: Vocabulary, count: int, seed: int) -> None:
    drawn = subset(charades, count, seed)
    assert len(drawn) == count
    positions = [charades.labels.index(label) for label in drawn.labels]
    assert all(before < after for before, after in pairwise(positions))
    if count < 157:
        assert set(drawn.labels) < set(subset(charades, count + 1, seed).labels)


def test_subsets_are_samples(charades: Vocabulary) -> None:
    assert subset(charades, 50, 1) == subset(charades, 50, 1)
    assert len({subset(charades, 50, seed).digest for seed in range(20)}) == 20
    hits = {label.id: 0 for label in charades.labels}
    for seed in range(400):
        for label in subset(charades, 50, seed).labels:
            hits[label.id] += 1
    # Each label is drawn Binomial(400, 50/157) times: mean 127, standard deviation 9.3.
    assert all(abs(count - 400 * 50 / 157) < 5 * 9.3 for count in hits.values())


def test_a_subset_names_its_parent_and_seed(charades: Vocabulary) -> None:
    drawn = subset(charades, 50, 3)
    assert drawn.reference == "charades-50-seed3@1"
    assert charades.digest in drawn.note
    # Pinned: runs that name a seed must find the same anchors in every later version.
    assert [label.id for label in subset(charades, 5, 1).labels] == ["c018", "c086", "c091", "c095", "c139"]


@pytest.mark.parametrize("count", [-1, 0, 1, 158])
def test_a_subset_that_cannot_be_drawn(count: int) -> None:
    with pytest.raises(VocabularyError, match="choose 2 to 157"):
        subset(resolve_vocabulary("charades"), count)
