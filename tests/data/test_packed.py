"""Archives: listed without unpacking, unpacked by safe names and within limits; the layouts that copies have."""

import glob
import io
import json
import shlex
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from calmctl.cli.main import app
from calmctl.data.benchmark import Annotated, split_digest
from calmctl.data.benchmarks import didemo, msrvtt, msvd
from calmctl.data.check import check_dataset
from calmctl.data.packed import archive_of, find_archives, list_archive, unpack, unsafe
from calmctl.data.registry import load_dataset
from calmctl.errors import DatasetError

BAD = ["../a.mp4", "/etc/a.mp4", "a/../../b.mp4", "C:/a.mp4", "a\\..\\b.mp4", "x\0y.mp4", ".hidden.mp4", "a/.b/c.mp4"]


def zipped(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(zipfile.ZipInfo(name), content, zipfile.ZIP_DEFLATED)
    return path


def tarred(path: Path, members: dict[str, bytes], *more: tarfile.TarInfo) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
        for info in more:
            archive.addfile(info)
    return path


def link(name: str, to: str, kind: bytes = tarfile.SYMTYPE) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, to
    return info


@pytest.mark.parametrize("name", BAD)
def test_names_that_lead_elsewhere(name: str) -> None:
    assert unsafe(name)
    assert unsafe("video/video0.mp4") is None and unsafe("v_a-b c.mp4") is None


def test_a_zip_is_listed_and_its_bad_members_are_named(tmp_path: Path) -> None:
    good = {"video/video0.mp4": b"x" * 5, "./video/video1.AVI": b"y", "readme.md": b"z"}
    contents = list_archive(archive_of(zipped(tmp_path / "v.zip", good | dict.fromkeys(BAD, b"x"))))
    assert contents.videos == {"video/video0.mp4": 5, "video/video1.AVI": 1} and contents.others == 2
    # The library ends a name at a zero byte: what is left of that one, "x", is no video.
    assert len(contents.refused) == len(BAD) - 1
    assert not any(unsafe(name) for name in contents.videos)
    assert list(tmp_path.iterdir()) == [tmp_path / "v.zip"]


def test_links_in_a_tar_stay_packed(tmp_path: Path) -> None:
    path = tarred(
        tmp_path / "t.tar", {"a.mp4": b"1"}, link("b.mp4", "/etc/passwd"), link("c.mp4", "a.mp4", tarfile.LNKTYPE)
    )
    out = tmp_path / "out"
    done = unpack([path], out)
    assert done.videos == 1 and [each.reason for each in done.refused] == ["a link or a device, and no file"] * 2
    assert [each.name for each in out.iterdir()] == ["a.mp4"]


def test_parts_of_a_tar_are_one(tmp_path: Path) -> None:
    members = {f"DiDeMo/{n}.mp4": bytes([n]) * (3000 + n) for n in range(9)}
    content = tarred(tmp_path / "whole", members).read_bytes()
    (tmp_path / "whole").unlink()
    cuts = [0, 700, 701, 9000, len(content)]
    for number in range(4):
        (tmp_path / f"V.tar.part-{number:03d}").write_bytes(content[cuts[number] : cuts[number + 1]])
    (archive,) = find_archives([tmp_path, tmp_path])
    assert archive.name == "V.tar" and len(archive.paths) == 4
    assert list_archive(archive).videos == {name: len(each) for name, each in members.items()}
    done = unpack([tmp_path / "V.tar.part-002"], tmp_path / "out")
    assert done.videos == 9
    assert {name: (tmp_path / "out" / name).read_bytes() for name in members} == members


def test_a_bomb_stops_at_the_limit(tmp_path: Path) -> None:
    path = zipped(tmp_path / "bomb.zip", {"a.mp4": b"\0" * 30_000_000})
    assert path.stat().st_size < 100_000
    with pytest.raises(DatasetError, match=r"unfolds to more than its limit at 'a\.mp4'.*--limit-gb"):
        unpack([path], tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())
    assert unpack([path], tmp_path / "out", most_bytes=40_000_000).bytes == 30_000_000


def test_what_is_there_stays(tmp_path: Path) -> None:
    path = zipped(tmp_path / "v.zip", {"a.mp4": b"abc", "b.mp4": b"def"})
    unpack([path], tmp_path / "out")
    (tmp_path / "out/a.mp4").write_bytes(b"ABC")
    (tmp_path / "out/b.mp4").write_bytes(b"cut")
    (tmp_path / "out/b.mp4").write_bytes(b"d")
    assert unpack([path], tmp_path / "out").videos == 2
    assert (tmp_path / "out/a.mp4").read_bytes() == b"ABC", "of the same size: not written again"
    assert (tmp_path / "out/b.mp4").read_bytes() == b"def"


def test_webdataset_and_parquet_become_a_folder_with_captions(tmp_path: Path, movies: Any) -> None:
    table = pytest.importorskip("pyarrow").Table.from_pylist
    parquet = pytest.importorskip("pyarrow.parquet")
    movies.write(tmp_path / "clip.mp4", n_frames=4)
    video = (tmp_path / "clip.mp4").read_bytes()
    shards = tarred(
        tmp_path / "s.tar",
        {
            "000.mp4": video,
            "000.json": b'{"caption": ["a man", "a guy"], "url": "x"}',
            "000.txt": b"a man",
            "001.mp4": video,
            "001.txt": b"a dog\n",
            "002.txt": b"no video",
            "003.json": b"{broken",
        },
    )
    rows = [
        {"video": {"bytes": video, "path": "video7.mp4"}, "caption": "a cat"},
        {"video": {"bytes": video, "path": None}, "caption": "a bird"},
        {"video": {"bytes": video, "path": "../../x.mp4"}, "caption": "a thief"},
    ]
    parquet.write_table(table(rows), tmp_path / "test.parquet")
    out = tmp_path / "out"
    first = unpack([shards], out)
    done = unpack([tmp_path / "test.parquet"], out)
    assert (first.videos, first.captions, done.videos, done.captions) == (2, 3, 2, 2)
    assert [(each.id, each.reason) for each in first.refused] == [("'002'", "a text beside no video")]
    texts = tarred(tmp_path / "later.tar", {"000.txt": b"a person", "README.txt": b"of whom"})
    later = unpack([texts], out)
    assert (later.captions, [each.id for each in later.refused]) == (1, ["'README'"]), "a video of an earlier archive"
    unpack([shards], out)
    assert [each.reason for each in done.refused] == ["leads out of the folder"]
    dataset = load_dataset("folder", out)
    split = dataset.splits["test"]
    told: dict[str, list[str]] = {}
    for caption, owner in zip(split.captions, split.owners, strict=True):
        told.setdefault(split.ids[owner], []).append(caption)
    assert told == {"000": ["a man", "a guy"], "001": ["a dog"], "video7": ["a cat"], "test-00001": ["a bird"]}


@pytest.mark.parametrize("suffix", [".zip", ".tar", ".parquet"])
@pytest.mark.parametrize("content", [b"", b"PK\x03\x04" + b"x" * 90, b"\0" * 512 + b"x" * 600, b"PAR1" + b"\xff" * 80])
def test_damaged_archives_are_sentences(tmp_path: Path, suffix: str, content: bytes) -> None:
    path = tmp_path / f"bad{suffix}"
    path.write_bytes(content)
    try:
        done = unpack([path], tmp_path / "out")
        assert done.videos == 0
    except DatasetError as fault:
        assert str(path) in str(fault)


def test_a_member_that_is_cut_short_is_a_sentence(tmp_path: Path) -> None:
    content = zipped(tmp_path / "v.zip", {"a.mp4": bytes(range(256)) * 40}).read_bytes()
    at = content.index(b"a.mp4") + 5
    for damaged in (content[:at] + b"\xff" * 60 + content[at + 60 :], content[:at] + content[at + 20 :]):
        (tmp_path / "v.zip").write_bytes(damaged)
        with pytest.raises(DatasetError, match=r"v\.zip"):
            unpack([tmp_path / "v.zip"], tmp_path / "out")
        assert not list((tmp_path / "out").glob("*.part")) and not list((tmp_path / "out").glob(".*"))


def test_check_says_what_lies_packed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("msrvtt_test_1k.json").write_text(
        json.dumps([{"video_id": f"video{n}", "video": f"video{n}.mp4", "caption": f"s{n}"} for n in (3, 4)])
    )
    zipped(Path("MSRVTT_Videos.zip"), {f"video/video{n}.mp4": b"x" for n in range(4)} | {"../b.mp4": b"x"})
    report = check_dataset("msrvtt", None, annotations=Path(), videos=Path())
    (text,) = [found.text for found in report.findings if found.name == "MSRVTT_Videos.zip"]
    assert text.startswith("4 videos packed in it, 1 of those missing; 1 member stays packed (leads out of the folder)")
    with pytest.raises(DatasetError, match=r"MSRVTT_Videos\.zip lies there packed: calmctl data unpack") as fault:
        load_dataset("msrvtt", None, annotations=Path(), videos=Path())
    commands = [found.command for found in report.findings if found.command]
    assert len(commands) == 1 and str(fault.value).endswith(commands[0])
    ran = CliRunner().invoke(app, shlex.split(commands[0])[1:])
    assert ran.exit_code == 0 and "videos: 4 videos" in " ".join(ran.output.split())
    test = load_dataset("msrvtt", None, annotations=Path(), videos=Path("videos")).splits["test"]
    assert test.ids == ("video3",) and test.captions == ("s3",)


@pytest.mark.parametrize(
    "names", [["a b.zip"], ["wds/0.tar", "wds/1.tar"], ["V.tar.part-000"], ["data/test-0.parquet"]]
)
def test_a_folder_of_archives_says_how_to_unpack_them(tmp_path: Path, names: list[str]) -> None:
    for name in names:
        (tmp_path / "mine" / name).parent.mkdir(parents=True, exist_ok=True)
        zipped(tmp_path / "mine" / name, {"a.mp4": b"x"})
    with pytest.raises(DatasetError, match="videos may be packed in") as fault:
        load_dataset("folder", tmp_path / "mine")
    said = str(fault.value).partition("calmctl data unpack ")[2]
    archives, _, out = said.partition(" --out ")
    assert out == str(tmp_path / "mine-unpacked")
    (pattern,) = shlex.split(archives)
    assert sorted(map(Path, glob.glob(pattern))) == [tmp_path / "mine" / name for name in names]


def test_compressed_tars_are_told_apart(tmp_path: Path) -> None:
    (tmp_path / "v.tar.gz").write_bytes(b"\x1f\x8b" + b"x" * 600)
    with pytest.raises(DatasetError, match="it is compressed: make a plain"):
        unpack([tmp_path / "v.tar.gz"], tmp_path / "out")


# Layouts of the same captions.


def test_msrvtt_and_msvd_as_copies_have_them(tmp_path: Path) -> None:
    owners = msrvtt._read_retrieval(
        "test", {"MSRVTT_JSFUSION_test.csv": write(tmp_path / "a.csv", "video_id,sentence\nvideo1,one\nvideo2,two\n")}
    )
    hub = [{"video_id": "video2", "caption": "two"}, {"video_id": "video1", "caption": "one"}]
    umt = [{"video": "video1.mp4", "caption": ["one"]}, {"video": "video2.mp4", "caption": "two"}]
    for rows in (hub, umt):
        path = write(tmp_path / "rows.json", json.dumps(rows))
        assert split_digest(msrvtt._read_retrieval("test", {path.name: path})) == split_digest(owners)
    captions = write(tmp_path / "captions_msvd.json", json.dumps({"a_1_2": ["x", "y"], "b_1_2": ["z"]}))
    listed = write(tmp_path / "test_list.txt", "a_1_2\nb_1_2\n")
    before = msvd._read("test", {"test_list.txt": listed, "captions_msvd.json": captions})
    rows = [{"video_id": "b_1_2", "video": "b_1_2.avi", "caption": ["z"]}, {"video_id": "a_1_2", "caption": ["y", "x"]}]
    copy = write(tmp_path / "msvd_test.json", json.dumps(rows))
    assert split_digest(msvd._read("test", {"msvd_test.json": copy})) == split_digest(before)
    raw = write(tmp_path / "all.txt", "a_1_2 x\na_1_2 y\nb_1_2 z\n")
    files = {"raw_data/test_list.txt": listed, "raw_data/AllVideoDescriptions.txt": raw}
    assert split_digest(msvd._read("test", files)) == split_digest(before)


def test_didemo_as_copies_have_it(tmp_path: Path) -> None:
    rows = [
        {"video": "a.mov", "description": "first.", "times": []},
        {"video": "b.mov", "description": "other", "times": []},
        {"video": "a.mp4", "description": "second", "times": []},
    ]
    owners = didemo._read_official("test", {"x": write(tmp_path / "test_data.json", json.dumps(rows))})
    hub = [{"video": "DIR/a.mp4", "caption": "first. second"}, {"video": "DIR/b.mp4", "caption": "other"}]
    umt = [{"video": "b.mp4", "caption": ["other"]}, {"video": "a.mp4", "caption": ["first.", "second"]}]
    for copy in (hub, umt):
        read = didemo._read_official("test", {"x": write(tmp_path / "copy.json", json.dumps(copy))})
        assert split_digest(read) == split_digest(owners) and (read.start_s, read.end_s) == (0.0, 31.0)


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_a_folder_with_a_file_for_each_split(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        (tmp_path / f"{name}.mp4").touch()
    write(tmp_path / "mine_ret_train9k.json", json.dumps([{"video": "a.mp4", "caption": ["one", "two"]}]))
    write(tmp_path / "mine_ret_val_1.json", json.dumps([{"video": "b.mp4", "caption": "three"}]))
    write(tmp_path / "mine_ret_test1k.json", json.dumps([{"video": "c.mp4", "caption": "four"}]))
    dataset = load_dataset("folder", tmp_path)
    assert {name: split.captions for name, split in dataset.splits.items()} == {
        "train": ("one", "two"), "val": ("three",), "test": ("four",),
    }  # fmt: skip
    assert any("mine_ret_test1k.json, mine_ret_train9k.json and mine_ret_val_1.json" in note for note in dataset.notes)
    write(tmp_path / "mine_ret_train7k.json", json.dumps([{"video": "a.mp4", "caption": "five"}]))
    with pytest.raises(DatasetError, match="all hold captions"):
        load_dataset("folder", tmp_path)
    (tmp_path / "mine_ret_train7k.json").unlink()
    write(tmp_path / "mine_ret_val_1.json", json.dumps([{"video": "b.mp4", "caption": "x", "split": "test"}]))
    with pytest.raises(DatasetError, match="its name says val, and rows in it another split"):
        load_dataset("folder", tmp_path)


@pytest.mark.real
def test_the_real_captions_have_one_digest_in_every_layout(real_data: Path, tmp_path: Path) -> None:
    """MSR-VTT's 1k-A and MSVD's test in the forms of the Hub and of UMT: the digest of the published split."""
    folder = real_data / "annotations/msrvtt"
    name = "MSRVTT_JSFUSION_test.csv"
    owners: Annotated = msrvtt._read_retrieval("test", {name: folder / name})
    rows = [{"video": f"{clip}.mp4", "caption": [text]} for clip, text in owners.captions]
    path = write(tmp_path / "msrvtt_ret_test1k.json", json.dumps(rows[::-1]))
    published = msrvtt.MSRVTT.protocols["9k"].published["test"].sha256
    assert split_digest(msrvtt._read_retrieval("test", {path.name: path})) == published
    folder = real_data / "annotations/msvd"
    captions = json.loads((folder / "captions_msvd.json").read_text())
    listed = (folder / "test_list.txt").read_text().split()
    path = write(tmp_path / "m.json", json.dumps([{"video_id": each, "caption": captions[each]} for each in listed]))
    assert (
        split_digest(msvd._read("test", {"msvd_test.json": path})) == msvd.MSVD.protocols[""].published["test"].sha256
    )


def test_a_compressed_tar_is_no_part_of_another(tmp_path: Path) -> None:
    """X.tar.gz ends in two letters, as the parts that split makes do; it is one of them only beside X.tar.aa."""
    (tmp_path / "V.tar.gz").write_bytes(b"x")
    (tmp_path / "V.tar.xz").write_bytes(b"x")
    assert archive_of(tmp_path / "V.tar.gz").paths == (tmp_path / "V.tar.gz",) and not find_archives([tmp_path])
    (tmp_path / "V.tar.aa").write_bytes(b"x")
    assert len(archive_of(tmp_path / "V.tar.gz").paths) == 3
    with pytest.raises(DatasetError, match=r"cannot read .*W\.tar\.000: No such file"):
        list_archive(archive_of(tmp_path / "W.tar.000"))


def test_texts_count_towards_the_limit(tmp_path: Path) -> None:
    """A few kilobytes of zeros unfold into captions of any length."""
    bomb = zipped(tmp_path / "v.zip", {f"{n}.txt": b"a" * (1 << 20) for n in range(5)})
    with pytest.raises(DatasetError, match=r"v\.zip: it unfolds to more than its limit at '3'"):
        unpack([bomb], tmp_path / "out", most_bytes=3 << 20)


def test_captions_that_others_wrote_are_not_read_as_ours(tmp_path: Path) -> None:
    (tmp_path / "captions.jsonl").write_text("[" * 5000 + "\n")
    with pytest.raises(DatasetError, match="a line of it is none that calmctl wrote"):
        unpack([zipped(tmp_path / "v.zip", {"a.mp4": b"x", "a.txt": b"one"})], tmp_path)
