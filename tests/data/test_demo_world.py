import random
import re
from functools import cache

import pytest

from calmctl.data.demo_world import (
    BACKGROUNDS,
    CAPTIONS_PER_CLIP,
    IN_DOMAIN,
    SHIFTED,
    SHIFTED_BACKGROUNDS,
    DemoCounts,
    Scene,
    describe,
    foregrounds,
    plan,
)

ATTRIBUTES = ("shape", "colour", "size", "count", "motion", "background")
GRAMMARS = {"in domain": IN_DOMAIN, "shifted": SHIFTED}


@pytest.fixture(scope="module")
def clips():
    return plan(0, DemoCounts())


@cache
def patterns(grammar_name: str, attribute: str) -> dict:
    phrases = getattr(GRAMMARS[grammar_name], attribute)
    return {value: re.compile(rf"\b({'|'.join(words)})(e?s)?\b") for value, words in phrases.items()}


def read_caption(caption: str, grammar_name: str) -> dict:
    """The values of the attributes that a caption names, from its words alone; no two values of one."""
    named = {}
    for attribute in ATTRIBUTES:
        values = [value for value, words in patterns(grammar_name, attribute).items() if words.search(caption)]
        assert len(values) <= 1, f"{attribute} of {caption!r}: {values}"
        if values:
            named[attribute] = values[0]
    return named


def by_split(clips):
    return [[c for c in clips if (c.shifted, c.split) == key] for key in {(c.shifted, c.split) for c in clips}]


def test_counts_and_identifiers(clips):
    sizes = {(members[0].shifted, members[0].split): len(members) for members in by_split(clips)}
    assert sizes == {(False, "train"): 1500, (False, "val"): 100, (False, "test"): 200, (True, "test"): 200}
    assert len({clip.id for clip in clips}) == len(clips)


def test_no_foreground_occurs_twice_so_what_is_tested_was_never_trained_on(clips):
    seen = {tuple(getattr(clip.scene, attribute) for attribute in ATTRIBUTES[:5]) for clip in clips}
    assert len(seen) == len(clips)


def test_the_shifted_domain_has_backgrounds_of_its_own(clips):
    assert not set(BACKGROUNDS) & set(SHIFTED_BACKGROUNDS)
    assert {clip.scene.background for clip in clips if clip.shifted} == set(SHIFTED_BACKGROUNDS)
    assert {clip.scene.background for clip in clips if not clip.shifted} == set(BACKGROUNDS)


def test_number_of_foregrounds():
    # 8 shapes, 8 colours, 2 sizes, 3 counts, 6 motions, less the circles that spin
    assert len(foregrounds()) == len(set(foregrounds())) == 8 * 8 * 2 * 3 * 6 - 8 * 2 * 3
    assert not [f for f in foregrounds() if f[0] == "circle" and "spinning" in f]


def test_every_caption_describes_exactly_one_clip_of_its_split(clips):
    for members in by_split(clips):
        candidates = {attribute: {} for attribute in ATTRIBUTES}
        for clip in members:
            for attribute in ATTRIBUTES:
                candidates[attribute].setdefault(getattr(clip.scene, attribute), set()).add(clip.id)
        for clip in members:
            for caption in clip.captions:
                named = read_caption(caption, "shifted" if clip.shifted else "in domain")
                described = set.intersection(*(candidates[a].get(value, set()) for a, value in named.items()))
                assert described == {clip.id}, caption


def test_some_captions_leave_the_background_out(clips):
    for grammar_name, shifted in (("in domain", False), ("shifted", True)):
        captions = [caption for clip in clips[-500:] if clip.shifted == shifted for caption in clip.captions]
        share = sum("background" in read_caption(caption, grammar_name) for caption in captions) / len(captions)
        assert 0.2 < share < 0.8


def test_captions_are_distinct(clips):
    for members in by_split(clips):
        captions = [caption for clip in members for caption in clip.captions]
        assert len(captions) == len(set(captions))
    assert all(len(clip.captions) == CAPTIONS_PER_CLIP for clip in clips)


def test_shifted_captions_use_sentences_of_their_own(clips):
    seen = {caption for clip in clips if not clip.shifted for caption in clip.captions}
    assert not seen & {caption for clip in clips if clip.shifted for caption in clip.captions}
    assert not set(IN_DOMAIN.templates) & set(SHIFTED.templates)


def test_training_shows_every_value_of_every_attribute(clips):
    train = [clip.scene for clip in clips if clip.split == "train"]
    for attribute in ATTRIBUTES:
        assert {getattr(scene, attribute) for scene in train} == set(getattr(IN_DOMAIN, attribute))


def test_plan_follows_from_the_seed():
    counts = DemoCounts(20, 5, 5, 5)
    assert plan(3, counts) == plan(3, counts)
    assert {clip.scene for clip in plan(3, counts)} != {clip.scene for clip in plan(4, counts)}


def test_plurals_and_verbs_agree():
    rng = random.Random(0)
    boxes = Scene("square", "red", "big", 2, "still", "black")
    crosses = Scene("cross", "red", "big", 1, "still", "grid")
    for _ in range(30):
        many, one = describe(boxes, IN_DOMAIN, rng), describe(crosses, SHIFTED, rng)
        assert all(re.search(r"\b(squares|boxes)\b", caption) for caption in many)
        assert not any(re.search(r"\b(is|square|box)\b", caption) for caption in many)
        assert not any(re.search(r"\b(are|keep|crosses|plus signs)\b", caption) for caption in one)


def test_too_many_clips():
    with pytest.raises(ValueError, match="has 2256 foregrounds, too few for 2300 clips"):
        plan(0, DemoCounts(train=1800))
