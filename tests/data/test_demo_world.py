import random
import re
from collections import Counter
from dataclasses import asdict
from functools import cache
from itertools import chain

import pytest

from calmctl.data.demo_world import (
    BACKGROUNDS,
    CAPTIONS_PER_CLIP,
    IN_DOMAIN,
    SHIFTED,
    SHIFTED_BACKGROUNDS,
    STUDY,
    DemoCounts,
    Scene,
    describe,
    foregrounds,
    plan,
    pools,
)

# The background first: its words ("over nested rings") are read before those of a shape, and then gone.
ATTRIBUTES = ("background", "shape", "colour", "size", "count", "motion")
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
            if attribute == "background":
                caption = patterns(grammar_name, attribute)[values[0]].sub("", caption)
    return named


def by_split(clips):
    return [[c for c in clips if (c.shifted, c.split) == key] for key in {(c.shifted, c.split) for c in clips}]


def test_counts_and_identifiers(clips):
    sizes = {(members[0].shifted, members[0].split): len(members) for members in by_split(clips)}
    assert sizes == {(False, "train"): 1500, (False, "val"): 100, (False, "test"): 200, (True, "test"): 200}
    assert len({clip.id for clip in clips}) == len(clips)


def test_no_foreground_occurs_twice_so_what_is_tested_was_never_trained_on(clips):
    seen = {tuple(getattr(clip.scene, attribute) for attribute in ATTRIBUTES[1:]) for clip in clips}
    assert len(seen) == len(clips)


def test_the_shifted_domain_has_backgrounds_of_its_own(clips):
    assert not set(BACKGROUNDS) & set(SHIFTED_BACKGROUNDS)
    assert {clip.scene.background for clip in clips if clip.shifted} == set(SHIFTED_BACKGROUNDS)
    assert {clip.scene.background for clip in clips if not clip.shifted} == set(BACKGROUNDS)


def test_number_of_foregrounds():
    # 12 shapes, 9 colours, 2 sizes, 4 counts, 6 motions, less the circles and the rings that spin
    assert len(foregrounds()) == len(set(foregrounds())) == 12 * 9 * 2 * 4 * 6 - 2 * 9 * 2 * 4
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
    with pytest.raises(ValueError, match="has 1000 foregrounds for test, too few for 1001 clips"):
        plan(0, DemoCounts(test=1001))


def test_foregrounds_are_enough_for_a_study_and_for_pretraining():
    assert len(foregrounds()) == len(set(foregrounds())) >= 5000
    dealt = pools(0)
    assert {name: len(dealt[name]) >= count for name, count in asdict(STUDY).items()} == dict.fromkeys(
        asdict(STUDY), True
    )
    assert sorted(chain.from_iterable(dealt.values())) == sorted(foregrounds()) and len(dealt["pretraining"]) > 1000


def test_fewer_clips_are_the_first_of_more(clips):
    more = {clip.id: clip for clip in plan(0, STUDY)}
    assert all(more[clip.id] == clip for clip in clips)


@pytest.mark.parametrize(("dial", "named"), [("0.6", 3), ("0.4", 2)])
def test_the_dial_says_how_many_attributes_a_training_caption_names(clips, dial, named):
    train = [clip for clip in clips if clip.split == "train"]
    assert all(clip.partial == {} for clip in clips if clip.split != "train")
    counted = Counter()
    for clip in train[:300]:
        assert len(clip.partial[dial]) == CAPTIONS_PER_CLIP
        for caption in clip.partial[dial]:
            found = read_caption(caption, "in domain")
            foreground = set(found) - {"background"}
            assert {name: getattr(clip.scene, name) for name in found} == found, caption
            assert len(foreground) == named, caption
            # A plural would tell half of a count that is not named.
            assert "count" in foreground or not plurals(caption), caption
            counted.update(foreground)
    assert max(counted.values()) < 1.2 * min(counted.values())  # no attribute is left out more often


def plurals(caption):
    words = [f"{word}{'es' if word[-1] in 'sx' else 's'}" for words in IN_DOMAIN.shape.values() for word in words]
    return [word for word in (*words, "shapes") if re.search(rf"\b{word}\b", caption)]
