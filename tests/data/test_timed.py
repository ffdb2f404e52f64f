"""Clips that are parts of files, and sentences with times: ActivityNet, VATEX, YouCook2, Charades-STA."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from calmctl.data.benchmark import Annotated, VideoPart, carve_val, split_digest
from calmctl.data.benchmarks import activitynet, vatex, youcook2
from calmctl.data.check import check_dataset
from calmctl.data.locate import Missing
from calmctl.data.registry import BENCHMARKS, load_dataset
from calmctl.errors import DatasetError
from calmctl.samples import Clip, LeftOut, Split
from calmctl.video.pool import decode_clips

ANET = {
    "v_aaaaaaaaaaa": {"duration": 9.2, "timestamps": [[0.5, 3], [4, 2]], "sentences": ["A man sits. ", " He eats."]},
    "v_bbbbbbbbbbb": {"duration": 20, "timestamps": [[0, 20.5]], "sentences": ["A dog runs."]},
}
VATEX_ROWS = [
    {"videoID": "-aaaaaaaaaa_000004_000014", "enCap": [f"caption {n}" for n in range(10)], "chCap": ["x"]},
    {"videoID": "bbbbbbbbbbb_000010_000020", "enCap": ["b"]},
]
RECIPES = {
    "database": {
        "-aaaaaaaaaa": {
            "subset": "validation",
            "annotations": [
                {"id": 0, "segment": [2, 5], "sentence": "cut an onion"},
                {"id": 1, "segment": [6, 9], "sentence": "fry it"},
            ],
        },
        "bbbbbbbbbbb": {"subset": "training", "annotations": [{"id": 0, "segment": [0, 4], "sentence": "boil water"}]},
    }
}
STA = "AO8RW 0.0 6.9##a person puts a book down.\nAO8RW 4.5 4.5##a person turns.\nZZZZZ 1 2.5##a person laughs.\n"


def recipes(video: str, entry: str) -> str:
    return f'{{"database": {{"{video}": {{"subset": "validation", "annotations": [{entry}]}}}}}}'


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name in ("train", "val_1", "val_2"):
        (tmp_path / f"{name}.json").write_text(json.dumps(ANET))
    for name in ("training_v1.0", "validation_v1.0", "public_test_english_v1.1"):
        (tmp_path / f"vatex_{name}.json").write_text(json.dumps(VATEX_ROWS))
    for split in ("val", "test"):
        (tmp_path / f"{split}_list.txt").write_text("bbbbbbbbbbb_000010_000020\n")
    (tmp_path / "youcookii_annotations_trainval.json").write_text(json.dumps(RECIPES))
    for split in ("train", "test"):
        (tmp_path / f"charades_sta_{split}.txt").write_text(STA)
    return tmp_path


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def test_a_paragraph_is_all_sentences_and_the_whole_video(root: Path) -> None:
    touch(root, "v_aaaaaaaaaaa.mp4", "Activity_Videos/bbbbbbbbbbb.mkv")
    test = load_dataset("activitynet", root).splits["test"]
    assert test.captions == ("A man sits. He eats.", "A dog runs.") and test.moments == ()
    assert [(clip.id, clip.start_s, clip.end_s, clip.path.name) for clip in test.clips] == [
        ("v_aaaaaaaaaaa", 0.0, 10.0, "v_aaaaaaaaaaa.mp4"),
        ("v_bbbbbbbbbbb", 0.0, 20.0, "bbbbbbbbbbb.mkv"),
    ]
    (root / "val_ids.json").write_text('["v_bbbbbbbbbbb", "v_ccccccccccc"]')
    test = load_dataset("activitynet", root).splits["test"]
    assert test.ids == ("v_bbbbbbbbbbb",)
    assert test.left_out == (LeftOut("v_ccccccccccc", "no caption in the annotation files"),)


def test_sentences_keep_their_times(root: Path) -> None:
    """One that ends before it begins has none, and that is told; carving takes the times along."""
    touch(root, "v_aaaaaaaaaaa.mp4", "v_bbbbbbbbbbb.mp4")
    dataset = load_dataset("activitynet", root, protocol="moments")
    test = dataset.splits["test"]
    assert test.captions == ("A man sits.", "He eats.", "A dog runs.") and test.owners == (0, 0, 1)
    assert test.moments == (((0.5, 3.0),), (), ((0.0, 20.5),))
    assert [clip.end_s for clip in test.clips] == [None, None]
    assert "test: 1 sentence ends before it begins, and has no time here" in dataset.notes
    charades = load_dataset("charades-sta", None, annotations=root, videos=videos(root, "AO8RW", "ZZZZZ"), val_clips=1)
    assert charades.splits["test"].moments == (((0.0, 6.9),), (), ((1.0, 2.5),))
    parts = [charades.splits[name] for name in ("train", "val")]
    timed = {(part.ids[owner], spans) for part in parts for owner, spans in zip(part.owners, part.moments, strict=True)}
    assert timed == {("AO8RW", ((0.0, 6.9),)), ("AO8RW", ()), ("ZZZZZ", ((1.0, 2.5),))}


def videos(root: Path, *names: str) -> Path:
    folder = root / "clips"
    touch(folder, *(f"{name}.mp4" for name in names))
    return folder


def test_empty_captions_take_their_times_with_them() -> None:
    annotated = Annotated(["a"], [("a", " "), ("a", "one")], moments=[((0.0, 1.0),), ((2.0, 3.0),)])
    from calmctl.data.benchmark import build_split

    split = build_split("x", "test", annotated, lambda _: Path("a.mp4"))
    assert (split.captions, split.moments) == (("one",), (((2.0, 3.0),),))
    rest, _ = carve_val({"train": Split("train", split.clips * 1, (), ())}, "x", 0, 1, 0)
    assert rest["train"].moments == ()


def test_a_segment_is_shown_from_the_whole_video_or_is_a_file(root: Path) -> None:
    folder = videos(root, "raw_videos/training/113/-aaaaaaaaaa", "-aaaaaaaaaa_1")
    test = load_dataset("youcook2", None, annotations=root, videos=folder).splits["test"]
    assert test.clips[0] == Clip("-aaaaaaaaaa_0", folder / "raw_videos/training/113/-aaaaaaaaaa.mp4", 2.0, 5.0)
    assert test.clips[1] == Clip("-aaaaaaaaaa_1", folder / "-aaaaaaaaaa_1.mp4"), "cut already, so shown whole"
    assert test.captions == ("cut an onion", "fry it")
    train = load_dataset("youcook2", None, annotations=root, videos=folder).splits["train"]
    assert train.left_out == (LeftOut("bbbbbbbbbbb_0", "no video file of this name, nor of bbbbbbbbbbb"),)


def test_an_id_of_vatex_says_where_it_is_in_its_video(root: Path) -> None:
    folder = videos(root, "-aaaaaaaaaa_000004_000014", "bbbbbbbbbbb")
    dataset = load_dataset("vatex", None, annotations=root, videos=folder, protocol="public")
    test = dataset.splits["test"]
    assert [(clip.start_s, clip.end_s, clip.path.stem) for clip in test.clips] == [
        (0.0, None, "-aaaaaaaaaa_000004_000014"),
        (10.0, 20.0, "bbbbbbbbbbb"),
    ]
    assert len(test.captions) == 11 and test.owners[-1] == 1
    hgr = load_dataset("vatex", None, annotations=root, videos=folder).splits["test"]
    assert (hgr.ids, hgr.captions) == (("bbbbbbbbbbb_000010_000020",), ("b",))


def test_references_of_a_list_give_the_same_split(root: Path) -> None:
    folder = videos(root, "bbbbbbbbbbb")
    before = load_dataset("vatex", None, annotations=root, videos=folder).splits["test"]
    (root / "vatex_validation_v1.0.json").unlink()
    references = {row["videoID"]: row["enCap"] for row in VATEX_ROWS}
    (root / "ref_captions.json").write_text(json.dumps(references))
    assert load_dataset("vatex", None, annotations=root, videos=folder).splits["test"] == before


@pytest.mark.parametrize("folders", [("", ""), ("public_split/", "annotation/RET/")])
@pytest.mark.parametrize("suffix", ["", ".mp4"])
def test_names_of_hgr_give_the_same_split(root: Path, folders: tuple[str, str], suffix: str) -> None:
    folder = videos(root, "bbbbbbbbbbb")
    before = load_dataset("vatex", None, annotations=root, videos=folder).splits["test"]
    for name in ("test_list.txt", "val_list.txt", "vatex_training_v1.0.json", "vatex_validation_v1.0.json"):
        (root / name).unlink()
    names, references = folders
    touch(root, f"{names}trn_names.npy", f"{references}ref_captions.json")
    ids = {"trn": [row["videoID"] for row in VATEX_ROWS], "val": [VATEX_ROWS[0]["videoID"]], "tst": list(before.ids)}
    for short, some in ids.items():
        np.save(root / f"{names}{short}_names.npy", np.array([f"{each}{suffix}" for each in some]))
    told = {f"{row['videoID']}{suffix}": row["enCap"] for row in VATEX_ROWS}
    (root / f"{references}ref_captions.json").write_text(json.dumps(told))
    dataset = load_dataset("vatex", None, annotations=root, videos=folder, val_clips=None)
    assert dataset.splits["test"] == before and set(dataset.splits) == {"train", "val", "test"}
    assert len(dataset.splits["train"].left_out) == 1


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (np.array([{"code": 1}], dtype=object), "Python objects"),
        (np.array([["bbbbbbbbbbb_000010_000020"]]), "expected a list of names"),
        (np.array([1.5]), "expected a list of names"),
        (np.array([b"\xff"]), "no UTF-8 text"),
        (np.array([0x7FFFFFFF], np.uint32).view("<U1"), "no UTF-8 text"),
    ],
)
def test_arrays_that_are_no_names(root: Path, names: np.ndarray, message: str) -> None:
    np.save(root / "tst_names.npy", names, allow_pickle=True)
    (root / "test_list.txt").unlink()
    with pytest.raises(DatasetError, match=message):
        load_dataset("vatex", None, annotations=root, videos=videos(root, "bbbbbbbbbbb"))


def test_other_layouts_of_the_same_captions_have_the_same_digest(root: Path) -> None:
    """The Hub's rows, UMT's list of sentences, and parquet, one file or in shards."""
    parquet = pytest.importorskip("pyarrow.parquet")
    table = pytest.importorskip("pyarrow").Table.from_pylist
    owners = activitynet._read_paragraphs("test", {"val_1.json": root / "val_1.json"})
    hub = root / "hub.json"
    hub.write_text(json.dumps([{"video_id": name, "video": f"{name}.mp4", **row} for name, row in ANET.items()]))
    umt = root / "anet_ret_val_1.json"
    umt.write_text(json.dumps([{"video": f"{name}.mp4", "caption": row["sentences"]} for name, row in ANET.items()]))
    for path in (hub, umt):
        assert split_digest(activitynet._read_paragraphs("test", {path.name: path})) == split_digest(owners)

    rows = [
        {"youtube_id": video, "video_path": f"val/{video}_{row['id']}.mp4", **row}
        for video, entry in RECIPES["database"].items()
        if entry["subset"] == "validation"
        for row in entry["annotations"]  # type: ignore[attr-defined]
    ]
    official = youcook2._read("test", {"a.json": root / "youcookii_annotations_trainval.json"})
    (root / "data").mkdir()
    for place, row in enumerate(rows):
        parquet.write_table(table([row]), root / f"data/val-{place:05d}-of-00002.parquet")
    found = next(each for each in BENCHMARKS["youcook2"].protocols[""].files["test"] if "parquet" in each[0])
    from calmctl.data.locate import Places

    path = Places((root,), ()).find(found[0])
    assert path is not None and path.name == "val-00000-of-00002.parquet"
    shards = youcook2._read("test", {found[0]: path})
    assert split_digest(shards) == split_digest(official)
    assert [each.cut for each in shards.segments.values()] == ["-aaaaaaaaaa_0", "-aaaaaaaaaa_1"]
    assert {each: (s.video, s.start_s, s.end_s) for each, s in shards.segments.items()} == {
        each: (s.video, s.start_s, s.end_s) for each, s in official.segments.items()
    }
    (root / "data/val-00001-of-00002.parquet").unlink()
    with pytest.raises(DatasetError, match=r"cannot read .*val-00001-of-00002\.parquet: No such file"):
        youcook2._read("test", {found[0]: path})
    parquet.write_table(table(VATEX_ROWS[:1]), root / "vatex.parquet")
    same = vatex._read_official("test", {"x": root / "vatex.parquet"})
    assert same.captions == [(VATEX_ROWS[0]["videoID"], text) for text in VATEX_ROWS[0]["enCap"]]


def test_a_file_cut_under_another_name_is_found() -> None:
    annotated = Annotated(["v_7"], [("v_7", "x")], segments={"v_7": VideoPart("v", 1.0, 2.0, cut="part-7")})
    at_hand = {"part-7": Path("part-7.mp4"), "v": Path("v.mp4")}
    assert annotated.place("v_7", lambda name: at_hand.get(name, Missing("no"))) == Clip("v_7", Path("part-7.mp4"))
    del at_hand["part-7"]
    assert annotated.place("v_7", lambda name: at_hand.get(name, Missing("no"))) == Clip("v_7", Path("v.mp4"), 1.0, 2.0)


def test_segments_decode_to_their_own_frames(tmp_path: Path, movies: Any) -> None:
    """Frames of a segment are those of the file at its seconds: two segments of one file in one pass."""
    path = tmp_path / "v.mp4"
    movies.write(path, n_frames=40)
    length = next(iter(decode_clips([Clip("whole", path)], 40, workers=1)))[1]
    assert isinstance(length, np.ndarray)
    annotated = Annotated(
        ["v_0", "v_1"], [("v_0", "a"), ("v_1", "b")],
        segments={"v_0": VideoPart("v", 0.0, 0.8), "v_1": VideoPart("v", 0.8, 1.6)},
    )  # fmt: skip
    placed = [annotated.place(each, lambda name: path if name == "v" else Missing("no")) for each in annotated.clip_ids]
    clips = [each for each in placed if isinstance(each, Clip)]
    frames = [found for _, found in decode_clips(clips, 20, workers=1)]
    assert len(frames) == 2 and all(isinstance(each, np.ndarray) for each in frames)
    assert not np.array_equal(np.asarray(frames[0]), np.asarray(frames[1]))
    alone = next(iter(decode_clips([clips[1]], 20, workers=1)))[1]
    assert np.array_equal(np.asarray(alone), np.asarray(frames[1]))


def test_counts_of_others_are_told_and_are_no_fault(root: Path) -> None:
    report = check_dataset("youcook2", None, annotations=root, videos=videos(root, "-aaaaaaaaaa", "bbbbbbbbbbb"))
    told = {found.name: (found.state, found.text) for found in report.findings if found.part == "split"}
    assert told["test"] == (
        "note",
        "2 clips in the annotation files, 3,350 reported by others; 2 captions in the annotation files, 3,350 reported "
        "by others",
    )
    assert report.complete
    dataset = load_dataset("youcook2", None, annotations=root, videos=videos(root, "-aaaaaaaaaa"))
    assert dataset.splits["test"].differs == ()
    assert any("3,350 reported by others" in note for note in dataset.notes)
    vatex_report = check_dataset("vatex", None, annotations=root, videos=root / "clips")
    states = {found.name: found.state for found in vatex_report.findings if found.part == "split"}
    assert states["test"] == "wrong", "what its owners say is held against it"


@pytest.mark.parametrize(
    ("name", "file", "content", "message"),
    [
        ("activitynet", "val_1.json", '{"v_a": {"duration": "x"}}', "'v_a'.duration: expected seconds, found 'x'"),
        ("activitynet", "val_1.json", '{"v_a": {"duration": 1, "sentences": ["x"], "timestamps": []}}', "1 sentences"),
        (
            "activitynet",
            "val_1.json",
            '{"v_a": {"duration": 1, "sentences": ["x"], "timestamps": [[0, "1"]]}}',
            "expected a start and an end in seconds",
        ),
        ("charades-sta", "charades_sta_test.txt", "AO8RW 0.0 6.9 a person", ":1: expected VIDEO START END##SENTENCE"),
        ("charades-sta", "charades_sta_test.txt", "AO8RW -1 6.9##a person", ":1: expected VIDEO START END##SENTENCE"),
        (
            "youcook2",
            "youcookii_annotations_trainval.json",
            recipes("a", '{"id": 0, "segment": [5, 2], "sentence": ""}'),
            "the segment 'a_0' ends before it begins",
        ),
        (
            "youcook2",
            "youcookii_annotations_trainval.json",
            recipes("a", '{"segment": [1, 2], "sentence": ""}'),
            "expected the segment's number, found 'None'",
        ),
        (
            "youcook2",
            "youcookii_annotations_trainval.json",
            recipes("../a", '{"id": 0, "segment": [1, 2], "sentence": ""}'),
            "is not the name of a clip",
        ),
        ("vatex", "vatex_validation_v1.0.json", '[{"enCap": []}]', r"\[0\]: no 'videoID'"),
    ],
)
def test_malformed_files(root: Path, name: str, file: str, content: str, message: str) -> None:
    (root / file).write_text(content)
    with pytest.raises(DatasetError, match=message):
        load_dataset(name, None, annotations=root, videos=videos(root, "x"))
