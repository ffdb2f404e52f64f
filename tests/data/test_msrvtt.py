import json
from pathlib import Path
from typing import Any

import pytest

from calmctl.data.registry import load_dataset
from calmctl.errors import DatasetError

JSFUSION = 'key,vid_key,video_id,sentence\nret0,msr8,video8,a test sentence\nret1,msr9,video9,"commas, and so on"\n'


def info(ids: range, split: str | None, captions: int = 2) -> dict[str, Any]:
    """A videodatainfo file; sentences are not in the order of the videos, as in the real one."""
    videos = [{"video_id": f"video{k}", "id": k} | ({"split": split} if split else {}) for k in ids]
    sentences = [
        {"video_id": f"video{k}", "caption": f"{k} {j}", "sen_id": 0} for k in reversed(ids) for j in range(captions)
    ]
    return {"info": {}, "videos": videos, "sentences": sentences}


def merged(*parts: dict[str, Any]) -> dict[str, Any]:
    return {key: [item for part in parts for item in part[key]] for key in ("videos", "sentences")}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Ten clips: 0-5 train, 6 validate, 7-9 test; 8 and 9 are 1k-A; clip 3 is missing, 4 is a webm."""
    folder = tmp_path / "annotations/msrvtt"
    videos = tmp_path / "videos/msrvtt/videos"
    folder.mkdir(parents=True)
    videos.mkdir(parents=True)
    for k in set(range(10)) - {3}:
        (videos / f"video{k}.{'webm' if k == 4 else 'mp4'}").touch()
    train_val = merged(info(range(6), "train"), info(range(6, 7), "validate"))
    (folder / "train_val_videodatainfo.json").write_text(json.dumps(train_val))
    (folder / "test_videodatainfo.json").write_text(json.dumps(info(range(7, 10), "test")))
    (folder / "MSRVTT_JSFUSION_test.csv").write_text(JSFUSION)
    (folder / "MSRVTT_train.9k.csv").write_text("video_id\n" + "".join(f"video{k}\n" for k in range(8)))
    (folder / "MSRVTT_train.7k.csv").write_text("video_id\r\n" + "".join(f"video{k}\r\n" for k in (1, 0, 3)))
    return tmp_path


def merge(root: Path, split: bool = True) -> None:
    """Replace the pair of 2016 by the one merged file."""
    folder = root / "annotations/msrvtt"
    pair = [folder / "train_val_videodatainfo.json", folder / "test_videodatainfo.json"]
    content = merged(*(json.loads(path.read_text()) for path in pair))
    for video in content["videos"]:
        if not split:
            video["split"] = "train"
    (folder / "MSRVTT_data.json").write_text(json.dumps(content))
    for path in pair:
        path.unlink()


def ids(split: Any) -> list[str]:
    return [clip.id for clip in split.clips]


@pytest.mark.parametrize("form", ["pair", "merged"])
def test_9k(root: Path, form: str) -> None:
    if form == "merged":
        merge(root)
    dataset = load_dataset("msrvtt", root, val_clips=0)
    assert (dataset.name, dataset.protocol, list(dataset.splits)) == ("msrvtt", "9k", ["train", "test"])
    train, test = dataset.splits["train"], dataset.splits["test"]
    assert ids(train) == [f"video{k}" for k in (0, 1, 2, 4, 5, 6, 7)]
    assert train.clips[3].path == root / "videos/msrvtt/videos/video4.webm"
    assert [(left.id, left.reason) for left in train.left_out] == [("video3", "no video file of this name")]
    for caption, owner in zip(train.captions, train.owners, strict=True):
        assert train.clips[owner].id == f"video{caption.split()[0]}"
    assert len(train.captions) == 14
    assert ids(test) == ["video8", "video9"]
    assert test.captions == ("a test sentence", "commas, and so on") and test.owners == (0, 1)
    assert "train: 8 clips in the annotation files, 9,000 published" in dataset.notes
    assert "test: 2 captions in the annotation files, 1,000 published" in dataset.notes
    assert "MSRVTT_train.9k.csv (SHA-256 " in dataset.notes[0]


def test_validation_is_carved_by_default(root: Path) -> None:
    dataset = load_dataset("msrvtt", root, val_clips=2, val_seed=3)
    assert len(dataset.splits["val"].clips) == 2 and len(dataset.splits["train"].clips) == 5
    assert "val: 2 of 7 train clips, carved with seed 3; they are not trained on" in dataset.notes
    assert len(load_dataset("msrvtt", root).splits["val"].clips) == 1, "500 of 9,000, or a tenth"
    assert not set(ids(dataset.splits["val"])) & set(ids(dataset.splits["train"]))


def test_7k_keeps_the_order_of_its_list(root: Path) -> None:
    dataset = load_dataset("msrvtt", root, protocol="7k", val_clips=0)
    assert ids(dataset.splits["train"]) == ["video1", "video0"]
    assert ids(dataset.splits["test"]) == ["video8", "video9"]


@pytest.mark.parametrize("form", ["pair", "merged"])
def test_full(root: Path, form: str) -> None:
    if form == "merged":
        merge(root)
    dataset = load_dataset("msrvtt", root, protocol="full")
    assert {name: ids(split) for name, split in dataset.splits.items()} == {
        "train": ["video0", "video1", "video2", "video4", "video5"],
        "val": ["video6"],
        "test": ["video7", "video8", "video9"],
    }
    assert len(dataset.splits["test"].captions) == 6
    with pytest.raises(DatasetError, match="no validation clips can be carved"):
        load_dataset("msrvtt", root, protocol="full", val_clips=2)


def test_full_by_position_where_the_file_does_not_tell(root: Path) -> None:
    merge(root, split=False)
    with pytest.raises(DatasetError, match=r"MSRVTT_data\.json: which split .* cannot be told"):
        load_dataset("msrvtt", root, protocol="full")
    content = info(range(10_000), None, captions=1)
    (root / "annotations/msrvtt/MSRVTT_data.json").write_text(json.dumps(content))
    dataset = load_dataset("msrvtt", root, protocol="full")
    sizes = {name: len(split.clips) + len(split.left_out) for name, split in dataset.splits.items()}
    assert sizes == {"train": 6513, "val": 497, "test": 2990}
    assert dataset.splits["test"].left_out[0].id == "video7010"


def test_only_the_test_files(root: Path) -> None:
    """As for an evaluation across datasets: nothing of train is needed."""
    for path in (root / "annotations/msrvtt").glob("*train*"):
        path.unlink()
    dataset = load_dataset("msrvtt", root)
    assert list(dataset.splits) == ["test"]
    with pytest.raises(DatasetError) as caught:
        dataset.splits["train"]
    message = str(caught.value)
    assert (
        "MSRVTT_train.9k.csv and MSRVTT_data.json, or MSRVTT_train.9k.csv and train_val_videodatainfo.json" in message
    )
    assert "Microsoft Research" in message and "--annotations" in message and str(root) in message


def test_no_files_at_all(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"msrvtt 9k: no train split, because MSRVTT_train\.9k\.csv and MSRVTT_data"):
        load_dataset("msrvtt", tmp_path)


def test_no_clips_at_all(root: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    with pytest.raises(DatasetError, match=r"not one of its 10 clips is in .*--videos"):
        load_dataset("msrvtt", root, videos=tmp_path_factory.mktemp("empty"))


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("MSRVTT_JSFUSION_test.csv", "key,video_id\n", r"no column 'sentence'"),
        ("MSRVTT_JSFUSION_test.csv", "video_id,sentence\n../../secret,x\n", r"names '\.\./\.\./secret', which is not"),
        ("MSRVTT_train.9k.csv", "video_id\n/etc/passwd\n", r"train split names '/etc/passwd'"),
        ("train_val_videodatainfo.json", '{"videos": []}', r"train_val_videodatainfo\.json: no 'sentences'"),
        ("train_val_videodatainfo.json", '{"sentences": [{"video_id": "v"}]}', r"sentences\[0\]: no 'caption'"),
        (
            "train_val_videodatainfo.json",
            '{"sentences": [{"video_id": 3, "caption": ""}]}',
            r"expected text, found int",
        ),
        ("train_val_videodatainfo.json", "[]", r"expected an object, found a list"),
        ("train_val_videodatainfo.json", "{", r"is not JSON"),
    ],
)
def test_malformed_files(root: Path, file: str, content: str, message: str) -> None:
    (root / "annotations/msrvtt" / file).write_text(content)
    with pytest.raises(DatasetError, match=message):
        load_dataset("msrvtt", root)


def test_repeated_and_captionless_clips_are_noted(root: Path) -> None:
    (root / "annotations/msrvtt/MSRVTT_train.9k.csv").write_text("video_id\nvideo1\nvideo1\nvideo77\n")
    dataset = load_dataset("msrvtt", root, val_clips=0)
    assert ids(dataset.splits["train"]) == ["video1"]
    assert "train: 1 clip is listed more than once; each is taken once" in dataset.notes
    assert dataset.splits["train"].left_out[0].reason == "no caption in the annotation files"
