import json
from pathlib import Path
from typing import Any

import pytest

from calmctl.captions.files import read_hypotheses, read_references
from calmctl.errors import DatasetError


@pytest.fixture
def file(tmp_path: Path) -> Any:
    def write(content: Any) -> Path:
        path = tmp_path / "it.json"
        path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
        return path

    return write


@pytest.mark.parametrize(
    "content",
    [
        {"1": "a dog", "2": ""},
        {"1": ["a dog"], "2": [""]},
        {"1": [{"caption": "a dog"}], "2": [{"image_id": 2, "caption": ""}]},
        [{"image_id": 1, "caption": "a dog"}, {"image_id": 2, "caption": ""}],
        [{"video_id": "1", "caption": "a dog", "id": 7}, {"video_id": "2", "caption": "", "id": 8}],
        {"annotations": [{"image_id": 1, "caption": "a dog"}, {"image_id": 2, "caption": ""}], "images": []},
        [{"id": 1, "caption": "a dog"}, {"id": 2, "caption": ""}],
        [{"file_name": "1", "id": 8, "text": "a dog"}, {"file_name": "2", "id": 9, "text": ""}],
        {"version": "x", "results": [{"image_id": 1, "caption": "a dog"}, {"image_id": 2, "caption": ""}]},
        {"results": {"1": [{"sentence": "a dog", "timestamp": [0, 1]}], "2": [{"sentence": ""}]}},
        {"predictions": [{"image_id": 1, "caption": "a dog"}, {"image_id": 2, "caption": ""}]},
        # calmctl caption --json, and calmctl eval --json of a captioner
        {"run": "r", "weights": "best", "search": "beam 5", "left_out": {},
         "captions": {"1": {"caption": "a dog", "log_prob": -1.0}, "2": {"caption": "", "log_prob": -2.0}}},
        {"results": [{"dataset": "d", "captions": {"1": {"caption": "a dog", "references": ["x"]},
                                                   "2": {"caption": "", "references": ["y"]}}}], "run": "r"},
    ],
)  # fmt: skip
def test_captions_in_every_form(content: Any, file: Any) -> None:
    assert read_hypotheses(file(content)) == {"1": "a dog", "2": ""}


@pytest.mark.parametrize(
    "content",
    [
        {"v1": ["a dog", "dög\n"], "v2": ["a cat"]},
        {"v1": ["a dog", "dög\n"], "v2": "a cat"},
        {"v1": [{"caption": "a dog", "id": 1}, {"caption": "dög\n"}], "v2": [{"caption": "a cat"}]},
        {
            "info": {},
            "images": [{"id": "v1"}],
            "licenses": [],
            "type": "captions",
            "annotations": [
                {"image_id": "v1", "caption": "a dog", "id": 1},
                {"image_id": "v2", "caption": "a cat", "id": 2},
                {"image_id": "v1", "caption": "dög\n", "id": 3},
            ],
        },
        {
            "videos": [{"video_id": "v1", "split": "test"}],
            "sentences": [
                {"video_id": "v1", "caption": "a dog", "sen_id": 1},
                {"video_id": "v1", "caption": "dög\n", "sen_id": 2},
                {"video_id": "v2", "caption": "a cat", "sen_id": 3},
            ],
        },
    ],
)
def test_references_in_every_form(content: Any, file: Any) -> None:
    assert read_references(file(content)) == {"v1": ["a dog", "dög\n"], "v2": ["a cat"]}


def test_keys_in_capitals_and_lists_of_captions(file: Any) -> None:
    content = [{"Video": "a", "Captions": ["one", "two"], "split": "test"}, {"Video": "b", "Captions": "three"}]
    assert read_references(file(content)) == {"a": ["one", "two"], "b": ["three"]}
    with pytest.raises(DatasetError, match="two of these differ in capitals only"):
        read_references(file([{"video": "a", "caption": "one", "Caption": "two"}]))


@pytest.mark.parametrize(
    ("name", "known", "called"),
    [
        ("N/sub/clip1.mp4", "sub/clip1.mp4", "sub/clip1.mp4"),
        ("N/sub/clip1.mp4", "sub/clip1", "sub/clip1"),
        ("N/sub/clip1.mp4", "clip1", "clip1"),
        ("N/cafe\u0301.mp4", "caf\u00e9", "caf\u00e9"),
        ("caf\u00e9", "cafe\u0301", "cafe\u0301"),
        ("clip1", "clip10", "clip1"),
        ("/", "clip1", "/"),
    ],
)
def test_a_path_stands_for_its_ends(name: str, known: str, called: str, file: Any) -> None:
    assert read_hypotheses(file({name: "a dog"}), {known: ["a"]}) == {called: "a dog"}


def test_the_longest_end_of_a_path_is_meant(file: Any) -> None:
    captions = {"N/sub/clip1.mp4": "one", "N/clip1.mp4": "two"}
    assert read_hypotheses(file(captions), ["clip1", "sub/clip1"]) == {"sub/clip1": "one", "clip1": "two"}
    with pytest.raises(DatasetError, match="two captions are of 'clip1'"):
        read_hypotheses(file(captions), ["clip1"])


def test_a_video_may_be_called_annotations(file: Any) -> None:
    assert read_references(file({"annotations": ["a dog"], "b": ["c"]})) == {"annotations": ["a dog"], "b": ["c"]}
    assert read_hypotheses(file({"annotations": "a dog"})) == {"annotations": "a dog"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"a": "x",\n"b": }', r"it\.json is not JSON \(line 2"),
        (b'{"a": "x\xff"}', r"it\.json:1: not UTF-8"),
        (b'{"a": "x", "b": "y", "a": "z"}', "'a' stands twice in one object"),
        (b"[" * 100_000, "not JSON that can be read"),
        ("text", "expected a list, found text"),
        (3, "expected a list, found int"),
        ([], "no captions in it"),
        ({}, "no captions in it"),
        ({"annotations": []}, "annotations: there are no captions in it"),
        ({"a": None}, "'a': the caption is null; write \"\""),
        ({"a": 3}, "'a': the caption: expected text, found int"),
        ({"a": {"text": "x"}}, "'a': the caption: expected text, found an object"),
        ([["a", "x"]], r"it\.json\[0\]: expected .*image_id"),
        ([{"image_id": 1, "caption": "x"}, {"image_id": 2}], r"it\.json\[1\]: expected .*\"caption\""),
        ([{"number": 1, "caption": "x"}], r"it\.json\[0\]: expected .*image_id"),
        ({"results": [{"captions": {"a": "x"}}, {"captions": {"a": "y"}}]}, "captions of 2 test sets"),
        ({"search": "beam 5", "segments": {"a": []}}, "captions of moments"),
        ([{"image_id": None, "caption": "x"}], "an id must be text or a whole number, not 'None'"),
        ([{"image_id": True, "caption": "x"}], "an id must be text or a whole number"),
        ([{"image_id": 1.5, "caption": "x"}], "an id must be text or a whole number"),
        ([{"image_id": 1, "caption": ["x"]}], r"it\.json\[0\]: the caption: expected text, found a list"),
    ],
)
def test_malformed_files_are_refused_with_the_place(content: Any, message: str, file: Any) -> None:
    for read in (read_hypotheses, read_references):
        with pytest.raises(DatasetError, match=message):
            read(file(content))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("it.csv", "video,caption\n1,a dog\n2,\n"),
        ("it.CSV", 'caption,id\n"a dog",1\n"",2\n'),
        ("it.jsonl", '{"id": 1, "caption": "a dog"}\n\n{"id": 2, "caption": ""}\n'),
    ],
)
def test_tables(name: str, content: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(content)
    assert read_hypotheses(tmp_path / name) == {"1": "a dog", "2": ""}
    assert read_references(tmp_path / name) == {"1": ["a dog"], "2": [""]}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("it.csv", "video,caption\n1\n", r"it\.csv:2: 1 fields"),
        ("it.csv", "video,label\n1,x\n", r"it\.csv:2: expected .*image_id"),
        ("it.csv", "video,caption\n", "no captions in it"),
        ("it.tsv", "video\tcaption\n", "no captions in it"),
        ("it.jsonl", '{"id": 1, "caption": "x"}\n{"id": 2', r"it\.jsonl:2 is not JSON \("),
        (
            "it.jsonl",
            '{"id": 1, "id": 2, "caption": "x"}\n',
            r"it\.jsonl:1 is not JSON .*'id' stands twice",
        ),
        ("it.jsonl", "3\n", r"it\.jsonl:1: expected"),
    ],
)
def test_malformed_tables_are_refused_with_the_line(name: str, content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(content)
    for read in (read_hypotheses, read_references):
        with pytest.raises(DatasetError, match=message):
            read(tmp_path / name)


def test_a_path_stands_for_a_file_name_and_for_a_stem(file: Any) -> None:
    """As `calmctl caption F/clip0.mp4` names its clips; an id that is known as it stands keeps its name."""
    captions = {"F/clip0.mp4": {"caption": "a"}, "F/clip1.mp4": {"caption": "b"}, "G/c.d": {"caption": "e"}}
    own = file({"captions": captions})
    known = {"clip0": [], "clip1.mp4": [], "G/c.d": [], "c": []}
    assert read_hypotheses(own, known) == {"clip0": "a", "clip1.mp4": "b", "G/c.d": "e"}
    assert list(read_hypotheses(own, {})) == ["F/clip0.mp4", "F/clip1.mp4", "G/c.d"]
    twice = file({"captions": {"F/clip0.mp4": {"caption": "a"}, "G/clip0.mp4": {"caption": "b"}}})
    with pytest.raises(DatasetError, match=r"two captions are of 'clip0', one of them as 'G/clip0\.mp4'"):
        read_hypotheses(twice, known)


@pytest.mark.parametrize(
    "content",
    [
        {"a": ["x", "y"]},
        [{"image_id": "a", "caption": "x"}, {"image_id": "a", "caption": "x"}],
        {"sentences": [{"video_id": "a", "caption": "x"}, {"video_id": "a", "caption": "y"}]},
    ],
)
def test_two_captions_of_one_id_are_refused(content: Any, file: Any) -> None:
    with pytest.raises(DatasetError, match="'a' has 2 captions; exactly one an id is scored"):
        read_hypotheses(file(content))


def test_no_caption_and_no_reference_of_an_id(file: Any) -> None:
    with pytest.raises(DatasetError, match="'a' has 0 captions"):
        read_hypotheses(file({"a": []}))
    with pytest.raises(DatasetError, match="'a' has an empty list of references"):
        read_references(file({"a": []}))


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="No such file"):
        read_hypotheses(tmp_path / "nothing.json")


@pytest.mark.real
def test_the_official_test_set_is_a_reference_file(real_data: Path) -> None:
    references = read_references(real_data / "annotations" / "msrvtt" / "test_videodatainfo.json")
    assert len(references) == 2990
    assert {len(captions) for captions in references.values()} == {20}
    assert "video7010" in references
    msvd = read_references(real_data / "annotations" / "msvd" / "captions_msvd.json")
    assert sum(map(len, msvd.values())) == 80_827
