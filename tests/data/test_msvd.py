import json
import pickle
from pathlib import Path

import pytest

from calmctl.data.registry import load_dataset
from calmctl.errors import DatasetError

CAPTIONS = {"-4w_5_15": ["a", "b", ""], "x_1_2": ["c"], "y_1_2": ["d", "e"], "no_list_1": ["f"]}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "annotations/msvd"
    videos = tmp_path / "videos/msvd/YouTubeClips"
    folder.mkdir(parents=True)
    videos.mkdir(parents=True)
    (folder / "captions_msvd.json").write_text(json.dumps(CAPTIONS))
    (folder / "train_list.txt").write_text("-4w_5_15\nz_1_2")
    (folder / "val_list.txt").write_text("x_1_2\n")
    (folder / "test_list.txt").write_bytes(b"y_1_2\r\n")
    for name in ("-4w_5_15.avi", "x_1_2.mp4", "y_1_2.avi"):
        (videos / name).touch()
    return tmp_path


def test_every_caption_is_a_query(root: Path) -> None:
    dataset = load_dataset("msvd", root)
    assert dataset.protocol == ""
    train, val, test = (dataset.splits[name] for name in ("train", "val", "test"))
    assert (train.captions, train.owners) == (("a", "b"), (0, 0))
    assert (test.captions, test.owners) == (("d", "e"), (0, 0))
    assert val.clips[0].path.name == "x_1_2.mp4" and val.clips[0].end_s is None
    assert "train: 1 empty caption left out" in dataset.notes
    assert "val: 1 clip in the annotation files, 100 published" in dataset.notes


def test_clips_that_a_release_lacks_captions_of(root: Path) -> None:
    """Some caption files cover 1,967 of the 1,970 clips."""
    left = load_dataset("msvd", root).splits["train"].left_out
    assert [(item.id, item.reason) for item in left] == [("z_1_2", "no caption in the annotation files")]


@pytest.mark.parametrize(
    ("captions", "message"),
    [
        ('{"x_1_2": "text"}', r"x_1_2: expected a list, found text"),
        ('{"x_1_2": [1]}', r"'x_1_2'\[0\]: expected text, found int"),
        ('["x_1_2"]', "expected an object, found a list"),
    ],
)
def test_malformed_captions(root: Path, captions: str, message: str) -> None:
    (root / "annotations/msvd/captions_msvd.json").write_text(captions)
    with pytest.raises(DatasetError, match=message):
        load_dataset("msvd", root)


def test_annotations_and_videos_given_apart(root: Path) -> None:
    dataset = load_dataset(
        "msvd", None, annotations=root / "annotations/msvd", videos=root / "videos/msvd/YouTubeClips"
    )
    assert [len(split.clips) for split in dataset.splits.values()] == [1, 1, 1]


DESCRIPTIONS = """# Video Description Corpus
# about the file

-4w_5_15 A squirrel eats it's peanut.
x_1_2 One
-4w_5_15\tA tab, too.
no_list_1 Nobody asks.
y_1_2 Two
-4w_5_15
"""


def test_tokens_and_descriptions_in_place_of_the_json(root: Path) -> None:
    """Each gives the captions in its own words, and the report says whose words they are."""
    folder = root / "annotations/msvd"
    (folder / "AllVideoDescriptions.txt").write_text(DESCRIPTIONS)
    (folder / "raw-captions.pkl").write_bytes(
        pickle.dumps({clip: [caption.split() for caption in captions] for clip, captions in CAPTIONS.items()})
    )
    json_first = load_dataset("msvd", root)
    assert not any("the captions are" in note for note in json_first.notes)
    (folder / "captions_msvd.json").unlink()
    tokens = load_dataset("msvd", root)
    assert tokens.splits["train"].captions == ("a", "b") and tokens.splits["test"].captions == ("d", "e")
    assert any(note.startswith("train: the captions are the words of raw-captions.pkl") for note in tokens.notes)
    (folder / "raw-captions.pkl").unlink()
    lines = load_dataset("msvd", root)
    assert lines.splits["train"].captions == ("A squirrel eats it's peanut.", "A tab, too.")
    assert lines.splits["test"].captions == ("Two",)
    assert any("published retrieval numbers rest on captions_msvd.json" in note for note in lines.notes)
    assert "train: 1 empty caption left out" in lines.notes


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (pickle.dumps([]), "expected an object, found a list"),
        (pickle.dumps({"-4w_5_15": "text"}), r"-4w_5_15: expected a list, found text"),
        (pickle.dumps({"-4w_5_15": ["text"]}), r"'-4w_5_15'\[0\]: expected a list, found text"),
        (pickle.dumps({"-4w_5_15": [[[]]]}), r"'-4w_5_15'\[0\]: expected text, found a list"),
        (b"cos\nsystem\n(S'true'\ntR.", r"raw-captions\.pkl: it holds GLOBAL, which is not plain data \(byte 0\)"),
    ],
)
def test_malformed_tokens(root: Path, content: bytes, message: str) -> None:
    (root / "annotations/msvd/captions_msvd.json").unlink()
    (root / "annotations/msvd/raw-captions.pkl").write_bytes(content)
    with pytest.raises(DatasetError, match=message):
        load_dataset("msvd", root)
