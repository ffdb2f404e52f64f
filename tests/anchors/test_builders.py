"""Label lists in the forms they are published in, and what is wrong with some."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calmctl.anchors.label_lists import Built, build_vocabulary, case_twins
from calmctl.anchors.vocabulary import format_vocabulary, load_vocabulary, save_vocabulary
from calmctl.errors import VocabularyError


def build(folder: Path, file: str, content: str | bytes, **options: object) -> Built:
    path = folder / file
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return build_vocabulary(path, **options)  # type: ignore[arg-type]


def pairs(built: Built) -> list[tuple[str, str]]:
    return [(label.id, label.text) for label in built.vocabulary.labels]


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.txt", "cat\ndog\n", [("a000", "cat"), ("a001", "dog")]),
        ("a.txt", "cat\r\ndog", [("a000", "cat"), ("a001", "dog")]),
        ("a.txt", "\ufeffcat\ndog\n\n\n", [("a000", "cat"), ("a001", "dog")]),
        ("a.txt", "  cat  flap \ndog's bed", [("a000", "cat flap"), ("a001", "dog's bed")]),
        ("a.txt", "cafe\u0301\ndog", [("a000", "café"), ("a001", "dog")]),
        ("a.txt", "c000 Holding it\nc001 Put (it), down", [("c000", "Holding it"), ("c001", "Put (it), down")]),
        ("a.txt", "n0144 tench\nn0145 goldfish, fish", [("n0144", "tench"), ("n0145", "goldfish, fish")]),
        ("a.txt", "1\tcat\tyes\n3\tdog\tno", [("1", "cat"), ("3", "dog")]),
        ("a.txt", "1: bend (at: the waist)\n79: talk to (e.g., self)",
         [("1", "bend (at: the waist)"), ("79", "talk to (e.g., self)")]),
        ("a.txt", "1 Archery\n2 YoYo", [("1", "Archery"), ("2", "YoYo")]),
        ("a.txt", "100 metres\n400 metres", [("a000", "100 metres"), ("a001", "400 metres")]),
        ("a.txt", "no\noff\n1e5", [("a000", "no"), ("a001", "off"), ("a002", "1e5")]),
        ("a.tsv", "4\tcat\n5\tdog", [("4", "cat"), ("5", "dog")]),
        ("a.csv", "index,mid,display_name\n0,/m/1,Speech\n1,/m/2,\"Male, man\"\n",
         [("/m/1", "Speech"), ("/m/2", "Male, man")]),
        ("a.csv", "label\ncat\ndog", [("a000", "cat"), ("a001", "dog")]),
        ("a.csv", "cat,10,pet\n\"dog, big\",20,pet", [("a000", "cat"), ("a001", "dog, big")]),
        ("a.csv", "7,cat\n8,dog\n", [("7", "cat"), ("8", "dog")]),
        ("a.json", '["cat", "dog"]', [("a000", "cat"), ("a001", "dog")]),
        ("a.json", '{"0": "cat", "1": "dog"}', [("0", "cat"), ("1", "dog")]),
        ("a.json", '{"dog": 1, "cat": 0}', [("0", "cat"), ("1", "dog")]),
        ("a.json", '[{"id": 3, "name": "cat"}, {"id": 1, "name": "dog"}]', [("3", "cat"), ("1", "dog")]),
        ("a.json", '{"info": {}, "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]}',
         [("1", "cat"), ("2", "dog")]),
    ],
)  # fmt: skip
def test_forms(tmp_path: Path, name: str, content: str, expected: list[tuple[str, str]]) -> None:
    assert pairs(build(tmp_path, name, content)) == expected


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.txt", "cat\ndog\ncat\n", "1 label repeats: 'cat' (line 1, line 3); correct the list or keep"),
        ("a.txt", "a\na\nb\nb\nc\nc\nd\nd", "4 labels repeat: 'a' (line 1, line 2); 'b' (line 3, line 4); "),
        ("a.txt", "cat \n cat", "'cat' (line 1, line 2)"),
        ("a.txt", "caf\u00e9\ncafe\u0301", "'café' (line 1, line 2)"),
        ("a.txt", "cat\n\ndog", "line 2: the label is empty"),
        ("a.txt", "c000 A\nc001 B\n\nc002 C", "line 3: the label is empty"),
        ("a.txt", "cat\ndog\x07", "line 2: 'dog\\x07' holds characters that cannot be printed"),
        ("a.txt", "c000 A b\nc001 C d\nc02 E", "line 3: 'c02 E' is not 'cNNN Label' as the others are"),
        ("a.txt", "1: A\n2: C\nthree: E", "line 3: 'three: E' is not 'id: label'"),
        ("a.txt", "1\tA\n1\tB", "line 2: the id '1' is also that of line 1"),
        ("a.txt", "1\tA\n2\t", "line 2: the label is empty"),
        ("a.txt", "/m/1\tSpeech\n/m/2\tMusic", "line 1: a tab, but no plain id before it"),
        ("a.txt", "", "holds no labels"),
        ("a.txt", "\n\n", "holds no labels"),
        ("a.txt", b"cat\ncaf\xe9", "line 2: not UTF-8"),
        ("a.txt", "only one", "at least 2 labels"),
        ("a.csv", "label,n\ncat,1\n,2\n", "line 3: the label is empty"),
        ("a.csv", "label,n\ncat,1\n\ndog,2\n", "line 3: the label is empty"),
        ("a.csv", "n,label\n1,cat\n2\n", "line 3: 1 columns, so none is column 2"),
        ("a.csv", 'label\n"cat\ndog', "not a CSV table"),
        ("a.json", '["cat", "cat"]', "'cat' (entry 1, entry 2)"),
        ("a.json", '["cat", 3]', "entry 2: 3 is not a label"),
        ("a.json", '{"0": "cat", "0": "dog"}', "'0' stands twice in one object"),
        ("a.json", '[{"id": 1}]', "entry 1 has no label"),
        ("a.json", '["cat",\n', "is not JSON (line 2"),
        ("a.json", "3", "is neither a list nor an object"),
        ("a.json", "[" * 100_000, "nested too deeply"),
    ],
)
def test_faults_name_the_place(tmp_path: Path, name: str, content: str | bytes, said: str) -> None:
    with pytest.raises(VocabularyError) as caught:
        build(tmp_path, name, content)
    assert str(tmp_path / name) in str(caught.value)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_files_and_folders(tmp_path: Path) -> None:
    with pytest.raises(VocabularyError, match="does not exist"):
        build_vocabulary(tmp_path / "none.txt")
    with pytest.raises(VocabularyError, match="cannot read"):
        build_vocabulary(tmp_path)


def test_keep_first_keeps_the_first_and_says_which(tmp_path: Path) -> None:
    built = build(tmp_path, "a.txt", "cat\ndog\ncat\ncow\ncat", keep_first=True)
    assert pairs(built) == [("a000", "cat"), ("a001", "dog"), ("a002", "cow")]
    assert built.dropped == ("'cat' (line 1, line 3, line 5)",)


def test_spell_out_parts_joined_words_and_is_hinted_at(tmp_path: Path) -> None:
    text = "brush_hair\nApplyEyeMakeup\nplay TV set"
    plain = build(tmp_path, "a.txt", text)
    assert plain.vocabulary.texts == ("brush_hair", "ApplyEyeMakeup", "play TV set")
    assert "2 labels are joined words" in plain.hints[0]
    spelt = build(tmp_path, "a.txt", text, spell_out=True)
    assert spelt.vocabulary.texts == ("brush hair", "Apply Eye Makeup", "play TV set")
    assert spelt.hints == ()


def test_a_repeat_that_spelling_out_makes_is_found(tmp_path: Path) -> None:
    with pytest.raises(VocabularyError, match="1 label repeats"):
        build(tmp_path, "a.txt", "brush_hair\nbrush hair", spell_out=True)


def test_labels_that_clip_reads_alike_are_repeats(tmp_path: Path) -> None:
    assert case_twins(("Cat", "dog", "cat", "dog")) == [("Cat", "cat")]
    text = "Red Shape\ndog\nred shape\nRed Shape\n"
    with pytest.raises(
        VocabularyError, match=r"1 label repeats .CLIP ignores capitals.: 'Red Shape', 'red shape' .line 1, l"
    ):
        build(tmp_path, "a.txt", text)
    built = build(tmp_path, "a.txt", text, keep_first=True)
    assert built.vocabulary.texts == ("Red Shape", "dog")
    assert built.dropped == ("'Red Shape', 'red shape' (line 1, line 3, line 4)",)


@pytest.mark.parametrize(("table", "key"), [("label,n,label\na,1,b\n", "label"), ("id,id,name\n1,2,a\n", "id")])
def test_a_column_that_stands_twice_is_no_choice(tmp_path: Path, table: str, key: str) -> None:
    with pytest.raises(VocabularyError, match=f"the column '{key}' stands twice"):
        build(tmp_path, "a.csv", table)
    assert build(tmp_path, "b.csv", "label,n,label\na,1,b\nc,2,d\n", column="3").vocabulary.texts == ("b", "d")


def test_columns_can_be_chosen(tmp_path: Path) -> None:
    table = "Klasse;x,Tier\n1,Katze\n2,Hund"
    assert pairs(build(tmp_path, "a.csv", table, column="tier")) == [("a000", "Katze"), ("a001", "Hund")]
    with pytest.raises(VocabularyError, match=r"has no column 'dier'; it has klasse;x, tier"):
        build(tmp_path, "a.csv", table, column="dier")
    assert build(tmp_path, "b.csv", "x,cat\ny,dog", column="2").vocabulary.texts == ("cat", "dog")
    assert build(tmp_path, "b.tsv", "/m/1\tcat\n/m/2\tdog", column="2").vocabulary.texts == ("cat", "dog")
    with pytest.raises(VocabularyError, match=r"\.csv or \.tsv file only"):
        build(tmp_path, "a.txt", "cat\ndog", column="1")


def test_fields_have_defaults_and_can_be_given(tmp_path: Path) -> None:
    plain = build(tmp_path, "My Labels (2).txt", "cat\ndog").vocabulary
    assert (plain.reference, plain.source, plain.licence) == ("my-labels-2@1", "My Labels (2).txt", "not stated")
    told = build(
        tmp_path, "a.txt", "cat\ndog", name="pets", version=3, source="us", licence="CC0", note="n", prompt="a {label}"
    ).vocabulary
    assert (told.reference, told.source, told.licence, told.note) == ("pets@3", "us", "CC0", "n")
    assert told.prompts == ("a cat", "a dog")


def test_an_edited_vocabulary_can_be_renewed_under_another_version(tmp_path: Path) -> None:
    first = build(tmp_path, "a.txt", "cat\ndog", name="pets", licence="CC0").vocabulary
    edited = tmp_path / "pets@1.yaml"
    edited.write_text(format_vocabulary(first).replace("dog", "cow"))
    with pytest.raises(VocabularyError, match="changed by hand"):
        load_vocabulary(edited)
    renewed = build_vocabulary(edited, version=2).vocabulary
    assert (renewed.reference, renewed.licence, renewed.texts) == ("pets@2", "CC0", ("cat", "cow"))
    assert [label.id for label in renewed.labels] == ["a000", "a001"]
    save_vocabulary(renewed, tmp_path / "pets@2.yaml")
    assert load_vocabulary(tmp_path / "pets@2.yaml") == renewed


_WORDS = st.text("abc", min_size=1, max_size=4)


@settings(deadline=None)
@given(st.lists(_WORDS, min_size=2, max_size=12, unique=True))
def test_every_form_of_one_list_gives_the_same_labels(
    tmp_path_factory: pytest.TempPathFactory, words: list[str]
) -> None:
    folder = tmp_path_factory.mktemp("lists")
    forms = {
        "lines.txt": "\n".join(words),
        "tabs.txt": "\n".join(f"{n}\t{word}\tmore" for n, word in enumerate(words)),
        "colons.txt": "\n".join(f"{n}: {word}" for n, word in enumerate(words)),
        "charades.txt": "\n".join(f"c{n:03d} {word}" for n, word in enumerate(words)),
        "header.csv": "id,name\n" + "\n".join(f"{n},{word}" for n, word in enumerate(words)),
        "list.json": json.dumps(words),
        "index.json": json.dumps({word: n for n, word in enumerate(words)}),
    }
    for name, content in forms.items():
        assert build(folder, name, content).vocabulary.texts == tuple(words), name


@pytest.mark.real
def test_every_public_list_builds(real_data: Path) -> None:
    lists = sorted((real_data / "anchors").rglob("*.*"))
    built = {path.name: build_vocabulary(path, keep_first=True) for path in lists}
    sizes = {name: len(each.vocabulary) for name, each in built.items()}
    assert len(lists) == 25
    assert sizes["Charades_v1_classes.txt"] == 157
    assert sizes["coco_91.txt"] == 91
    assert sizes["kinetics400.txt"] == 400
    assert sizes["kinetics710.txt"] == 710
    assert sizes["lvis_v1_1203.txt"] == 1203
    assert sizes["places365.txt"] == 365
    assert sizes["audioset_527.csv"] == sizes["audioset_527.txt"] == 527
    assert sizes["vggsound_stat.csv"] == sizes["vggsound_309.txt"] == 309
    assert sizes["ava.txt"] == 60
    assert sizes["imagenet1k_openclip.txt"] == 998
    assert {name for name, each in built.items() if each.dropped} == {"imagenet1k_openclip.txt", "gym.txt"}
    assert built["audioset_527.csv"].vocabulary.texts == built["audioset_527.txt"].vocabulary.texts
    assert built["ava.txt"].vocabulary.labels[-1].id == "80"
    with pytest.raises(VocabularyError, match=r"2 labels repeat: 'missile' \(line 658, line 745\)"):
        build_vocabulary(real_data / "anchors" / "extra" / "imagenet1k_openclip.txt")
