import json
import os
import sys
from pathlib import Path

import pytest

from calmctl.data.folder import FolderClips
from calmctl.data.locate import Missing
from calmctl.data.registry import load_dataset
from calmctl.errors import DatasetError
from calmctl.samples import Dataset, LeftOut, Split

NAMES = ["b.mp4", "a b.MOV", 'sub/ünï "q".webm', "sub/deep/b.avi", "twice.mp4", "twice.mkv", "notes.md", "photo.jpg"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in NAMES:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    return tmp_path


def load(folder: Path, **options: object) -> Dataset:
    return load_dataset("folder", folder, **options)  # type: ignore[arg-type]


def ids(split: Split) -> list[str]:
    return [clip.id for clip in split.clips]


ALL = ["a b", "b", "twice.mkv", "twice.mp4", 'sub/ünï "q"', "sub/deep/b"]


def test_a_folder_without_captions(folder: Path) -> None:
    dataset = load(folder)
    test = dataset.splits["test"]
    assert list(dataset.splits) == ["test"] and ids(test) == ALL
    assert test.captions == () and test.owners == ()
    assert test.clips[0].path == folder / "a b.MOV"
    assert dataset.notes[:2] == ("captions: none", "2 files without a video suffix were not taken (.md 1, .jpg 1)")
    assert dataset.notes[2].startswith("no captions file: enough to search, not to train")
    assert len(dataset.notes) == 3 and dataset.unread == ()


CSV = 'video,caption\nb.mp4,"One, and two"\nsub/deep/b,Three\nb,Four\n"a b.MOV",Five\ngone.mp4,Six\n'
ROWS = [
    {"video": "b.mp4", "caption": "One, and two"},
    {"id": "sub/deep/b", "text": "Three"},
    {"file_name": "./b", "captions": ["Four"]},
    {"path": "a b.MOV", "sentence": "Five"},
    {"video": "gone.mp4", "caption": "Six"},
]
OBJECT = {"b.mp4": ["One, and two", "Four"], "sub/deep/b": "Three", "a b.MOV": "Five", "gone.mp4": "Six"}
FILES = {
    "captions.csv": CSV,
    "captions.json": json.dumps(ROWS),
    "captions.jsonl": "\n".join(map(json.dumps, ROWS)) + "\n",
}


@pytest.mark.parametrize("name", FILES)
def test_captions_in_each_form(folder: Path, name: str) -> None:
    (folder / name).write_text(FILES[name])
    dataset = load(folder)
    test = dataset.splits["test"]
    assert ids(test) == ALL, "clips without a caption stay as candidates"
    assert test.captions == ("One, and two", "Three", "Four", "Five")
    assert [ALL[owner] for owner in test.owners] == ["b", "sub/deep/b", "b", "a b"]
    assert test.left_out == (LeftOut("gone.mp4", "no video file of this name"),)
    assert f"captions: {name}" in dataset.notes and "3 clips have no caption" in dataset.notes


def test_captions_as_one_object_elsewhere(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("notes") / "mine.JSON"
    path.write_text(json.dumps(OBJECT))
    for options in ({"annotations": path}, {"annotations": path, "videos": folder, "root": None}):
        root = options.pop("root", folder)
        test = load_dataset("folder", root, **options).splits["test"]
        assert sorted(test.captions) == ["Five", "Four", "One, and two", "Three"]


def test_a_split_column(folder: Path) -> None:
    rows = [
        ("b.mp4", "train"),
        ("a b", "Training"),
        ("twice.mp4", "val"),
        ("sub/deep/b.avi", "test"),
        ("b.mp4", "train"),
    ]
    lines = [f"{video},caption {k},{split}" for k, (video, split) in enumerate(rows)]
    (folder / "captions.csv").write_text("video,caption,split\n" + "\n".join(lines))
    dataset = load(folder)
    assert {name: ids(split) for name, split in dataset.splits.items()} == {
        "train": ["b", "a b"],
        "val": ["twice.mp4"],
        "test": ["sub/deep/b"],
    }
    assert dataset.splits["train"].captions == ("caption 0", "caption 1", "caption 4")
    assert "2 videos of the folder are in no split" in dataset.notes
    with pytest.raises(DatasetError, match="no validation clips can be carved"):
        load(folder, val_clips=1)


def test_lists_and_a_carved_validation_split(folder: Path) -> None:
    (folder / "captions.csv").write_text(CSV)
    (folder / "train.txt").write_text("b.mp4\na b\ntwice.mp4")
    (folder / "test.txt").write_text("sub/deep/b.avi\n")
    dataset = load(folder, val_clips=1)
    assert [len(dataset.splits[name].clips) for name in ("train", "val", "test")] == [2, 1, 1]
    assert dataset.splits["test"].captions == ("Three",)
    assert "val" not in load(folder, val_clips=0).splits


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("captions.csv", "video,caption\n../secret.mp4,x\n", r"csv:2: '\.\./secret\.mp4' is not a path below"),
        ("captions.csv", "video,caption\n/etc/passwd,x\n", r"csv:2: '/etc/passwd' is not a path below"),
        ("captions.csv", "video,caption\ntwice,x\n", r"csv:2: 'twice' fits twice\.mkv and twice\.mp4; name the path"),
        ("captions.csv", "video,caption\n,x\n", r"csv:2: no 'video'"),
        ("captions.csv", "video,caption\n", "there are no captions in it"),
        ("captions.csv", "clip,caption\nb,x\n", r"csv:2: no 'video'; it has 'caption, clip'"),
        ("captions.csv", "video,label\nb,x\n", r"csv:2: no 'caption'"),
        ("captions.csv", "video,caption,split\nb,x,dev\nb,y,test\n", r"csv:3: 'b' is in test and in val"),
        ("captions.csv", "video,caption,split\nb,x,holdout\n", r"csv:2: split 'holdout' is none of"),
        ("captions.csv", "video,caption,split\nb,x,train\na b,y,\n", r"csv:3: no split, although"),
        ("captions.json", '{"b": 3}', r"'b': the caption: expected text, found int"),
        ("captions.json", '[["b", "x"]]', r"\[0\]: expected an object"),
        ("captions.json", "3", "expected a list"),
        ("captions.jsonl", '{"video": "b", "caption": "x"}\n{"video"\n', r"jsonl:2 is not JSON \("),
        ("captions.jsonl", '{"video": 7.5, "caption": "x"}', r"jsonl:1: the video: expected text"),
        ("captions.jsonl", '{"video": "b", "caption": "\\ud800"}', "half a character"),
        ("test.txt", "../x\n", r"test\.txt:1: '\.\./x' is not a path below"),
    ],
)
def test_malformed_captions(folder: Path, name: str, content: str, message: str) -> None:
    (folder / name).write_text(content)
    with pytest.raises(DatasetError, match=message):
        load(folder)


def test_two_captions_files(folder: Path) -> None:
    for name in ("captions.csv", "captions.json"):
        (folder / name).write_text(FILES[name])
    with pytest.raises(DatasetError, match=r"captions\.csv and captions\.json are there; name one"):
        load(folder)


def test_no_folder_no_videos_no_captions_file(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(DatasetError, match="not a folder"):
        load(tmp_path / "gone")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DatasetError, match="there is no video in it"):
        load(tmp_path / "empty")
    with pytest.raises(DatasetError, match="no such captions file"):
        load(folder, annotations=tmp_path / "gone.csv")
    (tmp_path / "captions.xml").touch()
    with pytest.raises(DatasetError, match=r"from \.csv, \.tsv, \.json, \.jsonl and \.parquet files only"):
        load(folder, annotations=tmp_path / "captions.xml")


def test_what_is_there_and_is_no_file(folder: Path) -> None:
    (folder / "dir.mp4").mkdir()
    (folder / "link.mp4").symlink_to("gone.mp4")
    left = load(folder).splits["test"].left_out
    assert sorted((item.id, item.reason) for item in left) == [
        ("dir", "a folder, not a file"),
        ("link", "dangling link"),
    ]


@pytest.mark.skipif(sys.platform == "darwin", reason="the file system refuses such names")
def test_a_name_that_is_not_utf8(folder: Path) -> None:
    (folder / os.fsdecode(b"caf\xe9.mp4")).touch()
    left = load(folder).splits["test"].left_out
    assert left == (LeftOut("caf\\udce9", "its path is not valid UTF-8: rename it"),)


def test_names_from_exact_to_loose(folder: Path) -> None:
    clips = FolderClips(folder)
    for name, clip_id in {
        "b.mp4": "b",
        "b": "b",
        "b.avi": "sub/deep/b",
        "twice.mp4": "twice.mp4",
        "photo.jpg": "photo.jpg",
        "sub/../b": None,
        "nothing": "nothing",
    }.items():
        if clip_id is None:
            with pytest.raises(DatasetError):
                clips.id_of(name, "here")
        else:
            assert clips.id_of(name, "here") == clip_id
    assert clips.find("nothing") == Missing("no video file of this name")


@pytest.mark.parametrize("suffix", [".csv", ".json", ".jsonl"])
@pytest.mark.parametrize("count", [1, 2, 3, 12, 25])
def test_captions_that_were_written_are_read_back(tmp_path, suffix, count):
    from calmctl.data.annotations import read_captions, write_captions

    said = {f"day 1/clip, {n:02d}.mp4": f'a "dog", {n} times\u3000é' for n in range(count)}
    splits = write_captions(tmp_path / f"c{suffix}", said)
    rows = read_captions(tmp_path / f"c{suffix}").rows
    assert {row.video: row.captions[0] for row in rows} == said
    told = [row.split for row in rows]
    assert {name: told.count(name) for name in splits} == splits
    if count > 2:  # a training can start from it
        assert sum(splits.values()) == count and splits["val"] == splits["test"] >= 1 and splits["train"] >= 1
    else:
        assert splits == {} and set(told) == {None}
