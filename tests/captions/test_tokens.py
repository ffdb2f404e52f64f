import os
from collections.abc import Callable
from pathlib import Path

import pytest
from pycocoevalcap.tokenizer.ptbtokenizer import PUNCTUATIONS, PTBTokenizer

from calmctl.captions import tokens
from calmctl.captions import tokens as token_cache
from calmctl.captions.java import Java, one_line
from calmctl.captions.tokens import tokenize, tokenize_references
from calmctl.data.annotations import read_object
from calmctl.errors import RunFailed

# Whatever some program takes for the end of a line or for no character at all.
BREAKS = ["\n", "\r", "\r\n", "\v", "\f", "\x1c", "\x1d", "\x1e", "\x85", "\u2028", "\u2029", "\x00", "\x1a", "\t"]
CAPTIONS = [
    "A man (in a red T-shirt) isn't here.",
    "It's the dog's 2nd ball -- they can't, won't and don't care!",
    'He said "cannot" ... then: gonna/wanna; gotta go?!',
    "",
    "!?",
    "  ",
    "...",
    "A woman pays $5.50, £3 or 10% of 1,000 at 10:30 a.m.",
    "Mr. Smith's e-mail is me@example.org - see http://example.org/a?b=c or www.example.org.",
    "Café naïve 日本語 über señor",
    "we’re ‘quoting’ “things” – with dashes — and ellipses…",  # noqa: RUF001
    "a well-known mother-in-law's x-ray [sic] {and} so on etc.",
    "3-d 2-seat 9/11 from 1914-1918, call 972-438-6766 about t-shirt's",
    "o'clock c'mon rock'n'roll 'tis the '90s #tag @user a_b",
    "&amp; <b>bold</b> * + = ~ ^ | \\ / @ #",
    "u.s. army vs. n.a.s.a. team",
    "emoji 😀 and 𝒳 are dropped",  # noqa: RUF001
]


def corenlp_alone(caption: str, java: Java) -> str:
    return tokenize([caption], "ptb-java", java)[0]


@pytest.mark.usefixtures("java_on_path")
def test_tokens_are_those_of_pycocoevalcap(java: Java) -> None:
    asked = {str(number): [{"caption": caption}, {"caption": "a dog"}] for number, caption in enumerate(CAPTIONS)}
    theirs = PTBTokenizer().tokenize(asked)
    ours = tokenize_references([[one_line(caption, ""), "a dog"] for caption in CAPTIONS], "ptb-java", java)
    assert ours == list(theirs.values())


@pytest.mark.parametrize("line_break", BREAKS, ids=ascii)
def test_a_line_break_inside_a_caption_shifts_no_other(line_break: str, java: Java) -> None:
    captions = [f"a man{line_break}walks", "the second one", f"{line_break}the third{line_break}", "the last"]
    lines = tokenize([one_line(caption, "") for caption in captions], "ptb-java", java)
    assert lines == ["a man walks", "the second one", "the third", "the last"]


@pytest.mark.parametrize("line_break", ["\r", "\v", "\f", "\u2028", "\n"], ids=ascii)
def test_lines_are_counted(line_break: str, java: Java) -> None:
    """Were one of them let through, it would be noticed."""
    with pytest.raises(RunFailed, match="3 lines for 2 captions"):
        tokenize([f"a man{line_break}walks", "the second one"], "ptb-java", java)


@pytest.mark.parametrize(
    "captions",
    [[""], ["", ""], ["", "dog", ""], ["dog", "", "", ""], ["."], ["dog.", "."]],
    ids=lambda each: "|".join(each),
)
def test_empty_captions_keep_their_line(captions: list[str], java: Java) -> None:
    assert tokenize(captions, "ptb-java", java) == [caption.strip(".") for caption in captions]


def test_no_captions_need_no_java() -> None:
    assert tokenize([], "ptb-java") == []


def test_no_tokenizer_leaves_captions_as_they_are() -> None:
    assert tokenize(["A man, (walking)."], "none") == ["A man, (walking)."]


def test_any_install_path_will_do_and_nothing_is_written_there(
    tmp_path: Path, installed: Callable[[Path], Path], java: Java
) -> None:
    folder = installed(tmp_path / "in stall:100% é;") / "tokenizer"
    before = sorted(folder.iterdir())
    modified_ns = folder.stat().st_mtime_ns
    folder.chmod(0o555)
    assert tokenize(["It's a dog."], "ptb-java", java) == ["it 's a dog"]
    assert sorted(folder.iterdir()) == before
    assert folder.stat().st_mtime_ns == modified_ns


@pytest.mark.parametrize("caption", CAPTIONS)
def test_our_tokenizer_is_corenlps_on_what_captions_hold(caption: str, corenlp: dict[str, str]) -> None:
    assert tokenize([caption], "ptb-python") == [corenlp[caption]]


@pytest.fixture(scope="module")
def corenlp(java: Java) -> dict[str, str]:
    return dict(zip(CAPTIONS, tokenize([one_line(each, "") for each in CAPTIONS], "ptb-java", java), strict=True))


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("Don't stop.", "do n't stop ."),
        ("The cat's (old) toy", "the cat 's -lrb- old -rrb- toy"),
        ("I cannot, we'll gonna", "i can not , we 'll gon na"),
        ("well-known 3.5 1,000", "well-known 3.5 1,000"),
        ("wait... what?!", "wait ... what ?!"),
    ],
)
def test_the_conventions_of_the_treebank(caption: str, expected: str) -> None:
    assert tokens.tokenize_in_python(caption) == expected


def test_punctuation_is_pycocoevalcaps() -> None:
    """Brackets are in its list in capitals and so, lower-cased, never leave: a quirk that scores depend on."""
    line = tokenize(["a (b), c: d; e... `f` -- 'g' !"], "ptb-python")[0]
    assert line == "a -lrb- b -rrb- c d e f g"
    assert not set(line.split()) & set(PUNCTUATIONS)


@pytest.mark.real
def test_how_often_our_tokenizer_differs_on_real_captions(real_data: Path, java: Java) -> None:
    captions = [
        one_line(record["caption"], "")
        for name in ("train_val_videodatainfo.json", "test_videodatainfo.json")
        for record in read_object(real_data / "annotations" / "msrvtt" / name, dict)["sentences"]
    ]
    msvd = read_object(real_data / "annotations" / "msvd" / "captions_msvd.json", dict)
    captions += [one_line(caption, "") for found in msvd.values() for caption in found]
    theirs, ours = tokenize(captions, "ptb-java", java), tokenize(captions, "ptb-python")
    assert len(captions) == 280_827
    assert sum(a != b for a, b in zip(theirs, ours, strict=True)) == 4  # docs/caption-scoring.md


def forbidden(*_: object, **__: object) -> None:
    raise AssertionError("Java was started")


def test_references_are_tokenized_once(java: Java, cache_of_this_test: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    references = [["A dog.", "The dog's ball."], ["", "A cat!"]]
    first = tokenize_references(references, "ptb-java", java)
    assert first == [["a dog", "the dog 's ball"], ["", "a cat"]]
    monkeypatch.setattr(tokens, "java_process", forbidden)
    assert tokenize_references(references, "ptb-java", java) == first
    assert [path.parent for path in cache_of_this_test.rglob("*.txt")] == [token_cache.cache_folder()]
    for other in ([["A dog.", "The dog's ball.", ""], ["A cat!"]], [["A dog."]]):
        if [each for group in other for each in group] != [each for group in references for each in group]:
            with pytest.raises(AssertionError, match="Java was started"):
                tokenize_references(other, "ptb-java", java)
        else:
            assert tokenize_references(other, "ptb-java", java) == [["a dog", "the dog 's ball", ""], ["a cat"]]


def test_another_java_is_another_cache() -> None:
    assert token_cache.cached("ptb-java java 17", ["A"], lambda: ["old"]) == ["old"]
    assert token_cache.cached("ptb-java java 25", ["A"], lambda: ["new"]) == ["new"]
    assert token_cache.cached("ptb-java java 17", ["A"], lambda: ["not asked"]) == ["old"]


@pytest.mark.parametrize("damage", [b"", b"x", b"0" * 64 + b"\na dog\na cat"])
def test_a_damaged_cache_is_made_again(damage: bytes, cache_of_this_test: Path) -> None:
    def ask(answer: str) -> list[str]:
        return token_cache.cached("kind", ["A dog", "A cat"], lambda: ["a dog", answer])

    assert ask("a cat") == ask("not asked") == ["a dog", "a cat"]
    next(cache_of_this_test.rglob("*.txt")).write_bytes(damage)
    assert ask("a cat, again") == ask("not asked") == ["a dog", "a cat, again"]


def test_a_cache_that_cannot_be_written_is_done_without(cache_of_this_test: Path) -> None:
    cache_of_this_test.write_text("a file where a folder should be")
    assert token_cache.cached("kind", ["A"], lambda: ["a"]) == ["a"]
    assert token_cache.cached("kind", ["A"], lambda: ["b"]) == ["b"]


def test_a_user_without_a_home(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", no_home)
    assert token_cache.cached("kind", ["A"], lambda: ["a"]) == ["a"]


def test_the_cache_does_not_grow_without_end(cache_of_this_test: Path) -> None:
    for number in range(20):
        token_cache.cached("kind", [str(number)], lambda: ["x"])
        for path in cache_of_this_test.rglob("*.txt"):  # the clock is too coarse for files made at once
            os.utime(path, ns=(0, path.stat().st_mtime_ns - 10**9))
    assert len(list(cache_of_this_test.rglob("*.txt"))) == 16
    assert token_cache.cached("kind", ["19"], lambda: ["made again"]) == ["x"]
    assert token_cache.cached("kind", ["0"], lambda: ["made again"]) == ["made again"]
