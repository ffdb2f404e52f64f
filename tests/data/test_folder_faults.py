"""Folders as people bring them: whatever of one is not taken is counted, with the true reason, and never guessed at."""

import json
import os
import stat
import subprocess
import sys
import unicodedata
from pathlib import Path

import pytest

from calmctl.data.annotations import read_json_file
from calmctl.data.check import check_dataset
from calmctl.data.folder import FolderClips
from calmctl.data.locate import VideoFiles
from calmctl.data.registry import load_dataset
from calmctl.errors import DatasetError
from calmctl.samples import Dataset

ROOT = os.geteuid() == 0


def touch(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return touch(tmp_path / "F", "clip0.mp4", "sub/clip1.mp4", "17.mp4")


def load(folder: Path, **options: object) -> Dataset:
    return load_dataset("folder", folder, **options)  # type: ignore[arg-type]


def pairs(dataset: Dataset, split: str = "test") -> list[tuple[str, str]]:
    """(clip id, caption) of a split."""
    chosen = dataset.splits[split]
    return [(chosen.clips[owner].id, text) for text, owner in zip(chosen.captions, chosen.owners, strict=True)]


# --- keys and columns that stand twice


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("captions.json", '{"clip0": "first", "clip0": "second"}'),
        ("captions.json", '[{"video": "clip0", "caption": "first", "caption": "second"}]'),
        ("captions.jsonl", '{"video": "clip0", "caption": "first", "caption": "second"}\n'),
        ("captions.csv", "video,caption,caption\nclip0,first,second\n"),
        ("captions.tsv", "video\tcaption\tcaption\nclip0\tfirst\tsecond\n"),
    ],
)
def test_nothing_that_stands_twice_is_dropped(folder: Path, name: str, content: str) -> None:
    (folder / name).write_text(content)
    with pytest.raises(DatasetError, match=r"(clip0|caption)' stands twice"):
        load(folder)


def test_keys_deep_inside_are_looked_at_too(tmp_path: Path) -> None:
    path = tmp_path / "captions_msvd.json"
    path.write_text('{"videos": [{"aaa_1_2": ["one"], "aaa_1_2": ["two"]}]}')
    with pytest.raises(DatasetError, match=r"captions_msvd\.json .*'aaa_1_2' stands twice"):
        read_json_file(path)


def test_keys_that_differ_in_capitals_only(folder: Path) -> None:
    (folder / "captions.csv").write_text("Video,Caption\nclip0,one\n")
    assert pairs(load(folder)) == [("clip0", "one")]
    (folder / "captions.csv").write_text("video,Caption,caption\nclip0,one,two\n")
    with pytest.raises(DatasetError, match="two of these differ in capitals only"):
        load(folder)


def test_what_is_not_read_of_a_captions_file_is_said(folder: Path) -> None:
    (folder / "captions.csv").write_text("video,caption,caption2,url\nclip0,one,two,x\n")
    assert "columns not read: 'caption2' and 'url'" in load(folder).notes
    (folder / "captions.csv").write_text("video,caption,split\nclip0,one,train\nsub/clip1,two,test\n")
    (folder / "test.txt").write_text("clip0\n")
    dataset = load(folder)
    assert pairs(dataset) == [("sub/clip1", "two")]
    assert "test.txt not read: the column split of the captions file tells the splits" in dataset.notes


@pytest.mark.parametrize("name", ["captions.xlsx", "Captions.feather", "captions.csv.gz", "metadata.xml"])
def test_captions_of_another_kind_are_lost_and_said_to_be(folder: Path, name: str) -> None:
    (folder / name).write_bytes(b"PK")
    (folder / "captions.mov").touch()
    (lost,) = load(folder).unread
    assert lost.id == name and "save them as .csv" in lost.reason
    assert not check_dataset("folder", folder).complete
    (folder / "captions.csv").write_text("video,caption\nclip0,one\n")
    assert load(folder).unread == ()


def test_captions_in_parquet(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = pytest.importorskip("pyarrow").Table.from_pylist
    parquet = pytest.importorskip("pyarrow.parquet")
    rows = [
        {"video_id": "clip0", "caption": ["one", "two"], "split": "train", "bytes": b"x" * 90, "start": 0.5},
        {"video_id": "sub/clip1", "caption": ["three"], "split": "test", "bytes": b"y", "start": 1.5},
    ]
    for part, row in enumerate(rows):
        parquet.write_table(table([row]), folder / f"some-{part:05d}-of-00002.parquet")
    expected = [("clip0", "one"), ("clip0", "two"), ("sub/clip1", "three")]
    dataset = load(folder)
    assert [pair for name in ("train", "test") for pair in pairs(dataset, name)] == expected and dataset.unread == ()
    (folder / "some-00001-of-00002.parquet").unlink()
    (lost,) = load(folder).unread
    assert lost.id == "some-00000-of-00002.parquet" and "some-00001-of-00002.parquet" in lost.reason
    parquet.write_table(table(rows), folder / "Captions.parquet")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(DatasetError, match=r"pip install 'calmctl\[parquet\]'"):
        load(folder)


def test_what_calmctl_caption_prints_is_read(folder: Path) -> None:
    told = {"run": "r", "search": {"beam": 5}, "captions": {"clip0.mp4": {"caption": "one", "log_prob": -1.5}}}
    (folder / "captions.json").write_text(json.dumps(told))
    assert pairs(load(folder)) == [("clip0", "one")]


# --- captions files of other names


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("captions.CSV", "video,caption\nclip0,one\n"),
        ("Captions.csv", "video,caption\nclip0,one\n"),
        ("captions.tsv", "video\tcaption\nclip0\tone\n"),
        ("captions.txt", "video\tcaption\nclip0\tone\n"),
        ("captions.txt", "video,caption\nclip0,one\n"),
        ("metadata.csv", "file_name,text\nclip0.mp4,one\n"),
        ("metadata.jsonl", '{"file_name": "clip0.mp4", "text": "one"}\n'),
        ("my words.json", '{"clip0": "one"}'),
    ],
)
def test_captions_are_known_by_their_content(folder: Path, name: str, content: str) -> None:
    (folder / name).write_text(content)
    dataset = load(folder)
    assert pairs(dataset) == [("clip0", "one")]
    assert dataset.notes[0] == f"captions: {name}" and dataset.unread == ()


def test_tables_that_stay_unread_are_named(folder: Path) -> None:
    (folder / "sizes.csv").write_text("clip,size\nclip0,3\n")
    (folder / "other.csv").write_text("video,caption\nelsewhere.mp4,one\n")
    unread = {each.id: each.reason for each in load(folder).unread}
    assert unread == {
        "sizes.csv": "a table that is not read: " + unread["sizes.csv"].partition(": ")[2],
        "other.csv": "a table that is not read: no row of it names a clip that is here",
    }
    assert "no 'video'; it has 'clip, size'" in unread["sizes.csv"]
    assert not check_dataset("folder", folder).complete, "captions may be lost"
    (folder / "captions.csv").write_text("video,caption\nclip0,one\n")
    dataset = load(folder)
    assert dataset.unread == () and sum("is not read" in note for note in dataset.notes) == 2


def test_captions_beside_the_captions_file_are_lost_and_said_to_be(folder: Path) -> None:
    for name in ("captions.csv", "metadata.csv", "sub/captions.csv"):
        (folder / name).write_text("video,caption\nclip0,one\n")
    (folder / "clip0.info.json").write_text('{"clip0": "what a downloader wrote"}')
    dataset = load(folder)
    assert {each.id for each in dataset.unread} == {"metadata.csv", "sub/captions.csv"}
    assert load(folder, annotations=folder / "captions.csv").unread == (), "named, so nothing else is meant"
    (folder / "captions.csv").unlink()
    (folder / "more.csv").write_text("video,caption\nclip0,two\n")
    with pytest.raises(DatasetError, match=r"metadata\.csv and more\.csv all hold captions; name one"):
        load(folder)


def test_lists_of_other_names(folder: Path) -> None:
    (folder / "Train.txt").write_text("clip0.mp4\n")
    (folder / "validation.TXT").write_text("17\n")
    assert [clip.id for clip in load(folder).splits["train"].clips] == ["clip0"]
    assert [clip.id for clip in load(folder).splits["val"].clips] == ["17"]
    (folder / "val.txt").write_text("17\n")
    with pytest.raises(DatasetError, match=r"val\.txt and validation\.TXT both list the val split"):
        load(folder)


def test_a_captions_file_that_dangles(folder: Path) -> None:
    (folder / "captions.csv").symlink_to("gone.csv")
    with pytest.raises(DatasetError, match=r"cannot read .*captions\.csv: No such file"):
        load(folder)


# --- which column names the video


def test_the_column_whose_values_are_files_is_taken(folder: Path) -> None:
    (folder / "captions.csv").write_text("id,file_name,text\n17,clip0.mp4,one\n18,sub/clip1.mp4,two\n")
    dataset = load(folder)
    assert pairs(dataset) == [("clip0", "one"), ("sub/clip1", "two")], "though a clip is called 17"
    assert "videos are named by 'file_name'; 'id' not taken" in dataset.notes
    rows = [{"id": "clip0", "path": "/elsewhere", "text": "one", "description": "long"}, {"id": 17, "text": "two"}]
    (folder / "captions.csv").unlink()
    (folder / "captions.json").write_text(json.dumps(rows))
    dataset = load(folder)
    assert sorted(pairs(dataset)) == [("17", "two"), ("clip0", "one")], "numbers are names too"
    assert {"videos are named by 'id'; 'path' not taken", "captions are those of 'text'; 'description' not taken"} <= {
        *dataset.notes
    }


# --- names


NFC, NFD = unicodedata.normalize("NFC", "café"), unicodedata.normalize("NFD", "café")


@pytest.mark.skipif(sys.platform == "darwin", reason="the file system keeps one form")
@pytest.mark.parametrize(("on_disk", "written"), [(NFD, NFC), (NFC, NFD)])
def test_composed_and_decomposed_names_meet(tmp_path: Path, on_disk: str, written: str) -> None:
    folder = touch(tmp_path / "F", f"{on_disk}.mp4", "b.mp4")
    (folder / "captions.csv").write_text(f"video,caption\n{written}.mp4,one\n", encoding="utf-8")
    (folder / "train.txt").write_text(f"{written}\n", encoding="utf-8")
    dataset = load(folder, val_clips=0)
    assert pairs(dataset, "train") == [(on_disk, "one")]
    touch(folder, f"{written}.mp4")
    assert pairs(load(folder, val_clips=0), "train") == [(written, "one")], "the exact name comes first"


@pytest.mark.parametrize("form", ["sub\\clip1.mp4", "{folder}/sub/clip1.mp4", "{link}/sub/clip1", "./sub//clip1.mp4"])
def test_ways_to_write_a_path(folder: Path, form: str) -> None:
    link = folder.parent / "link"
    link.symlink_to(folder)
    name = form.format(folder=folder, link=link)
    assert FolderClips(link).id_of(name, "here") == "sub/clip1"
    assert FolderClips(link).ids_of([(name, "here")]) == ["sub/clip1"]


@pytest.mark.parametrize(
    "name", ["..\\clip0.mp4", "sub\\..\\..\\x.mp4", "C:\\videos\\clip0.mp4", "C:/videos/clip0.mp4", "/F/clip0", " "]
)
def test_paths_that_lead_elsewhere(folder: Path, name: str) -> None:
    clips = FolderClips(folder)
    with pytest.raises(DatasetError, match="is not a path below"):
        clips.id_of(name, "here")
    with pytest.raises(DatasetError, match="is not a path below"):
        clips.ids_of([(name, "here")])


def test_blanks_and_backslashes_in_names_themselves(tmp_path: Path) -> None:
    folder = touch(tmp_path / "F", " lead.mp4", "a\\b.mp4", "plain.mp4")
    (folder / "captions.csv").write_text("video,caption\n lead.mp4,one\n plain.mp4 ,two\na\\b.mp4,three\n")
    assert pairs(load(folder)) == [(" lead", "one"), ("plain", "two"), ("a\\b", "three")]
    (folder / "test.txt").write_text(" lead.mp4\r\n")
    assert pairs(load(folder)) == [(" lead", "one")]


def test_clips_that_were_encoded_anew(folder: Path) -> None:
    (folder / "captions.csv").write_text("video,caption\nclip0.avi,one\nclip1.MOV,two\nclip.v2,three\n")
    dataset = load(folder)
    assert pairs(dataset) == [("clip0", "one"), ("sub/clip1", "two")]
    assert [each.id for each in dataset.splits["test"].left_out] == ["clip.v2"], "v2 is no suffix of a video"
    assert any("2 videos found under another suffix (first: 'clip0.avi' is 'clip0')" in note for note in dataset.notes)
    (folder / "captions.csv").write_text("video,caption\nclip0.avi,lost\nclip0.mp4,one\n")
    dataset = load(folder)
    assert pairs(dataset) == [("clip0", "one")], "clip0.mp4 goes by its own name, so clip0.avi was another clip"
    assert [each.id for each in dataset.splits["test"].left_out] == ["clip0.avi"]


# --- what a spreadsheet writes


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            b"video;caption\nclip0;one\n",
            r"captions\.csv:1: its columns are separated by semicolons; save it with commas",
        ),
        (b"video\tcaption\nclip0\tone\n", r"separated by tabs; name it \.tsv"),
        (
            b"video,caption\nclip0,caf\xe9\n",
            r"csv:2: not UTF-8 but Windows-1252 or Latin-1, it seems; save it as UTF-8",
        ),
        ("video,caption\nclip0,one\n".encode("utf-16"), r"csv:1: not UTF-8 but UTF-16; save"),
        ("video,caption\nclip0,one\n".encode("utf-16-le"), r"csv:1: a zero byte, as in UTF-16 .*; save it as UTF-8"),
        (b"video,caption\nclip0,\"['a man', 'a guy']\"\n", r"csv:2: a list stands in one cell.*a row of its own"),
        (b'video,captions\nclip0,"[""a man"", \'a guy\']"\n', r"csv:2: a list stands in one cell"),
    ],
)
def test_spreadsheets_are_told_what_to_do(folder: Path, content: bytes, message: str) -> None:
    (folder / "captions.csv").write_bytes(content)
    with pytest.raises(DatasetError, match=message):
        load(folder)


def test_brackets_in_a_caption_are_a_caption(folder: Path) -> None:
    (folder / "captions.csv").write_text("video,caption\nclip0,[music] a man says 'hi'\n17,[laughs]\n")
    assert [text for _, text in pairs(load(folder))] == ["[music] a man says 'hi'", "[laughs]"]


def test_columns_without_a_name_may_be_many(folder: Path) -> None:
    (folder / "captions.csv").write_text(",video,caption,\n0,clip0,one,\n")
    assert pairs(load(folder)) == [("clip0", "one")]


# --- what cannot be read, or is not followed


def test_links_out_of_the_folder_are_not_followed(folder: Path) -> None:
    outside = touch(folder.parent / "outside", "secret.mp4", "deep/more.mp4")
    (folder / "all").symlink_to("/")
    (folder / "out").symlink_to(outside)
    (folder / "again").symlink_to(folder / "sub")
    (folder / "file.mp4").symlink_to(outside / "secret.mp4")
    dataset = load(folder)
    assert {clip.id for clip in dataset.splits["test"].clips} == {"17", "again/clip1", "clip0", "file"}
    assert {each.id for each in dataset.unread} == {"all", "out"}
    assert all("a link out of the folder, not followed" in each.reason for each in dataset.unread)
    report = check_dataset("folder", folder)
    assert not report.complete and set(report.unread) == {"all", "out"}
    assert {clip.id for clip in load(folder / "out").splits["test"].clips} == {"secret", "deep/more"}, "it was named"


def test_files_that_are_passed_over(folder: Path) -> None:
    touch(folder, "old.qt", "older.divx", "photo.jpg")
    (folder / "bare").write_bytes(b"\0\0\0\x18ftypisom")
    (folder / "photo.heic").write_bytes(b"\0\0\0\x18ftypheic")
    (folder / "riff").write_bytes(b"RIFF\0\0\0\0AVI LIST")
    os.mkfifo(folder / "pipe")
    dataset = load(folder)
    assert {"old", "older"} <= {clip.id for clip in dataset.splits["test"].clips}
    assert "5 files without a video suffix were not taken (no suffix 3, .heic 1, .jpg 1)" in dataset.notes
    assert {each.id for each in dataset.unread} == {"bare", "riff"}, "videos by their content"
    assert not check_dataset("folder", folder).complete


AS_NOBODY = """
import encodings.utf_8_sig, json, os, sys
from pathlib import Path
from calmctl.data.check import check_dataset
from calmctl.data.locate import VideoFiles
from calmctl.errors import DatasetError
os.setgroups([]); os.setgid(65534); os.setuid(65534)  # after the imports: nobody may not read the interpreter's files
for name in sys.argv[2:]:
    try:
        report = check_dataset("folder", Path(sys.argv[1], name))
        print(json.dumps([report.complete, dict(report.unread), report.missing]))
    except DatasetError as fault:
        print(json.dumps(["error", str(fault), None]))
files = VideoFiles(Path(sys.argv[1]))
print(json.dumps([{each.id: each.reason for each in files.unread}, files.find("clip1").reason, None]))
"""


@pytest.mark.skipif(not ROOT, reason="only root can become somebody else")
def test_folders_that_may_not_be_read() -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as name:  # pytest's own folders cannot be entered by others
        base = touch(Path(name), "U/clip0.mp4", "U/secret/clip1.mp4", "U/listed/clip2.mp4", "shut/clip.mp4")
        (base / "U/captions.csv").write_text("video,caption\nsecret/clip1.mp4,one\nclip1,two\nclip0,three\n")
        base.chmod(0o755)
        (base / "U/secret").chmod(0o700)
        (base / "U/listed").chmod(0o744)
        (base / "shut").chmod(0o700)
        (base / "U/locked.mp4").touch(stat.S_IRUSR)
        code = [sys.executable, "-c", AS_NOBODY, str(base), "U", "shut", "shut/below"]
        done = subprocess.run(code, capture_output=True, text=True, env={**os.environ, "HOME": "/"})
        assert done.returncode == 0, done.stderr
        folder, shut, below, listed = map(json.loads, done.stdout.splitlines())
    denied = "Permission denied"
    assert folder == [
        False,
        {"secret": f"a folder that cannot be read: {denied}"},
        {
            "test": {
                "listed/clip2": f"cannot be read: {denied}",
                "locked": f"cannot be read: {denied}",
                "secret/clip1.mp4": f"below secret, a folder that cannot be read: {denied}",
                "clip1": "no video file of this name in what was read (1 folder was not)",
            }
        },
    ]
    assert shut[0] == "error" and shut[1].endswith(f"shut: cannot be read: {denied}")
    assert below[0] == "error" and denied in below[1]
    assert listed[0] == {name: f"a folder that cannot be read: {denied}" for name in ("U/secret", "shut")}
    assert listed[1] == "no video file of this name in what was read (2 folders were not)"


def test_a_disk_that_fails_while_it_is_listed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.scandir

    def scandir(path: str) -> object:
        if os.fspath(path).endswith("sub"):
            raise OSError(5, "Input/output error", path)
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    reason = "a folder that cannot be read: Input/output error"
    assert [(each.id, each.reason) for each in FolderClips(folder).unread] == [("sub", reason)]
    assert [(each.id, each.reason) for each in VideoFiles(folder).unread] == [("sub", reason)]


@pytest.mark.skipif(sys.platform != "linux", reason="about file names that are bytes")
def test_a_locale_that_is_not_utf8(folder: Path) -> None:
    touch(folder, "café.mp4")
    code = (
        "import json, sys; from pathlib import Path; from calmctl.data.folder import FolderClips as F; "
        "f = F(Path(sys.argv[1])); print(json.dumps({k: f.find(k).reason for k in f.ids if not k.isascii()}))"
    )
    odd = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder)], capture_output=True, text=True, env=odd, check=True
    )
    reasons = json.loads(done.stdout)
    assert reasons == {"café": "this locale (ascii) cannot name it: set PYTHONUTF8=1 and run again"}


# --- enough to search, not to train


def test_why_there_is_nothing_to_train_on(folder: Path) -> None:
    for options in ({}, {"val_clips": 500}):  # a recipe may set it, and an evaluation of its run reads the same keys
        with pytest.raises(DatasetError, match="no train split: no captions file: enough to search, not to train"):
            load(folder, **options).splits["train"]
    (folder / "captions.csv").write_text("video,caption\nclip0,one\n")
    with pytest.raises(
        DatasetError, match=r"no val split: nothing tells which clips to train on: .*add a column split"
    ):
        load(folder).splits["val"]
    (folder / "captions.csv").write_text("video,caption,split\nclip0,one,test\n17,two,val\n")
    dataset = load(folder)
    with pytest.raises(DatasetError, match="no train split: no clip is said to be in train"):
        dataset.splits["train"]
    assert "val" in dataset.splits


def test_captions_without_a_place_are_counted(folder: Path) -> None:
    (folder / "captions.csv").write_text("video,caption\nclip0,one\nclip0,  \n17,two\n17,three\n")
    (folder / "test.txt").write_text("clip0\n")
    notes = load(folder).notes
    assert "1 empty caption left out" in notes and "2 captions left out: of videos in no split" in notes
    assert "2 videos of the folder are in no split" in notes


def test_training_names_the_cause_and_the_captions_that_are_cut(folder: Path) -> None:
    from calmctl.recipe import load_recipe, resolve_recipe
    from calmctl.training.prepare import prepare

    keys = [f"data.root={folder}", "backbone.model=demo-clip", "backbone.weights=null", "device=cpu"]
    recipe = load_recipe(resolve_recipe("folder"), [*keys, "data.val_clips=1", "alignment.kind=none"])
    with pytest.raises(DatasetError, match="no captions file: enough to search, not to train"):
        prepare(recipe)
    long = "word " * 40
    (folder / "captions.csv").write_text(
        f"video,caption,split\nclip0,{long},train\nclip1,short,train\n17,{long},test\n"
    )
    notes = prepare(recipe).describe()["notes"]
    told = {note.partition(": ")[0] for note in notes if note.endswith("longer than 32 tokens; the rest is not read")}
    assert told >= {"test"} and told <= {"train", "val", "test"} and len(told) == 2
    (folder / "out").symlink_to("/")
    with pytest.raises(DatasetError, match="out of what could not be read: a link out of the folder"):
        prepare(load_recipe(resolve_recipe("folder"), [*keys, "data.val_clips=1", "data.require_complete=true"]))
