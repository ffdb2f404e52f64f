from pathlib import Path

import pytest

from calmctl.data.benchmarks.didemo import clip_id_of
from calmctl.data.locate import Missing, VideoFiles, listing, places
from calmctl.errors import DatasetError


def touch(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return path


def test_ids_with_dots_are_found_with_and_without_a_suffix(tmp_path: Path) -> None:
    clip = "0001_American_Beauty_00.00.51.926-00.00.54.129"
    other = "0001_American_Beauty_00.01.00.000-00.01.02.129"
    for name in (f"0001_American_Beauty/{clip}.avi", other):
        touch(tmp_path / name)
    files = VideoFiles(tmp_path)
    assert files.find(clip) == tmp_path / f"0001_American_Beauty/{clip}.avi"
    assert files.find(other) == tmp_path / other
    assert files.find("0001_American_Beauty_00.00.51") == Missing("no video file of this name")


@pytest.mark.parametrize("name", ["a@N0_1_x.mov", "a@N0_1_x.", "a@N0_1_x", "a@N0_1_x.mov.mp4", "a@N0_1_x.M2TS"])
def test_didemo_names_in_all_their_forms(tmp_path: Path, name: str) -> None:
    touch(tmp_path / name)
    assert VideoFiles(tmp_path, clip_id_of).find("a@N0_1_x") == tmp_path / name


def test_of_several_files_the_video_comes_first(tmp_path: Path) -> None:
    for name in ("video1.jpg", "video1.json", "video1.webm", "z/video1.mp4"):
        touch(tmp_path / name)
    assert VideoFiles(tmp_path).find("video1") == tmp_path / "video1.webm"


def test_what_is_there_and_is_no_file(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").mkdir()
    (tmp_path / "b.mp4").symlink_to("gone.mp4")
    touch(tmp_path / "._c.mp4")  # left by macOS on other file systems
    files = VideoFiles(tmp_path)
    assert [files.find(name) for name in "abc"] == [
        Missing("a folder, not a file"),
        Missing("dangling link"),
        Missing("no video file of this name"),
    ]


def test_linked_folders_are_followed_once(tmp_path: Path) -> None:
    touch(tmp_path / "store/clip.mp4")
    (tmp_path / "root").mkdir()
    (tmp_path / "root/videos").symlink_to(tmp_path / "store")
    (tmp_path / "store/loop").symlink_to(tmp_path / "root")
    assert VideoFiles(tmp_path / "root").find("clip") == tmp_path / "root/videos/clip.mp4"


def test_places(tmp_path: Path) -> None:
    for name in ("annotations/msvd", "videos"):
        (tmp_path / name).mkdir(parents=True)
    touch(tmp_path / "annotations/msvd/list.txt")
    touch(tmp_path / "annotations/list.txt")
    found = places("msvd", tmp_path, None, None)
    assert found.annotations == (tmp_path / "annotations/msvd", tmp_path / "annotations", tmp_path)
    assert found.videos == (tmp_path / "videos", tmp_path)
    assert found.find("list.txt") == tmp_path / "annotations/msvd/list.txt"
    assert found.find("other.txt") is None
    given = places("msvd", None, tmp_path / "annotations", tmp_path)
    assert given.annotations[-1] == tmp_path / "annotations" and given.videos == (tmp_path,)


def test_places_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"--videos .*gone is not a folder"):
        places("msvd", tmp_path, None, tmp_path / "gone")
    with pytest.raises(DatasetError, match="say where its files are with --root"):
        places("msvd", None, tmp_path, None)


def test_listing() -> None:
    assert listing(["a"]) == "a" and listing(["a", "b"]) == "a and b" and listing(["a", "b", "c"]) == "a, b and c"
