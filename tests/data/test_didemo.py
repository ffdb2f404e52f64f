import json
from pathlib import Path

import pytest

from calmctl.data.registry import load_dataset
from calmctl.errors import DatasetError

# The clip a@N0_1_x is there under two names; b's name ends in a bare dot; c is in no list.
ROWS = [
    ("a@N0_1_x.mov", "first."),
    ("b@N0_2_y.", 'the\nother, "quoted"'),
    ("a@N0_1_x.mp4", "second"),
    ("c@N0_3_z.m2ts", "unlisted"),
    ("a@N0_1_x.mov", "third"),
]
JSON = [
    {"annotation_id": k, "description": text, "dl_link": "", "num_segments": 6, "times": [[0, 0]], "video": name}
    for k, (name, text) in enumerate(ROWS)
]
CSV = (
    "success,video_path,starts,ends,text,formatted_data\n"
    'True,/home/somebody/videos/a@N0_1_x.mov,tensor([[0]]),tensor([[31]]),"first. third",x\n'
    'True,C:\\videos\\b@N0_2_y.,tensor([0]),tensor([31]),"two\nlines",x\n'
)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "annotations/didemo"
    videos = tmp_path / "videos/didemo"
    folder.mkdir(parents=True)
    videos.mkdir(parents=True)
    for split in ("val", "test"):
        (folder / f"{split}_data.json").write_text(json.dumps(JSON))
        (folder / f"ce_{split}_list.txt").write_text("b@N0_2_y.\na@N0_1_x.mov\nd@N0_4_w.avi")
    for name in ("a@N0_1_x.mp4", "b@N0_2_y.", "c@N0_3_z.m2ts"):
        (videos / name).touch()
    return tmp_path


def test_all_descriptions_of_a_clip_in_json_order(root: Path) -> None:
    test = load_dataset("didemo", root).splits["test"]
    assert [clip.id for clip in test.clips] == ["a@N0_1_x", "b@N0_2_y"], "in the order of the JSON"
    assert test.captions == ("first. second third", 'the\nother, "quoted"')
    assert [(clip.start_s, clip.end_s, clip.path.name) for clip in test.clips] == [
        (0.0, 31.0, "a@N0_1_x.mp4"),
        (0.0, 31.0, "b@N0_2_y."),
    ]
    assert [left.id for left in test.left_out] == ["d@N0_4_w"]


def test_without_a_list_every_clip_counts(root: Path) -> None:
    for path in (root / "annotations/didemo").glob("*.txt"):
        path.unlink()
    dataset = load_dataset("didemo", root)
    assert [clip.id for clip in dataset.splits["test"].clips] == ["a@N0_1_x", "b@N0_2_y", "c@N0_3_z"]
    assert "test: 5 descriptions joined into 3 paragraphs" in dataset.notes


def test_descriptions_with_the_moments_that_annotators_chose(root: Path) -> None:
    path = root / "annotations/didemo/test_data.json"
    rows = [{**row, "times": [[0, 0], [4, 5]] if k == 1 else [[2, 2]]} for k, row in enumerate(JSON)]
    path.write_text(json.dumps(rows))
    test = load_dataset("didemo", root, protocol="moments").splits["test"]
    assert test.captions == ("first.", 'the\nother, "quoted"', "second", "unlisted", "third")
    assert test.moments[:3] == (((10.0, 15.0),), ((0.0, 5.0), (20.0, 30.0)), ((10.0, 15.0),))
    for bad in ([[0, 6]], [[3, 2]], [[0]], [["0", "1"]], [[0.0, 1.0]]):
        path.write_text(json.dumps([{**JSON[0], "times": bad}]))
        with pytest.raises(DatasetError, match=r"times: expected two pieces from 0 to 5"):
            load_dataset("didemo", root, protocol="moments").splits["test"]


def test_the_missing_train_file_matters_to_train_only(root: Path) -> None:
    dataset = load_dataset("didemo", root)
    assert dataset.protocol == "official" and list(dataset.splits) == ["val", "test"]
    with pytest.raises(DatasetError, match=r"no train split, because train_data\.json cannot be found .* Hendricks"):
        dataset.splits["train"]
    assert any("no train split" in note for note in dataset.notes)


def test_tmass_groups_by_file_name(root: Path) -> None:
    """Its own table, and the same made from JSON and list: the sentence under the other name is lost."""
    dataset = load_dataset("didemo", root, protocol="tmass")
    assert dataset.splits["test"].captions[0] == "first. third"
    (root / "annotations/didemo/didemo_test_label.csv").write_text(CSV)
    test = load_dataset("didemo", root, protocol="tmass").splits["test"]
    assert [clip.id for clip in test.clips] == ["a@N0_1_x", "b@N0_2_y"]
    assert test.captions == ("first. third", "two\nlines")
    assert {clip.end_s for clip in test.clips} == {31.0}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{}", "expected a list, found an object"),
        ('[{"video": "x.mp4"}]', r"\[0\]: no 'description'"),
        ('[{"video": "../x.mp4", "description": "x"}]', "names '', which is not the name of a clip"),
        ('[{"video": "a/../../x", "description": "x"}]', "names 'a/', which is not the name of a clip"),
    ],
)
def test_malformed_json(root: Path, content: str, message: str) -> None:
    (root / "annotations/didemo/test_data.json").write_text(content)
    (root / "annotations/didemo/ce_test_list.txt").unlink()
    with pytest.raises(DatasetError, match=message):
        load_dataset("didemo", root)
