"""Digests of splits and files: what makes one another, and what does not."""

import os
from dataclasses import asdict
from pathlib import Path

import pytest
from pydantic import TypeAdapter, ValidationError

from calmctl.data.identity import ORDER, SplitRecord, changes, contents_of, record_split, shared_clips
from calmctl.data.registry import load_dataset
from calmctl.samples import Clip, LeftOut, Split, StoredSplit

BIG = 64 * 1024 * 4


def clips_of(folder: Path, names: str) -> tuple[Clip, ...]:
    folder.mkdir(exist_ok=True)
    for name in names:
        path = folder / f"{name}.mp4"
        if not path.exists():
            path.write_bytes(f"video {name}".encode())
    return tuple(Clip(name, folder / f"{name}.mp4") for name in names)


def content_of(path: Path) -> str | None:
    return contents_of([Clip("x", path)]).get("x")


def record(
    folder: Path, names: str = "abc", dataset: str = "folder", name: str = "train", **changed: str
) -> SplitRecord:
    """A split whose clips have two captions each, but for those in `changed`."""
    clips = clips_of(folder, names)
    captions = tuple(text for clip in clips for text in (changed.get(clip.id, f"a {clip.id}"), f"one {clip.id}"))
    owners = tuple(index for index in range(len(clips)) for _ in range(2))
    return record_split(dataset, "", Split(name, clips, captions, owners), contents_of(clips))


@pytest.mark.parametrize("place", [0, BIG // 2, BIG - 1])
def test_a_files_content_is_told_from_another_of_its_size(tmp_path: Path, place: int) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    one.write_bytes(bytes(BIG))
    content = bytearray(BIG)
    content[place] = 1
    other.write_bytes(bytes(content))
    assert content_of(one) != content_of(other)


def test_a_date_a_copy_and_a_link_are_no_other_content(tmp_path: Path) -> None:
    one = tmp_path / "one"
    one.write_bytes(b"video")
    before = content_of(one)
    os.utime(one, (1, 1))
    (tmp_path / "link").symlink_to(one)
    (tmp_path / "copy").write_bytes(b"video")
    assert before == content_of(one) == content_of(tmp_path / "link") == content_of(tmp_path / "copy")
    (tmp_path / "copy").write_bytes(b"video and more")
    assert before != content_of(tmp_path / "copy")


def test_what_is_no_file_has_no_content_and_nobody_waits_for_it(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "empty").touch()
    for name in ("pipe", ".", "nothing", "empty"):
        assert content_of(tmp_path / name) is None


def test_the_same_split_read_again_is_the_same(tmp_path: Path) -> None:
    assert changes(record(tmp_path), record(tmp_path)) == []
    assert record(tmp_path).whole == record(tmp_path).whole


def test_every_change_of_a_split_is_named(tmp_path: Path) -> None:
    before = record(tmp_path)
    assert changes(before, record(tmp_path, "abd")) == ["1 clip gone", "1 clip new"]
    assert changes(before, record(tmp_path, a="b", b="a")) == ["captions of 2 clips differ"]
    assert changes(before, record(tmp_path, "cba")) == [ORDER]
    (tmp_path / "b.mp4").write_bytes(b"VIDEO b")
    assert changes(before, record(tmp_path)) == ["files of 1 clip differ"]
    assert record(tmp_path).whole != before.whole


def test_the_digest_of_a_test_set_does_not_depend_on_the_order_of_its_clips(tmp_path: Path) -> None:
    assert record(tmp_path).digest == record(tmp_path, "bca").digest != record(tmp_path, "ab").digest


def test_clips_of_a_folder_are_shared_by_their_files_alone(tmp_path: Path) -> None:
    train, test = record(tmp_path / "one", "abc"), record(tmp_path / "two", "ab", name="test")
    assert shared_clips(test, train) == 2, "the same files"
    for name in "ab":
        (tmp_path / "two" / f"{name}.mp4").write_bytes(f"another {name}".encode())
    assert shared_clips(record(tmp_path / "two", "ab", name="test"), train) == 0, "the same names in another folder"
    (tmp_path / "two" / "x.mp4").write_bytes((tmp_path / "one" / "c.mp4").read_bytes())
    assert shared_clips(record(tmp_path / "two", "abx", name="test"), train) == 1, "a copy under another name"


def test_clips_of_a_published_set_are_shared_by_their_names(tmp_path: Path) -> None:
    train = record(tmp_path / "one", "abc", "msrvtt")
    (tmp_path / "two").mkdir()
    (tmp_path / "two" / "a.mp4").write_bytes(b"re-encoded")
    assert shared_clips(record(tmp_path / "two", "ad", "msrvtt", "test"), train) == 1
    assert shared_clips(record(tmp_path / "two", "ad", "msvd", "test"), train) == 0


def test_a_stored_split_without_contents_is_compared_by_what_is_known(tmp_path: Path) -> None:
    before = record(tmp_path, dataset="msrvtt")
    stored = StoredSplit("train", tuple("abc"), (), (), (LeftOut("d", "gone"),))
    now = record_split("msrvtt", "", stored, {}, dtype="float16", features="f" * 64)
    assert not now.knows_files and before.knows_files
    assert now.differs is None and now.left_out == 1
    assert changes(before, now) == ["captions of 3 clips differ", "features were extracted anew"]
    assert shared_clips(now, before) == 3


@pytest.mark.parametrize("changed", [{"ids": "AAAA"}, {"contents": "%%%%"}, {"clips": 4}, {"sentences": "AAAAAAAA"}])
def test_a_damaged_record_is_refused(tmp_path: Path, changed: dict[str, object]) -> None:
    reader = TypeAdapter(SplitRecord)
    values = asdict(record(tmp_path))
    assert reader.validate_python({**values}) == record(tmp_path)
    with pytest.raises(ValidationError):
        reader.validate_python({**values, **changed})


def test_a_record_holds_no_path_and_no_sentence(tmp_path: Path) -> None:
    text = repr(record(tmp_path))
    assert str(tmp_path) not in text and "a.mp4" not in text and "one a" not in text


def test_a_cut_list_of_the_published_test_clips_is_not_the_published_split(tmp_path: Path) -> None:
    rows = [f"ret{i},msr{i},video{7020 + i},a sentence {i}" for i in range(2)]
    (tmp_path / "MSRVTT_JSFUSION_test.csv").write_text("\n".join(["key,vid_key,video_id,sentence", *rows]))
    for i in range(2):
        (tmp_path / f"video{7020 + i}.mp4").write_bytes(b"x")
    split = load_dataset("msrvtt", tmp_path).splits["test"]
    assert split.differs == (
        "2 clips in the annotation files, 1,000 published",
        "2 captions in the annotation files, 1,000 published",
    )
